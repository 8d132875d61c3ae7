package bench

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chandler-proxy/chandler/internal/ecds"
	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/fetch/httpget"
	"github.com/chandler-proxy/chandler/internal/modcache"
	"github.com/chandler-proxy/chandler/internal/relay"
	"github.com/chandler-proxy/chandler/internal/store"
)

// BenchmarkConversion is the way of an extension config from the control plane
// to the proxy, and of the ack back, through a real relay and gRPC in memory, its
// module in the store: with the relay's work (convert), and passed through as
// bytes (pass). What convert has more is the conversion's; it must not depend on
// the module's size. µs-delivery is the median of the way down alone.
func BenchmarkConversion(b *testing.B) {
	b.Run("pass", func(b *testing.B) {
		benchmarkRelay(b, newRelay(b, relay.Config{PassECDS: true}), "http://127.0.0.1/none.wasm")
	})
	for _, size := range []int{10 << 10, 1 << 20, 10 << 20} {
		b.Run("convert/"+sizeName(size), func(b *testing.B) {
			server := httptest.NewServer(serve(wasmOf(size)))
			b.Cleanup(server.Close)
			benchmarkRelay(b, newRelay(b, relay.Config{Modules: newModules(b, b.TempDir())}), server.URL+"/module.wasm")
		})
	}
}

// benchmarkRelay sends one version of an extension after the other.
func benchmarkRelay(b *testing.B, r *relayed, url string) {
	ask := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: ecds.TypeURL, ResourceNamesSubscribe: []string{extensionName}}
	if err := r.proxy.Send(ask); err != nil {
		b.Fatal(err)
	}
	if _, err := r.above().Recv(); err != nil {
		b.Fatal(err)
	}
	version := 0
	change := func() time.Duration {
		version++
		took, err := r.change(extension(b, url, version), strconv.Itoa(version))
		if err != nil {
			b.Fatal(err)
		}
		return took
	}
	change() // the first brings the module into the store
	var took times
	b.ReportAllocs()
	for b.Loop() {
		took = append(took, change())
	}
	b.ReportMetric(float64(took.median().Nanoseconds())/1000, "µs-delivery")
}

// relayed is a relay with both its ends.
type relayed struct {
	above func() discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	proxy discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
}

// change sends a version of the extension from above, takes what the proxy
// gets, and has the proxy's ack go all the way up. It returns how long the way
// down took.
func (r *relayed) change(body *anypb.Any, version string) (time.Duration, error) {
	start := time.Now()
	err := r.above().Send(&discoveryv3.DeltaDiscoveryResponse{
		TypeUrl: ecds.TypeURL, Nonce: version,
		Resources: []*discoveryv3.Resource{{Name: extensionName, Version: version, Resource: body}},
	})
	if err != nil {
		return 0, err
	}
	got, err := r.proxy.Recv()
	took := time.Since(start)
	if err != nil {
		return 0, err
	}
	if n := len(got.GetResources()); n != 1 || !strings.HasPrefix(got.GetResources()[0].GetVersion(), version) {
		return 0, fmt.Errorf("the proxy got %v, want version %s", got, version)
	}
	ack := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: ecds.TypeURL, ResponseNonce: got.GetNonce()}
	if err := r.proxy.Send(ack); err != nil {
		return 0, err
	}
	answer, err := r.above().Recv()
	if err == nil && (answer.GetResponseNonce() != version || answer.GetErrorDetail() != nil) {
		err = fmt.Errorf("the control plane was answered %v, want an ack of %s", answer, version)
	}
	return took, err
}

// controlPlane hands its one stream to the benchmark.
type controlPlane struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	streams chan discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
}

func (c *controlPlane) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	c.streams <- s
	<-s.Context().Done()
	return nil
}

// newRelay runs a relay between a control plane and a proxy. It ends with b.
func newRelay(b *testing.B, cfg relay.Config) *relayed {
	b.Helper()
	above := &controlPlane{streams: make(chan discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, 1)}
	server := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, above)
	upper, lower := bufconn.Listen(1<<20), bufconn.Listen(1<<20)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	cfg.Upstream = dial(b, upper)
	wg.Go(func() {
		if err := server.Serve(upper); err != nil {
			b.Errorf("control plane: %v", err)
		}
	})
	wg.Go(func() {
		if err := relay.New(cfg).Run(ctx, lower); err != nil {
			b.Errorf("relay: %v", err)
		}
	})
	b.Cleanup(func() {
		cancel()
		server.Stop()
		wg.Wait()
	})
	proxy, err := discoveryv3.NewAggregatedDiscoveryServiceClient(dial(b, lower)).DeltaAggregatedResources(ctx)
	if err != nil {
		b.Fatal(err)
	}
	return &relayed{proxy: proxy, above: sync.OnceValue(func() discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer {
		return <-above.streams
	})}
}

func dial(b *testing.B, l *bufconn.Listener) *grpc.ClientConn {
	b.Helper()
	conn, err := grpc.NewClient("passthrough:///memory", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	return conn
}

// newModules is a module cache with a store in dir, for modules from web servers.
func newModules(b *testing.B, dir string) *modcache.Cache {
	b.Helper()
	return newCache(b, dir, fetch.Schemes{"http": httpget.New(httpget.Config{Transport: fetch.NewTransport(fetch.TransportConfig{})})})
}

// newCache is a module cache as the agent makes it, but for Run: nothing is to expire.
func newCache(b *testing.B, dir string, fetcher fetch.Fetcher) *modcache.Cache {
	b.Helper()
	files, err := store.Open(filepath.Join(dir, "modules"), fetch.DefaultMaxModule)
	if err != nil {
		b.Fatal(err)
	}
	return modcache.New(modcache.Config{
		Store: files, Fetcher: fetcher,
		Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
	})
}

const extensionName = "extensions.istio.io/wasmplugin/istio-system.bench"

// extension is a version of an extension as a control plane sends it, with the
// module at url.
func extension(b *testing.B, url string, version int) *anypb.Any {
	b.Helper()
	filter := &httpwasmv3.Wasm{Config: &wasmv3.PluginConfig{
		Name: extensionName, RootId: "bench", Configuration: wrap(b, wrapperspb.String(fmt.Sprint("version ", version))),
		Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{
			Runtime: "envoy.wasm.runtime.v8",
			Code: &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Remote{Remote: &corev3.RemoteDataSource{
				HttpUri: &corev3.HttpUri{
					Uri:              url,
					HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: "_"},
					Timeout:          durationpb.New(0),
				},
			}}},
		}},
	}}
	return wrap(b, &corev3.TypedExtensionConfig{Name: extensionName, TypedConfig: wrap(b, filter)})
}

// wrap is m in an Any.
func wrap(b *testing.B, m proto.Message) *anypb.Any {
	b.Helper()
	a, err := anypb.New(m)
	if err != nil {
		b.Fatal(err)
	}
	return a
}
