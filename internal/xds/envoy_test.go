//go:build e2e

package xds

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
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
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/chandler-proxy/chandler/internal/envoy/envoytest"
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

// TestEnvoyReconnects has clusters change while a real Envoy is not connected: no request
// fails when it is again, in both variants if the control plane is the one it had, in the
// incremental variant if it is another.
//
// In state of the world it is otherwise with another, and no order of sending would change
// that: Envoy tells a version, not which clusters it has, and what is not among those that
// it is sent it removes at once, under the routes that still refer to it. See on deleting
// resources https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol.
// The 503s of that case are logged, and no other failure is put up with.
func TestEnvoyReconnects(t *testing.T) {
	variants(t, func(t *testing.T, delta bool) {
		for _, another := range []bool{false, true} {
			t.Run(fmt.Sprintf("another=%v", another), func(t *testing.T) {
				e := startEnvoy(t, delta)
				e.serve()
				e.publish("a", false, time.Second)
				e.await("a")
				var lost atomic.Int64
				load := e.loadBut(func(code int) bool {
					gone := another && !delta && code == http.StatusServiceUnavailable
					if gone {
						lost.Add(1)
					}
					return gone
				})
				for i, next := range []string{"b", "a", "b", "a", "b", "a"} {
					if another {
						e.stop()
						e.begin()
					} else {
						e.hangUp()
					}
					e.publish(next, i%2 == 0, time.Second)
					e.listen()
					e.await(next)
					e.settled(next, map[string]string{"a": "b", "b": "a"}[next])
				}
				t.Logf("%d requests, %d answered 503", load(), lost.Load())
			})
		}
	})
}

type envoy struct {
	*envoytest.Envoy
	t        *testing.T
	address  string // of ADS
	port     int    // of the listener
	backends map[string]*httptest.Server

	server      *Server
	prev        *Snapshot
	end, hangUp func()
}

func startEnvoy(t *testing.T, delta bool) *envoy {
	e := &envoy{
		t:        t,
		address:  envoytest.Address(t),
		port:     envoytest.Port(t),
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
	e.Envoy = envoytest.StartEnvoy(t, func(host, port string) string { return e.bootstrap(api, host, port) }, "--drain-time-s", "1")
	return e
}

func (e *envoy) bootstrap(api, adminHost, adminPort string) string {
	host, port, _ := net.SplitHostPort(e.address)
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
	e.begin()
	e.listen()
}

// begin makes a control plane that nobody can connect to yet.
func (e *envoy) begin() {
	e.server, e.prev = New(Config{
		Class: func(_ context.Context, n *corev3.Node) (string, error) { return n.GetCluster(), nil },
	}), nil
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	server := e.server
	wg.Go(func() { server.Run(ctx) })
	e.keep()
	e.end = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	e.t.Cleanup(e.end)
}

// keep has another proxy of the class, on a port of its own, so that there is a
// configuration when Envoy connects.
func (e *envoy) keep() {
	e.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		e.t.Fatal(err)
	}
	g := grpc.NewServer(Options()...)
	e.server.Register(g)
	var wg sync.WaitGroup
	wg.Go(func() { g.Serve(l) })
	c, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() {
		c.Close()
		g.Stop()
		wg.Wait()
	})
	st, err := discoveryv3.NewAggregatedDiscoveryServiceClient(c).StreamAggregatedResources(e.t.Context())
	if err == nil {
		err = st.Send(&discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: "keeper", Cluster: "class"}, TypeUrl: SecretType})
	}
	if err != nil {
		e.t.Fatal(err)
	}
	e.until("another proxy", func() bool { return len(e.server.Proxies()) == 1 })
}

// listen has the proxy connect, and waits until it does; hangUp ends its stream.
func (e *envoy) listen() {
	e.t.Helper()
	l, err := net.Listen("tcp", e.address)
	if err != nil {
		e.t.Fatal(err)
	}
	g := grpc.NewServer(Options()...)
	e.server.Register(g)
	var wg sync.WaitGroup
	wg.Go(func() { g.Serve(l) })
	e.hangUp = sync.OnceFunc(func() {
		g.Stop()
		wg.Wait()
	})
	e.t.Cleanup(e.hangUp)
	e.until("proxy", func() bool { return len(e.server.Proxies()) == 2 })
}

func (e *envoy) stop() {
	e.end()
	e.hangUp()
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
				if p.ID != "envoy" {
					continue
				}
				if s.Reason != "" {
					e.t.Fatalf("%s is refused: %s", typeURL, s.Reason)
				}
				if s.Waiting {
					return false
				}
			}
		}
		body, err := e.Get("/clusters")
		return err == nil && strings.Contains("\n"+body, "\n"+has+"::") && !strings.Contains("\n"+body, "\n"+hasNot+"::")
	})
}

func (e *envoy) until(what string, ok func() bool) {
	e.t.Helper()
	envoytest.Wait{Patience: 10 * time.Second, Every: 5 * time.Millisecond}.Until(e.t, what, func() error {
		if !ok() {
			return fmt.Errorf("not in time: %+v", e.server.Proxies())
		}
		return nil
	})
}

// load makes requests until the returned function is called, which tells how many.
func (e *envoy) load() func() int {
	return e.loadBut(func(int) bool { return false })
}

// loadBut is load that puts up with some answers.
func (e *envoy) loadBut(tolerated func(code int) bool) func() int {
	var wg sync.WaitGroup
	var stop atomic.Bool
	var requests atomic.Int64
	for range 4 {
		client := &http.Client{Transport: new(http.Transport)}
		wg.Go(func() {
			defer client.CloseIdleConnections()
			for !stop.Load() {
				requests.Add(1)
				if code, body, err := e.get(client); err != nil || code != http.StatusOK && !tolerated(code) {
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
