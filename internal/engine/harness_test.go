package engine

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"github.com/chandler-proxy/chandler/internal/envoy/envoytest"
	"github.com/chandler-proxy/chandler/internal/envoytypes"
)

// shortDir is a temporary folder whose path is short enough for a socket.
func shortDir(t testing.TB) string {
	t.Helper()
	return envoytest.ShortDir(t)
}

// parse reads a message from YAML.
func parse[M proto.Message](t testing.TB, text string, m M) M {
	t.Helper()
	j, err := yaml.YAMLToJSON([]byte(text))
	if err == nil {
		err = (protojson.UnmarshalOptions{Resolver: envoytypes.Types()}).Unmarshal(j, m)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return m
}

// freePort is a port that was free just now.
func freePort(t testing.TB) int {
	t.Helper()
	return envoytest.Port(t)
}

// A running engine with its control plane.
type harness struct {
	*controlPlane
	engine *Engine
	admin  string
}

// run starts an engine that is configured by c.
func run(t testing.TB, c *controlPlane) *harness {
	t.Helper()
	admin, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	e := New(Config{
		Node: &corev3.Node{Id: "sidecar~127.0.0.1~a.b~c", Cluster: "a.b"}, XDS: c.socket, Admin: admin, Log: log,
		Concurrency: 2,
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := e.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return &harness{controlPlane: c, engine: e, admin: admin.Addr().String()}
}

// cluster is a STATIC cluster with these addresses.
func staticCluster(t testing.TB, name string, addrs ...string) *clusterv3.Cluster {
	text := fmt.Sprintf("name: %q\ntype: STATIC\nconnect_timeout: 2s\nload_assignment:\n  cluster_name: %q\n  endpoints:\n  - lb_endpoints: []\n", name, name)
	c := parse(t, text, new(clusterv3.Cluster))
	c.LoadAssignment.Endpoints[0].LbEndpoints = lbEndpoints(addrs)
	return c
}

func lbEndpoints(addrs []string) (list []*endpointv3.LbEndpoint) {
	for _, a := range addrs {
		host, port, _ := net.SplitHostPort(a)
		n, _ := strconv.Atoi(port)
		list = append(list, &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
			Endpoint: &endpointv3.Endpoint{Address: socketAddress(host, uint32(n))}}})
	}
	return list
}

const adsSource = "{ads: {}, initial_fetch_timeout: 0s, resource_api_version: V3}"

// httpListener is a listener with routes from RDS. filters is YAML of HTTP
// filters before the router, more of further fields of the connection manager.
func httpListener(t testing.TB, name string, port int, filters, more string) *listenerv3.Listener {
	return parse(t, fmt.Sprintf(`
name: %s
address: {socket_address: {address: 127.0.0.1, port_value: %d}}
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: %s
      rds: {route_config_name: routes, config_source: %s}
      http_filters:
%s
      - name: envoy.filters.http.router
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
%s`, name, port, name, adsSource, indent(filters, 6), indent(more, 6)), new(listenerv3.Listener))
}

func indent(s string, n int) string {
	if s == "" {
		return ""
	}
	pad := strings.Repeat(" ", n)
	return pad + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n"+pad)
}

// routeConfig is the route configuration that httpListener wants, with one
// virtual host, whose routes are YAML.
func routeConfig(t testing.TB, routes string) *routev3.RouteConfiguration {
	return parse(t, fmt.Sprintf(`
name: routes
virtual_hosts:
- name: all
  domains: ["*"]
  routes:
%s`, indent(routes, 2)), new(routev3.RouteConfiguration))
}

const toBackend = `
- match: {prefix: /}
  route: {cluster: backend, timeout: 0s}`

// backend serves what handler does, and returns its address.
func backend(t testing.TB, handler http.HandlerFunc) string {
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// echo answers with the request as it came.
func echo(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	fmt.Fprintf(w, "%s %s %s\n", r.Method, r.RequestURI, r.Host)
	_ = r.Header.Write(w)
	fmt.Fprintf(w, "\n%s", body)
}

// exchange sends raw bytes on a new connection and reads one response.
func exchange(t testing.TB, port int, raw string) (*http.Response, string) {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(raw, " ")
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("read response: %v", err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("read body: %v", err)
	}
	return resp, string(body)
}

func get(path string, headers ...string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: example.com\r\n" + strings.Join(append(headers, ""), "\r\n") + "\r\n"
}
