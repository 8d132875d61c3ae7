package status

import (
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/chandler-proxy/chandler/internal/resource"
)

// The groups of the kinds whose status is written here.
const (
	extensions = "extensions.istio.io"
	networking = "networking.istio.io"
)

// resourceOf is where the API server has the kind of key. It is false for kinds
// whose status is not written here. All of them are namespaced and have a status
// subresource of the same form, see istio.io/api kubernetes/customresourcedefinitions.gen.yaml.
func resourceOf(key resource.Key) (schema.GroupVersionResource, bool) {
	var version, plural string
	switch (schema.GroupKind{Group: key.Group, Kind: key.Kind}) {
	case schema.GroupKind{Group: extensions, Kind: "WasmPlugin"}:
		version, plural = "v1alpha1", "wasmplugins"
	case schema.GroupKind{Group: extensions, Kind: "TrafficExtension"}:
		version, plural = "v1alpha1", "trafficextensions"
	case schema.GroupKind{Group: networking, Kind: "EnvoyFilter"}:
		version, plural = "v1alpha3", "envoyfilters"
	case schema.GroupKind{Group: networking, Kind: "Gateway"}:
		version, plural = "v1", "gateways"
	case schema.GroupKind{Group: networking, Kind: "VirtualService"}:
		version, plural = "v1", "virtualservices"
	case schema.GroupKind{Group: networking, Kind: "ServiceEntry"}:
		version, plural = "v1", "serviceentries"
	case schema.GroupKind{Group: networking, Kind: "DestinationRule"}:
		version, plural = "v1", "destinationrules"
	default:
		return schema.GroupVersionResource{}, false
	}
	return schema.GroupVersionResource{Group: key.Group, Version: version, Resource: plural}, true
}
