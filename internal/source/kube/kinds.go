package kube

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/chandler-proxy/chandler/internal/resource"
)

// A kind is one that is read: all of package resource's.
type kind struct {
	schema.GroupResource
	name     string   // as in "kind: Pod"
	versions []string // that can be read, the best first

	// For a kind of Kubernetes itself, which every API server has:
	list func() runtime.Object // an empty list
	trim func(metav1.Object)   // drops what nobody here reads, beyond what strip does
}

// builtIn says that k is a kind of Kubernetes itself and not defined by a CRD.
func (k kind) builtIn() bool { return k.list != nil }

func (k kind) gvk(version string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: k.Group, Version: version, Kind: k.name}
}

// The kinds, but for Secret, of which single objects are read only. Nodes are
// not among them: nothing that proxies are told depends on one.
func kinds() []kind {
	istio := []string{"v1", "v1beta1", "v1alpha3"}
	gateway := []string{"v1", "v1beta1"}
	custom := func(name, resource, group string, versions ...string) kind {
		return kind{GroupResource: schema.GroupResource{Group: group, Resource: resource}, name: name, versions: versions}
	}
	return []kind{
		custom("WasmPlugin", "wasmplugins", "extensions.istio.io", "v1alpha1"),
		custom("TrafficExtension", "trafficextensions", "extensions.istio.io", "v1alpha1"),
		custom("EnvoyFilter", "envoyfilters", "networking.istio.io", "v1alpha3"),
		custom("Gateway", "gateways", "networking.istio.io", istio...),
		custom("VirtualService", "virtualservices", "networking.istio.io", istio...),
		custom("ServiceEntry", "serviceentries", "networking.istio.io", istio...),
		custom("DestinationRule", "destinationrules", "networking.istio.io", istio...),
		custom("GatewayClass", "gatewayclasses", "gateway.networking.k8s.io", gateway...),
		custom("Gateway", "gateways", "gateway.networking.k8s.io", gateway...),
		custom("HTTPRoute", "httproutes", "gateway.networking.k8s.io", gateway...),
		{
			GroupResource: corev1.Resource("namespaces"), name: "Namespace", versions: []string{"v1"},
			list: func() runtime.Object { return new(corev1.NamespaceList) }, trim: trimNamespace,
		},
		{
			GroupResource: corev1.Resource("pods"), name: "Pod", versions: []string{"v1"},
			list: func() runtime.Object { return new(corev1.PodList) }, trim: trimPod,
		},
		{
			GroupResource: corev1.Resource("services"), name: "Service", versions: []string{"v1"},
			list: func() runtime.Object { return new(corev1.ServiceList) }, trim: func(metav1.Object) {},
		},
		{
			GroupResource: discoveryv1.Resource("endpointslices"), name: "EndpointSlice", versions: []string{"v1"},
			list: func() runtime.Object { return new(discoveryv1.EndpointSliceList) }, trim: trimEndpointSlice,
		},
	}
}

// secretKind is the kind Secret.
func secretKind() kind {
	return kind{
		GroupResource: corev1.Resource("secrets"), name: "Secret", versions: []string{"v1"},
		list: func() runtime.Object { return new(corev1.SecretList) }, trim: trimSecret,
	}
}

// strip drops what the API server and kubectl keep for themselves. It is most
// of a small resource.
func strip(o metav1.Object) {
	o.SetManagedFields(nil)
	annotations := o.GetAnnotations()
	if _, applied := annotations[corev1.LastAppliedConfigAnnotation]; applied {
		delete(annotations, corev1.LastAppliedConfigAnnotation)
		if len(annotations) == 0 {
			annotations = nil
		}
		o.SetAnnotations(annotations)
	}
}

func trimNamespace(o metav1.Object) {
	ns := o.(*corev1.Namespace)
	*ns = corev1.Namespace{ObjectMeta: bare(ns.ObjectMeta)}
}

// bare is what tells an object from others, and its labels.
func bare(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion,
		CreationTimestamp: m.CreationTimestamp, DeletionTimestamp: m.DeletionTimestamp, Labels: m.Labels,
	}
}

// trimPod leaves of a Pod what mesh reads: labels, addresses, whether it is
// ready, and the ports that have names.
func trimPod(o metav1.Object) {
	in := o.(*corev1.Pod)
	out := corev1.Pod{ObjectMeta: bare(in.ObjectMeta), Status: corev1.PodStatus{
		Phase: in.Status.Phase, PodIP: in.Status.PodIP, PodIPs: in.Status.PodIPs,
	}}
	for _, c := range in.Status.Conditions {
		if c.Type == corev1.PodReady {
			out.Status.Conditions = []corev1.PodCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	for _, c := range in.Spec.Containers {
		var ports []corev1.ContainerPort
		for _, p := range c.Ports {
			if p.Name != "" {
				ports = append(ports, corev1.ContainerPort{Name: p.Name, ContainerPort: p.ContainerPort, Protocol: p.Protocol})
			}
		}
		if ports != nil {
			out.Spec.Containers = append(out.Spec.Containers, corev1.Container{Name: c.Name, Ports: ports})
		}
	}
	*in = out
}

// ended says that a Pod is over. As in Istio it is not there then: its address
// may be another one's by now. One that is being deleted still runs, as do those
// that have no address yet or share that of their node; mesh knows what to do
// with them.
func ended(o resource.Object) bool {
	pod, isPod := o.(*corev1.Pod)
	return isPod && (pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed)
}

// trimEndpointSlice drops what changes whenever a Pod does, such as the time of
// the last change, and hints that nobody follows.
func trimEndpointSlice(o metav1.Object) {
	slice := o.(*discoveryv1.EndpointSlice)
	slice.ObjectMeta = bare(slice.ObjectMeta)
	for i := range slice.Endpoints {
		e := &slice.Endpoints[i]
		e.Hints, e.DeprecatedTopology = nil, nil
		if ref := e.TargetRef; ref != nil {
			e.TargetRef = &corev1.ObjectReference{Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name}
		}
	}
}

func trimSecret(o metav1.Object) {
	secret := o.(*corev1.Secret)
	*secret = corev1.Secret{ObjectMeta: bare(secret.ObjectMeta), Type: secret.Type, Data: secret.Data}
}
