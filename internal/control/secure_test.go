package control

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/chandler-proxy/chandler/internal/envoypatch"
	"github.com/chandler-proxy/chandler/internal/identity"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
	"github.com/chandler-proxy/chandler/internal/translate"
	"github.com/chandler-proxy/chandler/internal/xds"
)

// reviewer knows one token, which is of pod gw of namespace ns.
type reviewer struct{ token string }

func (r reviewer) Review(_ context.Context, token string) (identity.Peer, error) {
	if token != r.token {
		return identity.Peer{}, fmt.Errorf("no such token: %w", identity.ErrRefused)
	}
	return identity.Peer{Namespace: "ns", ServiceAccount: "default", Pod: "gw"}, nil
}

// token is a JSON Web Token for the audience, signed by nobody.
func token(audience string) string {
	encode := base64.RawURLEncoding.EncodeToString
	claims := fmt.Sprintf(`{"aud":[%q],"exp":%d}`, audience, time.Now().Add(time.Hour).Unix())
	return encode([]byte(`{"alg":"RS256"}`)) + "." + encode([]byte(claims)) + "." + encode([]byte("signature"))
}

// TestSecure: configuration goes to proxies that prove who they are, for the
// namespace that they belong to and no other.
func TestSecure(t *testing.T) {
	dir := t.TempDir()
	keeper, err := identity.OpenDir(filepath.Join(dir, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := identity.Open(t.Context(), identity.AuthorityConfig{Keeper: keeper, Names: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	root := file("root.pem", ca.Bundle())
	certificate := func(namespace string) identity.Client {
		cert, key, err := ca.IssueClient(namespace, "proxy", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return identity.Client{CAFile: root, CertFile: file(namespace+".pem", cert), KeyFile: file(namespace+".key", key)}
	}
	good := token(identity.Audience)
	src := make(channel)
	p, err := Listen(t.Context(), Config{
		Source: src, XDS: "127.0.0.1:0", Monitoring: "127.0.0.1:0",
		Secure: "127.0.0.1:0", Trust: Trust{Authority: ca, Tokens: reviewer{good}},
	})
	if err != nil {
		t.Fatal(err)
	}
	p.publisher.newWorld = func([]resource.Object) (*mesh.World, []resource.Problem) { return new(mesh.World), nil }
	p.publisher.build = func(*mesh.World, mesh.Proxy) (*translate.Resources, []resource.Problem) {
		return new(translate.Resources), nil
	}
	run(t, p.Run)
	src <- source.Snapshot{}

	for _, tt := range []struct {
		name   string
		client identity.Client
		node   string
		want   codes.Code
	}{
		{"its token", identity.Client{CAFile: root, TokenFile: file("good", []byte(good))}, nodeID("gw"), codes.OK},
		{"its certificate", certificate("ns"), nodeID("gw"), codes.OK},
		{"no credential", identity.Client{CAFile: root}, nodeID("gw"), codes.Unauthenticated},
		{"a token that nobody issued", identity.Client{CAFile: root, TokenFile: file("forged", []byte(token(identity.Audience)+"x"))}, nodeID("gw"), codes.Unauthenticated},
		{"a token for another service", identity.Client{CAFile: root, TokenFile: file("api", []byte(token("api")))}, nodeID("gw"), codes.Unauthenticated},
		{"another pod's token", identity.Client{CAFile: root, TokenFile: file("good", []byte(good))}, nodeID("other"), codes.PermissionDenied},
		{"another namespace, by token", identity.Client{CAFile: root, TokenFile: file("good", []byte(good))}, "router~10.0.0.1~gw.istio-system~d", codes.PermissionDenied},
		{"another namespace, by certificate", certificate("other"), nodeID("gw"), codes.PermissionDenied},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := grpc.NewClient(p.SecureAddr().String(), tt.client.DialOptions()...)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_ = s.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: tt.node}, TypeUrl: xds.ClusterType}) // the error is Recv's
			if _, err := s.Recv(); status.Code(err) != tt.want {
				t.Errorf("first response: %v, want %v", err, tt.want)
			}
		})
	}
	t.Run("one pod's token, too often", func(t *testing.T) {
		conn, err := grpc.NewClient(p.SecureAddr().String(), identity.Client{CAFile: root, TokenFile: file("good", []byte(good))}.DialOptions()...)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		first := func() error {
			s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
			if err != nil {
				return err
			}
			_ = s.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: nodeID("gw")}, TypeUrl: xds.ClusterType}) // the error is Recv's
			_, err = s.Recv()
			return err
		}
		for n := range podStreams {
			if err := first(); err != nil {
				t.Fatalf("stream %d: %v", n, err)
			}
		}
		if err := first(); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("stream %d: %v, want ResourceExhausted", podStreams, err)
		}
	})
	if _, err := Listen(t.Context(), Config{Source: src, Secure: "127.0.0.1:0"}); err == nil {
		t.Error("a secure port without an authority is no error")
	} else if errors.Is(err, ErrNotLoopback) {
		t.Error(err)
	}
}

// TestRelabelledPods: the labels of a Pod decide, not what the proxy says of itself, and
// those of a running one may change. Nobody else's stream ends.
func TestRelabelledPods(t *testing.T) {
	p := newTestPlane(t)
	p.publisher.newWorld = func(objects []resource.Object) (*mesh.World, []resource.Problem) {
		return mesh.New(objects, mesh.Options{})
	}
	p.publisher.build = func(_ *mesh.World, proxy mesh.Proxy) (*translate.Resources, []resource.Problem) {
		return &translate.Resources{Config: envoypatch.Config{Clusters: []*clusterv3.Cluster{{Name: "labels", AltStatName: fmt.Sprint(proxy.Labels)}}}}, nil
	}
	run(t, p.Run)
	client := p.connect()
	connect := func(name string, labels map[string]any) stream {
		t.Helper()
		metadata, err := structpb.NewStruct(map[string]any{"LABELS": labels})
		if err != nil {
			t.Fatal(err)
		}
		s, err := client.DeltaAggregatedResources(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p.send(s, &discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: nodeID(name), Metadata: metadata}, TypeUrl: xds.ClusterType})
		return s
	}
	pod := func(name string, labels map[string]string) resource.Object {
		return &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: labels}}
	}
	ended := func(s stream) {
		t.Helper()
		if r, err := s.Recv(); status.Code(err) != codes.Unavailable || status.Convert(err).Message() != "labels changed" {
			t.Fatalf("received %v, %v, want the end of the stream", r, err)
		}
	}

	said := map[string]any{"app": "a"}
	same, claims, elsewhere := connect("same", said), connect("claims", said), connect("elsewhere", said)
	for len(p.xds.Proxies()) < 3 {
		runtime.Gosched()
	}
	a := map[string]string{"app": "a"}
	p.source <- source.Snapshot{Objects: []resource.Object{pod("same", a), pod("claims", map[string]string{"app": "b"})}}
	p.want(same, "labels=map[app:a]")
	p.want(elsewhere, "labels=map[app:a]")
	ended(claims)
	claims = connect("claims", said)
	p.want(claims, "labels=map[app:b]")

	p.source <- source.Snapshot{Objects: []resource.Object{pod("same", map[string]string{"app": "a", "extra": "1"}), pod("claims", map[string]string{"app": "b"})}}
	ended(same)
	same = connect("same", said)
	p.want(same, "labels=map[app:a extra:1]")

	p.source <- source.Snapshot{Objects: []resource.Object{pod("same", nil)}} // the other goes: it may still be stopping
	ended(same)
	same = connect("same", said)
	p.want(same, "labels=map[]")
	for _, s := range []stream{same, claims, elsewhere} { // all are there, and heard
		p.send(s, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.ClusterType, ResourceNamesSubscribe: []string{"labels"}})
	}
	p.want(same, "labels=map[]")
	p.want(claims, "labels=map[app:b]")
	p.want(elsewhere, "labels=map[app:a]")
}
