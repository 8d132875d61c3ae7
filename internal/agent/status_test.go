package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/chandler-proxy/chandler/internal/envoy"
)

// An aProxy is an Envoy as the status port sees it.
type aProxy struct {
	ready   error
	admin   *envoy.Admin
	adopted bool
}

func (p *aProxy) Ready(context.Context) error { return p.ready }
func (p *aProxy) Adopted() bool               { return p.adopted }
func (p *aProxy) Admin() (*envoy.Admin, error) {
	if p.admin == nil {
		return nil, envoy.ErrNotRunning
	}
	return p.admin, nil
}

// aControl is a control plane as the status port sees it.
type aControl struct {
	connected bool
	away      error
}

func (c aControl) Connected() bool { return c.connected }
func (c aControl) Away() error     { return c.away }

func statusOf(p proxy, connected bool, quit func()) http.Handler {
	return statusWith(p, aControl{connected: connected}, quit)
}

func statusWith(p proxy, c above, quit func()) http.Handler {
	cfg := Config{Upstream: "control:15010", Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)}
	return newStatus(cfg, p, c, quit).handler()
}

func ask(h http.Handler, method, path, from string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	if from != "" {
		r.RemoteAddr = from
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestServeReady(t *testing.T) {
	for _, tt := range []struct {
		name      string
		proxy     aProxy
		connected bool
		code      int
		says      string
	}{
		{"ready", aProxy{}, true, 200, "ok"},
		{"starting", aProxy{ready: &envoy.NotReadyError{State: "INITIALIZING"}}, true, 503, "the proxy is initializing"},
		{"dead", aProxy{ready: envoy.ErrNotRunning}, true, 503, "not running"},
		{"no control plane", aProxy{}, false, 503, "control plane control:15010 has not answered"},
		{"no control plane, adopted", aProxy{adopted: true}, false, 200, "ok"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := ask(statusOf(&tt.proxy, tt.connected, nil), "GET", "/healthz/ready", "")
			if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.says) {
				t.Errorf("%d %q; want %d %q", w.Code, w.Body, tt.code, tt.says)
			}
		})
	}
}

// TestServeReadyNamesTheCause: a proxy that has had no configuration says why.
func TestServeReadyNamesTheCause(t *testing.T) {
	unknown := errors.New("certificate signed by unknown authority")
	starting := &envoy.NotReadyError{State: "PRE_INITIALIZING"}
	for _, tt := range []struct {
		proxy   aProxy
		control aControl
		code    int
		says    string
	}{
		{aProxy{ready: starting}, aControl{away: unknown}, 503, "the proxy is pre_initializing\ncontrol plane control:15010 is away: certificate signed by unknown authority\n"},
		{aProxy{}, aControl{away: unknown}, 503, "control plane control:15010 is away: certificate signed by unknown authority\n"},
		{aProxy{}, aControl{connected: true, away: unknown}, 200, "ok\n"}, // it has what it needs
		{aProxy{ready: starting}, aControl{connected: true, away: unknown}, 503, "the proxy is pre_initializing\n"},
	} {
		w := ask(statusWith(&tt.proxy, tt.control, nil), "GET", "/healthz/ready", "")
		if w.Code != tt.code || w.Body.String() != tt.says {
			t.Errorf("%v: %d %q, want %d %q", tt.control, w.Code, w.Body, tt.code, tt.says)
		}
	}
}

// TestHealthAlone: what a load balancer may show to the world tells whether the proxy
// is ready, and nothing else.
func TestHealthAlone(t *testing.T) {
	cfg := Config{Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)}
	quit := func() { t.Error("quits") }
	h := newStatus(cfg, &aProxy{}, aControl{connected: true}, quit).health()
	for _, tt := range []struct {
		method, path string
		code         int
	}{
		{"GET", "/healthz/ready", 200},
		{"GET", "/metrics", 404},
		{"GET", "/stats/prometheus", 404},
		{"GET", "/app-health/app/livez", 404},
		{"GET", "/app-lifecycle/app/prestopz", 404},
		{"POST", "/quitquitquit", 404},
	} {
		if w := ask(h, tt.method, tt.path, "127.0.0.1:99"); w.Code != tt.code {
			t.Errorf("%s %s: %d, want %d", tt.method, tt.path, w.Code, tt.code)
		}
	}
}

func TestServeQuit(t *testing.T) {
	for _, tt := range []struct {
		method, from string
		code         int
	}{
		{"POST", "127.0.0.1:99", 200},
		{"POST", "[::1]:99", 200},
		{"POST", "[::ffff:127.0.0.1]:99", 200},
		{"POST", "10.0.0.1:99", 403},
		{"GET", "127.0.0.1:99", 405},
	} {
		quits := 0
		w := ask(statusOf(&aProxy{}, true, func() { quits++ }), tt.method, "/quitquitquit", tt.from)
		if w.Code != tt.code || (quits == 1) != (tt.code == 200) {
			t.Errorf("%s from %s: %d, %d quits; want %d", tt.method, tt.from, w.Code, quits, tt.code)
		}
	}
}

func TestServeMetrics(t *testing.T) {
	var query string
	stats := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query = r.URL.RawQuery
		w.Write([]byte("# TYPE istio_agent_scrapes_total counter\nistio_agent_scrapes_total 99\n# TYPE hello counter\nhello{} 1\n"))
	}))
	defer stats.Close()
	h := statusOf(&aProxy{admin: envoy.NewAdmin(stats.Listener.Addr().String())}, true, nil)
	for _, path := range []string{"/metrics", "/stats/prometheus?usedonly&filter=x"} {
		w := ask(h, "GET", path, "")
		body := w.Body.String()
		parses(t, body)
		if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain; version=0.0.4") {
			t.Errorf("%s: %d, %v", path, w.Code, w.Header())
		}
		if !strings.Contains(body, "hello{} 1\n") || strings.Contains(body, "istio_agent_scrapes_total 99") {
			t.Errorf("%s:\n%s", path, body)
		}
	}
	if query != "usedonly&filter=x" {
		t.Errorf("envoy was asked for %q", query)
	}
}

func TestServeMetricsWithoutEnvoy(t *testing.T) {
	h := statusOf(&aProxy{}, true, nil)
	ask(h, "GET", "/metrics", "")
	w := ask(h, "GET", "/metrics", "")
	parses(t, w.Body.String())
	for _, want := range []string{"istio_agent_scrapes_total 2\n", `istio_agent_scrape_failures_total{type="envoy"} 1` + "\n"} {
		if w.Code != 200 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%d, without %q:\n%s", w.Code, want, w.Body)
		}
	}
}

// That one of the agent's metrics cannot be had does not hide the others.
func TestServeMetricsBroken(t *testing.T) {
	cfg := Config{Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)}
	cfg.Metrics.MustRegister(broken{})
	w := ask(newStatus(cfg, &aProxy{}, nil, nil).handler(), "GET", "/metrics", "")
	if !strings.Contains(w.Body.String(), "istio_agent_scrapes_total 1\n") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// broken is a metric that cannot be read.
type broken struct{}

func (broken) desc() *prometheus.Desc                { return prometheus.NewDesc("broken", "", nil, nil) }
func (b broken) Describe(ch chan<- *prometheus.Desc) { ch <- b.desc() }
func (b broken) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(b.desc(), errors.New("broken"))
}
