package agent

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

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
	}, nil
}

func (e *embedded) Ready(ctx context.Context) error { return e.admin.Ready(ctx) }
func (e *embedded) Admin() (*envoy.Admin, error)    { return e.admin, nil }
func (e *embedded) Adopted() bool                   { return false }
