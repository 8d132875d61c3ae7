package proxywasm

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// Stats keeps metrics in memory. It is safe for concurrent use.
type Stats struct {
	mu  sync.Mutex
	all map[statKey]*Stat
}

type statKey struct {
	t    abi.Metric
	name string
}

// NewStats returns one without metrics.
func NewStats() *Stats { return &Stats{all: map[statKey]*Stat{}} }

// Metric returns the metric of that type and name, which it makes if there is none.
func (s *Stats) Metric(t abi.Metric, name string) Metric {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := statKey{t, name}
	m := s.all[key]
	if m == nil {
		m = &Stat{Type: t, Name: name}
		s.all[key] = m
	}
	return m
}

// All returns all metrics, by name and type.
func (s *Stats) All() []*Stat {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*Stat
	for _, m := range s.all {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b *Stat) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Type, b.Type))
	})
	return all
}

// A Stat is one metric in memory.
type Stat struct {
	Type abi.Metric
	Name string

	value atomic.Uint64 // of counter and gauge; the sum of a histogram

	mu      sync.Mutex
	buckets [len(bounds)]uint64 // how many values were at most as large as the bound
	count   uint64
}

// bounds are those of Envoy's histograms for Prometheus.
var bounds = [...]float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000}

// Add changes a counter or gauge. As in Envoy a gauge does not stop at 0.
func (s *Stat) Add(delta int64) { s.value.Add(uint64(delta)) }

// Value is that of a counter or gauge.
func (s *Stat) Value() uint64 { return s.value.Load() }

// Record sets a gauge, or records one value of a histogram.
func (s *Stat) Record(value uint64) {
	if s.Type != abi.Histogram {
		s.value.Store(value)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	s.value.Add(value)
	for i, bound := range bounds {
		if float64(value) <= bound {
			s.buckets[i]++
		}
	}
}

// Histogram returns how many values there were, their sum, and how many were at most
// as large as each of Envoy's bounds.
func (s *Stat) Histogram() (count, sum uint64, buckets map[float64]uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	buckets = make(map[float64]uint64, len(bounds))
	for i, bound := range bounds {
		buckets[bound] = s.buckets[i]
	}
	return s.count, s.value.Load(), buckets
}
