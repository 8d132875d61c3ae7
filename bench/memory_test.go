//go:build e2e

package bench

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/chandler-proxy/chandler/internal/envoy/envoytest"
)

// settle is how long a program is left alone before its memory is looked at.
const settle = 5 * time.Second

// BenchmarkMemory is what the kernel counts as resident (VmRSS) of a control
// plane with a gateway's configuration and of that gateway's agent, then of both
// after one extension with a module of 10 MB, and what of it is theirs alone
// (-own: without pages of the binary, which all processes of it share).
func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		m := startMesh(b)
		m.resident(b, "idle")
		url, _ := startRegistry(b).push(b, "plugin", archive(b, addHeader(b, text(10<<20))), types.OCILayer)
		m.write(b, "plugin.yaml", envoytest.Plugin("bench", url, "here"))
		m.answers(b, "here")
		m.resident(b, "extended")
	}
	b.ReportMetric(0, "ns/op")
}

func (m *mesh) resident(b *testing.B, when string) {
	b.Helper()
	time.Sleep(settle)
	for program, p := range map[string]*process{"control": m.Control, "agent": m.Agent} {
		b.ReportMetric(p.status(b, "VmRSS"), "MB-"+program+"-"+when)
		b.ReportMetric(p.status(b, "RssAnon"), "MB-"+program+"-"+when+"-own")
	}
}

// status is a value of /proc/PID/status in MB.
func (p *process) status(b *testing.B, key string) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var kb float64
		if n, _ := fmt.Sscanf(line, key+": %f kB", &kb); n == 1 {
			return kb / 1024
		}
	}
	b.Fatalf("no %s of process %d", key, p.PID())
	return 0
}
