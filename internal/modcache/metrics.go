package modcache

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/store"
)

// metrics are Istio's, by name, label and value. All values are there from the
// start.
type metrics struct {
	hit, miss                                  prometheus.Counter
	success, download, manifest, otherChecksum prometheus.Counter
}

func newMetrics(r prometheus.Registerer, s *store.Store) metrics {
	entries := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "istio_agent_wasm_cache_entries",
		Help: "Number of Wasm modules in the local store.",
	}, func() float64 { return float64(s.Len()) })
	lookups := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "istio_agent_wasm_cache_lookup_count",
		Help: "Number of lookups in the Wasm module cache, by whether the module was there.",
	}, []string{"hit"})
	fetches := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "istio_agent_wasm_remote_fetch_count",
		Help: "Number of Wasm module downloads, by result.",
	}, []string{"result"})
	r.MustRegister(entries, lookups, fetches)
	return metrics{
		hit:           lookups.WithLabelValues("true"),
		miss:          lookups.WithLabelValues("false"),
		success:       fetches.WithLabelValues("success"),
		download:      fetches.WithLabelValues("download_failure"),
		manifest:      fetches.WithLabelValues("manifest_failure"),
		otherChecksum: fetches.WithLabelValues("checksum_mismatched"),
	}
}

func (m *metrics) lookup(hit bool) {
	if hit {
		m.hit.Inc()
	} else {
		m.miss.Inc()
	}
}

// fetched counts a fetch with all its tries as one. Neither one that found
// nothing new counts, nor one that was called off.
func (m *metrics) fetched(ctx context.Context, res fetch.Result, err error) {
	e, _ := errors.AsType[*fetch.Error](err)
	switch {
	case err == nil && !res.Known:
		m.success.Inc()
	case err == nil, errors.Is(context.Cause(ctx), errDeserted), errors.Is(context.Cause(ctx), errOver):
	case e != nil && e.Kind == fetch.Checksum:
		m.otherChecksum.Inc()
	case e != nil && e.Manifest:
		m.manifest.Inc()
	default:
		m.download.Inc()
	}
}
