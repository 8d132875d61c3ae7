//go:build e2e

package bench

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/fetch/httpget"
	"github.com/chandler-proxy/chandler/internal/fetch/oci"
	"github.com/chandler-proxy/chandler/internal/modcache"
	"github.com/chandler-proxy/chandler/internal/module"
)

// BenchmarkFetch gets a module into an empty store, as an agent that has never
// asked that server: as an OCI artifact, whose layer is the module, as an image
// with the module in a compressed archive, and from a web server. In turn with it
// the bytes that are sent for the module are downloaded in one request to a file:
// x-plain is the ratio of the medians. x-known is that of an agent that has asked
// the server before. x-same is the ratio to a download that also unpacks the
// module, if it is in an archive, and syncs the file. kB-allocated is what one
// fetch allocates.
func BenchmarkFetch(b *testing.B) {
	for _, size := range []int{1 << 20, 10 << 20} {
		wasm := wasmOf(size)
		b.Run("artifact/"+sizeName(size), func(b *testing.B) {
			url, blob := startRegistry(b).push(b, "artifact", wasm, "application/wasm")
			benchmarkFetch(b, url, blob, save)
		})
		b.Run("image/"+sizeName(size), func(b *testing.B) {
			url, blob := startRegistry(b).push(b, "image", archive(b, wasm), types.OCILayer)
			benchmarkFetch(b, url, blob, saveUnpacked)
		})
		b.Run("http/"+sizeName(size), func(b *testing.B) {
			server := httptest.NewServer(serve(wasm))
			b.Cleanup(server.Close)
			benchmarkFetch(b, server.URL+"/module.wasm", server.URL+"/module.wasm", save)
		})
	}
}

// benchmarkFetch fetches the module at url, which is sent as blob; same saves
// what is in that as a store has to.
func benchmarkFetch(b *testing.B, url, blob string, same func(*os.File, io.Reader) error) {
	ref, err := module.ParseRef(url, "")
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	var fetched, again, plain, equal times
	var allocated uint64
	known, done := fetchers()
	defer done()
	get(b, ref, known)
	for b.Loop() {
		plain = append(plain, download(b, dir, blob, save))
		equal = append(equal, download(b, dir, blob, func(f *os.File, r io.Reader) error {
			return errors.Join(same(f, r), f.Sync())
		}))
		fresh, done := fetchers()
		took, bytes := get(b, ref, fresh)
		done()
		fetched = append(fetched, took)
		allocated += bytes
		took, _ = get(b, ref, known)
		again = append(again, took)
	}
	b.ReportMetric(ms(fetched.median()), "ms-fetch")
	b.ReportMetric(ms(plain.median()), "ms-plain")
	b.ReportMetric(float64(fetched.median())/float64(plain.median()), "x-plain")
	b.ReportMetric(float64(again.median())/float64(plain.median()), "x-known")
	b.ReportMetric(float64(fetched.median())/float64(equal.median()), "x-same")
	b.ReportMetric(float64(allocated)/1000/float64(b.N), "kB-allocated")
	b.ReportMetric(0, "ns/op")
}

// fetchers are those of an agent that knows no server yet, and what ends them.
func fetchers() (fetch.Schemes, func()) {
	transport := fetch.NewTransport(fetch.TransportConfig{})
	return fetch.Schemes{
		"oci":  oci.New(oci.Config{Transport: transport}),
		"http": httpget.New(httpget.Config{Transport: transport}),
	}, transport.CloseIdleConnections
}

// get fetches a module as an agent that has none yet. What it puts onto the disk
// when the module is of use already is waited for, so that it troubles no other.
func get(b *testing.B, ref module.Ref, from fetch.Schemes) (took time.Duration, allocated uint64) {
	b.Helper()
	dir, err := os.MkdirTemp(b.TempDir(), "")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	cache := newCache(b, dir, from)
	defer finish(b, cache)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	lease, err := cache.Get(b.Context(), module.Want{Ref: ref})
	took = time.Since(start)
	if err != nil {
		b.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	lease.Release()
	return took, after.TotalAlloc - before.TotalAlloc
}

// finish waits for what a cache has left to do, and ends it.
func finish(b *testing.B, cache *modcache.Cache) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	cancel()
	if err := cache.Run(ctx); err != nil {
		b.Fatal(err)
	}
}

// download saves what url sends to a file, on a new connection.
func download(b *testing.B, dir, url string, save func(*os.File, io.Reader) error) time.Duration {
	b.Helper()
	path := filepath.Join(dir, "plain")
	defer os.Remove(path)
	start := time.Now()
	if err := downloadTo(path, url, save); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

func downloadTo(path, url string, save func(*os.File, io.Reader) error) error {
	transport := new(http.Transport)
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport}).Get(url)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("download %s: %s", url, res.Status)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return save(f, res.Body)
}

func save(f *os.File, r io.Reader) error {
	_, err := io.Copy(f, r)
	return err
}

// saveUnpacked saves the first file of an archive.
func saveUnpacked(f *os.File, r io.Reader) error {
	z, err := gzip.NewReader(r)
	if err != nil {
		return err
	}
	t := tar.NewReader(z)
	if _, err := t.Next(); err != nil {
		return err
	}
	return save(f, t)
}

// archive is what COPY plugin.wasm makes of a module.
func archive(b *testing.B, wasm []byte) []byte {
	b.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	t := tar.NewWriter(z)
	if err := t.WriteHeader(&tar.Header{Name: "plugin.wasm", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(wasm))}); err != nil {
		b.Fatal(err)
	}
	if _, err := t.Write(wasm); err != nil {
		b.Fatal(err)
	}
	if err := t.Close(); err != nil {
		b.Fatal(err)
	}
	if err := z.Close(); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}
