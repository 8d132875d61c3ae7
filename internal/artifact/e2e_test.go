//go:build e2e

package artifact

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

// TestRealRegistry pushes every form to a registry that wants a password, has skopeo
// read the bytes, and fetches them back.
func TestRealRegistry(t *testing.T) {
	const user, password = "ada", "lovelace"
	host := startRegistry(t, user, password)
	creds := user + ":" + password
	wasm := testModule(t, "addheader")
	client := NewClient(Config{Keychain: key{user, password}})
	for _, form := range Forms() {
		t.Run(string(form), func(t *testing.T) {
			image := build(t, wasm, Options{Form: form, Annotations: map[string]string{"org.opencontainers.image.version": "1.2"}})
			name := host + "/team/" + string(form) + ":v1"
			if err := client.Push(t.Context(), ref(t, name), image, nil); err != nil {
				t.Fatal(err)
			}
			if err := NewClient(Config{Keychain: login{}}).Push(t.Context(), ref(t, name), image, nil); err == nil {
				t.Error("a push without credentials succeeds")
			}

			raw := run(t, "skopeo", "inspect", "--raw", "--tls-verify=false", "--creds", creds, "docker://"+name)
			if got := digest(raw); got != digestOf(t, image) {
				t.Errorf("digest of what skopeo reads = %s, want %s", got, digestOf(t, image))
			}
			dir := t.TempDir()
			run(t, "skopeo", "copy", "--quiet", "--src-tls-verify=false", "--src-creds", creds, "docker://"+name, "dir:"+dir)
			var manifest struct{ Layers []struct{ Digest string } }
			if err := json.Unmarshal(raw, &manifest); err != nil {
				t.Fatal(err)
			}
			last := manifest.Layers[len(manifest.Layers)-1].Digest
			layer, err := os.ReadFile(filepath.Join(dir, strings.TrimPrefix(last, "sha256:")))
			if err != nil {
				t.Fatal(err)
			}
			if form == Docker || form == OCI {
				layer = unpack(t, layer)
				var seen struct{ Os, Architecture string }
				if err := json.Unmarshal(run(t, "skopeo", "inspect", "--tls-verify=false", "--creds", creds, "docker://"+name), &seen); err != nil {
					t.Fatal(err)
				}
				if seen.Os != "wasip1" || seen.Architecture != "wasm" {
					t.Errorf("skopeo takes it for %s/%s", seen.Os, seen.Architecture)
				}
			}
			if !bytes.Equal(layer, wasm) {
				t.Error("the module in skopeo's copy is another")
			}

			file := filepath.Join(t.TempDir(), "plugin.wasm")
			pulled, err := client.Pull(t.Context(), ref(t, name), file)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, wasm) || pulled.Digest.String() != digestOf(t, image) {
				t.Errorf("pulled %+v, %v", pulled, err)
			}
			report, err := client.Inspect(t.Context(), ref(t, name))
			if err != nil || report.Image.Form != form {
				t.Errorf("Inspect = %+v, %v", report, err)
			}
		})
	}
}

// The image is to a container engine what a Dockerfile would have made.
func TestBuildahTakesIt(t *testing.T) {
	host := startRegistry(t, "ada", "x")
	wasm := testModule(t, "addheader")
	name := host + "/plugin:v1"
	image := build(t, wasm, Options{})
	if err := NewClient(Config{Keychain: key{"ada", "x"}}).Push(t.Context(), ref(t, name), image, nil); err != nil {
		t.Fatal(err)
	}
	store := t.TempDir()
	var args []string
	if os.Geteuid() != 0 {
		args = []string{"unshare", "buildah"} // others may not mount
	}
	args = append(args, "--root", filepath.Join(store, "root"), "--runroot", filepath.Join(store, "run"), "--storage-driver", "vfs")
	buildah := func(more ...string) string {
		return strings.TrimSpace(string(run(t, "buildah", append(args, more...)...)))
	}
	container := buildah("from", "--quiet", "--tls-verify=false", "--creds", "ada:x", "docker://"+name)
	t.Cleanup(func() { exec.Command("buildah", append(args, "rm", container)...).Run() })
	root := buildah("mount", container)
	if got, err := os.ReadFile(filepath.Join(root, "plugin.wasm")); err != nil || !bytes.Equal(got, wasm) {
		t.Errorf("plugin.wasm in the container is another: %v", err)
	}
}

// Debian's registry cannot be asked what refers to an image.
func TestAttachInRealRegistry(t *testing.T) {
	checkAttach(t, startRegistry(t, "ada", "x"), key{"ada", "x"})
}

// login is a keychain with nothing in it.
type login struct{}

func (login) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, args[0], err, &stderr)
	}
	return out
}

// unpack returns plugin.wasm, the only file of a layer.
func unpack(t *testing.T, layer []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(layer))
	if err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(z)
	header, err := r.Next()
	if err != nil || header.Name != "plugin.wasm" || !header.ModTime.Equal(time.Unix(0, 0)) {
		t.Fatalf("first entry = %+v, %v", header, err)
	}
	content, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("second entry: %v", err)
	}
	return content
}

// startRegistry runs Debian's docker-registry, with one user, until the test ends.
func startRegistry(t *testing.T, user, password string) (host string) {
	t.Helper()
	dir := t.TempDir()
	users, config := filepath.Join(dir, "htpasswd"), filepath.Join(dir, "config.yml")
	if err := os.WriteFile(users, run(t, "htpasswd", "-Bbn", user, password), 0o600); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("version: 0.1\nlog: {level: info}\nstorage: {filesystem: {rootdirectory: %q}}\n"+
		"http: {addr: \"127.0.0.1:0\"}\nauth: {htpasswd: {realm: test, path: %q}}\n", dir, users)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "docker-registry", "serve", config)
	cmd.Env = append(cmd.Environ(), "OTEL_TRACES_EXPORTER=none")
	read, write := io.Pipe()
	cmd.Stdout, cmd.Stderr = write, write
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait() // killed at the end of the test
		write.Close()
		close(exited)
	}()
	t.Cleanup(func() { cancel(); <-exited })
	listening := regexp.MustCompile(`listening on (127\.0\.0\.1:[0-9]+)`)
	var log strings.Builder
	for lines := bufio.NewScanner(read); lines.Scan(); {
		log.WriteString(lines.Text() + "\n")
		if m := listening.FindStringSubmatch(lines.Text()); m != nil {
			go io.Copy(io.Discard, read) // ends as the registry does
			if _, _, err := net.SplitHostPort(m[1]); err != nil {
				t.Fatal(err)
			}
			return m[1]
		}
	}
	t.Fatalf("docker-registry ends:\n%s", &log)
	return ""
}
