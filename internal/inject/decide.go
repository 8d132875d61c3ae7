package inject

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// The labels that decide, under Istio's names.
const (
	namespaceLabel = "istio-injection"         // of a namespace: enabled or disabled
	revisionLabel  = "istio.io/rev"            // of a namespace, or a pod in one without either
	podLabel       = "sidecar.istio.io/inject" // of a pod: true or false; older users write it as an annotation
)

// statusAnnotation of a pod tells what was injected.
const statusAnnotation = "sidecar.istio.io/status"

// ignoredNamespaces are Kubernetes' own.
func ignoredNamespaces() []string {
	return []string{"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}
}

// Decide says whether a pod in a namespace with these labels gets a sidecar of our
// revision, and if not, why. A namespace that says anything decides, except that its
// pods may decline; where it says nothing, pods may ask. It agrees with
// [WebhookConfiguration]: what that does not select, Decide does not inject.
func Decide(namespace map[string]string, pod *corev1.Pod, revision string) (inject bool, why string) {
	if why := unselected(namespace, pod, revision); why != "" {
		return false, why
	}
	if why := left(pod, pod.Namespace); why != "" {
		return false, why
	}
	return true, ""
}

// unselected says why an API server would not ask about a pod, empty if it would.
func unselected(namespace map[string]string, pod *corev1.Pod, revision string) string {
	wants := pod.Labels[podLabel]
	if wants == "false" {
		return "the pod has the label " + podLabel + "=false"
	}
	if enabled, ok := namespace[namespaceLabel]; ok {
		if enabled != "enabled" {
			return fmt.Sprintf("the namespace has the label %s=%s", namespaceLabel, enabled)
		}
		if revision != DefaultRevision {
			return fmt.Sprintf("the namespace has the label %s, which is for the revision %s; ours is %s", namespaceLabel, DefaultRevision, revision)
		}
		return ""
	}
	if of, ok := namespace[revisionLabel]; ok {
		return otherRevision("namespace", of, revision)
	}
	if of, ok := pod.Labels[revisionLabel]; ok {
		return otherRevision("pod", of, revision)
	}
	if wants == "true" {
		return otherRevision("pod", DefaultRevision, revision)
	}
	return fmt.Sprintf("neither the namespace nor the pod asks for it: label the namespace %s=enabled, or the pod %s=true", namespaceLabel, podLabel)
}

func otherRevision(who, theirs, ours string) string {
	if theirs == ours {
		return ""
	}
	return fmt.Sprintf("the %s is for the revision %s; ours is %s", who, theirs, ours)
}

// left says why a pod in a namespace is left alone, empty if it is not; whatever
// labels of the namespace say.
func left(pod *corev1.Pod, namespace string) string {
	wants, ok := pod.Labels[podLabel]
	if !ok {
		wants = pod.Annotations[podLabel]
	}
	switch {
	case wants == "false":
		return "the pod says " + podLabel + "=false"
	case slices.Contains(ignoredNamespaces(), namespace):
		return "the namespace " + namespace + " is Kubernetes' own"
	case pod.Spec.HostNetwork:
		return "the pod uses its node's network"
	case isWindows(pod):
		return "the pod is for Windows"
	case injected(pod):
		return "the pod has a sidecar already"
	}
	return ""
}

func isWindows(pod *corev1.Pod) bool {
	if pod.Spec.OS != nil {
		return pod.Spec.OS.Name == corev1.Windows
	}
	return pod.Spec.NodeSelector[corev1.LabelOSStable] == "windows"
}

// injected says whether a pod has a sidecar, ours or Istio's.
func injected(pod *corev1.Pod) bool {
	_, told := pod.Annotations[statusAnnotation]
	named := func(c corev1.Container) bool { return c.Name == proxyName }
	return told && (slices.ContainsFunc(pod.Spec.InitContainers, named) || slices.ContainsFunc(pod.Spec.Containers, named))
}
