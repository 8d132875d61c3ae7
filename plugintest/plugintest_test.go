package plugintest

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A fakeT is a test that plugintest fails, or not.
type fakeT struct {
	testing.TB
	failed  bool
	errors  []string
	logs    []string
	cleanup []func()
}

func (f *fakeT) Helper()          {}
func (f *fakeT) Failed() bool     { return f.failed }
func (f *fakeT) Cleanup(g func()) { f.cleanup = append(f.cleanup, g) }
func (f *fakeT) Logf(format string, args ...any) {
	f.logs = append(f.logs, fmt.Sprintf(format, args...))
}
func (f *fakeT) Errorf(format string, args ...any) {
	f.failed = true
	f.errors = append(f.errors, fmt.Sprintf(format, args...))
}
func (f *fakeT) Fatalf(format string, args ...any) {
	f.Errorf(format, args...)
	runtime.Goexit()
}
func (f *fakeT) Fatal(args ...any) { f.Fatalf("%s", fmt.Sprint(args...)) }

// fails runs a test and returns what it is failed for, and what it logs.
func fails(t *testing.T, test func(t testing.TB)) (errors []string, logs string) {
	t.Helper()
	f := &fakeT{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		test(f)
	}()
	<-done
	for i := len(f.cleanup) - 1; i >= 0; i-- {
		f.cleanup[i]()
	}
	return f.errors, strings.Join(f.logs, "\n")
}

func messages(p *Plugin) []string {
	var all []string
	for _, l := range p.Logs() {
		all = append(all, l.String())
	}
	return all
}

func expect(t *testing.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// A moduleTest is one with a module that others are tested with, too.
type moduleTest struct {
	name string
	test func(*testing.T, *Module)
}

// TestEverything has what there is, with one module, which takes a while to build.
func TestEverything(t *testing.T) {
	m := BuildGo(t, "testdata/everything")
	for _, tt := range append(stepTests(), []moduleTest{
		{"start", testStart},
		{"request", testRequest},
		{"bodies", testBodies},
		{"local response", testLocal},
		{"local response instead of another", testReplace},
		{"reset", testReset},
		{"http call", testCall},
		{"http call answered by the configuration", testUpstreams},
		{"properties", testProperties},
		{"foreign functions", testFunctions},
		{"metrics", testMetrics},
		{"ticks", testTicks},
		{"queues", testQueues},
		{"response held back", testLate},
		{"gRPC", testGRPC},
		{"connection", testConn},
		{"failure", testFailure},
		{"isolation", testIsolation},
		{"misuse", testMisuse},
	}...) {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, m) })
	}
}

func testStart(t *testing.T, m *Module) {
	p := m.Start(t, Config{VM: "vm", Env: map[string]string{"COLOUR": "blue"}})
	expect(t, "logs", messages(p), []string{"info: VM configuration vm", "debug: colour blue"})
	quiet := m.Start(t, Config{LogLevel: Warn})
	expect(t, "logs of a quiet plugin", messages(quiet), []string(nil))
	if !p.Logged("colour") || p.Logged("green") {
		t.Error("Logged is wrong")
	}

	refused, err := m.TryStart(t, Config{Plugin: "refuse"})
	if err == nil || !strings.Contains(err.Error(), "refused the plugin configuration") || !refused.Logged("refused as told") {
		t.Errorf("TryStart = %v, logs %v", err, refused.Logs())
	}
	panicked, err := m.TryStart(t, Config{Plugin: "panic"})
	if err == nil || !strings.Contains(err.Error(), "proxy_on_configure") || len(panicked.Failures()) != 1 {
		t.Errorf("TryStart = %v, failures %v", err, panicked.Failures())
	}
}

func testRequest(t *testing.T, m *Module) {
	p := m.Start(t, Config{Backend: func(r Request) Response {
		expect(t, "request at the backend", r, Request{
			Method: "GET", Scheme: "http", Host: "example.com", Path: "/x",
			Headers: Headers{{"accept", "a"}, {"b", "1"}, {"b", "2"}, {"x-seen", "/x"}},
		})
		return Response{Status: 404, Headers: Headers{{"X-Backend", "me"}}, Body: "none"}
	}})
	res := p.Do(Request{Path: "/x", Headers: Headers{{"Accept", "a"}, {"b", "1"}, {"b", "2"}}})
	expect(t, "response", res.Response, Response{Status: 404, Body: "none",
		Headers: Headers{{"x-backend", "me"}, {"x-everything", "/x"}}})
	if res.Upstream == nil || res.Local || res.Reset || res.GRPCStatus != -1 {
		t.Errorf("result = %+v", res)
	}
	if h := res.Upstream.Headers; h.Get("B") != "1" || len(h.Values("b")) != 2 || !h.Has("x-Seen") || h.Has("c") || h.Get("c") != "" {
		t.Errorf("headers = %v", h)
	}

	mine := p.Do(Request{Backend: func(Request) Response { return Response{} }})
	expect(t, "response of the request's backend", mine.Response, Response{Status: 200, Headers: Headers{{"x-everything", "/"}}})
	none := m.Start(t, Config{}).Do(Request{})
	expect(t, "response without a backend", none.Response, Response{Status: 200, Headers: Headers{{"x-everything", "/"}}})
}

func testBodies(t *testing.T, m *Module) {
	p := m.Start(t, Config{})
	res := p.Do(Request{
		Method: "POST", Path: "/body", Body: "a", Chunks: []string{"b", "c"},
		Backend: func(r Request) Response {
			return Response{Body: "x", Chunks: []string{"y"}, Trailers: Headers{{"T", "1"}}}
		},
	})
	expect(t, "body at the backend", res.Upstream.Body, "ABC")
	expect(t, "body at the client", res.Body, "x|y|")
	expect(t, "trailers at the client", res.Trailers, Headers{{"t", "1"}, {"x-trailer", "response"}})
	trailers := p.Do(Request{Body: "a", Trailers: Headers{{"t", "1"}}})
	expect(t, "trailers at the backend", trailers.Upstream.Trailers, Headers{{"t", "1"}, {"x-trailer", "request"}})

	small := m.Start(t, Config{BufferLimit: 3})
	big := small.Do(Request{Path: "/body", Body: "1234", Chunks: []string{"5"}})
	if big.Status != 413 || big.Upstream != nil {
		t.Errorf("more than the limit: %+v", big)
	}
}

func testLocal(t *testing.T, m *Module) {
	p := m.Start(t, Config{Backend: func(Request) Response {
		t.Error("the backend was called")
		return Response{}
	}})
	res := p.Do(Request{Path: "/local", Body: "unseen"})
	expect(t, "result", res, Result{
		Response: Response{Status: 418, Body: "teapot", Headers: Headers{
			{"x-local", "yes"}, {"content-length", "6"}, {"content-type", "text/plain"}, {"x-everything", "/local"}}},
		Local: true, GRPCStatus: 7,
	})
}

func testReplace(t *testing.T, m *Module) {
	res := m.Start(t, Config{}).Do(Request{Path: "/replace", Backend: func(Request) Response { return Response{Body: "unseen"} }})
	expect(t, "response", res.Response, Response{Status: 502, Body: "replaced",
		Headers: Headers{{"content-length", "8"}, {"content-type", "text/plain"}}})
	if !res.Local || res.Upstream == nil {
		t.Errorf("result = %+v", res)
	}
}

func testReset(t *testing.T, m *Module) {
	p := m.Start(t, Config{})
	expect(t, "result", p.Do(Request{Path: "/reset"}), Result{Reset: true, GRPCStatus: -1})
	s := p.Begin(Request{Path: "/late"})
	s.Cancel()
	if res := s.Result(); !res.Reset || res.Upstream == nil {
		t.Errorf("canceled request: %+v", res)
	}
	expect(t, "open streams", p.Metric("open"), uint64(0))
}

func testCall(t *testing.T, m *Module) {
	p := m.Start(t, Config{})
	s := p.Begin(Request{Path: "/call", Body: "b"})
	if !s.Paused() {
		t.Fatal("not held back")
	}
	c := p.Call("auth")
	expect(t, "call", c.Request, Request{Method: "POST", Host: "auth.local", Path: "/check", Body: "who?",
		Headers: Headers{{"x-from", "everything"}, {"content-length", "4"}}, Trailers: Headers{{"t", "1"}}})
	expect(t, "timeout", c.Timeout, time.Second)
	c.Answer(Response{})
	if s.Paused() || c.Waiting() || s.Result().Status != 200 || s.Result().Upstream.Body != "b" {
		t.Errorf("after a good answer: %+v", s.Result())
	}

	denied := p.Begin(Request{Path: "/call"})
	p.Call("auth").Answer(Response{Status: 401, Body: "no", Chunks: []string{"body"}})
	if res := denied.Result(); res.Status != 403 || res.Body != "denied: nobody" {
		t.Errorf("after a bad answer: %+v", res)
	}
	broken := p.Begin(Request{Path: "/call"})
	p.Call("auth").Fail()
	if res := broken.Result(); res.Status != 403 {
		t.Errorf("without an answer: %+v", res)
	}
	expect(t, "calls", len(p.Calls()), 3)
}

func testUpstreams(t *testing.T, m *Module) {
	p := m.Start(t, Config{Plugin: "greet", Upstreams: map[string]func(Request) Response{
		"greeter": func(r Request) Response { return Response{Body: "hi at " + r.Path} },
	}})
	if !p.Logged("greeted with hi at /hello") {
		t.Errorf("logs: %v", p.Logs())
	}
	if res := p.Do(Request{Path: "/call"}); res.Status != 500 || !strings.Contains(res.Body, "bad argument") {
		t.Errorf("call to an unknown upstream: %+v", res)
	}
}

func testProperties(t *testing.T, m *Module) {
	p := m.Start(t, Config{Name: "me", Properties: map[string]any{
		"node.metadata": map[string]string{"A": "1"}, "source.address": "1.2.3.4:5", "bool": true, "int": 1, "int64": int64(-1),
		"uint64": uint64(2), "bytes": []byte{7}, "double": 1.0, "time": time.Unix(0, 3), "duration": time.Duration(4), "list": []string{"a"},
	}})
	s := p.Begin(Request{
		Path: "/properties", Properties: map[string]any{"source.address": "mine"},
		Headers: Headers{{"user-agent", "go"}, {"x-paths", "request.path,request.url_path,request.method,request.headers.user-agent,request.useragent," +
			"node.metadata.A,node.metadata.B,source.address,bool,int,int64,uint64,bytes,double,time,duration,list,plugin_name,none"}},
	})
	if got, ok := s.Property("my.own"); got != "value" || !ok {
		t.Errorf("Property = %q, %v", got, ok)
	}
	const notFound = "error status returned by host: not found"
	num := func(b byte) string { return string(append([]byte{b}, 0, 0, 0, 0, 0, 0, 0)) }
	expect(t, "logs", messages(p)[2:], []string{
		"info: request.path=/properties", "info: request.url_path=/properties", "info: request.method=GET",
		"info: request.headers.user-agent=go", "info: request.useragent=go",
		"info: node.metadata.A=1", "info: node.metadata.B=" + notFound, "info: source.address=mine",
		"info: bool=\x01", "info: int=" + num(1), "info: int64=\xff\xff\xff\xff\xff\xff\xff\xff", "info: uint64=" + num(2),
		"info: bytes=\x07", "info: double=\x00\x00\x00\x00\x00\x00\xf0?", "info: time=" + num(3), "info: duration=" + num(4),
		"info: list=\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00a\x00\x00", "info: plugin_name=me", "info: none=" + notFound,
		"info: my.own=value",
	})
}

func testFunctions(t *testing.T, m *Module) {
	p := m.Start(t, Config{Functions: map[string]func([]byte) ([]byte, error){
		"echo":   func(b []byte) ([]byte, error) { return append(b, '!'), nil },
		"broken": func([]byte) ([]byte, error) { return nil, errors.New("broken") },
	}})
	p.Do(Request{Path: "/foreign"})
	for _, want := range []string{"echo: hello!", "broken: error", "unknown: error", "compress: x"} {
		if !p.Logged(want) {
			t.Errorf("%s is not in logs: %v", want, p.Logs())
		}
	}
	p.CallFunction(7, []byte("abc"))
	if !p.Logged("called 7 with 3") {
		t.Errorf("logs: %v", p.Logs())
	}
}

func testMetrics(t *testing.T, m *Module) {
	p := m.Start(t, Config{Backend: func(Request) Response { return Response{Body: "12345"} }})
	p.Do(Request{})
	p.Do(Request{})
	p.Begin(Request{Path: "/late"})
	expect(t, "counter", p.Metric("requests"), uint64(3))
	expect(t, "gauge", p.Metric("open"), uint64(1))
	expect(t, "histogram", p.Histogram("sizes"), []uint64{5, 5})
}

func testTicks(t *testing.T, m *Module) {
	start := time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
	p := m.Start(t, Config{Plugin: "tick", Now: start})
	ticks := func(want string) {
		t.Helper()
		if got, _ := p.Shared("ticks"); got != want {
			t.Errorf("ticks = %q, want %q", got, want)
		}
	}
	expect(t, "period", p.TickPeriod(), 100*time.Millisecond)
	ticks("")
	p.Tick()
	ticks(".")
	p.Advance(time.Hour) // its timer counts on from the first of these: 36,000 and perhaps one for the time the test takes
	if got, _ := p.Shared("ticks"); len(got) < 30_000 {
		t.Errorf("%d ticks in an hour", len(got))
	}
	if now := p.now(); now.Before(start.Add(time.Hour)) || now.After(start.Add(2*time.Hour)) {
		t.Errorf("the clock is at %s", now)
	}
	p.SetShared("ticks", "")
	p.Tick()
	ticks(".")
	expect(t, "period without ticks", m.Start(t, Config{}).TickPeriod(), time.Duration(0))
}

func testQueues(t *testing.T, m *Module) {
	p := m.Start(t, Config{Queues: []string{"others"}})
	p.Enqueue("jobs", "one")
	if !p.Logged("job one") {
		t.Errorf("logs: %v", p.Logs())
	}
	if item, ok := p.Dequeue("others"); item != "one!" || !ok {
		t.Errorf("Dequeue = %q, %v", item, ok)
	}
	if item, ok := p.Dequeue("others"); ok {
		t.Errorf("Dequeue of an empty queue = %q", item)
	}
}

func testLate(t *testing.T, m *Module) {
	p := m.Start(t, Config{})
	s := p.Begin(Request{Path: "/late", Backend: func(Request) Response {
		return Response{Body: "a", Chunks: []string{"b"}, Trailers: Headers{{"t", "1"}}}
	}})
	if !s.Paused() {
		t.Fatal("not held back")
	}
	p.Tick()
	expect(t, "response", s.Result().Response, Response{Status: 200, Body: "ab", Headers: Headers{{"x-everything", "/late"}},
		Trailers: Headers{{"t", "1"}, {"x-trailer", "response"}}})
}

func testGRPC(t *testing.T, m *Module) {
	p := m.Start(t, Config{LogLevel: Info})
	p.Do(Request{Path: "/grpc"})
	c := p.GRPCCall("svc")
	expect(t, "call", []any{c.Service, c.Method, c.Metadata, c.Messages, c.Timeout, c.Stream, c.HalfClosed},
		[]any{"pkg.S", "method", Headers{{"k", "v"}}, []string{"hello"}, 250 * time.Millisecond, false, true})
	c.Send("12345")
	if c.Waiting() {
		t.Error("a message did not end the call")
	}
	p.Do(Request{Path: "/grpc"})
	p.GRPCCall("svc").Close(14, "gone")

	p.Do(Request{Path: "/grpc-stream"})
	s := p.GRPCCall("svc")
	expect(t, "stream", []any{s.Service, s.Messages, s.Stream, s.HalfClosed}, []any{"pkg.S", []string{"hello", "hell"}, true, true})
	s.InitialMetadata(Headers{{"a", "1"}})
	s.Send("abc")
	s.TrailingMetadata(Headers{{"a", "1"}, {"b", "2"}})
	s.Close(0, "")
	p.Do(Request{Path: "/grpc-stream"})
	canceled := p.GRPCCall("svc")
	canceled.Send("cancel")
	if canceled.Waiting() {
		t.Error("the stream is not canceled")
	}
	expect(t, "logs", messages(p)[1:], []string{
		"info: grpc message of 5", "info: grpc close 14",
		"info: grpc initial 1", "info: grpc message of 3", "info: grpc trailing 2", "info: grpc close 0",
		"info: grpc message of 6",
	})
	expect(t, "calls", len(p.GRPCCalls()), 4)
}

func testConn(t *testing.T, m *Module) {
	p := m.Start(t, Config{Plugin: "tcp", LogLevel: Info})
	c := p.Connect(nil)
	if got, ok := c.Property("greeted"); got != "yes" || !ok {
		t.Errorf("Property = %q, %v", got, ok)
	}
	c.Send("hel")
	expect(t, "held back", c.ToServer(), "")
	c.Send("lo\n")
	expect(t, "to the server", c.ToServer(), "HELLO\n")
	c.Reply("ok")
	expect(t, "to the client", c.ToClient(), "< ok")
	c.Send("wait")
	expect(t, "held back", c.ToServer(), "HELLO\n")
	p.Tick()
	expect(t, "to the server", c.ToServer(), "HELLO\nwait")
	c.CloseServer()
	c.CloseClient()
	if !c.Closed() {
		t.Error("not closed")
	}
	c.Send("more")
	c.Reply("more")
	expect(t, "after the end", c.ToServer()+c.ToClient(), "HELLO\nwait< ok")
	expect(t, "logs", messages(p)[1:], []string{"info: server gone", "info: client gone"})

	shut := p.Connect(map[string]any{"gate": "shut"})
	shut.Send("a\n")
	expect(t, "to the server while shut", shut.ToServer(), "")
	p.Tick()
	expect(t, "to the server when open", shut.ToServer(), "A\n")
	shut.Send("quit")
	if !shut.Closed() {
		t.Error("not closed by the plugin")
	}
	expect(t, "logs when the plugin closes", messages(p)[3:], []string{"info: client gone"})
	open := p.Connect(nil)
	open.Send("a")
	open.CloseClient()
	expect(t, "to the server at the end", open.ToServer(), "A")
}

func testFailure(t *testing.T, m *Module) {
	for _, tt := range []struct {
		name   string
		policy FailPolicy
		path   string
		status []int // of the failing request, and the next
	}{
		{"closed", FailClosed, "/panic", []int{503, 503}},
		{"open", FailOpen, "/panic", []int{503, 200}},
		{"reload", FailReload, "/panic", []int{503, 503}},
		{"closed, late", FailClosed, "/panic-late", []int{503, 503}},
	} {
		p := m.Start(t, Config{MayFail: true, Policy: tt.policy})
		got := []int{p.Do(Request{Path: tt.path}).Status, p.Do(Request{}).Status}
		expect(t, tt.name, got, tt.status)
		if f := p.Failures(); len(f) != 1 || !strings.Contains(f[0], "proxy_on_re") {
			t.Errorf("%s: failures = %v", tt.name, f)
		}
		if !p.Logged("panic: as asked") {
			t.Errorf("%s: logs: %v", tt.name, p.Logs())
		}
		if tt.policy == FailReload {
			p.Advance(time.Second)
			expect(t, "after a reload", p.Do(Request{}).Status, 200)
		}
	}
}

// Plugins of one module have nothing in common.
func testIsolation(t *testing.T, m *Module) {
	a, b := m.Start(t, Config{VMID: "vm"}), m.Start(t, Config{VMID: "vm"})
	a.Do(Request{})
	a.SetShared("k", "v")
	if _, ok := b.Shared("k"); ok || b.Metric("requests") != 0 {
		t.Error("another plugin sees what one does")
	}
}

// What fails a test, and what it is told.
func testMisuse(t *testing.T, m *Module) {
	for _, tt := range []struct {
		name, want string
		test       func(t testing.TB)
	}{
		{"a plugin that refuses", "start plugin: open plugin ", func(t testing.TB) { m.Start(t, Config{Plugin: "refuse"}) }},
		{"a plugin that traps", "plugin failed: proxy_on_request_headers: ", func(t testing.TB) { m.Start(t, Config{}).Do(Request{Path: "/panic"}) }},
		{"a request held back", "the plugin holds back the request for /call; it waits for calls to [\"auth\"]", func(t testing.TB) { m.Start(t, Config{}).Do(Request{Path: "/call"}) }},
		{"a response held back", "the plugin holds back the response for /late", func(t testing.TB) { m.Start(t, Config{}).Do(Request{Path: "/late"}) }},
		{"no such metric", `the plugin did not define metric nope, only ["open" "requests" "sizes"]`, func(t testing.TB) { m.Start(t, Config{}).Metric("nope") }},
		{"a histogram for a counter", "metric sizes is a histogram", func(t testing.TB) { m.Start(t, Config{}).Metric("sizes") }},
		{"a counter for a histogram", "metric requests is a counter", func(t testing.TB) { m.Start(t, Config{}).Histogram("requests") }},
		{"no such call", "the plugin waits for no HTTP call to x", func(t testing.TB) { m.Start(t, Config{}).Call("x") }},
		{"no such gRPC call", "the plugin waits for no gRPC call to x", func(t testing.TB) { m.Start(t, Config{}).GRPCCall("x") }},
		{"two answers", "the call to auth is answered already", func(t testing.TB) {
			p := m.Start(t, Config{})
			p.Begin(Request{Path: "/call"})
			c := p.Call("auth")
			c.Fail()
			c.Fail()
		}},
		{"a gRPC call that is over", "the gRPC call to svc is over", func(t testing.TB) {
			p := m.Start(t, Config{})
			p.Do(Request{Path: "/grpc"})
			c := p.GRPCCall("svc")
			c.Send("")
			c.Send("")
		}},
		{"no such queue", `no one registered a queue "x"`, func(t testing.TB) { m.Start(t, Config{}).Enqueue("x", "") }},
		{"a property of no type", "property a: a struct {} is none", func(t testing.TB) { m.Start(t, Config{Properties: map[string]any{"a": struct{}{}}}) }},
		{"a request for what did not start", "the plugin did not start", func(t testing.TB) {
			p, _ := m.TryStart(t, Config{Plugin: "refuse"})
			p.Do(Request{})
		}},
	} {
		errors, logs := fails(t, tt.test)
		if len(errors) != 1 || !strings.HasPrefix(errors[0], tt.want) {
			t.Errorf("%s: failed with %q, want %q", tt.name, errors, tt.want)
		}
		if !strings.Contains(logs, "--> proxy_on_") && !strings.Contains(tt.name, "of no type") {
			t.Errorf("%s: no trace in %q", tt.name, logs)
		}
	}
	if errors, logs := fails(t, func(t testing.TB) { m.Start(t, Config{}).Do(Request{}) }); errors != nil || logs != "" {
		t.Errorf("a test that passes: %q, %q", errors, logs)
	}
}

func TestLoad(t *testing.T) {
	const modules = "../plugins/testdata/"
	for _, tt := range []struct {
		name, want string
		test       func(t testing.TB)
	}{
		{"no file", "load module: open none.wasm: ", func(t testing.TB) { Load(t, "none.wasm") }},
		{"missing import", modules + "missing-import.wasm: load module: import env.proxy_no_such_function: ", func(t testing.TB) { Load(t, modules+"missing-import.wasm") }},
		{"not Go", "build plugin in testdata: ", func(t testing.TB) { BuildGo(t, "testdata") }},
	} {
		if errors, _ := fails(t, tt.test); len(errors) != 1 || !strings.HasPrefix(errors[0], tt.want) {
			t.Errorf("%s: failed with %q, want %q", tt.name, errors, tt.want)
		}
	}
	p := Load(t, filepath.FromSlash(modules+"addheader.wasm")).Start(t, Config{Plugin: `{"value":"x"}`})
	p.Do(Request{})
	if trace := p.Trace(); len(trace) == 0 || !strings.HasPrefix(trace[0], "--> proxy_on_context_create(") {
		t.Errorf("trace = %q", trace)
	}
}

func TestTail(t *testing.T) {
	p := new(Plugin)
	for i := range keepTrace + 1 {
		p.traced(fmt.Sprint(i))
	}
	lines := strings.Split(p.tail(), "\n")
	if len(lines) != showTrace+1 || lines[0] != "(9801 before these)" || lines[showTrace] != "10000" {
		t.Errorf("tail has %d lines, from %q to %q", len(lines), lines[0], lines[len(lines)-1])
	}
}
