package httpget_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/fetch/fetchtest"
	"github.com/chandler-proxy/chandler/internal/fetch/httpget"
)

func newFetcher(t testing.TB, maxModule int64) fetch.Fetcher {
	tr := fetch.NewTransport(fetch.TransportConfig{})
	t.Cleanup(tr.CloseIdleConnections)
	return httpget.New(httpget.Config{Transport: tr, MaxModule: maxModule})
}

// files is a web server of what was put in it.
type files struct {
	mu    sync.Mutex
	files map[string][]byte
	etag  string
}

func (f *files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	content, ok := f.files[r.URL.Path]
	tag := f.etag
	f.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	if tag != "" {
		w.Header().Set("ETag", tag)
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}

func subject(t *testing.T, etag string, pack func([]byte) []byte) fetchtest.Subject {
	f := &files{files: map[string][]byte{}, etag: etag}
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return fetchtest.Subject{
		New: newFetcher,
		Publish: fetchtest.Publisher(func(_ testing.TB, name string, content []byte) string {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.files["/"+name] = pack(content)
			return s.URL + "/" + name
		}),
		Absent: func(testing.TB) string { return s.URL + "/absent" },
	}
}

func packed(t *testing.T) func([]byte) []byte {
	return func(content []byte) []byte {
		var out bytes.Buffer
		z, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
		if err != nil {
			t.Fatal(err)
		}
		w := tar.NewWriter(z)
		err = errors.Join(
			w.WriteHeader(&tar.Header{Name: "d/", Typeflag: tar.TypeDir}),
			w.WriteHeader(&tar.Header{Name: "d/module", Typeflag: tar.TypeReg, Size: int64(len(content))}))
		if _, werr := w.Write(content); errors.Join(err, werr, w.Close(), z.Close()) != nil {
			t.Fatal(err, werr)
		}
		return out.Bytes()
	}
}

func TestContract(t *testing.T) {
	plain := func(b []byte) []byte { return b }
	t.Run("plain", func(t *testing.T) { fetchtest.Run(t, subject(t, "", plain)) })
	t.Run("etag", func(t *testing.T) { fetchtest.Run(t, subject(t, `"v1"`, plain)) })
	t.Run("weak etag", func(t *testing.T) { fetchtest.Run(t, subject(t, `W/"v1"`, plain)) })
	t.Run("tar.gz", func(t *testing.T) { fetchtest.Run(t, subject(t, "", packed(t))) })
}

func TestAnswers(t *testing.T) {
	module := fetchtest.Module(1000)
	for _, tt := range []struct {
		name  string
		serve http.HandlerFunc
		kind  fetch.Kind
		retry bool
		want  string
	}{
		{name: "401", serve: status(401), kind: fetch.Denied, want: "401 Unauthorized"},
		{name: "403", serve: status(403), kind: fetch.Denied},
		{name: "429", serve: status(429), retry: true},
		{name: "500", serve: status(500), retry: true},
		{name: "unasked 304", serve: status(304)},
		{name: "204", serve: status(204)},
		{name: "cut", retry: true, want: "unexpected EOF", serve: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.Write(module[:500])
		}},
		{name: "hung up", retry: true, serve: func(w http.ResponseWriter, _ *http.Request) {
			panic(http.ErrAbortHandler)
		}},
		{name: "endless", kind: fetch.TooLarge, want: "larger than the limit of 1048576 bytes", serve: func(w http.ResponseWriter, r *http.Request) {
			w.Write(module)
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}},
		{name: "redirect to metadata", kind: fetch.Blocked, want: "169.254.169.254", serve: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/latest/", http.StatusFound)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := httptest.NewServer(tt.serve)
			t.Cleanup(s.Close)
			var sink fetchtest.Sink
			_, err := newFetcher(t, 1<<20).Fetch(t.Context(), fetchtest.Request(t, s.URL, "", &sink))
			e, ok := errors.AsType[*fetch.Error](err)
			if !ok || e.Kind != tt.kind || e.Retry != tt.retry || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v (%+v)", err, e)
			}
			if sink.Has(module) {
				t.Error("the receiver took it")
			}
		})
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func TestCredentials(t *testing.T) {
	content := fetchtest.Module(100)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "user" || p != "s3cret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Write(content)
	}))
	t.Cleanup(s.Close)
	var sink fetchtest.Sink
	url := strings.Replace(s.URL, "http://", "http://user:s3cret@", 1)
	if _, err := newFetcher(t, 1<<20).Fetch(t.Context(), fetchtest.Request(t, url, "", &sink)); err != nil || !sink.Has(content) {
		t.Error(err)
	}
}

// FuzzBody serves what the fuzzer makes up; the fetcher must refuse or pass it
// within its limit.
func FuzzBody(f *testing.F) {
	f.Add(fetchtest.Module(100))
	f.Add([]byte("\x1f\x8b\x08\x00"))
	f.Fuzz(func(t *testing.T, body []byte) {
		const limit = 4 << 10
		tr := roundTrip(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), Request: r}, nil
		})
		var sink fetchtest.Sink
		_, err := httpget.New(httpget.Config{Transport: tr, MaxModule: limit}).Fetch(t.Context(), fetchtest.Request(t, "http://h/x", "", &sink))
		if e, ok := errors.AsType[*fetch.Error](err); err != nil && (!ok || e.Retry) {
			t.Fatalf("error is %v (%+v)", err, e)
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
