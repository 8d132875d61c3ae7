//go:build e2e

package xds

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// TestEnvoy has a real Envoy (CHANDLER_ENVOY) serve steady load while clusters
// come and go under its routes, and an extension under its listener, and while
// the control plane is restarted: no request fails.
func TestEnvoy(t *testing.T) {
	variants(t, func(t *testing.T, delta bool) {
		e := startEnvoy(t, delta)
		e.serve()
		e.publish("a", false, time.Second)
		e.await("a")
		load := e.load()

		for i, next := range []string{"b", "a", "b", "a", "b", "a"} {
			e.publish(next, i%2 == 0, time.Second)
			e.await(next)
		}
		e.settled("a", "b")
		e.publish("a", true, time.Second)
		e.settled("a", "b")

		e.publish("a", true, 2*time.Second) // a cluster that changes waits for its endpoints again
		e.settled("a", "b")

		e.stop()
		e.serve()
		if !delta { // it cannot tell what it has, so what changed meanwhile is not known to be in use
			e.publish("a", true, 2*time.Second)
			e.settled("a", "b")
		}
		e.publish("b", false, time.Second)
		e.await("b")
		e.settled("b", "a")

		requests := load()
		if requests < 100 {
			t.Errorf("only %d requests were made", requests)
		}
		t.Logf("%d requests", requests)
	})
}

type envoy struct {
	t        *testing.T
	address  string // of ADS
	port     int    // of the listener
	admin    string
	backends map[string]*httptest.Server

	server *Server
	prev   *Snapshot
	stop   func()
}

func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func startEnvoy(t *testing.T, delta bool) *envoy {
	path := os.Getenv("CHANDLER_ENVOY")
	if path == "" {
		t.Fatal("CHANDLER_ENVOY is not set")
	}
	e := &envoy{
		t:        t,
		address:  fmt.Sprintf("127.0.0.1:%d", freePort(t)),
		port:     freePort(t),
		admin:    fmt.Sprintf("127.0.0.1:%d", freePort(t)),
		backends: make(map[string]*httptest.Server),
	}
	for _, name := range []string{"a", "b"} {
		e.backends[name] = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, name) }))
		t.Cleanup(e.backends[name].Close)
	}
	api := "GRPC"
	if delta {
		api = "DELTA_GRPC"
	}
	file := filepath.Join(t.TempDir(), "bootstrap.yaml")
	if err := os.WriteFile(file, []byte(e.bootstrap(api)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-c", file, "--disable-hot-restart", "--concurrency", "2", "--drain-time-s", "1", "-l", "warning")
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return e
}

func (e *envoy) bootstrap(api string) string {
	host, port, _ := net.SplitHostPort(e.address)
	adminHost, adminPort, _ := net.SplitHostPort(e.admin)
	return fmt.Sprintf(`
node: {id: envoy, cluster: class}
admin: {address: {socket_address: {address: %s, port_value: %s}}}
dynamic_resources:
  ads_config: {api_type: %s, transport_api_version: V3, set_node_on_first_message_only: true, grpc_services: [{envoy_grpc: {cluster_name: xds}}]}
  cds_config: {ads: {}, resource_api_version: V3}
  lds_config: {ads: {}, resource_api_version: V3}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: xds
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %s, port_value: %s}}}}]}]
`, adminHost, adminPort, api, host, port)
}

// serve starts a control plane; stop stops it.
func (e *envoy) serve() {
	e.t.Helper()
	l, err := net.Listen("tcp", e.address)
	if err != nil {
		e.t.Fatal(err)
	}
	appeared := make(chan struct{}, 10)
	e.server = New(Config{
		Class:    func(_ context.Context, n *corev3.Node) (string, error) { return n.GetCluster(), nil },
		Appeared: func() { appeared <- struct{}{} },
	})
	g := grpc.NewServer(Options()...)
	e.server.Register(g)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { g.Serve(l) })
	wg.Go(func() { e.server.Run(ctx) })
	e.stop = sync.OnceFunc(func() {
		cancel()
		g.Stop()
		wg.Wait()
	})
	e.t.Cleanup(e.stop)
	select {
	case <-appeared:
	case <-e.t.Context().Done():
	}
}

func packed(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// publish routes everything to the named cluster, the only one there is.
func (e *envoy) publish(cluster string, extension bool, timeout time.Duration) {
	e.t.Helper()
	ads := &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: new(corev3.AggregatedConfigSource)}, ResourceApiVersion: corev3.ApiVersion_V3}
	addr := e.backends[cluster].Listener.Addr().(*net.TCPAddr)
	socket := func(port int) *corev3.Address {
		return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
		}}}
	}
	manager := &hcmv3.HttpConnectionManager{
		StatPrefix:     "http",
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ads, RouteConfigName: "r"}},
	}
	all := []proto.Message{
		&clusterv3.Cluster{
			Name:                 cluster,
			ConnectTimeout:       durationpb.New(timeout),
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads},
		},
		&endpointv3.ClusterLoadAssignment{ClusterName: cluster, Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socket(addr.Port)}}}},
		}}},
		&routev3.RouteConfiguration{Name: "r", VirtualHosts: []*routev3.VirtualHost{{
			Name: "all", Domains: []string{"*"}, Routes: []*routev3.Route{{
				Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster}}},
			}},
		}}},
	}
	if extension {
		all = append(all, &corev3.TypedExtensionConfig{Name: "x", TypedConfig: packed(e.t, new(httprbacv3.RBAC))})
		manager.HttpFilters = append(manager.HttpFilters, &hcmv3.HttpFilter{Name: "x", ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{
			ConfigDiscovery: &corev3.ExtensionConfigSource{
				ConfigSource: &corev3.ConfigSource{
					ConfigSourceSpecifier: ads.ConfigSourceSpecifier,
					ResourceApiVersion:    corev3.ApiVersion_V3,
					InitialFetchTimeout:   durationpb.New(0),
				},
				TypeUrls: []string{"type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"},
			},
		}})
	}
	manager.HttpFilters = append(manager.HttpFilters, &hcmv3.HttpFilter{
		Name: "router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed(e.t, new(routerv3.Router))},
	})
	all = append(all, &listenerv3.Listener{Name: "l", Address: socket(e.port), FilterChains: []*listenerv3.FilterChain{{
		Filters: []*listenerv3.Filter{{Name: "http", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed(e.t, manager)}}},
	}}})

	enc := NewEncoder()
	var resources []*Resource
	for _, m := range all {
		r, err := enc.Encode(m)
		if err != nil {
			e.t.Fatal(err)
		}
		resources = append(resources, r)
	}
	snap, err := NewSnapshot(e.prev, resources)
	if err != nil {
		e.t.Fatal(err)
	}
	e.prev = snap
	e.server.Publish("class", snap)
}

func (e *envoy) get(client *http.Client) (int, string, error) {
	res, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", e.port))
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), err
}

// await returns when the listener answers with body.
func (e *envoy) await(body string) {
	e.t.Helper()
	e.until("an answer from "+body, func() bool {
		_, got, err := e.get(http.DefaultClient)
		return err == nil && got == body
	})
}

// settled returns when Envoy has taken everything, has the cluster and no longer
// has the other.
func (e *envoy) settled(has, hasNot string) {
	e.t.Helper()
	e.until("everything acked and cluster "+hasNot+" gone", func() bool {
		for _, p := range e.server.Proxies() {
			for typeURL, s := range p.Types {
				if s.Reason != "" {
					e.t.Fatalf("%s is refused: %s", typeURL, s.Reason)
				}
				if s.Waiting {
					return false
				}
			}
		}
		res, err := http.Get("http://" + e.admin + "/clusters")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		return err == nil && strings.Contains("\n"+string(body), "\n"+has+"::") && !strings.Contains("\n"+string(body), "\n"+hasNot+"::")
	})
}

func (e *envoy) until(what string, ok func() bool) {
	e.t.Helper()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(10 * time.Second); !ok(); <-poll.C {
		if time.Now().After(deadline) {
			e.t.Fatalf("no %s in time: %+v", what, e.server.Proxies())
		}
	}
}

// load makes requests until the returned function is called, which tells how many.
func (e *envoy) load() func() int {
	var wg sync.WaitGroup
	var stop atomic.Bool
	var requests atomic.Int64
	for range 4 {
		client := &http.Client{Transport: new(http.Transport)}
		wg.Go(func() {
			defer client.CloseIdleConnections()
			for !stop.Load() {
				requests.Add(1)
				if code, body, err := e.get(client); err != nil || code != http.StatusOK {
					e.t.Errorf("request: %d %q %v", code, body, err)
					return
				}
			}
		})
	}
	return func() int {
		stop.Store(true)
		wg.Wait()
		return int(requests.Load())
	}
}
