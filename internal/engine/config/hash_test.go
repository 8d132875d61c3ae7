package config

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

func TestHashingRefused(t *testing.T) {
	ring := func(c *clusterv3.Cluster_RingHashLbConfig) *clusterv3.Cluster {
		return &clusterv3.Cluster{LbPolicy: clusterv3.Cluster_RING_HASH, LbConfig: &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: c}}
	}
	maglev := func(n uint64) *clusterv3.Cluster {
		return &clusterv3.Cluster{LbPolicy: clusterv3.Cluster_MAGLEV, LbConfig: &clusterv3.Cluster_MaglevLbConfig_{
			MaglevLbConfig: &clusterv3.Cluster_MaglevLbConfig{TableSize: wrapperspb.UInt64(n)}}}
	}
	other := maglev(251)
	other.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
	for _, tt := range []struct {
		cluster *clusterv3.Cluster
		want    string // empty if it is taken
	}{
		{ring(&clusterv3.Cluster_RingHashLbConfig{MinimumRingSize: wrapperspb.UInt64(2048)}), ""},
		{ring(&clusterv3.Cluster_RingHashLbConfig{MinimumRingSize: wrapperspb.UInt64(8), MaximumRingSize: wrapperspb.UInt64(7)}), "8 to 7 entries"},
		{ring(&clusterv3.Cluster_RingHashLbConfig{HashFunction: clusterv3.Cluster_RingHashLbConfig_MURMUR_HASH_2}), "MURMUR_HASH_2 is not supported"},
		{maglev(251), ""}, {maglev(65537), ""}, {maglev(65536), "not a prime number"}, {maglev(1), "not a prime number"}, {other, "does not go with ROUND_ROBIN"},
	} {
		tt.cluster.Name = "c"
		_, err := DecodeCluster(tt.cluster)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%v: %v, want %q", tt.cluster, err, tt.want)
		}
	}
}

func TestHashRules(t *testing.T) {
	d := new(decoder)
	cookie := &routev3.RouteAction_HashPolicy_Cookie{Name: "c", Ttl: durationpb.New(time.Minute), Path: "/p"}
	rules := d.hashRules("", []*routev3.RouteAction_HashPolicy{
		{PolicySpecifier: &routev3.RouteAction_HashPolicy_Header_{Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: "X"}}, Terminal: true},
		{PolicySpecifier: &routev3.RouteAction_HashPolicy_Cookie_{Cookie: cookie}},
	})
	hash := func(head ...abi.Pair) (n uint64, made string) {
		n, ok := rules.Hash(&Hashed{Fields: proxywasm.NewFields(head...), Value: func(c *Cookie) string {
			made = c.Sign("v")
			return "v"
		}})
		if !ok || d.err != nil {
			t.Fatalf("there is no hash: %v", d.err)
		}
		return n, made
	}
	x1, x2 := abi.Pair{Key: "x", Value: "1"}, abi.Pair{Key: "x", Value: "2"}
	a, _ := hash(x1, x2)
	if b, made := hash(x2, x1, abi.Pair{Key: "cookie", Value: "c=v"}); a != b || made != "" {
		t.Errorf("the order of values, or what comes after a terminal rule, makes a difference: %x, %x, %q", a, b, made)
	}
	n, made := hash()
	if want := `c="v"; Max-Age=60; Path=/p; HttpOnly`; made != want {
		t.Errorf("the cookie is %s, want %s", made, want)
	}
	if again, made := hash(abi.Pair{Key: "cookie", Value: "a; b=1;c=\"v\""}); again != n || made != "" {
		t.Errorf("a client that has the cookie has the hash %x, want %x; it is given %q", again, n, made)
	}
	if _, ok := (HashRules{{source: true}}).Hash(&Hashed{}); ok {
		t.Error("no address has a hash")
	}
	if _, ok := (HashRules{{source: true}}).Hash(&Hashed{Remote: netip.MustParseAddr("::1")}); !ok {
		t.Error("an address has no hash")
	}
}
