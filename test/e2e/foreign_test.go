//go:build e2e

package e2e

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	// what the listener and the extension consist of
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

const (
	foreignNode      = "a-node-of-the-users-own"
	foreignExtension = "some-extension"
	foreignSecret    = "hush"
)

// A foreign control plane is one that is not ours: go-control-plane's own server
// and cache, with one listener that answers by itself and one extension.
type foreign struct {
	t     testing.TB
	addr  string
	cache cachev3.SnapshotCache

	mu       sync.Mutex
	versions int
	rejects  []string // why extension configs were refused, in order
	variants map[string]bool
}

func startForeign(t testing.TB) *foreign {
	t.Helper()
	f := &foreign{t: t, cache: cachev3.NewSnapshotCache(true, cachev3.IDHash{}, nil), variants: make(map[string]bool)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	g := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, serverv3.NewServer(ctx, f.cache, serverv3.CallbackFuncs{
		StreamRequestFunc: func(_ int64, r *discoveryv3.DiscoveryRequest) error {
			f.note("state of the world", r.GetTypeUrl(), r.GetErrorDetail())
			return nil
		},
		StreamDeltaRequestFunc: func(_ int64, r *discoveryv3.DeltaDiscoveryRequest) error {
			f.note("incremental", r.GetTypeUrl(), r.GetErrorDetail())
			return nil
		},
	}))
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		cancel()
		g.Stop()
		<-served
	})
	return f
}

func (f *foreign) note(variant, typeURL string, reject *status.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.variants[variant] = true
	if typeURL == resourcev3.ExtensionConfigType && reject != nil {
		f.rejects = append(f.rejects, reject.GetMessage())
	}
}

// rejected waits until an extension config is refused for a reason that says this.
func (f *foreign) rejected(says string) {
	f.t.Helper()
	eventually(f.t, "control plane is told of "+says, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if n := len(f.rejects); n == 0 || !strings.Contains(f.rejects[n-1], says) {
			return fmt.Errorf("refused: %q", f.rejects)
		}
		return nil
	})
}

// publish offers a listener at addr, and the extension with a module, of which
// Envoy itself wants to know the SHA-256, and a configuration.
func (f *foreign) publish(addr, module, sum, config string) {
	f.t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		f.t.Fatal(err)
	}
	listener, extension := new(listenerv3.Listener), new(corev3.TypedExtensionConfig)
	f.parse(listener, `{"name": "http", "address": {"socket_address": {"address": "`+host+`", "port_value": `+port+`}}, "filter_chains": [{"filters": [{"name": "hcm", "typed_config": {
		"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "http",
		"route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "foreign"}}}]}]},
		"http_filters": [
			{"name": "`+foreignExtension+`", "config_discovery": {
				"config_source": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
				"type_urls": ["type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"]}},
			{"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]}`)
	f.parse(extension, `{"name": "`+foreignExtension+`", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm", "config": {
		"name": "plugin", "root_id": "", "configuration": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "{\"name\": \"`+config+`\"}"},
		"vm_config": {"runtime": "envoy.wasm.runtime.v8",
			"code": {"remote": {"http_uri": {"uri": "`+module+`", "cluster": "modules", "timeout": "10s"}, "sha256": "`+sum+`"}},
			"environment_variables": {"key_values": {"ISTIO_META_WASM_IMAGE_PULL_SECRET": "`+foreignSecret+`", "KEPT": "kept"}}}}}}`)
	f.mu.Lock()
	f.versions++
	version := strconv.Itoa(f.versions)
	f.mu.Unlock()
	snapshot, err := cachev3.NewSnapshot(version, map[resourcev3.Type][]types.Resource{
		resourcev3.ListenerType:        {listener},
		resourcev3.ExtensionConfigType: {extension},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	if err := f.cache.SetSnapshot(context.Background(), foreignNode, snapshot); err != nil {
		f.t.Fatal(err)
	}
}

func (f *foreign) parse(m proto.Message, text string) {
	f.t.Helper()
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		f.t.Fatal(err)
	}
}

// bootstrap is one of the user's own: another node, and clusters of its own. Its
// ADS cluster is the agent's socket; with Envoy's own way to fetch modules there
// is a cluster for the shelf.
func (f *foreign) bootstrap(m *mesh, variant string, modules *shelf) string {
	f.t.Helper()
	api := "DELTA_GRPC"
	if variant == "state of the world" {
		api = "GRPC"
	}
	_, admin, _ := net.SplitHostPort(m.Admin)
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(modules.server.URL, "http://"))
	text := strings.NewReplacer("NODE", foreignNode, "ADMIN", admin, "API", api,
		"SOCKET", filepath.Join(m.Data, "xds.sock"), "MODULES", port).Replace(`
node: {id: NODE, cluster: edge}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: ADMIN}}}
dynamic_resources:
  ads_config: {api_type: API, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: agent}}]}
  lds_config: {ads: {}, resource_api_version: V3}
static_resources:
  clusters:
  - name: agent
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment: {cluster_name: agent, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: SOCKET}}}}]}]}
  - name: modules
    load_assignment: {cluster_name: modules, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: MODULES}}}}]}]}
`)
	file := filepath.Join(f.t.TempDir(), "bootstrap.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	return file
}

// An agent in front of a control plane and with a bootstrap that know nothing of
// Chandler.
func TestForeignControlPlane(t *testing.T) {
	for _, variant := range []string{"incremental", "state of the world"} {
		t.Run(variant, func(t *testing.T) {
			f, s := startForeign(t), startShelf(t)
			m := prepare(t)
			one, two := s.put("one.wasm", module(t, "one")), s.put("two.wasm", module(t, "two"))
			m.ControlXDS = f.addr
			m.AgentArgs = []string{untried, "--", "-c", f.bootstrap(m, variant, s)}
			f.publish(m.Gateway, one, "", "first")
			m.startAgent()
			m.ready()
			m.answers(200, "first")
			l := m.load()
			l.more(100)

			config := page("http://" + m.Admin + "/config_dump?include_eds").body
			if !strings.Contains(config, filepath.Join(m.Data, "modules")) || !strings.Contains(config, "KEPT") {
				t.Errorf("Envoy's configuration names no local module:\n%s", config)
			}
			for _, hidden := range []string{foreignSecret, "ISTIO_META_", s.server.URL} {
				if strings.Contains(config, hidden) {
					t.Errorf("Envoy's configuration has %q in it", hidden)
				}
			}

			f.publish(m.Gateway, two, "", "second")
			m.answers(200, "second")
			f.publish(m.Gateway, s.url("missing.wasm"), "", "third")
			f.rejected("404")
			l.more(100)
			m.answers(200, "second")
			f.publish(m.Gateway, s.put("refuse.wasm", testModule(t, "refuse-config")), "", "fourth")
			f.rejected("the proxy refused it")
			l.more(100)
			m.answers(200, "second")
			f.publish(m.Gateway, one, "", "fifth")
			m.answers(200, "fifth")
			l.more(100)
			l.only(ok("first"), ok("second"), ok("fifth"))

			f.mu.Lock()
			defer f.mu.Unlock()
			if !f.variants[variant] || len(f.variants) != 1 {
				t.Errorf("control plane was spoken to in %v, want %s", f.variants, variant)
			}
			if asked, _ := s.count("one.wasm"); asked != 1 {
				t.Errorf("%d requests for a module that was in the store, want 1", asked)
			}
		})
	}
}

// With the agent's conversion off Envoy gets extension configs as they come.
func TestForeignUntouched(t *testing.T) {
	for _, variant := range []string{"incremental", "state of the world"} {
		t.Run(variant, func(t *testing.T) {
			f, s := startForeign(t), startShelf(t)
			m := prepare(t)
			m.ControlXDS = f.addr
			m.AgentEnv = []string{"ISTIO_AGENT_ENABLE_WASM_REMOTE_LOAD_CONVERSION=false"}
			m.AgentArgs = []string{untried, "--", "-c", f.bootstrap(m, variant, s)}
			one := module(t, "one")
			f.publish(m.Gateway, s.put("one.wasm", one), fmt.Sprintf("%x", sha256.Sum256(one)), "first")
			m.startAgent()
			m.ready()
			m.answers(200, "first") // Envoy has fetched the module itself
			config := page("http://" + m.Admin + "/config_dump").body
			for _, kept := range []string{"ISTIO_META_WASM_IMAGE_PULL_SECRET", s.url("one.wasm")} {
				if !strings.Contains(config, kept) {
					t.Errorf("Envoy's configuration has no %q:\n%s", kept, config)
				}
			}
			if got := m.fetches() + m.conversions(); got != 0 {
				t.Errorf("agent counts %v fetches and conversions", got)
			}
		})
	}
}
