//go:build e2e

package e2e

import (
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// A registry is Debian's docker-registry on loopback.
type registry struct {
	Addr string
	*process
}

// startRegistry runs a registry. env are further settings of its own.
func startRegistry(t testing.TB, env ...string) *registry {
	t.Helper()
	r := &registry{Addr: loopback(freePort(t))}
	config := filepath.Join(t.TempDir(), "config.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `
version: 0.1
log: {level: warn}
storage:
  filesystem: {rootdirectory: %s}
  delete: {enabled: true}
http: {addr: %q}
`, t.TempDir(), r.Addr), 0o600); err != nil {
		t.Fatal(err)
	}
	r.process = spawn(t, env, "docker-registry", "serve", config)
	eventually(t, "registry answers", func() error {
		res, err := http.Get("http://" + r.Addr + "/v2/") //nolint:noctx // a test
		if err == nil {
			res.Body.Close()
		}
		return err
	})
	return r
}

// push builds an image as the third seed does, FROM scratch and COPY, and pushes
// it. format is docker or oci; args are further arguments of buildah push.
func (r *registry) push(t testing.TB, ref string, module []byte, format string, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string][]byte{
		"plugin.wasm": module,
		"Dockerfile":  []byte("FROM scratch\nCOPY plugin.wasm ./plugin.wasm\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	image := r.Addr + "/" + ref
	storage := []string{"--storage-driver", "vfs", "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run")}
	run(t, "buildah", append(storage, "build", "--isolation", "chroot", "--format", format, "-t", image, dir)...)
	run(t, "buildah", append(append(storage, "push", "--format", map[string]string{"docker": "v2s2", "oci": "oci"}[format], "--tls-verify=false"),
		append(args, image, "docker://"+image)...)...)
	return "oci://" + image
}

// run runs a program to its end.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// module is the module that adds x-wasm, made different from others by mark.
func module(t testing.TB, mark string) []byte {
	t.Helper()
	return withSection(testModule(t, "addheader"), mark)
}

// testModule is one of plugins/testdata.
func testModule(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "plugins", "testdata", name+".wasm"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// withSection appends a custom section, which changes a module's digest and nothing else.
func withSection(module []byte, text string) []byte {
	body := append([]byte{4, 'm', 'a', 'r', 'k'}, text...)
	out := append([]byte(nil), module...)
	out = append(out, 0)
	out = binary.AppendUvarint(out, uint64(len(body)))
	return append(out, body...)
}
