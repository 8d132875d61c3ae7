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
// takes the [Stream.Result]. Nothing happens by itself: ticks, answers and time come
// when the test says so.
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
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"

	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// deadline bounds one call into a plugin. It is for plugins that loop, and generous:
// tests run on slow machines.
const deadline = 10 * time.Second

// A Module is a compiled module, from which plugins are started. Compiling takes a
// second or so for a large one: load it once and start it in every subtest.
type Module struct {
	path  string
	wasm  []byte
	cache wazero.CompilationCache
}

// Load reads and compiles the module in a file. A module that cannot run in a proxy, for
// example because it imports a function that there is not, fails the test.
func Load(t testing.TB, path string) *Module {
	t.Helper()
	wasm, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("load module: %v", err)
	}
	ctx := context.Background()
	m := &Module{path: path, wasm: wasm, cache: wazero.NewCompilationCache()}
	t.Cleanup(func() { _ = m.cache.Close(ctx) })
	host, err := m.host(ctx)
	if err != nil {
		t.Fatalf("load %s: %v", path, err)
	}
	// The host is kept, for as long as it is open its code is in the cache.
	t.Cleanup(func() { _ = host.Close(ctx) })
	if _, err := host.Load(ctx, wasm); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return m
}

// host returns a host for one plugin, which shares nothing with any other but code.
func (m *Module) host(ctx context.Context) (*proxywasm.Host, error) {
	return proxywasm.NewHost(ctx, proxywasm.Config{Deadline: deadline, Cache: m.cache})
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
