package proxywasm

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// A tracing host takes its own stream's trace.
type tracing struct {
	fakeHTTP
	lines []string
}

// Trace leaves out the calls by which the harness runs scripts.
func (h *tracing) Trace(line string) {
	if !strings.Contains(line, `"script"`) && line != "<== (UNIMPLEMENTED)" {
		h.lines = append(h.lines, line)
	}
}

// What is about a stream goes to its host, also from a callback of the root context that
// acts on its behalf; the rest does not.
func TestTracer(t *testing.T) {
	h := newHarness(t, abi.V021)
	host := new(tracing)
	s := h.plugin.NewHTTP(host)
	defer s.Close()
	s.OnRequestHeaders(request(), true)
	h.inTick(func() {
		h.in.effective = h.in.contexts[2]
		f := h.in.vm.host.env["proxy_continue_stream"]
		f.enter(h.in, []uint64{0})
	})
	want := []string{
		"--> proxy_on_context_create(context=2,parent=1)", "<-- ()",
		"--> proxy_on_request_headers(context=2,headers=7,end=1)", "<-- (0)",
		"==> env.proxy_continue_stream(stream=0)", "<== (OK)",
	}
	if diff := cmp.Diff(want, host.lines); diff != "" {
		t.Errorf("the stream's trace (-want +got):\n%s", diff)
	}
	h.expectTrace("--> proxy_on_tick(context=1)", "<-- ()")
}
