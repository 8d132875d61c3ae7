//go:build e2e

package translate

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// TestEnvoyTakesGoldens has the real Envoy (ENVOY, else envoy of PATH) validate
// every golden configuration, with route configurations put into the listeners
// that ask for them and secrets given statically. Files are those of testdata/certs.
func TestEnvoyTakesGoldens(t *testing.T) {
	envoy, err := exec.LookPath(cmp.Or(os.Getenv("CHANDLER_ENVOY"), "envoy"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range goldens(t) {
		t.Run(name, func(t *testing.T) {
			objects, p := readInput(t, name)
			w, _ := mesh.New(objects, mesh.Options{TrustedCA: "testdata/certs/ca.crt"})
			r, _ := Build(w, p)
			file := filepath.Join(t.TempDir(), "bootstrap.json")
			b, err := protojson.Marshal(bootstrap(t, r))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), envoy, "--mode", "validate", "-l", "error", "-c", file).CombinedOutput()
			if err != nil {
				t.Errorf("envoy refuses it: %v\n%s", err, out)
			}
		})
	}
}

func bootstrap(t *testing.T, r *Resources) *bootstrapv3.Bootstrap {
	routes := map[string]*routev3.RouteConfiguration{}
	for _, rc := range r.Routes {
		routes[rc.Name] = rc
	}
	static := &bootstrapv3.Bootstrap_StaticResources{Secrets: r.Secrets}
	for _, l := range r.Listeners {
		l = proto.Clone(l).(*listenerv3.Listener)
		for _, c := range l.FilterChains {
			for _, f := range c.Filters {
				inlineRoutes(t, f, routes)
			}
		}
		static.Listeners = append(static.Listeners, l)
	}
	static.Clusters = append(static.Clusters, r.Clusters...)
	static.Clusters = append(static.Clusters, &clusterv3.Cluster{
		Name:                 "xds",
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		//lint:ignore SA1019 the short way to say it
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
	})
	return &bootstrapv3.Bootstrap{
		Node:            &corev3.Node{Id: "validate", Cluster: "validate"},
		StaticResources: static,
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{AdsConfig: &corev3.ApiConfigSource{
			ApiType: corev3.ApiConfigSource_GRPC, TransportApiVersion: corev3.ApiVersion_V3,
			GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
				EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: "xds"}}}},
		}},
	}
}

func inlineRoutes(t *testing.T, f *listenerv3.Filter, routes map[string]*routev3.RouteConfiguration) {
	if f.Name != hcmFilter {
		return
	}
	m := new(hcmv3.HttpConnectionManager)
	if err := f.GetTypedConfig().UnmarshalTo(m); err != nil {
		t.Fatal(err)
	}
	if m.GetRds() != nil {
		rc := routes[m.GetRds().RouteConfigName]
		if rc == nil {
			t.Fatalf("no route configuration %s", m.GetRds().RouteConfigName)
		}
		m.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: rc}
	}
	f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: anyOf(m)}
}
