//go:build e2e

package template

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/chandler-proxy/chandler/internal/engine"
	"github.com/chandler-proxy/chandler/internal/envoytypes"
)

// startEngine runs the engine, with two instances of the plugin, until the test ends, and
// returns the URL of its listener, or why it refused that.
func startEngine(t *testing.T, module, config string) (url, why string) {
	t.Helper()
	verdict := make(chan string, 1) // on the listener: why it is refused, or nothing
	socket := serveListener(t, engineListener(t, module, config), func(r *discoveryv3.DeltaDiscoveryRequest) {
		if r.TypeUrl == resourcev3.ListenerType && r.ResponseNonce != "" {
			select {
			case verdict <- r.GetErrorDetail().GetMessage():
			default:
			}
		}
	})
	admin, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := engine.New(engine.Config{Node: &corev3.Node{Id: node}, XDS: socket, Admin: admin, Concurrency: 2})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := e.Run(ctx); err != nil {
			t.Errorf("run engine: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	patient, end := context.WithTimeout(t.Context(), patience)
	defer end()
	select {
	case why = <-verdict:
	case <-patient.Done():
		t.Fatalf("the engine has not said what it thinks of its listener after %s", patience)
	}
	if why != "" {
		return "", why
	}
	return listenerOf(t, admin.Addr().String()), ""
}

const node = "sidecar~127.0.0.1~a.b~c"

// engineListener is the listener that Envoy has in its bootstrap.
func engineListener(t *testing.T, module, config string) *listenerv3.Listener {
	t.Helper()
	static := bootstrap(module, config)["static_resources"].(map[string]any)
	text, err := json.Marshal(static["listeners"].([]map[string]any)[0])
	if err != nil {
		t.Fatal(err)
	}
	l := new(listenerv3.Listener)
	if err := (protojson.UnmarshalOptions{Resolver: envoytypes.Types()}).Unmarshal(text, l); err != nil {
		t.Fatal(err)
	}
	return l
}

// serveListener serves a listener over xDS and returns the server's socket. Every request
// is told.
func serveListener(t *testing.T, l *listenerv3.Listener, told func(*discoveryv3.DeltaDiscoveryRequest)) (socket string) {
	t.Helper()
	snapshot, err := cachev3.NewSnapshot("1", map[resourcev3.Type][]types.Resource{resourcev3.ListenerType: {l}})
	if err != nil {
		t.Fatal(err)
	}
	cache := cachev3.NewSnapshotCache(true, cachev3.IDHash{}, nil)
	if err := cache.SetSnapshot(t.Context(), node, snapshot); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "xds") // a test's own may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "xds")
	at, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	ctx, cancel := context.WithCancel(context.Background())
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, serverv3.NewServer(ctx, cache, serverv3.CallbackFuncs{
		StreamDeltaRequestFunc: func(_ int64, r *discoveryv3.DeltaDiscoveryRequest) error {
			told(r)
			return nil
		},
	}))
	var serving sync.WaitGroup
	serving.Go(func() { _ = g.Serve(at) }) // ends with Stop
	t.Cleanup(func() { cancel(); g.Stop(); serving.Wait() })
	return socket
}
