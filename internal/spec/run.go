package spec

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chandler-proxy/chandler/internal/spec/document"
	"github.com/chandler-proxy/chandler/plugintest"
)

// A Config is how to run tests. The zero value runs all of them once.
type Config struct {
	Match    *regexp.Regexp // names of the tests to run; nil is all
	Count    int            // how often each is run; default 1
	FailFast bool           // stop after the first test that fails
	// BenchTime is how long each benchmark that a suite asks for runs; 0 for none.
	BenchTime time.Duration
}

// An Event is what happened, as it happens.
type Event struct {
	Action  Action
	Suite   string        // the file
	Test    string        // empty for what concerns the suite
	Text    string        // of Output, Trace and Bench: whole lines, the last without its end
	Elapsed time.Duration // of Pass and Fail
	Time    time.Time
}

// An Action says what an event is.
type Action uint8

// The actions, in the order in which they come for a suite and for a test. Tests end
// before their suite does.
const (
	Start  Action = iota // a suite begins
	Run                  // a test begins
	Output               // a failure, or what helps to understand it
	Trace                // likewise, for those who want to see all: the calls between plugin and host
	Bench                // times of a benchmark
	Pass
	Fail
)

// RunAll runs the suites' tests one after the other and reports whether all passed. It
// stops, and returns the cause, when ctx ends. report gets every event, in order.
func RunAll(ctx context.Context, suites []*Suite, cfg Config, report func(Event)) (passed bool, err error) {
	r := runner{cfg: cfg, report: report, loads: &run{}, modules: map[string]*plugintest.Module{}}
	defer r.loads.end()
	passed = true
	for _, s := range suites {
		ok, err := r.suite(ctx, s)
		passed = passed && ok
		if err != nil || !passed && cfg.FailFast {
			return passed, err
		}
	}
	return passed, nil
}

// A runner runs suites, and keeps the modules compiled.
type runner struct {
	cfg     Config
	report  func(Event)
	loads   *run // what modules are loaded for; it ends with the runner
	modules map[string]*plugintest.Module
}

func (r *runner) tell(e Event) {
	e.Time = time.Now()
	r.report(e)
}

func (r *runner) suite(ctx context.Context, s *Suite) (passed bool, err error) {
	began := time.Now()
	r.tell(Event{Action: Start, Suite: s.File})
	passed = true
	for _, t := range r.chosen(s) {
		if ctx.Err() != nil {
			err, passed = context.Cause(ctx), false
			break
		}
		passed = r.test(s, t) && passed
		if !passed && r.cfg.FailFast {
			break
		}
	}
	r.tell(Event{Action: verdict(passed), Suite: s.File, Elapsed: time.Since(began)})
	return passed, err
}

// chosen are the tests to run, as often as they are to be.
func (r *runner) chosen(s *Suite) []*Test {
	var tests []*Test
	for _, t := range s.Tests {
		if r.cfg.Match == nil || r.cfg.Match.MatchString(t.Name) {
			tests = append(tests, t)
		}
	}
	return slices.Repeat(tests, max(1, r.cfg.Count))
}

func verdict(passed bool) Action {
	if passed {
		return Pass
	}
	return Fail
}

func (r *runner) test(s *Suite, t *Test) (passed bool) {
	began := time.Now()
	e := Event{Suite: s.File, Test: t.Name}
	tell := func(a Action, text string) { e.Action, e.Text = a, text; r.tell(e) }
	tell(Run, "")
	one := &run{runner: r, file: s.File, line: t.Line}
	one.do(func() { t.run(one) })
	one.end()
	if t.bench != nil && !one.failed && r.cfg.BenchTime > 0 {
		times := &run{runner: r, file: s.File, line: t.Line}
		times.do(func() {
			t.bench(times, benchmark{name: t.Name, time: r.cfg.BenchTime, tell: func(line string) { tell(Bench, line) }})
		})
		times.end()
		one.failures, one.failed = times.failures, times.failed
	}
	for _, f := range one.failures {
		tell(Output, fmt.Sprintf("%s:%d: %s", s.File, f.line, strings.ReplaceAll(f.text, "\n", "\n    ")))
	}
	for _, text := range one.traces {
		tell(Trace, text)
	}
	e.Elapsed = time.Since(began)
	tell(verdict(!one.failed), "")
	return !one.failed
}

// A run is one run of one test. To plugintest it is the test.
type run struct {
	testing.TB // for its unexported method; what is not below is never called

	runner   *runner
	file     string
	line     int    // of the step that runs, or of what is checked
	path     string // likewise; empty before the first step
	failed   bool
	failures []failure
	traces   []string
	cleanups []func()
}

// A failure is what a line of the file wants, and is not so.
type failure struct {
	line int
	text string
}

// errAbort ends a test that cannot go on; do stops it.
var errAbort = errors.New("test cannot go on")

// do calls f, and returns early if it aborts.
func (t *run) do(f func()) {
	defer func() {
		if r := recover(); r != nil && r != any(errAbort) {
			panic(r)
		}
	}()
	f()
}

// end does what is to be done when the test is over.
func (t *run) end() {
	for len(t.cleanups) > 0 {
		last := len(t.cleanups) - 1
		f := t.cleanups[last]
		t.cleanups = t.cleanups[:last]
		t.do(f)
	}
}

// failAt fails the test for what a line of the file wants.
func (t *run) failAt(line int, format string, a ...any) {
	t.failed = true
	t.failures = append(t.failures, failure{line, fmt.Sprintf(format, a...)})
}

// at says where the test is, until what it returns is called.
func (t *run) at(p document.Position) (back func()) {
	line, path := t.line, t.path
	t.line, t.path = p.Line, p.Path
	return func() { t.line, t.path = line, path }
}

// Errorf fails the test where it is now.
func (t *run) Errorf(format string, a ...any) {
	if t.path != "" {
		format, a = "%s: "+format, append([]any{t.path}, a...)
	}
	t.failAt(t.line, format, a...)
}

// Fatalf fails the test and ends it.
func (t *run) Fatalf(format string, a ...any) {
	t.Errorf(format, a...)
	panic(errAbort)
}

// Fatal is Fatalf for values.
func (t *run) Fatal(a ...any) { t.Fatalf("%s", fmt.Sprint(a...)) }

// Logf takes the trace of a test that failed.
func (t *run) Logf(format string, a ...any) { t.traces = append(t.traces, fmt.Sprintf(format, a...)) }

// Helper does nothing: lines are those of the file.
func (t *run) Helper() {}

// Failed reports whether the test failed.
func (t *run) Failed() bool { return t.failed }

// Cleanup has f called when the test is over, what was added last first.
func (t *run) Cleanup(f func()) { t.cleanups = append(t.cleanups, f) }

// module returns the module in a file, compiled once for all tests. One that cannot be
// loaded fails the test.
func (t *run) module(file string) *plugintest.Module {
	r := t.runner
	if m := r.modules[file]; m != nil {
		return m
	}
	r.loads.file, r.loads.line, r.loads.failures = t.file, t.line, nil
	r.loads.do(func() { r.modules[file] = plugintest.Load(r.loads, file) })
	if r.loads.failures != nil {
		t.failed, t.failures = true, append(t.failures, r.loads.failures...)
		panic(errAbort)
	}
	return r.modules[file]
}

// A benchmark is how to measure.
type benchmark struct {
	name string
	time time.Duration
	tell func(line string)
}

// measure calls f again and again, and tells how long one call takes. before, which may
// be nil, is called before each, and does not count.
func (b benchmark) measure(of string, before, f func()) {
	n, used := 0, time.Duration(0)
	for began := time.Now(); n == 0 || time.Since(began) < b.time; n++ {
		if before != nil {
			before()
		}
		start := time.Now()
		f()
		used += time.Since(start)
	}
	b.tell(fmt.Sprintf("Benchmark%s-%d\t%8d\t%12.0f ns/op", of, runtime.GOMAXPROCS(0), n, float64(used.Nanoseconds())/float64(n)))
}
