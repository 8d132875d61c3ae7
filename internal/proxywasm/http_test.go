package proxywasm

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/chandler-proxy/chandler/internal/abi"
)

func returns(n uint32) func() uint32 { return func() uint32 { return n } }

func trailers() *Fields { return NewFields(abi.Pair{Key: "t", Value: "1"}) }

// The whole life of a request, as the guest sees it.
func TestHTTPCallbacks(t *testing.T) {
	h := newHarness(t, abi.V021)
	s := h.plugin.NewHTTP(&fakeHTTP{})
	s.OnRequestHeaders(request(), false)
	s.OnRequestBody([]byte("abc"), false)
	s.OnRequestTrailers(trailers())
	s.OnResponseHeaders(NewFields(), false)
	s.OnResponseBody([]byte("de"), true)
	s.OnResponseTrailers(trailers())
	s.OnLog(nil, nil, nil)
	s.Close()
	s.Close()
	s.OnLog(nil, nil, nil)
	h.expectTrace(
		"--> proxy_on_context_create(context=2,parent=1)", "<-- ()",
		"--> proxy_on_request_headers(context=2,headers=7,end=0)", "<-- (0)",
		"--> proxy_on_request_body(context=2,size=3,end=0)", "<-- (0)",
		"--> proxy_on_request_trailers(context=2,trailers=1)", "<-- (0)",
		"--> proxy_on_response_headers(context=2,headers=0,end=0)", "<-- (0)",
		"--> proxy_on_response_body(context=2,size=2,end=1)", "<-- (0)",
		"--> proxy_on_response_trailers(context=2,trailers=1)", "<-- (0)",
		"--> proxy_on_log(context=2)", "<-- ()",
		"--> proxy_on_done(context=2)", "<-- (1)",
		"--> proxy_on_delete(context=2)", "<-- ()",
	)
	if len(h.in.contexts) != 1 {
		t.Errorf("%d contexts left, want the root context", len(h.in.contexts))
	}
}

func TestHTTPCallbacksOfABI010(t *testing.T) {
	h := newHarness(t, abi.V010)
	s := h.plugin.NewHTTP(&fakeHTTP{})
	s.OnRequestHeaders(request(), true)
	s.OnResponseHeaders(NewFields(), true)
	h.expectTrace(
		"--> proxy_on_context_create(context=2,parent=1)", "<-- ()",
		"--> proxy_on_request_headers(context=2,headers=7)", "<-- (0)",
		"--> proxy_on_response_headers(context=2,headers=0)", "<-- (0)",
	)
}

// A stream that the guest has not seen is created for its log, and one that it never
// sees is not deleted.
func TestHTTPUnseen(t *testing.T) {
	h := newHarness(t, abi.V021)
	s := h.plugin.NewHTTP(&fakeHTTP{})
	s.Close()
	h.expectTrace()
	s = h.plugin.NewHTTP(&fakeHTTP{})
	s.OnLog(request(), nil, nil)
	s.Close()
	h.expectTrace(
		"--> proxy_on_context_create(context=3,parent=1)", "<-- ()",
		"--> proxy_on_log(context=3)", "<-- ()",
		"--> proxy_on_done(context=3)", "<-- (1)",
		"--> proxy_on_delete(context=3)", "<-- ()",
	)
}

func TestHeadersActions(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status uint32
		allow  bool
		want   Action
	}{
		{"continue", 0, false, Continue},
		{"stop", 1, false, Pause},
		{"stop, allowed", 1, true, PauseHeaders},
		{"stop all and buffer", 2, true, Pause},
		{"stop all and watermark", 3, true, Pause},
		{"unknown", 4, true, Pause},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t, abi.V021, func(_ *harness, cfg *PluginConfig) { cfg.AllowHeadersStop = tt.allow })
			s := h.plugin.NewHTTP(&fakeHTTP{})
			h.on["proxy_on_request_headers"] = returns(tt.status)
			h.on["proxy_on_response_headers"] = returns(tt.status)
			if got := s.OnRequestHeaders(request(), false); got != tt.want {
				t.Errorf("request: %v, want %v", got, tt.want)
			}
			if got := s.OnResponseHeaders(NewFields(), false); got != tt.want {
				t.Errorf("response: %v, want %v", got, tt.want)
			}
		})
	}
}

// A chunk and what the guest returns for it, and what comes of both.
type chunk struct {
	data   string
	end    bool
	status uint32
	seen   string // by the guest
	out    string
	act    Action
}

func TestBody(t *testing.T) {
	for _, tt := range []struct {
		name   string
		chunks []chunk
	}{
		{"passes", []chunk{{"ab", false, 0, "ab", "ab", Continue}, {"", true, 0, "", "", Continue}}},
		{"gathered until the end", []chunk{
			{"ab", false, 1, "ab", "", Pause}, {"cd", false, 1, "abcd", "", Pause}, {"ef", true, 0, "abcdef", "abcdef", Continue}}},
		{"gathered, then passes", []chunk{
			{"ab", false, 1, "ab", "", Pause}, {"cd", false, 0, "abcd", "abcd", Continue}, {"ef", true, 0, "ef", "ef", Continue}}},
		{"watermark", []chunk{
			{"ab", false, 2, "ab", "", Pause}, {"cd", false, 2, "cd", "", Pause}, {"ef", true, 0, "ef", "abcdef", Continue}}},
		{"not buffered", []chunk{{"ab", false, 3, "ab", "", Pause}, {"cd", true, 0, "cd", "cd", Continue}}},
		{"unknown", []chunk{{"ab", false, 9, "ab", "", Pause}, {"cd", true, 0, "cd", "cd", Continue}}},
		{"too much", []chunk{{"12345678", false, 1, "12345678", "", Pause}, {"9", false, 1, "123456789", "", Overflow}}},
		{"too much at once, but not held", []chunk{{"123456789", true, 0, "123456789", "123456789", Continue}}},
	} {
		for _, dir := range []abi.Stream{abi.Request, abi.Response} {
			t.Run(tt.name+" "+dir.String(), func(t *testing.T) {
				h := newHarness(t, abi.V021, func(_ *harness, cfg *PluginConfig) { cfg.BufferLimit = 8 })
				s := h.plugin.NewHTTP(&fakeHTTP{})
				show, cb, buffer := s.OnRequestBody, "proxy_on_request_body", 0
				s.OnRequestHeaders(request(), false)
				if dir == abi.Response {
					show, cb, buffer = s.OnResponseBody, "proxy_on_response_body", 1
					s.OnResponseHeaders(NewFields(), false)
				}
				for i, c := range tt.chunks {
					h.within(cb, func() uint32 {
						h.doAll(call1("proxy_get_buffer_bytes", `(value="`+c.seen+`",OK)`, buffer, 0, 100))
						return c.status
					}, func() {
						in := []byte(c.data)
						out, act := show(in, c.end)
						clear(in) // what is held back is no one else's memory
						if c.act == Continue {
							out = []byte(c.out)
						}
						if string(out) != c.out || act != c.act {
							t.Errorf("chunk %d: %q, %v, want %q, %v", i, out, act, c.out, c.act)
						}
					})
				}
			})
		}
	}
}

func TestBodyGoesOn(t *testing.T) {
	h := newHarness(t, abi.V021)
	s := h.plugin.NewHTTP(&fakeHTTP{})
	s.OnRequestHeaders(request(), false)
	h.on["proxy_on_request_body"] = returns(1)
	s.OnRequestBody([]byte("ab"), false)
	h.on["proxy_on_request_body"] = returns(0)
	if out, act := s.OnRequestBody([]byte("cd"), false); string(out) != "abcd" || act != Continue {
		t.Errorf("body = %q, %v", out, act)
	}
	h.on["proxy_on_request_body"] = returns(1)
	s.OnRequestBody([]byte("ef"), false)
	if out, act := s.OnRequestTrailers(trailers()); string(out) != "ef" || act != Continue {
		t.Errorf("with trailers %q, %v", out, act)
	}
}

// Bodies take memory from one another when they are done, and show nothing of it.
func TestBodyMemory(t *testing.T) {
	h := newHarness(t, abi.V021)
	for i, body := range []string{"abcdefgh", "xy", "abcdefghijkl"} {
		s := h.plugin.NewHTTP(&fakeHTTP{})
		s.OnRequestHeaders(request(), false)
		in := []byte(body[:1])
		h.on["proxy_on_request_body"] = returns(1)
		s.OnRequestBody(in, false)
		in[0] = '!'
		h.within("proxy_on_request_body", func() uint32 {
			h.doAll(call1("proxy_set_buffer_bytes", "(OK)", 0, 0, 1, "Z"), // as much as is replaced
				call1("proxy_get_buffer_bytes", `(value="Z`+body[1:]+`",OK)`, 0, 0, 100),
				call1("proxy_set_buffer_bytes", "(OK)", 0, 0, 1, "12"), // more
				call1("proxy_get_buffer_bytes", `(value="12`+body[1:]+`",OK)`, 0, 0, 100),
				call1("proxy_set_buffer_bytes", "(OK)", 0, 0, 100, "all"), // everything
				call1("proxy_set_buffer_bytes", "(OK)", 0, 3, 0, body),    // at its end
				call1("proxy_get_buffer_bytes", `(value="all`+body+`",OK)`, 0, 0, 100))
			return 0
		}, func() {
			if out, act := s.OnRequestBody([]byte(body[1:]), false); string(out) != "all"+body || act != Continue {
				t.Errorf("%d: body = %q, %v", i, out, act)
			}
		})
		chunk := []byte("next")
		h.within("proxy_on_request_body", func() uint32 {
			h.doAll(call1("proxy_set_buffer_bytes", "(OK)", 0, 0, 4, "NEXT!"))
			return 0
		}, func() {
			if out, act := s.OnRequestBody(chunk, true); string(out) != "NEXT!" || act != Continue {
				t.Errorf("%d: rest = %q, %v", i, out, act)
			}
		})
		if string(chunk) != "next" {
			t.Errorf("%d: what was shown was changed in place: %q", i, chunk)
		}
		s.Close()
	}
}

// resume has the guest continue the stream from outside of its callbacks.
func (h *harness) resume(s *HTTP, dir abi.Stream) {
	h.Helper()
	h.inTick(func() {
		h.do("proxy_set_effective_context", int(s.ID()))
		h.doAll(call1("proxy_continue_stream", "(OK)", int(dir)))
	})
}

func TestResumeBody(t *testing.T) {
	for _, dir := range []abi.Stream{abi.Request, abi.Response} {
		h := newHarness(t, abi.V021)
		host := &fakeHTTP{}
		s := h.plugin.NewHTTP(host)
		h.on["proxy_on_request_body"], h.on["proxy_on_response_body"] = returns(1), returns(1)
		s.OnRequestHeaders(request(), false)
		show := s.OnRequestBody
		if dir == abi.Response {
			s.OnResponseHeaders(NewFields(), false)
			show = s.OnResponseBody
		}
		show([]byte("ab"), false)
		show([]byte("cd"), true)
		h.resume(s, dir)
		host.expect(t, "continue "+dir.String())
		if out, act := s.Resume(dir); string(out) != "abcd" || act != Continue {
			t.Errorf("%v: resumed with %q, %v", dir, out, act)
		}
		h.resume(s, dir)
		host.expect(t)
	}
}

// What came while the headers were held back is shown once they go on.
func TestResumeHeaders(t *testing.T) {
	for _, tt := range []struct {
		name         string
		body         []string
		end          bool
		trailers     bool
		bodyStatus   uint32
		out          string
		act          Action
		callsOfGuest []string
	}{
		{name: "alone", act: Continue},
		{name: "body", body: []string{"ab", "cd"}, end: true, out: "abcd", act: Continue,
			callsOfGuest: []string{"--> proxy_on_request_body(context=2,size=4,end=1)"}},
		{name: "body that pauses", body: []string{"ab"}, bodyStatus: 1, act: Pause,
			callsOfGuest: []string{"--> proxy_on_request_body(context=2,size=2,end=0)"}},
		{name: "body and trailers", body: []string{"ab"}, trailers: true, out: "ab", act: Continue,
			callsOfGuest: []string{"--> proxy_on_request_body(context=2,size=2,end=0)", "--> proxy_on_request_trailers(context=2,trailers=1)"}},
		{name: "body that pauses, and trailers", body: []string{"ab"}, trailers: true, bodyStatus: 1, out: "ab", act: Continue,
			callsOfGuest: []string{"--> proxy_on_request_body(context=2,size=2,end=0)", "--> proxy_on_request_trailers(context=2,trailers=1)"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t, abi.V021)
			host := &fakeHTTP{}
			s := h.plugin.NewHTTP(host)
			h.on["proxy_on_request_headers"] = returns(1)
			h.on["proxy_on_request_body"] = returns(tt.bodyStatus)
			s.OnRequestHeaders(request(), false)
			for i, part := range tt.body {
				if out, act := s.OnRequestBody([]byte(part), tt.end && i == len(tt.body)-1); out != nil || act != Pause {
					t.Errorf("held back: %q, %v", out, act)
				}
			}
			if tt.trailers {
				s.OnRequestTrailers(trailers())
			}
			h.resume(s, abi.Request)
			host.expect(t, "continue request")
			h.trace = nil
			out, act := s.Resume(abi.Request)
			if string(out) != tt.out || act != tt.act {
				t.Errorf("resumed with %q, %v, want %q, %v", out, act, tt.out, tt.act)
			}
			var got []string
			for _, line := range h.trace {
				if line[:3] == "-->" {
					got = append(got, line)
				}
			}
			if diff := cmp.Diff(tt.callsOfGuest, got); diff != "" {
				t.Errorf("callbacks (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHTTPCall(t *testing.T) {
	h := newHarness(t, abi.V021)
	headers := serialized(":method", "GET", ":path", "/", ":authority", "a", "X-Y", "z")
	h.inTick(func() {
		h.doAll(
			call1("proxy_http_call", "(call=4,OK)", "up", headers, "", "", 500),
			call1("proxy_http_call", "(call=8,OK)", "up", serialized(":method", "POST", ":path", "/", "host", "h"), "body", serialized("t", "1"), 0),
			call1("proxy_http_call", "(BAD_ARGUMENT)", "up", serialized(":method", "GET", ":path", "/"), "", "", 0),
			call1("proxy_http_call", "(BAD_ARGUMENT)", "up", serialized(":method", "GET", ":authority", "a"), "", "", 0),
			call1("proxy_http_call", "(BAD_ARGUMENT)", "up", serialized(":path", "/", ":authority", "a"), "", "", 0),
			call1("proxy_http_call", "(BAD_ARGUMENT)", "up", headers, "", "", -1),
			call1("proxy_http_call", "(INVALID_MEMORY_ACCESS)", bad, headers, "", "", 0),
			call1("proxy_http_call", "(INVALID_MEMORY_ACCESS)", "up", bad, "", "", 0),
			call1("proxy_http_call", "(INVALID_MEMORY_ACCESS)", "up", headers, bad, "", 0),
			call1("proxy_http_call", "(INVALID_MEMORY_ACCESS)", "up", headers, "", bad, 0),
			call1("proxy_http_call", "(INVALID_MEMORY_ACCESS)", "up", headers, "", "", 0, bad),
		)
		h.calls.status = abi.InternalFailure
		h.doAll(call1("proxy_http_call", "(INTERNAL_FAILURE)", "up", headers, "", "", 0))
		h.calls.status = abi.OK
	})
	want := []HTTPCall{
		{Upstream: "up", Headers: []abi.Pair{{Key: ":method", Value: "GET"}, {Key: ":path", Value: "/"}, {Key: ":authority", Value: "a"}, {Key: "x-y", Value: "z"}}, Timeout: 500e6},
		{Upstream: "up", Headers: []abi.Pair{{Key: ":method", Value: "POST"}, {Key: ":path", Value: "/"}, {Key: ":authority", Value: "h"}, {Key: "content-length", Value: "4"}},
			Body: "body", Trailers: []abi.Pair{{Key: "t", Value: "1"}}},
	}
	if diff := cmp.Diff(want, h.calls.https); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	h.trace = nil
	h.calls.answers[0](HTTPAnswer{Headers: NewFields(abi.Pair{Key: ":status", Value: "200"}), Body: "hi", Trailers: trailers()})
	h.calls.answers[0](HTTPAnswer{}) // a second answer is none
	h.within("proxy_on_http_call_response", func() uint32 {
		h.doAll(
			call1("proxy_get_header_map_value", `(value="200",OK)`, 6, ":status"),
			call1("proxy_get_header_map_value", `(value="1",OK)`, 7, "t"),
			call1("proxy_get_buffer_bytes", `(value="hi",OK)`, 4, 0, 10),
			call1("proxy_set_buffer_bytes", "(BAD_ARGUMENT)", 4, 0, 0, "x"),
			call1("proxy_add_header_map_value", "(BAD_ARGUMENT)", 6, "x", "y"),
			call1("proxy_get_status", `(code=0,message="",OK)`),
		)
		return 0
	}, h.run)
	if h.trace[0] != "--> proxy_on_http_call_response(context=1,call=4,headers=1,size=2,trailers=1)" {
		t.Errorf("trace begins with %s", h.trace[0])
	}
	h.trace = nil
	h.calls.answers[1](HTTPAnswer{})
	h.within("proxy_on_http_call_response", func() uint32 {
		h.doAll(
			call1("proxy_get_status", `(code=11,message="reset",OK)`),
			call1("proxy_get_buffer_bytes", "(NOT_FOUND)", 4, 0, 10),
		)
		return 0
	}, h.run)
	if h.trace[0] != "--> proxy_on_http_call_response(context=1,call=8,headers=0,size=0,trailers=0)" {
		t.Errorf("trace begins with %s", h.trace[0])
	}
	h.inTick(func() { h.doAll(call1("proxy_get_buffer_bytes", "(NOT_FOUND)", 4, 0, 10)) })
}

// A call that is answered before the guest has its number waits for it.
func TestHTTPCallAnsweredAtOnce(t *testing.T) {
	h := newHarness(t, abi.V021)
	h.calls.atOnce = &HTTPAnswer{Headers: NewFields()}
	h.inTick(func() {
		h.do("proxy_http_call", "up", serialized(":method", "GET", ":path", "/", ":authority", "a"), "", "", 0)
	})
	h.within("proxy_on_http_call_response", returns(0), h.run)
}

// The plugin that is gone is not told, and its calls are canceled.
func TestCallsEndWithThePlugin(t *testing.T) {
	h := newHarness(t, abi.V021)
	h.inTick(func() {
		h.do("proxy_http_call", "up", serialized(":method", "GET", ":path", "/", ":authority", "a"), "", "", 0)
		h.do("proxy_grpc_call", "up", "s", "m", "", "", 0)
		h.do("proxy_grpc_stream", "up", "s", "m", "")
	})
	if err := h.plugin.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	h.trace = nil
	h.calls.answers[0](HTTPAnswer{})
	h.calls.events[0].Message("x")
	h.run()
	h.expectTrace()
	if h.calls.canceled != 2 || len(h.calls.sent) != 1 || h.calls.sent[0] != "cancel" {
		t.Errorf("%d canceled, %v, want 2 and the stream", h.calls.canceled, h.calls.sent)
	}
}

func TestGRPC(t *testing.T) {
	h := newHarness(t, abi.V021)
	h.inTick(func() {
		h.doAll(
			call1("proxy_grpc_call", "(call=5,OK)", "up", "svc", "method", serialized("k", "v"), "msg", 250),
			call1("proxy_grpc_call", "(call=9,OK)", "up", "svc", "method", "", "", 0),
			call1("proxy_grpc_call", "(call=13,OK)", "up", "svc", "method", "", "", 0),
			call1("proxy_grpc_stream", "(call=6,OK)", "up", "svc", "stream", ""),
			call1("proxy_grpc_stream", "(call=10,OK)", "up", "svc", "stream", ""),
			call1("proxy_grpc_call", "(INVALID_MEMORY_ACCESS)", "up", bad, "m", "", "", 0),
			call1("proxy_grpc_call", "(INVALID_MEMORY_ACCESS)", "up", "s", "m", "", bad, 0),
			call1("proxy_grpc_call", "(INVALID_MEMORY_ACCESS)", "up", "s", "m", "", "", 0, bad),
			call1("proxy_grpc_stream", "(INVALID_MEMORY_ACCESS)", bad, "s", "m", ""),
			call1("proxy_grpc_stream", "(INVALID_MEMORY_ACCESS)", "up", "s", "m", "", bad),
			call1("proxy_grpc_send", "(OK)", 6, "one", 0),
			call1("proxy_grpc_send", "(OK)", 6, "two", 1),
			call1("proxy_grpc_send", "(BAD_ARGUMENT)", 5, "x", 0),
			call1("proxy_grpc_send", "(NOT_FOUND)", 66, "x", 0),
			call1("proxy_grpc_send", "(INVALID_MEMORY_ACCESS)", 6, bad, 0),
			call1("proxy_grpc_cancel", "(OK)", 9),
			call1("proxy_grpc_cancel", "(NOT_FOUND)", 9),
			call1("proxy_grpc_cancel", "(BAD_ARGUMENT)", 4),
			call1("proxy_grpc_cancel", "(BAD_ARGUMENT)", 7),
			call1("proxy_grpc_close", "(OK)", 6),
			call1("proxy_grpc_close", "(NOT_FOUND)", 66),
			call1("proxy_grpc_close", "(BAD_ARGUMENT)", 4),
			call1("proxy_grpc_cancel", "(OK)", 10),
		)
		h.calls.status = abi.ParseFailure
		h.doAll(
			call1("proxy_grpc_call", "(PARSE_FAILURE)", "none", "s", "m", "", "", 0),
			call1("proxy_grpc_stream", "(PARSE_FAILURE)", "none", "s", "m", ""),
		)
	})
	if diff := cmp.Diff([]string{`send "one" false`, `send "two" true`, "close", "cancel"}, h.calls.sent); diff != "" {
		t.Errorf("stream (-want +got):\n%s", diff)
	}
	if h.calls.canceled != 1 {
		t.Errorf("%d calls canceled, want 1", h.calls.canceled)
	}
	first := GRPCCall{Upstream: "up", Service: "svc", Method: "method", Metadata: []abi.Pair{{Key: "k", Value: "v"}}, Message: "msg", Timeout: 250e6}
	if diff := cmp.Diff(first, h.calls.grpcs[0]); diff != "" {
		t.Errorf("call (-want +got):\n%s", diff)
	}

	unary, canceled, failing, stream := h.calls.events[0], h.calls.events[1], h.calls.events[2], h.calls.events[3]
	h.on["proxy_on_grpc_receive_initial_metadata"] = func() uint32 {
		h.doAll(call1("proxy_get_header_map_value", `(value="1",OK)`, 4, "t"))
		return 0
	}
	h.on["proxy_on_grpc_receive_trailing_metadata"] = func() uint32 {
		h.doAll(call1("proxy_get_header_map_value", `(value="1",OK)`, 5, "t"))
		return 0
	}
	h.on["proxy_on_grpc_receive"] = func() uint32 {
		h.doAll(call1("proxy_get_buffer_bytes", `(value="answer",OK)`, 5, 0, 100))
		return 0
	}
	h.on["proxy_on_grpc_close"] = func() uint32 {
		h.doAll(call1("proxy_get_status", `(code=14,message="gone",OK)`))
		return 0
	}
	h.trace = nil
	unary.InitialMetadata(trailers()) // Envoy does not tell
	unary.Message("answer")
	unary.Message("a second one")
	canceled.Message("too late")
	failing.Close(14, "gone")
	stream.InitialMetadata(trailers())
	stream.Message("answer")
	stream.TrailingMetadata(trailers())
	stream.Close(14, "gone")
	stream.Message("after the end")
	h.run()
	var got []string
	for _, line := range h.trace {
		if line[:3] == "-->" {
			got = append(got, line)
		}
	}
	want := []string{
		"--> proxy_on_grpc_receive(context=1,call=5,size=6)",
		"--> proxy_on_grpc_close(context=1,call=13,status=14)",
		"--> proxy_on_grpc_receive_initial_metadata(context=1,call=6,elements=1)",
		"--> proxy_on_grpc_receive(context=1,call=6,size=6)",
		"--> proxy_on_grpc_receive_trailing_metadata(context=1,call=6,elements=1)",
		"--> proxy_on_grpc_close(context=1,call=6,status=14)",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("callbacks (-want +got):\n%s", diff)
	}
}
