//go:build e2e

package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/chandler-proxy/chandler/test/kube"
)

// A counter is an API server, for clients in the cluster's network, that counts what
// it is asked. It passes all on as the administrator.
type counter struct {
	address string
	calls   atomic.Int64
	bytes   atomic.Int64 // of answers

	mu    sync.Mutex
	kinds map[string]int // by verb and resource
}

// administrator is how to talk to the API server, from here.
func administrator(b *testing.B, c *kube.Cluster) *rest.Config {
	b.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		b.Fatal(err)
	}
	config.Dial, config.QPS = c.Dial, -1
	return config
}

func startCounter(b *testing.B, c *kube.Cluster) *counter {
	b.Helper()
	config := administrator(b, c)
	transport, err := rest.TransportFor(config)
	if err != nil {
		b.Fatal(err)
	}
	to, err := url.Parse(config.Host)
	if err != nil {
		b.Fatal(err)
	}
	l, err := c.Listen(b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	n := &counter{address: l.Addr().String(), kinds: make(map[string]int)}
	proxy := &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1, // watches
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(to) },
		ModifyResponse: func(r *http.Response) error {
			r.Body = &counted{r.Body, &n.bytes}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if !errors.Is(err, context.Canceled) { // who asked has gone
				b.Logf("pass %s %s: %v", r.Method, r.URL, err)
			}
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.count(r)
		proxy.ServeHTTP(w, r)
	})}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			b.Error(err)
		}
	})
	b.Cleanup(func() {
		server.Close()
		wg.Wait()
	})
	return n
}

// counted counts what is read.
type counted struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func (n *counter) count(r *http.Request) {
	verb := strings.ToLower(r.Method)
	switch {
	case r.URL.Query().Get("watch") != "":
		verb = "watch"
	case r.Method == http.MethodGet && !named(r.URL.Path):
		verb = "list"
	}
	n.calls.Add(1)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.kinds[verb+" "+resource(r.URL.Path)]++
}

// parts are those of an API path behind version and namespace: resource, name,
// subresource.
func parts(path string) []string {
	p := strings.Split(strings.Trim(path, "/"), "/")
	if p[0] == "apis" && len(p) > 3 {
		p = p[3:]
	} else if p[0] == "api" && len(p) > 2 {
		p = p[2:]
	} else {
		return []string{"discovery", path}
	}
	if p[0] == "namespaces" && len(p) > 2 {
		p = p[2:]
	}
	return p
}

func named(path string) bool { return len(parts(path)) > 1 }

func resource(path string) string {
	p := parts(path)
	if len(p) > 2 {
		return p[0] + "/" + p[2]
	}
	return p[0]
}

// tell lists the calls, the most frequent first.
func (n *counter) tell() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	kinds := slices.SortedFunc(maps.Keys(n.kinds), func(a, b string) int {
		return cmp.Or(cmp.Compare(n.kinds[b], n.kinds[a]), cmp.Compare(a, b))
	})
	var text strings.Builder
	for _, kind := range kinds {
		fmt.Fprintf(&text, "%6d %s\n", n.kinds[kind], kind)
	}
	return text.String()
}
