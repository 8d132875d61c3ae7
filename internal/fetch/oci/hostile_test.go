package oci_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/fetch/fetchtest"
	"github.com/chandler-proxy/chandler/internal/fetch/oci"
)

// A script answers requests in memory: what the last part but one of a path is (manifests,
// blobs, v2) by that name, else everything.
type script map[string]func(r *http.Request) *http.Response

func (s script) RoundTrip(r *http.Request) (*http.Response, error) {
	parts := strings.Split(r.URL.Path, "/")
	f := s[parts[max(len(parts)-2, 0)]]
	if f == nil {
		f = s[""]
	}
	resp := f(r)
	resp.Request = r
	return resp, nil
}

func says(status int, mediaType string, body []byte) func(*http.Request) *http.Response {
	return func(*http.Request) *http.Response {
		return &http.Response{
			StatusCode: status, Header: http.Header{"Content-Type": {mediaType}},
			Body: io.NopCloser(bytes.NewReader(body)), ContentLength: -1,
		}
	}
}

// registryOf is a registry in memory that has one manifest under every name, and one blob.
func registryOf(mediaType string, manifest, blob []byte) script {
	return script{"": says(200, "", nil), "manifests": says(200, mediaType, manifest), "blobs": says(200, "", blob)}
}

func fetchFrom(t *testing.T, s script, image string) (*fetchtest.Sink, error) {
	t.Helper()
	sink := new(fetchtest.Sink)
	f := oci.New(oci.Config{Transport: s, MaxModule: 64 << 10})
	_, err := f.Fetch(t.Context(), fetchtest.Request(t, image, "", sink))
	return sink, err
}

// Manifests and indexes that lead nowhere, or around.
func TestManifestsThatLead(t *testing.T) {
	index := func(digests ...string) []byte {
		var entries []object
		for _, d := range digests {
			entries = append(entries, object{"mediaType": ociIndex, "digest": d, "size": 1, "platform": object{"os": "wasip1", "architecture": "wasm"}})
		}
		text, err := json.Marshal(object{"schemaVersion": 2, "mediaType": ociIndex, "manifests": entries})
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	inner := index(digest([]byte("deeper")))
	layers := func(layers ...object) []byte {
		text, err := json.Marshal(object{"schemaVersion": 2, "mediaType": ociManifest, "layers": layers})
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	module := fetchtest.Module(1000)
	layer := func(size any, more ...string) object {
		d := object{"mediaType": "application/wasm", "digest": digest(module), "size": size}
		for i := 0; i+1 < len(more); i += 2 {
			d[more[i]] = more[i+1]
		}
		return d
	}
	for name, tt := range map[string]struct {
		manifest, child []byte // the child is for requests by digest
		mediaType       string
		kind            fetch.Kind
		want            string
	}{
		"an index in an index":      {manifest: index(digest(inner)), child: inner, kind: fetch.NotModule, want: "is not an image's"},
		"an index in itself":        {manifest: inner, child: inner, kind: fetch.Checksum},
		"an index of nothing":       {manifest: index(), kind: fetch.NotModule, want: "no images"},
		"an index of no digest":     {manifest: index("latest"), kind: fetch.Failed, want: "parse index"},
		"an index of a path":        {manifest: index("sha256:../../../../etc"), kind: fetch.Failed, want: "parse index"},
		"an index of any length":    {manifest: index(strings.Repeat("x", 1<<20)), kind: fetch.Failed, want: "parse index"},
		"a layer of any length":     {manifest: layers(layer(1, "digest", "sha256:"+strings.Repeat("x", 1<<20))), kind: fetch.Failed, want: "parse"},
		"an index of another hash":  {manifest: index("sha512:" + strings.Repeat("a", 128)), kind: fetch.Failed, want: "sha256"},
		"ten thousand images":       {manifest: index(slices.Repeat([]string{digest(inner)}, 10_000)...), child: inner, kind: fetch.NotModule},
		"an image for an index":     {manifest: layers(layer(1000)), mediaType: ociIndex, kind: -1},
		"an index for an image":     {manifest: bytes.Replace(inner, []byte(`"mediaType":"`+ociIndex+`",`), nil, -1), mediaType: ociManifest, kind: fetch.Checksum},
		"a manifest of both":        {manifest: []byte(`{"manifests":[],"layers":[]}`), mediaType: ociIndex, kind: fetch.NotModule, want: "no layers"},
		"a web page":                {manifest: []byte("<html>"), mediaType: "text/html", kind: fetch.NotModule, want: "text/html"},
		"no type at all":            {manifest: []byte("{}"), kind: fetch.NotModule},
		"a type of any length":      {manifest: fmt.Appendf(nil, `{"mediaType":%q}`, strings.Repeat("x", 1<<20)), kind: fetch.NotModule},
		"schema 1":                  {manifest: []byte(`{"schemaVersion":1,"mediaType":"application/vnd.docker.distribution.manifest.v1+prettyjws"}`), kind: fetch.NotModule},
		"nested without end":        {manifest: []byte(`{"mediaType":"` + ociManifest + `","layers":` + strings.Repeat("[", 1<<20)), mediaType: ociManifest, kind: fetch.Failed, want: "parse"},
		"layers nested deeply":      {manifest: []byte(`{"mediaType":"` + ociManifest + `","layers":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + "}"), kind: fetch.NotModule},
		"a layer of a path":         {manifest: layers(layer(1, "digest", "sha256:/../x")), kind: fetch.Failed, want: "parse"},
		"a layer of no digest":      {manifest: layers(layer(1, "digest", "")), kind: fetch.Failed},
		"a layer elsewhere":         {manifest: layers(object{"mediaType": "application/wasm", "digest": digest(module), "size": 1000, "urls": []string{"http://169.254.169.254/"}}), kind: -1},
		"a layer of data":           {manifest: layers(object{"mediaType": "application/wasm", "digest": digest(module), "size": 1000, "data": "AGFzbQEAAAA="}), kind: -1},
		"a layer's size is less":    {manifest: layers(layer(1)), kind: -1}, // what counts is the digest
		"a layer's size is more":    {manifest: layers(layer(1 << 40)), kind: fetch.TooLarge, want: "larger than the limit"},
		"a layer's size is none":    {manifest: layers(layer(-1)), kind: -1},
		"a layer's size is nowhere": {manifest: layers(layer(1e300)), kind: fetch.Failed, want: "parse"},
		"a thousand layers":         {manifest: layers(slices.Repeat([]object{layer(1)}, 1000)...), kind: fetch.NotModule, want: "more"},
		"twice the same key":        {manifest: []byte(`{"mediaType":"text/html","mediaType":"` + ociManifest + `","layers":[]}`), kind: fetch.NotModule},
	} {
		t.Run(name, func(t *testing.T) {
			s := registryOf(tt.mediaType, tt.manifest, module)
			if tt.child != nil {
				top, child := s["manifests"], says(200, ociIndex, tt.child)
				s["manifests"] = func(r *http.Request) *http.Response {
					if strings.Contains(r.URL.Path, "sha256:") {
						return child(r)
					}
					return top(r)
				}
			}
			sink, err := fetchFrom(t, s, "r.io/plugin:v1")
			e, ok := errors.AsType[*fetch.Error](err)
			if tt.kind < 0 {
				if err != nil || !sink.Has(module) {
					t.Errorf("error is %v", err)
				}
				return
			}
			if !ok || e.Kind != tt.kind || e.Retry || !strings.Contains(err.Error(), tt.want) || sink.Calls() > 0 {
				t.Errorf("error is %v (%+v), want %v with %q", err, e, tt.kind, tt.want)
			}
			if ok && len(err.Error()) > 2000 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
		})
	}
}

// What a registry says when it is asked how to be asked. None of it makes anything but an
// error, nor sends credentials anywhere else.
func TestChallenges(t *testing.T) {
	for _, challenge := range []string{
		"", "Bearer", "Bearer realm", `Bearer realm=""`, `Bearer realm="ftp://r.io/token"`, `Bearer realm="http://r.io/token"`,
		`Bearer realm="//other.test/token"`, `Bearer realm="file:///etc/passwd"`, `Bearer realm="https://10.0.0.1/token"`,
		`Bearer realm="https://[::ffff:127.0.0.1]/token"`, `Bearer realm="https://169.254.169.254/"`, `Bearer realm="%zz"`,
		"Basic " + strings.Repeat("x", 60_000), strings.Repeat("Negotiate, ", 5000), `Bearer realm="https://r.io/token",service="` + strings.Repeat("s", 50_000) + `"`,
	} {
		deny := func(*http.Request) *http.Response {
			resp := says(401, "", nil)(nil)
			resp.Header.Set("WWW-Authenticate", challenge)
			return resp
		}
		asked := make(map[string]bool)
		s := script{"": func(r *http.Request) *http.Response {
			asked[r.URL.Scheme+"://"+r.URL.Host] = true
			if r.URL.Path == "/token" {
				return says(200, "", bytes.Repeat([]byte(`{"token":`), 1<<20))(r)
			}
			return deny(r)
		}}
		f := oci.New(oci.Config{Transport: s})
		r := fetchtest.Request(t, "r.io/plugin:v1", "", new(fetchtest.Sink))
		r.Secret = secretFor("r.io", "user", "s3cret")
		_, err := f.Fetch(t.Context(), r)
		if _, ok := errors.AsType[*fetch.Error](err); !ok || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%.60s: error is %v", challenge, err)
		}
		delete(asked, "https://r.io")
		if len(asked) > 0 {
			t.Errorf("%.60s: asked %v", challenge, asked)
		}
	}
}

// Registries that never end, at every step: a fetch ends in its time.
func TestRegistriesThatHang(t *testing.T) {
	for _, at := range []string{"", "manifests", "blobs", "token"} {
		t.Run("at "+at, func(t *testing.T) {
			h := newHub(t)
			forms["docker"](t, h, "plugin", "v1", fetchtest.Module(100<<10))
			h.intercept(func(w http.ResponseWriter, r *http.Request) bool {
				if at == "token" && r.URL.Path != "/token" {
					w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token"`, r.Host))
					w.WriteHeader(http.StatusUnauthorized)
					return true
				}
				parts := strings.Split(r.URL.Path, "/")
				if kind := parts[len(parts)-2]; at != "token" && (kind != at && (at != "" || kind != "v2")) {
					return false
				}
				w.Header().Set("Content-Type", ociManifest)
				if at != "" {
					_, _ = io.WriteString(w, " ") // a first byte of what is to come
					_ = http.NewResponseController(w).Flush()
				}
				<-r.Context().Done()
				return true
			})
			var s fetchtest.Sink
			f := fetch.Retry{Fetcher: plainFetcher(t, 1<<20), Tries: 2, Try: 100 * time.Millisecond, Backoff: 1}
			_, err := f.Fetch(t.Context(), fetchtest.Request(t, h.host+"/plugin:v1", "", &s))
			if e, ok := errors.AsType[*fetch.Error](err); !ok || e.Retry || !strings.Contains(err.Error(), "no answer within") {
				t.Errorf("error is %v (%+v)", err, e)
			}
		})
	}
}

// FuzzManifest has a registry answer with what the fuzzer makes up: by tag, by digest, and
// when it is asked how to be asked.
func FuzzManifest(f *testing.F) {
	module := fetchtest.Module(100)
	image := fmt.Appendf(nil, `{"mediaType":%q,"layers":[{"mediaType":"application/wasm","digest":%q,"size":100}]}`, ociManifest, digest(module))
	f.Add(image, []byte("{}"), ociManifest, "")
	f.Add(fmt.Appendf(nil, `{"manifests":[{"digest":%q,"size":1,"platform":{"os":"wasi","architecture":"wasm"}}]}`, digest(image)), image, ociIndex, `Basic realm="x"`)
	f.Add([]byte(`{"layers":[{"mediaType":"`+ociLayer+`","digest":"`+digest(module)+`"}]}`), []byte{}, "text/plain; x", `Bearer realm="https://r.io/token/",service="s",scope="a"`)
	f.Fuzz(func(t *testing.T, top, child []byte, mediaType, challenge string) {
		s := registryOf(mediaType, top, module)
		s["manifests"] = func(r *http.Request) *http.Response {
			if strings.Contains(r.URL.Path, "sha256:") {
				return says(200, mediaType, child)(r)
			}
			return says(200, mediaType, top)(r)
		}
		s["token"] = says(200, "", child)
		if challenge != "" {
			s["v2"] = func(r *http.Request) *http.Response {
				resp := says(401, "", top)(r)
				resp.Header.Set("WWW-Authenticate", challenge)
				return resp
			}
		}
		sink, err := fetchFrom(t, s, "r.io/plugin:v1")
		if _, ok := errors.AsType[*fetch.Error](err); err != nil && !ok {
			t.Fatalf("error %v is of type %T", err, err)
		}
		if err == nil && !sink.Has(module) {
			t.Fatal("no error, and no module")
		}
	})
}
