package admin

import (
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/chandler-proxy/chandler/internal/engine/stats"
)

// A selection says which statistics are wanted.
type selection struct {
	usedOnly, invert bool
	filter           *regexp.Regexp // nil for all
	counters, gauges bool
}

// badParameter is a value that there is not, in Envoy's words.
type badParameter string

func (e badParameter) Error() string { return string(e) }

func newSelection(q url.Values) (selection, error) {
	all := selection{usedOnly: q.Has("usedonly"), invert: q.Has("invert_filter"), counters: true, gauges: true}
	switch strings.ToLower(q.Get("type")) {
	case "", "all":
	case "counters":
		all.gauges = false
	case "gauges":
		all.counters = false
	case "histograms", "textreadouts":
		all.counters, all.gauges = false, false
	default:
		return all, badParameter("invalid &type= param")
	}
	if b := q.Get("histogram_buckets"); b != "" && !slices.Contains([]string{"cumulative", "disjoint", "detailed", "summary"}, b) {
		return all, badParameter("usage: /stats?histogram_buckets=(cumulative|disjoint|detailed|summary)\n\n")
	}
	switch q.Get("hidden") { // nothing is
	case "", "include", "exclude":
	case "only":
		all.counters, all.gauges = false, false
	default:
		return all, badParameter("usage: /stats?hidden=(include|only|exclude)\n\n")
	}
	if f := q.Get("filter"); f != "" {
		re, err := regexp.Compile(f)
		if err != nil {
			return all, badParameter("Invalid re2 regex: " + regexError(err))
		}
		all.filter = re
	}
	return all, nil
}

// wants reports whether a name is selected.
func (s selection) wants(name string) bool {
	return s.filter == nil || s.filter.MatchString(name) != s.invert
}

// samples are the counters and gauges that are selected.
func (s selection) samples(r *stats.Registry) (list []stats.Sample) {
	for _, v := range r.Samples() {
		kind := s.counters
		if v.Gauge {
			kind = s.gauges
		}
		if kind && s.wants(v.Name) && (!s.usedOnly || v.Value != 0) {
			list = append(list, v)
		}
	}
	return list
}

// query is the selection as the registry knows it, for all types: what is inverted as all
// the names.
func (s selection) query(r *stats.Registry) stats.Query {
	if !s.invert {
		return stats.Query{Filter: s.filter, UsedOnly: s.usedOnly}
	}
	var names []string
	for _, v := range s.samples(r) {
		names = append(names, regexp.QuoteMeta(v.Name))
	}
	for _, name := range r.Histograms() {
		if s.wants(name) {
			names = append(names, regexp.QuoteMeta(name))
		}
	}
	if names == nil {
		return stats.Query{Filter: regexp.MustCompile(`[^\x{0}-\x{10FFFF}]`)} // nothing
	}
	return stats.Query{Filter: regexp.MustCompile(`^(?:` + strings.Join(names, "|") + `)$`), UsedOnly: s.usedOnly}
}

// stats writes statistics, as text or JSON. Histograms, which only plugins have, are in
// neither: they are in the format of Prometheus.
func (s *Server) stats(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	format := q.Get("format")
	if format == "prometheus" {
		s.prometheus(w, r)
		return
	}
	sel, err := newSelection(q)
	switch {
	case err != nil:
		refuse(w, http.StatusBadRequest, err.Error())
	case format == "json":
		w.Header().Set("Content-Type", "application/json")
		say(w, jsonStats(sel.samples(s.Source.Stats())))
	case format == "" || format == "text":
		var b strings.Builder
		for _, v := range sel.samples(s.Source.Stats()) {
			b.WriteString(v.Name + ": " + strconv.FormatInt(v.Value, 10) + "\n")
		}
		say(w, b.String())
	default:
		refuse(w, http.StatusBadRequest, "usage: /stats?format=(json|prometheus|text)\n\n")
	}
}

func jsonStats(samples []stats.Sample) string {
	type stat struct {
		Name  string `json:"name"`
		Value int64  `json:"value"`
	}
	list := make([]stat, 0, len(samples))
	for _, v := range samples {
		list = append(list, stat{v.Name, v.Value})
	}
	raw, _ := json.Marshal(map[string]any{"stats": list}) // of strings and numbers
	return string(raw)
}

func (s *Server) prometheus(w http.ResponseWriter, r *http.Request) {
	sel, err := newSelection(r.URL.Query())
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	sel.counters, sel.gauges = true, true // Envoy takes the type, and writes all
	registry := s.Source.Stats()
	_ = registry.WritePrometheus(w, sel.query(registry)) // the client is gone
}
