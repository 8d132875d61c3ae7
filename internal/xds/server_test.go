package xds

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/chandler-proxy/chandler/internal/ecds"
	"github.com/chandler-proxy/chandler/internal/module"
)

// A mesh is a Server on an in-memory connection.
type mesh struct {
	t        *testing.T
	server   *Server
	listener *bufconn.Listener
	log      *lockedBuffer
	metrics  *prometheus.Registry
	appeared chan struct{}
	stop     context.CancelFunc
	snaps    map[string]*Snapshot
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// newMesh serves proxies of the class that their node's cluster names.
func newMesh(t *testing.T) *mesh {
	m := &mesh{
		t:        t,
		listener: bufconn.Listen(1 << 16),
		log:      new(lockedBuffer),
		metrics:  prometheus.NewRegistry(),
		appeared: make(chan struct{}, 1000),
		snaps:    make(map[string]*Snapshot),
	}
	m.server = New(Config{
		Class: func(_ context.Context, node *corev3.Node) (string, error) {
			if node.GetCluster() == "" {
				return "", errors.New("no cluster")
			}
			return node.GetCluster(), nil
		},
		Appeared:   func() { m.appeared <- struct{}{} },
		Log:        slog.New(slog.NewTextHandler(m.log, nil)),
		Registerer: m.metrics,
	})
	g := grpc.NewServer(Options()...)
	m.server.Register(g)
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := g.Serve(m.listener); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	wg.Go(func() {
		if err := m.server.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		g.Stop()
		wg.Wait()
	})
	return m
}

func (m *mesh) publish(class, text string) {
	m.snaps[class] = world(m.t, m.snaps[class], text)
	m.server.Publish(class, m.snaps[class])
}

func (m *mesh) connect() *grpc.ClientConn {
	m.t.Helper()
	conn, err := grpc.NewClient("passthrough:///mesh",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return m.listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { conn.Close() })
	return conn
}

// A proxy is a client on one stream of either variant.
type proxy struct {
	t     *testing.T
	node  *corev3.Node
	delta discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	world discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	probe int
}

func (m *mesh) dial(id, class string, delta bool) *proxy {
	m.t.Helper()
	return m.on(m.connect(), id, class, delta)
}

func (m *mesh) on(conn *grpc.ClientConn, id, class string, delta bool) *proxy {
	m.t.Helper()
	return m.in(m.t.Context(), conn, id, class, delta)
}

func (m *mesh) in(ctx context.Context, conn *grpc.ClientConn, id, class string, delta bool) *proxy {
	m.t.Helper()
	p := &proxy{t: m.t, node: &corev3.Node{Id: id, Cluster: class}}
	client := discoveryv3.NewAggregatedDiscoveryServiceClient(conn)
	var err error
	if delta {
		p.delta, err = client.DeltaAggregatedResources(ctx)
	} else {
		p.world, err = client.StreamAggregatedResources(ctx)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return p
}

// send sends a request, whose names are what a delta client subscribes to.
func (p *proxy) send(r request) {
	p.t.Helper()
	var detail *statuspb.Status
	if r.refused {
		detail = &statuspb.Status{Code: int32(codes.InvalidArgument), Message: r.reason}
	}
	if r.modules != nil {
		p.node = ecds.Report(r.modules)
	}
	var err error
	if p.delta != nil {
		err = p.delta.Send(&discoveryv3.DeltaDiscoveryRequest{
			Node: p.node, TypeUrl: short[r.typeURL], ResponseNonce: r.nonce, ErrorDetail: detail,
			ResourceNamesSubscribe: r.names, ResourceNamesUnsubscribe: r.unsubscribe, InitialResourceVersions: r.initial,
		})
	} else {
		err = p.world.Send(&discoveryv3.DiscoveryRequest{
			Node: p.node, TypeUrl: short[r.typeURL], ResponseNonce: r.nonce, ErrorDetail: detail,
			ResourceNames: r.names, VersionInfo: r.version,
		})
	}
	if err != nil {
		p.t.Fatal(err)
	}
	p.node = nil
}

// A reply is a response of either variant, with its content as text.
type reply struct {
	text, nonce, version string
}

func (p *proxy) receive() (reply, error) {
	p.t.Helper()
	text := func(typeURL string, bodies []*anypb.Any, names []string, removed []string) string {
		out := shortOf(typeURL)
		for i, b := range bodies {
			out += " "
			if names != nil {
				out += names[i] + "="
			}
			out += contentOf(p.t, &Resource{Body: b})
		}
		for _, r := range removed {
			out += " -" + r
		}
		return out
	}
	if p.delta == nil {
		r, err := p.world.Recv()
		return reply{text(r.GetTypeUrl(), r.GetResources(), nil, nil), r.GetNonce(), r.GetVersionInfo()}, err
	}
	r, err := p.delta.Recv()
	var bodies []*anypb.Any
	var names []string
	for _, res := range r.GetResources() {
		bodies, names = append(bodies, res.GetResource()), append(names, res.GetName())
		if res.GetVersion() == "" {
			p.t.Errorf("%s %s has no version", r.GetTypeUrl(), res.GetName())
		}
	}
	return reply{text(r.GetTypeUrl(), bodies, names, r.GetRemovedResources()), r.GetNonce(), r.GetSystemVersionInfo()}, err
}

func (p *proxy) want(text string) reply {
	p.t.Helper()
	r, err := p.receive()
	if err != nil {
		p.t.Fatal(err)
	}
	if r.text != text {
		p.t.Fatalf("received %q, want %q", r.text, text)
	}
	return r
}

// caughtUp returns when the server has taken all that was sent to it, and fails
// if it had anything more to say.
func (p *proxy) caughtUp() {
	p.t.Helper()
	p.probe++
	if name := fmt.Sprintf("probe%d", p.probe); p.delta != nil {
		p.send(request{typeURL: "sds", names: []string{name}})
		p.want("sds -" + name)
	} else {
		p.send(request{typeURL: "sds", names: []string{name}})
		p.want("sds")
	}
}

func variants(t *testing.T, run func(t *testing.T, delta bool)) {
	t.Run("delta", func(t *testing.T) { run(t, true) })
	t.Run("world", func(t *testing.T) { run(t, false) })
}

func TestServe(t *testing.T) {
	variants(t, func(t *testing.T, delta bool) {
		m := newMesh(t)
		text := func(deltaText, worldText string) string {
			if delta {
				return deltaText
			}
			return worldText
		}
		p := m.dial("p", "a", delta)
		p.send(request{typeURL: "ecds", names: []string{"x", "y"}})
		<-m.appeared // and it waits, rather than start with nothing
		m.publish("a", "ecds x=1 y=1")
		var r reply
		if delta {
			r = p.want("ecds x=1")
			p.send(request{typeURL: "ecds", nonce: r.nonce})
			r = p.want("ecds y=1")
			p.send(request{typeURL: "ecds", nonce: r.nonce})
		} else {
			r = p.want("ecds 1 1")
			p.send(request{typeURL: "ecds", nonce: r.nonce, version: r.version, names: []string{"x", "y"}})
		}
		p.caughtUp()
		for _, h := range m.server.Proxies()[0].Types[ExtensionType].Extensions {
			if h.State != Acked || h.Running != h.Version || h.Since.IsZero() {
				t.Errorf("after the ack: %+v", h)
			}
		}

		m.publish("a", "ecds x=2 y=1")
		one := p.want(text("ecds x=2", "ecds 2 1"))
		nack := request{typeURL: "ecds", nonce: one.nonce, refused: true, reason: "pull x: no such image"}
		if !delta {
			nack.names = []string{"x", "y"}
		}
		p.send(nack)
		p.caughtUp()
		m.publish("a", "ecds x=3 y=1")
		two := p.want(text("ecds x=3", "ecds 3 1"))
		nack.reason = "late"
		p.send(nack) // late: newer than that is out
		p.caughtUp()
		if got := testutil.ToFloat64(m.server.metrics.rejects.WithLabelValues(ExtensionType)); got != 2 {
			t.Errorf("rejects = %v, want 2", got)
		}
		log := m.log.String()
		for _, part := range []string{"configuration refused", "proxy=p", "type=" + ExtensionType, "pull x: no such image", "[x"} {
			if !strings.Contains(log, part) {
				t.Errorf("the log lacks %q:\n%s", part, log)
			}
		}

		nack.nonce, nack.reason = two.nonce, "again"
		p.send(nack)
		p.caughtUp()
		ext := Extensions(m.server.Proxies())[0]
		if ext.Name != "x" || ext.Wanted != 1 || len(ext.Refused) != 1 || ext.Refused[0].Reason != "again" || ext.Refused[0].Proxy != "p" {
			t.Errorf("after the nack: %+v", ext)
		}
		ack := request{typeURL: "ecds", nonce: two.nonce, version: two.version}
		if !delta {
			ack.names = []string{"x", "y"}
		}
		p.send(ack)
		p.caughtUp()
		version := m.snaps["a"].set(ExtensionType).resources["x"].Version
		want := Extension{Name: "x", Wanted: 1, Running: map[string]int{version: 1}}
		if diff := cmp.Diff(want, Extensions(m.server.Proxies())[0]); diff != "" {
			t.Errorf("healed (-want +got):\n%s", diff)
		}
		digest := module.Digest{1}
		ack.modules = map[string]module.Digest{"x": digest, "nothing that it wants": digest}
		if delta {
			ack.nonce = ""
		}
		p.send(ack)
		p.caughtUp()
		want.Modules = map[string]int{digest.String(): 1}
		if diff := cmp.Diff(want, Extensions(m.server.Proxies())[0]); diff != "" {
			t.Errorf("told what it runs (-want +got):\n%s", diff)
		}
		ack.modules = map[string]module.Digest{"x": {}}
		p.send(ack)
		p.caughtUp()
		if got := Extensions(m.server.Proxies())[0].Modules; len(got) > 0 {
			t.Errorf("told that it runs none: %v", got)
		}

		if delta {
			p.send(request{typeURL: "ecds", unsubscribe: []string{"x"}})
		} else {
			p.send(request{typeURL: "ecds", nonce: two.nonce, version: two.version, names: []string{"y"}})
		}
		p.caughtUp()
		m.publish("a", "ecds x=4 y=1")
		m.publish("a", "ecds x=4 y=2")
		p.want(text("ecds y=2", "ecds 2"))
	})
}

func TestOneOfFiftyChanges(t *testing.T) {
	m := newMesh(t)
	text := func(changed int, content string) string {
		var b strings.Builder
		b.WriteString("ecds")
		for i := range 50 {
			c := "same"
			if i == changed {
				c = content
			}
			fmt.Fprintf(&b, " x%02d=%s", i, c)
		}
		return b.String()
	}
	var names []string
	for i := range 50 {
		names = append(names, fmt.Sprintf("x%02d", i))
	}
	p := m.dial("p", "a", true)
	p.send(request{typeURL: "ecds", names: names})
	<-m.appeared
	m.publish("a", text(0, "same"))
	for _, name := range names {
		p.want("ecds " + name + "=same")
	}
	m.publish("a", text(17, "new"))
	p.want("ecds x17=new")
	p.caughtUp()
}

func TestReconnect(t *testing.T) {
	m := newMesh(t)
	first := m.dial("p", "a", true)
	first.send(request{typeURL: "cds", names: []string{"*"}})
	<-m.appeared
	m.publish("a", "cds a=1 b=1")
	first.want("cds a=1 b=1")

	again := m.dial("p", "a", true) // before the loss of the first is noticed
	initial := make(map[string]string)
	for _, r := range m.snaps["a"].Resources(ClusterType) {
		initial[r.Name] = r.Version
	}
	again.send(request{typeURL: "cds", names: []string{"*"}, initial: initial})
	again.caughtUp()
	if got := m.server.Proxies(); len(got) != 1 || got[0].Types[ClusterType].Resources != 2 || got[0].Types[ClusterType].Sent != "" {
		t.Errorf("proxies = %+v, want the newer stream only", got)
	}
	m.publish("a", "cds a=1 b=2")
	again.want("cds b=2")
}

func TestClasses(t *testing.T) {
	m := newMesh(t)
	a, b := m.dial("pa", "a", true), m.dial("pb", "b", false)
	a.send(request{typeURL: "cds"})
	b.send(request{typeURL: "cds"})
	<-m.appeared
	<-m.appeared
	m.publish("b", "cds x=b")
	m.publish("a", "cds x=a")
	a.want("cds x=a")
	b.want("cds b")
	classes := m.server.Classes()
	if len(classes) != 2 || classes[0].Key != "a" || classes[0].Node.GetId() != "pa" || classes[0].Snapshot != m.snaps["a"] || classes[1].Proxies != 1 {
		t.Errorf("classes = %+v", classes)
	}
	m.publish("a", "cds x=a2")
	a.want("cds x=a2")
	b.caughtUp()
	if snap, ok := m.server.Snapshot("pb"); !ok || snap != m.snaps["b"] {
		t.Error("the snapshot of pb is not that of its class")
	}
	if _, ok := m.server.Snapshot("nobody"); ok {
		t.Error("nobody is connected")
	}
	m.server.Publish("nobody", m.snaps["a"]) // has no effect
}

// TestReclass: streams of proxies that are of another class end, so that they come back;
// those that have just been classed, too. Others' do not.
func TestReclass(t *testing.T) {
	m := newMesh(t)
	ended := func(p *proxy) {
		t.Helper()
		if r, err := p.receive(); status.Code(err) != codes.Unavailable {
			t.Fatalf("received %+v, %v, want the end of the stream", r, err)
		}
	}
	stays, moves := m.dial("stays", "a", true), m.dial("moves", "a", false)
	for _, p := range []*proxy{stays, moves} {
		p.send(request{typeURL: "cds"})
	}
	for len(m.server.Proxies()) < 2 {
		runtime.Gosched()
	}
	told := make(map[string]string)
	for range 2 { // the second finds it still there, or gone
		m.server.Reclass(func(id string, class *corev3.Node) bool {
			told[id] = class.GetCluster()
			m.server.Proxies() // it is not locked
			return id == "moves"
		})
	}
	m.publish("a", "cds x=1")
	ended(moves)
	stays.want("cds x=1")
	if diff := cmp.Diff(map[string]string{"stays": "a", "moves": "a"}, told); diff != "" {
		t.Errorf("proxies and classes (-want +got):\n%s", diff)
	}

	class, once := m.server.cfg.Class, new(sync.Once)
	m.server.cfg.Class = func(ctx context.Context, node *corev3.Node) (string, error) {
		once.Do(func() { m.server.Reclass(func(string, *corev3.Node) bool { return false }) })
		return class(ctx, node)
	}
	early := m.dial("early", "a", true)
	early.send(request{typeURL: "cds"})
	ended(early)
	early = m.dial("early", "a", true)
	early.send(request{typeURL: "cds"})
	early.want("cds x=1")
}

// TestManyArriveAtOnce: a class is wanted once, however many of its proxies come.
func TestManyArriveAtOnce(t *testing.T) {
	m := newMesh(t)
	conn := m.connect()
	var wg sync.WaitGroup
	var received atomic.Int32
	for i := range 200 {
		p := m.on(conn, fmt.Sprint("p", i), "a", true)
		p.send(request{typeURL: "cds"})
		wg.Go(func() {
			if r, err := p.delta.Recv(); err == nil && len(r.GetResources()) == 1 {
				received.Add(1)
			}
		})
	}
	<-m.appeared
	m.publish("a", "cds x=1")
	wg.Wait()
	if received.Load() != 200 {
		t.Errorf("%d of 200 proxies were served", received.Load())
	}
	if len(m.appeared) != 0 {
		t.Error("the class was wanted more than once")
	}
}

// TestSlowReader: a client that does not read holds back no other, and then gets
// what is newest, not all that was.
func TestSlowReader(t *testing.T) {
	m := newMesh(t)
	slow, quick := m.dial("slow", "a", true), m.dial("quick", "a", true)
	slow.send(request{typeURL: "cds"})
	quick.send(request{typeURL: "cds"})
	<-m.appeared
	const rounds = 100
	big := strings.Repeat("x", 100_000)
	for i := range rounds {
		m.publish("a", fmt.Sprintf("cds c=%d-%s", i, big))
		quick.want(fmt.Sprintf("cds c=%d-%s", i, big))
	}
	slow.send(request{typeURL: "eds", names: []string{"heard"}}) // though it does not read
	received := 0
	for {
		r, err := slow.receive()
		if err != nil {
			t.Fatal(err)
		}
		received++
		if r.text == fmt.Sprintf("cds c=%d-%s", rounds-1, big) {
			break
		}
	}
	if received > rounds/2 {
		t.Errorf("%d responses were kept for a client that did not read", received)
	}
}

func TestRefusedProxies(t *testing.T) {
	variants(t, func(t *testing.T, delta bool) {
		m := newMesh(t)
		for _, tt := range []struct {
			name, id, class string
			r               request
			code            codes.Code
		}{
			{"no id", "", "a", request{typeURL: "cds"}, codes.InvalidArgument},
			{"no class", "p", "", request{typeURL: "cds"}, codes.InvalidArgument},
			{"no type", "p", "a", request{typeURL: "no such"}, codes.InvalidArgument},
			{"too many names", "p", "a", request{typeURL: "eds", names: manyNames()}, codes.ResourceExhausted},
		} {
			p := m.dial(tt.id, tt.class, delta)
			p.send(tt.r)
			if _, err := p.receive(); status.Code(err) != tt.code {
				t.Errorf("%s: error = %v, want %v", tt.name, err, tt.code)
			}
		}
	})
}

func TestStop(t *testing.T) {
	variants(t, func(t *testing.T, delta bool) {
		m := newMesh(t)
		p := m.dial("p", "a", delta)
		p.send(request{typeURL: "cds"})
		<-m.appeared
		m.stop()
		if _, err := p.receive(); status.Code(err) != codes.Unavailable {
			t.Errorf("error = %v, want %v", err, codes.Unavailable)
		}
		late := m.dial("late", "a", delta)
		late.send(request{typeURL: "cds"})
		if _, err := late.receive(); status.Code(err) != codes.Unavailable {
			t.Errorf("error of a stream after the stop = %v, want %v", err, codes.Unavailable)
		}
	})
}
