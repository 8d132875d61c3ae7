package translate

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// kubernetesServers reads the listeners of a Gateway API Gateway. One that
// cannot be honoured is left out.
func (b *builder) kubernetesServers(g *gatewayv1.Gateway) []*server {
	var out []*server
	for i := range g.Spec.Listeners {
		l := &g.Spec.Listeners[i]
		s := &server{
			owner: g, field: fmt.Sprintf("spec.listeners[%d]", i), api: g, listener: l,
			name: string(l.Name), port: uint32(l.Port), listen: b.listenAt(uint32(l.Port)),
			hosts: []serverHost{{"*", "*"}},
		}
		if l.Hostname != nil && *l.Hostname != "" {
			s.hosts[0].host = strings.ToLower(string(*l.Hostname))
		}
		if !mesh.ValidHost(s.hosts[0].host) {
			b.refuse(g, s.field+".hostname", s.hosts[0].host+" is not a host name", "")
			continue
		}
		switch l.Protocol {
		case gatewayv1.HTTPProtocolType:
			s.protocol = mesh.HTTP
		case gatewayv1.HTTPSProtocolType:
			s.protocol = mesh.HTTPS
		default:
			b.refuse(g, s.field+".protocol", string(l.Protocol)+" is not supported", "use HTTP or HTTPS; an Istio Gateway can do TLS and TCP")
			continue
		}
		if s.protocol == mesh.HTTP || b.terminateListener(s) {
			out = append(out, s)
		}
	}
	return out
}

// terminateListener sets how the listener terminates TLS, or reports false.
func (b *builder) terminateListener(s *server) bool {
	in, field := s.listener.TLS, s.field+".tls"
	switch {
	case in == nil || len(in.CertificateRefs) == 0:
		b.refuse(s.owner, field+".certificateRefs", "is empty", "name a Secret with tls.crt and tls.key")
		return false
	case in.Mode != nil && *in.Mode != gatewayv1.TLSModeTerminate:
		b.refuse(s.owner, field+".mode", string(*in.Mode)+" is not supported for HTTPS", "use Terminate")
		return false
	case len(in.Options) > 0:
		b.refuse(s.owner, field+".options", "are not supported", "remove them")
		return false
	case s.api.Spec.TLS != nil && s.api.Spec.TLS.Frontend != nil:
		b.refuse(s.owner, "spec.tls.frontend", "is not supported; HTTPS listeners are not served", "remove it, or use an Istio Gateway with mode: MUTUAL")
		return false
	}
	s.tls = &tlsv3.DownstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{AlpnProtocols: []string{"h2", "http/1.1"}}}
	for i, ref := range in.CertificateRefs {
		field := fmt.Sprintf("%s.certificateRefs[%d]", field, i)
		if ref.Group != nil && *ref.Group != "" || ref.Kind != nil && *ref.Kind != "Secret" {
			b.refuse(s.owner, field, "only a Secret can hold a certificate", "name a Secret")
			return false
		}
		if ref.Namespace != nil && string(*ref.Namespace) != s.api.Namespace {
			b.refuse(s.owner, field, "a Secret of another namespace needs a ReferenceGrant, which is not supported",
				"copy the Secret to namespace "+s.api.Namespace)
			return false
		}
		if !b.certificate(s, field, s.api.Namespace, string(ref.Name)) {
			return false
		}
	}
	return true
}

// attaches says whether route may be, and wants to be, served by s.
func (b *builder) attaches(route *gatewayv1.HTTPRoute, s *server) bool {
	return s.api != nil && b.allows(s, route) && slices.ContainsFunc(route.Spec.ParentRefs, func(ref gatewayv1.ParentReference) bool {
		return string(ref.Name) == s.api.Name &&
			(ref.Kind == nil || *ref.Kind == "Gateway") &&
			(ref.Namespace == nil && route.Namespace == s.api.Namespace || ref.Namespace != nil && string(*ref.Namespace) == s.api.Namespace) &&
			(ref.SectionName == nil || *ref.SectionName == s.listener.Name) &&
			(ref.Port == nil || *ref.Port == s.listener.Port)
	})
}

// allows is what the listener's allowedRoutes say: by default, HTTPRoutes of the
// Gateway's own namespace.
func (b *builder) allows(s *server, route *gatewayv1.HTTPRoute) bool {
	allowed := s.listener.AllowedRoutes
	if allowed != nil && len(allowed.Kinds) > 0 && !slices.ContainsFunc(allowed.Kinds, func(k gatewayv1.RouteGroupKind) bool {
		return k.Kind == "HTTPRoute" && (k.Group == nil || *k.Group == gatewayv1.GroupName)
	}) {
		return false
	}
	from := gatewayv1.NamespacesFromSame
	if allowed != nil && allowed.Namespaces != nil && allowed.Namespaces.From != nil {
		from = *allowed.Namespaces.From
	}
	switch from {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSame:
		return route.Namespace == s.api.Namespace
	case gatewayv1.NamespacesFromSelector:
		selector, err := metav1.LabelSelectorAsSelector(allowed.Namespaces.Selector)
		if err != nil {
			b.refuse(s.owner, s.field+".allowedRoutes.namespaces.selector", err.Error(), "")
			return false
		}
		return selector.Matches(labels.Set(b.world.NamespaceLabels(route.Namespace)))
	}
	return false
}
