package relay

import (
	"context"
	"crypto/sha256"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/chandler-proxy/chandler/internal/ecds"
	"github.com/chandler-proxy/chandler/internal/module"
	"github.com/chandler-proxy/chandler/internal/store"
)

// controlPlane is an ADS server whose streams the test plays by hand.
type controlPlane struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	delta chan discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	sotw  chan discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer
}

func (c *controlPlane) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	c.delta <- s
	<-s.Context().Done()
	return nil
}

func (c *controlPlane) StreamAggregatedResources(s discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	c.sotw <- s
	<-s.Context().Done()
	return nil
}

// modules answers every fetch by the test's own word.
type modules func(ctx context.Context, want module.Want) (*store.Lease, error)

func (m modules) Get(ctx context.Context, want module.Want) (*store.Lease, error) {
	return m(ctx, want)
}

func dial(t *testing.T, l *bufconn.Listener) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///test", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// start runs a relay between a control plane and a proxy, and returns both ends.
func start(t *testing.T, cfg Config) (*controlPlane, discoveryv3.AggregatedDiscoveryServiceClient, *Relay) {
	t.Helper()
	above := &controlPlane{
		delta: make(chan discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, 1),
		sotw:  make(chan discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer, 1),
	}
	srv := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(srv, above)
	aboveListener, relayListener := bufconn.Listen(1<<16), bufconn.Listen(1<<16)
	served := make(chan error, 2)
	go func() { served <- srv.Serve(aboveListener) }()

	cfg.Upstream = dial(t, aboveListener)
	r := New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { served <- r.Run(ctx, relayListener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("relay: %v", err)
		}
		srv.Stop()
		<-served
	})
	return above, discoveryv3.NewAggregatedDiscoveryServiceClient(dial(t, relayListener)), r
}

// must returns v, or fails the test.
func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func lease(content string) *store.Lease {
	return &store.Lease{Path: "/modules/" + content, Digest: sha256.Sum256([]byte(content))}
}

func TestOtherTypesPassAsBytes(t *testing.T) {
	above, envoy, r := start(t, Config{})
	s := must[discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient](t)(envoy.DeltaAggregatedResources(t.Context()))

	// Fields that today's schema has not, in both directions.
	unknown := []byte{0xfa, 0x07, 3, 'n', 'e', 'w'}
	request := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster", ResourceNamesSubscribe: []string{"*"}}
	request.ProtoReflect().SetUnknown(unknown)
	if err := s.Send(request); err != nil {
		t.Fatal(err)
	}
	up := <-above.delta
	got := must[*discoveryv3.DeltaDiscoveryRequest](t)(up.Recv())
	if diff := cmp.Diff(request, got, protocmp.Transform()); diff != "" {
		t.Errorf("request (-sent +received):\n%s", diff)
	}
	response := &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl: request.TypeUrl, Nonce: "n",
		Resources: []*discoveryv3.Resource{{Name: "c", Resource: &anypb.Any{TypeUrl: request.TypeUrl, Value: []byte{0xff, 0xff}}}},
	}
	response.ProtoReflect().SetUnknown(unknown)
	if r.Connected() {
		t.Error("Connected before the control plane said anything")
	}
	if err := up.Send(response); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(response, must[*discoveryv3.DeltaDiscoveryResponse](t)(s.Recv()), protocmp.Transform()); diff != "" {
		t.Errorf("response (-sent +received):\n%s", diff)
	}
	if !r.Connected() {
		t.Error("not Connected after a response")
	}
}

func TestPassECDS(t *testing.T) {
	above, envoy, _ := start(t, Config{PassECDS: true})
	s := must[discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient](t)(envoy.DeltaAggregatedResources(t.Context()))
	if err := s.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: ecds.TypeURL, ResourceNamesSubscribe: []string{"a"}}); err != nil {
		t.Fatal(err)
	}
	response := &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl:   ecds.TypeURL,
		Resources: []*discoveryv3.Resource{{Name: "a", Resource: remoteExtension(t, "a", "1", 0)}},
	}
	if err := (<-above.delta).Send(response); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(response, must[*discoveryv3.DeltaDiscoveryResponse](t)(s.Recv()), protocmp.Transform()); diff != "" {
		t.Errorf("response (-sent +received):\n%s", diff)
	}
}

func TestStateOfTheWorld(t *testing.T) {
	reg := prometheus.NewRegistry()
	failing := errors.New(unavailable)
	above, envoy, _ := start(t, Config{
		Metrics: reg,
		Modules: modules(func(_ context.Context, want module.Want) (*store.Lease, error) {
			if strings.HasSuffix(want.Ref.String(), ":bad") {
				return nil, failing
			}
			return lease("one"), nil
		}),
	})
	s := must[discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient](t)(envoy.StreamAggregatedResources(t.Context()))
	send := func(m *discoveryv3.DiscoveryRequest) {
		t.Helper()
		m.TypeUrl = ecds.TypeURL
		if err := s.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"a", "b"}})
	up := <-above.sotw
	recv := func(want *discoveryv3.DiscoveryRequest) {
		t.Helper()
		want.TypeUrl = ecds.TypeURL
		if diff := cmp.Diff(want, must[*discoveryv3.DiscoveryRequest](t)(up.Recv()), protocmp.Transform()); diff != "" {
			t.Errorf("request (-want +got):\n%s", diff)
		}
	}
	recv(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"a", "b"}})

	publish := func(nonce string, bodies ...*anypb.Any) {
		t.Helper()
		if err := up.Send(&discoveryv3.DiscoveryResponse{VersionInfo: "v" + nonce, Nonce: nonce, TypeUrl: ecds.TypeURL, Resources: bodies}); err != nil {
			t.Fatal(err)
		}
	}
	names := []string{"a", "b"}
	publish("1", remoteExtension(t, "a", "1", 0), remoteExtension(t, "b", "1", 0))
	var last *discoveryv3.DiscoveryResponse
	got := make(map[string]string)
	for range names {
		last = must[*discoveryv3.DiscoveryResponse](t)(s.Recv())
		got[ecds.Name(last.GetResources()[0])] = describe(t, last.GetResources()[0])
	}
	if diff := cmp.Diff(map[string]string{"a": "file /modules/one", "b": "file /modules/one"}, got); diff != "" {
		t.Errorf("extensions (-want +got):\n%s", diff)
	}
	// Envoy may answer only the last of several.
	send(&discoveryv3.DiscoveryRequest{ResourceNames: names, VersionInfo: last.GetVersionInfo(), ResponseNonce: last.GetNonce()})
	recv(&discoveryv3.DiscoveryRequest{ResourceNames: names, VersionInfo: "v1", ResponseNonce: "1"})

	publish("2", remoteExtension(t, "a", "bad", 0), remoteExtension(t, "b", "1", 0))
	refused := must[*discoveryv3.DiscoveryRequest](t)(up.Recv())
	if refused.GetVersionInfo() != "v1" || refused.GetResponseNonce() != "2" ||
		refused.GetErrorDetail().GetMessage() != "extension a: "+unavailable {
		t.Errorf("nack = %v", refused)
	}
	last = must[*discoveryv3.DiscoveryResponse](t)(s.Recv())
	if name := ecds.Name(last.GetResources()[0]); name != "b" {
		t.Errorf("the proxy was sent %s, want only b", name)
	}

	publish("3", remoteExtension(t, "a", "2", 0))
	last = must[*discoveryv3.DiscoveryResponse](t)(s.Recv())
	send(&discoveryv3.DiscoveryRequest{ResourceNames: names, VersionInfo: last.GetVersionInfo(), ResponseNonce: last.GetNonce()})
	recv(&discoveryv3.DiscoveryRequest{ResourceNames: names, VersionInfo: "v3", ResponseNonce: "3"})

	// Fewer names.
	send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"b"}, VersionInfo: last.GetVersionInfo(), ResponseNonce: last.GetNonce()})
	recv(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"b"}, VersionInfo: "v3", ResponseNonce: "3"})

	want := `
# HELP istio_agent_wasm_config_conversion_count Wasm extension configs converted, by result.
# TYPE istio_agent_wasm_config_conversion_count counter
istio_agent_wasm_config_conversion_count{result="fetch_failure"} 1
istio_agent_wasm_config_conversion_count{result="marshal_failure"} 0
istio_agent_wasm_config_conversion_count{result="miss_remote_fetch_hint"} 0
istio_agent_wasm_config_conversion_count{result="no_remote_load"} 0
istio_agent_wasm_config_conversion_count{result="success"} 4
istio_agent_wasm_config_conversion_count{result="unmarshal_failure"} 0
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "istio_agent_wasm_config_conversion_count"); err != nil {
		t.Error(err)
	}
}

func TestSlowFetchIsCancelledByNewerVersion(t *testing.T) {
	slow := make(chan error)
	above, envoy, _ := start(t, Config{
		Modules: modules(func(ctx context.Context, want module.Want) (*store.Lease, error) {
			if strings.HasSuffix(want.Ref.String(), ":slow") {
				<-ctx.Done()
				slow <- ctx.Err()
				return nil, ctx.Err()
			}
			return lease("quick"), nil
		}),
	})
	s := must[discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient](t)(envoy.DeltaAggregatedResources(t.Context()))
	if err := s.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: ecds.TypeURL, ResourceNamesSubscribe: []string{"a"}}); err != nil {
		t.Fatal(err)
	}
	up := <-above.delta
	if err := up.Send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: ecds.TypeURL, Nonce: "1",
		Resources: []*discoveryv3.Resource{{Name: "a", Version: "1", Resource: remoteExtension(t, "a", "slow", 0)}}}); err != nil {
		t.Fatal(err)
	}
	if err := up.Send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: ecds.TypeURL, Nonce: "2",
		Resources: []*discoveryv3.Resource{{Name: "a", Version: "2", Resource: remoteExtension(t, "a", "quick", 0)}}}); err != nil {
		t.Fatal(err)
	}
	if err := <-slow; !errors.Is(err, context.Canceled) {
		t.Errorf("the slow fetch ended with %v", err)
	}
	got := must[*discoveryv3.DeltaDiscoveryResponse](t)(s.Recv())
	if want := version("2", "quick"); got.GetResources()[0].GetVersion() != want {
		t.Errorf("version = %s, want %s", got.GetResources()[0].GetVersion(), want)
	}
}

func TestControlPlaneAway(t *testing.T) {
	conn, err := grpc.NewClient("unix:"+t.TempDir()+"/nobody.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	l := bufconn.Listen(1 << 16)
	r := New(Config{Upstream: conn})
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error)
	go func() { ran <- r.Run(ctx, l) }()
	s := must[discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient](t)(
		discoveryv3.NewAggregatedDiscoveryServiceClient(dial(t, l)).DeltaAggregatedResources(t.Context()))
	if _, err := s.Recv(); err == nil || !strings.Contains(err.Error(), "control plane") {
		t.Errorf("error = %v, want one that tells of the control plane", err)
	}
	cancel()
	if err := <-ran; err != nil {
		t.Errorf("Run = %v", err)
	}
}

func BenchmarkConversion(b *testing.B) {
	r := New(Config{})
	s := newSession(context.Background(), r, new(delta))
	s.start = func(context.Context, string, uint64, time.Duration, *wanted) {}
	res := remoteExtension(b, "a", "1", wasmv3.FailurePolicy_FAIL_OPEN)
	req, err := proto.Marshal(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: ecds.TypeURL, ResourceNamesSubscribe: []string{"a"}})
	if err != nil {
		b.Fatal(err)
	}
	if err := s.fromEnvoy(req); err != nil {
		b.Fatal(err)
	}
	f, err := proto.Marshal(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: ecds.TypeURL, Nonce: "1",
		Resources: []*discoveryv3.Resource{{Name: "a", Version: "1", Resource: res}}})
	if err != nil {
		b.Fatal(err)
	}
	l := lease("one")
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := s.fromAbove(f); err != nil {
			b.Fatal(err)
		}
		if err := s.fetched("a", s.gens, l, nil); err != nil {
			b.Fatal(err)
		}
		s.down, s.up = s.down[:0], s.up[:0]
	}
}
