package xds

import "github.com/prometheus/client_golang/prometheus"

// metrics are named as Istio's, for the dashboards that read them.
type metrics struct {
	connected prometheus.Gauge
	pushes    *prometheus.CounterVec // by short type
	rejects   *prometheus.CounterVec // by type URL; there from the first refusal on
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pilot_xds",
			Help: "Number of proxies connected over xDS.",
		}),
		pushes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pilot_xds_pushes",
			Help: "Number of xDS responses sent, by type.",
		}, []string{"type"}),
		rejects: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pilot_total_xds_rejects",
			Help: "Number of xDS responses that proxies refused, by type URL.",
		}, []string{"type"}),
	}
	if reg != nil {
		reg.MustRegister(m.connected, m.pushes, m.rejects)
	}
	return m
}

// pushed counts a response under Istio's short name of its type.
func (m *metrics) pushed(typeURL string) {
	short := [...]string{"cds", "eds", "sds", "ecds", "lds", "rds", other}
	m.pushes.WithLabelValues(short[rank(typeURL)]).Inc()
}

func (m *metrics) refused(typeURL string) {
	if rank(typeURL) == len(Types()) {
		typeURL = other
	}
	m.rejects.WithLabelValues(typeURL).Inc()
}

// other stands for types that are not served: a client could make up as many as
// it likes.
const other = "other"
