//go:build e2e

package inject

import (
	"bytes"
	"context"
	"encoding/pem"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	admissionregistrationclient "k8s.io/client-go/kubernetes/typed/admissionregistration/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"
)

// patience is how long a test waits before it says that nothing will come.
const patience = time.Minute

// resourceNames are those of the kinds in tests.
var resourceNames = map[string]schema.GroupVersionResource{
	"Namespace": {Version: "v1", Resource: "namespaces"}, "ServiceAccount": {Version: "v1", Resource: "serviceaccounts"},
	"Service": {Version: "v1", Resource: "services"}, "Pod": {Version: "v1", Resource: "pods"},
	"Deployment": {Group: "apps", Version: "v1", Resource: "deployments"},
	"Job":        {Group: "batch", Version: "v1", Resource: "jobs"}, "CronJob": {Group: "batch", Version: "v1", Resource: "cronjobs"},
}

// A cluster is a real API server, which CHANDLER_KUBECONFIG names; none of
// Kubernetes' controllers needs to run there.
type cluster struct {
	t        *testing.T
	client   dynamic.Interface
	warnings *bytes.Buffer
	last     string // answer, for what was awaited in vain
}

func newCluster(t *testing.T) (*cluster, *rest.Config) {
	t.Helper()
	path := os.Getenv("CHANDLER_KUBECONFIG")
	if path == "" {
		t.Skip("CHANDLER_KUBECONFIG names no API server")
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, warnings: new(bytes.Buffer)}
	config.WarningHandler = rest.NewWarningWriter(c.warnings, rest.WarningWriterOptions{})
	c.client = dynamic.NewForConfigOrDie(config)
	return c, config
}

// namespace makes one that ends with the test, and what a pod in it needs.
func (c *cluster) namespace(labels map[string]any) string {
	c.t.Helper()
	spaces := c.client.Resource(resourceNames["Namespace"])
	made, err := spaces.Create(c.t.Context(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"generateName": "inject-", "labels": labels},
	}}, metav1.CreateOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if err := spaces.Delete(context.WithoutCancel(c.t.Context()), made.GetName(), metav1.DeleteOptions{}); err != nil {
			c.t.Error(err)
		}
	})
	_, err = c.client.Resource(resourceNames["ServiceAccount"]).Namespace(made.GetName()).Create(c.t.Context(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ServiceAccount", "metadata": map[string]any{"name": "default"},
	}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		c.t.Fatal(err)
	}
	return made.GetName()
}

// create asks whether an object could be created, and returns it as it would be.
func (c *cluster) create(namespace, text string) (*unstructured.Unstructured, error) {
	c.t.Helper()
	o := new(unstructured.Unstructured)
	if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
		c.t.Fatal(err)
	}
	o.SetNamespace(namespace)
	return c.client.Resource(resourceNames[o.GetKind()]).Namespace(namespace).Create(c.t.Context(), o,
		metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
}

// TestInjected: an API server takes what Stream makes.
func TestInjected(t *testing.T) {
	c, _ := newCluster(t)
	namespace := c.namespace(nil)
	for _, name := range []string{"httpbin", "bookinfo", "jobs", "overrides"} {
		text, err := os.ReadFile(filepath.Join("testdata", name+".out.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		for doc := range documents(text) {
			if _, err := c.create(namespace, string(doc.text)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// TestRestricted: a pod without redirection passes Pod Security's strictest level; one
// with it is refused for the container that redirects, and for no other.
func TestRestricted(t *testing.T) {
	c, _ := newCluster(t)
	namespace := c.namespace(map[string]any{"pod-security.kubernetes.io/enforce": "restricted"})
	text, err := os.ReadFile(filepath.Join("testdata", "restricted.in.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	inject := func(text string) string {
		out, _, err := Stream([]byte(text), options(t, image))
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if _, err := c.create(namespace, inject(string(text))); err != nil {
		t.Error(err)
	}
	_, err = c.create(namespace, inject(strings.Replace(string(text), "NONE", "REDIRECT", 1)))
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "istio-init") || strings.Contains(err.Error(), "istio-proxy") {
		t.Errorf("a pod with redirection: %v, want it forbidden for istio-init", err)
	}
}

// TestAdmission: the API server asks the webhook about the pods it should, and trusts it
// once its bundle is there.
func TestAdmission(t *testing.T) {
	c, config := newCluster(t)
	configurations := admissionregistrationclient.NewForConfigOrDie(config).MutatingWebhookConfigurations()
	namespace, plain := c.namespace(map[string]any{"istio-injection": "enabled"}), c.namespace(nil)
	h, _ := webhookHandler(t)
	server := httptest.NewTLSServer(h)
	defer server.Close()

	// the webhook is this process, and no other test's pods are selected
	want := WebhookConfiguration(options(t, image))
	want.Name = "inject-e2e-" + namespace
	for i := range want.Webhooks {
		w := &want.Webhooks[i]
		w.ClientConfig = admissionregistrationv1.WebhookClientConfig{URL: new(server.URL + "/inject")}
		w.NamespaceSelector.MatchExpressions = append(w.NamespaceSelector.MatchExpressions, metav1.LabelSelectorRequirement{
			Key: "kubernetes.io/metadata.name", Operator: metav1.LabelSelectorOpIn, Values: []string{namespace, plain}})
	}
	if _, err := configurations.Create(t.Context(), want, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := configurations.Delete(context.WithoutCancel(t.Context()), want.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})

	pod := "{apiVersion: v1, kind: Pod, metadata: {name: app}, spec: {containers: [{name: app, image: app, livenessProbe: {httpGet: {port: 80}}}]}}"
	var made *unstructured.Unstructured
	c.await("a pod is refused while the webhook cannot be trusted", func() bool {
		_, err := c.create(namespace, pod)
		return err != nil && strings.Contains(err.Error(), "failed calling webhook")
	})
	bundles := make(chan []byte, 1)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	trust := Trust{Configurations: configurations, Name: want.Name, Bundles: bundles, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	go func() { ended <- trust.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	bundles <- pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	c.await("a pod gets a sidecar", func() bool {
		var err error
		if made, err = c.create(namespace, pod); err != nil {
			c.last = err.Error()
		}
		return err == nil
	})
	if names := containerNames(t, made); !slices.Equal(names, []string{"istio-init", "istio-proxy", "app"}) {
		t.Errorf("the pod has %s", names)
	}

	bad := strings.Replace(pod, "name: app}", `name: app, annotations: {sidecar.istio.io/proxyCPU: lots}}`, 1)
	if _, err := c.create(namespace, bad); err == nil || !strings.Contains(err.Error(), `"lots" is not an amount of cpu; write one such as 100m`) {
		t.Errorf("a pod with a wrong annotation: %v", err)
	}
	odd := strings.Replace(pod, "name: app}", `name: app, annotations: {proxy.istio.io/config: "concurrency: 2"}}`, 1)
	if _, err := c.create(namespace, odd); err != nil || !strings.Contains(c.warnings.String(), "proxy.istio.io/config]: is not honoured") {
		t.Errorf("a pod with an annotation that is not honoured: %v, warnings %s", err, c.warnings)
	}
	for name, tt := range map[string]struct{ namespace, from, to string }{
		"declines":            {namespace, "name: app}", `name: app, labels: {sidecar.istio.io/inject: "false"}}`},
		"of a node's network": {namespace, "containers:", "hostNetwork: true, containers:"},
		"nobody asks for":     {plain, "", ""},
	} {
		made, err := c.create(tt.namespace, strings.Replace(pod, tt.from, tt.to, 1))
		if err != nil {
			t.Fatal(err)
		}
		if names := containerNames(t, made); !slices.Equal(names, []string{"app"}) {
			t.Errorf("a pod that %s has %s", name, names)
		}
	}
	asks, err := c.create(plain, strings.Replace(pod, "name: app}", `name: app, labels: {sidecar.istio.io/inject: "true"}}`, 1))
	if err != nil {
		t.Fatal(err)
	}
	if names := containerNames(t, asks); len(names) != 3 {
		t.Errorf("a pod that asks for a sidecar has %s", names)
	}

	// whoever applies the configuration anew, the bundle comes back
	now, err := configurations.Get(t.Context(), want.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range now.Webhooks {
		now.Webhooks[i].ClientConfig.CABundle = nil
	}
	if _, err := configurations.Update(t.Context(), now, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.await("the bundle is back", func() bool {
		now, err := configurations.Get(t.Context(), want.Name, metav1.GetOptions{})
		return err == nil && !slices.ContainsFunc(now.Webhooks, func(w admissionregistrationv1.MutatingWebhook) bool { return len(w.ClientConfig.CABundle) == 0 })
	})
}

func (c *cluster) await(what string, ok func() bool) {
	c.t.Helper()
	err := wait.PollUntilContextTimeout(c.t.Context(), 50*time.Millisecond, patience, true, func(context.Context) (bool, error) { return ok(), nil })
	if err != nil {
		c.t.Fatalf("%s: not in %v; last %s", what, patience, c.last)
	}
}

// containerNames are those of a pod's containers, in the order they start.
func containerNames(t *testing.T, pod *unstructured.Unstructured) (names []string) {
	t.Helper()
	for _, field := range []string{"initContainers", "containers"} {
		list, _, err := unstructured.NestedSlice(pod.Object, "spec", field)
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range list {
			names = append(names, item.(map[string]any)["name"].(string))
		}
	}
	return names
}
