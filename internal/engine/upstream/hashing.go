package upstream

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"strconv"

	"github.com/cespare/xxhash/v2"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"github.com/chandler-proxy/chandler/internal/engine/config"
)

// A table says to which host a hash belongs. attempt, if it is not 0, asks for another
// host, which may be the same again. A table never changes.
type table interface {
	host(hash uint64, attempt int) *Host
}

// A share is a host with its part of the requests, of 1.
type share struct {
	host *Host
	part float64
}

// shares are those of hosts by their weights.
func shares(hosts []*Host) (list []share, least, most float64) {
	sum := int64(0)
	for _, h := range hosts {
		sum += h.weight.Load()
	}
	least = 1
	for _, h := range hosts {
		part := float64(h.weight.Load()) / float64(sum)
		list = append(list, share{h, part})
		least, most = min(least, part), max(most, part)
	}
	return list, least, most
}

// tabled is what the table was made of.
type tabled struct {
	hosts   []*Host
	weights []int64
}

// tabulate makes the table for hosts, unless it stands already. c.mu is held.
func (c *Cluster) tabulate(hosts []*Host) {
	if !c.Hashes() {
		return
	}
	of := tabled{hosts: hosts}
	for _, h := range hosts {
		of.weights = append(of.weights, h.weight.Load())
	}
	if slices.Equal(of.hosts, c.tabled.hosts) && slices.Equal(of.weights, c.tabled.weights) {
		return
	}
	c.tabled = of
	var t table
	switch {
	case len(hosts) == 0:
		c.table.Store(nil)
		return
	case c.Config.Balance == clusterv3.Cluster_RING_HASH:
		t = newRing(c.Config.Hashing, hosts)
	default:
		t = newMaglev(c.Config.Hashing, hosts)
	}
	c.table.Store(&t)
}

// A ring has many points for each host, sorted. A hash belongs to the host of the next point.
//
// https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/upstream/load_balancing/load_balancers#ring-hash
type ring []point

type point struct {
	at   uint64
	host *Host
}

// newRing makes Envoy's ring: its points are the hashes of ADDRESS_NUMBER, so many that
// the host of least weight has a whole number of them.
func newRing(c config.Hashing, hosts []*Host) ring {
	list, least, _ := shares(hosts)
	scale := min(math.Ceil(least*float64(c.LeastRing))/least, float64(c.MostRing))
	r := make(ring, 0, int(math.Ceil(scale)))
	target := 0.0
	for _, s := range list {
		target += float64(scale * s.part) // rounded as Envoy's is: not fused with the sum
		key := append([]byte(s.host.Address), '_')
		for i := 0; float64(len(r)) < target; i++ {
			r = append(r, point{xxhash.Sum64(strconv.AppendInt(key, int64(i), 10)), s.host})
		}
	}
	slices.SortFunc(r, func(a, b point) int { return cmp.Compare(a.at, b.at) })
	return r
}

func (r ring) host(hash uint64, attempt int) *Host {
	if len(r) == 0 { // a ring may be of no entries
		return nil
	}
	i := sort.Search(len(r), func(i int) bool { return r[i].at >= hash })
	return r[(i+attempt)%len(r)].host
}

// A maglev is a table of a prime number of entries, which the hosts fill in turns.
//
// https://research.google/pubs/pub44824
type maglev struct {
	hosts   []*Host
	entries []uint32 // numbers of hosts
}

// newMaglev makes Envoy's table: each host takes entries in an order of its own, which
// starts and goes on by hashes of its address; one of less weight misses some turns.
func newMaglev(c config.Hashing, hosts []*Host) *maglev {
	list, _, most := shares(hosts)
	slices.SortStableFunc(list, func(a, b share) int { return cmp.Compare(a.host.Address, b.host.Address) })
	type turn struct{ next, skip uint64 }
	m := &maglev{entries: make([]uint32, c.Table)}
	turns, targets := make([]turn, len(list)), make([]float64, len(list))
	for i, s := range list {
		m.hosts = append(m.hosts, s.host)
		seeded := xxhash.NewWithSeed(1)
		_, _ = seeded.WriteString(s.host.Address)
		turns[i] = turn{xxhash.Sum64String(s.host.Address) % c.Table, seeded.Sum64()%(c.Table-1) + 1}
	}
	const free = 0 // entries are numbers of hosts and 1 until the table is full
	for round, left := 1.0, c.Table; left > 0; round++ {
		for i := 0; i < len(list) && left > 0; i++ {
			if round*list[i].part < targets[i] {
				continue
			}
			targets[i] += most
			t := &turns[i]
			for m.entries[t.next] != free {
				t.next = (t.next + t.skip) % c.Table
			}
			m.entries[t.next] = uint32(i) + 1
			left--
		}
	}
	for i := range m.entries {
		m.entries[i]--
	}
	return m
}

func (m *maglev) host(hash uint64, attempt int) *Host {
	if attempt > 0 {
		hash ^= -uint64(attempt)
	}
	return m.hosts[m.entries[hash%uint64(len(m.entries))]]
}

// Hashes reports whether hosts are chosen by hashes of requests.
func (c *Cluster) Hashes() bool {
	return c.Config.Balance == clusterv3.Cluster_RING_HASH || c.Config.Balance == clusterv3.Cluster_MAGLEV
}

// hashed returns the host for a hash, or for none a random one.
func (c *Cluster) hashed(w Wanted) *Host {
	t := c.table.Load()
	if t == nil {
		return nil
	}
	hash := w.Hash
	if !w.Hashed {
		hash = rand.Uint64()
	}
	for attempt := 0; ; attempt++ {
		h := (*t).host(hash, attempt)
		if attempt >= w.Tries || !slices.Contains(w.Tried, h) {
			return h
		}
	}
}
