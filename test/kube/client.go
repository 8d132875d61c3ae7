package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// For runs a cluster for a test and stops it when the test ends. If the test has
// failed by then, what [Cluster.Logs] tells is shown first.
func For(t testing.TB) *Cluster {
	t.Helper()
	c, err := Start(t.Context(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && c.node.first != nil { // not stopped by the test
			c.Logs(t)
		}
		if err := c.Stop(); err != nil {
			t.Errorf("stop cluster: %v", err)
		}
	})
	return c
}

// Command is a command with the cluster's network: KUBECONFIG is the
// administrator's and kubectl is in PATH; the files are this machine's.
func (c *Cluster) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := c.node.guest(ctx, name, args...)
	cmd.Env = append(environment(c.cfg.Programs), "KUBECONFIG="+c.Kubeconfig(), "KUBECACHEDIR="+filepath.Join(c.dir, "kubectl"))
	return cmd
}

// Run runs such a command and returns what it printed. It must succeed.
func (c *Cluster) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	return c.must(t)(output(c.Command(t.Context(), name, args...)))
}

// Kubectl runs kubectl and returns what it printed. It must succeed.
func (c *Cluster) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	return c.must(t)(c.kubectl(t.Context(), "", args...))
}

// KubectlInput is Kubectl with a standard input, for `apply -f -`.
func (c *Cluster) KubectlInput(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	return c.must(t)(c.kubectl(t.Context(), stdin, args...))
}

// TryKubectl is Kubectl that may fail: the error has what it said on standard
// error. An empty stdin is none.
func (c *Cluster) TryKubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	return c.kubectl(ctx, stdin, args...)
}

func (c *Cluster) must(t testing.TB) func(string, error) string {
	t.Helper()
	return func(out string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
}

func (c *Cluster) kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := c.Command(ctx, "kubectl", args...)
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	return output(cmd)
}

// output is what cmd printed; its standard error is part of the error.
func output(cmd *exec.Cmd) (string, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", line(cmd), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), err
}

// Import puts an image onto the node under its own name: pods get it unless
// their pull policy is Always.
func (c *Cluster) Import(t testing.TB, image Image) {
	t.Helper()
	if err := c.importImage(t.Context(), image); err != nil {
		t.Fatal(err)
	}
}

func (c *Cluster) importImage(ctx context.Context, image Image) error {
	archive, err := os.Open(image.Archive)
	if err != nil {
		return err
	}
	defer archive.Close()
	cmd := c.node.command(ctx, "ctr", "--namespace=k8s.io", "images", "import", "-")
	cmd.Stdin = archive
	return quiet(cmd)
}

// Push puts an image into the cluster's registry at REPOSITORY:TAG. Those of
// Docker Hub are found there without naming the registry: push
// curlimages/curl:latest for pods whose image is curlimages/curl.
func (c *Cluster) Push(t testing.TB, image Image, name string) {
	t.Helper()
	c.Run(t, "skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false",
		"docker-archive:"+image.Archive, "docker://"+Registry+"/"+name)
}

// PrivateRegistry runs one more registry, which wants a name and a password, on
// that port of the node, and returns its address.
func (c *Cluster) PrivateRegistry(t testing.TB, port int, user, password string) string {
	t.Helper()
	name := fmt.Sprintf("registry-%d", port)
	dir := filepath.Join(c.dir, name)
	hash := exec.CommandContext(t.Context(), "htpasswd", "-inB", user)
	hash.Stdin = strings.NewReader(password)
	users, err := output(hash)
	err = errors.Join(err, os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "htpasswd"), []byte(users), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	err = c.spawnAs(name, []string{
		fmt.Sprintf("REGISTRY_HTTP_ADDR=:%d", port),
		"REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY=/run/kube/" + name,
		"REGISTRY_AUTH_HTPASSWD_REALM=test",
		"REGISTRY_AUTH_HTPASSWD_PATH=/run/kube/" + name + "/htpasswd",
	}, "docker-registry", "serve", "/run/kube/registry.yaml")
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("%s:%d", nodeIP, port)
	if err := c.plainHTTP(addr); err != nil {
		t.Fatal(err)
	}
	err = c.wait(t.Context(), name, func(ctx context.Context) error {
		conn, err := c.Dial(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// plainHTTP has containerd ask a registry without TLS.
func (c *Cluster) plainHTTP(addr string) error {
	dir := filepath.Join(c.dir, "certs.d", addr)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	hosts := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", "http://"+addr, "http://"+addr)
	return os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o644)
}

// Logs tells what happened in the cluster: events, pods and their containers'
// logs, and the ends of the programs' logs; into a folder below
// $CHANDLER_ARTIFACTS if that is set, else into the test's output, shortened.
func (c *Cluster) Logs(t testing.TB) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context()) // which has ended in a cleanup
	show := c.shower(t)
	for _, args := range [][]string{
		{"get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"},
		{"get", "pods,services", "--all-namespaces", "-o", "wide"},
		{"describe", "pods", "--all-namespaces"},
	} {
		out, err := c.kubectl(ctx, "", args...)
		show(strings.Join(args[:2], "-"), out, err)
	}
	pods, err := c.kubectl(ctx, "", "get", "pods", "--all-namespaces", "-o",
		`jsonpath={range .items[*]}{.metadata.namespace}{" "}{.metadata.name}{"\n"}{end}`)
	if err != nil {
		show("pods", "", err)
	}
	for line := range strings.Lines(pods) {
		namespace, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		out, err := c.kubectl(ctx, "", "logs", "--namespace", namespace, name, "--all-containers", "--prefix", "--tail=200")
		show("logs-"+namespace+"-"+name, out, err)
		// of containers that crashed; most did not, which is an error here
		if out, err := c.kubectl(ctx, "", "logs", "--namespace", namespace, name, "--all-containers", "--prefix", "--tail=200", "--previous"); err == nil {
			show("previous-"+namespace+"-"+name, out, nil)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.processes {
		show(name, c.tail(name), nil)
	}
}

// shower shows one piece of what Logs tells.
func (c *Cluster) shower(t testing.TB) func(name, text string, err error) {
	folder := os.Getenv("CHANDLER_ARTIFACTS")
	if folder != "" {
		folder = filepath.Join(folder, strings.ReplaceAll(t.Name(), "/", "_"))
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Error(err)
		}
		t.Logf("what happened in the cluster is in %s", folder)
	}
	return func(name, text string, err error) {
		t.Helper()
		if err != nil {
			text += "\n" + err.Error()
		}
		if folder == "" {
			const most = 12_000
			t.Logf("%s:\n%s", name, text[max(0, len(text)-most):])
		} else if err := os.WriteFile(filepath.Join(folder, name+".txt"), []byte(text), 0o644); err != nil {
			t.Error(err)
		}
	}
}
