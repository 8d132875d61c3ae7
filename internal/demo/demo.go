// Package demo is what `chandler run` needs beside the proxies to show the
// examples on one machine: a registry and a file server that hold the example
// plugins, and the two services that the examples' requests reach.
//
// They are small stand-ins for showing and testing: all is in memory, plain
// HTTP and without passwords. They listen on nothing by themselves; whoever
// assembles them binds the addresses below, all loopback, which the resources
// in examples/ repeat (a test compares them). The Docker image form is Istio's
// (one layer with plugin.wasm), the answers of [NewHTTPBin] are those of
// httpbin.org. Start at [Server].
package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// Where the examples expect the parts.
const (
	RegistryAddr    = "127.0.0.1:5055" // oci://localhost:5055/basic-auth:1.0
	FilesAddr       = "127.0.0.1:5056" // http://localhost:5056/basic-auth.wasm
	ProductpageAddr = "127.0.0.1:9080"
	HTTPBinAddr     = "127.0.0.1:8000"
)

// ImageTag is the tag of every image in the registry at first.
const ImageTag = "1.0"

// grace is how long requests under way may take when a server stops.
const grace = time.Second

// A Server is one of the demo's parts, on a listener.
type Server struct {
	Name string // for people: registry, files, productpage, httpbin

	ln      net.Listener
	handler http.Handler
}

// Run serves until ctx ends and closes the listener. It is called once.
func (s *Server) Run(ctx context.Context) error {
	server := &http.Server{Handler: s.handler, ReadHeaderTimeout: 10 * time.Second}
	g, running := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := server.Serve(s.ln); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s: %w", s.Name, err)
		}
		return nil
	})
	g.Go(func() error {
		<-running.Done()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		if server.Shutdown(last) != nil {
			server.Close() // a client would not let go: its connection is cut
		}
		return nil
	})
	return g.Wait()
}

// Close closes the listener of a server that is not run.
func (s *Server) Close() error { return s.ln.Close() }
