package proxywasm

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// Why a plugin cannot be opened although its module can run.
var (
	ErrVMStart   = errors.New("proxy_on_vm_start refused the VM configuration")
	ErrConfigure = errors.New("proxy_on_configure refused the plugin configuration")
)

// A VMConfig says which guest a plugin runs in. Plugins for which Module, ID,
// Configuration and Env are the same share their instances: one for each worker.
type VMConfig struct {
	Module        *Module
	ID            string // vm_id: what shares data and queues
	Configuration []byte
	Env           []string // KEY=value, in the order the guest sees them
	Workers       int      // instances; default GOMAXPROCS

	// Services are those of whoever opens a plugin in the VM first.
	Services
}

// A PluginConfig is a plugin as Envoy's PluginConfig has it.
type PluginConfig struct {
	Name          string
	RootID        string
	Configuration []byte
	VM            VMConfig
	// Properties answers in root contexts; nil has none but plugin_*.
	Properties Properties
	Policy     FailPolicy
	Backoff    time.Duration // of FailReload; default DefaultBackoff
	// AllowHeadersStop lets the guest see the body while it holds back the headers:
	// Envoy's allow_on_headers_stop_iteration.
	AllowHeadersStop bool
	// BufferLimit is how many bytes of a body are held back; default DefaultBufferLimit.
	BufferLimit int
}

// DefaultBufferLimit is Envoy's per_connection_buffer_limit_bytes.
const DefaultBufferLimit = 1 << 20

// A Plugin is a configured guest, ready for streams. It is safe for concurrent use.
type Plugin struct {
	cfg     PluginConfig
	vm      *vm
	seats   []seat // one for each of the VM's workers
	reloads Reloads

	streams atomic.Int64  // that a guest has
	closing atomic.Bool   // then the last of them
	idle    chan struct{} // says so here
}

// A seat is the plugin's place in one worker: the worker's instance, or the one that it
// had, if that failed. It takes the new one when the policy says so.
type seat struct {
	in   atomic.Pointer[Instance]
	made atomic.Int64 // when it was taken last, in nanoseconds since vm.epoch
}

// end is called when one of the plugin's streams is over.
func (p *Plugin) end() {
	if p.streams.Add(-1) == 0 && p.closing.Load() {
		select {
		case p.idle <- struct{}{}:
		default:
		}
	}
}

// drain waits until no guest has a stream of the plugin, or ctx ends.
func (p *Plugin) drain(ctx context.Context) {
	p.closing.Store(true)
	for p.streams.Load() > 0 {
		select {
		case <-p.idle:
		case <-ctx.Done():
			return
		}
	}
}

type vmKey [sha256.Size]byte

func (c *VMConfig) key() vmKey {
	h := sha256.New()
	h.Write(c.Module.Digest[:])
	for _, part := range append([]string{c.ID, string(c.Configuration)}, c.Env...) {
		fmt.Fprintf(h, "%d|%s", len(part), part)
	}
	return vmKey(h.Sum(nil))
}

// A vm is the instances that its plugins share: one for each worker. One that failed is
// of the plugins alone that were in it, until their policy has them leave it: who comes
// later gets a new one. So Envoy drops a failed VM from its map.
type vm struct {
	host   *Host
	key    vmKey
	module *Module
	cfg    VMConfig
	epoch  time.Time // with the reading of the monotonic clock, if there is one
	next   atomic.Uint32

	mu      sync.Mutex  // held while the set of plugins changes, or an instance is replaced
	workers []*Instance // the newest of each worker, nil if none was made
	plugins map[*Plugin]struct{}
	refs    int // guarded by Host.mu
	closed  bool
}

// age is how long the VM is there, whatever is done to the wall clock.
func (v *vm) age() time.Duration { return v.cfg.Now().Sub(v.epoch) }

// startDeadline is how long a module may take to start.
func (v *vm) startDeadline() time.Duration { return 10 * v.host.deadline }

// Open starts the plugin in every instance of its VM, and the VM if it is the first
// there. It fails if the guest refuses its configuration, or fails: with [ErrVMStart],
// [ErrConfigure], [ErrDeadline] or the guest's trap. A plugin that fails so harms no
// other: where there are others in the VM it is tried in an instance of its own first.
func (h *Host) Open(ctx context.Context, cfg PluginConfig) (*Plugin, error) {
	cfg.Backoff = cmp.Or(cfg.Backoff, DefaultBackoff)
	cfg.BufferLimit = cmp.Or(cfg.BufferLimit, DefaultBufferLimit)
	v, err := h.vm(cfg.VM)
	if err != nil {
		return nil, fmt.Errorf("open plugin %s: %w", cfg.Name, err)
	}
	p := &Plugin{cfg: cfg, vm: v, seats: make([]seat, len(v.workers)), reloads: v.cfg.Reloads(cfg.Name), idle: make(chan struct{}, 1)}
	if err := v.add(ctx, p); err != nil {
		_ = v.release(context.WithoutCancel(ctx))
		return nil, fmt.Errorf("open plugin %s: %w", cfg.Name, err)
	}
	return p, nil
}

// vm returns the VM of the configuration, held once more.
func (h *Host) vm(cfg VMConfig) (*vm, error) {
	cfg.Services = cfg.Services.withDefaults()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.vms == nil {
		return nil, errClosed
	}
	key := cfg.key()
	v := h.vms[key]
	if v == nil {
		v = &vm{
			host: h, key: key, module: cfg.Module.retain(), cfg: cfg, epoch: cfg.Now(),
			workers: make([]*Instance, max(1, cmp.Or(cfg.Workers, runtime.GOMAXPROCS(0)))),
			plugins: map[*Plugin]struct{}{},
		}
		h.vms[key] = v
		cfg.Shared.retain(cfg.ID)
	}
	v.refs++
	return v, nil
}

// add starts the plugin everywhere.
func (v *vm) add(ctx context.Context, p *Plugin) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return ErrClosed
	}
	if len(v.plugins) > 0 {
		if err := v.try(p); err != nil {
			return err
		}
	}
	var g errgroup.Group
	for i := range v.workers {
		g.Go(func() error {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			return v.startIn(i, p)
		})
	}
	if err := g.Wait(); err != nil {
		for i := range p.seats {
			if in := p.seats[i].in.Load(); in != nil {
				in.leave(p)
			}
		}
		return err
	}
	v.plugins[p] = struct{}{}
	return nil
}

// try starts the plugin in an instance of its own, and throws that away.
func (v *vm) try(p *Plugin) error {
	in, err := v.newInstance()
	if err != nil {
		return err
	}
	defer in.close()
	return in.newRoot(p)
}

// startIn starts the plugin in the instance of a worker, which it makes if there is none
// that works. v.mu is held.
func (v *vm) startIn(worker int, p *Plugin) error {
	seat := &p.seats[worker]
	seat.made.Store(int64(v.age()))
	in := v.workers[worker]
	if in == nil || in.err() != nil {
		var err error
		if in, err = v.newInstance(); err != nil {
			return err
		}
		if failed := v.workers[worker]; failed != nil {
			failed.close()
		}
		v.workers[worker] = in
	}
	if err := in.newRoot(p); err != nil {
		return err
	}
	seat.in.Store(in)
	return nil
}

// reload has the plugin leave the instance of a worker, which failed, for one that works,
// unless it has already. It returns that, or nil.
func (v *vm) reload(worker int, failed *Instance, p *Plugin) *Instance {
	v.mu.Lock()
	defer v.mu.Unlock()
	seat := &p.seats[worker]
	if in := seat.in.Load(); in != failed {
		return in
	}
	if _, open := v.plugins[p]; !open {
		return nil
	}
	if err := v.startIn(worker, p); err != nil {
		v.cfg.Log.Log(Record{Level: abi.Error, VMID: v.cfg.ID, Message: "Wasm VM reload failed: " + err.Error()})
		p.reloads.Failure.Inc()
		return nil
	}
	p.reloads.Success.Inc()
	return seat.in.Load()
}

// choose picks the instance of a new stream: one that no one is in, if there is. nil
// if there is none for the plugin, and what to do then.
func (p *Plugin) choose() (*Instance, Verdict) {
	worker := p.worker()
	seat := &p.seats[worker]
	in := seat.in.Load()
	if in.failed.Load() == nil {
		return in, Run
	}
	age := p.vm.age() - time.Duration(seat.made.Load())
	verdict := Decide(p.cfg.Policy, true, age, p.cfg.Backoff)
	if verdict != Reload {
		if p.cfg.Policy == FailReload {
			p.reloads.Backoff.Inc()
		}
		return nil, verdict
	}
	if in = p.vm.reload(worker, in, p); in != nil && in.failed.Load() == nil {
		return in, Run
	}
	return nil, Deny
}

// worker is the number of one that can take a stream, if there is one.
func (p *Plugin) worker() int {
	n := uint32(len(p.seats))
	first := p.vm.next.Add(1)
	for i := range n {
		in := p.seats[(first+i)%n].in.Load()
		if !in.busy.Load() && in.failed.Load() == nil {
			return int((first + i) % n)
		}
	}
	return int(first % n)
}

// Name is the plugin's name.
func (p *Plugin) Name() string { return p.cfg.Name }

// Instances returns the instances that the plugin runs in now.
func (p *Plugin) Instances() []*Instance {
	var all []*Instance
	for i := range p.seats {
		all = append(all, p.seats[i].in.Load())
	}
	return all
}

// Close waits until the plugin's streams are closed, tells it in every instance that
// it is done, and waits until it is; none of it longer than ctx allows. The last
// plugin takes the VM along. It must not be called from a callback of the plugin.
func (p *Plugin) Close(ctx context.Context) error {
	v := p.vm
	p.drain(ctx)
	v.mu.Lock()
	_, open := v.plugins[p]
	delete(v.plugins, p)
	v.mu.Unlock()
	if !open {
		return nil
	}
	v.leave(ctx, p)
	return v.release(ctx)
}

// leave ends the plugin in all instances.
func (v *vm) leave(ctx context.Context, p *Plugin) {
	var waiting []*root
	for i := range p.seats {
		if r := p.seats[i].in.Load().leave(p); r != nil {
			waiting = append(waiting, r)
		}
	}
	for _, r := range waiting {
		select {
		case <-r.deleted:
		case <-ctx.Done():
			r.in.lock()
			r.finish()
			r.in.unlock()
		}
	}
}

// release gives the VM up, and closes it if no one has it any more.
func (v *vm) release(ctx context.Context) error {
	v.host.mu.Lock()
	v.refs--
	last := v.refs == 0 && v.host.vms[v.key] == v
	if last {
		delete(v.host.vms, v.key)
	}
	v.host.mu.Unlock()
	if !last {
		return nil
	}
	return v.close(ctx)
}

func (v *vm) close(ctx context.Context) error {
	v.mu.Lock()
	v.closed = true
	plugins := v.plugins
	v.plugins = map[*Plugin]struct{}{}
	v.mu.Unlock()
	for p := range plugins {
		v.leave(ctx, p)
	}
	for _, in := range v.workers {
		if in != nil {
			in.close()
		}
	}
	v.cfg.Shared.release(v.cfg.ID)
	return v.module.Close(ctx)
}

// environ is the environment as WASI lays it out: each entry with a zero byte.
func (c *VMConfig) environ() string {
	var b strings.Builder
	for _, e := range c.Env {
		b.WriteString(e)
		b.WriteByte(0)
	}
	return b.String()
}
