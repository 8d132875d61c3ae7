package kube

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	apinetworking "istio.io/api/networking/v1alpha3"
	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
)

// hold is how long what names a Secret waits for that Secret. Without it a
// plugin would be pulled without credentials, and a listener be refused.
const hold = time.Second

// secrets follows the Secrets that what is held names, each by itself, and no
// others. It belongs to one goroutine.
type secrets struct {
	*held
	api     *api
	running map[types.NamespacedName]*following
	wg      sync.WaitGroup // of followings
}

// want follows the wanted Secrets from now on until ctx ends.
func (s *secrets) want(ctx context.Context, wanted map[types.NamespacedName]bool) {
	for name := range wanted {
		if s.running[name] == nil {
			k := secretKind()
			s.running[name] = start(ctx, &s.wg, s.api, &set{held: s.held, kind: k, one: name}, k.versions[0])
		}
	}
	for name, f := range s.running {
		if !wanted[name] {
			f.stop()
			s.drop(f.set)
			delete(s.running, name)
		}
	}
}

// appendTo adds the Secrets that there are to a snapshot. It returns how long the
// snapshot should wait for others.
//
// That a Secret is not there is no problem yet: translate or mesh tells it with
// who needs it, or can do without.
func (s *secrets) appendTo(snapshot *source.Snapshot, now time.Time) (wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.running {
		f.set.appendTo(snapshot)
		if !f.set.settled() {
			wait = max(wait, f.since.Add(hold).Sub(now))
		}
	}
	return wait
}

// secretsOf are the names of the Secrets that objects need: what plugins are
// pulled with, each in its plugin's namespace, and what gateways serve TLS with.
// An Istio Gateway's are in the namespaces of the Pods that it selects. If it
// selects none they may be for a gateway that is not a Pod: they are sought in
// root and in the Gateway's own namespace.
func secretsOf(objects []resource.Object, root string) map[types.NamespacedName]bool {
	n := naming{objects: objects, root: root, names: map[types.NamespacedName]bool{}, selected: map[string][]string{}}
	for _, o := range objects {
		switch o := o.(type) {
		case *extensionsv1alpha1.WasmPlugin:
			n.add(o.Namespace, o.Spec.ImagePullSecret)
		case *extensionsv1alpha1.TrafficExtension:
			n.add(o.Namespace, o.Spec.GetWasm().GetImagePullSecret())
		case *networkingv1.Gateway:
			n.gateway(o)
		case *gatewayv1.Gateway:
			n.kubernetesGateway(o)
		}
	}
	return n.names
}

// naming finds names of Secrets.
type naming struct {
	objects  []resource.Object
	root     string
	names    map[types.NamespacedName]bool
	selected map[string][]string // namespaces of Pods, by selector
}

// add adds the Secret that name, [kubernetes://][NAMESPACE/]NAME, means in
// namespace. One of another namespace is never read.
func (n *naming) add(namespace, name string) {
	name = strings.TrimPrefix(name, "kubernetes://")
	if other, rest, ok := strings.Cut(name, "/"); ok {
		if other != namespace {
			return
		}
		name = rest
	}
	if name != "" && len(validation.NameIsDNSSubdomain(name, false)) == 0 {
		n.names[types.NamespacedName{Namespace: namespace, Name: name}] = true
	}
}

func (n *naming) gateway(o *networkingv1.Gateway) {
	var names []string
	for _, server := range o.Spec.Servers {
		names = append(names, credentials(server.GetTls())...)
	}
	if len(names) == 0 {
		return
	}
	namespaces := n.namespaces(o.Spec.Selector)
	if len(namespaces) == 0 {
		namespaces = []string{n.root, o.Namespace}
	}
	for _, namespace := range namespaces {
		for _, name := range names {
			n.add(namespace, name)
		}
	}
}

// credentials are the Secrets that the TLS settings of a server may need: its
// certificates and, if clients have to show theirs, the authorities, which stand
// in a Secret of their own or beside the certificate.
func credentials(tls *apinetworking.ServerTLSSettings) []string {
	names := slices.Clone(tls.GetCredentialNames())
	if len(names) == 0 {
		names = append(names, tls.GetCredentialName())
	}
	switch tls.GetMode() {
	case apinetworking.ServerTLSSettings_MUTUAL, apinetworking.ServerTLSSettings_OPTIONAL_MUTUAL:
		authorities := cmp.Or(tls.GetCaCertCredentialName(), tls.GetCredentialName())
		if authorities != "" {
			names = append(names, authorities, authorities+"-cacert")
		}
	}
	return slices.DeleteFunc(names, func(name string) bool { return name == "" })
}

// namespaces are those of the Pods that selector chooses.
func (n *naming) namespaces(selector map[string]string) []string {
	key := labels.FormatLabels(selector)
	if known, ok := n.selected[key]; ok {
		return known
	}
	chosen, found := labels.SelectorFromSet(selector), map[string]bool{}
	for _, o := range n.objects {
		if pod, isPod := o.(*corev1.Pod); isPod && chosen.Matches(labels.Set(pod.Labels)) {
			found[pod.Namespace] = true
		}
	}
	n.selected[key] = slices.Collect(maps.Keys(found))
	return n.selected[key]
}

func (n *naming) kubernetesGateway(o *gatewayv1.Gateway) {
	for _, listener := range o.Spec.Listeners {
		if listener.TLS == nil {
			continue
		}
		for _, ref := range listener.TLS.CertificateRefs {
			isSecret := (ref.Group == nil || *ref.Group == "") && (ref.Kind == nil || *ref.Kind == "Secret")
			if isSecret && (ref.Namespace == nil || string(*ref.Namespace) == o.Namespace) {
				n.add(o.Namespace, string(ref.Name))
			}
		}
	}
}
