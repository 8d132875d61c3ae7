package artifact

import (
	"bytes"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/module"
)

// testModule reads a module that the example plugins' tests have.
func testModule(t testing.TB, name string) []byte {
	t.Helper()
	wasm, err := os.ReadFile(filepath.Join("..", "..", "plugins", "testdata", name+".wasm"))
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

// A hub is a registry in this process; before sees requests first and says whether it
// has answered.
type hub struct {
	host   string
	before func(w http.ResponseWriter, r *http.Request) bool
}

func newHub(t testing.TB) *hub {
	h := new(hub)
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.before == nil || !h.before(w, r) {
			inner.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	h.host = strings.TrimPrefix(s.URL, "http://")
	return h
}

func ref(t testing.TB, text string) module.Ref {
	t.Helper()
	r, err := module.ParseRef(text, "")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func build(t testing.TB, wasm []byte, opts Options) v1.Image {
	t.Helper()
	image, err := Build(wasm, opts)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func digestOf(t testing.TB, image v1.Image) string {
	t.Helper()
	d, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// What is pushed comes back, by every form, and is what its digest has always been.
func TestForms(t *testing.T) {
	const (
		dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
		ociManifest    = "application/vnd.oci.image.manifest.v1+json"
		ociConfig      = "application/vnd.oci.image.config.v1+json"
	)
	wasm := testModule(t, "addheader")
	h := newHub(t)
	client := NewClient(Config{})
	for _, tt := range []struct {
		form             Form
		digest           string // changes only if images change for everybody: so say in the notes of a release
		manifest, config string
		layers           []string
	}{
		{Docker, "sha256:f0a357f9c4c816d6f7eb97b6a359502bdc9945887867b4cb4d7f52b08e98b282", dockerManifest, "application/vnd.docker.container.image.v1+json",
			[]string{"application/vnd.docker.image.rootfs.diff.tar.gzip"}},
		{OCI, "sha256:e3051d8bac1b966da1964121b2db0e3e3a95f8b6e06b54583f1db931a3cd1468", ociManifest, ociConfig,
			[]string{"application/vnd.oci.image.layer.v1.tar+gzip"}},
		{Artifact, "sha256:4c2771a9408f53874520d7fe27ebaa63ccbdc9a5bfd4ab01010096cac13ab93e", ociManifest, ociConfig,
			[]string{"application/vnd.module.wasm.config.v1+json", "application/vnd.module.wasm.content.layer.v1+wasm"}},
		{CNCF, "sha256:8e17c12bc80c613b3f4f132f7a7e9b8035920482dca60ad6faf5a3d2e72feaf4", ociManifest, "application/vnd.wasm.config.v0+json",
			[]string{"application/wasm"}},
	} {
		t.Run(string(tt.form), func(t *testing.T) {
			image := build(t, wasm, Options{Form: tt.form})
			if got := digestOf(t, image); got != tt.digest {
				t.Errorf("digest = %s, want %s", got, tt.digest)
			}
			manifest, err := image.Manifest()
			if err != nil {
				t.Fatal(err)
			}
			if got := string(manifest.Config.MediaType); got != tt.config {
				t.Errorf("config is of type %s, want %s", got, tt.config)
			}

			to := ref(t, h.host+"/"+string(tt.form)+":v1")
			if err := client.Push(t.Context(), to, image, nil); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "pulled.wasm")
			pulled, err := client.Pull(t.Context(), to, file)
			if err != nil {
				t.Fatal(err)
			}
			if pulled.Digest.String() != tt.digest || pulled.Module.String() != digest(wasm) || pulled.Size != int64(len(wasm)) {
				t.Errorf("pulled %+v", pulled)
			}
			if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, wasm) {
				t.Errorf("pulled file differs: %d bytes, %v", len(got), err)
			}

			report, err := client.Inspect(t.Context(), to)
			if err != nil {
				t.Fatal(err)
			}
			var layers []string
			for n, l := range report.Image.Layers {
				layers = append(layers, l.MediaType)
				if last := n == len(report.Image.Layers)-1; l.Module != last {
					t.Errorf("layer %d: module = %v", n, l.Module)
				}
			}
			if diff := cmp.Diff(tt.layers, layers); diff != "" {
				t.Errorf("layers (-want +got):\n%s", diff)
			}
			if i := report.Image; i.Form != tt.form || i.Digest != tt.digest || i.MediaType != tt.manifest || i.Manifest != "" {
				t.Errorf("report.Image = %+v", i)
			}
			if report.ABI != "0.2.1" || report.Digest != digest(wasm) || report.Size != int64(len(wasm)) || len(report.Problems) > 0 {
				t.Errorf("report = %+v", report)
			}
			if !slices.Contains(report.Imports, "env.proxy_add_header_map_value") || !slices.Contains(report.Exports, "memory (memory)") {
				t.Errorf("imports %q, exports %q", report.Imports, report.Exports)
			}
		})
	}
}

func TestAnnotations(t *testing.T) {
	wasm := testModule(t, "noop")
	notes := map[string]string{
		"org.opencontainers.image.created": "2026-08-01T10:00:00Z",
		"org.opencontainers.image.version": "1.2",
	}
	for _, form := range Forms() {
		t.Run(string(form), func(t *testing.T) {
			plain := build(t, wasm, Options{Form: form})
			if digestOf(t, plain) != digestOf(t, build(t, wasm, Options{Form: form})) {
				t.Error("the same module makes another image")
			}
			if config, _ := plain.RawConfigFile(); bytes.Contains(config, []byte("created")) {
				t.Errorf("config has a time: %s", config)
			}
			image := build(t, wasm, Options{Form: form, Annotations: notes})
			if digestOf(t, image) != digestOf(t, build(t, wasm, Options{Form: form, Annotations: notes})) {
				t.Error("the same annotations make another image")
			}
			config, err := image.RawConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(config, []byte(`"created":"2026-08-01T10:00:00Z"`)) {
				t.Errorf("config = %s, want the time", config)
			}
			where, err := image.RawManifest()
			if err != nil {
				t.Fatal(err)
			}
			if form == Docker {
				where = config
			}
			if !bytes.Contains(where, []byte(`"org.opencontainers.image.version":"1.2"`)) {
				t.Errorf("%s has no version", where)
			}
		})
	}
}

func TestBuildRefuses(t *testing.T) {
	for _, tt := range []struct {
		opts Options
		want string
	}{
		{Options{Form: "zip"}, "form"},
		{Options{Annotations: map[string]string{created: "yesterday"}}, "yesterday"},
		{Options{Annotations: map[string]string{"": "x"}}, "without a name"},
		{Options{Form: CNCF, Platform: v1.Platform{OS: "linux", Architecture: "amd64"}}, "only wasip1/wasm"},
	} {
		if _, err := Build(nil, tt.opts); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Build(%+v) = %v, want an error with %q", tt.opts, err, tt.want)
		}
	}
}

func TestPlatform(t *testing.T) {
	image := build(t, nil, Options{Platform: v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}})
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.OS != "linux" || config.Architecture != "arm64" || config.Variant != "v8" {
		t.Errorf("config is for %s", config.Platform())
	}
}

// A push gets over a failure that passes, tells how far it is, and sends nothing that
// is there.
func TestPush(t *testing.T) {
	h := newHub(t)
	var failures, uploads int
	h.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost {
			uploads++
		}
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") && failures == 0 {
			failures++
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	}
	client := NewClient(Config{})
	client.retry.Backoff = 1
	image := build(t, testModule(t, "addheader"), Options{})
	var done, total int64
	to := ref(t, h.host+"/a:1")
	if err := client.Push(t.Context(), to, image, func(d, n int64) { done, total = d, n }); err != nil {
		t.Fatal(err)
	}
	if failures != 1 || done != total || total == 0 {
		t.Errorf("%d failures, %d of %d bytes, want one and all", failures, done, total)
	}
	uploads = 0
	if err := client.Push(t.Context(), to, image, nil); err != nil || uploads != 0 {
		t.Errorf("second push: %v, %d uploads", err, uploads)
	}
	// by digest too, if it is the image's
	if err := client.Push(t.Context(), ref(t, h.host+"/a@"+digestOf(t, image)), image, nil); err != nil {
		t.Error(err)
	}
	if err := client.Push(t.Context(), ref(t, h.host+"/a@"+digest(nil)), image, nil); err == nil {
		t.Error("an image is pushed by the digest of another")
	}
	if err := client.Push(t.Context(), ref(t, "https://"+h.host+"/a"), image, nil); err == nil {
		t.Error("an image is pushed to a web server")
	}
}

// key is a keychain of one user.
type key struct{ name, password string }

func (k key) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: k.name, Password: k.password}, nil
}

func TestCredentials(t *testing.T) {
	h := newHub(t)
	h.before = func(w http.ResponseWriter, r *http.Request) bool {
		if user, password, _ := r.BasicAuth(); user == "ada" && password == "secret" {
			return false
		}
		w.Header().Set("Www-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	image := build(t, testModule(t, "noop"), Options{})
	to := ref(t, h.host+"/a:1")
	if err := NewClient(Config{Keychain: key{"ada", "secret"}}).Push(t.Context(), to, image, nil); err != nil {
		t.Fatal(err)
	}
	err := NewClient(Config{Keychain: key{"ada", "wrong-password"}}).Push(t.Context(), to, image, nil)
	if e, ok := errors.AsType[*fetch.Error](err); !ok || e.Kind != fetch.Denied {
		t.Errorf("push with a wrong password = %v", err)
	}
	if strings.Contains(err.Error(), "wrong-password") {
		t.Errorf("the error has the password: %v", err)
	}
}

// What goes wrong in a pull leaves the file that was there.
func TestPullKeepsFile(t *testing.T) {
	h := newHub(t)
	client := NewClient(Config{Tries: 1})
	to := ref(t, h.host+"/a:1")
	if err := client.Push(t.Context(), to, build(t, testModule(t, "noop"), Options{Form: CNCF}), nil); err != nil {
		t.Fatal(err)
	}
	h.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		w.Write(testModule(t, "addheader")) // another
		return true
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "plugin.wasm")
	if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := client.Pull(t.Context(), to, file)
	if e, ok := errors.AsType[*fetch.Error](err); !ok || e.Kind != fetch.Checksum {
		t.Errorf("Pull = %v, want a checksum error", err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "old" {
		t.Errorf("the file is %q, %v", got, err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left in the folder: %v", left)
	}
}

func TestInspectFile(t *testing.T) {
	report, err := InspectFile(filepath.Join("..", "..", "plugins", "testdata", "missing-import.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	if report.Image != nil || len(report.Problems) == 0 {
		t.Errorf("report = %+v, want problems and no image", report)
	}
	text := filepath.Join(t.TempDir(), "text.wasm")
	if err := os.WriteFile(text, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := InspectFile(text); !errors.Is(err, module.ErrNotModule) {
		t.Errorf("InspectFile = %v, want ErrNotModule", err)
	}
}

func TestLanguage(t *testing.T) {
	producer := func(field, name, version string) module.Producer {
		return module.Producer{Field: field, Name: name, Tool: version}
	}
	for _, tt := range []struct {
		info module.Info
		want string
	}{
		{module.Info{}, ""},
		{module.Info{Language: "Go go1.26"}, "Go go1.26"},
		{module.Info{Language: "C99", Producers: []module.Producer{producer("language", "C99", ""), producer("language", "C_plus_plus_14", "")}}, "C++14"},
		{module.Info{Producers: []module.Producer{producer("sdk", "C_plus_plus_14", "")}}, ""},
	} {
		if got := language(tt.info); got != tt.want {
			t.Errorf("language = %q, want %q", got, tt.want)
		}
	}
}

func TestReadFileIsBounded(t *testing.T) {
	path := filepath.Join("..", "..", "plugins", "testdata", "noop.wasm")
	size := int64(len(testModule(t, "noop")))
	if wasm, err := ReadFile(path, size); err != nil || int64(len(wasm)) != size {
		t.Errorf("ReadFile = %d bytes, %v", len(wasm), err)
	}
	if _, err := ReadFile(path, size-1); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("ReadFile = %v, want an error about the limit", err)
	}
}

// A document is found from the image, whether the registry can be asked for it or not,
// and the image is as it was.
func TestAttach(t *testing.T) {
	for _, can := range []bool{true, false} {
		s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(can)))
		t.Cleanup(s.Close)
		checkAttach(t, strings.TrimPrefix(s.URL, "http://"), authn.DefaultKeychain)
	}
}

// checkAttach attaches two documents in a registry and looks for them.
func checkAttach(t *testing.T, host string, keys authn.Keychain) {
	t.Helper()
	client := NewClient(Config{Keychain: keys})
	image := build(t, testModule(t, "noop"), Options{})
	to := ref(t, host+"/attach:v1")
	if err := client.Push(t.Context(), to, image, nil); err != nil {
		t.Fatal(err)
	}
	for _, a := range []Attachment{
		{"application/spdx+json", "sbom.json", []byte(`{"spdxVersion":"SPDX-2.3"}`)},
		{"application/vnd.in-toto+json", "provenance.json", []byte(`{}`)},
		{"application/spdx+json", "sbom.json", []byte(`{"spdxVersion":"SPDX-2.3"}`)}, // again: nothing new
	} {
		if err := client.Attach(t.Context(), to, image, a); err != nil {
			t.Fatal(err)
		}
	}
	subject, err := name.NewDigest(host+"/attach@"+digestOf(t, image), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Referrers(subject, remote.WithAuthFromKeychain(keys))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, d := range manifest.Manifests {
		document, err := remote.Image(subject.Context().Digest(d.Digest.String()), remote.WithAuthFromKeychain(keys))
		if err != nil {
			t.Fatal(err)
		}
		m, err := document.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		if m.Subject == nil || m.Subject.Digest.String() != digestOf(t, image) {
			t.Errorf("subject = %v", m.Subject)
		}
		found = append(found, m.ArtifactType)
	}
	slices.Sort(found)
	if diff := cmp.Diff([]string{"application/spdx+json", "application/vnd.in-toto+json"}, found); diff != "" {
		t.Errorf("what refers to the image (-want +got):\n%s", diff)
	}
	pulled, err := client.Pull(t.Context(), to, filepath.Join(t.TempDir(), "plugin.wasm"))
	if err != nil || pulled.Digest.String() != digestOf(t, image) {
		t.Errorf("the image is now %s, %v", pulled.Digest, err)
	}
}

// Of an index the image with the module is told of, and pulled by its own digest.
func TestInspectIndex(t *testing.T) {
	h := newHub(t)
	image := build(t, testModule(t, "addheader"), Options{Form: OCI})
	other := build(t, testModule(t, "noop"), Options{Form: OCI})
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "wasip1", Architecture: "wasm"}}})
	to, err := name.ParseReference(h.host + "/index:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(to, index); err != nil {
		t.Fatal(err)
	}
	whole, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	report, err := NewClient(Config{}).Inspect(t.Context(), ref(t, h.host+"/index:1"))
	if err != nil {
		t.Fatal(err)
	}
	if report.Image.Digest != whole.String() || report.Image.Manifest != digestOf(t, image) || report.Digest != digest(testModule(t, "addheader")) {
		t.Errorf("report = %+v, image = %+v", report, report.Image)
	}
}
