// Package run is everything on one machine: control plane, agent and proxy in one
// process tree, with the registry and the services that the examples use. It is
// for trying Chandler out and for working on plugins, not for production.
//
// It assembles package control, agent and demo and adds nothing to them. Start
// at [Run].
package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/chandler-proxy/chandler/internal/agent"
	"github.com/chandler-proxy/chandler/internal/artifact"
	"github.com/chandler-proxy/chandler/internal/control"
	"github.com/chandler-proxy/chandler/internal/demo"
	"github.com/chandler-proxy/chandler/plugins"
)

// A Config is everything run can be told.
type Config struct {
	Control control.Config
	Agent   agent.Config // its Upstream and Status are set by Run
	Status  string       // address of the agent's metrics and health
	Demo    bool         // run the examples' registry and services
	Ready   string       // printed to Out when the proxy serves
	Out     io.Writer
}

// Run runs it all until ctx ends. The first part to fail stops the rest.
func Run(ctx context.Context, cfg Config) error {
	g, ctx := errgroup.WithContext(ctx)
	if cfg.Demo {
		servers, err := demoServers(ctx)
		if err != nil {
			return err
		}
		for _, s := range servers {
			g.Go(func() error { return s.Run(ctx) })
		}
	}
	plane, err := control.Listen(ctx, cfg.Control)
	if err != nil {
		return err
	}
	cfg.Agent.Upstream = plane.XDSAddr().String()
	if cfg.Agent.Status, err = new(net.ListenConfig).Listen(ctx, "tcp", cfg.Status); err != nil {
		return fmt.Errorf("status: %w", err)
	}
	// The control plane serves until the agent has drained its proxy.
	drained, end := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error { return plane.Run(drained) })
	g.Go(func() error {
		defer end()
		return agent.Run(ctx, cfg.Agent)
	})
	g.Go(func() error {
		if ready(ctx, cfg.Agent.Status.Addr().String()) {
			fmt.Fprint(cfg.Out, cfg.Ready)
		}
		return nil
	})
	return g.Wait()
}

// demoServers binds the addresses that the examples name.
func demoServers(ctx context.Context) ([]*demo.Server, error) {
	modules := plugins.Modules()
	var servers []*demo.Server
	for _, d := range []struct {
		addr string
		new  func(net.Listener) (*demo.Server, error)
	}{
		{demo.RegistryAddr, func(l net.Listener) (*demo.Server, error) { return demo.NewRegistry(l, modules, image) }},
		{demo.FilesAddr, func(l net.Listener) (*demo.Server, error) { return demo.NewFiles(l, modules) }},
		{demo.ProductpageAddr, func(l net.Listener) (*demo.Server, error) { return demo.NewProductpage(l), nil }},
		{demo.HTTPBinAddr, func(l net.Listener) (*demo.Server, error) { return demo.NewHTTPBin(l), nil }},
	} {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", d.addr)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("services of the examples (leave them out with --demo=false): %w", err), closeAll(servers))
		}
		s, err := d.new(l)
		if err != nil {
			return nil, errors.Join(err, l.Close(), closeAll(servers))
		}
		servers = append(servers, s)
	}
	return servers, nil
}

// image is what a Dockerfile of FROM scratch and COPY plugin.wasm builds of a module.
func image(wasm []byte) (v1.Image, error) { return artifact.Build(wasm, artifact.Options{}) }

// closeAll closes the listeners of servers that will not run.
func closeAll(servers []*demo.Server) error {
	var errs []error
	for _, s := range servers {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// ready waits until the agent at addr says that its proxy serves, or ctx ends.
func ready(ctx context.Context, addr string) bool {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if answers(ctx, "http://"+addr+"/healthz/ready") {
			return true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
}

func answers(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	res.Body.Close()
	return res.StatusCode == http.StatusOK
}
