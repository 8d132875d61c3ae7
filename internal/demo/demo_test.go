package demo

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/chandler-proxy/chandler/internal/artifact"
)

// built stands for the built plugins.
var built = fstest.MapFS{
	"basic-auth.wasm":     {Data: []byte("\x00asm\x01\x00\x00\x00basic-auth")},
	"header-counter.wasm": {Data: []byte("\x00asm\x01\x00\x00\x00header-counter")},
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// serve runs s until the test ends and checks that it ends well.
func serve(t *testing.T, s *Server) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
	return s.ln.Addr().String()
}

func get(t *testing.T, url string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return do(t, r)
}

func do(t *testing.T, r *http.Request) (*http.Response, string) {
	t.Helper()
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestRegistryHoldsPlugins(t *testing.T) {
	s, err := NewRegistry(listen(t), built, build)
	if err != nil {
		t.Fatal(err)
	}
	addr := serve(t, s)
	for image, file := range map[string]string{
		"basic-auth:1.0":     "basic-auth.wasm",
		"header-counter:1.0": "header-counter.wasm",
	} {
		ref, err := name.ParseReference(addr + "/" + image)
		if err != nil {
			t.Fatal(err)
		}
		img, err := remote.Image(ref)
		if err != nil {
			t.Fatal(err)
		}
		manifest, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		if manifest.MediaType != types.DockerManifestSchema2 || len(manifest.Layers) != 1 || manifest.Layers[0].MediaType != types.DockerLayer {
			t.Errorf("%s is no Docker image of one layer: %+v", image, manifest)
		}
		content := mutate.Extract(img)
		defer content.Close()
		files := tar.NewReader(content)
		header, err := files.Next()
		if err != nil || header.Name != "plugin.wasm" {
			t.Fatalf("%s: file = %+v, %v, want plugin.wasm", image, header, err)
		}
		module, err := io.ReadAll(files)
		if err != nil || string(module) != string(built[file].Data) {
			t.Errorf("%s: plugin.wasm = %q, %v", image, module, err)
		}
	}
}

// build makes the images that chandler run has in its registry.
func build(wasm []byte) (v1.Image, error) { return artifact.Build(wasm, artifact.Options{}) }

func TestPluginsNotBuilt(t *testing.T) {
	if _, err := NewRegistry(nil, fstest.MapFS{}, build); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("NewRegistry error = %v, want %v", err, fs.ErrNotExist)
	}
	if _, err := NewFiles(nil, fstest.MapFS{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("NewFiles error = %v, want %v", err, fs.ErrNotExist)
	}
}

func TestFiles(t *testing.T) {
	s, err := NewFiles(listen(t), built)
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + serve(t, s)
	module := string(built["basic-auth.wasm"].Data)

	resp, body := get(t, url+"/basic-auth.wasm")
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/wasm" || body != module {
		t.Errorf("module: %s %q", resp.Status, body)
	}
	_, body = get(t, url+"/basic-auth.wasm.sha256")
	if want := fmt.Sprintf("%x  basic-auth.wasm\n", sha256.Sum256([]byte(module))); body != want {
		t.Errorf("sum = %q, want %q", body, want)
	}
	_, body = get(t, url+"/")
	const want = "/basic-auth.wasm\n/basic-auth.wasm.sha256\n/header-counter.wasm\n/header-counter.wasm.sha256\n"
	if body != want {
		t.Errorf("index = %q, want %q", body, want)
	}
	if resp, _ = get(t, url+"/README.md"); resp.StatusCode != 404 {
		t.Errorf("what is no module: %s, want 404", resp.Status)
	}
}

func TestProductpage(t *testing.T) {
	url := "http://" + serve(t, NewProductpage(listen(t)))
	if resp, body := get(t, url+"/productpage?u=normal"); resp.StatusCode != 200 || !strings.Contains(body, "<title>Simple Bookstore App</title>") {
		t.Errorf("page: %s %s", resp.Status, body)
	}
	if resp, body := get(t, url+"/health"); resp.StatusCode != 200 || body != "Product page is healthy\n" {
		t.Errorf("health: %s %s", resp.Status, body)
	}
	if resp, _ := get(t, url+"/"); resp.StatusCode != 404 {
		t.Errorf("another path: %s, want 404", resp.Status)
	}
}

func TestHTTPBin(t *testing.T) {
	addr := serve(t, NewHTTPBin(listen(t)))
	// what the test's own client sends with every request
	sent := map[string]any{"Host": "httpbin:8000", "User-Agent": "test", "Accept-Encoding": "gzip", "Hello": "a,b"}
	with := func(name, value string) map[string]any {
		m := map[string]any{name: value}
		for k, v := range sent {
			m[k] = v
		}
		return m
	}
	for _, tt := range []struct {
		method, path, contentType, body string
		want                            map[string]any
	}{
		{"GET", "/headers", "", "", map[string]any{"headers": sent}},
		{"GET", "/get?a=1&b=2&b=<3>", "", "", map[string]any{
			"args": map[string]any{"a": "1", "b": []any{"2", "<3>"}}, "headers": sent, "origin": "127.0.0.1", "url": "http://httpbin:8000/get?a=1&b=2&b=<3>"}},
		{"PUT", "/anything/x", "application/json", `{"a":1}`, map[string]any{
			"args": map[string]any{}, "headers": with("Content-Type", "application/json"), "origin": "127.0.0.1", "url": "http://httpbin:8000/anything/x",
			"method": "PUT", "data": `{"a":1}`, "json": map[string]any{"a": 1.0}, "form": map[string]any{}, "files": map[string]any{}}},
		{"POST", "/anything", "application/x-www-form-urlencoded", "a=1", map[string]any{
			"args": map[string]any{}, "headers": with("Content-Type", "application/x-www-form-urlencoded"), "origin": "127.0.0.1", "url": "http://httpbin:8000/anything",
			"method": "POST", "data": "", "json": nil, "form": map[string]any{"a": "1"}, "files": map[string]any{}}},
	} {
		t.Run(tt.path, func(t *testing.T) {
			r, err := http.NewRequest(tt.method, "http://"+addr+tt.path, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			r.Host = "httpbin:8000"
			r.Header = http.Header{"User-Agent": {"test"}, "Hello": {"a", "b"}}
			if tt.contentType != "" {
				r.Header.Set("Content-Type", tt.contentType)
			}
			resp, body := do(t, r)
			if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Access-Control-Allow-Origin") != "*" {
				t.Errorf("%s %v", resp.Status, resp.Header)
			}
			var got map[string]any
			if err := json.Unmarshal([]byte(body), &got); err != nil {
				t.Fatal(err)
			}
			if h, ok := got["headers"].(map[string]any); ok {
				delete(h, "Content-Length") // the client's own
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHTTPBinRefuses(t *testing.T) {
	url := "http://" + serve(t, NewHTTPBin(listen(t)))
	for path, want := range map[string]int{
		"/status/418": 418, "/status/204": 204, "/status/100": 400, "/status/600": 400, "/status/x": 400, "/nothing": 404,
	} {
		if resp, _ := get(t, url+path); resp.StatusCode != want {
			t.Errorf("GET %s: %s, want %d", path, resp.Status, want)
		}
	}
	r, err := http.NewRequest("POST", url+"/anything", strings.NewReader(strings.Repeat("x", maxBody+1)))
	if err != nil {
		t.Fatal(err)
	}
	if resp, _ := do(t, r); resp.StatusCode != 413 {
		t.Errorf("a body too large: %s, want 413", resp.Status)
	}
}

// TestRunEnds has a request under way that never ends by itself.
func TestRunEnds(t *testing.T) {
	began := make(chan struct{})
	s := &Server{Name: "stuck", ln: listen(t), handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
	})}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	answered := make(chan error, 1)
	go func() {
		_, err := http.Get("http://" + s.ln.Addr().String())
		answered <- err
	}()
	<-began
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
	if err := <-answered; err == nil {
		t.Error("the stuck request was answered, want it cut")
	}
}

func TestRunFails(t *testing.T) {
	ln := listen(t)
	ln.Close()
	err := NewProductpage(ln).Run(context.Background())
	if !errors.Is(err, net.ErrClosed) || !strings.HasPrefix(err.Error(), "serve productpage: ") {
		t.Errorf("Run on a closed listener = %v, want one that wraps %v", err, net.ErrClosed)
	}
}
