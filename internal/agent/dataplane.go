package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/chandler-proxy/chandler/internal/engine"
	"github.com/chandler-proxy/chandler/internal/envoy"
)

// A dataPlane is the proxy that the agent runs: an Envoy, or the embedded engine.
type dataPlane interface {
	proxy
	// Run serves until ctx ends, then drains and returns nil.
	Run(ctx context.Context) error
	// Live says whether it takes traffic.
	Live() bool
}

// openDataPlane prepares the proxy that cfg asks for.
func openDataPlane(ctx context.Context, cfg Config) (dataPlane, error) {
	if cfg.Engine {
		return openEngine(ctx, cfg)
	}
	return openEnvoy(ctx, cfg)
}

// An embedded is the engine as the agent sees it. It serves the admin paths that
// Envoy does, so it is asked in the same way.
type embedded struct {
	*engine.Engine
	admin *envoy.Admin
	drain envoy.Drain
	log   *slog.Logger
}

func openEngine(ctx context.Context, cfg Config) (*embedded, error) {
	node, err := envoy.Node(cfg.Proxy, cfg.Service)
	if err != nil {
		return nil, err
	}
	admin, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.Admin.String())
	if err != nil {
		return nil, fmt.Errorf("listen for the admin interface: %w", err)
	}
	return &embedded{
		Engine: engine.New(engine.Config{
			Node:                node,
			XDS:                 filepath.Join(cfg.DataDir, socketFile),
			Admin:               admin,
			CompilationCacheDir: filepath.Join(cfg.DataDir, preflightDir),
			Log:                 cfg.Log,
			Getenv:              os.LookupEnv,
		}),
		admin: envoy.NewAdmin(admin.Addr().String()),
		drain: envoy.Drain{Min: cfg.MinDrain, Most: cfg.Drain, Grace: cfg.Grace, Hurry: cfg.Hurry},
		log:   cfg.Log,
	}, nil
}

// Run serves until ctx ends. Then the engine, which closes its connections when it
// ends, goes on until they are drained.
func (e *embedded) Run(ctx context.Context) error {
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	g, serving := errgroup.WithContext(serving)
	g.Go(func() error {
		defer stop() // an engine that was told to quit is not waited for
		return e.Engine.Run(serving)
	})
	g.Go(func() error {
		defer stop()
		select {
		case <-ctx.Done():
		case <-serving.Done():
			return nil
		}
		if e.Live() && !errors.Is(context.Cause(ctx), envoy.ErrNoDrain) {
			e.log.Info("engine draining", "at_most", e.drain.Most)
			if err := e.drain.Run(serving, e.admin, serving.Done()); err != nil {
				e.log.Error("engine not drained", "err", err)
			}
		}
		return nil
	})
	return g.Wait()
}

func (e *embedded) Ready(ctx context.Context) error { return e.admin.Ready(ctx) }
func (e *embedded) Admin() (*envoy.Admin, error)    { return e.admin, nil }
func (e *embedded) Adopted() bool                   { return false }
