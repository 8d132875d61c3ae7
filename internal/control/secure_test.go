package control

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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
	if _, err := Listen(t.Context(), Config{Source: src, Secure: "127.0.0.1:0"}); err == nil {
		t.Error("a secure port without an authority is no error")
	} else if errors.Is(err, ErrNotLoopback) {
		t.Error(err)
	}
}
