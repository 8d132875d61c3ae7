package oci_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/zstd"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/fetch/fetchtest"
	"github.com/chandler-proxy/chandler/internal/fetch/oci"
	"github.com/chandler-proxy/chandler/internal/module"
)

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	ociIndex       = "application/vnd.oci.image.index.v1+json"
	ociLayer       = "application/vnd.oci.image.layer.v1.tar+gzip"
	soloLayer      = "application/vnd.module.wasm.content.layer.v1+wasm"
)

// A hub is a registry in this process that counts and can be told to misbehave.
type hub struct {
	*httptest.Server
	host string

	mu    sync.Mutex
	seen  []string                                          // METHOD kind
	first func(w http.ResponseWriter, r *http.Request) bool // true if it answered
}

func newHub(t testing.TB) *hub {
	h := new(hub)
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		if parts := strings.Split(r.URL.Path, "/"); len(parts) > 3 {
			h.seen = append(h.seen, r.Method+" "+parts[len(parts)-2])
		}
		first := h.first
		h.mu.Unlock()
		if first == nil || !first(w, r) {
			inner.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(h.Close)
	h.host = h.Listener.Addr().String()
	return h
}

// intercept makes f the first to see requests.
func (h *hub) intercept(f func(w http.ResponseWriter, r *http.Request) bool) {
	h.mu.Lock()
	h.first, h.seen = f, nil
	h.mu.Unlock()
}

func (h *hub) requests() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.seen, ", ")
}

func (h *hub) send(t testing.TB, method, path, mediaType string, body []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, h.URL+"/v2/"+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		msg, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s %s: %s %s", method, path, resp.Status, msg)
	}
}

func digest(b []byte) string { return module.Digest(sha256.Sum256(b)).String() }

type object = map[string]any

func descriptor(mediaType string, b []byte) object {
	return object{"mediaType": mediaType, "digest": digest(b), "size": len(b)}
}

// blob uploads bytes and describes them.
func (h *hub) blob(t testing.TB, repo, mediaType string, b []byte) object {
	t.Helper()
	h.send(t, http.MethodPost, repo+"/blobs/uploads/?digest="+digest(b), "application/octet-stream", b)
	return descriptor(mediaType, b)
}

// manifest uploads an image of layers and returns its descriptor.
func (h *hub) manifest(t testing.TB, repo, tag, mediaType string, layers ...object) object {
	t.Helper()
	m := object{"schemaVersion": 2, "mediaType": mediaType, "layers": layers,
		"config": h.blob(t, repo, "application/vnd.oci.image.config.v1+json", []byte("{}"))}
	return h.document(t, repo, tag, mediaType, m)
}

func (h *hub) document(t testing.TB, repo, tag, mediaType string, m any) object {
	t.Helper()
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	h.send(t, http.MethodPut, repo+"/manifests/"+tag, mediaType, data)
	return descriptor(mediaType, data)
}

func targz(t testing.TB, name string, content []byte) []byte {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	archive(t, z, name, content)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func tarzst(t testing.TB, name string, content []byte) []byte {
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	archive(t, z, name, content)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func archive(t testing.TB, out io.Writer, name string, content []byte) {
	w := tar.NewWriter(out)
	err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(content)), Mode: 0o644})
	_, werr := w.Write(content)
	if err := errors.Join(err, werr, w.Close()); err != nil {
		t.Fatal(err)
	}
}

func newFetcher(t testing.TB, cfg oci.Config, tc fetch.TransportConfig) fetch.Fetcher {
	tr := fetch.NewTransport(tc)
	t.Cleanup(tr.CloseIdleConnections)
	cfg.Transport = tr
	return oci.New(cfg)
}

func plainFetcher(t testing.TB, maxModule int64) fetch.Fetcher {
	return newFetcher(t, oci.Config{MaxModule: maxModule}, fetch.TransportConfig{})
}

// forms pushes a module in every form there is, and returns what to pin.
var forms = map[string]func(t testing.TB, h *hub, repo, tag string, content []byte) object{
	"docker": func(t testing.TB, h *hub, repo, tag string, c []byte) object {
		return h.manifest(t, repo, tag, dockerManifest, h.blob(t, repo, dockerLayer, targz(t, "plugin.wasm", c)))
	},
	"compat": func(t testing.TB, h *hub, repo, tag string, c []byte) object {
		return h.manifest(t, repo, tag, ociManifest,
			h.blob(t, repo, ociLayer, targz(t, "README", []byte("base"))),
			h.blob(t, repo, ociLayer, targz(t, "./deep/plugin.wasm", c)))
	},
	"zstd": func(t testing.TB, h *hub, repo, tag string, c []byte) object {
		return h.manifest(t, repo, tag, ociManifest, h.blob(t, repo, "application/vnd.oci.image.layer.v1.tar+zstd", tarzst(t, "plugin.wasm", c)))
	},
	"artifact": func(t testing.TB, h *hub, repo, tag string, c []byte) object {
		return h.manifest(t, repo, tag, ociManifest,
			h.blob(t, repo, "application/vnd.module.wasm.config.v1+json", []byte("{}")),
			h.blob(t, repo, soloLayer, c))
	},
	"artifact layer alone": func(t testing.TB, h *hub, repo, tag string, c []byte) object {
		return h.manifest(t, repo, tag, ociManifest, h.blob(t, repo, soloLayer, c))
	},
	"cncf": func(t testing.TB, h *hub, repo, tag string, c []byte) object {
		return h.manifest(t, repo, tag, ociManifest, h.blob(t, repo, "application/wasm", c))
	},
	"index": func(t testing.TB, h *hub, repo, tag string, c []byte) object {
		return index(t, h, repo, tag, c, false)
	},
	"index, image pinned": func(t testing.TB, h *hub, repo, tag string, c []byte) object {
		return index(t, h, repo, tag, c, true)
	},
}

// index pushes an index and describes it, or the image in it.
func index(t testing.TB, h *hub, repo, tag string, c []byte, image bool) object {
	other := h.manifest(t, repo, "other", ociManifest, h.blob(t, repo, ociLayer, targz(t, "x", nil)))
	other["platform"] = object{"os": "linux", "architecture": "amd64"}
	wasm := h.manifest(t, repo, "wasm", ociManifest, h.blob(t, repo, "application/wasm", c))
	wasm["platform"] = object{"os": "wasip1", "architecture": "wasm"}
	d := h.document(t, repo, tag, ociIndex, object{"schemaVersion": 2, "mediaType": ociIndex, "manifests": []object{other, wasm}})
	if image {
		return wasm
	}
	return d
}

func TestContract(t *testing.T) {
	for name, push := range forms {
		t.Run(name, func(t *testing.T) {
			h := newHub(t)
			n, large := 0, 0
			if name == "docker" || name == "cncf" { // an archive, and as it is
				large = 100 << 20
			}
			fetchtest.Run(t, fetchtest.Subject{
				New:   plainFetcher,
				Large: large,
				Publish: func(t testing.TB, content []byte) (url, pin string) {
					n++
					repo := fmt.Sprintf("team/plugin%d", n)
					return "oci://" + h.host + "/" + repo + ":v1", push(t, h, repo, "v1", content)["digest"].(string)
				},
				Absent: func(testing.TB) string { return h.host + "/absent/plugin:v1" },
			})
		})
	}
}

func TestFetchByDigest(t *testing.T) {
	h := newHub(t)
	content := fetchtest.Module(1000)
	for name, push := range forms {
		t.Run(name, func(t *testing.T) {
			d := push(t, h, "plugin", "v1", content)
			var s fetchtest.Sink
			res, err := plainFetcher(t, 1<<20).Fetch(t.Context(), fetchtest.Request(t, h.host+"/plugin@"+d["digest"].(string), "", &s))
			if err != nil || !s.Has(content) || res.Source != d["digest"] {
				t.Errorf("Fetch = %+v, %v", res, err)
			}
		})
	}
}

func TestKnownSourceCostsOneRequest(t *testing.T) {
	h := newHub(t)
	d := forms["docker"](t, h, "plugin", "v1", fetchtest.Module(1000))["digest"].(string)
	for name, tt := range map[string]struct{ pin, source, known, want string }{
		"first time":      {known: "other", want: "GET manifests, GET blobs"},
		"again":           {source: d, known: d, want: "HEAD manifests"},
		"pinned":          {pin: d, known: d, want: "HEAD manifests"},
		"of another ref":  {known: d, want: "GET manifests"},
		"known no longer": {source: d, known: "other", want: "GET manifests, GET blobs"},
		"tag moved":       {source: "sha256:old", known: "sha256:old", want: "HEAD manifests, GET manifests, GET blobs"},
	} {
		t.Run(name, func(t *testing.T) {
			h.intercept(nil)
			var s fetchtest.Sink
			r := fetchtest.Request(t, h.host+"/plugin:v1", tt.pin, &s)
			r.Source = tt.source
			r.Known = func(source string) bool { return source == tt.known }
			if _, err := plainFetcher(t, 1<<20).Fetch(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if got := h.requests(); got != tt.want {
				t.Errorf("asked for %q, want %q", got, tt.want)
			}
		})
	}
}

// answer makes the hub answer requests for a kind of thing itself.
func answer(kind string, f http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/"+kind+"/") {
			return false
		}
		f(w, r)
		return true
	}
}

func code(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "3")
		w.WriteHeader(status)
		io.WriteString(w, `{"errors":[{"code":"X","message":"`+strings.Repeat("said so ", 1000)+`"}]}`)
	}
}

func TestFailures(t *testing.T) {
	layer := targz(t, "plugin.wasm", fetchtest.Module(1000))
	for _, tt := range []struct {
		name     string
		first    func(http.ResponseWriter, *http.Request) bool
		kind     fetch.Kind
		manifest bool
		retry    bool
		want     string
	}{
		{name: "manifest denied", first: answer("manifests", code(403)), kind: fetch.Denied, manifest: true, want: "imagePullSecret"},
		{name: "manifest absent", first: answer("manifests", code(404)), kind: fetch.NotFound, manifest: true, want: "no such image"},
		{name: "manifest 500", first: answer("manifests", code(500)), manifest: true, retry: true, want: "500"},
		{name: "manifest 429", first: answer("manifests", code(429)), manifest: true, retry: true, want: "429"},
		{name: "manifest no JSON", first: answer("manifests", raw(ociManifest, []byte("hello"))), manifest: true, want: "parse"},
		{name: "manifest of another kind", first: answer("manifests", raw("text/html", []byte("hello"))), kind: fetch.NotModule, manifest: true, want: "text/html"},
		{name: "manifest huge", first: answer("manifests", raw(ociManifest, bytes.Repeat([]byte(" "), 5<<20))), kind: fetch.TooLarge, manifest: true, want: "limit of 4194304"},
		{name: "blob denied", first: answer("blobs", code(401)), kind: fetch.Denied},
		{name: "blob absent", first: answer("blobs", code(404)), kind: fetch.NotFound},
		{name: "blob 503", first: answer("blobs", code(503)), retry: true},
		{name: "blob altered", first: answer("blobs", raw("x/y", targz(t, "plugin.wasm", fetchtest.Module(999)))), kind: fetch.Checksum, want: digest(layer)},
		{name: "blob garbage", first: answer("blobs", raw("x/y", []byte("garbage"))), kind: fetch.Checksum},
		{name: "blob with more", first: answer("blobs", raw("x/y", append(bytes.Clone(layer), 0))), kind: fetch.Checksum},
		{name: "blob cut", retry: true, want: "unexpected EOF", first: answer("blobs", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(layer)))
			w.Write(layer[:len(layer)/2])
		})},
		{name: "redirect to metadata", kind: fetch.Blocked, want: "169.254.169.254", first: answer("blobs", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/latest", http.StatusTemporaryRedirect)
		})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHub(t)
			h.manifest(t, "plugin", "v1", ociManifest, h.blob(t, "plugin", ociLayer, layer))
			h.intercept(tt.first)
			var s fetchtest.Sink
			_, err := plainFetcher(t, 1<<20).Fetch(t.Context(), fetchtest.Request(t, h.host+"/plugin:v1", "", &s))
			e, ok := errors.AsType[*fetch.Error](err)
			if !ok || e.Kind != tt.kind || e.Manifest != tt.manifest || e.Retry != tt.retry || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v (%+v)", err, e)
			}
			if len(err.Error()) > 600 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
			if s.Has(fetchtest.Module(1000)) {
				t.Error("the receiver took it")
			}
		})
	}
}

func raw(mediaType string, body []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", mediaType)
		w.Write(body)
	}
}

func TestPluginFileMissing(t *testing.T) {
	h := newHub(t)
	h.manifest(t, "plugin", "v1", ociManifest, h.blob(t, "plugin", ociLayer, targz(t, "filter.wasm", fetchtest.Module(100))))
	var s fetchtest.Sink
	_, err := plainFetcher(t, 1<<20).Fetch(t.Context(), fetchtest.Request(t, h.host+"/plugin:v1", "", &s))
	fetchtest.Refused(t, err, &s, fetch.NotModule, "plugin.wasm", "filter.wasm")
}

// protect makes the hub ask for a password.
func protect(h *hub, user, password string) {
	h.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, _ := r.BasicAuth(); u == user && p == password {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="hub"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
}

func secretFor(host, user, password string) []byte {
	return fmt.Appendf(nil, `{"auths":{%q:{"username":%q,"password":%q}}}`, host, user, password)
}

// oneKey is a machine's docker configuration.
type oneKey authn.AuthConfig

func (k oneKey) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(authn.AuthConfig(k)), nil
}

func TestCredentials(t *testing.T) {
	h := newHub(t)
	content := fetchtest.Module(1000)
	forms["docker"](t, h, "plugin", "v1", content)
	protect(h, "user", "s3cret")
	for _, tt := range []struct {
		name   string
		secret []byte
		keys   authn.Keychain
		denied bool
	}{
		{name: "none", denied: true},
		{name: "secret", secret: secretFor(h.host, "user", "s3cret")},
		{name: "wrong password", secret: secretFor(h.host, "user", "s3cret2"), denied: true},
		{name: "for another host", secret: secretFor("other.io", "user", "s3cret"), denied: true},
		{name: "no secret at all", secret: []byte("user:s3cret"), denied: true},
		{name: "the machine's", keys: oneKey{Username: "user", Password: "s3cret"}},
		// A plugin that brings a secret gets by with that or not at all.
		{name: "wrong secret beside the machine's", secret: secretFor(h.host, "user", "x"), keys: oneKey{Username: "user", Password: "s3cret"}, denied: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var s fetchtest.Sink
			r := fetchtest.Request(t, h.host+"/plugin:v1", "", &s)
			r.Secret = tt.secret
			_, err := newFetcher(t, oci.Config{Keychain: tt.keys}, fetch.TransportConfig{}).Fetch(t.Context(), r)
			if tt.denied {
				fetchtest.Refused(t, err, &s, fetch.Denied)
				if strings.Contains(err.Error(), "s3cret") {
					t.Errorf("error %q shows the password", err)
				}
			} else if err != nil || !s.Has(content) {
				t.Error(err)
			}
		})
	}
}

// tokens makes the hub ask for a bearer token from realm, which is on the hub
// itself by default.
func tokens(h *hub, realm string) {
	h.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			if u, p, _ := r.BasicAuth(); u != "user" || p != "s3cret" {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			io.WriteString(w, `{"token":"t0ken"}`)
			return true
		}
		if r.Header.Get("Authorization") == "Bearer t0ken" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="hub"`, realm))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
}

func TestBearerToken(t *testing.T) {
	h := newHub(t)
	content := fetchtest.Module(1000)
	forms["docker"](t, h, "plugin", "v1", content)
	tokens(h, h.URL+"/token")
	var s fetchtest.Sink
	r := fetchtest.Request(t, h.host+"/plugin:v1", "", &s)
	r.Secret = secretFor(h.host, "user", "s3cret")
	if _, err := plainFetcher(t, 1<<20).Fetch(t.Context(), r); err != nil || !s.Has(content) {
		t.Error(err)
	}
	r.Secret = secretFor(h.host, "user", "wrong")
	s = fetchtest.Sink{}
	_, err := plainFetcher(t, 1<<20).Fetch(t.Context(), r)
	fetchtest.Refused(t, err, &s, fetch.Denied)
}

// The realm is a name for a blocked address.
func TestBearerRealmBlocked(t *testing.T) {
	h := newHub(t)
	listener, err := net.Listen("tcp", "127.0.0.3:0")
	if err != nil {
		t.Fatal(err)
	}
	other := &httptest.Server{Listener: listener, Config: &http.Server{Handler: h.Config.Handler}}
	other.Start()
	t.Cleanup(other.Close)
	_, port, _ := net.SplitHostPort(h.host)
	tokens(h, "http://localhost:"+port+"/token")
	f := newFetcher(t, oci.Config{}, fetch.TransportConfig{Blocked: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("::1/128")}})
	var s fetchtest.Sink
	_, err = f.Fetch(t.Context(), fetchtest.Request(t, listener.Addr().String()+"/plugin:v1", "", &s))
	fetchtest.Refused(t, err, &s, fetch.Blocked, "blocked")
}

// The library refuses some realms itself; that it tried HTTPS before is not the
// reason.
func TestBearerRealmRefused(t *testing.T) {
	h := newHub(t)
	tokens(h, "http://169.254.169.254/token")
	var s fetchtest.Sink
	_, err := plainFetcher(t, 1<<20).Fetch(t.Context(), fetchtest.Request(t, h.host+"/plugin:v1", "", &s))
	fetchtest.Refused(t, err, &s, fetch.Failed, `realm host "169.254.169.254" is a private or link-local address`)
}

// toHub sends requests for any host to the hub.
type toHub struct{ h *hub }

func (to toHub) RoundTrip(r *http.Request) (*http.Response, error) {
	dialer := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, to.h.host)
	}
	return (&http.Transport{DialContext: dialer, DisableKeepAlives: true}).RoundTrip(r)
}

// A registry without TLS that is not listed is refused with what to do.
func TestPlainHTTPRefused(t *testing.T) {
	h := newHub(t)
	h.Config.ErrorLog = log.New(io.Discard, "", 0)
	for _, registry := range []string{"registry.example", "10.0.0.1:5000"} {
		var s fetchtest.Sink
		_, err := oci.New(oci.Config{Transport: toHub{h}}).Fetch(t.Context(), fetchtest.Request(t, registry+"/x:1", "", &s))
		fetchtest.Refused(t, err, &s, fetch.Failed, "WASM_INSECURE_REGISTRIES")
	}
}

func TestTLS(t *testing.T) {
	h := newHub(t)
	content := fetchtest.Module(1000)
	forms["docker"](t, h, "plugin", "v1", content)
	s := httptest.NewUnstartedServer(h.Config.Handler)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	host := s.Listener.Addr().String()
	for _, tt := range []struct {
		name     string
		insecure fetch.Hosts
		ok       bool
	}{
		{"not listed", nil, false}, {"listed", fetch.Hosts{host}, true}, {"listed without port", fetch.Hosts{"127.0.0.1"}, true},
		{"all", fetch.Hosts{"*"}, true}, {"another", fetch.Hosts{"registry.local"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var sink fetchtest.Sink
			f := newFetcher(t, oci.Config{Insecure: tt.insecure}, fetch.TransportConfig{Insecure: tt.insecure})
			_, err := f.Fetch(t.Context(), fetchtest.Request(t, host+"/plugin:v1", "", &sink))
			if (err == nil) != tt.ok || sink.Has(content) != tt.ok {
				t.Errorf("error is %v", err)
			}
			if !tt.ok {
				fetchtest.Refused(t, err, &sink, fetch.Failed, "certificate", "WASM_INSECURE_REGISTRIES")
			}
		})
	}
}

// schemes answers nothing and notes what it was asked over.
type schemes struct {
	mu   sync.Mutex
	seen map[string]bool
}

func (s *schemes) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[r.URL.Scheme] = true
	return nil, errors.New("down over " + r.URL.Scheme)
}

// Plain HTTP is for listed registries and for this machine, whatever the
// library thinks of private addresses.
func TestPlainHTTP(t *testing.T) {
	for _, tt := range []struct {
		registry string
		insecure fetch.Hosts
		plain    bool
	}{
		{"ghcr.io", nil, false}, {"10.0.0.1:5000", nil, false}, {"192.168.1.1", nil, false},
		{"localhost:5000", nil, true}, {"127.0.0.1:5000", nil, true}, {"127.1.2.3:5000", nil, true}, {"[::1]:5000", nil, true}, {"registry.localhost:80", nil, true},
		{"10.0.0.1:5000", fetch.Hosts{"10.0.0.1"}, true}, {"r.io", fetch.Hosts{"r.io"}, true}, {"r.io", fetch.Hosts{"*"}, true}, {"r.io", fetch.Hosts{"x.io"}, false},
	} {
		s := &schemes{seen: map[string]bool{}}
		var sink fetchtest.Sink
		_, err := oci.New(oci.Config{Transport: s, Insecure: tt.insecure}).Fetch(t.Context(), fetchtest.Request(t, tt.registry+"/x:1", "", &sink))
		e, ok := errors.AsType[*fetch.Error](err)
		if !s.seen["https"] || s.seen["http"] != tt.plain {
			t.Errorf("%s with %v: asked over %v, want HTTP: %v", tt.registry, tt.insecure, s.seen, tt.plain)
		}
		last := "down over https"
		if tt.plain {
			last = "down over http"
		}
		if !ok || !e.Retry || !e.Manifest || !strings.HasSuffix(err.Error(), last) {
			t.Errorf("%s: error is %v (%+v), want %q, to be retried", tt.registry, err, e, last)
		}
	}
}
