// Package upstream has the clusters: their endpoints, how one is chosen, and the
// connections to it.
//
// A [Cluster] is made of one configuration and never changes it; its endpoints do
// change, and connections to those that stay are kept. It does not retry, time
// out or route: that is the router's. An [Exchange] is one request to one endpoint.
//
// Start at [New], [Cluster.Run] and [Cluster.Choose].
package upstream

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"github.com/chandler-proxy/chandler/internal/engine/certs"
	"github.com/chandler-proxy/chandler/internal/engine/config"
	"github.com/chandler-proxy/chandler/internal/engine/stats"
)

// sweepEvery is how often idle connections are looked at.
const sweepEvery = 5 * time.Second

// A Cluster is a running cluster. It is safe for concurrent use.
type Cluster struct {
	Config   *config.Cluster
	Stats    Stats
	Breakers Breakers

	tls    *tls.Config // nil for plain text
	log    *slog.Logger
	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)

	now func() time.Time

	hosts atomic.Pointer[[]*Host]
	good  atomic.Pointer[[]*Host] // to choose from
	table atomic.Pointer[table]   // to choose by; nil if there is none
	turn  atomic.Uint64
	known chan struct{} // closed when there are endpoints, if only none

	mu     sync.Mutex
	told   bool
	byDst  map[netip.AddrPort]*Host // of ORIGINAL_DST
	smooth []int64                  // state of weighted round robin
	tabled tabled
}

// Stats are a cluster's.
type Stats struct {
	registry                             *stats.Registry
	scope                                stats.Scope
	CxTotal, CxActive, ConnectFail       *stats.Value
	RqTotal, RqActive, Retry             *stats.Value
	Timeout, PerTryTimeout, NoneHealthy  *stats.Value
	members                              *stats.Value
	pendingOverflow, cxOverflow          *stats.Value
	RetryOverflow                        *stats.Value
	ejections, ejected, ejectionOverflow *stats.Value
	classes                              [6]*stats.Value
}

func newStats(r *stats.Registry, name string) Stats {
	scope := stats.Scope{Family: "cluster", Name: name}
	s := Stats{
		registry: r, scope: scope,
		CxTotal: r.Counter(scope, "upstream_cx_total"), CxActive: r.Gauge(scope, "upstream_cx_active"),
		ConnectFail: r.Counter(scope, "upstream_cx_connect_fail"),
		RqTotal:     r.Counter(scope, "upstream_rq_total"), RqActive: r.Gauge(scope, "upstream_rq_active"),
		Retry: r.Counter(scope, "upstream_rq_retry"), Timeout: r.Counter(scope, "upstream_rq_timeout"),
		PerTryTimeout: r.Counter(scope, "upstream_rq_per_try_timeout"),
		NoneHealthy:   r.Counter(scope, "upstream_cx_none_healthy"), members: r.Gauge(scope, "membership_total"),
		pendingOverflow: r.Counter(scope, "upstream_rq_pending_overflow"), cxOverflow: r.Counter(scope, "upstream_cx_overflow"),
		RetryOverflow: r.Counter(scope, "upstream_rq_retry_overflow"),
		ejections:     r.Counter(scope, "outlier_detection.ejections_enforced_total"),
		ejected:       r.Gauge(scope, "outlier_detection.ejections_active"), ejectionOverflow: r.Counter(scope, "outlier_detection.ejections_overflow"),
	}
	for class := 1; class <= 5; class++ {
		s.classes[class] = r.Counter(scope, fmt.Sprintf("upstream_rq_%dxx", class))
	}
	return s
}

// Answered counts a response.
func (s *Stats) Answered(status int) {
	if class := status / 100; class >= 1 && class <= 5 {
		s.classes[class].Inc()
	}
}

// New makes a cluster. It reads the files that the configuration names and starts
// nothing.
func New(c *config.Cluster, r *stats.Registry, log *slog.Logger) (*Cluster, error) {
	cluster := &Cluster{
		Config: c, Stats: newStats(r, c.StatName), log: log,
		lookup: net.DefaultResolver.LookupNetIP, now: time.Now,
		known: make(chan struct{}), byDst: map[netip.AddrPort]*Host{},
	}
	cluster.hosts.Store(new([]*Host))
	cluster.good.Store(new([]*Host))
	cluster.Breakers.init(c.Limits)
	if c.TLS != nil {
		conf, err := certs.Client(c.TLS)
		if err != nil {
			return nil, fmt.Errorf("transport_socket: %w", err)
		}
		cluster.tls = conf
		if c.HTTP2 {
			conf.NextProtos = []string{"h2"}
		}
	}
	switch c.Discovery {
	case config.Static:
		cluster.SetEndpoints(c.Endpoints)
	case config.OriginalDst:
		cluster.SetEndpoints(nil)
	}
	return cluster, nil
}

// Known is closed when the cluster knows its endpoints: it is warm.
func (c *Cluster) Known() <-chan struct{} { return c.known }

// SetEndpoints replaces the endpoints. Those that stay keep their connections;
// requests on those that go are finished.
func (c *Cluster) SetEndpoints(list []config.Endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := map[string]*Host{}
	for _, h := range *c.hosts.Load() {
		old[h.Address] = h
	}
	hosts := make([]*Host, 0, len(list))
	for _, e := range list {
		network, address := "tcp", net.JoinHostPort(e.Host, strconv.Itoa(int(e.Port)))
		if e.Pipe != "" {
			network, address = "unix", e.Pipe
		}
		h := old[address]
		if h == nil {
			h = newHost(c, network, address)
		}
		delete(old, address)
		h.weight.Store(int64(e.Weight))
		hosts = append(hosts, h)
	}
	c.hosts.Store(&hosts)
	c.choosable()
	for _, h := range old {
		if h.health.ejected {
			c.Stats.ejected.Dec()
		}
		h.retire()
	}
	c.Stats.members.Set(int64(len(hosts)))
	if !c.told {
		c.told = true
		close(c.known)
	}
}

// Hosts returns the endpoints of now.
func (c *Cluster) Hosts() []*Host {
	if c.Config.Discovery != config.OriginalDst {
		return *c.hosts.Load()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	hosts := make([]*Host, 0, len(c.byDst))
	for _, h := range c.byDst {
		hosts = append(hosts, h)
	}
	return hosts
}

// Wanted is what an endpoint is chosen for. The zero value is for any request.
type Wanted struct {
	Dst    netip.AddrPort // that the connection was meant for
	Tried  []*Host        // if possible none of these
	Tries  int            // how often to look for another
	Hash   uint64         // of the request, if Hashed; for clusters that go by it
	Hashed bool
}

// Choose returns an endpoint, nil if there is none.
func (c *Cluster) Choose(w Wanted) *Host {
	if c.Config.Discovery == config.OriginalDst {
		return c.original(w.Dst)
	}
	if c.Hashes() {
		return c.hashed(w)
	}
	hosts := *c.good.Load()
	if len(hosts) == 0 {
		return nil
	}
	h := c.balance(hosts)
	for range w.Tries {
		if !slices.Contains(w.Tried, h) {
			break
		}
		h = c.balance(hosts)
	}
	return h
}

// original returns the host for a destination.
func (c *Cluster) original(dst netip.AddrPort) *Host {
	if !dst.IsValid() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.byDst[dst]
	if h == nil {
		h = newHost(c, "tcp", dst.String())
		c.byDst[dst] = h
	}
	return h
}

func (c *Cluster) balance(hosts []*Host) *Host {
	if len(hosts) == 1 {
		return hosts[0]
	}
	if c.Config.Balance == clusterv3.Cluster_RANDOM && !weighted(hosts) {
		return hosts[rand.IntN(len(hosts))]
	}
	if weighted(hosts) {
		return c.smoothest(hosts)
	}
	if c.Config.Balance == clusterv3.Cluster_LEAST_REQUEST {
		a, b := hosts[rand.IntN(len(hosts))], hosts[rand.IntN(len(hosts))]
		if b.active.Load() < a.active.Load() {
			return b
		}
		return a
	}
	return hosts[c.turn.Add(1)%uint64(len(hosts))]
}

func weighted(hosts []*Host) bool {
	first := hosts[0].weight.Load()
	return slices.ContainsFunc(hosts, func(h *Host) bool { return h.weight.Load() != first })
}

// smoothest is smooth weighted round robin: each host gains its weight, the one
// that has most is chosen and pays the sum. For least request a weight counts less
// the more requests the host has.
func (c *Cluster) smoothest(hosts []*Host) *Host {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.smooth) != len(hosts) {
		c.smooth = make([]int64, len(hosts))
	}
	best, sum := 0, int64(0)
	for i, h := range hosts {
		w := h.weight.Load() * 1000
		if c.Config.Balance == clusterv3.Cluster_LEAST_REQUEST {
			w /= h.active.Load() + 1
		}
		c.smooth[i] += w
		sum += w
		if c.smooth[i] > c.smooth[best] {
			best = i
		}
	}
	c.smooth[best] -= sum
	return hosts[best]
}

// Run resolves names, if the cluster has any, and closes connections that are not
// used, until ctx ends. Then it closes all that are idle; those in use are closed
// after their request.
func (c *Cluster) Run(ctx context.Context) error {
	every := sweepEvery
	if c.Config.Discovery == config.DNS {
		c.resolve(ctx)
		every = min(every, c.Config.DNSRefresh)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	resolved := time.Now()
	var judging <-chan time.Time
	if o := c.Config.Outliers; o != nil {
		t := time.NewTicker(o.Interval)
		defer t.Stop()
		judging = t.C
	}
	for {
		select {
		case <-judging:
			c.judge(c.now())
		case <-ctx.Done():
			c.retireAll()
			return nil
		case now := <-tick.C:
			c.sweep(now)
			if c.Config.Discovery == config.DNS && now.Sub(resolved) >= c.Config.DNSRefresh {
				c.resolve(ctx)
				resolved = now
			}
		}
	}
}

func (c *Cluster) retireAll() {
	for _, h := range c.Hosts() {
		h.retire()
	}
}

// sweep closes what was idle too long, and forgets original destinations without connections.
func (c *Cluster) sweep(now time.Time) {
	for _, h := range c.Hosts() {
		h.sweep(now, c.Config.Idle)
	}
	if c.Config.Discovery != config.OriginalDst {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for dst, h := range c.byDst {
		if h.unused() {
			delete(c.byDst, dst)
		}
	}
}

// resolve asks for the addresses of all names. A name that cannot be resolved
// keeps the addresses that it had.
func (c *Cluster) resolve(ctx context.Context) {
	var list []config.Endpoint
	for _, e := range c.Config.Endpoints {
		addrs, err := c.addresses(ctx, e.Host)
		if err != nil {
			if ctx.Err() == nil {
				c.log.Warn("resolve", "cluster", c.Config.Name, "host", e.Host, "error", err)
			}
			if len(c.Hosts()) > 0 {
				return
			}
			continue
		}
		if c.Config.FirstOnly && len(addrs) > 1 {
			addrs = addrs[:1]
		}
		for _, a := range addrs {
			list = append(list, config.Endpoint{Host: a.String(), Port: e.Port, Weight: e.Weight})
		}
	}
	c.SetEndpoints(list)
}

func (c *Cluster) addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.Config.Connect)
	defer cancel()
	var first, second string
	switch c.Config.Family {
	case clusterv3.Cluster_V4_ONLY:
		first = "ip4"
	case clusterv3.Cluster_V6_ONLY:
		first = "ip6"
	case clusterv3.Cluster_V4_PREFERRED:
		first, second = "ip4", "ip6"
	case clusterv3.Cluster_ALL:
		first = "ip"
	default:
		first, second = "ip6", "ip4"
	}
	addrs, err := c.lookup(ctx, first, host)
	if err != nil && second != "" {
		addrs, err = c.lookup(ctx, second, host)
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs, err
}
