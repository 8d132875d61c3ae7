// Package gateway gives each Gateway of the Gateway API proxies of its own, and
// tells its users what became of it.
//
// It has a pure core and a thin rim. [Desired] says which objects a Gateway is to
// have: a ServiceAccount, a Service and a Deployment, named NAME-chandler.
// [GatewayStatus], [RouteStatus] and [ClassStatus] say what is to stand in status.
// [Controller] reads and writes them at an API server.
//
// It configures no proxy: the pods' label [mesh.GatewayNameLabel] ties them to
// their Gateway, and package translate does the rest; what it could not translate
// comes here as problems. It touches nothing that is not the Gateway's own: an
// object of the same name that someone else made is left alone, and told of.
// A Gateway whose addresses are the host names of Services is deployed by its user,
// as in Istio; it gets status only.
//
// Invariant: status says what is so, not what was asked for, and is written only
// if it differs. Conditions and reasons are those of the Gateway API v1,
// https://gateway-api.sigs.k8s.io/reference/spec/. Start at [Desired].
package gateway

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/chandler-proxy/chandler/internal/inject"
	"github.com/chandler-proxy/chandler/internal/inject/agentpod"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

const (
	// ControllerName is what a GatewayClass says to be ours.
	ControllerName gatewayv1.GatewayController = "chandler.io/gateway-controller"
	// ClassName is the GatewayClass that is there without anyone making it.
	ClassName = "chandler"

	// ServiceTypeAnnotation of a Gateway is the type of its Service, as in Istio:
	// LoadBalancer, which is the default, NodePort or ClusterIP.
	ServiceTypeAnnotation = "networking.istio.io/service-type"

	classLabel   = "gateway.networking.k8s.io/gateway-class-name"
	managedLabel = "app.kubernetes.io/managed-by"
	manager      = "chandler-gateway-controller"
)

// Options are what the proxies of all Gateways have in common.
type Options struct {
	Image   string // of the proxies
	Proxy   string // engine or envoy
	Control string // address of the control plane, as in chandler.istio-system.svc:15012
	Domain  string // DNS domain of services, as in cluster.local

	Env map[string]string // more of the agents' environment
}

// OptionsOf are those of proxies that are as sidecars are by o, which must have its
// defaults.
func OptionsOf(o inject.Options) Options {
	return Options{Image: o.ImageOf(o.Proxy), Proxy: o.Proxy, Control: o.Control, Domain: o.Domain, Env: o.Env}
}

// A refusal is why a Gateway as a whole cannot be served.
type refusal struct {
	reason  gatewayv1.GatewayConditionReason
	message string
}

// refuse returns nil if the Gateway can be served, or some of its listeners can.
func refuse(g *gatewayv1.Gateway) *refusal {
	infrastructure, tls := g.Spec.Infrastructure, g.Spec.TLS
	_, byHand := hostnames(g)
	switch {
	case infrastructure != nil && infrastructure.ParametersRef != nil:
		return &refusal{gatewayv1.GatewayReasonInvalidParameters, "spec.infrastructure.parametersRef is not supported; remove it"}
	case tls != nil && tls.Backend != nil:
		return &refusal{gatewayv1.GatewayReasonInvalid, "spec.tls.backend is not supported; remove it"}
	case !byHand && len(validation.IsDNS1035Label(objectName(g))) > 0:
		return &refusal{gatewayv1.GatewayReasonInvalid, "the Gateway's Service cannot be named " + objectName(g) + "; give the Gateway a name of lower-case letters, digits and -, of at most 54"}
	case !validServiceType(serviceType(g)):
		return &refusal{gatewayv1.GatewayReasonInvalidParameters,
			fmt.Sprintf("annotation %s is %q; use LoadBalancer, NodePort or ClusterIP", ServiceTypeAnnotation, serviceType(g))}
	}
	return refuseAddresses(g)
}

func validServiceType(t corev1.ServiceType) bool {
	return slices.Contains([]corev1.ServiceType{corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort, corev1.ServiceTypeClusterIP}, t)
}

// refuseAddresses wants one IP address at most, or host names alone.
func refuseAddresses(g *gatewayv1.Gateway) *refusal {
	hosts, byHand := hostnames(g)
	ips := 0
	for _, a := range g.Spec.Addresses {
		switch addressType(a) {
		case gatewayv1.IPAddressType:
			ips++
		case gatewayv1.HostnameAddressType:
			if a.Value == "" {
				return &refusal{gatewayv1.GatewayReasonUnsupportedAddress, "a host name cannot be assigned; name a Service, or leave it out"}
			}
		default:
			return &refusal{gatewayv1.GatewayReasonUnsupportedAddress, "an address of type " + string(addressType(a)) + " is not supported; use IPAddress or Hostname"}
		}
	}
	if ips > 1 || byHand && len(hosts) != len(g.Spec.Addresses) {
		return &refusal{gatewayv1.GatewayReasonUnsupportedAddress, "these addresses do not go together; give one IPAddress, or the Hostnames of Services"}
	}
	return nil
}

func addressType(a gatewayv1.GatewaySpecAddress) gatewayv1.AddressType {
	if a.Type == nil {
		return gatewayv1.IPAddressType
	}
	return *a.Type
}

// hostnames are those of the Services that lead to a Gateway's proxies, if its
// user deploys them.
func hostnames(g *gatewayv1.Gateway) (hosts []string, byHand bool) {
	for _, a := range g.Spec.Addresses {
		if addressType(a) == gatewayv1.HostnameAddressType && a.Value != "" {
			hosts = append(hosts, strings.ToLower(a.Value))
		}
	}
	return hosts, len(hosts) > 0
}

// objectName is the name of what a Gateway gets: by GEP-1762, the Gateway's and the
// class's. All classes of ours deploy alike, so that it does not change with them.
func objectName(g *gatewayv1.Gateway) string { return g.Name + "-" + ClassName }

func serviceType(g *gatewayv1.Gateway) corev1.ServiceType {
	if t := g.Annotations[ServiceTypeAnnotation]; t != "" {
		return corev1.ServiceType(t)
	}
	return corev1.ServiceTypeLoadBalancer
}

// Desired are the objects that g is to have, in the order to make them. There are
// none if g cannot be served, or if its user deploys it.
func Desired(g *gatewayv1.Gateway, opts Options) []resource.Object {
	ports := servicePorts(g)
	if _, byHand := hostnames(g); byHand || refuse(g) != nil || len(ports) == 0 {
		return nil
	}
	return []resource.Object{serviceAccount(g), service(g, ports), deployment(g, opts)}
}

// objectMeta is that of each of g's objects.
func objectMeta(g *gatewayv1.Gateway) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: objectName(g), Namespace: g.Namespace,
		Labels:      labelsOf(g),
		Annotations: annotationsOf(g),
		OwnerReferences: []metav1.OwnerReference{{
			APIVersion: gatewayv1.GroupVersion.String(), Kind: "Gateway", Name: g.Name, UID: g.UID,
			Controller: new(true),
		}},
	}
}

// labelsOf are those that g asks for, under those that say whose an object is.
func labelsOf(g *gatewayv1.Gateway) map[string]string {
	labels := map[string]string{}
	if g.Spec.Infrastructure != nil {
		for k, v := range g.Spec.Infrastructure.Labels {
			labels[string(k)] = string(v)
		}
	}
	labels[mesh.GatewayNameLabel] = g.Name
	labels[classLabel] = string(g.Spec.GatewayClassName)
	labels[managedLabel] = manager
	return labels
}

func annotationsOf(g *gatewayv1.Gateway) map[string]string {
	if g.Spec.Infrastructure == nil || len(g.Spec.Infrastructure.Annotations) == 0 {
		return nil
	}
	annotations := map[string]string{}
	for k, v := range g.Spec.Infrastructure.Annotations {
		annotations[string(k)] = string(v)
	}
	return annotations
}

func serviceAccount(g *gatewayv1.Gateway) *corev1.ServiceAccount {
	return &corev1.ServiceAccount{
		TypeMeta:                     metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"},
		ObjectMeta:                   objectMeta(g),
		AutomountServiceAccountToken: new(false),
	}
}

func service(g *gatewayv1.Gateway, ports []corev1.ServicePort) *corev1.Service {
	s := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: objectMeta(g),
		Spec: corev1.ServiceSpec{
			Type: serviceType(g), Selector: selector(g), Ports: withHealth(ports),
			IPFamilyPolicy: new(corev1.IPFamilyPolicyPreferDualStack), // is of one family where the cluster is
		},
	}
	for _, a := range g.Spec.Addresses {
		if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
			s.Spec.LoadBalancerIP = a.Value
		} else {
			s.Spec.ClusterIP = a.Value
		}
	}
	return s
}

// statusPort is the name of the port at which load balancers ask for health, as in Istio.
const statusPort = "status-port"

// withHealth adds that port, unless a listener has it.
func withHealth(ports []corev1.ServicePort) []corev1.ServicePort {
	if slices.ContainsFunc(ports, func(p corev1.ServicePort) bool { return p.Port == agentpod.HealthPort }) {
		return ports
	}
	return append(ports, corev1.ServicePort{
		Name: statusPort, Port: agentpod.HealthPort, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(agentpod.HealthPort),
	})
}

// selector chooses the pods of g.
func selector(g *gatewayv1.Gateway) map[string]string {
	return map[string]string{mesh.GatewayNameLabel: g.Name}
}

// servicePorts has each port of a listener that can be served once.
func servicePorts(g *gatewayv1.Gateway) []corev1.ServicePort {
	protocols := map[int32]gatewayv1.ProtocolType{}
	for _, l := range g.Spec.Listeners {
		if _, there := protocols[int32(l.Port)]; !there && supported(l.Protocol) {
			protocols[int32(l.Port)] = l.Protocol
		}
	}
	numbers := slices.Sorted(maps.Keys(protocols))
	targets := targetPorts(numbers)
	var out []corev1.ServicePort
	for _, n := range numbers {
		out = append(out, corev1.ServicePort{
			Name: fmt.Sprintf("%s-%d", strings.ToLower(string(protocols[n])), n),
			Port: n, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(targets[n]),
		})
	}
	return out
}

func supported(p gatewayv1.ProtocolType) bool {
	return p == gatewayv1.HTTPProtocolType || p == gatewayv1.HTTPSProtocolType
}

// targetPorts is where the proxy listens for each of ports: at another one if
// that needs root, or is among those that agent and proxy use themselves. The
// control plane learns of it from the Service.
func targetPorts(ports []int32) map[int32]int32 {
	targets, taken := map[int32]int32{}, map[int32]bool{}
	for _, p := range ports {
		if p >= 1024 && (p < 15000 || p >= 15100) {
			targets[p], taken[p] = p, true
		}
	}
	for _, p := range ports {
		if targets[p] != 0 {
			continue
		}
		t := 20000 + p // below those that the kernel gives to clients
		if p >= 1024 {
			t = 7000 + p
		}
		for taken[t] {
			t++
		}
		targets[p], taken[t] = t, true
	}
	return targets
}

// deployment says nothing about replicas: that is an autoscaler's, or a user's.
func deployment(g *gatewayv1.Gateway, opts Options) *appsv1.Deployment {
	one, none := intstr.FromInt32(1), intstr.FromInt32(0)
	return &appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: objectMeta(g),
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: selector(g)},
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &one, MaxUnavailable: &none},
			},
			Template: podTemplate(g, opts),
		},
	}
}
