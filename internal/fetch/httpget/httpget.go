// Package httpget fetches Wasm modules from web servers.
//
// The body is the module, or gzip, zstd or tar around it, in any nesting up to
// four; of an archive, its first regular file. A pinned digest is that of the
// module when it is unpacked, as in Istio. It sends no credentials but those in
// the URL, and none of a pull secret. A server's strong ETag spares downloading
// again what did not change. Bounds, redirects and addresses: package fetch.
package httpget

import (
	"cmp"
	"context"
	"net/http"
	"strings"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/module"
)

// Config says how to ask web servers.
type Config struct {
	// Transport carries the requests; a *fetch.Transport.
	Transport http.RoundTripper
	// MaxModule bounds modules, in bytes; default fetch.DefaultMaxModule.
	MaxModule int64
}

// A Fetcher fetches with GET.
type Fetcher struct {
	client *http.Client
	max    int64
}

// New makes a Fetcher.
func New(cfg Config) *Fetcher {
	return &Fetcher{
		client: &http.Client{Transport: cfg.Transport},
		max:    cmp.Or(cfg.MaxModule, fetch.DefaultMaxModule),
	}
}

// Fetch implements fetch.Fetcher. A Result's Source is the reference's key and
// the ETag, or empty if the server gives no strong one.
func (f *Fetcher) Fetch(ctx context.Context, r fetch.Request) (fetch.Result, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.Ref.Target(), nil)
	if err != nil {
		return fetch.Result{}, fetch.Transient(err)
	}
	tag, conditional := strings.CutPrefix(r.Source, r.Ref.Key()+" ")
	if conditional = conditional && r.IsKnown(r.Source); conditional {
		req.Header.Set("If-None-Match", tag)
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return fetch.Result{}, fetch.Transient(err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotModified && conditional:
		return fetch.Result{Source: r.Source, Known: true}, nil
	case resp.StatusCode != http.StatusOK:
		return fetch.Result{}, fetch.Status(resp.StatusCode, resp.Header, "")
	}
	body := fetch.NewBody(resp.Body, f.max, module.Digest{}, nil)
	err = fetch.Unpack(&r, body, r.Ref.Digest(), "", f.max)
	return fetch.Result{Source: source(&r, resp.Header)}, err
}

// source names what was sent, if the server vouches for it byte by byte.
func source(r *fetch.Request, h http.Header) string {
	tag := h.Get("ETag")
	if len(tag) < 3 || len(tag) > 256 || !strings.HasPrefix(tag, `"`) || !strings.HasSuffix(tag, `"`) {
		return ""
	}
	return r.Ref.Key() + " " + tag
}
