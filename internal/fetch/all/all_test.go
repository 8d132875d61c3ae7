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

func TestKeychain(t *testing.T) {
	// Passwords say where they are from, in base64 as a:PASSWORD.
	auths := func(key, basic string) string { return `{"auths": {"` + key + `": {"auth": "` + basic + `"}}}` }
	const explicit, docker, podman = "YTpleHBsaWNpdA==", "YTpkb2NrZXI=", "YTpwb2RtYW4="
	for _, tt := range []struct {
		name  string
		files map[string]string
		file  string
		env   []string // names, their values being the folder
		want  string   // password, or a part of the error if it begins with an exclamation mark
	}{
		{name: "nothing"},
		{name: "docker", files: map[string]string{".docker/config.json": auths("r.test", docker)}, want: "docker"},
		{name: "podman in its configuration", files: map[string]string{".config/containers/auth.json": auths("r.test", podman)}, want: "podman"},
		{name: "podman at run time", files: map[string]string{"run/containers/auth.json": auths("r.test", podman)}, want: "podman"},
		{name: "docker's for another hides none", files: map[string]string{
			".docker/config.json": auths("other.test", docker), "run/containers/auth.json": auths("r.test", podman)}, want: "podman"},
		{name: "by namespace", files: map[string]string{"run/containers/auth.json": auths("r.test/team", podman)}, want: "podman"},
		{name: "the variable goes first", files: map[string]string{
			"auth.json": auths("r.test", explicit), ".docker/config.json": auths("r.test", docker)}, env: []string{"REGISTRY_AUTH_FILE"}, want: "explicit"},
		{name: "the variable's has none", files: map[string]string{
			"auth.json": `{}`, ".docker/config.json": auths("r.test", docker)}, env: []string{"REGISTRY_AUTH_FILE"}, want: "docker"},
		{name: "the variable's is broken", files: map[string]string{"auth.json": `{"auths": {"r.test": "tell-nobody"`}, env: []string{"REGISTRY_AUTH_FILE"},
			want: "!auth.json has no credentials as podman login writes them"},
		{name: "a file that is named", files: map[string]string{
			"auth.json": auths("r.test", explicit), ".docker/config.json": auths("r.test", docker)}, file: "auth.json", want: "explicit"},
		{name: "and no other", files: map[string]string{
			"auth.json": auths("other.test", explicit), ".docker/config.json": auths("r.test", docker)}, file: "auth.json"},
		{name: "named, but not there", file: "auth.json", want: "!auth.json: no such file"},
		{name: "named, but empty", files: map[string]string{"auth.json": `{}`}, file: "auth.json", want: "!no credentials"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range tt.files {
				path := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for name, value := range map[string]string{"HOME": dir, "XDG_RUNTIME_DIR": filepath.Join(dir, "run"), "XDG_CONFIG_HOME": "", "DOCKER_CONFIG": filepath.Join(dir, ".docker"), "REGISTRY_AUTH_FILE": ""} {
				t.Setenv(name, value)
			}
			for _, name := range tt.env {
				t.Setenv(name, filepath.Join(dir, "auth.json"))
			}
			file := tt.file
			if file != "" {
				file = filepath.Join(dir, file)
			}
			repo, err := name.NewRepository("r.test/team/plugin")
			if err != nil {
				t.Fatal(err)
			}
			auth, err := Keychain(file, os.LookupEnv).Resolve(repo)
			if want, ok := strings.CutPrefix(tt.want, "!"); ok {
				if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "tell-nobody") {
					t.Errorf("Resolve = %v, want an error with %q", err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			config, err := authn.Authorization(t.Context(), auth)
			if err != nil || config.Password != tt.want {
				t.Errorf("password is %q, %v, want %q", config.Password, err, tt.want)
			}
		})
	}
}
