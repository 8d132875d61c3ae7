package kube

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	events    *prometheus.CounterVec // by resource
	errors    *prometheus.CounterVec // by resource
	snapshots prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chandler_source_kube_events_total",
			Help: "Objects that the API server told of, in lists and as changes, by resource.",
		}, []string{"resource"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chandler_source_kube_errors_total",
			Help: "Lists and watches that the API server refused or did not answer, by resource.",
		}, []string{"resource"}),
		snapshots: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "chandler_source_kube_snapshots_total",
			Help: "Snapshots delivered.",
		}),
	}
	if r != nil {
		r.MustRegister(m.events, m.errors, m.snapshots)
	}
	return m
}
