package spec

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// deadline bounds one call into a plugin, as in plugintest.
const deadline = 10 * time.Second

// A googleHost has a module compiled.
type googleHost struct {
	host   *proxywasm.Host
	module *proxywasm.Module
}

// googleHost returns the module in a file, compiled once for all tests.
func (t *run) googleHost(ctx context.Context, file string) *googleHost {
	r := t.runner
	if h := r.hosts[file]; h != nil {
		return h
	}
	t.loading(func() {
		h, err := openGoogleHost(ctx, file)
		if err != nil {
			r.loads.Fatalf("%s: %v", file, err)
		}
		r.loads.Cleanup(func() {
			if err := h.host.Close(context.WithoutCancel(ctx)); err != nil {
				r.loads.Errorf("close host: %v", err)
			}
		})
		r.hosts[file] = h
	})
	return r.hosts[file]
}

func openGoogleHost(ctx context.Context, file string) (*googleHost, error) {
	host, err := proxywasm.NewHost(ctx, proxywasm.Config{Deadline: deadline})
	if err != nil {
		return nil, err
	}
	module, err := host.LoadFile(ctx, file)
	if err != nil {
		_ = host.Close(ctx) // it has nothing
		return nil, err
	}
	return &googleHost{host, module}, nil
}

// A googleFile is what the tests of a file have in common.
type googleFile struct {
	env            googleEnv
	module         string
	stdout, stderr io.Writer
}

// open starts the plugin. Google's runner calls it test; its clock stands still. A plugin
// that is measured logs nothing, and is not traced.
func (g *googleFile) open(ctx context.Context, t *run, measured bool) (*googlePlugin, error) {
	h := t.googleHost(ctx, g.module)
	p := &googlePlugin{run: t, level: g.env.LogLevel.abi(), now: time.UnixMilli(1)}
	trace := p.traced
	if measured {
		p.level, trace = abi.Critical, nil
	}
	if g.env.TimeSecs > 0 {
		p.now = time.Unix(g.env.TimeSecs, 0)
	}
	var err error
	p.plugin, err = h.host.Open(ctx, proxywasm.PluginConfig{
		Name: "test", Configuration: g.env.config,
		VM: proxywasm.VMConfig{Module: h.module, Workers: 1, Services: proxywasm.Services{
			Log: p, Trace: trace, Foreign: proxywasm.EnvoyForeign(), Now: func() time.Time { return p.now },
			// Ticks do not come, as the clock stands still; nothing else is due by itself.
			AfterFunc: func(time.Duration, func()) proxywasm.Timer { return never{} },
			Go:        func(func()) {},
		}},
	})
	return p, err
}

// never is a timer.
type never struct{}

func (never) Stop() bool { return true }

// close ends the plugin.
func (p *googlePlugin) close(ctx context.Context) {
	over, end := context.WithCancel(ctx)
	end() // one that waits before it is done is not waited for
	if err := p.plugin.Close(over); err != nil {
		p.run.Errorf("close plugin: %v", err)
	}
}

// A googlePlugin is a plugin that is tested.
type googlePlugin struct {
	run    *run
	plugin *proxywasm.Plugin
	level  abi.LogLevel
	now    time.Time

	callback string // that runs, or ran last
	result   string // what it returned
	lines    map[string][]string
	trace    []string
	all      []string
}

// Limits on what is kept of the trace and the log, and what of the trace is shown.
const (
	maxTrace  = 10_000
	showTrace = 200
)

// traced takes down a line of the trace, and what it tells of the callback that runs.
func (p *googlePlugin) traced(line string) {
	if p.trace = append(p.trace, line); len(p.trace) > maxTrace {
		p.trace = slices.Delete(p.trace, 0, maxTrace/2)
	}
	if call, ok := strings.CutPrefix(line, "--> "); ok {
		p.callback, _, _ = strings.Cut(call, "(")
	} else if result, ok := strings.CutPrefix(line, "<-- "); ok {
		p.result = strings.Trim(result, "()")
	}
}

// Log takes down what the plugin logs, by callback.
func (p *googlePlugin) Log(r proxywasm.Record) {
	if r.Level == abi.Critical && r.Plugin == "" && strings.HasPrefix(r.Message, "Wasm VM failed ") {
		return // the host's own words, which Failed has too
	}
	if p.lines == nil {
		p.lines = map[string][]string{}
	}
	if len(p.all) < maxTrace {
		p.lines[p.callback] = append(p.lines[p.callback], r.Message)
		p.all = append(p.all, r.Message)
	}
}

// Level is the lowest level that is not discarded.
func (p *googlePlugin) Level() abi.LogLevel { return p.level }

// logged are the lines of the callbacks, and forgets them.
func (p *googlePlugin) logged(callbacks ...string) []candidate {
	var all []candidate
	for _, cb := range callbacks {
		for _, line := range p.lines[cb] {
			all = append(all, candidate{value: line})
		}
		delete(p.lines, cb)
	}
	return all
}

// healthy ends the test if the plugin failed.
func (p *googlePlugin) healthy(line int, path string) {
	for _, in := range p.plugin.Instances() {
		if err := in.Failed(); err != nil {
			p.run.failAt(line, "%s: the plugin failed: %v%s", path, err, p.explain())
			panic(errAbort)
		}
	}
}

// explain is what the plugin logged, for a failure.
func (p *googlePlugin) explain() string {
	var b strings.Builder
	for _, line := range p.all[max(0, len(p.all)-maxTold):] {
		b.WriteString("\nit logged " + line)
	}
	return b.String()
}

// test runs a test as Google's runner does.
func (g *googleFile) test(ctx context.Context, t *run, name string, test googleTest) {
	p, err := g.open(ctx, t, false)
	defer func() {
		if t.failed {
			t.Logf("calls from (==>) and to (-->) the plugin:\n%s", strings.Join(p.trace[max(0, len(p.trace)-showTrace):], "\n"))
		}
		g.keepLog(t, name, p.all)
	}()
	if err != nil {
		t.Errorf("the plugin does not start: %v%s", err, p.explain())
		return
	}
	t.Cleanup(func() { p.close(ctx) })
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
func (g *googleFile) keepLog(t *run, name string, lines []string) {
	text := fmt.Sprintf("--- Starting test: %s ---\n%s--- Finished test: %[1]s ---\n", name, strings.Join(append(lines, ""), "\n"))
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
	s.http = p.plugin.NewHTTP(s)
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
	out := googleOutcome{status: "0", headers: in.Input.headers.clone()}
	s.p.callback = ""
	if call(out.headers, false) == proxywasm.Pause && s.local == nil {
		// Nothing is held back here: what follows is shown in any case.
		s.http.Resume(direction(phase))
	}
	out.logs, out.local = s.p.logged(callback), s.local
	if s.p.callback == callback {
		out.status = s.p.result
	}
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
	s.p.lines = nil // of a chunk before: the last one's count
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
