package proxywasm

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/tetratelabs/wazero"
	"golang.org/x/sync/singleflight"
)

// Limits of a [Config] that says nothing.
const (
	DefaultMemory   = 1 << 30 // bytes a guest may have; Envoy's limit
	DefaultDeadline = time.Second
)

const pageSize = 1 << 16

// A Config is everything a host can be told. The zero value is complete.
type Config struct {
	// Memory is how many bytes of memory an instance may have, in whole pages of 64
	// KiB; default DefaultMemory. A guest that wants more is told that there is none.
	Memory uint64
	// Deadline is how long one call into a guest may take, its start excepted, which
	// may take ten times as long. Default DefaultDeadline; less than zero means
	// forever, which lets a guest hold a thread as long as it likes.
	Deadline time.Duration
	// Cache keeps compiled code, also on disk; see
	// [wazero.NewCompilationCacheWithDir]. It must outlive the host. Default: in
	// memory, as long as the host. A module is compiled without it if it fails.
	Cache wazero.CompilationCache
	// Log is told once that the cache fails; nil is not.
	Log *slog.Logger
}

// A Host compiles modules and runs plugins. It is safe for concurrent use.
type Host struct {
	runtime  wazero.Runtime
	plain    wazero.RuntimeConfig // of a runtime without the cache
	deadline time.Duration
	log      *slog.Logger
	warn     sync.Once            // of the cache
	env      map[string]*hostFunc // proxy_* and the like, by name
	wasi     map[string]*hostFunc
	bodies   sync.Pool // of *[]byte, see body

	flight  singleflight.Group
	mu      sync.Mutex
	modules map[[sha256.Size]byte]*Module // nil once closed
	vms     map[vmKey]*vm
	spare   wazero.Runtime // without the cache; nil as long as none was needed
}

var errClosed = errors.New("host is closed")

// NewHost returns a host without modules. Whoever makes it closes it.
func NewHost(ctx context.Context, cfg Config) (*Host, error) {
	h := &Host{
		deadline: cmp.Or(cfg.Deadline, DefaultDeadline),
		log:      cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)),
		env:      byName(proxyFunctions()),
		wasi:     byName(wasiFunctions()),
		modules:  map[[sha256.Size]byte]*Module{},
		vms:      map[vmKey]*vm{},
	}
	pages := min(cmp.Or(cfg.Memory, DefaultMemory)/pageSize, 1<<16)
	h.plain = wazero.NewRuntimeConfig().WithMemoryLimitPages(uint32(pages)).WithDebugInfoEnabled(false)
	rc := h.plain
	if cfg.Cache != nil {
		rc = rc.WithCompilationCache(cfg.Cache)
	}
	var err error
	if h.runtime, err = h.newRuntime(ctx, rc); err != nil {
		return nil, err
	}
	return h, nil
}

// uncached is the runtime for modules that the cache fails for.
func (h *Host) uncached(ctx context.Context) (wazero.Runtime, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.modules == nil:
		return nil, errClosed
	case h.spare != nil:
		return h.spare, nil
	}
	var err error
	h.spare, err = h.newRuntime(ctx, h.plain)
	return h.spare, err
}

// newRuntime makes a runtime that has the host functions.
func (h *Host) newRuntime(ctx context.Context, cfg wazero.RuntimeConfig) (wazero.Runtime, error) {
	r := wazero.NewRuntimeWithConfig(ctx, cfg)
	for name, functions := range map[string]map[string]*hostFunc{
		"env":                    h.env,
		"wasi_snapshot_preview1": h.wasi,
		"wasi_unstable":          h.wasi, // what old toolchains call it; Envoy has both
		interruptModule:          byName([]*hostFunc{interruptFunction()}),
	} {
		if err := define(ctx, r, name, functions); err != nil {
			return nil, errors.Join(fmt.Errorf("define host module %s: %w", name, err), r.Close(ctx))
		}
	}
	return r, nil
}

func define(ctx context.Context, r wazero.Runtime, name string, functions map[string]*hostFunc) error {
	b := r.NewHostModuleBuilder(name)
	for _, f := range functions {
		b.NewFunctionBuilder().WithGoModuleFunction(f.entry(), f.types(), f.results()).Export(f.name)
	}
	_, err := b.Instantiate(ctx)
	return err
}

// function returns the host function of that name, or nil.
func (h *Host) function(module, name string) *hostFunc {
	switch module {
	case "env":
		return h.env[name]
	case "wasi_snapshot_preview1", "wasi_unstable":
		return h.wasi[name]
	case interruptModule:
		return interruptFunction()
	}
	return nil
}

// Close closes every instance and frees all code. Plugins are told first where ctx
// leaves time, see [Plugin.Close].
func (h *Host) Close(ctx context.Context) error {
	h.mu.Lock()
	vms, spare := h.vms, h.spare
	h.vms, h.modules, h.spare = nil, nil, nil
	h.mu.Unlock()
	var errs []error
	for _, v := range vms {
		errs = append(errs, v.close(ctx))
	}
	if spare != nil {
		errs = append(errs, spare.Close(ctx))
	}
	return errors.Join(append(errs, h.runtime.Close(ctx))...)
}
