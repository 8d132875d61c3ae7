package preflight

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/tetratelabs/wazero"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/module"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
	"github.com/chandler-proxy/chandler/internal/proxywasm/expr"
)

// bounds are what a module may use.
type bounds struct {
	Memory   uint64
	Deadline time.Duration
	CacheDir string
	// Leave leaves the guest as it is after the trial, because the process ends anyway.
	Leave bool
}

// try compiles, starts and configures the module in this process, watched by w. An
// error means that the module cannot be read.
func try(ctx context.Context, t Trial, b bounds, w *watch) (verdict, error) {
	wasm, err := os.ReadFile(t.Path)
	if err != nil {
		return verdict{}, fmt.Errorf("try module: %w", err)
	}
	info, broken := module.Inspect(bytes.NewReader(wasm))
	if why := importsMore(info); why != "" {
		return verdict{Doubt: why}, nil
	}
	err = open(ctx, wasm, t, b, w)
	if err != nil && ctx.Err() != nil {
		return verdict{}, context.Cause(ctx)
	}
	if errors.Is(err, proxywasm.ErrDeadline) {
		return verdict{Reason: late(b.Deadline, w.where()), Log: w.last()}, nil
	}
	v := judge(err, broken)
	if v.Reason != "" {
		v.Log, v.Doubt = w.last(), cmp.Or(v.Doubt, w.why())
	}
	v.Note = useless(t, info)
	return v, nil
}

func late(deadline time.Duration, where string) string {
	return fmt.Sprintf("did not finish within %s, in %s", deadline, where)
}

// open returns what keeps the module from being loaded.
func open(ctx context.Context, wasm []byte, t Trial, b bounds, w *watch) error {
	err := openWith(ctx, wasm, t, b, w)
	if b.CacheDir != "" && judge(err, nil).Doubt != "" {
		b.CacheDir = "" // which may be what is broken, or full
		err = openWith(ctx, wasm, t, b, w)
	}
	return err
}

// A compileError is an error of loading, not of running.
type compileError struct{ error }

func (e *compileError) Unwrap() error { return e.error }

func openWith(ctx context.Context, wasm []byte, t Trial, b bounds, w *watch) error {
	cfg := proxywasm.Config{Memory: b.Memory, Deadline: b.Deadline}
	over, end := context.WithCancel(ctx)
	end() // a plugin that is done is not waited for
	if b.CacheDir != "" {
		cache, err := wazero.NewCompilationCacheWithDir(b.CacheDir)
		if err != nil {
			return &compileError{err}
		}
		if !b.Leave {
			defer cache.Close(over)
		}
		cfg.Cache = cache
	}
	host, err := proxywasm.NewHost(ctx, cfg)
	if err != nil {
		return &compileError{err}
	}
	if !b.Leave {
		defer host.Close(over)
	}
	m, err := host.Load(ctx, wasm)
	if err != nil {
		return &compileError{err}
	}
	services := proxywasm.Services{
		Log:       w,
		Calls:     silence{},
		Foreign:   proxywasm.EnvoyForeign(),
		AfterFunc: func(time.Duration, func()) proxywasm.Timer { return noTimer{} },
		Go:        func(func()) {}, // nothing is due to a plugin that is only tried
		Trace:     w.trace,
	}
	expr.Register(&services)
	w.begin()
	_, err = host.Open(ctx, proxywasm.PluginConfig{
		Name: t.Name, RootID: t.RootID, Configuration: t.Configuration,
		VM: proxywasm.VMConfig{
			Module: m, ID: t.VMID, Configuration: t.VMConfiguration, Env: environ(t.Env), Workers: 1,
			Services: services,
		},
	})
	return err
}

func environ(env map[string]string) []string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(env)) {
		list = append(list, name+"="+env[name])
	}
	return list
}

// importsMore says what the module imports that Envoy has and this host does not.
// Envoy makes any memory and any table that a module imports.
func importsMore(info module.Info) string {
	for _, i := range info.Imports {
		if i.Kind == module.Memory || i.Kind == module.Table {
			return fmt.Sprintf("it imports its %s, which only a proxy can give", i.Kind)
		}
	}
	return ""
}

// useless says that the module has no callback for the kind of filter it is to be.
func useless(t Trial, info module.Info) string {
	wanted, what := []string{"proxy_on_request_headers", "proxy_on_request_body", "proxy_on_request_trailers",
		"proxy_on_response_headers", "proxy_on_response_body", "proxy_on_response_trailers", "proxy_on_log"}, "requests"
	if t.Network {
		wanted, what = []string{"proxy_on_new_connection", "proxy_on_downstream_data", "proxy_on_upstream_data",
			"proxy_on_downstream_connection_close", "proxy_on_upstream_connection_close", "proxy_on_log"}, "connections"
	}
	for _, e := range info.Exports {
		if slices.Contains(wanted, e.Name) {
			return ""
		}
	}
	return "it has no callback for " + what
}

// silence accepts all calls and answers none.
type silence struct{}

func (silence) HTTPCall(proxywasm.HTTPCall, func(proxywasm.HTTPAnswer)) (func(), abi.Status) {
	return func() {}, abi.OK
}

func (silence) GRPCCall(proxywasm.GRPCCall, proxywasm.GRPCEvents) (func(), abi.Status) {
	return func() {}, abi.OK
}

func (silence) GRPCStream(proxywasm.GRPCCall, proxywasm.GRPCEvents) (proxywasm.GRPCStream, abi.Status) {
	return silence{}, abi.OK
}

func (silence) Send(string, bool) {}
func (silence) Close()            {}
func (silence) Cancel()           {}

// noTimer never fires.
type noTimer struct{}

func (noTimer) Stop() bool { return true }

// judge tells what an error of loading means. broken is what is wrong with the
// module's framing.
func judge(err, broken error) verdict {
	var missing *proxywasm.ImportError
	compile := new(compileError)
	switch {
	case err == nil:
		return verdict{}
	case errors.As(err, &missing):
		return verdict{Reason: fmt.Sprintf("missing import %s.%s: %s", missing.Module, missing.Name, missing.Why)}
	case errors.Is(err, proxywasm.ErrABI):
		return verdict{Reason: "no Proxy-Wasm ABI version exported that proxies know (0.1.0, 0.2.0, 0.2.1)"}
	case errors.Is(err, proxywasm.ErrMalloc), errors.Is(err, proxywasm.ErrMemory):
		return verdict{Reason: inner(err).Error()}
	case errors.As(err, &compile):
		return judgeCompile(inner(err), broken)
	case errors.Is(err, proxywasm.ErrVMStart):
		return verdict{Reason: "refused its VM configuration"}
	case errors.Is(err, proxywasm.ErrConfigure):
		return verdict{Reason: "refused its configuration"}
	}
	return verdict{Reason: judgeTrap(inner(err).Error())}
}

// judgeCompile is judge for a module that does not compile. It may be one that uses a
// newer WebAssembly than this host has, and Envoy's does not.
func judgeCompile(err, broken error) verdict {
	switch text := err.Error(); {
	case strings.HasPrefix(text, "export "): // a callback of the wrong shape
		return verdict{Reason: text}
	case broken != nil:
		return verdict{Reason: broken.Error()}
	default:
		return verdict{Reason: text, Doubt: "it cannot be compiled here: " + text}
	}
}

// judgeTrap makes "trapped in proxy_on_configure: unreachable" of "proxy_on_configure:
// wasm error: unreachable" and a stack trace.
func judgeTrap(text string) string {
	text, _, _ = strings.Cut(text, "\n")
	text = strings.TrimPrefix(text, "start module: ")
	where, why, ok := strings.Cut(text, "wasm error: ")
	if !ok {
		return text
	}
	where = strings.TrimSuffix(where, ": ")
	callback, exit, ok := strings.Cut(where, ": module ")
	if ok {
		return exit + " in " + callback
	}
	return "trapped in " + where + ": " + why
}

// inner is the error without what the host says of which plugin or module it was.
func inner(err error) error {
	if e := new(compileError); errors.As(err, &e) {
		err = e.error
	}
	if e := errors.Unwrap(err); e != nil {
		return e
	}
	return err
}
