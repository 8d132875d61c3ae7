package proxywasm

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
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
	// memory, as long as the host.
	Cache wazero.CompilationCache
}

// A Host compiles modules and runs plugins. It is safe for concurrent use.
type Host struct {
	runtime  wazero.Runtime
	deadline time.Duration
	env      map[string]*hostFunc // proxy_* and the like, by name
	wasi     map[string]*hostFunc
	bodies   sync.Pool // of *[]byte, see body

	flight  singleflight.Group
	mu      sync.Mutex
	modules map[[sha256.Size]byte]*Module // nil once closed
	vms     map[vmKey]*vm
}

// NewHost returns a host without modules. Whoever makes it closes it.
func NewHost(ctx context.Context, cfg Config) (*Host, error) {
	pages := min(cmp.Or(cfg.Memory, DefaultMemory)/pageSize, 1<<16)
	rc := wazero.NewRuntimeConfig().WithMemoryLimitPages(uint32(pages)).WithDebugInfoEnabled(false)
	if cfg.Cache != nil {
		rc = rc.WithCompilationCache(cfg.Cache)
	}
	h := &Host{
		runtime:  wazero.NewRuntimeWithConfig(ctx, rc),
		deadline: cmp.Or(cfg.Deadline, DefaultDeadline),
		env:      byName(proxyFunctions()),
		wasi:     byName(wasiFunctions()),
		modules:  map[[sha256.Size]byte]*Module{},
		vms:      map[vmKey]*vm{},
	}
	for name, functions := range map[string]map[string]*hostFunc{
		"env":                    h.env,
		"wasi_snapshot_preview1": h.wasi,
		"wasi_unstable":          h.wasi, // what old toolchains call it; Envoy has both
		interruptModule:          byName([]*hostFunc{interruptFunction()}),
	} {
		if err := h.define(ctx, name, functions); err != nil {
			return nil, errors.Join(fmt.Errorf("define host module %s: %w", name, err), h.runtime.Close(ctx))
		}
	}
	return h, nil
}

func (h *Host) define(ctx context.Context, name string, functions map[string]*hostFunc) error {
	b := h.runtime.NewHostModuleBuilder(name)
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
	vms := h.vms
	h.vms, h.modules = nil, nil
	h.mu.Unlock()
	var errs []error
	for _, v := range vms {
		errs = append(errs, v.close(ctx))
	}
	return errors.Join(append(errs, h.runtime.Close(ctx))...)
}
