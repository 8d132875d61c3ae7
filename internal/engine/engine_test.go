package engine

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/google/go-cmp/cmp"
)

func TestProxy(t *testing.T) {
	c, port := newControlPlane(t), freePort(t)
	c.set(staticCluster(t, "backend", backend(t, echo)), httpListener(t, "main", port, "", ""), routeConfig(t, toBackend))
	h := run(t, c)
	<-h.engine.Ready()
	resp, body := exchange(t, port, get("/hello?a=b", "X-One: 1"))
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(body, "GET /hello?a=b example.com\n") {
		t.Errorf("got %d\n%s", resp.StatusCode, body)
	}
	for _, want := range []string{"X-One: 1", "X-Request-Id: ", "X-Forwarded-Proto: http"} {
		if !strings.Contains(body, want) {
			t.Errorf("the upstream got no %s:\n%s", want, body)
		}
	}
	if got := resp.Header.Get("Server"); got != "envoy" {
		t.Errorf("server: %q", got)
	}
}

const wasmDir = "../proxywasm/testdata/"

// discovered is a filter whose configuration comes by ECDS.
const discovered = `
- name: plugin
  config_discovery:
    config_source: {ads: {}, initial_fetch_timeout: 0s, resource_api_version: V3}
    type_urls:
    - type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
    - type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC`

func wasmExtension(t testing.TB, file, configuration string) *corev3.TypedExtensionConfig {
	return parse(t, fmt.Sprintf(`
name: plugin
typed_config:
  "@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
  config:
    name: plugin
    configuration: {"@type": type.googleapis.com/google.protobuf.StringValue, value: %q}
    vm_config: {runtime: envoy.wasm.runtime.v8, vm_id: a, code: {local: {filename: %q}}}`, configuration, file), new(corev3.TypedExtensionConfig))
}

const denyAll = `
name: plugin
typed_config:
  "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
  rules: {}`

const allowAll = `
name: plugin
typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC}`

// TestCompilationCacheMissing: an engine that cannot keep compiled modules does without.
func TestCompilationCacheMissing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cache")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	e := New(Config{CompilationCacheDir: file, Log: slog.New(slog.NewTextHandler(&log, nil))})
	host, end, err := e.host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m, err := host.LoadFile(t.Context(), wasmDir+"addheader.wasm")
	if err := errors.Join(err, m.Close(t.Context()), end()); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "level=WARN") {
		t.Errorf("log = %s, want a warning", &log)
	}
}

// A listener waits for its extension; a new configuration is for the requests that
// come after it; one that is refused changes nothing.
func TestExtensionIsSwapped(t *testing.T) {
	c, port := newControlPlane(t), freePort(t)
	c.set(staticCluster(t, "backend", backend(t, echo)), httpListener(t, "main", port, discovered, ""), routeConfig(t, toBackend))
	h := run(t, c)
	c.taken(routeType, 1)
	if h.engine.Live() {
		t.Fatal("live without the extension")
	}
	c.set(parse(t, denyAll, new(corev3.TypedExtensionConfig)))
	<-h.engine.Ready()
	if resp, body := exchange(t, port, get("/")); resp.StatusCode != 403 || body != "RBAC: access denied" {
		t.Errorf("deny all: %d %s", resp.StatusCode, body)
	}
	c.set(wasmExtension(t, wasmDir+"addheader.wasm", ""))
	c.taken(extensionType, 2)
	resp, body := exchange(t, port, get("/"))
	if resp.Header.Get("X-Added") != "yes" || !strings.Contains(body, "X-Added: yes") {
		t.Errorf("plugin: %v\n%s", resp.Header, body)
	}
	c.set(wasmExtension(t, "/nowhere.wasm", ""))
	if reason := c.nack(1); !strings.Contains(reason, "/nowhere.wasm") {
		t.Errorf("nack: %s", reason)
	}
	if resp, _ := exchange(t, port, get("/")); resp.Header.Get("X-Added") != "yes" {
		t.Error("a refused extension took effect")
	}
	c.set(parse(t, allowAll, new(corev3.TypedExtensionConfig)))
	c.taken(extensionType, 3)
	if resp, _ := exchange(t, port, get("/")); resp.StatusCode != 200 || resp.Header.Get("X-Added") != "" {
		t.Errorf("allow all: %d %v", resp.StatusCode, resp.Header)
	}
}

// What is not supported is refused with the field, and what was there stays.
func TestRefusals(t *testing.T) {
	c, port := newControlPlane(t), freePort(t)
	c.set(staticCluster(t, "backend", backend(t, echo)), httpListener(t, "main", port, "", ""), routeConfig(t, toBackend))
	h := run(t, c)
	<-h.engine.Ready()
	c.set(routeConfig(t, `
- match: {prefix: /}
  route: {cluster: backend, hedge_policy: {}}`))
	if reason := c.nack(1); reason != "routes: virtual_hosts[0].routes[0].route.hedge_policy: not supported by the engine" {
		t.Errorf("nack: %s", reason)
	}
	c.set(httpListener(t, "main", port, `
- name: lua
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}`, ""))
	if reason := c.nack(2); !strings.Contains(reason, "http_filters[0].typed_config: filter envoy.extensions.filters.http.lua.v3.Lua is not supported") {
		t.Errorf("nack: %s", reason)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	c.set(httpListener(t, "other", taken.Addr().(*net.TCPAddr).Port, "", ""))
	if reason := c.nack(3); !strings.Contains(reason, "address already in use") {
		t.Errorf("nack: %s", reason)
	}
	if resp, _ := exchange(t, port, get("/")); resp.StatusCode != 200 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

// Endpoints of EDS come and go.
func TestEndpoints(t *testing.T) {
	c, port := newControlPlane(t), freePort(t)
	cluster := parse(t, `
name: backend
type: EDS
eds_cluster_config: {service_name: service, eds_config: `+adsSource+`}
lb_policy: LEAST_REQUEST`, new(clusterv3.Cluster))
	c.set(cluster, httpListener(t, "main", port, "", ""), routeConfig(t, toBackend))
	h := run(t, c)
	c.taken(clusterType, 1)
	if h.engine.Live() || c.acks(listenerType) > 0 {
		t.Fatal("listeners were asked for although a cluster is cold")
	}
	assignment := func(addrs ...string) *endpointv3.ClusterLoadAssignment {
		return &endpointv3.ClusterLoadAssignment{ClusterName: "service", Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: lbEndpoints(addrs)}}}
	}
	c.set(assignment())
	<-h.engine.Ready()
	if resp, body := exchange(t, port, get("/")); resp.StatusCode != 503 || body != "no healthy upstream" {
		t.Errorf("no endpoints: %d %s", resp.StatusCode, body)
	}
	c.set(assignment(backend(t, echo)))
	c.taken(endpointType, 2)
	if resp, _ := exchange(t, port, get("/")); resp.StatusCode != 200 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

// A listener changes under load, over connections that are kept, and no request fails.
func TestListenerChangesUnderLoad(t *testing.T) {
	c, port := newControlPlane(t), freePort(t)
	c.set(staticCluster(t, "backend", backend(t, echo)), httpListener(t, "main", port, "", ""), routeConfig(t, toBackend))
	h := run(t, c)
	<-h.engine.Ready()
	stop := make(chan struct{})
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for n := 0; ; n++ {
				select {
				case <-stop:
					if n == 0 {
						t.Error("no request was made")
					}
					return
				default:
				}
				resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 200 {
					t.Errorf("status %d", resp.StatusCode)
				}
			}
		})
	}
	c.set(parse(t, allowAll, new(corev3.TypedExtensionConfig)))
	for i := range 20 {
		filters := ""
		if i%2 == 0 {
			filters = discovered
		}
		c.set(httpListener(t, "main", port, filters, fmt.Sprintf("server_name: s%d", i)))
		c.taken(listenerType, i+2)
		for {
			resp, _ := exchange(t, port, get("/"))
			if resp.Header.Get("Server") == fmt.Sprintf("s%d", i) {
				break
			}
		}
	}
	close(stop)
	load.Wait()
}

// The engine comes back to a control plane with what it has, and is sent nothing again.
func TestReconnect(t *testing.T) {
	c, port := newControlPlane(t), freePort(t)
	c.set(staticCluster(t, "backend", backend(t, echo)), httpListener(t, "main", port, "", ""), routeConfig(t, toBackend))
	h := run(t, c)
	<-h.engine.Ready()
	c.taken(routeType, 1)
	c.mu.Lock()
	before := len(c.initial)
	c.mu.Unlock()
	c.server.Stop()
	if resp, _ := exchange(t, port, get("/")); resp.StatusCode != 200 {
		t.Errorf("without a control plane: %d", resp.StatusCode)
	}
	next := newControlPlaneAt(t, c.socket)
	next.mu.Lock()
	next.resources, next.version = c.resources, 100
	for len(next.initial) < before {
		next.changed.Wait()
	}
	initial := next.initial
	next.mu.Unlock()
	if diff := cmp.Diff([]map[string]string{{"backend": "1"}, {"main": "2"}, {"routes": "3"}}, initial); diff != "" {
		t.Errorf("initial versions (-want +got):\n%s", diff)
	}
	next.set(routeConfig(t, "- match: {prefix: /}\n  direct_response: {status: 204}"))
	next.taken(routeType, 1)
	if resp, _ := exchange(t, port, get("/")); resp.StatusCode != 204 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

func TestWebSocket(t *testing.T) {
	c, port := newControlPlane(t), freePort(t)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
		rw.Flush()
		for {
			line, err := rw.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprintf(rw, "you said %s", line)
			rw.Flush()
		}
	})
	c.set(staticCluster(t, "backend", addr), httpListener(t, "main", port, "", "upgrade_configs: [{upgrade_type: websocket}]"), routeConfig(t, toBackend))
	h := run(t, c)
	<-h.engine.Ready()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, get("/", "Connection: Upgrade", "Upgrade: websocket"))
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("upgrade: %v %v", resp, err)
	}
	for _, word := range []string{"one", "two"} {
		io.WriteString(conn, word+"\n")
		if line, err := r.ReadString('\n'); line != "you said "+word+"\n" {
			t.Errorf("got %q, %v", line, err)
		}
	}
}

// TestWebSocketRetried: what asks for another protocol is sent to another endpoint where
// the first cannot be connected to.
func TestWebSocketRetried(t *testing.T) {
	c, port := newControlPlane(t), freePort(t)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		rw.Flush()
		line, _ := rw.ReadString('\n')
		fmt.Fprintf(rw, "you said %s", line)
		rw.Flush()
	})
	nobody := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	c.set(staticCluster(t, "backend", addr, nobody), httpListener(t, "main", port, "", "upgrade_configs: [{upgrade_type: websocket}]"),
		routeConfig(t, `
- match: {prefix: /}
  route: {cluster: backend, timeout: 0s, retry_policy: {num_retries: 3, retry_on: connect-failure}}`))
	h := run(t, c)
	<-h.engine.Ready()
	for i := range 6 { // of which every other one begins with the endpoint that is not there
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, get("/", "Connection: Upgrade", "Upgrade: websocket"))
		r := bufio.NewReader(conn)
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != 101 {
			t.Fatalf("upgrade %d: %v %v", i, resp, err)
		}
		io.WriteString(conn, "hello\n")
		if line, err := r.ReadString('\n'); line != "you said hello\n" {
			t.Errorf("got %q, %v", line, err)
		}
		conn.Close()
	}
}

// Both sides of a stream move independently, and trailers pass, over HTTP/2.
func TestHTTP2(t *testing.T) {
	c, port := newControlPlane(t), freePort(t)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-End")
		w.WriteHeader(200)
		rc := http.NewResponseController(w)
		rc.Flush()
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintf(w, "%s %s\n", r.Proto, lines.Text())
			rc.Flush()
		}
		w.Header().Set("X-End", "bye")
	}))
	s.Config.Protocols = protocols
	s.Start()
	t.Cleanup(s.Close)
	cluster := staticCluster(t, "backend", s.Listener.Addr().String())
	cluster.TypedExtensionProtocolOptions = parse(t, `
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http2_protocol_options: {}}`, new(clusterv3.Cluster)).TypedExtensionProtocolOptions
	c.set(cluster, httpListener(t, "main", port, "", ""), routeConfig(t, toBackend))
	h := run(t, c)
	<-h.engine.Ready()
	client := &http.Client{Transport: &http.Transport{Protocols: protocols}}
	defer client.CloseIdleConnections()
	body, write := io.Pipe()
	resp, err := client.Post(fmt.Sprintf("http://127.0.0.1:%d/x", port), "text/plain", body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Proto != "HTTP/2.0" || resp.Header.Get("Server") != "envoy" {
		t.Errorf("%s %v", resp.Proto, resp.Header)
	}
	r := bufio.NewReader(resp.Body)
	for _, word := range []string{"one", "two"} {
		io.WriteString(write, word+"\n")
		if line, err := r.ReadString('\n'); line != "HTTP/2.0 "+word+"\n" {
			t.Fatalf("got %q, %v", line, err)
		}
	}
	write.Close()
	if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
		t.Errorf("rest %q, %v", rest, err)
	}
	if got := resp.Trailer.Get("X-End"); got != "bye" {
		t.Errorf("trailer %q", got)
	}
}

func TestTCP(t *testing.T) {
	c, port := newControlPlane(t), freePort(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	defer serving.Wait()
	defer l.Close()
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all, _ := io.ReadAll(conn) // until the client's half is closed
			fmt.Fprintf(conn, "%d bytes", len(all))
			conn.Close()
		}
	})
	tcp := parse(t, fmt.Sprintf(`
name: tcp
address: {socket_address: {address: 127.0.0.1, port_value: %d}}
filter_chains:
- filters:
  - name: plugin
    config_discovery:
      config_source: %s
      type_urls:
      - type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm
      - type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC
  - name: tcp
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      cluster: backend
      stat_prefix: tcp`, port, adsSource), new(listenerv3.Listener))
	c.set(staticCluster(t, "backend", l.Addr().String()), tcp, parse(t, `
name: plugin
typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: x}`, new(corev3.TypedExtensionConfig)))
	h := run(t, c)
	<-h.engine.Ready()
	talk := func() string {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, strings.Repeat("x", 100_000))
		conn.(*net.TCPConn).CloseWrite()
		answer, _ := io.ReadAll(conn)
		return string(answer)
	}
	if got := talk(); got != "100000 bytes" {
		t.Errorf("allow: %q", got)
	}
	c.set(parse(t, `
name: plugin
typed_config:
  "@type": type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm
  config: {name: p, vm_config: {runtime: envoy.wasm.runtime.v8, code: {local: {filename: `+wasmDir+`addheader.wasm}}}}`, new(corev3.TypedExtensionConfig)))
	c.taken(extensionType, 2)
	if got := talk(); got != "100000 bytes" {
		t.Errorf("plugin: %q", got)
	}
	c.set(parse(t, `
name: plugin
typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: x, rules: {}}`, new(corev3.TypedExtensionConfig)))
	c.taken(extensionType, 3)
	if got := talk(); got != "" {
		t.Errorf("deny: %q", got)
	}
}

func TestAdmin(t *testing.T) {
	c, port := newControlPlane(t), freePort(t)
	c.set(staticCluster(t, "backend", backend(t, echo)), httpListener(t, "main", port, "", ""), routeConfig(t, toBackend))
	h := run(t, c)
	<-h.engine.Ready()
	exchange(t, port, get("/"))
	ask := func(method, path string) (int, string) {
		req, err := http.NewRequest(method, "http://"+h.admin+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	for _, tt := range []struct {
		method, path string
		status       int
		want         string
	}{
		{"GET", "/ready", 200, "LIVE\n"},
		{"GET", "/stats?filter=downstream_rq_total", 200, "http.main.downstream_rq_total: 1\n"},
		{"GET", "/stats/prometheus", 200, "# TYPE envoy_cluster_upstream_rq_xx counter\nenvoy_cluster_upstream_rq_xx{envoy_response_code_class=\"1\",envoy_cluster_name=\"backend\"} 0\nenvoy_cluster_upstream_rq_xx{envoy_response_code_class=\"2\",envoy_cluster_name=\"backend\"} 1\n"},
		{"GET", "/listeners", 200, fmt.Sprintf("main::127.0.0.1:%d\n", port)},
		{"GET", "/clusters", 200, "backend::127.0.0.1:"},
		{"GET", "/config_dump", 200, "RoutesConfigDump"},
		{"GET", "/server_info", 200, "LIVE"},
		{"GET", "/logging", 405, ""},
		{"POST", "/logging?level=debug", 200, "wasm: debug"},
		{"GET", "/nothing", 404, "invalid path"},
		{"POST", "/healthcheck/fail", 200, "OK\n"},
		{"GET", "/ready", 503, "DRAINING\n"},
	} {
		status, body := ask(tt.method, tt.path)
		if status != tt.status || !strings.Contains(body, tt.want) {
			t.Errorf("%s %s = %d, want %d with %q:\n%s", tt.method, tt.path, status, tt.status, tt.want, body)
		}
	}
	if resp, _ := exchange(t, port, get("/")); resp.StatusCode != 200 || !resp.Close {
		t.Errorf("while draining: %d, close %t", resp.StatusCode, resp.Close)
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{Protocols: protocols}}
	defer client.CloseIdleConnections()
	if resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port)); err != nil || resp.StatusCode != 200 {
		t.Errorf("HTTP/2 while draining: %v, %v", resp, err)
	}
	ask("POST", "/drain_listeners")
	if conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
		conn.Close()
		t.Error("still listening")
	}
}
