package plugintest

import (
	"maps"
	"slices"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// metrics are those that the plugin defined, by name.
type metrics map[string]*metric

type metric struct {
	kind   abi.Metric
	value  uint64   // of a counter or gauge
	values []uint64 // of a histogram
}

func (m metrics) Metric(kind abi.Metric, name string) proxywasm.Metric {
	if m[name] == nil {
		m[name] = &metric{kind: kind}
	}
	return m[name]
}

func (m *metric) Add(delta int64) { m.value += uint64(delta) }
func (m *metric) Value() uint64   { return m.value }

func (m *metric) Record(value uint64) {
	if m.kind == abi.Histogram {
		m.values = append(m.values, value)
		return
	}
	m.value = value
}

// Metric returns the value of a counter or gauge. If the plugin did not define it the
// test fails.
func (p *Plugin) Metric(name string) uint64 {
	p.t.Helper()
	m := p.metric(name)
	if m.kind == abi.Histogram {
		p.t.Fatalf("metric %s is a histogram", name)
	}
	return m.value
}

// Histogram returns what the plugin recorded in a histogram. If it did not define it
// the test fails.
func (p *Plugin) Histogram(name string) []uint64 {
	p.t.Helper()
	m := p.metric(name)
	if m.kind != abi.Histogram {
		p.t.Fatalf("metric %s is a %s", name, m.kind)
	}
	return slices.Clone(m.values)
}

func (p *Plugin) metric(name string) *metric {
	p.t.Helper()
	if m := p.metrics[name]; m != nil {
		return m
	}
	p.t.Fatalf("the plugin did not define metric %s, only %q", name, slices.Sorted(maps.Keys(p.metrics)))
	return nil
}
