package modcache

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/fetch/fetchtest"
	"github.com/chandler-proxy/chandler/internal/fetch/httpget"
)

// BenchmarkDownload compares getting a module that is not stored, over
// loopback, with downloading the same bytes into a file.
func BenchmarkDownload(b *testing.B) {
	for _, size := range []int{1 << 20, 10 << 20} {
		content := fetchtest.Module(size)
		rnd := rand.New(rand.NewPCG(1, 2))
		for i := 64; i < size; i++ {
			content[i] = byte(rnd.Uint32())
		}
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
		}))
		b.Cleanup(server.Close)
		b.Run(fmt.Sprintf("size=%d/plain", size), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "x")
			b.SetBytes(int64(size))
			for b.Loop() {
				plainDownload(b, server.URL, path)
			}
		})
		b.Run(fmt.Sprintf("size=%d/modcache", size), func(b *testing.B) {
			tr := fetch.NewTransport(fetch.TransportConfig{})
			b.Cleanup(tr.CloseIdleConnections)
			c, _ := newCache(b, b.TempDir(), httpget.New(httpget.Config{Transport: tr}))
			w := want(b, server.URL)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				l := get(b, c, w)
				b.StopTimer()
				l.Release()
				if err := os.Remove(l.Path); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

func plainDownload(b *testing.B, url, path string) {
	resp, err := http.Get(url)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, resp.Body); err != nil {
		b.Fatal(err)
	}
}
