package plugintest

import (
	"strings"
	"testing"
	"time"
)

// stepTests drive streams and connections piece by piece; TestEverything runs them.
func stepTests() []moduleTest {
	return []moduleTest{
		{"pieces pass one by one", testPieces},
		{"headers alone", testHeadersAlone},
		{"headers held back", testHeldHeaders},
		{"a body held back", testHeldBody},
		{"trailers held back", testHeldTrailers},
		{"trailers after a pause", testTrailersAfterPause},
		{"a response held back", testHeldResponse},
		{"a call answered between pieces", testCallBetween},
		{"a local reply between pieces of the request", testLocalBetween},
		{"a local reply instead of a response held back", testLocalInstead},
		{"a local reply too late", testLocalLate},
		{"the plugin resets between pieces", testResetBetween},
		{"the client goes away", testCancelBetween},
		{"the backend goes away", testBackendFails},
		{"a response before the request has ended", testEarlyResponse},
		{"a response without a request", testNoRequest},
		{"more for a backend", testBackendMore},
		{"more than the limit", testStepLimit},
		{"a trap between pieces", testTrapBetween},
		{"steps out of order", testStepMisuse},
		{"half-closed connections", testHalfClose},
		{"a connection held back", testConnPaused},
		{"time by hand", testStopClock},
		{"what was logged where", testLogsOf},
		{"no trace", testNoTrace},
	}
}

// held is what the plugin holds back.
func held(s *Stream) [2]bool { return [2]bool{s.RequestPaused(), s.ResponsePaused()} }

var (
	nothing      = [2]bool{false, false}
	heldRequest  = [2]bool{true, false}
	heldResponse = [2]bool{false, true}
)

func testPieces(t *testing.T, m *Module) {
	p := m.Start(t, Config{Backend: func(Request) Response {
		t.Error("the Config's backend was asked")
		return Response{}
	}})
	s := p.Open(map[string]any{"source.address": "192.0.2.1:5"})
	if s.ToServer() != nil || s.ToClient() != nil || s.Paused() || s.Done() {
		t.Error("something of the stream is there before it began")
	}
	s.Request(Request{Method: "POST", Path: "/properties", Headers: Headers{{"x-paths", "source.address,request.method,mine"}},
		Properties: map[string]any{"mine": "yes"}, More: true})
	for _, want := range []string{"source.address=192.0.2.1:5", "request.method=POST", "mine=yes"} {
		if !p.Logged(want) {
			t.Errorf("%s is not in %v", want, p.Logs())
		}
	}
	head := Request{Method: "POST", Scheme: "http", Host: "example.com", Path: "/properties",
		Headers: Headers{{"x-paths", "source.address,request.method,mine"}, {"x-seen", "/properties"}}, More: true}
	expect(t, "headers at the backend", s.ToServer(), &head)

	s.Send("one ")
	head.Body = "one "
	expect(t, "a piece at the backend", s.ToServer(), &head)
	s.Send("")
	s.Send("two")
	s.SendTrailers(Headers{{"T", "1"}})
	head.Body, head.More, head.Trailers = "one two", false, Headers{{"t", "1"}, {"x-trailer", "request"}}
	expect(t, "all at the backend", s.ToServer(), &head)
	if s.ToClient() != nil || s.Done() {
		t.Error("there is a response before the backend gave it")
	}

	s.Respond(Response{Status: 201, Headers: Headers{{"a", "b"}}, More: true})
	want := Response{Status: 201, Headers: Headers{{"a", "b"}, {"x-everything", "/properties"}}, More: true}
	expect(t, "headers at the client", s.ToClient(), &want)
	s.Reply("x")
	s.ReplyLast("y")
	want.Body, want.More = "xy", false
	expect(t, "all at the client", s.ToClient(), &want)
	expect(t, "result", s.Result(), Result{Response: want, Upstream: &head, GRPCStatus: -1})
	expect(t, "sizes of responses", p.Histogram("sizes"), []uint64{2})
}

func testHeadersAlone(t *testing.T, m *Module) {
	p := m.Start(t, Config{})
	s := p.Open(nil)
	s.Request(Request{})
	expect(t, "the request", s.ToServer(), &Request{Method: "GET", Scheme: "http", Host: "example.com", Path: "/", Headers: Headers{{"x-seen", "/"}}})
	s.Respond(Response{Trailers: Headers{{"t", "1"}}})
	expect(t, "the response", s.Result().Response, Response{Status: 200, Headers: Headers{{"x-everything", "/"}},
		Trailers: Headers{{"t", "1"}, {"x-trailer", "response"}}})
	if !strings.Contains(strings.Join(p.Trace(), "\n"), "--> proxy_on_request_headers(context=2,headers=4,end=1)") {
		t.Errorf("the plugin did not see that there is no body: %q", p.Trace())
	}
}

func testHeldHeaders(t *testing.T, m *Module) {
	p := m.Start(t, Config{})
	s := p.Open(nil)
	s.Request(Request{Headers: Headers{{"x-hold", "request headers"}}, Body: "a", More: true})
	s.Send("b")
	expect(t, "held back", held(s), heldRequest)
	if got := s.ToServer(); got != nil {
		t.Errorf("%+v reached the backend", got)
	}
	if lines := strings.Join(p.Trace(), "\n"); strings.Contains(lines, "proxy_on_request_body") {
		t.Error("the plugin was shown a body while it holds the headers back")
	}
	p.Tick()
	expect(t, "held back after the tick", held(s), nothing)
	expect(t, "at the backend", s.ToServer().Body, "ab")
	s.SendLast("c")
	expect(t, "at the backend", s.ToServer().Body, "abc")
}

func testHeldBody(t *testing.T, m *Module) {
	p := m.Start(t, Config{})
	s := p.Open(nil)
	s.Request(Request{Method: "POST", More: true})
	s.Send("hold")
	expect(t, "held back", held(s), heldRequest)
	expect(t, "at the backend", []any{s.ToServer().Body, s.ToServer().More}, []any{"", true})
	s.Send(" and on") // the plugin sees both, and lets them go
	expect(t, "held back", held(s), nothing)
	expect(t, "at the backend", s.ToServer().Body, "hold and on")
	s.SendLast(", hold")
	expect(t, "held back at the end", held(s), heldRequest)
	expect(t, "at the backend", []any{s.ToServer().Body, s.ToServer().More}, []any{"hold and on", true})
	p.Tick()
	expect(t, "at the backend", []any{s.ToServer().Body, s.ToServer().More}, []any{"hold and on, hold", false})
}

func testHeldTrailers(t *testing.T, m *Module) {
	p := m.Start(t, Config{})
	s := p.Open(nil)
	s.Request(Request{Headers: Headers{{"x-hold", "request trailers"}}, Body: "a", More: true})
	s.SendTrailers(Headers{{"t", "1"}})
	expect(t, "held back", held(s), heldRequest)
	expect(t, "at the backend", []any{s.ToServer().Body, s.ToServer().More, s.ToServer().Trailers}, []any{"a", true, Headers(nil)})
	p.Tick()
	expect(t, "at the backend", []any{s.ToServer().More, s.ToServer().Trailers}, []any{false, Headers{{"t", "1"}, {"x-trailer", "request"}}})
}

// The plugin holds the body back; trailers that come then have it go on.
func testTrailersAfterPause(t *testing.T, m *Module) {
	p := m.Start(t, Config{})
	s := p.Open(nil)
	s.Request(Request{Method: "POST", More: true})
	s.Send("hold")
	expect(t, "held back", held(s), heldRequest)
	s.SendTrailers(Headers{{"t", "1"}})
	expect(t, "held back", held(s), nothing)
	expect(t, "at the backend", []any{s.ToServer().Body, s.ToServer().Trailers}, []any{"hold", Headers{{"t", "1"}, {"x-trailer", "request"}}})

	late := p.Open(nil) // and where the headers wait, the trailers do
	late.Request(Request{Headers: Headers{{"x-hold", "request headers"}}, More: true})
	late.SendTrailers(Headers{{"t", "1"}})
	if late.ToServer() != nil || !late.RequestPaused() {
		t.Errorf("at the backend: %+v", late.ToServer())
	}
	p.Tick()
	expect(t, "at the backend", late.ToServer().Trailers, Headers{{"t", "1"}, {"x-trailer", "request"}})
}

func testHeldResponse(t *testing.T, m *Module) {
	p := m.Start(t, Config{})
	s := p.Open(nil)
	s.Request(Request{Headers: Headers{{"x-hold", "response headers"}}})
	s.Respond(Response{Status: 404, More: true})
	expect(t, "held back", held(s), heldResponse)
	s.Reply("a")
	if got := s.ToClient(); got != nil {
		t.Errorf("%+v reached the client", got)
	}
	p.Tick()
	expect(t, "at the client", s.ToClient(), &Response{Status: 404, Headers: Headers{{"x-everything", "/"}}, Body: "a", More: true})
	s.Reply("hold")
	expect(t, "held back", held(s), heldResponse)
	expect(t, "at the client", s.ToClient().Body, "a")
	s.ReplyLast("!")
	expect(t, "result", s.Result().Response, Response{Status: 404, Headers: Headers{{"x-everything", "/"}}, Body: "ahold!"})

	s = p.Open(nil)
	s.Request(Request{Headers: Headers{{"x-hold", "response trailers"}}})
	s.Respond(Response{Body: "a", More: true})
	s.ReplyTrailers(Headers{{"t", "1"}})
	expect(t, "held back", held(s), heldResponse)
	expect(t, "at the client", []any{s.ToClient().Body, s.ToClient().More, s.Done()}, []any{"a", true, false})
	p.Tick()
	expect(t, "trailers", s.Result().Trailers, Headers{{"t", "1"}, {"x-trailer", "response"}})
}

func testCallBetween(t *testing.T, m *Module) {
	p := m.Start(t, Config{})
	s := p.Open(nil)
	s.Request(Request{Path: "/call", More: true})
	s.Send("a")
	expect(t, "held back", held(s), heldRequest)
	p.Call("auth").Answer(Response{})
	expect(t, "held back after the answer", held(s), nothing)
	expect(t, "at the backend", []any{s.ToServer().Body, s.ToServer().More}, []any{"a", true})
	s.SendLast("b")
	s.Respond(Response{Body: "done"})
	expect(t, "response", s.Result().Body, "done")
	expect(t, "at the backend", s.Result().Upstream.Body, "ab")

	denied := p.Open(nil)
	denied.Request(Request{Path: "/call", More: true})
	denied.Send("a")
	p.Call("auth").Answer(Response{Status: 401})
	if res := denied.Result(); res.Status != 403 || !res.Local || res.Upstream != nil {
		t.Errorf("denied: %+v", res)
	}
	denied.SendLast("b") // the client cannot know
}

func testLocalBetween(t *testing.T, m *Module) {
	p := m.Start(t, Config{})
	s := p.Open(nil)
	s.Request(Request{Method: "POST", More: true})
	s.Send("a")
	s.Send("stop")
	want := Response{Status: 403, Body: "stopped",
		Headers: Headers{{"x-local", "yes"}, {"content-length", "7"}, {"content-type", "text/plain"}, {"x-everything", "/"}}}
	expect(t, "at the client", s.ToClient(), &want)
	res := s.Result()
	expect(t, "response", res.Response, want)
	expect(t, "at the backend", []any{res.Local, res.Upstream.Body, res.Upstream.More}, []any{true, "a", true})
	s.SendLast("b")
	expect(t, "at the backend after the end", s.ToServer().Body, "a")
	expect(t, "held back", held(s), nothing)
	expect(t, "streams", p.Metric("open"), uint64(0))
}

func testLocalInstead(t *testing.T, m *Module) {
	p := m.Start(t, Config{})
	s := p.Open(nil)
	s.Request(Request{Path: "/replace"})
	s.Respond(Response{Headers: Headers{{"a", "b"}}, More: true})
	expect(t, "result", s.Result().Response, Response{Status: 502, Body: "replaced",
		Headers: Headers{{"content-length", "8"}, {"content-type", "text/plain"}}})
	s.ReplyLast("unseen")
	expect(t, "at the client", s.ToClient().Body, "replaced")
}

// Envoy cannot take back the headers of a response.
func testLocalLate(t *testing.T, m *Module) {
	p := m.Start(t, Config{})
	s := p.Open(nil)
	s.Request(Request{})
	s.Respond(Response{More: true})
	s.Reply("a")
	s.Reply("stop")
	res := s.Result()
	if !res.Reset || res.Local || res.Status != 0 || res.Upstream == nil {
		t.Errorf("result = %+v", res)
	}
	expect(t, "at the client", s.ToClient(), &Response{Status: 200, Headers: Headers{{"x-everything", "/"}}, Body: "a", More: true})
}

func testResetBetween(t *testing.T, m *Module) {
	p := m.Start(t, Config{})
	s := p.Open(nil)
	s.Request(Request{Method: "POST", More: true})
	s.Send("reset")
	expect(t, "reset", []any{s.Done(), s.Result().Reset, s.Result().Upstream.More}, []any{true, true, true})
	whole := p.Do(Request{Method: "POST", Chunks: []string{"reset", "unseen"}})
	if !whole.Reset || strings.Count(strings.Join(p.Trace(), "\n"), "--> proxy_on_request_body") != 2 {
		t.Error("the plugin sees more of a stream that it reset")
	}
}

func testCancelBetween(t *testing.T, m *Module) {
	p := m.Start(t, Config{})
	s := p.Open(nil)
	s.Request(Request{Method: "POST", More: true})
	s.Send("a")
	expect(t, "streams", p.Metric("open"), uint64(1))
	s.Cancel()
	s.Cancel()
	expect(t, "streams", p.Metric("open"), uint64(0))
	expect(t, "result", []any{s.Result().Reset, s.Result().Upstream.Body, s.Paused()}, []any{true, "a", false})
	s.Send("b")
	s.SendTrailers(nil)
	expect(t, "at the backend", s.ToServer().Body, "a")

	waiting := p.Open(nil)
	waiting.Request(Request{Path: "/call"})
	waiting.Cancel()
	if len(p.Calls()) != 1 || waiting.Paused() || !waiting.Result().Reset {
		t.Errorf("a request that waited for a call: %+v", waiting.Result())
	}

	p.Open(nil).Cancel() // before the plugin saw any of it: it is shown the end, as in Envoy
	if n := strings.Count(strings.Join(p.Trace(), "\n"), "--> proxy_on_log"); n != 3 {
		t.Errorf("the plugin was told of the end of %d streams, want 3", n)
	}
}

func testBackendFails(t *testing.T, m *Module) {
	p := m.Start(t, Config{})
	s := p.Open(nil)
	s.Request(Request{Body: "a", More: true})
	s.Fail()
	const reason = "upstream connect error or disconnect/reset before headers. reset reason: connection termination"
	res := s.Result()
	expect(t, "result", []any{res.Status, res.Body, res.Local, res.Headers.Get("x-everything")}, []any{503, reason, false, "/"})

	s = p.Open(nil)
	s.Request(Request{})
	s.Respond(Response{More: true})
	s.Reply("a")
	s.Fail()
	s.Fail()
	expect(t, "reset", []any{s.Result().Reset, s.ToClient().Body}, []any{true, "a"})
}

func testEarlyResponse(t *testing.T, m *Module) {
	p := m.Start(t, Config{})
	s := p.Open(nil)
	s.Request(Request{Method: "POST", More: true})
	s.Send("hold")
	s.Respond(Response{Status: 413, More: true})
	expect(t, "held back", held(s), heldRequest)
	s.ReplyLast("too much")
	expect(t, "result", []any{s.Result().Status, s.Result().Body, s.Result().Upstream.More}, []any{413, "too much", true})
	s.SendLast("more")
}

func testNoRequest(t *testing.T, m *Module) {
	p := m.Start(t, Config{})
	s := p.Open(nil)
	s.Respond(Response{Status: 401, Body: "another filter's"})
	res := s.Result()
	expect(t, "result", []any{res.Status, res.Body, res.Upstream, res.Headers}, []any{401, "another filter's", (*Request)(nil), Headers{{"x-everything", ""}}})
}

func testBackendMore(t *testing.T, m *Module) {
	p := m.Start(t, Config{Backend: func(r Request) Response { return Response{Body: r.Body, More: true} }})
	s := p.Begin(Request{Body: "a", More: true})
	if s.ToClient() != nil {
		t.Error("the backend answers before it has all")
	}
	s.SendLast("b")
	expect(t, "at the client", s.ToClient().Body, "ab")
	s.ReplyLast("c")
	expect(t, "response", s.Result().Body, "abc")

	s = p.Open(nil)
	s.Request(Request{Backend: func(Request) Response { return Response{Status: 202} }})
	expect(t, "response of the request's backend", s.Result().Status, 202)
}

func testStepLimit(t *testing.T, m *Module) {
	p := m.Start(t, Config{BufferLimit: 5})
	s := p.Open(nil)
	s.Request(Request{Method: "POST", More: true})
	s.Send("hold")
	s.Send("hold")
	expect(t, "status", s.Result().Status, 413)

	s = p.Open(nil)
	s.Request(Request{})
	s.Respond(Response{More: true})
	s.Reply("hold")
	s.Reply("hold")
	if !s.Result().Reset {
		t.Errorf("more of a response than the limit: %+v", s.Result())
	}
}

func testTrapBetween(t *testing.T, m *Module) {
	p := m.Start(t, Config{MayFail: true})
	s := p.Open(nil)
	s.Request(Request{Path: "/panic-late"})
	s.Respond(Response{More: true})
	expect(t, "result", []any{s.Result().Status, s.Result().Local, len(p.Failures())}, []any{503, true, 1})
	s.ReplyLast("unseen")
}

func testStepMisuse(t *testing.T, m *Module) {
	begun := func(t testing.TB, r Request) *Stream {
		s := m.Start(t, Config{}).Open(nil)
		s.Request(r)
		return s
	}
	more := Request{Path: "/x", More: true}
	for _, tt := range []struct {
		name, want string
		test       func(t testing.TB)
	}{
		{"a piece before the request", "the request has not begun", func(t testing.TB) { m.Start(t, Config{}).Open(nil).Send("a") }},
		{"two requests", "the stream has its request, or is past it", func(t testing.TB) { begun(t, more).Request(more) }},
		{"a piece after the end", "the request has ended", func(t testing.TB) { begun(t, Request{}).Send("a") }},
		{"a piece after the last", "the request has ended", func(t testing.TB) {
			s := begun(t, more)
			s.SendLast("")
			s.SendLast("")
		}},
		{"a piece after trailers", "the request has ended", func(t testing.TB) {
			s := begun(t, more)
			s.SendTrailers(nil)
			s.Send("a")
		}},
		{"trailers after the end", "the request has ended", func(t testing.TB) { begun(t, Request{Body: "a"}).SendTrailers(nil) }},
		{"more after trailers", "the request has More after its trailers", func(t testing.TB) { begun(t, Request{More: true, Trailers: Headers{{"a", "b"}}}) }},
		{"a piece before the response", "the response has not begun", func(t testing.TB) { begun(t, more).Reply("a") }},
		{"two responses", "there is a response already, or none to be: the response for /x has not ended: ReplyLast, or ReplyTrailers", func(t testing.TB) {
			s := begun(t, more)
			s.Respond(Response{More: true})
			s.Respond(Response{})
		}},
		{"a response after the end", "there is a response already, or none to be: the stream for /x was reset", func(t testing.TB) {
			s := begun(t, more)
			s.Cancel()
			s.Respond(Response{})
		}},
		{"a response after the plugin's", "there is a response already, or none to be: the stream for /local is over, with status 418", func(t testing.TB) {
			begun(t, Request{Path: "/local"}).Respond(Response{})
		}},
		{"a response to what is held back", "the backend has nothing to respond to: the plugin holds back the request for /call; it waits for calls to [\"auth\"]", func(t testing.TB) {
			begun(t, Request{Path: "/call"}).Respond(Response{})
		}},
		{"a backend that nobody asked yet goes away", "there is no connection to the backend: ", func(t testing.TB) { begun(t, Request{Path: "/call"}).Fail() }},
		{"a piece after the response", "the response has ended", func(t testing.TB) {
			s := begun(t, more)
			s.Respond(Response{Body: "a"})
			s.Reply("a")
		}},
		{"the result without a response", "there is no response for /x: Respond", func(t testing.TB) { begun(t, more).Result() }},
		{"the result of half a request", "the request for /x has not ended: SendLast, or SendTrailers", func(t testing.TB) { m.Start(t, Config{}).Do(more) }},
		{"the result of half a response", "the response for /x has not ended: ReplyLast, or ReplyTrailers", func(t testing.TB) {
			s := begun(t, Request{Path: "/x"})
			s.Respond(Response{More: true})
			s.Result()
		}},
		{"a property of no type", "property a: a struct {} is none", func(t testing.TB) { m.Start(t, Config{}).Open(map[string]any{"a": struct{}{}}) }},
		{"data after the client's close", "the client has closed its side", func(t testing.TB) {
			c := m.Start(t, Config{Plugin: "tcp"}).Connect(nil)
			c.CloseWrite()
			c.Send("a")
		}},
		{"data after the server's close", "the server has closed its side", func(t testing.TB) {
			c := m.Start(t, Config{Plugin: "tcp"}).Connect(nil)
			c.CloseServer()
			c.Reply("a")
		}},
	} {
		if errors, _ := fails(t, tt.test); len(errors) != 1 || !strings.HasPrefix(errors[0], tt.want) {
			t.Errorf("%s: failed with %q, want %q", tt.name, errors, tt.want)
		}
	}
}

func testHalfClose(t *testing.T, m *Module) {
	p := m.Start(t, Config{Plugin: "tcp", LogLevel: Info})
	c := p.Connect(nil)
	c.Send("hel")
	if !c.Paused() {
		t.Error("half a line is not held back")
	}
	c.CloseWrite() // ends the line
	expect(t, "to the server", []any{c.ToServer(), c.Paused(), c.Closed()}, []any{"HEL", false, false})
	c.Reply("still ")
	c.Reply("here")
	expect(t, "to the client", c.ToClient(), "< still < here")
	c.CloseWrite()
	c.CloseServer()
	expect(t, "closed", c.Closed(), true)
	c.CloseServer()
	c.CloseClient()
	expect(t, "logs", messages(p)[1:], []string{"info: server gone", "info: client gone"})

	other := p.Connect(nil) // the other way round
	other.CloseServer()
	other.Send("on\n")
	expect(t, "to the server", []any{other.ToServer(), other.Closed()}, []any{"ON\n", false})
	other.CloseWrite()
	expect(t, "closed", other.Closed(), true)
	expect(t, "logs", messages(p)[3:], []string{"info: server gone", "info: client gone"})
	if n := strings.Count(strings.Join(p.Trace(), "\n"), "--> proxy_on_downstream_data(context=3,size=0,end=1)"); n != 1 {
		t.Errorf("the plugin saw the client's end %d times:\n%s", n, strings.Join(p.Trace(), "\n"))
	}
}

func testConnPaused(t *testing.T, m *Module) {
	p := m.Start(t, Config{Plugin: "tcp"})
	c := p.Connect(map[string]any{"gate": "shut"})
	c.Send("a\n")
	c.CloseWrite()
	expect(t, "held back", []any{c.Paused(), c.ToServer()}, []any{true, ""})
	c.Reply("first")
	p.Tick()
	expect(t, "after the tick", []any{c.Paused(), c.ToServer(), c.ToClient()}, []any{false, "A\n", "< first"})
	c.CloseClient()
	expect(t, "closed", []any{c.Paused(), c.Closed()}, []any{false, true})
}

func testStopClock(t *testing.T, m *Module) {
	start := time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
	p := m.Start(t, Config{Plugin: "tick", Now: start, StopClock: true})
	expect(t, "the clock", p.now().Equal(start), true)
	p.Advance(99 * time.Millisecond)
	if ticks, ok := p.Shared("ticks"); ok {
		t.Errorf("ticks = %q before the first is due", ticks)
	}
	p.Advance(time.Millisecond)
	p.Advance(time.Second)
	ticks, _ := p.Shared("ticks")
	expect(t, "ticks", ticks, strings.Repeat(".", 11))
	expect(t, "the clock", p.now().Equal(start.Add(1100*time.Millisecond)), true)
	if since := time.Since(m.Start(t, Config{StopClock: true}).now()); since < 0 || since > time.Minute {
		t.Errorf("a clock that was stopped now is %v late", since)
	}
}

func testLogsOf(t *testing.T, m *Module) {
	p := m.Start(t, Config{})
	p.Do(Request{Path: "/foreign"})
	expect(t, "logged when configured", p.LogsOf("proxy_on_configure"), []Line{{Debug, "colour "}})
	if got := p.LogsOf("proxy_on_request_headers"); len(got) != 4 || !strings.HasPrefix(got[0].Message, "echo: ") {
		t.Errorf("logged with the request = %v", got)
	}
	expect(t, "logged elsewhere", p.LogsOf("proxy_on_tick"), []Line(nil))
}

func testNoTrace(t *testing.T, m *Module) {
	p := m.Start(t, Config{NoTrace: true})
	expect(t, "status", p.Do(Request{Path: "/foreign"}).Status, 200)
	if p.Trace() != nil || p.LogsOf("") != nil || !p.Logged("echo") {
		t.Errorf("trace %q, logs %v", p.Trace(), p.Logs())
	}
}

// A module serves tests in parallel, and one after the other in the same place.
func TestPlaces(t *testing.T) {
	m := Load(t, "../plugins/testdata/addheader.wasm")
	t.Run("parallel", func(t *testing.T) {
		for range 4 {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				for range 5 {
					if got := m.Start(t, Config{Plugin: `{"value":"x"}`}).Do(Request{}).Headers.Get("x-wasm"); got != "x" {
						t.Errorf("x-wasm = %q", got)
					}
				}
			})
		}
	})
	places := len(m.idle)
	for range 3 {
		t.Run("", func(t *testing.T) { m.Start(t, Config{}) })
		if len(m.idle) != places {
			t.Errorf("%d places are left, of %d", len(m.idle), places)
		}
	}
	var outlives *Module
	var p *Plugin
	t.Run("closed first", func(t2 *testing.T) {
		outlives = Load(t2, "../plugins/testdata/addheader.wasm")
		p = outlives.Start(t, Config{Plugin: `{"value":"x"}`})
	})
	if !outlives.closed || outlives.used != 1 {
		t.Error("the module is not to be closed")
	}
	if got := p.Do(Request{}).Headers.Get("x-wasm"); got != "x" {
		t.Errorf("x-wasm = %q", got)
	}
}
