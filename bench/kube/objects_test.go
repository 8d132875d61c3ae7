//go:build e2e

package kube

import (
	"context"
	"fmt"
	"testing"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/chandler-proxy/chandler/test/kube"
)

const (
	namespaces = 10
	perService = 10 // pods
	writers    = 16 // requests at a time, while the cluster is filled
)

var wasmPlugins = schema.GroupVersionResource{Group: "extensions.istio.io", Version: "v1alpha1", Resource: "wasmplugins"}

// objects are what a cluster is filled with: apps of ten pods and a Service each, and
// plugins, each of which is for one app of its namespace.
type objects struct {
	plugins, pods int
	kube          kubernetes.Interface
	custom        dynamic.Interface
}

// fill makes them.
func fill(b *testing.B, c *kube.Cluster, plugins, pods int) objects {
	b.Helper()
	config := administrator(b, c)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		b.Fatal(err)
	}
	custom, err := dynamic.NewForConfig(config)
	if err != nil {
		b.Fatal(err)
	}
	o := objects{plugins, pods, client, custom}
	if _, err := client.CoreV1().Nodes().Create(b.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "nobody"}}, metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
	for n := range namespaces {
		namespace := fmt.Sprintf("load-%d", n)
		c.Kubectl(b, "create", "namespace", namespace)
		c.Kubectl(b, "wait", "--for=create", "-n", namespace, "serviceaccount/default", "--timeout=60s")
	}
	for _, kind := range []struct {
		count int
		make  func(context.Context, int) error
	}{{pods / perService, o.service}, {pods, o.pod}, {plugins, o.plugin}} {
		g, ctx := errgroup.WithContext(b.Context())
		g.SetLimit(writers)
		for i := range kind.count {
			g.Go(func() error { return kind.make(ctx, i) })
		}
		if err := g.Wait(); err != nil {
			b.Fatal(err)
		}
	}
	o.await(b)
	return o
}

// place is the namespace and app of the nth app.
func place(app int) (namespace, name string) {
	return fmt.Sprintf("load-%d", app%namespaces), fmt.Sprintf("app-%d", app)
}

// address is that of the nth pod.
func address(pod int) string {
	return fmt.Sprintf("10.200.%d.%d", pod/250, pod%250+1)
}

func (o objects) service(ctx context.Context, i int) error {
	namespace, app := place(i)
	_, err := o.kube.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: app, Labels: map[string]string{"app": app}},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": app}, Ports: []corev1.ServicePort{{Name: "http", Port: 8080}}},
	}, metav1.CreateOptions{})
	return err
}

func (o objects) pod(ctx context.Context, i int) error {
	namespace, app := place(i / perService)
	name := fmt.Sprintf("%s-5d85659b6b-%05d", app, i)
	pods := o.kube.CoreV1().Pods(namespace)
	pod, err := pods.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": app, "version": "v1", "pod-template-hash": "5d85659b6b"}},
		Spec: corev1.PodSpec{
			NodeName:    "nobody",
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}}, // nobody keeps the node alive
			Containers: []corev1.Container{{
				Name: "app", Image: "registry.example/app:v1", Ports: []corev1.ContainerPort{{ContainerPort: 8080}},
				Env: []corev1.EnvVar{{Name: "MODE", Value: "production"}, {Name: "PORT", Value: "8080"}},
			}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	pod.Status.Phase = corev1.PodRunning
	pod.Status.PodIP = address(i)
	pod.Status.PodIPs = []corev1.PodIP{{IP: pod.Status.PodIP}}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	_, err = pods.UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	return err
}

func (o objects) plugin(ctx context.Context, i int) error {
	namespace, app := place(i % max(1, o.pods/perService))
	_, err := o.custom.Resource(wasmPlugins).Namespace(namespace).Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "extensions.istio.io/v1alpha1", "kind": "WasmPlugin",
		"metadata": map[string]any{"name": fmt.Sprintf("plugin-%d", i)},
		"spec": map[string]any{
			"selector":     map[string]any{"matchLabels": map[string]any{"app": app}},
			"url":          fmt.Sprintf("oci://registry.example/plugins/plugin-%d:v1", i%50),
			"phase":        "AUTHN",
			"pluginConfig": map[string]any{"name": app, "rules": []any{map[string]any{"prefix": "/", "header": "x-app"}}},
		},
	}}, metav1.CreateOptions{})
	return err
}

// await waits until the controllers have made what they make of it.
func (o objects) await(b *testing.B) {
	b.Helper()
	wait(b, "endpoints of every pod", func() error {
		ready, token := 0, ""
		for {
			list, err := o.kube.DiscoveryV1().EndpointSlices("").List(b.Context(), metav1.ListOptions{Limit: 500, Continue: token})
			if err != nil {
				return err
			}
			for _, s := range list.Items {
				ready += len(s.Endpoints)
			}
			if token = list.Continue; token == "" {
				break
			}
		}
		if ready < o.pods {
			return fmt.Errorf("%d of %d", ready, o.pods)
		}
		return nil
	})
}

// sidecar is the id of the nth pod's.
func (o objects) sidecar(i int) string {
	namespace, app := place(i / perService)
	return fmt.Sprintf("sidecar~%s~%s-5d85659b6b-%05d.%s~%s.svc.cluster.local", address(i), app, i, namespace, namespace)
}
