package stats

import (
	"cmp"
	"slices"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// A Sample is a counter or gauge at one moment, under the name that /stats has.
type Sample struct {
	Name  string
	Gauge bool
	Value int64
}

// Samples returns all counters and gauges, those of plugins too, by name.
func (r *Registry) Samples() []Sample {
	var all []Sample
	for _, v := range r.sorted() {
		all = append(all, Sample{v.dotted(), v.gauge, v.Get()})
	}
	for _, s := range r.Plugins.All() {
		if s.Type != abi.Histogram {
			all = append(all, Sample{custom + s.Name, s.Type == abi.Gauge, int64(s.Value())})
		}
	}
	slices.SortFunc(all, func(a, b Sample) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Histograms returns the names of all histograms, which only plugins have.
func (r *Registry) Histograms() []string {
	var names []string
	for _, s := range r.Plugins.All() {
		if s.Type == abi.Histogram {
			names = append(names, custom+s.Name)
		}
	}
	return names
}

// ResetCounters sets all counters to 0.
func (r *Registry) ResetCounters() {
	for _, v := range r.sorted() {
		if !v.gauge {
			v.Set(0)
		}
	}
	for _, s := range r.Plugins.All() {
		if s.Type == abi.Counter {
			s.Record(0)
		}
	}
}
