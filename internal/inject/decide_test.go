package inject

import (
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

func TestDecide(t *testing.T) {
	enabled := map[string]string{"istio-injection": "enabled"}
	for name, tt := range map[string]struct {
		namespace map[string]string
		pod       corev1.Pod
		revision  string
		why       string // empty: injected
	}{
		"namespace enabled":  {namespace: enabled},
		"namespace disabled": {namespace: map[string]string{"istio-injection": "disabled"}, why: "the namespace has the label istio-injection=disabled"},
		"nobody asks":        {why: "neither the namespace nor the pod asks"},
		"pod asks":           {pod: labelled("sidecar.istio.io/inject", "true")},
		"pod asks by annotation only": {pod: annotated("sidecar.istio.io/inject", "true"),
			why: "neither the namespace nor the pod asks"},
		"pod asks, namespace disabled": {namespace: map[string]string{"istio-injection": "disabled"}, pod: labelled("sidecar.istio.io/inject", "true"),
			why: "the namespace has the label istio-injection=disabled"},
		"pod declines":               {namespace: enabled, pod: labelled("sidecar.istio.io/inject", "false"), why: "the pod has the label sidecar.istio.io/inject=false"},
		"pod declines by annotation": {namespace: enabled, pod: annotated("sidecar.istio.io/inject", "false"), why: "the pod says sidecar.istio.io/inject=false"},
		"label before annotation": {namespace: enabled, pod: corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Labels: map[string]string{"sidecar.istio.io/inject": "true"}, Annotations: map[string]string{"sidecar.istio.io/inject": "false"}}}},
		"nonsense":                   {namespace: enabled, pod: labelled("sidecar.istio.io/inject", "perhaps")},
		"namespace's revision":       {namespace: map[string]string{"istio.io/rev": "canary"}, revision: "canary"},
		"namespace's other revision": {namespace: map[string]string{"istio.io/rev": "canary"}, why: "the namespace is for the revision canary; ours is default"},
		"namespace's default":        {namespace: map[string]string{"istio.io/rev": "default"}},
		"pod's revision":             {pod: labelled("istio.io/rev", "canary"), revision: "canary"},
		"pod's other revision":       {pod: labelled("istio.io/rev", "canary"), why: "the pod is for the revision canary; ours is default"},
		"enabled goes before revision": {namespace: map[string]string{"istio-injection": "enabled", "istio.io/rev": "canary"}, revision: "canary",
			why: "which is for the revision default; ours is canary"},
		"pod asks for any, we are canary": {pod: labelled("sidecar.istio.io/inject", "true"), revision: "canary", why: "the pod is for the revision default; ours is canary"},
		"host network":                    {namespace: enabled, pod: corev1.Pod{Spec: corev1.PodSpec{HostNetwork: true}}, why: "the pod uses its node's network"},
		"Windows":                         {namespace: enabled, pod: corev1.Pod{Spec: corev1.PodSpec{OS: &corev1.PodOS{Name: "windows"}}}, why: "the pod is for Windows"},
		"Windows nodes":                   {namespace: enabled, pod: corev1.Pod{Spec: corev1.PodSpec{NodeSelector: map[string]string{"kubernetes.io/os": "windows"}}}, why: "the pod is for Windows"},
		"kube-system":                     {namespace: enabled, pod: corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system"}}, why: "the namespace kube-system is Kubernetes' own"},
		"injected": {namespace: enabled, pod: corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"sidecar.istio.io/status": "{}"}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "istio-proxy"}}}}, why: "the pod has a sidecar already"},
		"said to be injected": {namespace: enabled, pod: annotated("sidecar.istio.io/status", "{}")},
	} {
		t.Run(name, func(t *testing.T) {
			revision := tt.revision
			if revision == "" {
				revision = DefaultRevision
			}
			inject, why := Decide(tt.namespace, &tt.pod, revision)
			if inject != (tt.why == "") || !strings.Contains(why, tt.why) || inject && why != "" {
				t.Errorf("Decide: %v, %q, want the reason %q", inject, why, tt.why)
			}
		})
	}
}

func labelled(key, value string) corev1.Pod {
	return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{key: value}}}
}

func annotated(key, value string) corev1.Pod {
	return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{key: value}}}
}

// TestDecideAsSelected goes through every combination of labels: a pod gets a sidecar
// if and only if exactly one of the webhooks selects it, and none selects it twice.
func TestDecideAsSelected(t *testing.T) {
	values := func(key string, list ...string) (sets []map[string]string) {
		sets = []map[string]string{{}}
		for _, v := range list {
			sets = append(sets, map[string]string{key: v})
		}
		return sets
	}
	cross := func(a, b []map[string]string) (sets []map[string]string) {
		for _, x := range a {
			for _, y := range b {
				sets = append(sets, labels.Merge(x, y))
			}
		}
		return sets
	}
	revisions := values("istio.io/rev", "default", "canary", "other")
	namespaces := cross(values("istio-injection", "enabled", "disabled", "nonsense"), revisions)
	pods := cross(values("sidecar.istio.io/inject", "true", "false", "nonsense"), revisions)
	for _, revision := range []string{"default", "canary"} {
		o := options(t, `{"image": "i", "revision": "`+revision+`"}`)
		webhooks := WebhookConfiguration(o).Webhooks
		seen := 0
		for _, namespace := range namespaces {
			for _, pod := range pods {
				selected := 0
				for _, w := range webhooks {
					if selects(t, w, namespace, pod) {
						selected++
					}
				}
				inject, why := Decide(namespace, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: pod}}, revision)
				if selected > 1 || inject != (selected == 1) {
					t.Errorf("revision %s, namespace %v, pod %v: %d webhooks select it, Decide says %v, %s", revision, namespace, pod, selected, inject, why)
				}
				seen += selected
			}
		}
		if seen == 0 {
			t.Errorf("revision %s: no pod is selected", revision)
		}
	}
}

func selects(t *testing.T, w admissionregistrationv1.MutatingWebhook, namespace, pod map[string]string) bool {
	t.Helper()
	match := func(s *metav1.LabelSelector, set map[string]string) bool {
		selector, err := metav1.LabelSelectorAsSelector(s)
		if err != nil {
			t.Fatal(err)
		}
		return selector.Matches(labels.Set(set))
	}
	return match(w.NamespaceSelector, namespace) && match(w.ObjectSelector, pod)
}

func TestWebhookConfiguration(t *testing.T) {
	o := options(t, `{"image": "i", "rootNamespace": "mesh"}`)
	c := WebhookConfiguration(o)
	if c.Name != "chandler-sidecar-injector" || len(c.Webhooks) != 4 {
		t.Errorf("%s has %d webhooks, want chandler-sidecar-injector with 4", c.Name, len(c.Webhooks))
	}
	everything := []map[string]string{
		{"istio-injection": "enabled"}, {"istio.io/rev": "default"}, {},
	}
	for _, w := range c.Webhooks {
		if s := w.ClientConfig.Service; s.Namespace != "mesh" || s.Name != "chandler" || *s.Path != "/inject" || *s.Port != 443 {
			t.Errorf("%s calls %+v", w.Name, s)
		}
		if *w.FailurePolicy != "Fail" || *w.ReinvocationPolicy != "Never" || *w.SideEffects != "None" || *w.MatchPolicy != "Equivalent" {
			t.Errorf("%s has policies %s, %s, %s, %s", w.Name, *w.FailurePolicy, *w.ReinvocationPolicy, *w.SideEffects, *w.MatchPolicy)
		}
		for _, namespace := range everything {
			// the control plane's own, whatever is asked for it
			if selects(t, w, namespace, map[string]string{"app": "chandler", "sidecar.istio.io/inject": "false", "istio.io/rev": "default"}) {
				t.Errorf("%s selects the control plane in a namespace with %v", w.Name, namespace)
			}
			if selects(t, w, labels.Merge(namespace, map[string]string{"kubernetes.io/metadata.name": "kube-system"}), map[string]string{"sidecar.istio.io/inject": "true"}) {
				t.Errorf("%s selects pods of kube-system", w.Name)
			}
		}
	}
	o.Revision = "canary"
	if c := WebhookConfiguration(o); c.Name != "chandler-sidecar-injector-canary" || len(c.Webhooks) != 2 {
		t.Errorf("%s has %d webhooks, want chandler-sidecar-injector-canary with 2", c.Name, len(c.Webhooks))
	}
}
