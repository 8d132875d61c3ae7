// Package plugintest tests Proxy-Wasm plugins, written in any language, without a
// proxy. It loads the module, configures it, drives requests and connections through
// it, and shows what it did:
//
//	func TestHello(t *testing.T) {
//		m := plugintest.Load(t, "hello.wasm") // or BuildGo(t, ".")
//		p := m.Start(t, plugintest.Config{Plugin: `{"greeting":"hello"}`})
//
//		res := p.Do(plugintest.Request{
//			Path:    "/books",
//			Headers: plugintest.Headers{{"accept", "text/plain"}},
//			Backend: func(plugintest.Request) plugintest.Response {
//				return plugintest.Response{Status: 404, Body: "no such book"}
//			},
//		})
//		if res.Status != 404 || res.Headers.Get("x-greeting") != "hello" {
//			t.Errorf("answer is %d %v", res.Status, res.Headers)
//		}
//		if got := p.Metric("greetings"); got != 1 {
//			t.Errorf("greetings = %d, want 1", got)
//		}
//	}
//
// A request that the plugin holds back, say to ask another service, is begun with
// [Plugin.Begin]; the test then answers the call ([Plugin.Call], [Call.Answer]) and
// takes the [Stream.Result]. Where it matters what the plugin does with each piece, the
// test is client and server itself: [Plugin.Open] for a request, [Plugin.Connect] for a
// connection. Nothing happens by itself: ticks, answers and time come when the test says
// so.
//
// Plugins run as in Envoy 1.40: ABI 0.1.0, 0.2.0 and 0.2.1, with its limits, its order
// of callbacks and its rules for what may be changed when. A plugin that traps fails
// its test ([Config.MayFail]). When a test fails, the calls between plugin and host are
// printed. There are no assertions here: use if, or what you like. Nothing in the
// package is safe for concurrent use; tests may run in parallel, each with plugins of
// its own.
package plugintest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"

	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// deadline bounds one call into a plugin. It is for plugins that loop, and generous:
// tests run on slow machines.
const deadline = 10 * time.Second

// A Module is a compiled module, from which plugins are started. Compiling takes a
// second or so for a large one: load it once and start it in every subtest. Subtests
// that run in parallel may share it.
type Module struct {
	path  string
	wasm  []byte
	cache wazero.CompilationCache

	mu     sync.Mutex
	idle   []place
	used   int  // places that are not idle
	closed bool // the test that loaded it is over
}

// A place is where plugins run, one after the other: those in one host at a time could
// share a VM, and tests are to share nothing but code.
type place struct {
	host   *proxywasm.Host
	module *proxywasm.Module
}

// Load reads and compiles the module in a file. A module that cannot run in a proxy, for
// example because it imports a function that there is not, fails the test.
func Load(t testing.TB, path string) *Module {
	t.Helper()
	wasm, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("load module: %v", err)
	}
	m := &Module{path: path, wasm: wasm, cache: wazero.NewCompilationCache()}
	t.Cleanup(func() {
		if err := m.close(); err != nil {
			t.Errorf("close %s: %v", path, err)
		}
	})
	first, err := m.place()
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if err := m.leave(first); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return m
}

// place returns a place that nobody uses.
func (m *Module) place() (place, error) {
	m.mu.Lock()
	if last := len(m.idle) - 1; last >= 0 {
		at := m.idle[last]
		m.idle = m.idle[:last]
		m.used++
		m.mu.Unlock()
		return at, nil
	}
	m.mu.Unlock()
	ctx := context.Background()
	host, err := proxywasm.NewHost(ctx, proxywasm.Config{Deadline: deadline, Cache: m.cache})
	if err != nil {
		return place{}, err
	}
	module, err := host.Load(ctx, m.wasm)
	if err != nil {
		return place{}, errors.Join(err, host.Close(ctx))
	}
	m.mu.Lock()
	m.used++
	m.mu.Unlock()
	return place{host, module}, nil
}

// leave gives back a place whose plugin is closed.
func (m *Module) leave(at place) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used--
	m.idle = append(m.idle, at)
	return m.free()
}

// close frees what is idle, and has the rest freed when it is.
func (m *Module) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return m.free()
}

// free frees what nobody is going to use. The code goes last: plugins run it until they
// are closed.
func (m *Module) free() error {
	if !m.closed {
		return nil
	}
	var errs []error
	for _, at := range m.idle {
		errs = append(errs, at.host.Close(context.Background()))
	}
	m.idle = nil
	if m.used == 0 {
		errs = append(errs, m.cache.Close(context.Background()))
	}
	return errors.Join(errs...)
}

// BuildGo builds the Go package in a folder, such as ".", with the Go toolchain, for
// wasip1 and as a reactor (-buildmode=c-shared), and loads it. The package imports a
// Proxy-Wasm SDK for Go.
func BuildGo(t testing.TB, folder string) *Module {
	t.Helper()
	path := filepath.Join(t.TempDir(), "plugin.wasm")
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-buildvcs=false", "-ldflags=-s -w", "-o", path, ".")
	cmd.Dir = folder
	// What the tests are built with, such as the race detector, is not for Wasm.
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "GOFLAGS=", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build plugin in %s: %v\n%s", folder, err, out)
	}
	return Load(t, path)
}
