//go:build e2e

package template

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chandler-proxy/chandler/internal/artifact"
	"github.com/chandler-proxy/chandler/internal/artifact/toolchain"
	"github.com/chandler-proxy/chandler/internal/spec"
)

// patience is how long one Envoy may take, from start to end.
const patience = time.Minute

// TestPlugins begins a plugin in every language, tests and builds it as its README says,
// runs its tests in YAML, and runs it in Envoy and in the engine.
func TestPlugins(t *testing.T) {
	const config = `{"x-hello": "world", "x-quoted": "a \"b\""}`
	for _, tt := range []struct {
		language toolchain.Language
		abi      string
		setup    []string
		test     []string
	}{
		{toolchain.Go, "0.2.0", nil, []string{"go", "test", "."}},
		{toolchain.Rust, "0.2.1", nil, []string{"cargo", "test", "--quiet"}},
		{toolchain.Cpp, "0.2.1", nil, []string{"make", "test"}},
		{toolchain.AssemblyScript, "0.2.1", []string{"npm", "install", "--silent"}, []string{"npm", "test", "--silent"}},
	} {
		t.Run(string(tt.language), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "hello")
			if err := Write(dir, tt.language, "hello"); err != nil {
				t.Fatal(err)
			}
			if tt.language == toolchain.AssemblyScript {
				_, err := toolchain.Build(t.Context(), dir, tt.language, io.Discard)
				if _, ok := errors.AsType[*toolchain.MissingError](err); !ok {
					t.Errorf("Build before npm install = %v, want what is missing", err)
				}
			}
			for _, args := range [][]string{tt.setup, tt.test} {
				if args == nil {
					continue
				}
				cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
				cmd.Dir = dir
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
				}
			}
			var said bytes.Buffer
			wasm, err := toolchain.Build(t.Context(), dir, tt.language, &said)
			if err != nil {
				t.Fatalf("%v\n%s", err, &said)
			}
			again, err := toolchain.Build(t.Context(), dir, tt.language, &said)
			if err != nil || !bytes.Equal(wasm, again) {
				t.Errorf("the same source makes another module: %v", err)
			}
			info, err := artifact.Check(wasm)
			if err != nil || info.ABI != tt.abi {
				t.Fatalf("Check = ABI %s, %v", info.ABI, err)
			}
			file := filepath.Join(t.TempDir(), "plugin.wasm")
			if err := artifact.WriteFile(file, bytes.NewReader(wasm)); err != nil {
				t.Fatal(err)
			}

			testModule(t, dir, file)
			url, log := startEnvoy(t, file, config)
			if url == "" {
				t.Fatalf("Envoy does not take the plugin:\n%s", log)
			}
			try(t, url)
			url, log = startEngine(t, file, config)
			if url == "" {
				t.Fatalf("the engine does not take the plugin: %s", log)
			}
			try(t, url)
			if url, log := startEngine(t, file, `{"x-hello": 1}`); url != "" || !strings.Contains(log, "refused the plugin configuration") {
				t.Errorf("the plugin takes a number for a header in the engine: %s", log)
			}
			if url, _ := startEnvoy(t, file, `{"x-hello": 1}`); url != "" {
				t.Error("the plugin takes a number for a header")
			}
			if tt.language == toolchain.Cpp { // clang++ itself does as well
				if err := os.Remove(filepath.Join(dir, "Makefile")); err != nil {
					t.Fatal(err)
				}
				plain, err := toolchain.Build(t.Context(), dir, tt.language, &said)
				if err != nil || !bytes.Equal(plain, wasm) {
					t.Errorf("without the Makefile another module is built: %v", err)
				}
			}
			if url, log := startEnvoy(t, file, ""); url == "" {
				t.Errorf("the plugin wants a configuration:\n%s", log)
			}
		})
	}
}

// testModule runs the plugin's tests, as chandler plugin test does.
func testModule(t *testing.T, dir, module string) {
	t.Helper()
	files, err := spec.Find(dir)
	if err != nil || len(files) == 0 {
		t.Fatalf("tests are %q, %v", files, err)
	}
	for _, file := range files {
		suite, err := spec.Load(file, spec.Options{Module: module})
		if err != nil {
			t.Fatal(err)
		}
		passed, err := spec.RunAll(t.Context(), []*spec.Suite{suite}, spec.Config{}, func(e spec.Event) {
			if e.Action == spec.Output {
				t.Log(e.Text)
			}
		})
		if !passed || err != nil {
			t.Errorf("the tests in %s fail: %v", file, err)
		}
	}
}

// try asks for a page whose response has the headers of the configuration: more often
// than once, to have both workers at it.
func try(t *testing.T, url string) {
	t.Helper()
	for range 50 {
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 || resp.Header.Get("x-hello") != "world" || resp.Header.Get("x-quoted") != `a "b"` {
			t.Fatalf("answer %d with headers %v", resp.StatusCode, resp.Header)
		}
	}
}

// bootstrap has one listener that answers 200 itself, with the plugin before it.
func bootstrap(module, config string) map[string]any {
	type m = map[string]any
	typed := func(url string, more m) m {
		more["@type"] = "type.googleapis.com/" + url
		return more
	}
	loopback := m{"socket_address": m{"address": "127.0.0.1", "port_value": 0}}
	plugin := m{
		"name":      "plugin",
		"vm_config": m{"runtime": "envoy.wasm.runtime.v8", "code": m{"local": m{"filename": module}}},
	}
	if config != "" {
		plugin["configuration"] = typed("google.protobuf.StringValue", m{"value": config})
	}
	return m{
		"admin": m{"address": loopback},
		"static_resources": m{"listeners": []m{{
			"name": "test", "address": loopback,
			"filter_chains": []m{{"filters": []m{{
				"name": "hcm",
				"typed_config": typed("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", m{
					"stat_prefix": "test",
					"route_config": m{"virtual_hosts": []m{{"name": "all", "domains": []string{"*"}, "routes": []m{{
						"match": m{"prefix": "/"}, "direct_response": m{"status": 200},
					}}}}},
					"http_filters": []m{
						{"name": "plugin", "typed_config": typed("envoy.extensions.filters.http.wasm.v3.Wasm", m{"config": plugin})},
						{"name": "router", "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", m{})},
					},
				}),
			}}}},
		}}},
	}
}

// startEnvoy runs Envoy, with two workers, until the test ends, and returns the URL of
// its listener, or what it said when it gave up.
func startEnvoy(t *testing.T, module, config string) (url, log string) {
	t.Helper()
	envoy := os.Getenv("CHANDLER_ENVOY")
	if envoy == "" {
		t.Fatal("CHANDLER_ENVOY is not set: run make e2e")
	}
	text, err := json.Marshal(bootstrap(module, config))
	if err != nil {
		t.Fatal(err)
	}
	admin := filepath.Join(t.TempDir(), "admin")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	cmd := exec.CommandContext(ctx, envoy, "--config-yaml", string(text), "--admin-address-path", admin,
		"--concurrency", "2", "--use-dynamic-base-id")
	read, write := io.Pipe()
	cmd.Stdout, cmd.Stderr = write, write
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait() // how it ends, its log says
		write.Close()
		close(exited)
	}()
	t.Cleanup(func() { cancel(); <-exited })

	var said strings.Builder
	for lines := bufio.NewScanner(read); lines.Scan(); {
		if !strings.Contains(lines.Text(), "[info]") {
			said.WriteString(lines.Text() + "\n")
		}
		if strings.Contains(lines.Text(), "starting main dispatch loop") {
			go io.Copy(io.Discard, read) // ends as Envoy does
			return listener(t, admin), ""
		}
	}
	if ctx.Err() != nil {
		t.Fatalf("Envoy is not ready after %v:\n%s", patience, &said)
	}
	return "", said.String()
}

// listener asks Envoy where its listener is.
func listener(t *testing.T, adminPath string) string {
	t.Helper()
	admin, err := os.ReadFile(adminPath)
	if err != nil {
		t.Fatal(err)
	}
	return listenerOf(t, string(admin))
}

// listenerOf asks the admin interface where the one listener is.
func listenerOf(t *testing.T, admin string) string {
	t.Helper()
	resp, err := http.Get("http://" + admin + "/listeners")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	_, address, ok := strings.Cut(strings.TrimSpace(string(text)), "::")
	if !ok {
		t.Fatalf("listeners = %q", text)
	}
	return "http://" + address
}
