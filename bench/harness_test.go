//go:build e2e

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// This is the least of test/e2e's harness that a benchmark needs: no load, no
// restarts, but logs that can be asked when something happened.

// patience is how long anything that must happen may take.
const patience = 30 * time.Second

// tool is the path of a program, from the environment.
func tool(b *testing.B, variable string) string {
	b.Helper()
	path := os.Getenv(variable)
	if path == "" {
		b.Fatalf("%s is not set; run make bench", variable)
	}
	return path
}

// freeAddress is a loopback address that nothing listens on.
func freeAddress(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// eventually asks f every millisecond until it gives no error.
func eventually(b *testing.B, what string, f func() error) {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			b.Fatalf("%s: still after %v: %v", what, patience, err)
		}
		time.Sleep(time.Millisecond)
	}
}

// A process is a program that runs until b ends.
type process struct {
	PID int
	log string // path of what it prints
}

func spawn(b *testing.B, program string, args ...string) *process {
	b.Helper()
	out, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may be gone already
		kill := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait() // how it ended is in its log
		kill.Stop()
		if text, err := os.ReadFile(out.Name()); b.Failed() {
			b.Logf("%s (%v):\n%s", strings.Join(cmd.Args, " "), err, text[max(0, len(text)-8000):])
		}
		out.Close()
	})
	return &process{PID: cmd.Process.Pid, log: out.Name()}
}

// logged waits for the first entry of a program's JSON log that has that message
// and is later than since, and returns its time.
func (p *process) logged(b *testing.B, message string, since time.Time) (at time.Time) {
	b.Helper()
	eventually(b, "log entry "+message, func() error {
		text, err := os.ReadFile(p.log)
		if err != nil {
			return err
		}
		for line := range bytes.Lines(text) {
			var entry struct {
				Time time.Time
				Msg  string
			}
			// Envoy's lines, and one that is half written, are not JSON.
			if json.Unmarshal(line, &entry) == nil && entry.Msg == message && entry.Time.After(since) {
				at = entry.Time
				return nil
			}
		}
		return fmt.Errorf("not among %d bytes of log", len(text))
	})
	return at
}

// A registry is Debian's docker-registry on loopback.
type registry string

func startRegistry(b *testing.B) registry {
	b.Helper()
	address := freeAddress(b)
	config := filepath.Join(b.TempDir(), "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: warn}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\n", b.TempDir(), address)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	spawn(b, "docker-registry", "serve", config)
	eventually(b, "registry answers", func() error {
		res, err := http.Get("http://" + address + "/v2/")
		if err == nil {
			res.Body.Close()
		}
		return err
	})
	return registry(address)
}

// push makes an image whose only layer has that content and type, and returns
// its reference and where its layer is.
func (r registry) push(b *testing.B, repository string, content []byte, layer types.MediaType) (ref, blob string) {
	b.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.Append(img, mutate.Addendum{Layer: static.NewLayer(content, layer), MediaType: layer})
	if err != nil {
		b.Fatal(err)
	}
	image := string(r) + "/" + repository + ":1"
	tag, err := name.ParseReference(image, name.Insecure)
	if err != nil {
		b.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		b.Fatal(err)
	}
	digest, _, err := v1.SHA256(bytes.NewReader(content))
	if err != nil {
		b.Fatal(err)
	}
	return "oci://" + image, "http://" + string(r) + "/v2/" + repository + "/blobs/" + digest.String()
}

// A mesh is a control plane, an agent and an Envoy as a gateway, with a folder
// of resources and a backend behind.
type mesh struct {
	dir, data      string
	gateway        string // host:port
	Control, Agent *process
}

// startMesh runs a mesh and waits until it serves.
func startMesh(b *testing.B) *mesh {
	b.Helper()
	bin, envoy := tool(b, "CHANDLER_BIN"), tool(b, "CHANDLER_ENVOY")
	data, err := os.MkdirTemp("", "ch") // short: a Unix socket's path has little room
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(data) })
	m := &mesh{dir: b.TempDir(), data: data, gateway: freeAddress(b)}
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "backend") }))
	b.Cleanup(backend.Close)
	m.write(b, "gateway.yaml", gatewayYAML(m.gateway, backend.Listener.Addr().String()))

	xds := freeAddress(b)
	m.Control = spawn(b, bin, "control", "--log-format", "json", "--source", "dir:"+m.dir, "--xds", xds, "--monitoring", freeAddress(b))
	m.Agent = spawn(b, bin, "agent", "--log-format", "json", "--control", xds, "--data", data, "--envoy", envoy,
		"--namespace", "istio-system", "--labels", "istio=ingressgateway", "--admin", freeAddress(b), "--status", freeAddress(b))
	m.answers(b, "")
	return m
}

// write puts a resource file in place as an editor does: whole, by renaming.
func (m *mesh) write(b *testing.B, name, content string) {
	b.Helper()
	hidden := filepath.Join(m.dir, "."+name)
	if err := os.WriteFile(hidden, []byte(content), 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.Rename(hidden, filepath.Join(m.dir, name)); err != nil {
		b.Fatal(err)
	}
}

// answers asks the gateway, each time on a connection of its own, until it
// answers with that x-wasm header.
func (m *mesh) answers(b *testing.B, wasm string) {
	b.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	eventually(b, "gateway answers with x-wasm "+wasm, func() error {
		res, err := c.Get("http://" + m.gateway + "/")
		if err != nil {
			return err
		}
		res.Body.Close()
		if got := res.Header.Get("x-wasm"); res.StatusCode != http.StatusOK || got != wasm {
			return fmt.Errorf("answer %s with x-wasm %q", res.Status, got)
		}
		return nil
	})
}

// gatewayYAML is a gateway at one address for a backend at another.
func gatewayYAML(listen, backend string) string {
	_, port, _ := net.SplitHostPort(listen)
	host, backendPort, _ := net.SplitHostPort(backend)
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gateway, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: %s, name: http, protocol: HTTP}
    hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: backend, namespace: default}
spec:
  hosts: ["*"]
  gateways: [istio-system/gateway]
  http:
  - route:
    - destination: {host: backend, port: {number: 80}}
---
apiVersion: v1
kind: Service
metadata: {name: backend, namespace: default}
spec:
  ports: [{name: http, port: 80, targetPort: %s}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: backend-1, namespace: default, labels: {kubernetes.io/service-name: backend}}
addressType: IPv4
ports: [{name: http, port: %s}]
endpoints: [{addresses: [%s]}]
`, port, backendPort, backendPort, host)
}

// pluginYAML is a plugin of the gateway's that adds x-wasm with that value.
func pluginYAML(url, wasm string) string {
	return fmt.Sprintf(`
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: bench, namespace: istio-system}
spec:
  selector: {matchLabels: {istio: ingressgateway}}
  url: %s
  pluginConfig: {name: %q}
`, url, wasm)
}
