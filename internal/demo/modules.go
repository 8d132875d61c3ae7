package demo

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/chandler-proxy/chandler/plugins"
)

// shipped lists the plugins that the registry and the file server hold.
func shipped() []string { return []string{plugins.BasicAuth, plugins.HeaderCounter} }

// repository is where the registry keeps a module file: basic-auth.wasm is in
// basic-auth.
func repository(file string) string { return strings.TrimSuffix(file, ".wasm") }

// NewRegistry is an OCI registry on ln that holds the example plugins of
// modules, usually [plugins.Modules], each under [ImageTag] as the image that build
// makes of it. Clients may push more; nothing outlives the server.
func NewRegistry(ln net.Listener, modules fs.FS, build func(wasm []byte) (v1.Image, error)) (*Server, error) {
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	for _, file := range shipped() {
		module, err := fs.ReadFile(modules, file)
		if err != nil {
			return nil, err
		}
		img, err := build(module)
		if err != nil {
			return nil, fmt.Errorf("make image of %s: %w", file, err)
		}
		if err := push(handler, repository(file)+":"+ImageTag, img); err != nil {
			return nil, fmt.Errorf("push %s into demo registry: %w", file, err)
		}
	}
	return &Server{Name: "registry", ln: ln, handler: handler}, nil
}

// push puts img into the registry behind handler, in process: it is there
// before the first request can come.
func push(handler http.Handler, reference string, img v1.Image) error {
	ref, err := name.ParseReference("localhost/" + reference)
	if err != nil {
		return err
	}
	return remote.Write(ref, img, remote.WithTransport(inProcess{handler}))
}

// inProcess is a transport whose other end is a handler.
type inProcess struct{ handler http.Handler }

func (p inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	if r.Body == nil {
		r.Body = http.NoBody
	}
	w := &answer{code: http.StatusOK, header: http.Header{}}
	p.handler.ServeHTTP(w, r)
	return &http.Response{
		StatusCode:    w.code,
		Status:        fmt.Sprintf("%d %s", w.code, http.StatusText(w.code)),
		Header:        w.header,
		Body:          io.NopCloser(&w.body),
		ContentLength: int64(w.body.Len()),
		Request:       r,
	}, r.Body.Close()
}

// An answer is a response kept in memory.
type answer struct {
	code   int
	header http.Header
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(code int)        { a.code = code }
func (a *answer) Write(b []byte) (int, error) { return a.body.Write(b) }

// NewFiles serves the example plugins of modules, usually [plugins.Modules],
// over HTTP: /basic-auth.wasm is the module, /basic-auth.wasm.sha256 its SHA-256
// as sha256sum prints it, and / the names of both.
func NewFiles(ln net.Listener, modules fs.FS) (*Server, error) {
	mux := http.NewServeMux()
	var index strings.Builder
	for _, file := range shipped() {
		module, err := fs.ReadFile(modules, file)
		if err != nil {
			return nil, err
		}
		sum := fmt.Sprintf("%x  %s\n", sha256.Sum256(module), file)
		mux.HandleFunc("GET /"+file, body("application/wasm", module))
		mux.HandleFunc("GET /"+file+".sha256", body("text/plain; charset=utf-8", []byte(sum)))
		fmt.Fprintf(&index, "/%s\n/%s.sha256\n", file, file)
	}
	mux.HandleFunc("GET /{$}", body("text/plain; charset=utf-8", []byte(index.String())))
	return &Server{Name: "files", ln: ln, handler: mux}, nil
}

// body answers with content, always the same.
func body(contentType string, content []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		w.Write(content)
	}
}
