package all

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/module"
)

// Every scheme has a fetcher, with the configured limits; who waits for another try is
// told why.
func TestNew(t *testing.T) {
	wasm, err := filepath.Abs(filepath.Join("..", "..", "..", "plugins", "testdata", "noop.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	failures := 1
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if failures--; failures == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		http.ServeFile(w, r, wasm)
	}))
	defer s.Close()
	var waited []string
	retry, registries := New(Config{Waiting: func(err error, wait time.Duration) {
		if wait <= 0 {
			t.Errorf("wait = %v", wait)
		}
		waited = append(waited, err.Error())
	}})
	retry.Backoff = 1
	if registries == nil {
		t.Error("no fetcher for registries")
	}
	for _, tt := range []struct {
		ref  string
		kind fetch.Kind // of the failure; -1 for none
	}{
		{s.URL + "/noop.wasm", -1},
		{"file://" + wasm, -1},
		{"oci://169.254.169.254/a:1", fetch.Blocked},
		{"http://169.254.169.254/a", fetch.Blocked},
	} {
		ref, err := module.ParseRef(tt.ref, "")
		if err != nil {
			t.Fatal(err)
		}
		_, err = retry.Fetch(t.Context(), fetch.Request{
			Want: module.Want{Ref: ref},
			Put:  func(_ module.Digest, r io.Reader) error { _, err := io.Copy(io.Discard, r); return err },
		})
		e, failed := errors.AsType[*fetch.Error](err)
		if failed != (tt.kind >= 0) || failed && e.Kind != tt.kind {
			t.Errorf("Fetch of %s = %v, want kind %v", tt.ref, err, tt.kind)
		}
	}
	if len(waited) != 1 || !strings.Contains(waited[0], "503") {
		t.Errorf("waited for %q, want once after a 503", waited)
	}
}

// What fetches has the credentials that docker and podman left, as has what pushes.
func TestNewKeychain(t *testing.T) {
	wasm, err := os.ReadFile(filepath.Join("..", "..", "..", "plugins", "testdata", "noop.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	open := registry.New()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "ada" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		open.ServeHTTP(w, r)
	}))
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "http://")
	tag, err := name.NewTag(host + "/noop:v1")
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), static.NewLayer(wasm, "application/vnd.module.wasm.content.layer.v1+wasm"))
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, image, remote.WithAuth(&authn.Basic{Username: "ada", Password: "secret"})); err != nil {
		t.Fatal(err)
	}
	ref, err := module.ParseRef("oci://"+tag.String(), "")
	if err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	for name, value := range map[string]string{"HOME": dir, "XDG_RUNTIME_DIR": dir, "XDG_CONFIG_HOME": "", "DOCKER_CONFIG": "", "REGISTRY_AUTH_FILE": "", "DOCKER_AUTH_CONFIG": ""} {
		t.Setenv(name, value)
	}
	fetched := func() error {
		retry, _ := New(Config{})
		_, err := retry.Fetch(t.Context(), fetch.Request{
			Want: module.Want{Ref: ref},
			Put:  func(_ module.Digest, r io.Reader) error { _, err := io.Copy(io.Discard, r); return err },
		})
		return err
	}
	if e, ok := errors.AsType[*fetch.Error](fetched()); !ok || e.Kind != fetch.Denied {
		t.Errorf("without a login: %v", e)
	}
	// Docker's file, there for another registry, does not hide podman's.
	for file, text := range map[string]string{
		".docker/config.json":  `{"auths":{"other.test":{"auth":"YTpi"}}}`,
		"containers/auth.json": `{"auths":{"` + host + `":{"auth":"YWRhOnNlY3JldA=="}}}`,
	} {
		path := filepath.Join(dir, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := fetched(); err != nil {
		t.Errorf("after podman login: %v", err)
	}
}
