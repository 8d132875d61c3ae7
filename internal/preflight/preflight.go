// Package preflight tries a Wasm module with its plugin configuration, without a
// proxy: it is compiled, started and configured as Envoy would do it when it loads it,
// and what fails is told in words its author understands.
//
// It sends no request through a plugin, fetches nothing, and gives no access to
// anything: calls that a plugin makes while it is configured are accepted and never
// answered. What it refuses, Envoy 1.40 would refuse too, or never finish. Where it
// cannot know (the plugin asked for what only a proxy has, the module uses what this
// host lacks, there was not enough memory to try it) the module passes, and a log line
// says why: to refuse what works is worse than to let pass what does not.
//
// A trial runs in a process of its own ([Config.Command], [Serve]), which a broken
// module may take along, so that neither its memory nor its crash is the caller's.
// Small modules that pass in this process do not need one. Start at [Preflight.Try];
// [FromPlugin] makes a [Trial] out of Envoy's configuration.
package preflight

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/chandler-proxy/chandler/internal/module"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// A Config is everything preflight can be told. The zero value is complete.
type Config struct {
	// Command runs [Serve] in a process of its own, such as {"/usr/bin/chandler",
	// "preflight"}. If it is empty all modules are tried in this process, which is good
	// for tests: its memory grows with them, and a module that loops while it starts is
	// found out only after ten times the deadline.
	Command []string
	// Small is the size in bytes up to which a module is tried in this process first;
	// default 256 KiB, none if negative. If it fails there it is tried again by Command.
	Small int64

	// CacheDir keeps compiled code, which an engine on the same machine can use too; none
	// if empty. Code in it is run: no one else may write there.
	CacheDir string
	// MaxCache is how many bytes are kept in CacheDir; default 256 MiB. The oldest go.
	MaxCache int64

	// Memory is how many bytes a module may have; default 1 GiB, which is Envoy's limit.
	// A plugin that needs more is told that there is none, as in Envoy.
	Memory uint64
	// Deadline is how much processor time a module may take to start and to take its
	// configuration, compilation not counted; default 10 s.
	Deadline time.Duration
	// Patience is how long one trial may take in all; default 2 min. A trial that takes
	// longer passes.
	Patience time.Duration
	// Parallel is how many trials run at once; default half of the processors.
	Parallel int
	// Remember is how many verdicts are remembered; default 1000.
	Remember int

	Log *slog.Logger // default: none
}

// Small modules are tried in this process within these bounds.
const (
	quickMemory   = 64 << 20
	quickDeadline = 100 * time.Millisecond
)

func (c Config) withDefaults() (Config, error) {
	c.Small = cmp.Or(c.Small, 256<<10)
	c.MaxCache = cmp.Or(c.MaxCache, 256<<20)
	c.Memory = cmp.Or(c.Memory, proxywasm.DefaultMemory)
	c.Deadline = cmp.Or(c.Deadline, 10*time.Second)
	c.Patience = cmp.Or(c.Patience, 2*time.Minute)
	c.Parallel = cmp.Or(c.Parallel, max(1, runtime.GOMAXPROCS(0)/2))
	c.Remember = cmp.Or(c.Remember, 1000)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Deadline < 0 || c.Patience < 0 || c.Parallel < 0 || c.Remember < 0 || c.MaxCache < 0 {
		return c, errors.New("preflight: a bound is negative")
	}
	if c.CacheDir == "" {
		return c, nil
	}
	if err := os.MkdirAll(c.CacheDir, 0o700); err != nil {
		return c, fmt.Errorf("make preflight cache: %w", err)
	}
	return c, nil
}

// A Trial is a module and what it is loaded with.
type Trial struct {
	Path            string            // the module file
	Digest          module.Digest     // of it; if it is zero the verdict is not remembered
	Name            string            // of the plugin
	RootID          string            // root_id
	Configuration   []byte            // of the plugin, as the guest sees it
	VMConfiguration []byte            // of the VM, likewise
	VMID            string            // vm_id
	Env             map[string]string // environment variables
	Network         bool              // it is to be a network filter, not an HTTP filter
}

// key tells trials apart.
func (t Trial) key() string {
	path := t.Path
	if !t.Digest.IsZero() {
		path = "" // the same module elsewhere is the same module
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s %q %q %q %q %q %q %q %t", t.Digest, path, t.Name, t.RootID, t.Configuration, t.VMConfiguration, t.VMID, t.Env, t.Network)
	return string(h.Sum(nil))
}

// A Refusal says why a module does not work with its configuration.
type Refusal struct {
	Reason string   // such as "trapped in proxy_on_configure: unreachable"
	Log    []string // what the module logged last, a few lines
}

func (r *Refusal) Error() string {
	if len(r.Log) == 0 {
		return r.Reason
	}
	return r.Reason + ": " + strings.Join(r.Log, "; ")
}

// A verdict is what came of a trial. It passed unless it is refused without doubt.
type verdict struct {
	Reason   string   // why it is refused
	Log      []string // what it logged last
	Doubt    string   // why nothing can be said
	Note     string   // what is odd, yet no reason to refuse it
	fleeting bool     // may be another next time
}

func (v verdict) passed() bool { return v.Reason == "" || v.Doubt != "" }

func (v verdict) err() error {
	if v.passed() {
		return nil
	}
	return &Refusal{Reason: v.Reason, Log: v.Log}
}

// A Preflight tries modules and remembers what came of it. It is safe for concurrent
// use.
type Preflight struct {
	cfg    Config
	slots  chan struct{}
	flight singleflight.Group

	mu       sync.Mutex
	verdicts map[string]verdict
	order    []string // keys of verdicts, oldest first
}

// New makes the cache's folder if there is to be one.
func New(cfg Config) (*Preflight, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Preflight{cfg: cfg, slots: make(chan struct{}, cfg.Parallel), verdicts: map[string]verdict{}}, nil
}

// Try returns a *[Refusal] if the module does not work with its configuration. Any
// other error means that it was not tried: the file cannot be read, or ctx ended. The
// same trial is made once, however many want it; it goes on when ctx ends.
func (p *Preflight) Try(ctx context.Context, t Trial) error {
	key := t.key()
	if v, ok := p.remembered(key); ok {
		return v.err()
	}
	done := p.flight.DoChan(key, func() (any, error) {
		return p.try(context.WithoutCancel(ctx), key, t)
	})
	select {
	case r := <-done:
		if r.Err != nil {
			return r.Err
		}
		return r.Val.(verdict).err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (p *Preflight) try(ctx context.Context, key string, t Trial) (verdict, error) {
	if v, ok := p.remembered(key); ok { // while this was on its way here
		return v, nil
	}
	p.slots <- struct{}{}
	defer func() { <-p.slots }()
	v, err := p.run(ctx, t)
	if err != nil {
		return v, err
	}
	if err := prune(p.cfg.CacheDir, p.cfg.MaxCache); err != nil {
		p.cfg.Log.Warn("preflight cache not pruned", "err", err)
	}
	if v.Doubt != "" {
		p.cfg.Log.Warn("module passes preflight without a verdict", "module", t.Digest, "plugin", t.Name, "why", v.Doubt)
	}
	if v.Note != "" {
		p.cfg.Log.Warn("module is odd", "module", t.Digest, "plugin", t.Name, "how", v.Note)
	}
	if !t.Digest.IsZero() && !v.fleeting {
		p.remember(key, v)
	}
	return v, nil
}

// run tries the module where it is best tried.
func (p *Preflight) run(ctx context.Context, t Trial) (verdict, error) {
	info, err := os.Stat(t.Path)
	if err != nil {
		return verdict{}, fmt.Errorf("try module: %w", err)
	}
	all := bounds{Memory: p.cfg.Memory, Deadline: p.cfg.Deadline, CacheDir: p.cfg.CacheDir}
	if len(p.cfg.Command) == 0 {
		defer debug.FreeOSMemory() // a compiler's heap is many times its module
		return try(ctx, t, all, new(watch))
	}
	if info.Size() <= p.cfg.Small {
		quick := bounds{Memory: min(quickMemory, p.cfg.Memory), Deadline: min(quickDeadline, p.cfg.Deadline)}
		if v, err := try(ctx, t, quick, new(watch)); err == nil && v.Reason == "" && v.Doubt == "" {
			return v, nil
		}
	}
	return p.apart(ctx, request{Trial: t, Bounds: all}), nil
}

func (p *Preflight) remembered(key string) (verdict, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, ok := p.verdicts[key]
	return v, ok
}

func (p *Preflight) remember(key string, v verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.verdicts[key] = v
	p.order = append(p.order, key)
	for len(p.order) > p.cfg.Remember {
		delete(p.verdicts, p.order[0])
		p.order = p.order[1:]
	}
}
