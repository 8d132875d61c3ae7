//go:build e2e

package preflight

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// bootstrap has one listener with the module before nothing. JSON is YAML: Envoy takes
// it so.
func bootstrap(path, config string) map[string]any {
	type m = map[string]any
	typed := func(url string, more m) m {
		more["@type"] = "type.googleapis.com/" + url
		return more
	}
	loopback := m{"socket_address": m{"address": "127.0.0.1", "port_value": 0}}
	plugin := m{
		"name":          "plugin",
		"configuration": typed("google.protobuf.StringValue", m{"value": config}),
		"vm_config":     m{"runtime": "envoy.wasm.runtime.v8", "code": m{"local": m{"filename": path}}},
	}
	return m{
		"node": m{"id": "someone", "cluster": "some"},
		"static_resources": m{
			"clusters": []m{{"name": "cluster", "type": "STATIC", "load_assignment": m{"cluster_name": "cluster",
				"endpoints": []m{{"lb_endpoints": []m{{"endpoint": m{"address": m{"socket_address": m{"address": "127.0.0.1", "port_value": 1}}}}}}}}}},
			"listeners": []m{{"name": "test", "address": loopback, "filter_chains": []m{{"filters": []m{{
				"name": "hcm",
				"typed_config": typed("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", m{
					"stat_prefix": "test", "route_config": m{},
					"http_filters": []m{
						{"name": "plugin", "typed_config": typed("envoy.extensions.filters.http.wasm.v3.Wasm", m{"config": plugin})},
						{"name": "router", "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", m{})},
					},
				}),
			}}}}}},
		},
	}
}

// loads has a real Envoy load the module and reports whether it serves with it.
func loads(t *testing.T, path, config string) bool {
	t.Helper()
	envoy := os.Getenv("CHANDLER_ENVOY")
	if envoy == "" {
		t.Fatal("CHANDLER_ENVOY is not set: run make e2e")
	}
	text, err := json.Marshal(bootstrap(path, config))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "envoy.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, envoy, "-c", file, "--concurrency", "1", "--use-dynamic-base-id", "-l", "info")
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	serves := false
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		if strings.Contains(lines.Text(), "starting workers") {
			serves = true
			cancel()
		}
	}
	if err := cmd.Wait(); errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Fatalf("envoy neither served nor gave up: %v", err)
	}
	return serves
}

// What preflight says of a module, Envoy says too.
func TestEnvoyAgrees(t *testing.T) {
	built := basicAuth(t)
	for _, tt := range []struct {
		path, config string
		passes       bool
	}{
		{plugins + "noop.wasm", "", true},
		{plugins + "addheader.wasm", `{"value":"x"}`, true},
		{plugins + "trap-on-request.wasm", "", true},
		{plugins + "refuse-config.wasm", "", false},
		{plugins + "missing-import.wasm", "", false},
		{"testdata/refuse-vm.wasm", "", false},
		{"testdata/no-abi.wasm", "", false},
		{"testdata/wrong-shape.wasm", "", false},
		{"testdata/trap-at-start.wasm", "", false},
		{"testdata/busy.wasm", "", true},
		{"testdata/wants-property.wasm", "", true},
		{"testdata/imports-memory.wasm", "", true},
		{built, `{"basic_auth_rules":[{"prefix":"/","request_methods":["GET"],"credentials":["ok:test"]}]}`, true},
		{built, `{"realm":7}`, false},
	} {
		t.Run(strings.TrimSuffix(filepath.Base(tt.path), ".wasm")+tt.config, func(t *testing.T) {
			p, _ := newPreflight(t, Config{})
			err := p.Try(context.Background(), Trial{Path: tt.path, Name: "plugin", Configuration: []byte(tt.config)})
			if (err == nil) != tt.passes {
				t.Errorf("Try = %v, want it to pass: %v", err, tt.passes)
			}
			if got := loads(t, tt.path, tt.config); got != tt.passes {
				t.Errorf("Envoy serves: %v, want %v", got, tt.passes)
			}
		})
	}
}
