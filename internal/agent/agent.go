// Package agent stands beside one Envoy: it starts and watches it, relays its
// xDS with the modules of its extensions made local, and serves its metrics and
// health.
//
// It only puts together what other packages do, and decides in which order they
// start and stop: an Envoy that an earlier agent left is known before the first
// of its requests is answered, and the relay serves until Envoy has drained.
// Everything on disk is in one data directory, which one agent uses at a time;
// the modules alone may be shared. It works in front of any ADS server.
//
// The paths on the status port and the environment variables are those of
// Istio's agent. Start at [Run].
package agent

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/chandler-proxy/chandler/internal/envoy"
	"github.com/chandler-proxy/chandler/internal/part"
	"github.com/chandler-proxy/chandler/internal/relay"
)

// Run runs an agent and its Envoy until ctx ends: then Envoy is drained and
// stopped, and everything else after it. The first part to fail stops the rest.
func Run(ctx context.Context, cfg Config) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if err := observe(cfg.Metrics); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	dir, err := openDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer dir.close()
	port, err := listenStatus(cfg)
	if err != nil {
		return err
	}
	defer port.Close()
	if cfg.Health != nil {
		defer cfg.Health.Close()
	}
	modules, err := OpenModules(cfg)
	if err != nil {
		return err
	}
	try, err := OpenPreflight(cfg)
	if err != nil {
		return err
	}
	upstream, err := dial(cfg.Upstream, cfg.Identity)
	if err != nil {
		return err
	}
	defer upstream.Close()
	proxy, err := openDataPlane(ctx, cfg)
	if err != nil {
		return err
	}
	xds := relay.New(relay.Config{
		Upstream: upstream,
		Modules:  modules,
		Serving:  proxy.Live,
		Try:      try,
		PassECDS: cfg.PassECDS,
		Log:      cfg.Log,
		Metrics:  cfg.Metrics,
	})
	socket, err := dir.listen(socketFile)
	if err != nil {
		return err
	}
	defer socket.Close()
	ctx, quit := context.WithCancelCause(ctx)
	defer quit(nil)
	status := newStatus(cfg, proxy, xds, func() { quit(envoy.ErrNoDrain) })

	g, ctx := errgroup.WithContext(ctx)
	drained := stage(ctx, g, "proxy", proxy.Run)
	relayed := stage(drained, g, "xds relay", func(ctx context.Context) error { return xds.Run(ctx, socket) })
	g.Go(part.Run(relayed, "modules", modules.Run))
	g.Go(part.Run(relayed, "status", func(ctx context.Context) error { return status.run(ctx, port, status.handler()) }))
	if cfg.Health != nil {
		g.Go(part.Run(relayed, "health", func(ctx context.Context) error { return status.run(ctx, cfg.Health, status.health()) }))
	}
	return g.Wait()
}

// stage runs a part in g and returns a context for the parts that it stands on:
// it ends when run has returned, not when ctx ends.
func stage(ctx context.Context, g *errgroup.Group, name string, run func(context.Context) error) context.Context {
	after, end := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error {
		defer end()
		return part.Run(ctx, name, run)()
	})
	return after
}

// openEnvoy prepares Envoy with the bootstrap that the user brings, or with one
// that leads to this agent.
func openEnvoy(ctx context.Context, cfg Config) (*envoy.Process, error) {
	bootstrap, err := bootstrap(cfg)
	if err != nil {
		return nil, err
	}
	return envoy.Open(ctx, envoy.Config{
		Path:      cfg.Envoy,
		Args:      cfg.EnvoyArgs,
		Dir:       cfg.DataDir,
		Bootstrap: bootstrap,
		Output:    cfg.EnvoyOutput,
		MinDrain:  cfg.MinDrain,
		Drain:     cfg.Drain,
		Grace:     cfg.Grace,
		Hurry:     cfg.Hurry,
		Log:       cfg.Log,
	})
}
