package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
	"github.com/chandler-proxy/chandler/internal/translate"
	"github.com/chandler-proxy/chandler/internal/xds"
)

// run runs f until the test ends.
func run(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
}

func testPublisher(t *testing.T) *publisher {
	server := xds.New(xds.Config{Class: func(ctx context.Context, n *corev3.Node) (string, error) {
		return class(context.WithValue(ctx, plaintext{}, true), nil, n)
	}})
	log := slog.New(slog.DiscardHandler)
	return newPublisher(server, make(chan struct{}), mesh.Options{}, newProblems(log, prometheus.NewRegistry()), log)
}

// services are n resources; each names the Envoy cluster that testPlane makes of it.
func services(n int) []resource.Object {
	var all []resource.Object
	for i := range n {
		all = append(all, service(fmt.Sprint("s", i), "1"))
	}
	return all
}

func service(name, version string) resource.Object {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"version": version}}}
	s.Kind = "Service"
	return s
}

// A channel is a source that delivers what is sent to it.
type channel chan source.Snapshot

func (c channel) Run(ctx context.Context, deliver func(source.Snapshot)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case snap, ok := <-c:
			if !ok {
				return errors.New("source broke")
			}
			deliver(snap)
		}
	}
}

// A testPlane makes an Envoy cluster of each service, and all that secrets can
// be in.
type testPlane struct {
	*Plane
	t       *testing.T
	source  channel
	builds  atomic.Int32
	objects []resource.Object
}

func newTestPlane(t *testing.T) *testPlane {
	p := &testPlane{t: t, source: make(channel)}
	var err error
	p.Plane, err = Listen(t.Context(), Config{Source: p.source, XDS: "127.0.0.1:0", Monitoring: "127.0.0.1:0", Pprof: true})
	if err != nil {
		t.Fatal(err)
	}
	p.publisher.newWorld = func(objects []resource.Object) (*mesh.World, []resource.Problem) {
		p.objects = objects
		return new(mesh.World), nil
	}
	p.publisher.build = func(_ *mesh.World, proxy mesh.Proxy) (*translate.Resources, []resource.Problem) {
		p.builds.Add(1)
		return p.build(proxy)
	}
	return p
}

func (p *testPlane) build(proxy mesh.Proxy) (*translate.Resources, []resource.Problem) {
	var r translate.Resources
	var problems []resource.Problem
	for _, o := range p.objects {
		r.Clusters = append(r.Clusters, &clusterv3.Cluster{Name: o.GetName(), AltStatName: o.GetLabels()["version"]})
		if o.GetLabels()["version"] == "bad" {
			problems = append(problems, resource.Problem{Kind: "Service", Name: o.GetName(), Message: "version is bad"})
		}
	}
	filter, err := anypb.New(&httpwasmv3.Wasm{Config: &wasmv3.PluginConfig{Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{
		EnvironmentVariables: &wasmv3.EnvironmentVariables{KeyValues: map[string]string{
			"ISTIO_META_WASM_IMAGE_PULL_SECRET": "hush", "OTHER": "shown",
		}},
		Code: &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Remote{Remote: &corev3.RemoteDataSource{
			HttpUri: &corev3.HttpUri{Uri: "https://user:hush@modules.example/plugin.wasm?signature=hush"},
		}}},
	}}}})
	if err != nil {
		p.t.Fatal(err)
	}
	r.Extensions = []*corev3.TypedExtensionConfig{
		{Name: "ext", TypedConfig: filter},
		{Name: "unknown", TypedConfig: &anypb.Any{TypeUrl: "type.googleapis.com/no.such.Type", Value: []byte("\x0a\x04hush")}},
	}
	inline := func(s string) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: s}}
	}
	r.Secrets = []*tlsv3.Secret{
		{Name: "cert", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline("shown"), PrivateKey: inline("hush"), Password: inline("hush"),
		}}},
		{Name: "tickets", Type: &tlsv3.Secret_SessionTicketKeys{SessionTicketKeys: &tlsv3.TlsSessionTicketKeys{Keys: []*corev3.DataSource{inline("hush")}}}},
		{Name: "generic", Type: &tlsv3.Secret_GenericSecret{GenericSecret: &tlsv3.GenericSecret{Secret: inline("hush")}}},
	}
	return &r, problems
}

type stream = discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient

func (p *testPlane) connect() discoveryv3.AggregatedDiscoveryServiceClient {
	p.t.Helper()
	conn, err := grpc.NewClient(p.XDSAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	return discoveryv3.NewAggregatedDiscoveryServiceClient(conn)
}

func nodeID(name string) string { return "router~10.0.0.1~" + name + ".ns~ns.svc.cluster.local" }

// subscribe opens a stream and subscribes.
func (p *testPlane) subscribe(name, typeURL string, names ...string) stream {
	p.t.Helper()
	s, err := p.connect().DeltaAggregatedResources(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	p.send(s, &discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: nodeID(name)}, TypeUrl: typeURL, ResourceNamesSubscribe: names})
	return s
}

func (p *testPlane) send(s stream, r *discoveryv3.DeltaDiscoveryRequest) {
	p.t.Helper()
	if err := s.Send(r); err != nil {
		p.t.Fatal(err)
	}
}

// want receives the next response, with clusters as NAME=VERSION.
func (p *testPlane) want(s stream, want ...string) *discoveryv3.DeltaDiscoveryResponse {
	p.t.Helper()
	r, err := s.Recv()
	if err != nil {
		p.t.Fatal(err)
	}
	var got []string
	for _, res := range r.GetResources() {
		c := new(clusterv3.Cluster)
		if err := res.GetResource().UnmarshalTo(c); err != nil {
			p.t.Fatal(err)
		}
		got = append(got, c.GetName()+"="+c.GetAltStatName())
	}
	for _, name := range r.GetRemovedResources() {
		got = append(got, "-"+name)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		p.t.Fatalf("response (-want +got):\n%s", diff)
	}
	return r
}

func (p *testPlane) get(path string) (int, string) {
	p.t.Helper()
	res, err := http.Get("http://" + p.MonitoringAddr().String() + path)
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func TestPlane(t *testing.T) {
	p := newTestPlane(t)
	run(t, p.Run)
	if code, _ := p.get("/ready"); code != http.StatusServiceUnavailable {
		t.Errorf("/ready before the first snapshot = %d", code)
	}
	s := p.subscribe("early", xds.ClusterType) // waits
	p.source <- source.Snapshot{Objects: []resource.Object{service("a", "1"), service("b", "1")}}
	p.want(s, "a=1", "b=1")
	if code, _ := p.get("/ready"); code != http.StatusOK {
		t.Errorf("/ready = %d", code)
	}

	p.source <- source.Snapshot{
		Objects:  []resource.Object{service("a", "1"), service("b", "bad")},
		Problems: []resource.Problem{{File: "b.yaml", Line: 3, Message: "does not parse"}},
	}
	p.want(s, "b=bad")
	p.source <- source.Snapshot{Objects: []resource.Object{service("a", "2"), service("b", "bad")}}
	p.want(s, "a=2") // and so the one before is done
	want := []resource.Problem{{Kind: "Service", Name: "b", Message: "version is bad"}}
	for len(p.Problems()) != 1 { // set right after the publishing
		runtime.Gosched()
	}
	if diff := cmp.Diff(want, p.Problems()); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}

	p.source <- source.Snapshot{Objects: []resource.Object{service("a", "3"), service("b", "\xff")}} // cannot be encoded
	p.source <- source.Snapshot{Objects: []resource.Object{service("a", "4"), service("a", "5")}}
	p.want(s, "a=4")
	p.want(s, "-b")
}

// TestEncodingFails: a class whose configuration cannot be encoded keeps what it had.
func TestEncodingFails(t *testing.T) {
	p := newTestPlane(t)
	p.objects = []resource.Object{service("a", "\xff")}
	problems := p.publisher.publishClass(&generation{encoder: xds.NewEncoder()}, xds.Class{Node: &corev3.Node{Id: nodeID("a")}})
	if len(problems) != 1 || !strings.Contains(problems[0].Message, "invalid UTF-8") || problems[0].Mend == "" {
		t.Errorf("problems = %v", problems)
	}
	p.objects = []resource.Object{service("a", "1"), service("a", "2")}
	problems = p.publisher.publishClass(&generation{encoder: xds.NewEncoder()}, xds.Class{Node: &corev3.Node{Id: nodeID("a")}})
	if len(problems) != 1 || problems[0].Message != `Envoy Cluster "a" is made twice; the first is used` {
		t.Errorf("problems = %v", problems)
	}
}

// TestManyOfOneClass: what is new is built once for a class, however many of its
// proxies come at once.
func TestManyOfOneClass(t *testing.T) {
	p := newTestPlane(t)
	run(t, p.Run)
	client := p.connect()
	const proxies = 100
	var streams []stream
	for i := range proxies {
		s, err := client.DeltaAggregatedResources(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p.send(s, &discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: nodeID(fmt.Sprint("p", i))}, TypeUrl: xds.ClusterType})
		streams = append(streams, s)
	}
	for i, s := range streams {
		p.send(s, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.RouteType, ResourceNamesSubscribe: []string{"none"}})
		if i == 0 {
			p.source <- source.Snapshot{Objects: services(1)}
		}
		p.want(s, "s0=1")
	}
	classes := len(p.xds.Classes())
	if got := int(p.builds.Load()); got > classes+1 { // one that came first may have been built before the rest
		t.Errorf("%d builds for %d classes", got, classes)
	}
}

func TestPages(t *testing.T) {
	p := newTestPlane(t)
	run(t, p.Run)
	s := p.subscribe("gw", xds.ExtensionType, "ext")
	p.source <- source.Snapshot{Objects: services(2)}
	r, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	p.send(s, &discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: xds.ExtensionType, ResponseNonce: r.GetNonce(),
		ErrorDetail: &statuspb.Status{Code: int32(codes.InvalidArgument), Message: "no such image"},
	})
	p.send(s, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.ClusterType, ResourceNamesSubscribe: []string{"s1"}})
	p.want(s, "s1=1") // so the refusal has been seen

	version := r.GetResources()[0].GetVersion()
	for _, tt := range []struct {
		path string
		has  []string
	}{
		{"/healthz", nil},
		{"/ready", nil},
		{"/metrics", []string{
			`pilot_total_xds_rejects{type="type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"} 1`,
			"pilot_xds 1", `pilot_xds_pushes{type="ecds"} 1`, "chandler_resource_problems 0", "process_resident_memory_bytes",
		}},
		{"/debug/syncz", []string{`"proxy": "` + nodeID("gw"), `"proxy_type": "router"`, `"extensionconfig_sent": "` + r.GetSystemVersionInfo(), `"reason": "no such image"`, `"state": "nacked"`}},
		{"/debug/extensionz", []string{`"name": "ext"`, `"wanted": 1`, `"version": "` + version, `"reason": "no such image"`}},
		{"/debug/problems", []string{"[]"}},
		{"/debug/worldz", []string{`"Service": 2`, `"proxies": 1`, `"type.googleapis.com/envoy.config.cluster.v3.Cluster": 2`, `"generation": 1`}},
		{"/debug/config_dump?proxyID=" + nodeID("gw"), []string{`"OTHER": "shown"`, `@modules.example/plugin.wasm?` + redacted, `"inline_string": "shown"`, `"@type": "type.googleapis.com/no.such.Type"`, redacted}},
		{"/debug/pprof/cmdline", nil},
	} {
		code, body := p.get(tt.path)
		if code != http.StatusOK {
			t.Errorf("%s = %d: %s", tt.path, code, body)
		}
		for _, part := range tt.has {
			if !strings.Contains(body, part) {
				t.Errorf("%s lacks %s:\n%s", tt.path, part, body)
			}
		}
		if strings.Contains(body, "hush") || strings.Contains(body, "aHVzaA") {
			t.Errorf("%s tells a secret:\n%s", tt.path, body)
		}
		if strings.HasPrefix(tt.path, "/debug/") && !strings.Contains(tt.path, "pprof") && !json.Valid([]byte(body)) {
			t.Errorf("%s is not JSON", tt.path)
		}
	}
	for path, want := range map[string]int{
		"/debug/config_dump":                http.StatusBadRequest,
		"/debug/config_dump?proxyID=nobody": http.StatusNotFound,
		"/nothing":                          http.StatusNotFound,
	} {
		if code, _ := p.get(path); code != want {
			t.Errorf("%s = %d, want %d", path, code, want)
		}
	}
}

// TestRedactionKeepsTheOriginal: what proxies get is not what the page shows.
func TestRedactionKeepsTheOriginal(t *testing.T) {
	secret := &tlsv3.Secret{Name: "s", Type: &tlsv3.Secret_GenericSecret{GenericSecret: &tlsv3.GenericSecret{
		Secret: &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: []byte("hush")}},
	}}}
	body, err := anypb.New(secret)
	if err != nil {
		t.Fatal(err)
	}
	before := proto.CloneOf(body)
	if _, err := show(body); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(before, body) {
		t.Error("show changed what it was to show")
	}
}

func TestListen(t *testing.T) {
	_, err := Listen(t.Context(), Config{})
	if err == nil {
		t.Error("a control plane without a source was made")
	}
	cfg := Config{Source: make(channel), XDS: "0.0.0.0:0", Monitoring: ":0"}
	if _, err := Listen(t.Context(), cfg); !errors.Is(err, ErrNotLoopback) {
		t.Errorf("listen on %s: %v, want %v", cfg.XDS, err, ErrNotLoopback)
	}
	cfg.Remote = true
	p, err := Listen(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	run(t, p.Run)
}

// TestDebugPages: who is not on this machine sees metrics, and no configuration.
func TestDebugPages(t *testing.T) {
	p := newTestPlane(t)
	run(t, p.Run)
	for from, codes := range map[string]map[string]int{
		"127.0.0.1:1":  {"/metrics": 200, "/debug/problems": 200},
		"[::1]:1":      {"/debug/syncz": 200},
		"192.0.2.1:80": {"/metrics": 200, "/healthz": 200, "/debug/problems": 403, "/debug/config_dump": 403, "/debug/pprof/": 403},
		"nonsense":     {"/debug/problems": 403},
	} {
		for path, want := range codes {
			w, r := httptest.NewRecorder(), httptest.NewRequest("GET", path, nil)
			r.RemoteAddr = from
			p.monitoring.ServeHTTP(w, r)
			if w.Code != want {
				t.Errorf("%s from %s = %d, want %d", path, from, w.Code, want)
			}
		}
	}
}

func TestSourceFails(t *testing.T) {
	p := newTestPlane(t)
	close(p.source)
	if err := p.Run(t.Context()); err == nil || err.Error() != "source: source broke" {
		t.Errorf("error = %v", err)
	}
}

// TestStop: a control plane stops though proxies are connected, and tells them.
func TestStop(t *testing.T) {
	p := newTestPlane(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	s := p.subscribe("gw", xds.ClusterType)
	p.source <- source.Snapshot{Objects: services(1)}
	p.want(s, "s0=1")
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("error of the stream = %v, want %v", err, codes.Unavailable)
	}
}

func TestProblemsAreLoggedOnce(t *testing.T) {
	var log strings.Builder
	p := newProblems(slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry())
	a, b := resource.Problem{Message: "a is wrong"}, resource.Problem{Message: "b is wrong"}
	p.set([]resource.Problem{a, a})
	p.set([]resource.Problem{a, b})
	p.set([]resource.Problem{b})
	p.set([]resource.Problem{b})
	for line, want := range map[string]int{
		`msg="resource has a problem" problem="a is wrong"`: 1,
		`msg="resource has a problem" problem="b is wrong"`: 1,
		`msg="problem is gone" problem="a is wrong"`:        1,
		`msg="problem is gone" problem="b is wrong"`:        0,
	} {
		if got := strings.Count(log.String(), line); got != want {
			t.Errorf("%s is logged %d times, want %d", line, got, want)
		}
	}
	if diff := cmp.Diff([]resource.Problem{b}, p.all()); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}
