// Package stats counts what the engine does, under Envoy's names, and writes it
// as Envoy's admin interface does: as text and in Prometheus' format.
//
// Nothing is global; a [Registry] has all there is. A counter of the same scope and
// name is one counter, however often it is asked for. Counters are safe for
// concurrent use and cost one atomic addition.
//
// https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/observability/statistics
package stats

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// A Scope is a thing that has statistics, such as one cluster.
type Scope struct {
	Family string // cluster, http, listener, tcp; empty for the server's own
	Name   string // of the thing
}

// labels are what Envoy calls the name of a thing in Prometheus' format.
func label(family string) string {
	switch family {
	case "cluster":
		return "envoy_cluster_name"
	case "http":
		return "envoy_http_conn_manager_prefix"
	case "listener":
		return "envoy_listener_address"
	case "tcp":
		return "envoy_tcp_prefix"
	}
	return ""
}

// A Value is a counter or a gauge.
type Value struct {
	scope Scope
	name  string
	gauge bool
	n     atomic.Int64
}

// Add changes it.
func (v *Value) Add(delta int64) { v.n.Add(delta) }

// Inc adds one.
func (v *Value) Inc() { v.n.Add(1) }

// Dec takes one off a gauge.
func (v *Value) Dec() { v.n.Add(-1) }

// Set sets a gauge.
func (v *Value) Set(n int64) { v.n.Store(n) }

// Get returns it.
func (v *Value) Get() int64 { return v.n.Load() }

type key struct {
	scope Scope
	name  string
}

// A Registry has all values, and those of plugins.
type Registry struct {
	Plugins *proxywasm.Stats

	mu  sync.Mutex
	all map[key]*Value
}

// New returns a Registry without values.
func New() *Registry {
	return &Registry{Plugins: proxywasm.NewStats(), all: map[key]*Value{}}
}

// Counter returns a counter, which it makes if there is none.
func (r *Registry) Counter(s Scope, name string) *Value { return r.value(s, name, false) }

// Gauge returns a gauge, likewise.
func (r *Registry) Gauge(s Scope, name string) *Value { return r.value(s, name, true) }

func (r *Registry) value(s Scope, name string, gauge bool) *Value {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := key{s, name}
	v := r.all[k]
	if v == nil {
		v = &Value{scope: s, name: name, gauge: gauge}
		r.all[k] = v
	}
	return v
}

// Forget drops all values of a thing that is gone.
func (r *Registry) Forget(s Scope) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k := range r.all {
		if k.scope == s {
			delete(r.all, k)
		}
	}
}

func (r *Registry) sorted() []*Value {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*Value, 0, len(r.all))
	for _, v := range r.all {
		all = append(all, v)
	}
	return all
}

// dotted is the name as /stats has it. A colon would end it.
func (v *Value) dotted() string {
	switch {
	case v.scope.Family == "":
		return v.name
	default:
		return v.scope.Family + "." + strings.ReplaceAll(v.scope.Name, ":", "_") + "." + v.name
	}
}

// A Query says which statistics are wanted.
type Query struct {
	Filter   *regexp.Regexp // by dotted name; nil for all
	UsedOnly bool           // leave out what is 0
}

func (q Query) wants(name string, value int64) bool {
	return (q.Filter == nil || q.Filter.MatchString(name)) && (!q.UsedOnly || value != 0)
}

// custom is what Envoy puts before the names of plugins' metrics.
const custom = "wasmcustom."

// WriteText writes lines of name and value, sorted.
func (r *Registry) WriteText(w io.Writer, q Query) error {
	var lines []string
	for _, v := range r.sorted() {
		if name := v.dotted(); q.wants(name, v.Get()) {
			lines = append(lines, name+": "+strconv.FormatInt(v.Get(), 10))
		}
	}
	for _, s := range r.Plugins.All() {
		name := custom + s.Name
		if s.Type == abi.Histogram {
			continue
		}
		if q.wants(name, int64(s.Value())) {
			lines = append(lines, name+": "+strconv.FormatUint(s.Value(), 10))
		}
	}
	slices.Sort(lines)
	b := bufio.NewWriter(w)
	for _, l := range lines {
		_, _ = b.WriteString(l + "\n")
	}
	return b.Flush()
}

// A sample is one line of Prometheus' format, without its value.
type sample struct {
	family, kind string
	lines        []string
}

// WritePrometheus writes everything in Prometheus' text format, sorted by name.
func (r *Registry) WritePrometheus(w io.Writer, q Query) error {
	families := map[string]*sample{}
	add := func(family, kind, line string) {
		s := families[family]
		if s == nil {
			s = &sample{family: family, kind: kind}
			families[family] = s
		}
		s.lines = append(s.lines, line)
	}
	for _, v := range r.sorted() {
		if !q.wants(v.dotted(), v.Get()) {
			continue
		}
		family, labels := v.prometheus()
		kind := "counter"
		if v.gauge {
			kind = "gauge"
		}
		add(family, kind, fmt.Sprintf("%s{%s} %d", family, labels, v.Get()))
	}
	for _, s := range r.Plugins.All() {
		if q.wants(custom+s.Name, int64(s.Value())) {
			addPlugin(s, add)
		}
	}
	sorted := make([]*sample, 0, len(families))
	for _, s := range families {
		sorted = append(sorted, s)
	}
	slices.SortFunc(sorted, func(a, b *sample) int { return cmp.Compare(a.family, b.family) })
	b := bufio.NewWriter(w)
	for _, s := range sorted {
		if s.kind != "histogram" {
			slices.Sort(s.lines)
		}
		fmt.Fprintf(b, "# TYPE %s %s\n%s\n", s.family, s.kind, strings.Join(s.lines, "\n"))
	}
	return b.Flush()
}

// prometheus is the name and the labels of a value. The class of a status, 2xx, is a label.
func (v *Value) prometheus() (family, labels string) {
	name := v.name
	var pairs []string
	if i := strings.LastIndexByte(name, '_'); i >= 0 && len(name)-i == 4 && strings.HasSuffix(name, "xx") {
		pairs = append(pairs, `envoy_response_code_class="`+name[i+1:i+2]+`"`)
		name = name[:i] + "_xx"
	}
	if l := label(v.scope.Family); l != "" {
		pairs = append(pairs, l+`="`+escape(v.scope.Name)+`"`)
	}
	if v.scope.Family != "" {
		name = v.scope.Family + "_" + name
	}
	return "envoy_" + identifier(name), strings.Join(pairs, ",")
}

// tags are those that the agent's bootstrap gives Envoy for plugins' metrics, as
// Istio's does: a metric wasm_filter.NAME.cache.hit.count is printed as
// count{wasm_filter="NAME",cache="hit"}.
var tags = []struct {
	name string
	re   *regexp.Regexp
}{
	{"cache", regexp.MustCompile(`^(?:.*?\.)?(cache\.(.+?)\.)`)},
	{"component", regexp.MustCompile(`^(?:.*?\.)?(component\.(.+?)\.)`)},
	{"tag", regexp.MustCompile(`^(?:.*?\.)?(tag\.(.+?);\.)`)},
	{"wasm_filter", regexp.MustCompile(`^(?:.*?\.)?(wasm_filter\.(.+?)\.)`)},
}

func addPlugin(s *proxywasm.Stat, add func(family, kind, line string)) {
	name := s.Name
	var pairs []string
	var cuts [][2]int
	for _, t := range tags {
		if m := t.re.FindStringSubmatchIndex(s.Name); m != nil {
			pairs = append(pairs, t.name+`="`+escape(s.Name[m[4]:m[5]])+`"`)
			cuts = append(cuts, [2]int{m[2], m[3]})
		}
	}
	slices.SortFunc(cuts, func(a, b [2]int) int { return b[0] - a[0] })
	for _, c := range cuts {
		name = name[:c[0]] + name[min(c[1], len(name)):]
	}
	family, labels := identifier(name), strings.Join(pairs, ",")
	switch s.Type {
	case abi.Counter:
		add(family, "counter", fmt.Sprintf("%s{%s} %d", family, labels, s.Value()))
	case abi.Gauge:
		add(family, "gauge", fmt.Sprintf("%s{%s} %d", family, labels, s.Value()))
	case abi.Histogram:
		addHistogram(s, family, pairs, add)
	}
}

func addHistogram(s *proxywasm.Stat, family string, pairs []string, add func(family, kind, line string)) {
	count, sum, buckets := s.Histogram()
	bounds := make([]float64, 0, len(buckets))
	for b := range buckets {
		bounds = append(bounds, b)
	}
	slices.Sort(bounds)
	labels := strings.Join(pairs, ",")
	line := func(suffix, labels string, n uint64) {
		add(family, "histogram", fmt.Sprintf("%s_%s{%s} %d", family, suffix, labels, n))
	}
	bucket := func(le string, n uint64) {
		line("bucket", strings.Join(append(pairs[:len(pairs):len(pairs)], `le="`+le+`"`), ","), n)
	}
	for _, b := range bounds {
		bucket(strconv.FormatFloat(b, 'f', -1, 64), buckets[b])
	}
	bucket("+Inf", count)
	line("sum", labels, sum)
	line("count", labels, count)
}

// identifier replaces what cannot be in a metric's name.
func identifier(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '_', r == ':':
			return r
		}
		return '_'
	}, s)
	if s != "" && s[0] >= '0' && s[0] <= '9' {
		return "_" + s
	}
	return s
}

func escape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s)
}
