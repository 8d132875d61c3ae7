// Package control is the control plane: it assembles a source of resources, the
// mesh, the translation to Envoy's terms and the xDS server, and tells over HTTP
// how they are.
//
//	source -> mesh -> translate -> xds
//
// It does not judge resources nor touch modules. Until the source has delivered
// its first snapshot proxies wait: they are never sent an empty configuration
// that only means "not known yet". A snapshot with problems is served as far as
// it is good; one that cannot be encoded leaves a class with what it had.
//
// Ports, paths and metrics are those that users of Istio know. Start at [Run].
package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/chandler-proxy/chandler/internal/identity"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/part"
	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
	"github.com/chandler-proxy/chandler/internal/xds"
)

// A Config is everything the control plane can be told. Only Source is required.
type Config struct {
	Source     source.Source
	Mesh       mesh.Options
	XDS        string // address of plaintext ADS, default 127.0.0.1:15010
	Secure     string // address of ADS over TLS, for proxies that prove who they are; default none
	Trust      Trust  // required with Secure
	Peers      Peers  // the other replicas, which [Plane.Lead] asks over their secure port; default none
	Monitoring string // address of metrics, health and debug pages, default 127.0.0.1:15014; the latter for this machine alone
	// Remote allows XDS to be an address that is not loopback. It is not encrypted
	// and does not ask who is there: what surrounds it must.
	Remote  bool
	Pprof   bool                 // serve /debug/pprof
	Metrics *prometheus.Registry // served at Monitoring; default a new one
	Log     *slog.Logger
}

// ErrNotLoopback is that an address is open to others than this machine.
var ErrNotLoopback = errors.New("not a loopback address, and plaintext beyond it was not allowed")

func (c Config) withDefaults() (Config, error) {
	if c.Source == nil {
		return c, errors.New("source is required")
	}
	c.XDS = cmp.Or(c.XDS, "127.0.0.1:15010")
	c.Monitoring = cmp.Or(c.Monitoring, "127.0.0.1:15014")
	if c.Secure != "" && c.Trust.Authority == nil {
		return c, errors.New("a certificate authority is required for the secure port")
	}
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Run serves proxies until ctx ends. The first part to fail stops the rest.
func Run(ctx context.Context, cfg Config) error {
	p, err := Listen(ctx, cfg)
	if err != nil {
		return err
	}
	return p.Run(ctx)
}

// A Plane is a control plane whose ports are bound.
type Plane struct {
	source     source.Source
	publisher  *publisher
	xds        *xds.Server
	gate       *identity.Gate // nil: no secure port
	status     *clientStatus  // for peers
	peers      *peers         // nil: none
	listeners  listeners      // that classes have
	news       news           // of resources and of what proxies do
	changed    chan struct{}  // the same, for whoever leads; holds one
	settled    time.Time      // proxies that were there before the start have come back
	grpc       net.Listener
	secure     net.Listener // nil: none
	http       net.Listener
	monitoring http.Handler
	log        *slog.Logger
}

// Listen binds the control plane's ports.
func Listen(ctx context.Context, cfg Config) (*Plane, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	p := &Plane{source: cfg.Source, log: cfg.Log, changed: make(chan struct{}, 1), settled: time.Now().Add(settle)}
	if p.grpc, err = listen(ctx, cfg.XDS, cfg.Remote); err != nil {
		return nil, fmt.Errorf("xds: %w", err)
	}
	if p.http, err = listen(ctx, cfg.Monitoring, true); err != nil {
		return nil, errors.Join(fmt.Errorf("monitoring: %w", err), p.grpc.Close())
	}
	if cfg.Secure != "" {
		if p.secure, err = listen(ctx, cfg.Secure, true); err != nil {
			return nil, errors.Join(fmt.Errorf("secure xds: %w", err), p.grpc.Close(), p.http.Close())
		}
	}
	metrics := cfg.Metrics
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	appeared := make(chan struct{}, 1)
	p.xds = xds.New(xds.Config{
		Class:      func(ctx context.Context, n *corev3.Node) (string, error) { return class(ctx, p.World(), n) },
		Bound:      bound,
		Appeared:   func() { signal(appeared) },
		Changed:    p.tell,
		Log:        cfg.Log,
		Registerer: metrics,
	})
	if cfg.Peers != (Peers{}) {
		p.peers = &peers{cfg: cfg.Peers, trust: cfg.Trust, written: p.written, news: &p.news, changed: func() { signal(p.changed) }, log: cfg.Log, told: make(map[string]map[string]delivered)}
	}
	if p.secure != nil {
		p.status = &clientStatus{self: identity.Peer{Namespace: cfg.Peers.Namespace, ServiceAccount: cfg.Peers.Account}, deliveries: p.deliveries, news: &p.news}
		p.gate = identity.NewGate(identity.GateConfig{
			TLS:            cfg.Trust.Authority.ServerTLS(),
			Authenticators: cfg.Trust.authenticators(),
			Log:            cfg.Log,
			Registerer:     metrics,
		})
	}
	p.publisher = newPublisher(p.xds, appeared, cfg.Mesh, newProblems(cfg.Log, metrics), cfg.Log)
	p.publisher.published = p.tell
	p.monitoring = newMonitoring(p, metrics, cfg.Pprof)
	return p, nil
}

func listen(ctx context.Context, address string, remote bool) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if tcp, ok := l.Addr().(*net.TCPAddr); !remote && !(ok && tcp.IP.IsLoopback()) {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", address, ErrNotLoopback), l.Close())
	}
	return l, nil
}

// XDSAddr is where ADS is served.
func (p *Plane) XDSAddr() net.Addr { return p.grpc.Addr() }

// SecureAddr is where ADS is served over TLS; nil if nowhere.
func (p *Plane) SecureAddr() net.Addr {
	if p.secure == nil {
		return nil
	}
	return p.secure.Addr()
}

// MonitoringAddr is where metrics, health and debug pages are served.
func (p *Plane) MonitoringAddr() net.Addr { return p.http.Addr() }

// World is the newest; nil before the first.
func (p *Plane) World() *mesh.World {
	if gen := p.publisher.generation(); gen != nil {
		return gen.world
	}
	return nil
}

// Problems is what is wrong with the resources now. Safe for concurrent use.
func (p *Plane) Problems() []resource.Problem { return p.publisher.problems.all() }

// Run serves proxies until ctx ends: from the source through the publisher,
// which is mesh and translate, to xDS. The first part to fail stops the rest.
func (p *Plane) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(part.Run(ctx, "source", func(ctx context.Context) error { return p.source.Run(ctx, p.publisher.deliver) }))
	g.Go(part.Run(ctx, "publisher", p.publisher.Run))
	g.Go(part.Run(ctx, "xds", p.xds.Run))
	g.Go(part.Run(ctx, "xds listener", func(ctx context.Context) error {
		return p.serveADS(ctx, p.grpc, nil, append(xds.Options(), grpc.StreamInterceptor(inPlain))...)
	}))
	if p.secure != nil {
		g.Go(part.Run(ctx, "secure xds listener", func(ctx context.Context) error {
			return p.serveADS(ctx, p.secure, p.status, append(xds.Options(), p.gate.Options(xds.Keepalive())...)...)
		}))
	}
	g.Go(part.Run(ctx, "monitoring", p.serveMonitoring))
	return g.Wait()
}

// stopPatience is how long a stop waits for what is under way.
const stopPatience = 3 * time.Second

// serveMonitoring serves metrics, health and debug pages until ctx ends.
func (p *Plane) serveMonitoring(ctx context.Context) error {
	server := &http.Server{Handler: p.monitoring, ReadHeaderTimeout: 10 * time.Second}
	p.log.Info("monitoring listens", "address", p.http.Addr().String())
	return Serve(ctx, func() error { return server.Serve(p.http) }, func() { Shutdown(ctx, server, p.log) })
}

// Shutdown ends an HTTP server after ctx has ended: requests under way are waited
// for, but not long.
func Shutdown(ctx context.Context, server *http.Server, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopPatience)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		log.Warn("HTTP server cut off", "reason", errors.Join(err, server.Close()))
	}
}

// Serve runs run until ctx ends, then stop. It returns when both have, and an
// error only if run ended by itself.
func Serve(ctx context.Context, run func() error, stop func()) error {
	stopped := make(chan struct{})
	keep := context.AfterFunc(ctx, func() {
		defer close(stopped)
		stop()
	})
	err := run()
	if keep() {
		return err
	}
	<-stopped
	return nil
}
