// Package cluster is the control plane on Kubernetes: package control, with the
// API server as its source, and around it what a cluster needs besides.
//
//	source/kube ─▶ control ═ xDS over TLS ═▶ agents
//	identity, trust: the CA, tokens, root certificates in every namespace
//	inject: the webhook that adds sidecars
//	status, inject/gateway: by the replica that leads: conditions, proxies of Gateways
//
// It only puts these together and says who leads. All replicas serve proxies and
// the webhook; what writes for all, one does. While the API server is away what
// runs goes on. Start at [Run].
package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/chandler-proxy/chandler/internal/control"
	"github.com/chandler-proxy/chandler/internal/identity"
	"github.com/chandler-proxy/chandler/internal/inject"
	"github.com/chandler-proxy/chandler/internal/inject/gateway"
	"github.com/chandler-proxy/chandler/internal/inject/trust"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/part"
	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source/kube"
	"github.com/chandler-proxy/chandler/internal/status"
)

// Service is the name of the control plane's Service and service account.
const Service = "chandler"

// A Config is what a control plane on Kubernetes can be told. API, Instance and
// Control.Log are required.
type Config struct {
	Control  control.Config // its Source, Trust and Peers are set by Run
	API      *rest.Config   // of the API server; see kube.Connect
	Instance string         // this replica, as in the name of its pod
	IP       string         // its address, as in the Service's endpoints
	Names    []string       // more DNS names and IP addresses of the control plane
	Webhook  string         // address of the injector over TLS; none if empty
	Inject   inject.Options
	Gateways bool // deploy proxies for Gateways of the Gateway API, and write their status
}

// A plane is what Run puts together.
type plane struct {
	cfg       Config
	namespace string
	self      identity.Plane
	inject    inject.Options // with all defaults
	foreign   *foreign       // what other control planes of the cluster have
	client    kubernetes.Interface
	dynamic   dynamic.Interface
	ca        *identity.Authority
	control   *control.Plane
	writer    *status.Writer
	leads     atomic.Bool
	log       *slog.Logger
}

// Run serves a cluster until ctx ends. The first part to fail stops the rest.
func Run(ctx context.Context, cfg Config) error {
	p := &plane{cfg: cfg, log: cfg.Control.Log, namespace: cmp.Or(cfg.Control.Mesh.RootNamespace, "istio-system")}
	p.self = identity.Plane{Namespace: p.namespace, Revision: cmp.Or(cfg.Inject.Revision, inject.DefaultRevision)}
	if cfg.Control.Metrics == nil {
		p.cfg.Control.Metrics = prometheus.NewRegistry()
	}
	if err := p.open(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(part.Run(ctx, "certificate authority", p.ca.Run))
	if cfg.Webhook != "" {
		if err := p.injector(ctx, g); err != nil {
			return errors.Join(err, g.Wait())
		}
	}
	g.Go(part.Run(ctx, "other control planes", p.foreign.Run))
	g.Go(func() error { return p.control.Run(ctx) })
	g.Go(part.Run(ctx, "leader election", func(ctx context.Context) error {
		return status.Lead(ctx, p.client.CoordinationV1(), status.LeadConfig{
			Namespace: p.namespace, Identity: cfg.Instance, Log: p.log,
		}, p.lead)
	}))
	return g.Wait()
}

// open makes the parts, and binds the control plane's ports.
func (p *plane) open(ctx context.Context) error {
	var err error
	if p.client, err = kubernetes.NewForConfig(p.cfg.API); err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}
	if p.dynamic, err = dynamic.NewForConfig(p.cfg.API); err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}
	p.inject = p.cfg.Inject
	p.inject.RootNamespace, p.inject.Domain = p.namespace, cmp.Or(p.cfg.Control.Mesh.Domain, p.inject.Domain)
	if p.cfg.Webhook != "" || p.cfg.Gateways { // else nothing is made of it
		if p.inject, err = p.inject.WithDefaults(); err != nil {
			return fmt.Errorf("injection: %w", err)
		}
	}
	p.foreign = newForeign(p.client.EventsV1(), p.cfg.Instance, p.log, p.cfg.Control.Metrics)
	metrics, domain := p.cfg.Control.Metrics, cmp.Or(p.cfg.Control.Mesh.Domain, "cluster.local")
	host := Service + "." + p.namespace + ".svc"
	if p.ca, err = p.openCA(ctx, append([]string{host, host + "." + domain}, p.cfg.Names...)); err != nil {
		return err
	}
	if p.writer, err = status.New(status.Config{
		Objects: p.dynamic, Events: p.client.EventsV1(), Instance: p.cfg.Instance, Log: p.log, Registerer: metrics,
		Plane: p.self, Found: p.foreign.found, There: func(namespace string) bool { return p.control.HasNamespace(namespace) },
	}); err != nil {
		return err
	}
	cfg := p.cfg.Control
	cfg.Source = kube.New(kube.Config{Cluster: p.cfg.API, RootNamespace: p.namespace, Log: p.log, Registerer: metrics})
	cfg.Trust = control.Trust{Authority: p.ca, Tokens: trust.NewReviewer(p.client, identity.Audience)}
	cfg.Peers = control.Peers{Service: Service, Namespace: p.namespace, Account: Service, Self: p.cfg.IP}
	p.control, err = control.Listen(ctx, cfg)
	return err
}

// caPatience is how long the start waits for an API server that does not answer.
const caPatience = 5 * time.Minute

// openCA loads the CA. A cluster that is being set up may not let it yet.
func (p *plane) openCA(ctx context.Context, names []string) (*identity.Authority, error) {
	limited, cancel := context.WithTimeout(ctx, caPatience)
	defer cancel()
	retry := time.NewTicker(2 * time.Second)
	defer retry.Stop()
	for {
		ca, err := identity.Open(limited, identity.AuthorityConfig{
			Keeper: trust.NewSecretKeeper(p.client, p.namespace, p.log),
			Names:  names, Lead: p.leads.Load, Log: p.log, Registerer: p.cfg.Control.Metrics,
		})
		if err == nil || errors.Is(err, identity.ErrState) {
			return ca, err
		}
		p.log.Warn("certificate authority is not there yet", "reason", err)
		select {
		case <-retry.C:
		case <-limited.Done():
			return nil, err
		}
	}
}

// webhookTimeout is how long an API server waits for the webhook, by the
// configuration that inject makes.
const webhookTimeout = 10 * time.Second

// injector serves the webhook, and has the API server trust it.
func (p *plane) injector(ctx context.Context, g *errgroup.Group) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", p.cfg.Webhook)
	if err != nil {
		return fmt.Errorf("webhook: %w", err)
	}
	server := &http.Server{
		Handler:           takeTurns(inject.Handler(inject.Webhook{Options: func() inject.Options { return p.inject }, Metrics: p.cfg.Control.Metrics, Log: p.log})),
		TLSConfig:         p.ca.ServerTLS(),
		ReadHeaderTimeout: webhookTimeout,
		ReadTimeout:       webhookTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	p.log.Info("webhook listens", "address", l.Addr().String())
	g.Go(part.Run(ctx, "webhook", func(ctx context.Context) error {
		return control.Serve(ctx, func() error { return server.ServeTLS(l, "", "") }, func() { control.Shutdown(ctx, server, p.log) })
	}))
	bundles := make(chan []byte)
	known := &inject.Trust{
		Configurations: ownConfigurations{p.client.AdmissionregistrationV1().MutatingWebhookConfigurations(), p.self, p.foreign.found},
		Name:           inject.ConfigurationName(p.inject.Revision),
		Bundles:        bundles,
		Log:            p.log,
	}
	g.Go(part.Run(ctx, "webhook trust", known.Run))
	g.Go(part.Run(ctx, "webhook bundle", func(ctx context.Context) error {
		return p.ca.Follow(ctx, func(bundle []byte) {
			select {
			case bundles <- bundle:
			case <-ctx.Done():
			}
		})
	}))
	return nil
}

// lead does what one replica does for all, until ctx ends.
func (p *plane) lead(ctx context.Context) error {
	p.leads.Store(true)
	defer p.leads.Store(false)
	defer p.foreign.forget()
	publisher, err := trust.NewPublisher(trust.PublisherConfig{
		Client: p.client, Follow: p.ca.Follow, Plane: p.self, Found: p.foreign.found, Log: p.log,
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(part.Run(ctx, "root certificates", publisher.Run))
	g.Go(part.Run(ctx, "status", p.writer.Run))
	deliver := func(*mesh.World, []resource.Problem) {}
	if p.cfg.Gateways {
		gateways := gateway.New(gateway.Config{
			Client: p.dynamic, Options: gateway.OptionsOf(p.inject), Log: p.log,
			Plane: p.self, There: p.control.HasNamespace, Found: p.foreign.found,
		})
		g.Go(part.Run(ctx, "gateways", gateways.Run))
		deliver = gateways.Deliver
	}
	var last *mesh.World
	var wrong []resource.Problem
	g.Go(func() error {
		return p.control.Lead(ctx, func(facts []status.Fact) {
			p.writer.Update(facts)
			// Problems of a class of proxies are found when its first proxy comes.
			world, problems := p.control.World(), p.control.Problems()
			if world != last || !slices.Equal(problems, wrong) {
				last, wrong = world, problems
				deliver(world, problems)
			}
		})
	})
	return g.Wait()
}
