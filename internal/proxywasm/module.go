package proxywasm

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// Why a module cannot be loaded.
var (
	ErrABI    = errors.New("missing or unknown Proxy-Wasm ABI version") // Envoy's words
	ErrMalloc = errors.New("exports neither proxy_on_memory_allocate nor malloc")
	ErrMemory = errors.New("neither exports nor imports a memory")
)

// An ImportError says which function a module wants that its host does not have.
type ImportError struct {
	Module, Name string
	Why          string
}

func (e *ImportError) Error() string {
	return fmt.Sprintf("import %s.%s: %s", e.Module, e.Name, e.Why)
}

// A Module is compiled code. It is immutable and safe for concurrent use.
type Module struct {
	Digest  [sha256.Size]byte // of the bytes that were loaded
	Version abi.Version

	host     *Host
	runtime  wazero.Runtime // one of the host's
	compiled wazero.CompiledModule
	exports  [numCallbacks]bool
	malloc   string // name of the export that allocates
	refs     atomic.Int32
}

// Load compiles the module, unless it is loaded already, and checks that it can run
// here. Loading the same bytes at the same time compiles them once; a caller whose ctx
// ends does not stop the others. Whoever loads a module closes it.
//
// Errors: [ErrABI], [ErrMalloc], [ErrMemory], *[ImportError], and whatever makes it no
// valid WebAssembly.
func (h *Host) Load(ctx context.Context, wasm []byte) (*Module, error) {
	digest := sha256.Sum256(wasm)
	if m := h.loaded(digest); m != nil {
		return m, nil
	}
	done := h.flight.DoChan(string(digest[:]), func() (any, error) {
		return h.compile(context.WithoutCancel(ctx), digest, wasm)
	})
	select {
	case r := <-done:
		if r.Err != nil {
			return nil, fmt.Errorf("load module: %w", r.Err)
		}
		if m := h.loaded(digest); m != nil {
			return m, nil
		}
		return nil, fmt.Errorf("load module: %w", errClosed)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// LoadFile is Load for a file.
func (h *Host) LoadFile(ctx context.Context, path string) (*Module, error) {
	wasm, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("load module: %w", err)
	}
	return h.Load(ctx, wasm)
}

// Close gives the module up. Plugins that use it hold it themselves. Its code is freed
// when no one holds it.
func (m *Module) Close(ctx context.Context) error {
	if m.refs.Add(-1) > 0 {
		return nil
	}
	m.host.mu.Lock()
	defer m.host.mu.Unlock()
	if m.refs.Load() > 0 || m.host.modules[m.Digest] != m {
		return nil
	}
	delete(m.host.modules, m.Digest)
	return m.compiled.Close(ctx)
}

func (m *Module) retain() *Module {
	m.refs.Add(1)
	return m
}

// loaded returns the module, held once more, if it is loaded.
func (h *Host) loaded(digest [sha256.Size]byte) *Module {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m := h.modules[digest]; m != nil {
		return m.retain()
	}
	return nil
}

func (h *Host) compile(ctx context.Context, digest [sha256.Size]byte, wasm []byte) (any, error) {
	if h.isLoaded(digest) {
		return nil, nil
	}
	wasm, err := h.prepare(wasm)
	if err != nil {
		return nil, err
	}
	m := &Module{Digest: digest, host: h, runtime: h.runtime}
	m.compiled, err = h.runtime.CompileModule(ctx, wasm)
	if errors.As(err, new(syscall.Errno)) {
		// It is the cache that cannot be read or written, as where the disk is full.
		h.warn.Do(func() { h.log.Warn("compile modules without the compilation cache", "error", err) })
		if m.runtime, err = h.uncached(ctx); err == nil {
			m.compiled, err = m.runtime.CompileModule(ctx, wasm)
		}
	}
	if err != nil {
		return nil, err
	}
	if err := m.check(); err != nil {
		return nil, errors.Join(err, m.compiled.Close(ctx))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.modules == nil {
		return nil, errors.Join(errClosed, m.compiled.Close(ctx))
	}
	h.modules[digest] = m
	return nil, nil
}

func (h *Host) isLoaded(digest [sha256.Size]byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.modules[digest] != nil
}

// check finds out what the module is and whether it fits.
func (m *Module) check() error {
	exports := m.compiled.ExportedFunctions()
	for name := range exports {
		if v, ok := abi.VersionOf(name); ok && v > m.Version {
			m.Version = v
		}
	}
	if m.Version == 0 {
		return ErrABI
	}
	if err := m.checkImports(); err != nil {
		return err
	}
	if len(m.compiled.ExportedMemories()) == 0 {
		return ErrMemory
	}
	return m.checkExports(exports)
}

func (m *Module) checkImports() error {
	for _, def := range m.compiled.ImportedFunctions() {
		module, name, _ := def.Import()
		fail := func(format string, a ...any) error {
			return &ImportError{Module: module, Name: name, Why: fmt.Sprintf(format, a...)}
		}
		f := m.host.function(module, name)
		switch {
		case f == nil:
			return fail("no such function in Proxy-Wasm ABI %s", m.Version)
		case m.Version < f.since || m.Version > f.until:
			return fail("not in Proxy-Wasm ABI %s, which the module declares", m.Version)
		case !slices.Equal(def.ParamTypes(), f.types()) || !slices.Equal(def.ResultTypes(), f.results()):
			return fail("it is %s, the module wants %s", signature(f.types(), f.results()), signature(def.ParamTypes(), def.ResultTypes()))
		}
	}
	return nil
}

func (m *Module) checkExports(exports map[string]api.FunctionDefinition) error {
	for cb := range numCallbacks {
		def, ok := exports[cb.name(m.Version)]
		if !ok {
			continue
		}
		params, results := cb.signature(m.Version)
		if !slices.Equal(def.ParamTypes(), params) || !slices.Equal(def.ResultTypes(), results) {
			return fmt.Errorf("export %s: it must be %s, the module has %s", cb.name(m.Version),
				signature(params, results), signature(def.ParamTypes(), def.ResultTypes()))
		}
		m.exports[cb] = true
	}
	// Envoy prefers malloc, and takes what the specification prefers in its absence.
	for _, name := range []string{"malloc", "proxy_on_memory_allocate"} {
		def, ok := exports[name]
		if !ok {
			continue
		}
		if one := []api.ValueType{api.ValueTypeI32}; !slices.Equal(def.ParamTypes(), one) || !slices.Equal(def.ResultTypes(), one) {
			return fmt.Errorf("export %s: it must be %s, the module has %s", name,
				signature(one, one), signature(def.ParamTypes(), def.ResultTypes()))
		}
		m.malloc = name
		return nil
	}
	return ErrMalloc
}

// signature writes a function's type as WAT does, such as (i32,i32)->(i32).
func signature(params, results []api.ValueType) string {
	names := func(types []api.ValueType) string {
		var s []string
		for _, t := range types {
			s = append(s, api.ValueTypeName(t))
		}
		return "(" + strings.Join(s, ",") + ")"
	}
	return names(params) + "->" + names(results)
}
