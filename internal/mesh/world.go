// Package mesh is one immutable snapshot of everything that users and the
// platform have said: services with their endpoints, workloads, gateways,
// routes, extensions, secrets, indexed so that translate can ask.
//
// It refuses, as problems, what contradicts itself or cannot be honoured, and
// leaves that out; it builds no listeners, routes or clusters. The one Envoy
// message it makes is an extension's ECDS resource, because that depends on the
// extension alone and is shared by every proxy. A World never changes: a change
// to a resource makes a new one, equal input makes an equal one, and the order
// of the input does not matter. All of it may be used concurrently. Meaning and
// tie-breaks follow Istio's API (istio.io/api) and the Gateway API.
//
// Start at [New]; see [World.View] for what a namespace sees.
package mesh

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"

	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/chandler-proxy/chandler/internal/resource"
)

// Options are the settings of a mesh that are not resources.
type Options struct {
	RootNamespace string // plugins there apply everywhere; default istio-system
	Domain        string // default cluster.local
	Cluster       string // default Kubernetes

	// TrustedCA is the file, on the proxy's machine, with the certificate
	// authorities that TLS servers outside are verified by when a DestinationRule
	// names none; default /etc/ssl/certs/ca-certificates.crt.
	TrustedCA string
}

func (o Options) withDefaults() Options {
	o.RootNamespace = cmp.Or(o.RootNamespace, "istio-system")
	o.Domain = cmp.Or(o.Domain, "cluster.local")
	o.Cluster = cmp.Or(o.Cluster, "Kubernetes")
	o.TrustedCA = cmp.Or(o.TrustedCA, "/etc/ssl/certs/ca-certificates.crt")
	return o
}

// A World is one immutable snapshot of all resources, indexed. What its methods
// return is shared and not to be changed.
type World struct {
	opts Options

	namespaces map[string]map[string]string // labels by name
	secrets    map[types.NamespacedName]*corev1.Secret
	pods       map[types.NamespacedName]*Pod
	podsByIP   map[string]*Pod
	podsBy     map[podLabel][]*Pod // every Pod once for each of its labels, and once for none

	services           []*Service // Older first
	servicesOf         map[string][]*Service
	rules              map[string][]*DestinationRule // by namespace, most specific host first
	virtualServices    map[string][]*networkingv1.VirtualService
	gateways           []*networkingv1.Gateway
	kubernetesGateways map[types.NamespacedName]*gatewayv1.Gateway
	httpRoutes         map[types.NamespacedName][]*gatewayv1.HTTPRoute
	envoyFilters       []*networkingv1alpha3.EnvoyFilter
	extensions         map[string][]*Extension // by namespace, in order

	scoped  bool // some namespace sees other services or rules than others do
	derived sync.Map
}

type podLabel struct{ namespace, key, value string }

// New indexes objects. Objects that contradict each other, or that cannot be
// honoured whatever the proxy, are told as problems.
func New(objects []resource.Object, opts Options) (*World, []resource.Problem) {
	objects = slices.Clone(objects)
	slices.SortStableFunc(objects, Older)
	w := &World{
		opts:               opts.withDefaults(),
		namespaces:         map[string]map[string]string{},
		secrets:            map[types.NamespacedName]*corev1.Secret{},
		pods:               map[types.NamespacedName]*Pod{},
		podsByIP:           map[string]*Pod{},
		podsBy:             map[podLabel][]*Pod{},
		servicesOf:         map[string][]*Service{},
		rules:              map[string][]*DestinationRule{},
		virtualServices:    map[string][]*networkingv1.VirtualService{},
		kubernetesGateways: map[types.NamespacedName]*gatewayv1.Gateway{},
		httpRoutes:         map[types.NamespacedName][]*gatewayv1.HTTPRoute{},
		extensions:         map[string][]*Extension{},
	}
	b := indexing{World: w, endpointSlices: map[types.NamespacedName][]*discoveryv1.EndpointSlice{}}
	for _, o := range objects {
		b.add(o)
	}
	b.indexServices()
	b.indexRules()
	b.indexRoutes()
	b.indexExtensions()
	w.scoped = w.differsByNamespace()
	return w, b.problems
}

// indexing is a World in the making, with what is needed only until it is made.
type indexing struct {
	*World
	problems       []resource.Problem
	endpointSlices map[types.NamespacedName][]*discoveryv1.EndpointSlice // by Service
	coreServices   []*corev1.Service
	entries        []*networkingv1.ServiceEntry
	destinations   []*networkingv1.DestinationRule
	virtuals       []*networkingv1.VirtualService
	routes         []*gatewayv1.HTTPRoute
	plugins        []resource.Object
}

func (b *indexing) refuse(o resource.Object, field, message, mend string) {
	b.problems = append(b.problems, Refuse(o, field, message, mend))
}

func (b *indexing) add(o resource.Object) {
	name := types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
	switch o := o.(type) {
	case *corev1.Namespace:
		b.namespaces[o.Name] = o.Labels
	case *corev1.Secret:
		b.secrets[name] = o
	case *corev1.Pod:
		b.addPod(newPod(o))
	case *corev1.Service:
		b.coreServices = append(b.coreServices, o)
	case *discoveryv1.EndpointSlice:
		service := types.NamespacedName{Namespace: o.Namespace, Name: o.Labels[discoveryv1.LabelServiceName]}
		b.endpointSlices[service] = append(b.endpointSlices[service], o)
	case *networkingv1.ServiceEntry:
		b.entries = append(b.entries, o)
	case *networkingv1.DestinationRule:
		b.destinations = append(b.destinations, o)
	case *networkingv1.Gateway:
		b.gateways = append(b.gateways, o)
	case *networkingv1.VirtualService:
		b.virtuals = append(b.virtuals, o)
	case *networkingv1alpha3.EnvoyFilter:
		b.envoyFilters = append(b.envoyFilters, o)
	case *gatewayv1.Gateway:
		b.kubernetesGateways[name] = o
	case *gatewayv1.HTTPRoute:
		b.routes = append(b.routes, o)
	case *gatewayv1.GatewayClass: // its name, which Gateways hold, is all that counts
	case *extensionsv1alpha1.WasmPlugin, *extensionsv1alpha1.TrafficExtension:
		b.plugins = append(b.plugins, o)
	default:
		b.refuse(o, "", fmt.Sprintf("a resource of type %T means nothing here", o), "remove it")
	}
}

func (b *indexing) addPod(p *Pod) {
	b.pods[p.Name] = p
	for _, ip := range p.IPs {
		b.podsByIP[ip] = p
	}
	b.podsBy[podLabel{namespace: p.Name.Namespace}] = append(b.podsBy[podLabel{namespace: p.Name.Namespace}], p)
	for k, v := range p.Labels {
		l := podLabel{p.Name.Namespace, k, v}
		b.podsBy[l] = append(b.podsBy[l], p)
	}
}

// selectPods are the Pods of namespace with all of labels. It looks only at
// those that have the rarest of them.
func (w *World) selectPods(namespace string, labels map[string]string) []*Pod {
	candidates := w.podsBy[podLabel{namespace: namespace}]
	for k, v := range labels {
		if with := w.podsBy[podLabel{namespace, k, v}]; len(with) < len(candidates) {
			candidates = with
		}
	}
	var out []*Pod
	for _, p := range candidates {
		if SubsetOf(labels, p.Labels) {
			out = append(out, p)
		}
	}
	return out
}

// SubsetOf says whether labels has every pair of selector.
func SubsetOf(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func (b *indexing) indexServices() {
	for _, o := range b.coreServices {
		if o.Spec.Type == corev1.ServiceTypeExternalName {
			b.refuse(o, "spec.type", "ExternalName is not supported", "write a ServiceEntry with resolution: DNS")
			continue
		}
		s := b.newService(o)
		if es := b.endpointSlices[s.Name]; len(es) > 0 {
			b.fromSlices(s, es)
		} else if len(s.Selector) > 0 {
			s.fromPods(b.selectPods(s.Name.Namespace, s.Selector))
		}
		b.services = append(b.services, s)
		b.servicesOf[s.Name.Namespace] = append(b.servicesOf[s.Name.Namespace], s)
	}
	for _, o := range b.entries {
		entries, problems := b.newEntries(o)
		b.problems = append(b.problems, problems...)
		b.services = append(b.services, entries...)
	}
	type key struct{ namespace, host string }
	seen := map[key]bool{}
	b.services = slices.DeleteFunc(b.services, func(s *Service) bool {
		k := key{s.Name.Namespace, s.Host}
		if seen[k] {
			b.refuse(s.Object, "spec.hosts", s.Host+" belongs to an older resource of this namespace", "put all its ports into one")
		}
		defer func() { seen[k] = true }()
		return seen[k]
	})
}

// A DestinationRule is one with its host resolved.
type DestinationRule struct {
	*networkingv1.DestinationRule
	Host string
}

func (b *indexing) indexRules() {
	for _, o := range b.destinations {
		if o.Spec.WorkloadSelector != nil {
			b.refuse(o, "spec.workloadSelector", "is not supported", "remove it; a rule holds for every client that sees it")
			continue
		}
		host := b.FQDN(o.Spec.Host, o.Namespace)
		of := b.rules[o.Namespace]
		if slices.ContainsFunc(of, func(r *DestinationRule) bool { return r.Host == host }) {
			b.refuse(o, "spec.host", "an older DestinationRule of this namespace is for the same host", "join the two")
			continue
		}
		b.rules[o.Namespace] = append(of, &DestinationRule{o, host})
	}
	for _, of := range b.rules {
		slices.SortStableFunc(of, func(a, b *DestinationRule) int { return CompareHosts(a.Host, b.Host) })
	}
}

func (b *indexing) indexRoutes() {
	known := map[string]bool{"mesh": true}
	for _, g := range b.gateways {
		known[g.Namespace+"/"+g.Name] = true
	}
	for _, o := range b.virtuals {
		for _, gateway := range VirtualServiceGateways(o) {
			if !known[gateway] {
				b.refuse(o, "spec.gateways", "there is no Gateway "+gateway, "create it, or correct the name: NAMESPACE/NAME")
			}
			b.virtualServices[gateway] = append(b.virtualServices[gateway], o)
		}
	}
	for _, o := range b.routes {
		b.addHTTPRoute(o)
	}
}

// VirtualServiceGateways are the gateways that o is bound to: "mesh" or
// NAMESPACE/NAME.
func VirtualServiceGateways(o *networkingv1.VirtualService) []string {
	if len(o.Spec.Gateways) == 0 {
		return []string{"mesh"}
	}
	var out []string
	for _, g := range o.Spec.Gateways {
		if g = GatewayName(g, o.Namespace); !slices.Contains(out, g) {
			out = append(out, g)
		}
	}
	return out
}

// GatewayName is how a resource of namespace names a gateway, made full.
func GatewayName(gateway, namespace string) string {
	if gateway == "mesh" || strings.Contains(gateway, "/") {
		return gateway
	}
	return namespace + "/" + gateway
}

func (b *indexing) addHTTPRoute(o *gatewayv1.HTTPRoute) {
	var added []types.NamespacedName
	for i, ref := range o.Spec.ParentRefs {
		field := fmt.Sprintf("spec.parentRefs[%d]", i)
		if ref.Kind != nil && *ref.Kind != "Gateway" || ref.Group != nil && *ref.Group != gatewayv1.GroupName {
			b.refuse(o, field, "only a Gateway of "+gatewayv1.GroupName+" can be a parent", "name a Gateway")
			continue
		}
		name := types.NamespacedName{Namespace: o.Namespace, Name: string(ref.Name)}
		if ref.Namespace != nil {
			name.Namespace = string(*ref.Namespace)
		}
		if b.kubernetesGateways[name] == nil {
			b.refuse(o, field, "there is no Gateway "+name.String(), "create it, or correct the reference")
			continue
		}
		if !slices.Contains(added, name) {
			added = append(added, name)
			b.httpRoutes[name] = append(b.httpRoutes[name], o)
		}
	}
}

// Options are the settings that the World was made with, defaults filled in.
func (w *World) Options() Options { return w.opts }

// NamespaceLabels are the labels of a Namespace.
func (w *World) NamespaceLabels(namespace string) map[string]string { return w.namespaces[namespace] }

// PodLabels are the labels of the Pod of this name, and whether there is one.
func (w *World) PodLabels(namespace, name string) (labels map[string]string, found bool) {
	pod := w.pods[types.NamespacedName{Namespace: namespace, Name: name}]
	if pod == nil {
		return nil, false
	}
	return pod.Labels, true
}

// Secret returns the Secret of this name, or nil.
func (w *World) Secret(namespace, name string) *corev1.Secret {
	return w.secrets[types.NamespacedName{Namespace: namespace, Name: name}]
}

// Gateways are all Istio Gateways whose selector chooses p, Older first. A
// Gateway chooses proxies of any namespace.
func (w *World) Gateways(p Proxy) []*networkingv1.Gateway {
	var out []*networkingv1.Gateway
	for _, g := range w.gateways {
		if SubsetOf(g.Spec.Selector, p.Labels) {
			out = append(out, g)
		}
	}
	return out
}

// KubernetesGateway is the Gateway API Gateway that p serves: the one of its
// namespace that its label [GatewayNameLabel] names. It is nil if there is none.
func (w *World) KubernetesGateway(p Proxy) *gatewayv1.Gateway {
	return w.kubernetesGateways[types.NamespacedName{Namespace: p.Namespace, Name: p.Labels[GatewayNameLabel]}]
}

// HTTPRoutes are the HTTPRoutes that have g among their parents, Older first.
func (w *World) HTTPRoutes(g *gatewayv1.Gateway) []*gatewayv1.HTTPRoute {
	return w.httpRoutes[types.NamespacedName{Namespace: g.Namespace, Name: g.Name}]
}

// VirtualServices are those bound to gateway ("mesh" or NAMESPACE/NAME) that a
// proxy in namespace sees, Older first.
func (w *World) VirtualServices(gateway, namespace string) []*networkingv1.VirtualService {
	var out []*networkingv1.VirtualService
	for _, vs := range w.virtualServices[gateway] {
		if visible(vs.Spec.ExportTo, vs.Namespace, namespace) {
			out = append(out, vs)
		}
	}
	return out
}

// EnvoyFilters are all EnvoyFilters, Older first.
func (w *World) EnvoyFilters() []*networkingv1alpha3.EnvoyFilter { return w.envoyFilters }

// ServicesOf are the Services whose workload p is: those of its namespace whose
// selector chooses its labels, or, if it is told apart by address, see
// [Proxy.ByAddress], one of whose endpoints it is. Older first.
func (w *World) ServicesOf(p Proxy) []*Service {
	var out []*Service
	for _, s := range w.servicesOf[p.Namespace] {
		if len(s.Selector) > 0 && SubsetOf(s.Selector, p.Labels) || p.ByAddress() && s.has(p) {
			out = append(out, s)
		}
	}
	return out
}

// ByAddress says that the addresses of p matter to its configuration. Behind
// redirection they do not if it has labels, so that the instances of one
// workload are alike; a Service without a selector, whose endpoints are written
// by hand, does not find such a workload.
func (p Proxy) ByAddress() bool {
	return p.Role == Sidecar && (!p.Redirected || len(p.Labels) == 0)
}

func (s *Service) has(p Proxy) bool {
	for _, es := range s.endpoints {
		for _, e := range es {
			for _, ip := range p.IPs {
				if e.Address == ip.String() {
					return true
				}
			}
		}
	}
	return false
}

// TargetPort is the port of p's workload that port leads to. A port by name is
// looked up in the Pods that may be p, see podsOf.
func (w *World) TargetPort(p Proxy, port Port) (uint32, bool) {
	if number, ok := port.TargetPort(nil); ok {
		return number, true
	}
	for _, pod := range w.podsOf(p) {
		if number, ok := port.TargetPort(pod); ok {
			return number, true
		}
	}
	return 0, false
}

// podsOf are the Pods that may be p, the likeliest first: those with all of its
// labels, or, if there are none, those all of whose labels it has, the more the
// better; those at its addresses; the one of its name. Labels go before what
// tells p apart from its likes, because proxies with the same labels share their
// configuration, which must outlive any one of them.
func (w *World) podsOf(p Proxy) []*Pod {
	var pods []*Pod
	if len(p.Labels) > 0 {
		if pods = w.selectPods(p.Namespace, p.Labels); len(pods) == 0 {
			pods = w.podsWithin(p.Namespace, p.Labels)
		}
	}
	for _, ip := range p.IPs {
		if pod := w.podsByIP[ip.String()]; pod != nil {
			pods = append(pods, pod)
		}
	}
	if pod := w.pods[types.NamespacedName{Namespace: p.Namespace, Name: p.Name}]; pod != nil {
		pods = append(pods, pod)
	}
	return pods
}

// podsWithin are the Pods of namespace that have labels, all of which are among
// these; those with the most first.
func (w *World) podsWithin(namespace string, labels map[string]string) []*Pod {
	var out []*Pod
	for k, v := range labels {
		for _, pod := range w.podsBy[podLabel{namespace, k, v}] {
			if SubsetOf(pod.Labels, labels) {
				out = append(out, pod)
			}
		}
	}
	slices.SortFunc(out, func(a, b *Pod) int {
		return cmp.Or(cmp.Compare(len(b.Labels), len(a.Labels)), cmp.Compare(a.Name.Name, b.Name.Name))
	})
	return out
}

// Derive returns what of makes, made once for each key and World. It is for
// what depends on the World alone and that many proxies share. Keys should have
// a type of their caller's own.
func Derive[T any](w *World, key any, of func() T) T {
	once, ok := w.derived.Load(key)
	if !ok {
		once, _ = w.derived.LoadOrStore(key, sync.OnceValue(of))
	}
	return once.(func() T)()
}
