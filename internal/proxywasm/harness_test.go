package proxywasm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// A harness is one instance of testdata/scripted.wat, whose callbacks run Go functions
// that call host functions as a guest would: with their arguments in guest memory.
// Everything that crosses the border is in its trace.
type harness struct {
	*testing.T
	host   *Host
	plugin *Plugin
	in     *Instance
	on     map[string]func() uint32 // by callback
	trace  []string
	mute   bool // leave the calls of script itself out of the trace
	logs   []string
	level  abi.LogLevel
	stats  *Stats
	queue  []func() // what Go was given
	timers []*timer
	now    time.Time
	calls  *calls
	props  map[string]string
}

type timer struct {
	d       time.Duration
	f       func()
	stopped bool
}

func (t *timer) Stop() bool {
	t.stopped = true
	return true
}

func (h *harness) Log(r Record) {
	h.logs = append(h.logs, fmt.Sprintf("%s%s: %s", r.Level, r.Prefix(), r.Message))
}

func (h *harness) Level() abi.LogLevel { return h.level }

func (h *harness) AppendProperty(dst []byte, path string) ([]byte, abi.Status) {
	if v, ok := h.props[path]; ok {
		return append(dst, v...), abi.OK
	}
	return dst, abi.NotFound
}

func (h *harness) SetProperty(path, value string) abi.Status {
	h.props[path] = value
	return abi.OK
}

func wasmFile(t testing.TB, name string) []byte {
	t.Helper()
	wasm, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

// scripted returns the scripted guest of a version.
func scripted(t testing.TB, v abi.Version) []byte {
	switch v {
	case abi.V010:
		return wasmFile(t, "scripted010.wasm")
	case abi.V020:
		return bytes.Replace(wasmFile(t, "scripted.wasm"), []byte("version_0_2_1"), []byte("version_0_2_0"), 1)
	}
	return wasmFile(t, "scripted.wasm")
}

func newHost(t testing.TB, cfg Config) *Host {
	t.Helper()
	ctx := context.Background()
	h, err := NewHost(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return h
}

func load(t testing.TB, h *Host, wasm []byte) *Module {
	t.Helper()
	m, err := h.Load(context.Background(), wasm)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// newHarness opens a plugin in one instance of the guest. The plugin's start is not in
// the trace unless one of the changes sets on.
func newHarness(t *testing.T, v abi.Version, changes ...func(*harness, *PluginConfig)) *harness {
	t.Helper()
	h := &harness{
		T: t, on: map[string]func() uint32{}, stats: NewStats(), props: map[string]string{},
		now: time.Unix(1700000000, 42), calls: &calls{}, mute: true,
	}
	h.on["proxy_on_vm_start"] = one
	h.on["proxy_on_configure"] = one
	h.on["proxy_on_done"] = one
	cfg := PluginConfig{
		Name: "plug", RootID: "root", Configuration: []byte("plugin configuration"), Properties: h,
		VM: VMConfig{
			ID: "vm", Configuration: []byte("vm configuration"), Env: []string{"A=1", "BC=23"}, Workers: 1,
			Services: Services{
				Log: h, Metrics: h.stats, Calls: h.calls, Shared: NewShared(),
				Now:       func() time.Time { return h.now },
				AfterFunc: h.afterFunc,
				Go:        func(f func()) { h.queue = append(h.queue, f) },
				Trace:     h.traced,
				Foreign:   EnvoyForeign(),
			},
		},
	}
	cfg.VM.Foreign["script"], cfg.VM.Foreign["echo"] = h.script, echo
	h.host = newHost(t, Config{})
	cfg.VM.Module = load(t, h.host, scripted(t, v))
	for _, change := range changes {
		change(h, &cfg)
	}
	p, err := h.host.Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.plugin, h.in = p, p.Instances()[0]
	h.trace = nil
	t.Cleanup(func() { h.on = map[string]func() uint32{"proxy_on_done": one} })
	return h
}

func one() uint32 { return 1 }

func echo(_ *Context, arguments []byte) ([]byte, abi.Status) {
	return slices.Clone(arguments), abi.OK
}

func (h *harness) afterFunc(d time.Duration, f func()) Timer {
	t := &timer{d: d, f: f}
	h.timers = append(h.timers, t)
	return t
}

// fire runs the timers that are not stopped.
func (h *harness) fire() {
	timers := h.timers
	h.timers = nil
	for _, t := range timers {
		if !t.stopped {
			t.f()
		}
	}
}

// run does what is due.
func (h *harness) run() {
	for len(h.queue) > 0 {
		f := h.queue[0]
		h.queue = h.queue[1:]
		f()
	}
}

func (h *harness) traced(line string) {
	if h.mute && (strings.Contains(line, `call_foreign_function(name="script"`) || line == "<== (UNIMPLEMENTED)" && !strings.Contains(h.last(), "==> ")) {
		return
	}
	h.trace = append(h.trace, line)
}

// last is the last line of the trace.
func (h *harness) last() string {
	if len(h.trace) == 0 {
		return ""
	}
	return h.trace[len(h.trace)-1]
}

// script is what the guest calls in each callback.
func (h *harness) script(c *Context, _ []byte) ([]byte, abi.Status) {
	in := c.in
	for i := len(h.trace) - 1; i >= 0; i-- {
		name, ok := strings.CutPrefix(h.trace[i], "--> ")
		if !ok {
			continue
		}
		name, _, _ = strings.Cut(name, "(")
		if f := h.on[name]; f != nil {
			was := h.in
			h.in = in
			in.mem.WriteUint32Le(16, f())
			if was != nil {
				h.in = was
			}
		}
		break
	}
	return nil, abi.Unimplemented // so that it can be told from the scripts' own calls
}

// A span is an argument in guest memory that the test puts where it likes.
type span struct{ addr, size uint32 }

const (
	scratch = 1024
	nowhere = 1 << 30
)

// do calls a host function as the guest would, from within a callback, and returns
// what it returned, as traces show it. Arguments are numbers, strings or spans; those
// for results are made up unless there are spans for them at the end.
func (h *harness) do(name string, args ...any) string {
	h.Helper()
	f := h.in.vm.host.env[name]
	if f == nil {
		f = h.in.vm.host.wasi[name]
	}
	if f == nil {
		h.Fatalf("no function %s", name)
	}
	var stack []uint64
	at := uint32(scratch)
	for _, p := range f.params {
		var arg any
		if len(args) > 0 {
			arg, args = args[0], args[1:]
		}
		switch arg := arg.(type) {
		case span:
			stack = append(stack, uint64(arg.addr), uint64(arg.size))[:len(stack)+p.kind.slots()]
		case string:
			h.in.mem.WriteString(at, arg)
			stack = append(stack, uint64(at), uint64(len(arg)))
			at += uint32(len(arg)) + 8 - uint32(len(arg))%8
		case int:
			if p.kind == long {
				stack = append(stack, uint64(int64(arg)))
			} else {
				stack = append(stack, uint64(uint32(arg)))
			}
		case nil:
			for range p.kind.slots() {
				stack = append(stack, uint64(at))
				at += 8
			}
		default:
			h.Fatalf("argument %v", arg)
		}
	}
	if len(stack) == 0 {
		stack = []uint64{0}
	}
	f.enter(h.in, stack)
	result := h.trace[len(h.trace)-1]
	return strings.TrimPrefix(result, "<== ")
}

// within runs f in the callback of the name, which go causes.
func (h *harness) within(callback string, f func() uint32, cause func()) {
	h.Helper()
	ran := false
	was := h.on[callback]
	h.on[callback] = func() uint32 {
		ran = true
		return f()
	}
	cause()
	h.on[callback] = was
	if !ran {
		h.Fatalf("%s was not called", callback)
	}
}

// inTick runs f in the plugin's root context.
func (h *harness) inTick(f func()) {
	h.Helper()
	h.within("proxy_on_tick", func() uint32 { f(); return 0 }, func() { h.in.Tick(h.plugin) })
}

// expectTrace compares the trace since the last time.
func (h *harness) expectTrace(want ...string) {
	h.Helper()
	if diff := cmp.Diff(want, h.trace); diff != "" {
		h.Errorf("trace (-want +got):\n%s", diff)
	}
	h.trace = nil
}

// A fakeHTTP is the host of one HTTP stream, which it writes down.
type fakeHTTP struct {
	mu       sync.Mutex
	props    map[string]string
	events   []string
	trailers [2]Headers
	refuse   bool // trailers
}

func (f *fakeHTTP) event(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, fmt.Sprintf(format, args...))
}

func (f *fakeHTTP) AppendProperty(dst []byte, path string) ([]byte, abi.Status) {
	if v, ok := f.props[path]; ok {
		return append(dst, v...), abi.OK
	}
	return dst, abi.NotFound
}

func (f *fakeHTTP) SetProperty(path, value string) abi.Status {
	if f.props == nil {
		f.props = map[string]string{}
	}
	f.props[path] = value
	return abi.OK
}

func (f *fakeHTTP) Continue(s abi.Stream) { f.event("continue %s", s) }
func (f *fakeHTTP) Close(s abi.Stream)    { f.event("close %s", s) }
func (f *fakeHTTP) ClearRouteCache()      { f.event("clear route cache") }
func (f *fakeHTTP) SendLocalResponse(r LocalResponse) {
	f.event("respond %d %q %q %v grpc=%d", r.Status, r.Details, r.Body, r.Headers, r.GRPCStatus)
}

func (f *fakeHTTP) AddTrailers(s abi.Stream) Headers {
	f.event("add trailers %s", s)
	if f.refuse {
		return nil
	}
	f.trailers[s] = &Fields{}
	return f.trailers[s]
}

// expect compares the events since the last time.
func (f *fakeHTTP) expect(t *testing.T, want ...string) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if diff := cmp.Diff(want, f.events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	f.events = nil
}

// calls is a Caller that writes down what is called, and leaves it to the test to answer.
type calls struct {
	https    []HTTPCall
	answers  []func(HTTPAnswer)
	grpcs    []GRPCCall
	events   []GRPCEvents
	sent     []string
	status   abi.Status
	atOnce   *HTTPAnswer
	canceled int
}

func (c *calls) HTTPCall(call HTTPCall, answer func(HTTPAnswer)) (func(), abi.Status) {
	if c.status != abi.OK {
		return nil, c.status
	}
	c.https, c.answers = append(c.https, call), append(c.answers, answer)
	if c.atOnce != nil {
		answer(*c.atOnce)
	}
	return func() { c.canceled++ }, abi.OK
}

func (c *calls) GRPCCall(call GRPCCall, events GRPCEvents) (func(), abi.Status) {
	if c.status != abi.OK {
		return nil, c.status
	}
	c.grpcs, c.events = append(c.grpcs, call), append(c.events, events)
	return func() { c.canceled++ }, abi.OK
}

func (c *calls) GRPCStream(call GRPCCall, events GRPCEvents) (GRPCStream, abi.Status) {
	if c.status != abi.OK {
		return nil, c.status
	}
	c.grpcs, c.events = append(c.grpcs, call), append(c.events, events)
	return c, abi.OK
}

func (c *calls) Send(message string, end bool) {
	c.sent = append(c.sent, fmt.Sprintf("send %q %v", message, end))
}
func (c *calls) Close()  { c.sent = append(c.sent, "close") }
func (c *calls) Cancel() { c.sent = append(c.sent, "cancel") }

func pairsOf(h Headers) string {
	var out []string
	h.Each(func(name, value string) bool {
		out = append(out, name+"="+value)
		return true
	})
	return strings.Join(out, " ")
}

func serialized(kv ...string) string {
	var list []abi.Pair
	for i := 0; i < len(kv); i += 2 {
		list = append(list, abi.Pair{Key: kv[i], Value: kv[i+1]})
	}
	return string(abi.AppendPairs(nil, list))
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
