//go:build e2e

package engine

import (
	"bufio"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chandler-proxy/chandler/internal/envoy/envoytest"
)

// patience is how long anything that must happen may take.
const patience = time.Minute

// A stand is a control plane, and under it two gateways of the same configuration,
// one of them the engine, one Envoy. Each has a port whose requests meet the plugin
// and one whose do not.
type stand struct {
	engine, envoy *gateway
}

// A gateway is an agent with its proxy.
type gateway struct {
	name            string // engine or envoy
	plain, filtered string // host:port
	pids            []int
}

// startStand runs a stand and waits until both gateways answer as w wants.
func startStand(b *testing.B, w workload) *stand {
	b.Helper()
	dir, xds := b.TempDir(), freeAddress(b)
	s := &stand{
		engine: &gateway{name: "engine", plain: freeAddress(b), filtered: freeAddress(b)},
		envoy:  &gateway{name: "envoy", plain: freeAddress(b), filtered: freeAddress(b)},
	}
	resources := envoytest.Backend(startBackend(b), "engine", "envoy") + s.engine.yaml() + s.envoy.yaml()
	if w.module != "" {
		resources += w.yaml(b, port(s.engine.filtered), port(s.envoy.filtered))
	}
	if err := os.WriteFile(filepath.Join(dir, "resources.yaml"), []byte(resources), 0o600); err != nil {
		b.Fatal(err)
	}
	bin := tool(b, "CHANDLER_BIN")
	spawn(b, bin, "control", "--source", "dir:"+dir, "--xds", xds, "--monitoring", freeAddress(b))
	for _, g := range []*gateway{s.engine, s.envoy} {
		g.start(b, bin, xds)
		g.await(b, w)
	}
	return s
}

func (g *gateway) start(b *testing.B, bin, xds string) {
	b.Helper()
	data := envoytest.ShortDir(b)
	agent := spawn(b, bin, "agent", "--control", xds, "--data", data, "--proxy", g.name, "--envoy", tool(b, "CHANDLER_ENVOY"),
		"--namespace", "istio-system", "--labels", "bench=gateway,proxy="+g.name, "--admin", freeAddress(b), "--status", freeAddress(b))
	g.pids = []int{agent}
	if g.name == "envoy" {
		eventually(b, "Envoy is started", func() error {
			text, err := os.ReadFile(filepath.Join(data, "envoy.state.json"))
			if err != nil {
				return err
			}
			var state struct{ PID int }
			if err := json.Unmarshal(text, &state); err != nil {
				return err
			}
			g.pids = []int{agent, state.PID}
			return nil
		})
	}
}

// await waits until the gateway serves, with and without the plugin.
func (g *gateway) await(b *testing.B, w workload) {
	b.Helper()
	eventually(b, g.name+" answers", func() error { return w.unchanged(g.plain) })
	eventually(b, g.name+" answers with the plugin", func() error { return w.check(g.filtered) })
}

// A usage is what the processes of a gateway have taken, or have.
type usage struct {
	cpu      time.Duration
	rss, pss int64 // bytes
}

func (g *gateway) usage(b *testing.B) (sum usage) {
	b.Helper()
	for _, pid := range g.pids {
		u, err := processUsage(pid)
		if err != nil {
			b.Fatal(err)
		}
		sum.cpu += u.cpu
		sum.rss += u.rss
		sum.pss += u.pss
	}
	return sum
}

// processUsage reads /proc/PID.
func processUsage(pid int) (u usage, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	// The name, in parentheses, may have spaces; utime and stime are fields 14 and 15.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	const tick = time.Second / 100 // USER_HZ is 100 in what Linux tells programs
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return u, fmt.Errorf("read CPU time of process %d: %w", pid, err)
		}
		u.cpu += time.Duration(n) * tick
	}
	smaps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(smaps)) {
		var kb int64
		if n, _ := fmt.Sscanf(line, "Rss: %d kB", &kb); n == 1 {
			u.rss = kb << 10
		} else if n, _ := fmt.Sscanf(line, "Pss: %d kB", &kb); n == 1 {
			u.pss = kb << 10
		}
	}
	return u, nil
}

// tool is the path of a program, from the environment.
func tool(b *testing.B, variable string) string {
	b.Helper()
	return envoytest.Tool(b, variable)
}

// freeAddress is a loopback address that nothing listens on.
func freeAddress(b *testing.B) string {
	b.Helper()
	return envoytest.Address(b)
}

func port(address string) string {
	_, p, _ := net.SplitHostPort(address)
	return p
}

// eventually asks f until it gives no error.
func eventually(b *testing.B, what string, f func() error) {
	b.Helper()
	envoytest.Wait{Patience: patience, Every: 20 * time.Millisecond}.Until(b, what, f)
}

// spawn runs a program until b ends, and returns its process number.
func spawn(b *testing.B, program string, args ...string) int {
	b.Helper()
	return envoytest.Start(b, nil, program, args...).PID()
}

// run runs a program to its end.
func run(b *testing.B, program string, args ...string) string {
	b.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		b.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// startBackend runs a server of HTTP/1.1 that does no more than it must, so that the
// proxies before it have the machine. It answers GET /text with text, a request that
// has a body with the length and checksum of that, and every other with "backend".
func startBackend(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]struct{}{}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = struct{}{}
			mu.Unlock()
			wg.Go(func() {
				serve(c)
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	b.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

func serve(c net.Conn) {
	defer c.Close()
	in, out := bufio.NewReader(c), bufio.NewWriter(c)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		body := "backend"
		if req.ContentLength != 0 {
			sum := crc32.NewIEEE()
			n, err := io.Copy(sum, req.Body)
			if err != nil {
				return
			}
			body = summary(n, sum.Sum32())
		} else if req.URL.Path == "/text" {
			body = text
		}
		fmt.Fprintf(out, "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n", len(body))
		_, _ = out.WriteString(body)
		if out.Flush() != nil {
			return
		}
	}
}

// summary is the answer to a body.
func summary(length int64, sum uint32) string { return fmt.Sprintf("%d %08X", length, sum) }

// text is 10 KB in which there is something to rewrite.
var text = strings.Repeat("The quick brown fox jumps over the lazy dog 0123456789.\n", 183)[:10<<10]

func (g *gateway) yaml() string {
	return fmt.Sprintf(`
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: %s, namespace: istio-system}
spec:
  selector: {proxy: %s}
  servers:
  - {port: {number: %s, name: plain, protocol: HTTP}, hosts: ["*"]}
  - {port: {number: %s, name: filtered, protocol: HTTP}, hosts: ["*"]}
`, g.name, g.name, port(g.plain), port(g.filtered))
}

// yaml is the plugin of a workload, at those ports.
func (w workload) yaml(b *testing.B, ports ...string) string {
	b.Helper()
	config := ""
	if w.config != "" {
		config = "\n  pluginConfig: " + w.config
	}
	return fmt.Sprintf(`
---
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: bench, namespace: istio-system}
spec:
  selector: {matchLabels: {bench: gateway}}
  url: file://%s%s
  match:
  - {mode: CLIENT, ports: [{number: %s}]}
`, modulePath(b, w.module), config, strings.Join(ports, "}, {number: "))
}

// modulePath is where a module of this repository is. One of this folder is made first.
func modulePath(b *testing.B, name string) string {
	b.Helper()
	path := name
	if strings.HasSuffix(name, ".wat") {
		path = filepath.Join(b.TempDir(), "module.wasm")
		run(b, "wat2wasm", name, "-o", path)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		b.Fatalf("module is missing, run make plugins: %v", err)
	}
	return path
}
