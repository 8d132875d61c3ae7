package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/chandler-proxy/chandler/internal/envoy"
	"github.com/chandler-proxy/chandler/internal/probe"
	"github.com/chandler-proxy/chandler/internal/redirect"
)

// A proxy is what the status port says of an [envoy.Process].
type proxy interface {
	Ready(ctx context.Context) error
	Admin() (*envoy.Admin, error)
	Adopted() bool
}

// An above is what the status port says of a [relay.Relay]: of the control plane.
type above interface {
	Connected() bool // it has answered once
	Away() error     // why it cannot be had now
}

// A status serves health and metrics, as port 15020 of Istio's agent does.
type status struct {
	upstream string
	proxy    proxy
	control  above
	quit     func()
	probes   http.Handler

	metrics  prometheus.Gatherer
	scrapes  prometheus.Counter
	failures *prometheus.CounterVec // by what could not be read: envoy, agent
	log      *slog.Logger
}

func newStatus(cfg Config, p proxy, c above, quit func()) *status {
	s := &status{
		upstream: cfg.Upstream,
		proxy:    p,
		control:  c,
		quit:     quit,
		probes:   probes(cfg),
		metrics:  cfg.Metrics,
		scrapes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "istio_agent_scrapes_total",
			Help: "The total number of scrapes.",
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_agent_scrape_failures_total",
			Help: "The total number of failed scrapes.",
		}, []string{"type"}),
		log: cfg.Log,
	}
	cfg.Metrics.MustRegister(s.scrapes, s.failures)
	return s
}

func (s *status) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", s.serveMetrics)
	mux.HandleFunc("GET /stats/prometheus", s.serveMetrics)
	mux.HandleFunc("GET /healthz/ready", s.serveReady)
	mux.HandleFunc("POST /quitquitquit", s.serveQuit)
	mux.Handle("GET "+probe.HealthPrefix, s.probes)
	mux.Handle("GET "+probe.LifecyclePrefix, s.probes)
	return mux
}

// health is what strangers may ask, as at port 15021 of Istio's gateways: a load
// balancer that checks gateways passes that port on to the whole world.
func (s *status) health() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz/ready", s.serveReady)
	return mux
}

// probes answers those of the workload. Where traffic is redirected, they come
// from the address that redirection lets pass to it.
func probes(cfg Config) http.Handler {
	p := probe.Config{Probes: cfg.Probes, Log: cfg.Log}
	if len(cfg.Proxy.IPs) > 0 {
		p.Pod = cfg.Proxy.IPs[0]
	}
	if cfg.Proxy.Redirected {
		own := redirect.OwnAddress4
		if p.Pod.Is6() {
			own = redirect.OwnAddress6
		}
		p.Source = netip.MustParseAddr(own)
	}
	return probe.Handler(p)
}

// run serves h on l until ctx ends. It closes l.
func (s *status) run(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := srv.Shutdown(last); err != nil {
		srv.Close() // who is not done by now reads too slowly
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serveReady answers 200 if the proxy can be sent traffic, else 503 and why not.
func (s *status) serveReady(w http.ResponseWriter, r *http.Request) {
	if err := s.ready(r.Context()); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// ready wants Envoy live and the control plane to have answered once. An Envoy
// that was adopted has had that from an earlier agent.
func (s *status) ready(ctx context.Context) error {
	err := s.proxy.Ready(ctx)
	switch {
	case s.control.Connected() || s.proxy.Adopted():
		return err
	case s.control.Away() != nil:
		return errors.Join(err, fmt.Errorf("control plane %s is away: %w", s.upstream, s.control.Away()))
	case err == nil:
		return fmt.Errorf("control plane %s has not answered yet", s.upstream)
	}
	return err
}

// serveQuit ends the agent and its Envoy at once, without draining: who calls
// it, a finished job's main container, knows that no more will come.
func (s *status) serveQuit(w http.ResponseWriter, r *http.Request) {
	if !local(r) {
		http.Error(w, "only requests from localhost are allowed", http.StatusForbidden)
		return
	}
	s.log.Info("told to quit")
	fmt.Fprintln(w, "OK")
	s.quit()
}

func local(r *http.Request) bool {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && from.Addr().Unmap().IsLoopback()
}
