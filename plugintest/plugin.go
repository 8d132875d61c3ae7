package plugintest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// A Config is what a plugin is started with. The zero value is a plugin without
// configuration, in front of a backend that answers 200.
type Config struct {
	Plugin string            // the plugin's configuration
	VM     string            // the VM's configuration
	Name   string            // the plugin's name
	RootID string            // which of the module's root contexts it is
	VMID   string            // what it shares data and queues by
	Env    map[string]string // environment variables

	// Properties are what the plugin can read: by path, such as "source.address" or
	// "node.metadata.NAME", a string, []byte, bool, int, int64, uint64, float64,
	// time.Time, time.Duration, []string or map[string]string. Those that follow from a
	// request or response (request.path, response.code, …) are there without.
	Properties map[string]any

	// Backend answers requests that the plugin lets through; default: 200.
	Backend func(Request) Response
	// Upstreams are what the plugin can call over HTTP, by name. A function answers the
	// calls, as soon as the callback that made them returns; nil leaves them to the test.
	// Others are unknown to the plugin. Without any, all are known, and left to the test.
	Upstreams map[string]func(Request) Response
	// Queues are shared queues that others registered, which the plugin can resolve by
	// their names and the VMID of its own.
	Queues []string
	// Functions are foreign functions that the plugin can call, besides Envoy's own but for
	// expressions: compress, uncompress, clear_route_cache, sign, verify_signature,
	// declare_property and set_envoy_filter_state. After an error the plugin sees INTERNAL_FAILURE.
	Functions map[string]func(arguments []byte) ([]byte, error)

	// LogLevel is the lowest level that is not discarded; default Trace.
	LogLevel Level
	// Policy says what becomes of requests after the plugin failed.
	Policy FailPolicy
	// MayFail lets the plugin trap without failing the test.
	MayFail bool
	// AllowHeadersStop is Envoy's allow_on_headers_stop_iteration.
	AllowHeadersStop bool
	// BufferLimit is how many bytes of a body are held back; default 1 MiB, as in Envoy.
	BufferLimit int
	// Now is when the plugin is started, by its own clock; default: now.
	Now time.Time
	// StopClock has that clock stand still, but for [Plugin.Advance]. A plugin that waits
	// for time to pass then waits for ever.
	StopClock bool
	// NoTrace leaves out [Plugin.Trace], which costs more than most plugins: for benchmarks.
	NoTrace bool
}

// A FailPolicy says what becomes of requests after a plugin trapped. Those that it had
// when it did are answered with 503, as by Envoy.
type FailPolicy int

const (
	FailClosed FailPolicy = iota // they are answered with 503
	FailOpen                     // they pass
	FailReload                   // the plugin is started anew, at most once a second; until then as FailClosed
)

// A Level is how important a log line is.
type Level int

const (
	Trace Level = iota
	Debug
	Info
	Warn
	Error
	Critical
)

// String is the level as Envoy's log shows it, such as warning.
func (l Level) String() string { return abi.LogLevel(l).String() }

// A Line is one that the plugin logged, or wrote to its standard output (Info) or
// standard error (Error).
type Line struct {
	Level   Level
	Message string
}

// String is the line as text, such as "warning: no such user".
func (l Line) String() string { return l.Level.String() + ": " + l.Message }

// A Plugin is a configured plugin, ready for requests and connections.
type Plugin struct {
	t      testing.TB
	cfg    Config
	plugin *proxywasm.Plugin
	shared *proxywasm.Shared

	metrics  metrics
	lines    []Line
	callback string   // that runs, or ran last
	loggedIn []string // the callback of each of lines
	trace    []string
	cut      int // lines of the trace that were dropped
	failures []string
	reported int // failures the test was told of

	calls     []*Call
	grpcCalls []*GRPCCall
	streams   []*Stream // not done yet
	conns     []*Conn   // not closed yet

	stopped time.Time     // when the plugin's clock was, if that stands still
	offset  time.Duration // of the plugin's clock
	timers  []*timer
	queue   []func() // what is due once the plugin returns
}

// Start starts the plugin. A plugin that refuses its configuration, or fails, fails
// the test. It is closed when the test ends.
func (m *Module) Start(t testing.TB, cfg Config) *Plugin {
	t.Helper()
	p, err := m.TryStart(t, cfg)
	if err != nil {
		t.Fatalf("start plugin: %v", err)
	}
	return p
}

// TryStart starts the plugin and returns why it did not start. The Plugin is there in
// any case, with its logs and its trace, but takes requests only if it has started.
func (m *Module) TryStart(t testing.TB, cfg Config) (*Plugin, error) {
	t.Helper()
	p := &Plugin{t: t, cfg: cfg, shared: proxywasm.NewShared(), metrics: metrics{}}
	switch {
	case cfg.StopClock && cfg.Now.IsZero():
		p.stopped = time.Now()
	case cfg.StopClock:
		p.stopped = cfg.Now
	case !cfg.Now.IsZero():
		p.offset = time.Until(cfg.Now)
	}
	for path, value := range cfg.Properties {
		p.encode(path, value)
	}
	for _, name := range cfg.Queues {
		p.shared.Register(cfg.VMID, name, func(uint32) {})
	}
	at, err := m.place()
	if err != nil {
		t.Fatalf("%s: %v", m.path, err)
	}
	t.Cleanup(func() { p.close(m, at) })
	p.plugin, err = at.host.Open(context.Background(), p.config(at.module))
	if err != nil {
		p.reported = len(p.failures) // the error says so
		p.plugin = nil
		return p, err
	}
	if d, ok := t.(driver); ok {
		d.Drive(p.plugin.NewHTTP)
	}
	p.settle()
	return p, nil
}

// A driver is a test that calls the callbacks of HTTP streams itself, by the rules of
// another host than Envoy: internal/spec is one, for a form of tests that wants it so.
// Nobody else can be one, as the types are not to be had.
type driver interface {
	// Drive gets what opens a stream in the plugin that has started.
	Drive(open func(proxywasm.HTTPHost) *proxywasm.HTTP)
}

func (p *Plugin) config(m *proxywasm.Module) proxywasm.PluginConfig {
	foreign := proxywasm.EnvoyForeign()
	for name, f := range p.cfg.Functions {
		foreign[name] = func(_ *proxywasm.Context, arguments []byte) ([]byte, abi.Status) {
			results, err := f(slices.Clone(arguments))
			if err != nil {
				return nil, abi.InternalFailure
			}
			return results, abi.OK
		}
	}
	var env []string
	for _, name := range slices.Sorted(maps.Keys(p.cfg.Env)) {
		env = append(env, name+"="+p.cfg.Env[name])
	}
	trace := p.traced
	if p.cfg.NoTrace {
		trace = nil
	}
	return proxywasm.PluginConfig{
		Name: p.cfg.Name, RootID: p.cfg.RootID, Configuration: []byte(p.cfg.Plugin), Properties: rootProperties{p},
		Policy: proxywasm.FailPolicy(p.cfg.Policy), AllowHeadersStop: p.cfg.AllowHeadersStop, BufferLimit: p.cfg.BufferLimit,
		VM: proxywasm.VMConfig{
			Module: m, ID: p.cfg.VMID, Configuration: []byte(p.cfg.VM), Env: env, Workers: 1,
			Services: proxywasm.Services{
				Log: logger{p}, Metrics: p.metrics, Calls: caller{p}, Shared: p.shared, Foreign: foreign,
				Now: p.now, AfterFunc: p.afterFunc,
				Go:    func(f func()) { p.queue = append(p.queue, f) },
				Trace: trace,
			},
		},
	}
}

// close ends what the test left open, and says what happened if the test failed.
func (p *Plugin) close(m *Module, at place) {
	over, end := context.WithCancel(context.Background())
	end() // a plugin that waits before it is done is not waited for
	if p.t.Failed() {
		p.t.Logf("calls from (==>) and to (-->) the plugin:\n%s", p.tail())
	}
	for _, s := range p.streams {
		s.http.Close()
	}
	for _, c := range p.conns {
		c.tcp.Close()
	}
	if p.plugin != nil {
		if err := p.plugin.Close(over); err != nil {
			p.t.Errorf("close plugin: %v", err)
		}
	}
	if err := m.leave(at); err != nil {
		p.t.Errorf("close %s: %v", m.path, err)
	}
}

// Limits on the trace: what is kept, and what of it is printed.
const (
	keepTrace = 10_000
	showTrace = 200
)

func (p *Plugin) traced(line string) {
	if len(p.trace) == keepTrace {
		p.trace = append(p.trace[:0], p.trace[keepTrace/2:]...)
		p.cut += keepTrace / 2
	}
	p.trace = append(p.trace, line)
	if call, ok := strings.CutPrefix(line, "--> "); ok {
		p.callback, _, _ = strings.Cut(call, "(")
	}
}

func (p *Plugin) tail() string {
	lines := p.trace[max(0, len(p.trace)-showTrace):]
	text := strings.Join(lines, "\n")
	if left := p.cut + len(p.trace) - len(lines); left > 0 {
		text = fmt.Sprintf("(%d before these)\n", left) + text
	}
	return text
}

// Trace returns the calls between the plugin and its host so far, or the last 5,000 at
// least: "--> proxy_on_tick(context=1)" and "<-- ()" are a callback and what it
// returned, "==> env.proxy_log(level=2,message=\"hello\")" and "<== (OK)" a call of the
// plugin's and what it was answered.
func (p *Plugin) Trace() []string { return slices.Clone(p.trace) }

// settle does what is due after a call into the plugin.
func (p *Plugin) settle() {
	p.t.Helper()
	for again := true; again; {
		again = len(p.queue) > 0
		queue := p.queue
		p.queue = nil
		for _, f := range queue {
			f()
		}
		for _, s := range slices.Clone(p.streams) {
			again = s.advance() || again
		}
		for _, c := range slices.Clone(p.conns) {
			again = c.advance() || again
		}
	}
	p.streams = slices.DeleteFunc(p.streams, func(s *Stream) bool { return s.done })
	p.conns = slices.DeleteFunc(p.conns, func(c *Conn) bool { return c.closed })
	if !p.cfg.MayFail {
		for _, why := range p.failures[p.reported:] {
			p.t.Errorf("plugin failed: %s", why)
		}
	}
	p.reported = len(p.failures)
}

// started fails the test if there is no plugin to do things with.
func (p *Plugin) started() {
	p.t.Helper()
	if p.plugin == nil {
		p.t.Fatal("the plugin did not start")
	}
}

// Failures says how the plugin trapped, if it did, for tests with Config.MayFail.
func (p *Plugin) Failures() []string { return slices.Clone(p.failures) }

// logger keeps what the plugin logs.
type logger struct{ p *Plugin }

func (l logger) Log(r proxywasm.Record) {
	if why, ok := strings.CutPrefix(r.Message, "Wasm VM failed "); ok && r.Level == abi.Critical && r.RootID == "" && r.Plugin == "" {
		why, _, _ = strings.Cut(why, "\n")
		l.p.failures = append(l.p.failures, why)
		return
	}
	l.p.lines = append(l.p.lines, Line{Level(r.Level), r.Message})
	l.p.loggedIn = append(l.p.loggedIn, l.p.callback)
}

func (l logger) Level() abi.LogLevel { return abi.LogLevel(l.p.cfg.LogLevel) }

// Logs returns what the plugin logged so far.
func (p *Plugin) Logs() []Line { return slices.Clone(p.lines) }

// LogsOf returns what the plugin logged so far in a callback, such as
// proxy_on_request_headers. With Config.NoTrace that is not known, and it returns nothing.
func (p *Plugin) LogsOf(callback string) []Line {
	var lines []Line
	for i, l := range p.lines {
		if p.loggedIn[i] == callback && !p.cfg.NoTrace {
			lines = append(lines, l)
		}
	}
	return lines
}

// Logged reports whether the plugin logged a line that contains text.
func (p *Plugin) Logged(text string) bool {
	return slices.ContainsFunc(p.lines, func(l Line) bool { return strings.Contains(l.Message, text) })
}

// Shared returns data that the plugin shares with others of its VMID.
func (p *Plugin) Shared(key string) (value string, ok bool) {
	value, _, status := p.shared.Get(p.cfg.VMID, key)
	return value, status == abi.OK
}

// SetShared sets data that the plugin shares, as another plugin would.
func (p *Plugin) SetShared(key, value string) { p.shared.Set(p.cfg.VMID, key, value, 0) }

// Enqueue adds an item to a queue that the plugin, or Config.Queues, registered, as another plugin would.
func (p *Plugin) Enqueue(queue, item string) {
	p.t.Helper()
	p.shared.Enqueue(p.queueOf(queue), item)
	p.settle()
}

// Dequeue takes the first item out of a queue, if there is one.
func (p *Plugin) Dequeue(queue string) (item string, ok bool) {
	p.t.Helper()
	item, status := p.shared.Dequeue(p.queueOf(queue))
	return item, status == abi.OK
}

func (p *Plugin) queueOf(name string) uint32 {
	p.t.Helper()
	token, status := p.shared.Resolve(p.cfg.VMID, name)
	if status != abi.OK {
		p.t.Fatalf("no one registered a queue %q", name)
	}
	return token
}

// CallFunction has the plugin's proxy_on_foreign_function called.
func (p *Plugin) CallFunction(function uint32, arguments []byte) {
	p.t.Helper()
	p.started()
	for _, in := range p.plugin.Instances() {
		in.OnForeignFunction(p.plugin, function, arguments)
	}
	p.settle()
}
