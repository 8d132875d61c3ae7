//go:build e2e

package kubernetes

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chandler-proxy/chandler/internal/envoy/envoytest"
	"github.com/chandler-proxy/chandler/test/kube"
)

// patience is how long anything may take that happens by itself.
const patience = 60 * time.Second

// shared is the cluster of all tests, with Chandler installed, once one has asked
// for it.
var shared struct {
	once    sync.Once
	cluster *kube.Cluster
	err     error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.cluster != nil {
		if err := shared.cluster.Stop(); err != nil {
			log.Printf("stop cluster: %v", err)
			code = 1
		}
	}
	os.Exit(code)
}

// binary is the chandler under test.
func binary(t testing.TB) string {
	t.Helper()
	path := os.Getenv("CHANDLER_BIN")
	if path == "" || os.Getenv("CHANDLER_ENVOY") == "" {
		t.Fatal("CHANDLER_BIN or CHANDLER_ENVOY is not set: run make e2e")
	}
	return path
}

// installed returns the cluster. What a failed test should know of it is shown.
func installed(t testing.TB) *kube.Cluster {
	t.Helper()
	bin := binary(t)
	shared.once.Do(func() { shared.cluster, shared.err = install(t, bin) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			shared.cluster.Logs(t)
		}
	})
	return shared.cluster
}

// install starts a cluster, gives it the images and installs Chandler, by
// `chandler install | kubectl apply -f -`.
func install(t testing.TB, bin string) (*kube.Cluster, error) {
	ctx := context.Background() // the cluster outlives the test that needed it first
	began := time.Now()
	images, err := ours(ctx, bin)
	if err != nil {
		return nil, err
	}
	backend, err := kube.Backend(ctx, kube.Config{})
	if err != nil {
		return nil, err
	}
	curl, err := kube.Curl(ctx, kube.Config{})
	if err != nil {
		return nil, err
	}
	t.Logf("images are there after %v", time.Since(began).Round(time.Second))
	c, err := kube.Start(ctx, kube.Config{})
	if err != nil {
		return nil, err
	}
	for _, image := range append(images, backend) {
		c.Import(t, image)
	}
	c.Push(t, curl, "curlimages/curl:latest")
	t.Logf("cluster is up after %v", time.Since(began).Round(time.Second))
	c.Kubectl(t, "version")
	c.Run(t, "sh", "-c", bin+" install --proxy-env WASM_INSECURE_REGISTRIES="+kube.Registry+" | kubectl apply -f -")
	c.Kubectl(t, "-n", "istio-system", "rollout", "status", "deployment/chandler", "--timeout=90s")
	c.Kubectl(t, "-n", "istio-system", "rollout", "status", "deployment/istio-ingressgateway", "--timeout=90s")
	t.Logf("Chandler is installed after %v", time.Since(began).Round(time.Second))
	return c, nil
}

// ours are the images chandler and chandler-proxy.
func ours(ctx context.Context, bin string) ([]kube.Image, error) {
	small, err := kube.Chandler(ctx, kube.Config{}, bin)
	if err != nil {
		return nil, err
	}
	proxy, err := kube.ChandlerProxy(ctx, kube.Config{}, bin, os.Getenv("CHANDLER_ENVOY"))
	return []kube.Image{small, proxy}, err
}

// push pushes a module of plugins/dist to the cluster's registry as REPOSITORY:TAG.
func push(t testing.TB, c *kube.Cluster, module, name string) {
	t.Helper()
	dist, err := filepath.Abs("../../plugins/dist")
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, binary(t), "plugin", "push", "--insecure-registries", kube.Registry, kube.Registry+"/"+name, filepath.Join(dist, module))
}

// afterwards runs kubectl when the test has ended.
func afterwards(t testing.TB, c *kube.Cluster, args ...string) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if _, err := c.TryKubectl(ctx, "", args...); err != nil {
			t.Error(err)
		}
	})
}

// eventually waits until do has no error.
func eventually(t testing.TB, what string, do func() error) {
	t.Helper()
	envoytest.Wait{Patience: patience, Every: 100 * time.Millisecond}.Until(t, what, do)
}

// contains is an error unless text has all of parts.
func contains(text string, parts ...string) error {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return fmt.Errorf("%q lacks %q", text, part)
		}
	}
	return nil
}

// field is what kubectl finds in a WasmPlugin at that JSONPath.
func field(ctx context.Context, c *kube.Cluster, namespace, name, path string) string {
	out, err := c.TryKubectl(ctx, "", "get", "wasmplugin", "-n", namespace, name, "-o", "jsonpath="+path)
	if err != nil {
		return err.Error()
	}
	return out
}

// programmed waits until all proxies run the plugin, or as many as want.
func programmed(t testing.TB, c *kube.Cluster, namespace, name, want string) {
	t.Helper()
	eventually(t, namespace+"/"+name+" is programmed", func() error {
		got := field(t.Context(), c, namespace, name, `{.status.conditions[?(@.type=="Programmed")].status} {.status.chandler.proxies}`)
		if got != "True "+want {
			return fmt.Errorf("programmed is %q, want %q", got, "True "+want)
		}
		return nil
	})
}
