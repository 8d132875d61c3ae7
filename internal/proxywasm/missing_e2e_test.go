//go:build e2e

package proxywasm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tetratelabs/wazero/api"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// TestEnvoyHasWhatIsNotMissing has Envoy load modules that import all that a
// version of the ABI has, by name and type, and one that imports more.
func TestEnvoyHasWhatIsNotMissing(t *testing.T) {
	for _, version := range []abi.Version{abi.V010, abi.V020, abi.V021} {
		t.Run(version.String(), func(t *testing.T) {
			if log, ok := envoyLoads(t, importAll(version)); !ok {
				t.Errorf("Envoy refuses a module:\n%s", log)
			}
			surplus := `(import "env" "proxy_no_such_thing" (func))` + importAll(version)
			if log, ok := envoyLoads(t, surplus); ok {
				t.Errorf("Envoy takes a module that imports what there is not:\n%s", log)
			}
			for _, f := range wasiFunctions() {
				if !misfits(f) {
					continue
				}
				if log, ok := envoyLoads(t, importWASI(f)+importAll(version)); ok {
					t.Errorf("Envoy takes a module that imports %s as WASI has it:\n%s", f.name, log)
				}
			}
		})
	}
}

// importAll is a module, as text, that imports every function of the version.
func importAll(version abi.Version) string {
	var b strings.Builder
	add := func(module string, functions []*hostFunc) {
		for _, f := range functions {
			if version < f.since || version > f.until {
				continue
			}
			b.WriteString(importFunc(module, f))
		}
	}
	add("env", proxyFunctions())
	add("wasi_snapshot_preview1", wasiFunctions())
	add("wasi_unstable", wasiFunctions())
	fmt.Fprintf(&b, `(memory (export "memory") 1)
		(func (export "proxy_abi_version_%s"))
		(func (export "malloc") (param i32) (result i32) (i32.const 1024))
		(func (export "proxy_on_context_create") (param i32 i32))
		(func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
		(func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 1))
	`, strings.ReplaceAll(version.String(), ".", "_"))
	return b.String()
}

func importFunc(module string, f *hostFunc) string {
	return fmt.Sprintf("(import %q %q (func (param %s) (result %s)))\n", module, f.name, typeNames(f.types()), typeNames(f.results()))
}

// importWASI imports a misfit with the type that WASI has: a length more.
func importWASI(f *hostFunc) string {
	return fmt.Sprintf("(import %q %q (func (param %s i32) (result i32)))\n", f.module, f.name, typeNames(f.types()))
}

// TestEnvoyTakesMemory has Envoy and the host load modules whose memory is not as usual.
func TestEnvoyTakesMemory(t *testing.T) {
	const rest = `(func (export "proxy_abi_version_0_2_1")) (func (export "malloc") (param i32) (result i32) (i32.const 1024))`
	for name, fields := range map[string]string{
		"imported":              `(import "env" "memory" (memory 1))` + rest,
		"imported and exported": `(import "env" "memory" (memory 1 2)) (export "memory" (memory 0))` + rest,
		"from elsewhere":        `(import "x" "y" (memory 1))` + rest,
		"of another name":       `(memory (export "mem") 1)` + rest,
	} {
		t.Run(name, func(t *testing.T) {
			if log, ok := envoyLoads(t, fields); !ok {
				t.Errorf("Envoy refuses it:\n%s", log)
			}
			host, err := NewHost(t.Context(), Config{})
			if err != nil {
				t.Fatal(err)
			}
			m, err := host.Load(t.Context(), assembleText(t, "(module "+fields+")"))
			if err != nil {
				t.Fatalf("the host refuses it: %v", err)
			}
			if err := errors.Join(m.Close(t.Context()), host.Close(t.Context())); err != nil {
				t.Error(err)
			}
		})
	}
}

// assembleText makes a module of text.
func assembleText(t *testing.T, text string) []byte {
	t.Helper()
	in, out := filepath.Join(t.TempDir(), "m.wat"), filepath.Join(t.TempDir(), "m.wasm")
	if err := os.WriteFile(in, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if msg, err := exec.Command("wat2wasm", "-o", out, in).CombinedOutput(); err != nil {
		t.Fatalf("wat2wasm: %v\n%s", err, msg)
	}
	wasm, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

func typeNames(types []api.ValueType) string {
	var names []string
	for _, t := range types {
		names = append(names, api.ValueTypeName(t))
	}
	return strings.Join(names, " ")
}

// envoyLoads starts Envoy with a listener that has the module, whose fields are
// given as text, and says whether it came up.
func envoyLoads(t *testing.T, fields string) (log string, ok bool) {
	t.Helper()
	envoy := os.Getenv("CHANDLER_ENVOY")
	if envoy == "" {
		t.Fatal("CHANDLER_ENVOY is not set: run make e2e")
	}
	dir := t.TempDir()
	text, wasm := filepath.Join(dir, "all.wat"), filepath.Join(dir, "all.wasm")
	if err := os.WriteFile(text, []byte("(module "+fields+")"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("wat2wasm", "-o", wasm, text).CombinedOutput(); err != nil {
		t.Fatalf("wat2wasm: %v\n%s", err, out)
	}
	type m = map[string]any
	loopback := m{"socket_address": m{"address": "127.0.0.1", "port_value": 0}}
	bootstrap, err := json.Marshal(m{"static_resources": m{"listeners": []m{{
		"name": "test", "address": loopback,
		"filter_chains": []m{{"filters": []m{
			{"name": "wasm", "typed_config": m{
				"@type": "type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm",
				"config": m{"name": "all", "vm_config": m{
					"runtime": "envoy.wasm.runtime.v8", "code": m{"local": m{"filename": wasm}},
				}},
			}},
			{"name": "echo", "typed_config": m{"@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"}},
		}}},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, envoy, "--config-yaml", string(bootstrap), "--concurrency", "1", "--use-dynamic-base-id")
	var out strings.Builder
	watch := &endAt{out: &out, mark: "starting main dispatch loop", end: cancel}
	cmd.Stdout, cmd.Stderr = watch, watch
	err = cmd.Run()
	if err == nil {
		t.Fatalf("Envoy ends by itself:\n%s", &out)
	}
	for line := range strings.Lines(out.String()) {
		if !strings.Contains(line, "[info]") {
			log += line
		}
	}
	return log, watch.seen
}

// endAt calls end when it has seen the mark.
type endAt struct {
	out  *strings.Builder
	mark string
	end  func()
	seen bool
}

func (w *endAt) Write(p []byte) (int, error) {
	w.out.Write(p)
	if !w.seen && strings.Contains(w.out.String(), w.mark) {
		w.seen = true
		w.end()
	}
	return len(p), nil
}
