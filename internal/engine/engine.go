// Package engine is the embedded data plane: it does with Envoy's configuration
// what Envoy does, in this process.
//
// It asks an ADS server for everything (package ads), decodes it (config), keeps
// clusters (upstream) and listeners (listener), speaks HTTP (hcm), and runs plugins
// (extension, on proxywasm). What it does not support it refuses, with the field and
// the reason; what ran before goes on.
//
// Invariants, as Envoy's: a listener serves only when its routes, extensions and
// secrets are there; a cluster only when its endpoints are; a change reaches the
// requests that come after it, and no connection is lost for it.
//
// Start at [Engine.Run], then state.apply.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/tetratelabs/wazero"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/chandler-proxy/chandler/internal/engine/ads"
	"github.com/chandler-proxy/chandler/internal/engine/extension"
	"github.com/chandler-proxy/chandler/internal/engine/hcm"
	"github.com/chandler-proxy/chandler/internal/engine/stats"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

const (
	// maxMessage bounds one xDS message, in bytes, as the relay does.
	maxMessage = 256 << 20
	// defaultDrain is Envoy's --drain-time-s.
	defaultDrain = 10 * time.Minute
)

// A Config is everything an engine can be told. Node and XDS are required.
type Config struct {
	Node  *corev3.Node
	XDS   string       // absolute path of the ADS server's Unix socket
	Admin net.Listener // for the admin interface; nil for none
	// CompilationCacheDir is where compiled modules are kept; empty keeps them in memory.
	CompilationCacheDir string
	Concurrency         int           // instances of a plugin; default GOMAXPROCS
	DrainTime           time.Duration // how long connections of a listener that is gone may go on; default 10 minutes
	Log                 *slog.Logger
	Getenv              func(string) (string, bool) // for plugins that want variables of the process; nil has none
	Quit                func()                      // called when the admin interface is told to quit; default ends Run
	// Access, if set, is told of each HTTP request when it is over, by many goroutines.
	Access func(hcm.Access)
	// Trace, if set, takes a line for each call to and from plugins that is not about an
	// HTTP request, and makes Access have those that are. See [proxywasm.Services].
	Trace func(line string)
}

func (c Config) withDefaults() (Config, error) {
	switch {
	case c.Node == nil:
		return c, errors.New("node is required")
	case c.XDS == "":
		return c, errors.New("xDS socket is required")
	}
	if c.Concurrency == 0 {
		c.Concurrency = runtime.GOMAXPROCS(0)
	}
	if c.DrainTime == 0 {
		c.DrainTime = defaultDrain
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Getenv == nil {
		c.Getenv = func(string) (string, bool) { return "", false }
	}
	return c, nil
}

// An Engine is a data plane. Its methods may be called concurrently.
type Engine struct {
	cfg     Config
	stats   *stats.Registry
	level   atomic.Uint32 // abi.LogLevel of plugins' logs
	state   *state
	live    atomic.Bool
	failing atomic.Bool // was told to fail health checks
	started time.Time
	ids     atomic.Uint64
	ready   chan struct{} // closed when live
	once    sync.Once
}

// New makes an Engine. It starts nothing.
func New(cfg Config) *Engine {
	e := &Engine{cfg: cfg, stats: stats.New(), ready: make(chan struct{})}
	return e
}

// Live reports whether the engine serves what it was configured to at first.
func (e *Engine) Live() bool { return e.live.Load() }

// Ready is closed when the engine becomes live.
func (e *Engine) Ready() <-chan struct{} { return e.ready }

func (e *Engine) becomeLive() {
	e.once.Do(func() {
		e.live.Store(true)
		close(e.ready)
		e.cfg.Log.Info("live", "after", time.Since(e.started))
	})
}

// Run serves until ctx ends; then it closes all connections. The first part to
// fail stops the rest.
func (e *Engine) Run(ctx context.Context) error {
	cfg, err := e.cfg.withDefaults()
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	e.cfg, e.started = cfg, time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if e.cfg.Quit == nil {
		e.cfg.Quit = cancel
	}
	host, closeHost, err := e.host(ctx)
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	conn, err := grpc.NewClient("unix:"+cfg.XDS, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
	if err != nil {
		return errors.Join(fmt.Errorf("engine: connect to %s: %w", cfg.XDS, err), closeHost())
	}
	s := newState(ctx, e)
	s.opener = &extension.Opener{
		Host: host, Properties: rootProperties{s}, Getenv: cfg.Getenv, Workers: cfg.Concurrency, Services: e.services(s),
	}
	s.client = ads.New(ads.Config{Node: node(cfg.Node), Conn: conn, Apply: s.apply, Log: cfg.Log})
	e.state = s
	s.start()

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.client.Run(ctx) })
	g.Go(func() error { return s.run(ctx) })
	if cfg.Admin != nil {
		g.Go(func() error { return e.admin().Run(ctx, cfg.Admin) })
	}
	err = g.Wait()
	s.close()
	return errors.Join(err, conn.Close(), closeHost(), s.logs.close())
}

// host makes the host of plugins, and what closes it.
func (e *Engine) host(ctx context.Context) (*proxywasm.Host, func() error, error) {
	cache := wazero.NewCompilationCache()
	if dir := e.cfg.CompilationCacheDir; dir != "" {
		kept, err := wazero.NewCompilationCacheWithDir(dir)
		if err != nil {
			e.cfg.Log.Warn("keep compiled modules in memory only", "error", err)
		} else {
			cache = kept
		}
	}
	detached := context.WithoutCancel(ctx)
	host, err := proxywasm.NewHost(detached, proxywasm.Config{Cache: cache, Log: e.cfg.Log})
	if err != nil {
		return nil, nil, errors.Join(err, cache.Close(detached))
	}
	return host, func() error {
		bounded, cancel := context.WithTimeout(detached, closeWithin)
		defer cancel()
		return errors.Join(host.Close(bounded), cache.Close(detached))
	}, nil
}

// closeWithin is how long plugins may take to end.
const closeWithin = 5 * time.Second
