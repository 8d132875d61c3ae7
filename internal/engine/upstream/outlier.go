package upstream

import (
	"math"
	"sync/atomic"
	"time"
)

// health is what is known of a host by how it answered.
type health struct {
	serverErrors  atomic.Int64 // one after the other
	gatewayErrors atomic.Int64
	total, good   atomic.Int64 // in this interval

	// Guarded by the cluster's mu.
	ejected bool
	since   time.Time
	times   int64 // that it was ejected lately
}

// Report tells how a request to the host ended: the status of the answer, or the one
// that the proxy gave in its place.
func (h *Host) Report(status int) {
	o := h.cluster.Config.Outliers
	if o == nil {
		return
	}
	x := &h.health
	x.total.Add(1)
	if status < 500 {
		x.good.Add(1)
		x.serverErrors.Store(0)
		x.gatewayErrors.Store(0)
		return
	}
	if status >= 502 && status <= 504 {
		if n := x.gatewayErrors.Add(1); n == o.ConsecutiveGateway {
			h.cluster.eject(h, "consecutive_gateway_failure")
		}
	} else {
		x.gatewayErrors.Store(0)
	}
	if n := x.serverErrors.Add(1); n == o.Consecutive5xx {
		h.cluster.eject(h, "consecutive_5xx")
	}
}

// eject takes a host out, unless too many are.
func (c *Cluster) eject(h *Host, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ejectLocked(h, why)
}

func (c *Cluster) ejectLocked(h *Host, why string) {
	o, hosts := c.Config.Outliers, *c.hosts.Load()
	out := 0
	for _, other := range hosts {
		if other.health.ejected {
			out++
		}
	}
	share := 100 * float64(out+1) / float64(max(len(hosts), 1))
	x := &h.health
	x.serverErrors.Store(0)
	x.gatewayErrors.Store(0)
	if x.ejected || share > o.MaxPercent && !(o.AlwaysOne && out == 0) {
		c.Stats.ejectionOverflow.Inc()
		return
	}
	x.ejected, x.since = true, c.now()
	x.times++
	c.Stats.ejections.Inc()
	c.Stats.ejected.Inc()
	c.Stats.registry.Counter(c.Stats.scope, "outlier_detection.ejections_enforced_"+why).Inc()
	c.log.Info("endpoint is ejected", "cluster", c.Config.Name, "endpoint", h.Address, "reason", why)
	c.choosable()
}

// judge does what is due after an interval: it takes hosts back, and ejects those
// that succeed too seldom.
func (c *Cluster) judge(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.Config.Outliers
	for _, h := range *c.hosts.Load() {
		x := &h.health
		switch {
		case !x.ejected:
			x.times = max(0, x.times-1)
		case now.Sub(x.since) >= min(o.Base*time.Duration(x.times), o.Most):
			x.ejected = false
			c.Stats.ejected.Dec()
			c.log.Info("endpoint is taken back", "cluster", c.Config.Name, "endpoint", h.Address)
		}
	}
	if o.SuccessRate {
		c.compare()
	}
	c.choosable()
}

// compare ejects hosts whose rate of success is far below the mean.
func (c *Cluster) compare() {
	o := c.Config.Outliers
	rates := map[*Host]float64{}
	sum := 0.0
	for _, h := range *c.hosts.Load() {
		total, good := h.health.total.Swap(0), h.health.good.Swap(0)
		if !h.health.ejected && total >= max(o.RequestVolume, 1) {
			rates[h] = 100 * float64(good) / float64(total)
			sum += rates[h]
		}
	}
	if len(rates) < max(o.MinimumHosts, 1) {
		return
	}
	mean, variance := sum/float64(len(rates)), 0.0
	for _, r := range rates {
		variance += (r - mean) * (r - mean)
	}
	least := mean - o.Factor*math.Sqrt(variance/float64(len(rates)))
	for h, r := range rates {
		if r < least {
			c.ejectLocked(h, "success_rate")
		}
	}
}

// choosable finds the hosts to choose from: those that are not ejected, or all if
// these are too few. c.mu is held.
func (c *Cluster) choosable() {
	hosts := *c.hosts.Load()
	var good []*Host
	for _, h := range hosts {
		if !h.health.ejected {
			good = append(good, h)
		}
	}
	if len(good) < len(hosts) && 100*float64(len(good)) < c.Config.Panic*float64(len(hosts)) {
		good = hosts
	}
	c.smooth = nil
	c.good.Store(&good)
	c.tabulate(good)
}
