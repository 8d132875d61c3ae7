//go:build e2e

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/chandler-proxy/chandler/internal/envoy/envoytest"
)

const (
	// changes is how many changes one iteration makes.
	changes = 20
	// lone is how long a change waits so that nothing gathers it with the last.
	lone = 300 * time.Millisecond
)

// BenchmarkChange edits a plugin's file, and asks the gateway every millisecond,
// each time on a new connection, until an answer shows the change: median and
// ninth decile. cold names a module that only the registry has, stored changes
// the configuration of one that the agent has. Of the way, ms-published is when
// the control plane had sent it and ms-fetched when the agent had the module
// (medians, by the programs' logs).
func BenchmarkChange(b *testing.B) {
	b.Run("cold", func(b *testing.B) { benchmarkChange(b, true) })
	b.Run("stored", func(b *testing.B) { benchmarkChange(b, false) })
}

func benchmarkChange(b *testing.B, cold bool) {
	images := startRegistry(b)
	n := 0
	push := func() string {
		url, _ := images.push(b, fmt.Sprint("plugin-", n), archive(b, addHeader(b, []byte(fmt.Sprint(n)))), types.OCILayer)
		return url
	}
	m := startMesh(b)
	url := push()
	m.write(b, "plugin.yaml", envoytest.Plugin("bench", url, "0"))
	m.answers(b, "0")

	var met, published, fetched times
	for b.Loop() {
		for range changes {
			n++
			if cold {
				url = push()
			}
			time.Sleep(lone)
			text, want := envoytest.Plugin("bench", url, fmt.Sprint(n)), fmt.Sprint(n)
			start := time.Now()
			m.write(b, "plugin.yaml", text)
			m.answers(b, want)
			met = append(met, time.Since(start))
			published = append(published, m.Control.logged(b, "configuration published", start).Sub(start))
			if cold {
				fetched = append(fetched, m.Agent.logged(b, "module fetched", start).Sub(start))
			}
		}
	}
	b.ReportMetric(ms(met.median()), "ms-median")
	b.ReportMetric(ms(met.quantile(0.9)), "ms-p90")
	b.ReportMetric(ms(published.median()), "ms-published")
	if cold {
		b.ReportMetric(ms(fetched.median()), "ms-fetched")
	}
	b.ReportMetric(0, "ns/op")
}

// addHeader is the module that adds x-wasm, with a custom section of that
// content, which changes its size and digest and nothing else.
func addHeader(b *testing.B, content []byte) []byte {
	b.Helper()
	wasm, err := os.ReadFile(filepath.Join("..", "plugins", "testdata", "addheader.wasm"))
	if err != nil {
		b.Fatal(err)
	}
	return appendSection(wasm, content)
}
