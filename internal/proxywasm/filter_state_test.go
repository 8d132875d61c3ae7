package proxywasm

import (
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// A statefulHTTP keeps what plugins set itself.
type statefulHTTP struct {
	fakeHTTP
	state *FilterState
}

func (s *statefulHTTP) FilterState() *FilterState { return s.state }

// What Envoy 1.40 answers to far more is compared in package engine.
func TestDeclaredProperties(t *testing.T) {
	declare := func(fields ...any) string { return string(encode(fields...)) }
	h := newHarness(t, abi.V021, func(_ *harness, cfg *PluginConfig) {
		cfg.Properties = nil
		cfg.VM.Messages = func(dst []byte, url, message, path string) ([]byte, abi.Status) {
			return append(dst, url+" "+message+" "+path...), abi.OK
		}
	})
	foreign := func(arguments, want string) hostCall {
		return call1("proxy_call_foreign_function", want, "declare_property", arguments)
	}
	h.inTick(func() {
		h.doAll(
			foreign(declare("text", 0, 1), `(results="",OK)`), foreign(declare("text", 0, 1), "(BAD_ARGUMENT)"), foreign(declare("once", 1), `(results="",OK)`),
			foreign(declare("message", 0, 3, "url"), `(results="",OK)`), foreign(declare("flat", 0, 2), "(NOT_FOUND)"), foreign(declare("shared", 0, 1, nil, 2), `(results="",OK)`),
			foreign(declare("odd", 0, 99, nil, 99), `(results="",OK)`), foreign("a", "(BAD_ARGUMENT)"), foreign("\x0a\x01\xff", "(BAD_ARGUMENT)"), foreign("", `(results="",OK)`),
			call1("proxy_set_property", "(NOT_FOUND)", "text", "x"), call1("proxy_get_property", "(NOT_FOUND)", "text"),
			call1("proxy_call_foreign_function", "(NOT_FOUND)", "set_envoy_filter_state", string(encode("envoy.string", "x"))),
		)
	})
	var connection FilterState
	for i, want := range []struct{ shared, once string }{{"(NOT_FOUND)", "(OK)"}, {`(value="of all",OK)`, "(OK)"}} {
		host := &statefulHTTP{state: NewFilterState(&connection)}
		s := h.plugin.NewHTTP(host)
		h.within("proxy_on_request_headers", func() uint32 {
			h.doAll(
				call1("proxy_get_property", want.shared, "shared"), call1("proxy_set_property", "(OK)", "shared", "of all"), call1("proxy_get_property", `(value="of all",OK)`, "shared"),
				call1("proxy_get_property", "(NOT_FOUND)", "text"), call1("proxy_set_property", "(OK)", "text", "x"), call1("proxy_get_property", `(value="x",OK)`, "text"), call1("proxy_get_property", "(NOT_FOUND)", "text\x00y"),
				call1("proxy_set_property", want.once, "once", "1"), call1("proxy_set_property", "(BAD_ARGUMENT)", "once", "2"), call1("proxy_get_property", `(value="1",OK)`, "once"),
				call1("proxy_set_property", "(OK)", "message", "m"), call1("proxy_get_property", `(value="m",OK)`, "message"), call1("proxy_get_property", `(value="url m a.b",OK)`, "message\x00a.b"),
				call1("proxy_get_property", `(value="url m ",OK)`, "filter_state\x00wasm.message"), call1("proxy_get_property", `(value="x",OK)`, "filter_state\x00wasm.text"), call1("proxy_get_property", "(SERIALIZATION_FAILURE)", "filter_state"),
				call1("proxy_get_property", "(NOT_FOUND)", "filter_state\x00nothing"), call1("proxy_set_property", "(OK)", "a\x00b", "x"), call1("proxy_get_property", "(NOT_FOUND)", "a\x00b"),
				call1("proxy_call_foreign_function", `(results="",OK)`, "set_envoy_filter_state", string(encode("envoy.string", "1"))), call1("proxy_get_property", `(value="1",OK)`, "filter_state\x00envoy.string"),
				call1("proxy_call_foreign_function", `(results="",OK)`, "set_envoy_filter_state", string(encode("envoy.string", "2", 1))), call1("proxy_get_property", `(value="1",OK)`, "filter_state\x00envoy.string"), // of another life span
				call1("proxy_call_foreign_function", "(NOT_FOUND)", "set_envoy_filter_state", string(encode("envoy.tcp_proxy.cluster", "c"))),
				call1("proxy_call_foreign_function", "(BAD_ARGUMENT)", "set_envoy_filter_state", "a"),
			)
			return 0
		}, func() { s.OnRequestHeaders(request(), true) })
		if len(host.props) > 0 {
			t.Errorf("stream %d: its host was told %v", i, host.props)
		}
		s.Close()
	}
}

// A host that keeps nothing is told what is set, and the rest is kept for it.
func TestDeclaredForOtherHosts(t *testing.T) {
	h := newHarness(t, abi.V021, func(_ *harness, cfg *PluginConfig) { cfg.Properties = nil })
	h.inTick(func() { h.do("proxy_call_foreign_function", "declare_property", string(encode("once", 1))) })
	host := &fakeHTTP{}
	s := h.plugin.NewHTTP(host)
	h.within("proxy_on_request_headers", func() uint32 {
		h.doAll(call1("proxy_set_property", "(OK)", "once", "1"), call1("proxy_set_property", "(BAD_ARGUMENT)", "once", "2"), call1("proxy_get_property", `(value="1",OK)`, "once"),
			call1("proxy_get_property", `(value="1",OK)`, "filter_state\x00wasm.once"))
		return 0
	}, func() { s.OnRequestHeaders(request(), true) })
	if diff := cmp.Diff(map[string]string{"once": "1"}, host.props); diff != "" {
		t.Error(diff)
	}
}

func TestFilterObjects(t *testing.T) {
	for _, tt := range []struct {
		key, text, want string
		status          abi.Status
	}{
		{"envoy.string", "", "", abi.OK}, {"envoy.hashable_string", "h", "h", abi.OK}, {"envoy.upstream.dynamic_host", "h", "h", abi.OK},
		{"envoy.network.ip", "1.2.3.4", "1.2.3.4:0", abi.OK}, {"envoy.network.ip", "::1", "[::1]:0", abi.OK}, {"envoy.network.ip", "1.2.3.4:5", "", abi.BadArgument}, {"envoy.network.ip", "fe80::1%lo", "", abi.BadArgument},
		{"envoy.upstream.dynamic_port", " +080\n", "80", abi.OK}, {"envoy.upstream.dynamic_port", "-1", "", abi.BadArgument}, {"envoy.ratelimit.hits_addend", "4294967296", "", abi.BadArgument}, {"envoy.ratelimit.hits_addend", "", "", abi.BadArgument},
		{"envoy.network.upstream_server_name", "x", "", abi.NotFound}, {"", "", "", abi.NotFound},
	} {
		if got, status := filterObject(tt.key, tt.text); got != tt.want || status != tt.status {
			t.Errorf("%s of %q: %q %v, want %q %v", tt.key, tt.text, got, status, tt.want, tt.status)
		}
	}
}

func TestMaxDeclared(t *testing.T) {
	c := &Context{in: &Instance{}}
	for i := range maxDeclared {
		if _, status := declareProperty(c, encode(strings.Repeat("x", i))); status != abi.OK {
			t.Fatalf("%d: %v", i, status)
		}
	}
	if _, status := declareProperty(c, encode("one more")); status != abi.NotFound {
		t.Errorf("one more: %v", status)
	}
}

// Streams of a connection share it from many goroutines.
func TestHammerFilterState(t *testing.T) {
	var connection FilterState
	var g sync.WaitGroup
	for range 8 {
		g.Go(func() {
			for range 200 {
				s := NewFilterState(&connection)
				s.setProperty("shared", "x", Value{Type: String, span: DownstreamConnection})
				s.setProperty("own", "x", Value{})
				s.setObject("envoy.string", "x", DownstreamConnection)
				if v, ok := s.find("wasm.shared"); !ok || v.Data != "x" {
					t.Errorf("%v %v", v, ok)
				}
			}
		})
	}
	g.Wait()
	if _, ok := connection.find("wasm.own"); ok {
		t.Error("a stream's own is the connection's")
	}
}
