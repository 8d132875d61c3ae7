//go:build e2e

package engine

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
)

// assemble makes a module of WAT.
func assemble(t *testing.T, wat string) string {
	t.Helper()
	dir := t.TempDir()
	in, out := filepath.Join(dir, "m.wat"), filepath.Join(dir, "m.wasm")
	if err := os.WriteFile(in, []byte(wat), 0o600); err != nil {
		t.Fatal(err)
	}
	if msg, err := exec.Command("wat2wasm", in, "-o", out).CombinedOutput(); err != nil {
		t.Fatalf("wat2wasm: %v\n%s", err, msg)
	}
	return out
}

const watHead = `
(module
  (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_replace_header_map_value" (func $replace (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_remove_header_map_value" (func $remove (param i32 i32 i32) (result i32)))
  (import "env" "proxy_set_buffer_bytes" (func $set (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_send_local_response" (func $local (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_property" (func $property (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
  (import "env" "proxy_http_call" (func $call (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_effective_context" (func $effective (param i32) (result i32)))
  (import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
  (memory (export "memory") 4)
  (global $heap (mut i32) (i32.const 65536))
  (global $paused (mut i32) (i32.const 0))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param $n i32) (result i32)
    (local $at i32)
    (local.set $at (global.get $heap))
    (global.set $heap (i32.add (i32.const 65536) (i32.and (i32.const 65535) (i32.add (i32.sub (local.get $at) (i32.const 65536)) (local.get $n)))))
    (local.get $at))
  (func (export "proxy_on_context_create") (param i32 i32))
  (data (i32.const 0) "x-addedyesx-gone:path/p/otherxy")
`

// modules are what a guest can do to a stream, one each.
func modules() map[string]string {
	return map[string]string{
		"headers": watHead + `
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (drop (call $add (i32.const 0) (i32.const 0) (i32.const 7) (i32.const 7) (i32.const 3)))
    (drop (call $remove (i32.const 0) (i32.const 10) (i32.const 6)))
    (drop (call $replace (i32.const 0) (i32.const 16) (i32.const 5) (i32.const 21) (i32.const 8)))
    (i32.const 0))
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    (drop (call $add (i32.const 2) (i32.const 0) (i32.const 7) (i32.const 7) (i32.const 3)))
    (i32.const 0)))`,
		"bodies": watHead + `
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (drop (call $remove (i32.const 0) (i32.const 40) (i32.const 14)))
    (i32.const 0))
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    (drop (call $remove (i32.const 2) (i32.const 40) (i32.const 14)))
    (i32.const 0))
  (data (i32.const 40) "content-length")
  (func (export "proxy_on_request_body") (param $c i32) (param $n i32) (param $end i32) (result i32)
    (if (i32.eqz (local.get $end)) (then (return (i32.const 1))))
    (drop (call $set (i32.const 0) (i32.const 0) (local.get $n) (i32.const 0) (i32.const 10)))
    (i32.const 0))
  (func (export "proxy_on_response_body") (param $c i32) (param $n i32) (param $end i32) (result i32)
    (if (i32.eqz (local.get $end)) (then (return (i32.const 1))))
    (drop (call $set (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 7)))
    (i32.const 0)))`,
		"local on request": watHead + `
  (data (i32.const 40) "\01\00\00\00\01\00\00\00\01\00\00\00a\00b\00")
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (drop (call $local (i32.const 401) (i32.const 0) (i32.const 7) (i32.const 7) (i32.const 3) (i32.const 40) (i32.const 16) (i32.const -1)))
    (i32.const 1)))`,
		"local on response": watHead + `
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    (drop (call $local (i32.const 418) (i32.const 0) (i32.const 7) (i32.const 7) (i32.const 3) (i32.const 0) (i32.const 0) (i32.const -1)))
    (i32.const 1)))`,
		"trap on request": watHead + `
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) unreachable))`,
		"trap on response": watHead + `
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) unreachable))`,
		"call": watHead + `
  (data (i32.const 100) "backend")
  (func $start (param $c i32) (result i32)
    (drop (call $call (i32.const 100) (i32.const 7) (i32.const 200) (i32.const 64) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1000) (i32.const 300)))
    (global.set $paused (local.get $c))
    (i32.const 1))
  (data (i32.const 200) "\03\00\00\00\07\00\00\00\03\00\00\00\05\00\00\00\04\00\00\00\0a\00\00\00\01\00\00\00:method\00GET\00:path\00/p/x\00:authority\00b\00")
  (func (export "proxy_on_request_headers") (param $c i32) (param i32 i32) (result i32) (call $start (local.get $c)))
  (func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32)
    (drop (call $effective (global.get $paused)))
    (drop (call $add (i32.const 0) (i32.const 0) (i32.const 7) (i32.const 7) (i32.const 3)))
    (drop (call $continue (i32.const 0)))))`,
	}
}

// TestWasmLikeEnvoy sends the same requests through the same modules.
func TestWasmLikeEnvoy(t *testing.T) {
	for name, wat := range modules() {
		t.Run(name, func(t *testing.T) {
			p := wasmPair(t, assemble(t, wat), "")
			p.same(t, map[string]string{
				"get":         request("GET", "/p/x", "", "X-Gone: 1"),
				"post":        request("POST", "/p/x", "hello", "Content-Length: 5"),
				"chunked":     request("POST", "/p/x", "3\r\nabc\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
				"chunked out": request("GET", "/p/chunked", ""),
				"no body":     request("GET", "/p/204", ""),
				"head":        request("HEAD", "/p/x", ""),
				"not found":   request("GET", "/nothing", ""),
				"direct":      request("GET", "/direct", ""),
			})
		})
	}
}

func wasmPair(t *testing.T, module, configuration string) *pair {
	back := rawBackend(t)
	module, err := filepath.Abs(module)
	if err != nil {
		t.Fatal(err)
	}
	return startPair(t, func(port int) []proto.Message {
		return []proto.Message{
			staticCluster(t, "backend", back), routeConfig(t, manyRoutes), wasmExtension(t, module, configuration),
			httpListener(t, "main", port, discovered, "stream_idle_timeout: 0s"),
		}
	})
}

// properties is a module that logs what a property has, for each of the list.
func properties(callback string, list []string) string {
	var b strings.Builder
	b.WriteString(watHead)
	at := 1000
	var calls strings.Builder
	for _, p := range list {
		path := strings.ReplaceAll(p, ".", `\00`)
		size := len(p)
		fmt.Fprintf(&b, "  (data (i32.const %d) \"%s\")\n  (data (i32.const %d) \"%s\")\n", at, path, at+100, p+"=")
		fmt.Fprintf(&calls, "    (call $tell (i32.const %d) (i32.const %d))\n", at, size)
		at += 300
	}
	fmt.Fprintf(&b, `
  (func $tell (param $at i32) (param $n i32)
    (local $i i32) (local $from i32) (local $len i32)
    (if (call $property (local.get $at) (local.get $n) (i32.const 900) (i32.const 904))
      (then
        (drop (call $log (i32.const 2) (i32.add (local.get $at) (i32.const 100)) (local.get $n)))
        (return)))
    (local.set $from (i32.load (i32.const 900)))
    (local.set $len (i32.load (i32.const 904)))
    (memory.copy (i32.add (i32.add (local.get $at) (i32.const 101)) (local.get $n)) (local.get $from) (local.get $len))
    (drop (call $log (i32.const 2) (i32.add (local.get $at) (i32.const 100)) (i32.add (i32.add (local.get $n) (i32.const 1)) (local.get $len)))))
  (func (export "%s") (param i32 i32 i32) (result i32)
%s    (i32.const 0)))`, callback, &calls)
	return b.String()
}

var logged = regexp.MustCompile(`wasm log[^:]*: ([a-zA-Z_.]+(?:=[^"\n]*)?)`)

// TestPropertiesLikeEnvoy has a plugin log what it is told.
func TestPropertiesLikeEnvoy(t *testing.T) {
	for _, callback := range []string{"proxy_on_request_headers", "proxy_on_response_headers", "proxy_on_request_body", "proxy_on_response_body"} {
		t.Run(callback, func(t *testing.T) {
			p := wasmPair(t, assemble(t, properties(callback, []string{
				"request.path", "request.url_path", "request.query", "request.host", "request.scheme", "request.method", "request.protocol",
				"request.headers.hello", "request.useragent", "request.referer", "response.headers.x_back", "response.code_details",
				"connection.requested_server_name", "connection.tls_version",
				"cluster_name", "route_name", "xds.cluster_name", "xds.route_name", "xds.virtual_host_name", "xds.filter_chain_name", "xds.nothing",
				"node.id", "node.cluster", "node.metadata.NAMESPACE", "node.metadata.nothing", "xds.node.id", "xds.node.metadata.NAME",
				"plugin_name", "plugin_root_id", "plugin_vm_id", "nothing",
			})), "")
			r := request("POST", "/p/x?a=b", "hello", "Hello: 1", "Hello: 2", "User-Agent: me", "Content-Length: 5")
			raw(t, p.envoyPort, r)
			raw(t, p.enginePort, r)
			want := lines(p.envoyLog.String())
			got := lines(strings.ReplaceAll(p.engineLog.String(), `\"`, `"`))
			if diff := cmp.Diff(want, got); diff != "" || len(want) == 0 {
				t.Errorf("properties (-envoy +engine):\n%s", diff)
			}
		})
	}
}

// lines are the different lines that were logged. How often a body is shown to a
// plugin is up to how it arrives.
func lines(log string) (list []string) {
	for _, m := range logged.FindAllStringSubmatch(log, -1) {
		if !slices.Contains(list, m[1]) {
			list = append(list, m[1])
		}
	}
	return list
}

// TestPluginsLikeEnvoy runs the example plugins, built by make.
func TestPluginsLikeEnvoy(t *testing.T) {
	t.Run("basic auth", func(t *testing.T) {
		p := wasmPair(t, "../../plugins/dist/basic-auth.wasm", `{"basic_auth_rules":[{"prefix":"/p","request_methods":["GET","POST"],"credentials":["ok:test"]}]}`)
		p.same(t, map[string]string{
			"without": request("GET", "/p/x", ""),
			"with":    request("GET", "/p/x", "", "Authorization: Basic b2s6dGVzdA=="),
			"wrong":   request("GET", "/p/x", "", "Authorization: Basic b2s6dGVzdB=="),
			"post":    request("POST", "/p/x", "hello", "Content-Length: 5"),
			"other":   request("PUT", "/p/x", "hello", "Content-Length: 5"),
		})
	})
	t.Run("header counter", func(t *testing.T) {
		p := wasmPair(t, "../../plugins/dist/header-counter.wasm", `{"header_1":"a","header_2":"b"}`)
		p.same(t, map[string]string{"with": request("GET", "/p/x", "", "Hello: 1"), "without": request("GET", "/p/x", "")})
		want, got := metric(t, p.envoyAdmin), metric(t, p.engAdmin)
		if diff := cmp.Diff(want, got); diff != "" || want == "" {
			t.Errorf("metric (-envoy +engine):\n%s", diff)
		}
	})
}

// metric waits until the plugin's counter is there, and returns its lines.
func metric(t *testing.T, admin string) string {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		resp, err := http.Get("http://" + admin + "/stats/prometheus")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		var found []string
		for line := range strings.Lines(string(body)) {
			if strings.Contains(line, "hello_header_counter") {
				found = append(found, line)
			}
		}
		if text := strings.Join(found, ""); strings.Contains(text, "{} 1") {
			return text
		}
	}
	return ""
}

// BenchmarkLikeEnvoy compares both with the same requests, backend and module.
func BenchmarkLikeEnvoy(b *testing.B) {
	for _, tt := range []struct{ name, filters string }{{"plain", ""}, {"plugin", discovered}} {
		module, err := filepath.Abs(wasmDir + "addheader.wasm")
		if err != nil {
			b.Fatal(err)
		}
		addr := canned(b)
		p := startPair(b, func(port int) []proto.Message {
			return []proto.Message{
				staticCluster(b, "backend", addr), routeConfig(b, toBackend), wasmExtension(b, module, ""),
				httpListener(b, "main", port, tt.filters, "stream_idle_timeout: 0s"),
			}
		})
		b.Run("envoy/"+tt.name, func(b *testing.B) { drive(b, p.envoyPort) })
		b.Run("engine/"+tt.name, func(b *testing.B) { drive(b, p.enginePort) })
	}
}
