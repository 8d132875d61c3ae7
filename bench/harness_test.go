//go:build e2e

package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/chandler-proxy/chandler/internal/envoy/envoytest"
)

// This is the least of test/e2e's harness that a benchmark needs: no load, no
// restarts, but logs that can be asked when something happened.

// patience is how long anything that must happen may take.
const patience = 30 * time.Second

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

// eventually asks f every millisecond until it gives no error.
func eventually(b *testing.B, what string, f func() error) {
	b.Helper()
	envoytest.Wait{Patience: patience, Every: time.Millisecond}.Until(b, what, f)
}

// A process is a program that runs until b ends.
type process struct{ *envoytest.Process }

func spawn(b *testing.B, program string, args ...string) *process {
	b.Helper()
	return &process{envoytest.Start(b, nil, program, args...)}
}

// logged waits for the first entry of a program's JSON log that has that message
// and is later than since, and returns its time.
func (p *process) logged(b *testing.B, message string, since time.Time) (at time.Time) {
	b.Helper()
	eventually(b, "log entry "+message, func() error {
		text, err := os.ReadFile(p.Log)
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
	data := envoytest.ShortDir(b)
	m := &mesh{dir: b.TempDir(), data: data, gateway: freeAddress(b)}
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "backend") }))
	b.Cleanup(backend.Close)
	m.write(b, "gateway.yaml", envoytest.Gateway(m.gateway, backend.Listener.Addr().String()))

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
