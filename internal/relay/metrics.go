package relay

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/chandler-proxy/chandler/internal/ecds"
)

// metrics are Istio's for the conversion of Wasm extension configs.
type metrics struct {
	conversions *prometheus.CounterVec
	duration    prometheus.Histogram
}

// The results of a conversion.
const (
	resultSuccess          = "success"
	resultNoRemoteLoad     = "no_remote_load"
	resultMarshalFailure   = "marshal_failure"
	resultUnmarshalFailure = "unmarshal_failure"
	resultFetchFailure     = "fetch_failure"
	resultMissFetchHint    = "miss_remote_fetch_hint"
)

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		conversions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_agent_wasm_config_conversion_count",
			Help: "Wasm extension configs converted, by result.",
		}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "istio_agent_wasm_config_conversion_duration",
			Help:    "Time from the arrival of a Wasm extension config to its conversion, in milliseconds.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 15),
		}),
	}
	for _, r := range []string{resultSuccess, resultNoRemoteLoad, resultMarshalFailure, resultUnmarshalFailure, resultFetchFailure, resultMissFetchHint} {
		m.conversions.WithLabelValues(r)
	}
	if reg != nil {
		reg.MustRegister(m.conversions, m.duration)
	}
	return m
}

func (m *metrics) converted(result string, since time.Time) {
	m.conversions.WithLabelValues(result).Inc()
	m.duration.Observe(float64(time.Since(since)) / float64(time.Millisecond))
}

// wantResult is the result that an error of [ecds.Extension.Want] stands for.
func wantResult(err error) string {
	switch {
	case errors.Is(err, ecds.ErrNotRemote):
		return resultNoRemoteLoad
	case errors.Is(err, ecds.ErrNoURI):
		return resultMissFetchHint
	}
	return resultUnmarshalFailure
}
