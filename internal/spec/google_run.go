package spec

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
	"github.com/chandler-proxy/chandler/plugintest"
)

// A googleFile is what the tests of a file have in common.
type googleFile struct {
	env            googleEnv
	module         string
	stdout, stderr io.Writer
}

// A googlePlugin is a plugin that is tested. plugintest has it run; what a proxy does
// around it is Google's runner's, see [googleStream].
type googlePlugin struct {
	*run
	plugin *plugintest.Plugin
	open   func(proxywasm.HTTPHost) *proxywasm.HTTP
	told   map[string]int // log lines that were looked at, by callback
}

// Drive takes what opens streams from plugintest.
func (p *googlePlugin) Drive(open func(proxywasm.HTTPHost) *proxywasm.HTTP) { p.open = open }

// start starts the plugin. Google's runner calls it test; its clock stands still, and it
// can call nobody. A plugin that is measured logs nothing, and is not traced.
func (g *googleFile) start(t *run, measured bool) (*googlePlugin, error) {
	cfg := plugintest.Config{
		Name: "test", Plugin: string(g.env.config), Upstreams: map[string]func(plugintest.Request) plugintest.Response{},
		LogLevel: plugintest.Level(g.env.LogLevel.abi()), Now: time.UnixMilli(1), StopClock: true, MayFail: true,
	}
	if measured {
		cfg.LogLevel, cfg.NoTrace = plugintest.Critical, true
	}
	if g.env.TimeSecs > 0 {
		cfg.Now = time.Unix(g.env.TimeSecs, 0)
	}
	p := &googlePlugin{run: t, told: map[string]int{}}
	var err error
	p.plugin, err = t.module(g.module).TryStart(p, cfg)
	return p, err
}

// logged are the lines of the callbacks that were not looked at yet.
func (p *googlePlugin) logged(callbacks ...string) []candidate {
	var all []candidate
	for _, cb := range callbacks {
		lines := p.plugin.LogsOf(cb)
		for _, line := range lines[p.told[cb]:] {
			all = append(all, candidate{value: line.Message})
		}
		p.told[cb] = len(lines)
	}
	return all
}

// returned is what a callback returned when it was called last, since there were so many
// lines in the trace; 0 if it was not.
func (p *googlePlugin) returned(callback string, mark int) string {
	result, last := "0", ""
	for _, line := range after(p.plugin.Trace(), mark) {
		if call, ok := strings.CutPrefix(line, "--> "); ok {
			last, _, _ = strings.Cut(call, "(")
		} else if value, ok := strings.CutPrefix(line, "<-- "); ok && last == callback {
			result = strings.Trim(value, "()")
		}
	}
	return result
}

// healthy ends the test if the plugin failed.
func (p *googlePlugin) healthy(line int, path string) {
	if why := p.plugin.Failures(); len(why) > 0 {
		p.failAt(line, "%s: the plugin failed: %s%s", path, why[0], told(p.plugin.Logs()))
		panic(errAbort)
	}
}

// test runs a test as Google's runner does.
func (g *googleFile) test(t *run, name string, test googleTest) {
	p, err := g.start(t, false)
	defer func() { g.keepLog(t, name, p.plugin.Logs()) }()
	if err != nil {
		t.Errorf("the plugin does not start: %v%s", err, told(p.plugin.Logs()))
		return
	}
	test.PluginInit.checkLog(t, p.logged("", "_initialize", "_start", "main", "__main_void", "proxy_on_context_create", "proxy_on_vm_start", "proxy_on_configure"))
	s := p.stream(test)
	t.Cleanup(s.http.Close)
	s.phases(test)
	if !s.called { // no phase: have the plugin learn of the stream all the same
		s.http.OnLog(nil, nil, nil)
		s.streamInit(test)
	}
	s.http.Close()
	p.healthy(test.At.Line, "stream_destroy")
	test.StreamDestroy.checkLog(t, p.logged("proxy_on_done", "proxy_on_delete"))
}

// keepLog writes what the plugin logged where the file wants it.
func (g *googleFile) keepLog(t *run, name string, lines []plugintest.Line) {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(l.Message + "\n")
	}
	text := fmt.Sprintf("--- Starting test: %s ---\n%s--- Finished test: %[1]s ---\n", name, &b)
	var err error
	switch path := g.env.LogPath; path {
	case "":
	case "/dev/stdout":
		err = writeTo(g.stdout, text)
	case "/dev/stderr":
		err = writeTo(g.stderr, text)
	default:
		var f *os.File
		if f, err = os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644); err == nil {
			err = writeTo(f, text)
			f.Close()
		}
	}
	if err != nil {
		t.Errorf("write log: %v", err)
	}
}

func writeTo(w io.Writer, text string) error {
	if w == nil {
		return nil
	}
	_, err := io.WriteString(w, text)
	return err
}

// A googleStream is a request, and the host that the plugin asks about it.
type googleStream struct {
	p          *googlePlugin
	http       *proxywasm.HTTP
	properties map[string]string
	local      *proxywasm.LocalResponse // that the plugin gave
	called     bool
}

func (p *googlePlugin) stream(test googleTest) *googleStream {
	s := &googleStream{p: p, properties: map[string]string{}}
	for _, property := range slices.Backward(test.Properties) { // the first of a path counts
		s.properties[property.Path] = property.Value
	}
	s.http = p.open(s)
	return s
}

// AppendProperty answers from the test's properties. Empty segments do not count.
func (s *googleStream) AppendProperty(dst []byte, path string) ([]byte, abi.Status) {
	segments := slices.DeleteFunc(strings.Split(path, "\x00"), func(s string) bool { return s == "" })
	value, ok := s.properties[strings.Join(segments, ".")]
	if !ok {
		return dst, abi.NotFound
	}
	return append(dst, value...), abi.OK
}

// SetProperty keeps a property, as proxies do.
func (s *googleStream) SetProperty(path, value string) abi.Status {
	s.properties[strings.ReplaceAll(strings.TrimSuffix(path, "\x00"), "\x00", ".")] = value
	return abi.OK
}

// SendLocalResponse takes the response down: the first one.
func (s *googleStream) SendLocalResponse(r proxywasm.LocalResponse) {
	if s.local == nil && !r.Failure {
		s.local = &r
	}
}

func (*googleStream) Continue(abi.Stream)                      {} // nothing waits for it
func (*googleStream) Close(abi.Stream)                         {}
func (*googleStream) ClearRouteCache()                         {}
func (*googleStream) AddTrailers(abi.Stream) proxywasm.Headers { return nil }

// A googleOutcome is what a phase came to.
type googleOutcome struct {
	status  string // that the callback returned
	headers *mergedHeaders
	body    string
	local   *proxywasm.LocalResponse
	isBody  bool
	logs    []candidate
}

// phases calls the plugin for each phase of the test, in order. After a local response
// it is called no more.
func (s *googleStream) phases(test googleTest) {
	if in := test.RequestHeaders; in != nil {
		s.headers(test, "request_headers", in, s.http.OnRequestHeaders)
	}
	for _, in := range test.RequestBody {
		s.body(test, "request_body", in, abi.Request, s.http.OnRequestBody)
	}
	if in := test.ResponseHeaders; in != nil {
		s.headers(test, "response_headers", in, s.http.OnResponseHeaders)
	}
	for _, in := range test.ResponseBody {
		s.body(test, "response_body", in, abi.Response, s.http.OnResponseBody)
	}
}

// streamInit checks what the plugin did when it learned of the stream.
func (s *googleStream) streamInit(test googleTest) {
	if s.called {
		return
	}
	s.called = true
	test.StreamInit.checkLog(s.p.run, s.p.logged("proxy_on_context_create"))
}

func (s *googleStream) headers(test googleTest, phase string, in *googleInvocation, call func(proxywasm.Headers, bool) proxywasm.Action) {
	out := s.callHeaders(phase, in, call)
	s.streamInit(test)
	s.p.healthy(in.At.Line, in.At.Path)
	in.Result.check(s.p.run, out)
}

func (s *googleStream) callHeaders(phase string, in *googleInvocation, call func(proxywasm.Headers, bool) proxywasm.Action) googleOutcome {
	if s.local != nil {
		return googleOutcome{status: "0", headers: new(mergedHeaders)}
	}
	callback := "proxy_on_" + phase
	out := googleOutcome{headers: in.Input.headers.clone()}
	mark := len(s.p.plugin.Trace())
	if call(out.headers, false) == proxywasm.Pause && s.local == nil {
		// Nothing is held back here: what follows is shown in any case.
		s.http.Resume(direction(phase))
	}
	out.logs, out.local, out.status = s.p.logged(callback), s.local, s.p.returned(callback, mark)
	if s.local != nil {
		out.headers, out.body = new(mergedHeaders), s.local.Body
		for _, h := range s.local.Headers {
			out.headers.Set(h.Key, h.Value)
		}
	}
	return out
}

func direction(phase string) abi.Stream {
	if strings.HasPrefix(phase, "response") {
		return abi.Response
	}
	return abi.Request
}

func (s *googleStream) body(test googleTest, phase string, in googleInvocation, dir abi.Stream, call func([]byte, bool) ([]byte, proxywasm.Action)) {
	out := googleOutcome{status: "0", headers: new(mergedHeaders), isBody: true}
	if s.local == nil {
		for i, chunk := range in.chunks {
			s.p.logged("proxy_on_" + phase) // of a chunk before: the last one's count
			out.body += s.callBody(dir, chunk, i == len(in.chunks)-1, call)
			s.streamInit(test)
			s.p.healthy(in.At.Line, in.At.Path)
			if s.local != nil {
				break
			}
		}
		out.local, out.logs = s.local, s.p.logged("proxy_on_"+phase)
		if s.local != nil {
			out.body = s.local.Body
		}
	}
	in.Result.check(s.p.run, out)
}

// callBody shows the plugin a chunk and returns what it made of it, whether it lets it go
// on or not.
func (s *googleStream) callBody(dir abi.Stream, chunk string, end bool, call func([]byte, bool) ([]byte, proxywasm.Action)) string {
	out, act := call([]byte(chunk), end)
	if act == proxywasm.Pause || act == proxywasm.Overflow {
		out, _ = s.http.Resume(dir)
	}
	return string(out)
}

// check compares what a phase came to with what it should.
func (r *googleResult) check(t *run, out googleOutcome) {
	for _, h := range r.HasHeader {
		got, ok := out.headers.Get(h.Key)
		switch {
		case !ok:
			t.failAt(h.At.Line, "%s: want header %s\nhave none", h.At.Path, h.Key)
		case got != h.Value:
			t.failAt(h.At.Line, "%s: header %s: %s", h.At.Path, h.Key, diff(h.Value, got))
		}
	}
	for _, h := range r.NoHeader {
		if got, ok := out.headers.Get(h.Key); ok {
			t.failAt(h.At.Line, "%s: want no header %s\nhave %q", h.At.Path, h.Key, got)
		}
	}
	for _, m := range r.Headers {
		m.check(t, "header", out.headers.lines())
	}
	for _, m := range r.Body {
		m.check(t, "body", []candidate{{value: out.body}})
	}
	r.checkImmediate(t, out)
	r.checkLog(t, out.logs)
}

// checkLog checks what was logged.
func (r *googleResult) checkLog(t *run, lines []candidate) {
	for _, m := range r.Log {
		m.check(t, "log line", lines)
	}
}

// checkImmediate checks the response that the plugin gave, or that it gave none. As in
// Google's runner, a body's phase that wants none does not mind one.
func (r *googleResult) checkImmediate(t *run, out googleOutcome) {
	want := r.Immediate
	switch {
	case want == nil && out.isBody:
		return
	case want == nil:
		if out.local != nil {
			t.failAt(r.At.Line, "%s: want no immediate response\nhave status %d", r.At.Path, out.local.Status)
		} else if out.status != "0" && out.status != "2" { // 2 goes on, and ends the stream
			t.failAt(r.At.Line, "%s: want the plugin to let the headers go on\nhave it hold them back (it returned %s)", r.At.Path, out.status)
		}
		return
	case out.local == nil:
		t.failAt(want.At.Line, "%s: want an immediate response\nhave none", want.At.Path)
		return
	}
	if want.HTTPStatus != nil && *want.HTTPStatus != out.local.Status {
		t.failAt(want.At.Line, "%s.http_status: want %d\nhave %d", want.At.Path, *want.HTTPStatus, out.local.Status)
	}
	if got := uint32(out.local.GRPCStatus); want.GRPCStatus != nil && *want.GRPCStatus != got {
		t.failAt(want.At.Line, "%s.grpc_status: want %d\nhave %d", want.At.Path, *want.GRPCStatus, int32(got))
	}
	if want.Details != nil {
		// As in a proxy they have underscores for spaces.
		if why := diff(strings.ReplaceAll(*want.Details, " ", "_"), out.local.Details); why != "" {
			t.failAt(want.At.Line, "%s.details: %s", want.At.Path, why)
		}
	}
}
