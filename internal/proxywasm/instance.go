package proxywasm

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// An Instance is a running guest: one module's memory, with a root context for each
// plugin in it and a context for each stream. All methods are safe for concurrent use;
// calls into the guest are one at a time.
type Instance struct {
	vm *vm

	busy   atomic.Bool // a hint, for choosing among instances
	failed atomic.Pointer[error]

	mu sync.Mutex // held while the guest runs; guards all that follows, save the mailbox

	mod         api.Module
	mem         api.Memory
	version     abi.Version
	exports     *[numCallbacks]bool
	fns         [numCallbacks]api.Function
	malloc      api.Function
	mallocStack [1]uint64
	stack       [maxParams]uint64
	interrupt   interrupt
	phase       phase
	trace       func(*Context, string) // nil unless there is a Services.Trace

	vmContext *Context // id 0: where a guest is that starts
	contexts  map[uint32]*Context
	nextID    uint32
	roots     map[*Plugin]*root
	current   *Context // nil unless the guest runs
	effective *Context
	stop      bool // the guest answered the stream: nothing goes on
	actions   []action

	lower    []byte // scratch of name
	property []byte // scratch of getProperty
	out      [2]line
	exit     int64 // of proc_exit, or -1

	metrics    [3]map[uint32]Metric
	nextMetric [3]uint32 // ids by type
	nextCall   [3]uint32 // ids by type
	epoch      time.Time // of the monotonic clock
	foreign    []byte    // ForeignFunctionArguments
	mailbox    mailbox
}

// An action is what a guest asked for that is done once it has returned.
type action struct {
	kind   actionKind
	c      *Context
	stream abi.Stream
	local  *LocalResponse
	run    func()
}

type actionKind uint8

const (
	actContinue actionKind = iota
	actLocal
	actClose
	actRun
)

// guest is an Instance as the context.Context of the calls into it: that is how a host
// function learns, without a lookup, on whose behalf it is called. It ends with no
// one: deadlines are the interrupt's.
type guest Instance

func (*guest) Deadline() (time.Time, bool) { return time.Time{}, false }
func (*guest) Done() <-chan struct{}       { return nil }
func (*guest) Err() error                  { return nil }
func (*guest) Value(any) any               { return nil }

func instanceOf(ctx context.Context) *Instance { return (*Instance)(ctx.(*guest)) }

// ErrClosed is the failure of an instance that was closed.
var ErrClosed = errors.New("instance is closed")

// newInstance instantiates the module and starts it as Envoy does: _initialize, then
// main if that is exported; or else _start.
func (v *vm) newInstance() (*Instance, error) {
	in := &Instance{
		vm:       v,
		version:  v.module.Version,
		exports:  &v.module.exports,
		trace:    tracer(v.cfg.Trace),
		contexts: map[uint32]*Context{},
		nextID:   1,
		roots:    map[*Plugin]*root{},
		epoch:    v.cfg.Now(),
		exit:     -1,
		// Metric and call ids carry their type in the two lowest bits.
		nextMetric: [3]uint32{0, 1, 2},
		nextCall:   [3]uint32{0, 1, 2},
	}
	in.vmContext = &Context{in: in}
	in.lock()
	defer in.unlock()
	in.phase = starting
	defer func() { in.phase = running }()
	if err := in.instantiate(); err != nil {
		return nil, fmt.Errorf("start module: %w", err)
	}
	for _, cb := range in.starters() {
		if in.call(in.vmContext, cb, 0, 0); in.err() != nil {
			_ = in.mod.Close(context.Background())
			return nil, fmt.Errorf("start module: %w", in.err())
		}
	}
	return in, nil
}

func (in *Instance) instantiate() (err error) {
	in.current, in.effective = in.vmContext, in.vmContext
	in.interrupt.begin(in.vm.startDeadline())
	in.mod, err = in.vm.module.runtime.InstantiateModule((*guest)(in), in.vm.module.compiled,
		wazero.NewModuleConfig().WithName("").WithStartFunctions())
	in.current, in.effective = nil, nil
	if err != nil {
		return in.explain(err)
	}
	in.mem = in.mod.Memory()
	in.malloc = in.mod.ExportedFunction(in.vm.module.malloc)
	return nil
}

func (in *Instance) starters() []callback {
	switch {
	case in.exports[initialize] && in.exports[mainArgs]:
		return []callback{initialize, mainArgs}
	case in.exports[initialize] && in.exports[mainVoid]:
		return []callback{initialize, mainVoid}
	case in.exports[initialize]:
		return []callback{initialize}
	case in.exports[start]:
		return []callback{start}
	}
	return nil
}

func (in *Instance) lock() {
	in.mu.Lock()
	in.busy.Store(true)
}

// unlock lets others in, then does what the guest asked for meanwhile.
func (in *Instance) unlock() {
	actions := in.actions
	in.actions = nil
	in.busy.Store(false)
	in.mu.Unlock()
	for _, a := range actions {
		a.do()
	}
}

func (a action) do() {
	switch a.kind {
	case actRun:
		a.run()
	case actContinue:
		a.c.continued(a.stream)
	case actLocal:
		a.c.http.host.SendLocalResponse(*a.local)
	case actClose:
		if a.c.http != nil {
			a.c.http.host.Close(a.stream)
		} else {
			a.c.tcp.host.Close(a.stream)
		}
	}
}

// later has the action done once the guest has returned.
func (in *Instance) later(a action) { in.actions = append(in.actions, a) }

// Failed is why the guest cannot be called any more, or nil.
func (in *Instance) Failed() error { return in.err() }

func (in *Instance) err() error {
	if p := in.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// has reports whether the guest is alive and exports the callback.
func (in *Instance) has(cb callback) bool { return in.exports[cb] && in.failed.Load() == nil }

// call calls the guest in the context and returns its result, or 0 if there is none,
// the callback is not exported, or the guest failed. The instance is locked.
func (in *Instance) call(c *Context, cb callback, args ...uint32) uint32 {
	if !in.has(cb) {
		in.stop = false // nothing of an earlier callback's holds for this one
		return 0
	}
	fn := in.fns[cb]
	if fn == nil {
		fn = in.mod.ExportedFunction(cb.name(in.version))
		in.fns[cb] = fn
	}
	for i, a := range args {
		in.stack[i] = uint64(a)
	}
	if in.trace != nil {
		in.trace(c, "--> "+traceCall(cb, in.version, args))
	}
	in.current, in.effective, in.stop, in.exit = c, c, false, -1
	deadline := in.vm.host.deadline
	if in.phase == starting {
		deadline = in.vm.startDeadline()
	}
	in.interrupt.begin(deadline)
	err := fn.CallWithStack((*guest)(in), in.stack[:])
	in.flush()
	in.current, in.effective = nil, nil
	if err != nil {
		in.fail(c, cb, err)
		return 0
	}
	var result uint32
	if callbacks[cb].result {
		result = uint32(in.stack[0])
	}
	if in.trace != nil {
		in.trace(c, "<-- "+traceResult(cb, result))
	}
	return result
}

// tracer gives the lines about a stream to its host, if that is a [Tracer], and all
// others to trace.
func tracer(trace func(string)) func(*Context, string) {
	if trace == nil {
		return nil
	}
	return func(c *Context, line string) {
		if t, ok := c.stream().(Tracer); ok {
			t.Trace(line)
			return
		}
		trace(line)
	}
}

func traceCall(cb callback, v abi.Version, args []uint32) string {
	var out []string
	for i := range cb.params(v) {
		out = append(out, callbacks[cb].params[i]+"="+strconv.FormatUint(uint64(args[i]), 10))
	}
	return callbacks[cb].name + "(" + strings.Join(out, ",") + ")"
}

func traceResult(cb callback, result uint32) string {
	if callbacks[cb].result {
		return "(" + strconv.FormatUint(uint64(result), 10) + ")"
	}
	return "()"
}

// fail makes err, of a call to cb in the context, the instance's end.
func (in *Instance) fail(c *Context, cb callback, err error) {
	in.phase = running
	err = fmt.Errorf("%s: %w", callbacks[cb].name, in.explain(err))
	if !in.failed.CompareAndSwap(nil, &err) {
		return
	}
	if in.trace != nil {
		in.trace(c, "<-- failed: "+err.Error())
	}
	in.vm.cfg.Log.Log(Record{Level: abi.Critical, VMID: in.vm.cfg.ID, Message: "Wasm VM failed " + err.Error()})
	in.later(action{kind: actRun, run: in.shutdown})
}

// explain adds to a trap what made it.
func (in *Instance) explain(err error) error {
	if in.exit >= 0 {
		return fmt.Errorf("module exited with code %d: %w", in.exit, err)
	}
	return err
}

// shutdown stops what a failed or closed instance would do on its own.
func (in *Instance) shutdown() {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, r := range in.roots {
		r.setTick(0)
		r.cancelCalls()
	}
	if in.mod != nil {
		_ = in.mod.Close(context.Background())
	}
}

// close ends the instance, and returns when nothing of it runs any more.
func (in *Instance) close() {
	err := ErrClosed
	in.failed.CompareAndSwap(nil, &err)
	in.shutdown()
	in.mailbox.close()
}

// A mailbox holds what is to be done in the instance by no one in particular.
type mailbox struct {
	mu       sync.Mutex
	letters  []func()
	draining bool
	closed   bool
	drains   sync.WaitGroup
}

// post has f called with the instance locked, soon and in order. It never blocks. What
// is posted to a closed instance is dropped.
func (in *Instance) post(f func()) {
	m := &in.mailbox
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.letters = append(m.letters, f)
	if !m.draining {
		m.draining = true
		in.vm.cfg.Go(in.drain)
	}
}

func (in *Instance) drain() {
	m := &in.mailbox
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return
	}
	m.drains.Add(1)
	m.mu.Unlock()
	defer m.drains.Done()
	for {
		m.mu.Lock()
		letters := m.letters
		m.letters = nil
		if len(letters) == 0 {
			m.draining = false
			m.mu.Unlock()
			return
		}
		m.mu.Unlock()
		for _, f := range letters {
			in.lock()
			f()
			in.unlock()
		}
	}
}

func (m *mailbox) close() {
	m.mu.Lock()
	m.closed, m.letters = true, nil
	m.mu.Unlock()
	m.drains.Wait()
}
