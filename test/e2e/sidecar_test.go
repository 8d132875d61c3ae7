//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chandler-proxy/chandler/examples"
	"github.com/chandler-proxy/chandler/plugins"
)

// listenBeside is an application at 127.0.0.1, whose port is free at 127.0.0.2,
// where its sidecar is to listen.
func listenBeside(t testing.TB) net.Listener {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(l.Addr().String())
		if other, err := net.Listen("tcp", "127.0.0.2:"+port); err == nil {
			other.Close()
			return l
		}
		l.Close()
	}
	t.Fatal("no port is free at 127.0.0.1 and 127.0.0.2")
	return nil
}

// The third seed: the sidecar of httpbin, which listens where the pod does, adds
// headers and counts requests with a hello header.
func TestSidecar(t *testing.T) {
	wasm, err := fs.ReadFile(plugins.Modules(), plugins.HeaderCounter)
	if err != nil {
		t.Fatal(err)
	}
	s := startShelf(t)
	url := s.put("header-counter.wasm", wasm)

	app := &httptest.Server{Listener: listenBeside(t), Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{"headers": r.Header}) //nolint:errcheck // a client that is gone
	})}}
	app.Start()
	t.Cleanup(app.Close)
	_, port, _ := net.SplitHostPort(app.Listener.Addr().String())

	m := prepare(t)
	m.remove("gateway.yaml")
	m.Gateway = "127.0.0.2:" + port // what takes its place: the pod's own address
	m.AgentArgs = []string{"--id", "sidecar~127.0.0.2~httpbin.default~default.svc.cluster.local", "--namespace", "default", "--labels", "app=httpbin"}
	// the agents of these tests have one label more, which a port by name is looked up with
	labelled := strings.Replace(example(t, "httpbin/local/pod.yaml"), "  labels:\n", "  labels:\n    istio: ingressgateway\n", 1)
	m.write("pod.yaml", strings.ReplaceAll(labelled, "8000", port))
	m.write("httpbin.yaml", strings.ReplaceAll(example(t, "httpbin/httpbin.yaml"), "8000", port))
	m.startControl()
	m.startAgent()
	m.serving()
	l := m.load()
	l.more(50)

	m.write("plugin.yaml", strings.ReplaceAll(example(t, "httpbin/plugin.yaml"), "oci://localhost:5055/header-counter:1.0", url))
	ask := func(headers ...string) (*http.Response, string) {
		t.Helper()
		r, err := http.NewRequest(http.MethodGet, "http://"+m.Gateway+"/headers", nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var body struct{ Headers http.Header }
		if err := json.NewDecoder(res.Body).Decode(&body); err != nil {
			t.Fatal(err)
		}
		return res, body.Headers.Get("hello")
	}
	eventually(t, "plugin adds its headers", func() error {
		res, _ := ask()
		if got := res.Header; got.Get("header_1") != "some_value_1" || got.Get("header_2") != "another_value" {
			return fmt.Errorf("headers %v", got)
		}
		return nil
	})
	const hellos = 7
	for range hellos {
		if res, hello := ask("hello", "something"); res.StatusCode != 200 || hello != "something" {
			t.Errorf("answer %s, the application saw hello: %q", res.Status, hello)
		}
	}
	ask("other", "something")
	for _, stats := range []string{"http://" + m.Admin + "/stats/prometheus", "http://" + m.AgentHTTP + "/stats/prometheus"} {
		want := fmt.Sprintf("hello_header_counter{} %d\n", hellos)
		eventually(t, "counter at "+stats, func() error { // workers hand their counts over now and then
			if a := page(stats); !strings.Contains(a.body, want) {
				at := strings.Index(a.body, "hello")
				return fmt.Errorf("no %q in %d bytes; %.100q", want, len(a.body), a.body[max(at, 0):])
			}
			return nil
		})
	}
	l.more(50)
	l.only(ok(""))
}

func example(t testing.TB, name string) string {
	t.Helper()
	text, err := fs.ReadFile(examples.FS, name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// tcpModule puts "wasm:" before what the upstream sends.
const tcpModule = `
(module
  (import "env" "proxy_set_buffer_bytes"
    (func $set_buffer (param $type i32) (param $start i32) (param $size i32) (param $data i32) (param $data_size i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "wasm:")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_new_connection") (param i32) (result i32) (i32.const 0))
  (func (export "proxy_on_downstream_data") (param i32 i32 i32) (result i32) (i32.const 0))
  (func (export "proxy_on_upstream_data") (param $context i32) (param $size i32) (param $end i32) (result i32)
    ;; buffer 3 is the upstream data; nothing of it, from its start, is replaced
    (if (local.get $size) (then
      (drop (call $set_buffer (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 64) (i32.const 5)))))
    (i32.const 0))
  (func (export "proxy_on_downstream_connection_close") (param i32 i32))
  (func (export "proxy_on_upstream_connection_close") (param i32 i32))
  (func (export "proxy_on_done") (param i32) (result i32) (i32.const 1))
  (func (export "proxy_on_log") (param i32))
  (func (export "proxy_on_delete") (param i32)))
`

// assemble makes a module of the text format.
func assemble(t testing.TB, text string) []byte {
	t.Helper()
	in, out := filepath.Join(t.TempDir(), "module.wat"), filepath.Join(t.TempDir(), "module.wasm")
	if err := os.WriteFile(in, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "wat2wasm", in, "-o", out)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A plugin of type NETWORK sees the bytes of connections to a TCP server.
func TestNetworkPlugin(t *testing.T) {
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := echo.Accept()
			if err != nil {
				return // the test is over
			}
			line, _ := bufio.NewReader(c).ReadString('\n') // an empty line if the client is gone
			fmt.Fprintf(c, "echo %s", line)
			c.Close()
		}
	}()
	t.Cleanup(func() { echo.Close(); <-done })
	s := startShelf(t)
	tcp := loopback(freePort(t))
	_, port, _ := net.SplitHostPort(tcp)
	m := start(t, func(m *mesh) {
		m.write("tcp.yaml", fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: tcp, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: %s, name: tcp, protocol: TCP}, hosts: ["*"]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: tcp, namespace: default}
spec:
  hosts: ["*"]
  gateways: [istio-system/tcp]
  tcp: [{route: [{destination: {host: echo, port: {number: 80}}}]}]
`, port)+strings.Replace(service("default", "echo", echo.Addr().String()), "name: http", "name: tcp", 2))
	})
	says := func(want string) {
		t.Helper()
		eventually(t, "TCP server says "+want, func() error {
			c, err := net.Dial("tcp", tcp)
			if err != nil {
				return err
			}
			defer c.Close()
			fmt.Fprintln(c, "hello")
			line, err := bufio.NewReader(c).ReadString('\n')
			if line != want {
				return fmt.Errorf("%q, %v", line, err)
			}
			return nil
		})
	}
	says("echo hello\n")
	l := m.load()
	match := "match: [{ports: [{number: " + port + "}]}]" // or HTTP servers had it, too
	m.write("plugin.yaml", plugin("tcp", s.put("tcp.wasm", assemble(t, tcpModule)), "x", "type: NETWORK", match))
	says("wasm:echo hello\n")
	m.write("plugin.yaml", plugin("tcp", s.url("missing.wasm"), "x", "type: NETWORK", match))
	m.refusal("tcp", "404")
	says("wasm:echo hello\n")
	m.remove("plugin.yaml")
	says("echo hello\n")
	l.more(50)
	l.only(ok(""))
}

// Plugins run in the order of phase and priority. Each adds its header to the
// answer, which goes back through them the other way round.
func TestOrder(t *testing.T) {
	s := startShelf(t)
	url := s.put("header.wasm", module(t, "order"))
	m := start(t)
	m.write("plugins.yaml", strings.Join([]string{
		plugin("a", url, "unspecified"),
		plugin("b", url, "stats", "phase: STATS"),
		plugin("c", url, "authz", "phase: AUTHZ"),
		plugin("d", url, "authn-low", "phase: AUTHN", "priority: 1"),
		plugin("e", url, "authn-high", "phase: AUTHN", "priority: 9"),
	}, "---"))
	expect := func(want ...string) {
		t.Helper()
		eventually(t, fmt.Sprint("headers are ", want), func() error {
			if got := headers("http://" + m.Gateway + "/"); strings.Join(got, " ") != strings.Join(want, " ") {
				return fmt.Errorf("%q", got)
			}
			return nil
		})
	}
	expect("unspecified", "stats", "authz", "authn-low", "authn-high")
	l := m.load()
	m.write("plugins.yaml", strings.Join([]string{
		plugin("a", url, "unspecified"),
		plugin("d", url, "authn-low", "phase: AUTHN", "priority: 10"),
		plugin("e", url, "authn-high", "phase: AUTHN", "priority: 9"),
	}, "---"))
	expect("unspecified", "authn-high", "authn-low")
	l.more(50)
	l.check(func(a answer) bool {
		return a == ok(a.wasm) && strings.Contains(a.wasm, "authn-low") && strings.Contains(a.wasm, "authn-high")
	})
}
