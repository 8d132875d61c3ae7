package resource

import (
	"slices"
	"strings"

	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// A kind is one that Chandler knows, whatever the version it is written in:
// all served versions have the same schema and become the same Go type.
type kind struct {
	group    string
	name     string
	versions []string // served; objects get the first
	crd      string   // name of the definition; empty for a kind of Kubernetes itself
	cluster  bool     // not in a namespace
	validate validation.ValidateNameFunc
	new      func() Object
	// complete, for a kind of Kubernetes itself, fills in what its API server would.
	complete func(Object)
	// check finds what a schema cannot say. It may be nil.
	check func(Object) field.ErrorList
}

// apiVersion is the one that objects of this kind get.
func (k kind) apiVersion() string { return joinVersion(k.group, k.versions[0]) }

func joinVersion(group, version string) string {
	if group == "" {
		return version
	}
	return group + "/" + version
}

func splitVersion(apiVersion string) (group, version string) {
	if group, version, ok := strings.Cut(apiVersion, "/"); ok {
		return group, version
	}
	return "", apiVersion
}

// kinds are all of them. A user may also write a List of them.
func kinds() []kind {
	subdomain := validation.NameIsDNSSubdomain
	istio := []string{"v1", "v1beta1", "v1alpha3"}
	return []kind{
		{
			group: "extensions.istio.io", name: "WasmPlugin", versions: []string{"v1alpha1"},
			crd: "wasmplugins.extensions.istio.io", validate: subdomain,
			new: func() Object { return new(extensionsv1alpha1.WasmPlugin) }, check: checkWasmPlugin,
		},
		{
			group: "extensions.istio.io", name: "TrafficExtension", versions: []string{"v1alpha1"},
			crd: "trafficextensions.extensions.istio.io", validate: subdomain,
			new: func() Object { return new(extensionsv1alpha1.TrafficExtension) }, check: checkTrafficExtension,
		},
		{
			group: "networking.istio.io", name: "EnvoyFilter", versions: []string{"v1alpha3"},
			crd: "envoyfilters.networking.istio.io", validate: subdomain,
			new: func() Object { return new(networkingv1alpha3.EnvoyFilter) }, check: checkEnvoyFilter,
		},
		{
			group: "networking.istio.io", name: "Gateway", versions: istio,
			crd: "gateways.networking.istio.io", validate: subdomain,
			new: func() Object { return new(networkingv1.Gateway) }, check: checkGateway,
		},
		{
			group: "networking.istio.io", name: "VirtualService", versions: istio,
			crd: "virtualservices.networking.istio.io", validate: subdomain,
			new: func() Object { return new(networkingv1.VirtualService) }, check: checkVirtualService,
		},
		{
			group: "networking.istio.io", name: "ServiceEntry", versions: istio,
			crd: "serviceentries.networking.istio.io", validate: subdomain,
			new: func() Object { return new(networkingv1.ServiceEntry) }, check: checkServiceEntry,
		},
		{
			group: "networking.istio.io", name: "DestinationRule", versions: istio,
			crd: "destinationrules.networking.istio.io", validate: subdomain,
			new: func() Object { return new(networkingv1.DestinationRule) }, check: checkDestinationRule,
		},
		{
			group: "gateway.networking.k8s.io", name: "GatewayClass", versions: []string{"v1", "v1beta1"},
			crd: "gatewayclasses.gateway.networking.k8s.io", cluster: true, validate: subdomain,
			new: func() Object { return new(gatewayv1.GatewayClass) },
		},
		{
			group: "gateway.networking.k8s.io", name: "Gateway", versions: []string{"v1", "v1beta1"},
			crd: "gateways.gateway.networking.k8s.io", validate: subdomain,
			new: func() Object { return new(gatewayv1.Gateway) },
		},
		{
			group: "gateway.networking.k8s.io", name: "HTTPRoute", versions: []string{"v1", "v1beta1"},
			crd: "httproutes.gateway.networking.k8s.io", validate: subdomain,
			new: func() Object { return new(gatewayv1.HTTPRoute) },
		},
		{
			name: "Namespace", versions: []string{"v1"}, cluster: true, validate: validation.NameIsDNSLabel,
			new: func() Object { return new(corev1.Namespace) }, complete: completeNamespace,
		},
		{
			name: "Pod", versions: []string{"v1"}, validate: subdomain,
			new: func() Object { return new(corev1.Pod) }, check: checkPod,
		},
		{
			name: "Secret", versions: []string{"v1"}, validate: subdomain,
			new: func() Object { return new(corev1.Secret) }, complete: completeSecret, check: checkSecret,
		},
		{
			name: "Service", versions: []string{"v1"}, validate: validation.NameIsDNS1035Label,
			new: func() Object { return new(corev1.Service) }, complete: completeService, check: checkService,
		},
		{
			group: "discovery.k8s.io", name: "EndpointSlice", versions: []string{"v1"}, validate: subdomain,
			new: func() Object { return new(discoveryv1.EndpointSlice) }, complete: completeEndpointSlice, check: checkEndpointSlice,
		},
	}
}

// isUnused reports whether a kind is one that users' files have beside those
// that Chandler reads, and that can be left out without a word: it says how
// workloads run, not how traffic flows. What would change or restrict traffic,
// such as an AuthorizationPolicy, is not among them.
func isUnused(group, name string) bool {
	return slices.Contains(map[string][]string{
		"":                          {"ConfigMap", "LimitRange", "PersistentVolume", "PersistentVolumeClaim", "ResourceQuota", "ServiceAccount"},
		"apiextensions.k8s.io":      {"CustomResourceDefinition"},
		"apps":                      {"DaemonSet", "Deployment", "ReplicaSet", "StatefulSet"},
		"autoscaling":               {"HorizontalPodAutoscaler"},
		"batch":                     {"CronJob", "Job"},
		"policy":                    {"PodDisruptionBudget"},
		"rbac.authorization.k8s.io": {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"},
	}[group], name)
}
