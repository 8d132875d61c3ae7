package control

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpcstatus "google.golang.org/grpc/status"
	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/chandler-proxy/chandler/internal/identity"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
	"github.com/chandler-proxy/chandler/internal/status"
	"github.com/chandler-proxy/chandler/internal/translate"
	"github.com/chandler-proxy/chandler/internal/xds"
)

// A replica is one of several control planes that have the same source and CA.
type replica struct {
	*testPlane
	ca *identity.Authority
}

func newReplica(t *testing.T, ca string, peers Peers) *replica {
	keeper, err := identity.OpenDir(ca)
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{testPlane: &testPlane{t: t, source: make(channel)}}
	if r.ca, err = identity.Open(t.Context(), identity.AuthorityConfig{Keeper: keeper, Names: []string{"chandler.istio-system.svc"}}); err != nil {
		t.Fatal(err)
	}
	r.Plane, err = Listen(t.Context(), Config{
		Source: r.source, XDS: "127.0.0.1:0", Monitoring: "127.0.0.1:0",
		Secure: "127.0.0.1:0", Trust: Trust{Authority: r.ca}, Peers: peers,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.settled = time.Time{} // no proxy was there before
	r.publisher.build = func(w *mesh.World, _ mesh.Proxy) (*translate.Resources, []resource.Problem) {
		var built translate.Resources
		for _, e := range w.AllExtensions() {
			built.Extensions = append(built.Extensions, e.Config)
		}
		return &built, nil
	}
	run(t, r.Run)
	return r
}

// TestPeers: the replica that leads counts the proxies of the others.
func TestPeers(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca")
	of := Peers{Service: "chandler", Namespace: "istio-system", Account: "chandler", Self: "10.0.0.1"}
	leader, other := newReplica(t, ca, of), newReplica(t, ca, of)

	host, text, err := net.SplitHostPort(other.SecureAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	name, port := SecurePort, int32(number)
	plugin := &extensionsv1alpha1.WasmPlugin{
		TypeMeta:   metav1.TypeMeta{APIVersion: "extensions.istio.io/v1alpha1", Kind: "WasmPlugin"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "auth", Generation: 1},
	}
	plugin.Spec.Url = "oci://registry.test/auth:1"
	slice := &discoveryv1.EndpointSlice{
		TypeMeta:   metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "chandler-1", Labels: map[string]string{discoveryv1.LabelServiceName: "chandler"}},
		Ports:      []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
		Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{host}}, {Addresses: []string{of.Self}}},
	}
	snap := source.Snapshot{Objects: []resource.Object{plugin, slice}}
	leader.source <- snap
	other.source <- snap

	reports := make(chan []status.Fact, 100)
	run(t, func(ctx context.Context) error {
		return leader.Lead(ctx, func(facts []status.Fact) { reports <- facts })
	})
	// until waits for a report of the plugin that is as it should be.
	until := func(what string, is func(status.Fact) bool) {
		t.Helper()
		var last status.Fact
		for late := time.After(20 * time.Second); ; {
			select {
			case facts := <-reports:
				for _, f := range facts {
					if f.Key.Kind != "WasmPlugin" {
						continue
					}
					if last = f; is(f) {
						return
					}
				}
			case <-late:
				t.Fatalf("%s: last report: %+v", what, last)
			}
		}
	}
	extension := "extensions.istio.io/wasmplugin/default.auth"
	one := leader.subscribe("here", xds.ExtensionType, extension)
	two := other.subscribe("there", xds.ExtensionType, extension)
	first, err := one.Recv()
	if err != nil {
		t.Fatal(err)
	}
	second, err := two.Recv()
	if err != nil {
		t.Fatal(err)
	}
	until("both are under way", func(f status.Fact) bool { return len(f.Proxies) == 2 })
	leader.send(one, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.ExtensionType, ResponseNonce: first.GetNonce()})
	other.send(two, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.ExtensionType, ResponseNonce: second.GetNonce()})
	until("both run it", func(f status.Fact) bool {
		return len(f.Proxies) == 2 && f.Proxies[0].State == status.Running && f.Proxies[1].State == status.Running && f.Want == f.Proxies[1].Version
	})
	// who asks the leader hears of all proxies; the other, whose only neighbour is
	// itself here, counts its own once
	for _, tt := range []struct {
		*replica
		wanted int
	}{{leader, 2}, {other, 1}} {
		all, missing := tt.Extensions(t.Context())
		version := first.GetResources()[0].GetVersion()
		if len(all) != 1 || all[0].Wanted != tt.wanted || all[0].Running[version] != tt.wanted || all[0].Kind != "WasmPlugin" || len(missing) > 0 {
			t.Errorf("extensions: %+v, without %v; want %d proxies to run %s", all, missing, tt.wanted, version)
		}
	}
	if err := two.CloseSend(); err != nil {
		t.Fatal(err)
	}
	until("the other is gone", func(f status.Fact) bool { return len(f.Proxies) == 1 })
}

// TestPeersMissing: who does not answer is named, and does not hide the others.
func TestPeersMissing(t *testing.T) {
	r := newReplica(t, filepath.Join(t.TempDir(), "ca"), Peers{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().(*net.TCPAddr)
	l.Close()
	name, port := SecurePort, int32(nobody.Port)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Labels: map[string]string{discoveryv1.LabelServiceName: "chandler"}},
		Ports:      []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
		Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{nobody.IP.String()}}},
	}
	p := &peers{
		cfg: Peers{Service: "chandler", Namespace: "istio-system", Account: "chandler"}, trust: Trust{Authority: r.ca},
		written: func() []resource.Object { return []resource.Object{slice} }, log: slog.New(slog.DiscardHandler),
	}
	if told, missing := p.fetch(t.Context()); len(told) > 0 || len(missing) != 1 || missing[0] != nobody.String() {
		t.Errorf("told %v, missing %v", told, missing)
	}
}

// TestPeersOnly: what all proxies do is for replicas alone.
func TestPeersOnly(t *testing.T) {
	r := newReplica(t, filepath.Join(t.TempDir(), "ca"), Peers{Service: "chandler", Namespace: "istio-system", Account: "chandler"})
	for account, want := range map[string]codes.Code{"chandler": codes.OK, "default": codes.PermissionDenied} {
		p := &peers{cfg: Peers{Service: "chandler", Namespace: "istio-system", Account: account}, trust: Trust{Authority: r.ca}}
		conn, err := p.dial(r.SecureAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, err = statusv3.NewClientStatusDiscoveryServiceClient(conn).FetchClientStatus(t.Context(), &statusv3.ClientStatusRequest{})
		if grpcstatus.Code(err) != want {
			t.Errorf("%s: %v, want %v", account, err, want)
		}
		conn.Close()
	}
	plain, err := grpc.NewClient(r.XDSAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := statusv3.NewClientStatusDiscoveryServiceClient(plain).FetchClientStatus(t.Context(), &statusv3.ClientStatusRequest{Node: &corev3.Node{}}); grpcstatus.Code(err) != codes.Unimplemented {
		t.Errorf("plaintext port: %v, want it not to have the service", err)
	}
}

// TestPeersTellOnce: a proxy that came to another replica, or to a replica that is
// told of by two addresses, is counted once, as its newest connection has it.
func TestPeersTellOnce(t *testing.T) {
	at := func(second int) time.Time { return time.Unix(int64(second), 500).UTC() }
	proxy := func(id string, second int, version string) member {
		return member{id: id, connected: at(second), want: "v2", held: xds.Held{Name: "e", State: xds.Acked, Version: version}}
	}
	of := func(proxies ...member) map[string]delivered {
		return map[string]delivered{"e": {versions: []string{"v2"}, proxies: proxies}}
	}
	response, err := encodeDeliveries(of(proxy("went", 9, "v2"), proxy("came", 1, "v1"), proxy("theirs", 1, "v2")))
	if err != nil {
		t.Fatal(err)
	}
	told, err := decodeDeliveries(response)
	if err != nil {
		t.Fatal(err)
	}
	p := &peers{told: map[string]map[string]delivered{"10.0.0.2:15012": told, "[fd00::2]:15012": told}}
	got := of(proxy("went", 2, "v1"), proxy("came", 5, "v2"), proxy("ours", 1, "v2"))
	p.add(got)
	want := of(proxy("came", 5, "v2"), proxy("ours", 1, "v2"), proxy("theirs", 1, "v2"), proxy("went", 9, "v2"))
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(delivered{}, member{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
