package proxywasm

import (
	"testing"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// fakeTCP is a fakeHTTP of which a connection needs less.
type fakeTCP struct{ fakeHTTP }

func TestTCPCallbacks(t *testing.T) {
	h := newHarness(t, abi.V021)
	s := h.plugin.NewTCP(&fakeTCP{})
	s.OnNewConnection()
	s.OnDownstreamData([]byte("abc"), false)
	s.OnUpstreamData([]byte("de"), true)
	s.OnDownstreamClose(abi.PeerRemote)
	s.OnDownstreamClose(abi.PeerLocal)
	s.Close()
	h.expectTrace(
		"--> proxy_on_context_create(context=2,parent=1)", "<-- ()",
		"--> proxy_on_new_connection(context=2)", "<-- (0)",
		"--> proxy_on_downstream_data(context=2,size=3,end=0)", "<-- (0)",
		"--> proxy_on_upstream_data(context=2,size=2,end=1)", "<-- (0)",
		"--> proxy_on_upstream_connection_close(context=2,peer=0)", "<-- ()",
		"--> proxy_on_downstream_connection_close(context=2,peer=2)", "<-- ()",
		"--> proxy_on_done(context=2)", "<-- (1)",
		"--> proxy_on_log(context=2)", "<-- ()",
		"--> proxy_on_delete(context=2)", "<-- ()",
	)
}

func TestTCPData(t *testing.T) {
	for _, up := range []bool{false, true} {
		h := newHarness(t, abi.V021, func(_ *harness, cfg *PluginConfig) { cfg.BufferLimit = 8 })
		s := h.plugin.NewTCP(&fakeTCP{})
		s.OnNewConnection()
		show, cb, buffer := s.OnDownstreamData, "proxy_on_downstream_data", 2
		if up {
			show, cb, buffer = s.OnUpstreamData, "proxy_on_upstream_data", 3
		}
		for _, c := range []chunk{
			{"ab", false, 1, "ab", "", Pause},
			{"cd", false, 0, "abcd", "abcd!", Continue},
			{"ef", false, 1, "ef", "", Pause},
			{"1234567", false, 1, "ef1234567", "", Overflow},
		} {
			h.within(cb, func() uint32 {
				h.doAll(call1("proxy_get_buffer_bytes", `(value="`+c.seen+`",OK)`, buffer, 0, 100))
				if c.status == 0 {
					h.doAll(call1("proxy_set_buffer_bytes", "(OK)", buffer, 100, 0, "!"))
				}
				return c.status
			}, func() {
				if out, act := show([]byte(c.data), c.end); string(out) != c.out || act != c.act {
					t.Errorf("%q: %q, %v, want %q, %v", c.data, out, act, c.out, c.act)
				}
			})
		}
	}
}

func TestTCPPause(t *testing.T) {
	h := newHarness(t, abi.V021)
	host := &fakeTCP{}
	s := h.plugin.NewTCP(host)
	h.on["proxy_on_new_connection"] = returns(1)
	if act := s.OnNewConnection(); act != Pause {
		t.Errorf("action = %v, want pause", act)
	}
	resume := func() {
		h.inTick(func() {
			h.do("proxy_set_effective_context", int(s.ID()))
			h.doAll(call1("proxy_continue_stream", "(OK)", 2))
		})
	}
	resume()
	host.expect(t, "continue downstream")
	h.on["proxy_on_downstream_data"] = returns(1)
	s.OnDownstreamData([]byte("ab"), false)
	resume()
	host.expect(t, "continue downstream")
	if out := s.Resume(); string(out) != "ab" {
		t.Errorf("resumed with %q", out)
	}
	h.inTick(func() {
		h.do("proxy_set_effective_context", int(s.ID()))
		h.doAll(call1("proxy_close_stream", "(OK)", 2), call1("proxy_close_stream", "(OK)", 3), call1("proxy_close_stream", "(OK)", 0))
	})
	host.expect(t, "close downstream", "close upstream")
}
