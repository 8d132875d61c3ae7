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

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/part"
	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
	"github.com/chandler-proxy/chandler/internal/translate"
	"github.com/chandler-proxy/chandler/internal/xds"
)

// A Config is everything the control plane can be told. Only Source is required.
type Config struct {
	Source     source.Source
	Mesh       mesh.Options
	XDS        string // address of plaintext ADS, default 127.0.0.1:15010
	Monitoring string // address of metrics, health and debug pages, default 127.0.0.1:15014
	// Remote allows addresses that are not loopback. Neither port is encrypted
	// or asks who is there: what surrounds them must.
	Remote bool
	Pprof  bool // serve /debug/pprof
	Log    *slog.Logger
}

// ErrNotLoopback is that an address is open to others than this machine.
var ErrNotLoopback = errors.New("not a loopback address, and plaintext beyond it was not allowed")

func (c Config) withDefaults() (Config, error) {
	if c.Source == nil {
		return c, errors.New("source is required")
	}
	c.XDS = cmp.Or(c.XDS, "127.0.0.1:15010")
	c.Monitoring = cmp.Or(c.Monitoring, "127.0.0.1:15014")
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
	grpc       net.Listener
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
	p := &Plane{source: cfg.Source, log: cfg.Log}
	if p.grpc, err = listen(ctx, cfg.XDS, cfg.Remote); err != nil {
		return nil, fmt.Errorf("xds: %w", err)
	}
	if p.http, err = listen(ctx, cfg.Monitoring, cfg.Remote); err != nil {
		return nil, errors.Join(fmt.Errorf("monitoring: %w", err), p.grpc.Close())
	}
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	appeared := make(chan struct{}, 1)
	p.xds = xds.New(xds.Config{
		Class:      class,
		Appeared:   func() { signal(appeared) },
		Log:        cfg.Log,
		Registerer: metrics,
	})
	p.publisher = newPublisher(p.xds, appeared, cfg.Mesh, newProblems(cfg.Log, metrics), cfg.Log)
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

// class is the key of the proxies that get the same configuration as node.
func class(_ context.Context, node *corev3.Node) (string, error) {
	proxy, err := mesh.ParseNode(node)
	if err != nil {
		return "", err
	}
	return translate.Class(proxy), nil
}

// XDSAddr is where ADS is served.
func (p *Plane) XDSAddr() net.Addr { return p.grpc.Addr() }

// MonitoringAddr is where metrics, health and debug pages are served.
func (p *Plane) MonitoringAddr() net.Addr { return p.http.Addr() }

// Problems is what is wrong with the resources now. Safe for concurrent use.
func (p *Plane) Problems() []resource.Problem { return p.publisher.problems.all() }

// Run serves proxies until ctx ends: from the source through the publisher,
// which is mesh and translate, to xDS. The first part to fail stops the rest.
func (p *Plane) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(part.Run(ctx, "source", func(ctx context.Context) error { return p.source.Run(ctx, p.publisher.deliver) }))
	g.Go(part.Run(ctx, "publisher", p.publisher.Run))
	g.Go(part.Run(ctx, "xds", p.xds.Run))
	g.Go(part.Run(ctx, "xds listener", p.serveXDS))
	g.Go(part.Run(ctx, "monitoring", p.serveMonitoring))
	return g.Wait()
}

// stopPatience is how long a stop waits for what is under way.
const stopPatience = 3 * time.Second

// serveXDS serves ADS until ctx ends. The xDS server then ends its streams; one
// whose client does not take that is cut off.
func (p *Plane) serveXDS(ctx context.Context) error {
	server := grpc.NewServer(xds.Options()...)
	p.xds.Register(server)
	p.log.Info("xds listens", "address", p.grpc.Addr().String())
	return serve(ctx, func() error { return server.Serve(p.grpc) }, func() {
		cut := time.AfterFunc(stopPatience, server.Stop)
		defer cut.Stop()
		server.GracefulStop()
	})
}

// serveMonitoring serves metrics, health and debug pages until ctx ends.
func (p *Plane) serveMonitoring(ctx context.Context) error {
	server := &http.Server{Handler: p.monitoring, ReadHeaderTimeout: 10 * time.Second}
	p.log.Info("monitoring listens", "address", p.http.Addr().String())
	return serve(ctx, func() error { return server.Serve(p.http) }, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopPatience)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			p.log.Warn("monitoring cut off", "reason", errors.Join(err, server.Close()))
		}
	})
}

// serve runs run until ctx ends, then stop. It returns when both have, and an
// error only if run ended by itself.
func serve(ctx context.Context, run func() error, stop func()) error {
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
