package upstream

import (
	"fmt"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"github.com/chandler-proxy/chandler/internal/engine/config"
)

// hashing is a cluster of n endpoints of these weights, 1 for those that are left.
func hashing(t *testing.T, policy clusterv3.Cluster_LbPolicy, h config.Hashing, n int, weights ...uint32) *Cluster {
	c := newCluster(t, config.Cluster{Balance: policy, Hashing: h})
	var list []config.Endpoint
	for i := range n {
		e := config.Endpoint{Host: fmt.Sprintf("10.0.0.%d", i+1), Port: 80, Weight: 1}
		if i < len(weights) {
			e.Weight = weights[i]
		}
		list = append(list, e)
	}
	c.SetEndpoints(list)
	return c
}

func policies() map[clusterv3.Cluster_LbPolicy]config.Hashing {
	return map[clusterv3.Cluster_LbPolicy]config.Hashing{
		clusterv3.Cluster_RING_HASH: {LeastRing: 4096, MostRing: 8 << 20}, clusterv3.Cluster_MAGLEV: {Table: 65537},
	}
}

// keys are hashes as evenly spread as those of keys are.
func keys(yield func(uint64) bool) {
	x := uint64(1)
	for range 20_000 {
		x = x*6364136223846793005 + 1442695040888963407
		if !yield(x ^ x>>29) {
			return
		}
	}
}

func TestHashing(t *testing.T) {
	for policy, h := range policies() {
		t.Run(policy.String(), func(t *testing.T) {
			c := hashing(t, policy, h, 10, 3)
			got, was := map[string]int{}, map[uint64]string{}
			for key := range keys {
				host := c.Choose(Wanted{Hash: key, Hashed: true})
				if again := c.Choose(Wanted{Hash: key, Hashed: true}); again != host {
					t.Fatalf("%x goes to %s, then to %s", key, host.Address, again.Address)
				}
				got[host.Address]++
				was[key] = host.Address
			}
			for addr, n := range got {
				want := 20_000 / 12
				if addr == "10.0.0.1:80" {
					want *= 3
				}
				if n < want*8/10 || n > want*12/10 {
					t.Errorf("%s has %d of 20000 keys, want about %d", addr, n, want)
				}
			}
			hosts := c.Hosts()
			c.mu.Lock()
			hosts[4].health.ejected = true
			c.choosable()
			c.mu.Unlock()
			moved := 0
			for key := range keys {
				switch addr := c.Choose(Wanted{Hash: key, Hashed: true}).Address; {
				case addr == hosts[4].Address:
					t.Fatalf("%x goes to an endpoint that is ejected", key)
				case addr != was[key] && was[key] != hosts[4].Address:
					moved++
				}
			}
			if moved > 2000 {
				t.Errorf("%d of 20000 keys have moved that were not with the endpoint that went", moved)
			}
		})
	}
}

// A retry looks for another endpoint, and a request without a hash may go anywhere.
func TestHashingElsewhere(t *testing.T) {
	for policy, h := range policies() {
		c := hashing(t, policy, h, 2)
		first := c.Choose(Wanted{Hash: 7, Hashed: true})
		if second := c.Choose(Wanted{Hash: 7, Hashed: true, Tried: []*Host{first}, Tries: 50}); second == first {
			t.Errorf("%s: the retry goes to the same endpoint", policy)
		}
		any := map[*Host]bool{}
		for range 200 {
			any[c.Choose(Wanted{})] = true
		}
		if len(any) != 2 {
			t.Errorf("%s: requests without a hash go to %d endpoints", policy, len(any))
		}
		c.SetEndpoints(nil)
		if got := c.Choose(Wanted{Hash: 7, Hashed: true}); got != nil {
			t.Errorf("%s: chose %s of none", policy, got.Address)
		}
	}
	if h := hashing(t, clusterv3.Cluster_RING_HASH, config.Hashing{}, 3).Choose(Wanted{Hash: 7, Hashed: true}); h != nil {
		t.Errorf("a ring without entries has %s", h.Address)
	}
}
