// Package dev is chandler plugin dev: an engine in front of a server, with the plugin
// that its author is working on, which is built and swapped at every change.
//
// The engine is configured as any other: over xDS, by a control plane of one proxy in
// this process; a new module is an extension config (ECDS) that it takes or refuses. So
// what is seen here is what a proxy does, and a swap loses no request.
//
// Invariant: what does not build, or what the engine refuses, changes nothing; the last
// module that worked goes on serving. It is for one author on one machine: it logs what
// plugins see, secrets and all. Start at [Run], then session.update.
package dev

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/chandler-proxy/chandler/internal/artifact"
	"github.com/chandler-proxy/chandler/internal/artifact/toolchain"
	"github.com/chandler-proxy/chandler/internal/demo"
	"github.com/chandler-proxy/chandler/internal/engine"
	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/part"
	"github.com/chandler-proxy/chandler/internal/xds"
)

// ErrUpstream says that an address is not one that requests can be passed on to.
var ErrUpstream = errors.New("want HOST:PORT or http://HOST:PORT")

// A Config is everything dev can be told. Dir and Module are required.
type Config struct {
	Dir      string             // the plugin's folder
	Language toolchain.Language // what the plugin is built with; empty builds nothing
	Module   string             // file that the module is built to, or taken from
	// Configuration is the plugin's; or else ConfigFile names the file that has it, or
	// the WasmPlugin or TrafficExtension that has it.
	Configuration, ConfigFile string
	Network                   bool // a network filter, else an HTTP filter

	Upstream string            // where requests go; default: a server that tells what it is sent
	Clusters map[string]string // addresses of what plugins can call, by name
	Listen   string            // address; port 0 is any
	Admin    string            // address of the engine's admin interface; empty for none

	Trace bool // print what is called of and by the plugin
	Out   io.Writer
	Color bool
}

// Run serves until ctx ends. Errors: one that wraps [ErrUpstream], an address that is
// taken, or a folder that cannot be read. What is wrong with the plugin is printed.
func Run(ctx context.Context, cfg Config) error {
	cfg.Dir, cfg.Module, cfg.ConfigFile = clean(cfg.Dir), clean(cfg.Module), clean(cfg.ConfigFile)
	parts := map[string]func(context.Context) error{}
	if cfg.Upstream == "" {
		l, err := listen(ctx, "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		cfg.Upstream = l.Addr().String()
		parts["upstream"] = demo.NewHTTPBin(l).Run
	}
	way, err := newRoute(ctx, cfg)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "chandler-dev-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s := newSession(cfg, way, dir)
	var admin net.Listener
	if cfg.Admin != "" {
		if admin, err = listen(ctx, cfg.Admin); err != nil {
			return fmt.Errorf("admin interface: %w", err)
		}
		defer admin.Close()
	}
	socket, err := new(net.ListenConfig).Listen(ctx, "unix", filepath.Join(dir, "xds"))
	if err != nil {
		return err
	}
	defer socket.Close()
	files, err := openWatch()
	if err != nil {
		s.screen.say(warning, "files cannot be watched: %v; looking once a second", err)
	}
	defer files.Close()
	proxy := s.engine(ctx, admin, socket.Addr().String())
	parts["engine"], parts["xDS"], parts["files"] = proxy.Run, s.serveXDS(socket), files.Run
	parts["plugin"] = func(ctx context.Context) error { return s.run(ctx, proxy.Ready(), files) }

	g, ctx := errgroup.WithContext(ctx)
	for name, run := range parts {
		g.Go(part.Run(ctx, name, run))
	}
	return g.Wait()
}

// clean is a path in the form that walking a folder finds it; an empty one stays so.
func clean(path string) string {
	if path == "" {
		return ""
	}
	return filepath.Clean(path)
}

func listen(ctx context.Context, addr string) (net.Listener, error) {
	return new(net.ListenConfig).Listen(ctx, "tcp", addr)
}

// newRoute is the way of requests, closed until there is a plugin. The engine binds
// its address later, when it is told of the listener as any proxy is.
func newRoute(ctx context.Context, cfg Config) (route, error) {
	r := route{network: cfg.Network}
	var err error
	if r.clusters, err = clusters(cfg.Upstream, cfg.Clusters); err != nil {
		return r, err
	}
	l, err := listen(ctx, cfg.Listen)
	if err != nil {
		return r, err
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	r.listen = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	return r, l.Close()
}

// engine prepares the proxy. One instance of the plugin is enough for one author, and
// its trace is in order.
func (s *session) engine(ctx context.Context, admin net.Listener, socket string) *engine.Engine {
	cfg := engine.Config{
		Node:        &corev3.Node{Id: "sidecar~127.0.0.1~plugin.dev~dev.svc.cluster.local", Cluster: "plugin.dev"},
		XDS:         socket,
		Admin:       admin,
		Concurrency: 1,
		DrainTime:   time.Second,
		Log:         slog.New(s.screen.logs(ctx)),
		Getenv:      os.LookupEnv,
		Access:      s.screen.access,
	}
	if s.cfg.Trace {
		cfg.Trace = s.screen.trace
	}
	return engine.New(cfg)
}

// serveXDS serves the engine's configuration at the socket.
func (s *session) serveXDS(socket net.Listener) func(context.Context) error {
	return func(ctx context.Context) error {
		server := grpc.NewServer(xds.Options()...)
		s.xds.Register(server)
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return s.xds.Run(ctx) })
		g.Go(func() error {
			if err := server.Serve(socket); !errors.Is(err, grpc.ErrServerStopped) {
				return err
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			server.Stop()
			return nil
		})
		return g.Wait()
	}
}

// A build is a module that was built, or read, and found fit for Envoy.
type build struct {
	wasm []byte
	sum  [sha256.Size]byte
	abi  string
	took time.Duration
}

// String names the module on screen.
func (b *build) String() string {
	return fmt.Sprintf("sha256:%x… (%s, ABI %s)", b.sum[:6], size(len(b.wasm)), b.abi)
}

func size(n int) string {
	if n < 1<<20 {
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}

// build makes the module as chandler plugin build does, or reads it.
func (s *session) build(ctx context.Context) (*build, error) {
	began := time.Now()
	if s.cfg.Language != "" {
		s.screen.say(plain, "building")
	}
	wasm, err := s.make(ctx)
	if err != nil {
		return nil, err
	}
	info, err := artifact.Check(wasm)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.cfg.Module, err)
	}
	b := &build{wasm: wasm, sum: sha256.Sum256(wasm), abi: info.ABI, took: time.Since(began)}
	if s.cfg.Language == "" {
		return b, nil
	}
	return b, artifact.WriteFile(s.cfg.Module, bytes.NewReader(wasm))
}

func (s *session) make(ctx context.Context) ([]byte, error) {
	if s.cfg.Language == "" {
		wasm, err := artifact.ReadFile(s.cfg.Module, fetch.DefaultMaxModule)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w; it is taken as soon as it is there", err)
		}
		return wasm, err
	}
	return toolchain.Build(ctx, s.cfg.Dir, s.cfg.Language, s.screen)
}

// settled waits until nothing has happened for a moment: editors and tools write files
// one by one. It gives up waiting after a while.
func settled(ctx context.Context, events <-chan struct{}) {
	const quiet, patience = 50 * time.Millisecond, 500 * time.Millisecond
	most := time.NewTimer(patience)
	defer most.Stop()
	for {
		calm := time.NewTimer(quiet)
		select {
		case <-events:
			calm.Stop()
			continue
		case <-calm.C:
		case <-most.C:
			calm.Stop()
		case <-ctx.Done():
			calm.Stop()
		}
		return
	}
}
