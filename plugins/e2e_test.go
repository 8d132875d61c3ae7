//go:build e2e

package plugins

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long one Envoy may take, from start to end.
const patience = time.Minute

// bootstrap has one listener that answers 200 itself, with the filter before it.
// JSON is YAML: Envoy takes it so.
func bootstrap(module, config string) map[string]any {
	type m = map[string]any
	typed := func(url string, more m) m {
		more["@type"] = "type.googleapis.com/" + url
		return more
	}
	loopback := m{"socket_address": m{"address": "127.0.0.1", "port_value": 0}}
	return m{
		"admin": m{"address": loopback},
		"static_resources": m{"listeners": []m{{
			"name":    "test",
			"address": loopback,
			"filter_chains": []m{{"filters": []m{{
				"name": "hcm",
				"typed_config": typed("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", m{
					"stat_prefix": "test",
					"route_config": m{"virtual_hosts": []m{{"name": "all", "domains": []string{"*"}, "routes": []m{{
						"match":           m{"prefix": "/"},
						"direct_response": m{"status": 200, "body": m{"inline_string": "hello\n"}},
					}}}}},
					"http_filters": []m{
						{"name": "plugin", "typed_config": typed("envoy.extensions.filters.http.wasm.v3.Wasm", m{"config": m{
							"name":          "plugin",
							"configuration": typed("google.protobuf.StringValue", m{"value": config}),
							"vm_config":     m{"runtime": "envoy.wasm.runtime.v8", "code": m{"local": m{"filename": module}}},
						}})},
						{"name": "router", "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", m{})},
					},
				}),
			}}}},
		}}},
	}
}

// An envoy is a real Envoy that runs one module.
type envoy struct {
	admin, listener string // URLs
}

// start runs Envoy, with two workers, until the test ends. If Envoy gives up
// it returns its log instead.
func start(t *testing.T, module, config string) (*envoy, string) {
	t.Helper()
	path := os.Getenv("CHANDLER_ENVOY")
	if path == "" {
		t.Fatal("CHANDLER_ENVOY is not set: run make e2e")
	}
	dir := t.TempDir()
	text, err := json.Marshal(bootstrap(module, config))
	if err != nil {
		t.Fatal(err)
	}
	bootstrap, adminPath := filepath.Join(dir, "envoy.json"), filepath.Join(dir, "admin")
	if err := os.WriteFile(bootstrap, text, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	cmd := exec.CommandContext(ctx, path, "-c", bootstrap, "--admin-address-path", adminPath,
		"--concurrency", "2", "--use-dynamic-base-id", "--log-level", "info")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
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

	var log strings.Builder
	lines := bufio.NewScanner(read)
	for lines.Scan() {
		log.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), "starting main dispatch loop") {
			go io.Copy(io.Discard, read) // ends as Envoy does
			return &envoy{admin: "http://" + readFile(t, adminPath), listener: "http://" + listener(t, readFile(t, adminPath))}, ""
		}
	}
	if ctx.Err() != nil {
		t.Fatalf("Envoy is not ready after %v:\n%s", patience, &log)
	}
	return nil, log.String()
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// listener asks Envoy where its listener is.
func listener(t *testing.T, admin string) string {
	t.Helper()
	_, text := get(t, "http://"+admin+"/listeners")
	_, addr, ok := strings.Cut(strings.TrimSpace(text), "::")
	if !ok {
		t.Fatalf("listeners = %q", text)
	}
	return addr
}

// get requests url, with headers as name and value in turn.
func get(t *testing.T, url string, headers ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// built writes a built plugin to a file.
func built(t *testing.T, name string) string {
	t.Helper()
	module, err := fs.ReadFile(Modules(), name)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, module, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBasicAuthInEnvoy(t *testing.T) {
	e, log := start(t, built(t, BasicAuth), `{"basic_auth_rules":[{"prefix":"/productpage","request_methods":["GET","POST"],
		"credentials":["ok:test","YWRtaW4zOmFkbWluMw=="]}]}`)
	if e == nil {
		t.Fatal(log)
	}
	resp, _ := get(t, e.listener+"/productpage")
	if got := resp.Header.Get("WWW-Authenticate"); resp.StatusCode != 401 || got != `Basic realm="istio"` {
		t.Errorf("without credentials: %s, www-authenticate %q", resp.Status, got)
	}
	for authorization, want := range map[string]int{
		"Basic YWRtaW4zOmFkbWluMw==": 200, // admin3:admin3
		"Basic b2s6dGVzdA==":         200, // ok:test
		"Basic b2s6dGVzdDI=":         401, // ok:test2
		"Bearer b2s6dGVzdA==":        401,
	} {
		if resp, _ := get(t, e.listener+"/productpage", "Authorization", authorization); resp.StatusCode != want {
			t.Errorf("with %s: %s, want %d", authorization, resp.Status, want)
		}
	}
	if resp, _ := get(t, e.listener+"/"); resp.StatusCode != 200 {
		t.Errorf("a path without rule: %s", resp.Status)
	}
}

func TestHeaderCounterInEnvoy(t *testing.T) {
	e, log := start(t, built(t, HeaderCounter), `{"header_1":"some_value_1","header_2":"another_value"}`)
	if e == nil {
		t.Fatal(log)
	}
	for _, headers := range [][]string{nil, {"hello", "something"}, nil, {"Hello", "again"}} {
		resp, _ := get(t, e.listener+"/headers", headers...)
		if resp.StatusCode != 200 || resp.Header.Get("header_1") != "some_value_1" || resp.Header.Get("header_2") != "another_value" {
			t.Errorf("%s %v", resp.Status, resp.Header)
		}
	}
	_, stats := get(t, e.admin+"/stats/prometheus")
	if !strings.Contains(stats, "\n# TYPE hello_header_counter counter\nhello_header_counter{} 2\n") {
		t.Errorf("stats have no hello_header_counter of 2:\n%s", stats)
	}
}

func TestRefusedInEnvoy(t *testing.T) {
	for _, tt := range []struct{ name, module, config, want string }{
		{"basic-auth", built(t, BasicAuth), `{"basic_auth_rules":[{"prefix":"/"}]}`,
			"basicauth: refuse configuration: basic_auth_rules[0]: request_methods is missing"},
		{"header-counter", built(t, HeaderCounter), `{"header_1":1}`,
			"headercounter: refuse configuration: header_1: want a string, have a number"},
		{"refuse-config", "testdata/refuse-config.wasm", `{}`, "configuration refused: this module refuses all"},
		{"missing-import", "testdata/missing-import.wasm", `{}`, "proxy_no_such_function"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, log := start(t, tt.module, tt.config)
			if e != nil {
				t.Fatal("Envoy took it")
			}
			if !strings.Contains(log, tt.want) {
				t.Errorf("log has no %q:\n%s", tt.want, log)
			}
		})
	}
}

func TestTestdataInEnvoy(t *testing.T) {
	for _, tt := range []struct {
		module, config string
		status         int
		header         string // x-wasm
	}{
		{"noop", `{}`, 200, ""},
		{"addheader", `{"name":"v1"}`, 200, "v1"},
		{"addheader", `v2`, 200, "v2"},
		{"addheader", ``, 200, "wasm"},
		{"trap-on-request", `{}`, 503, ""},
	} {
		t.Run(tt.module+" "+tt.config, func(t *testing.T) {
			e, log := start(t, "testdata/"+tt.module+".wasm", tt.config)
			if e == nil {
				t.Fatal(log)
			}
			resp, _ := get(t, e.listener)
			if got := resp.Header.Get("x-wasm"); resp.StatusCode != tt.status || got != tt.header {
				t.Errorf("%s, x-wasm %q; want %d, %q", resp.Status, got, tt.status, tt.header)
			}
		})
	}
}

// TestTestdataIsAssembled holds the modules against their sources.
func TestTestdataIsAssembled(t *testing.T) {
	texts, err := filepath.Glob("testdata/*.wat")
	if err != nil || len(texts) == 0 {
		t.Fatalf("Glob = %v, %v", texts, err)
	}
	for _, text := range texts {
		out := filepath.Join(t.TempDir(), "out.wasm")
		if msg, err := exec.Command("wat2wasm", text, "-o", out).CombinedOutput(); err != nil {
			t.Errorf("wat2wasm %s: %v\n%s", text, err, msg)
			continue
		}
		if readFile(t, strings.TrimSuffix(text, ".wat")+".wasm") != readFile(t, out) {
			t.Errorf("%s has changed: run make generate", text)
		}
	}
}
