package gateway

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// RouteStatus is what is to stand in route's status: an entry for each of its
// parents that is among gateways, which are those of ours, and as they are those
// of other controllers.
func RouteStatus(route *gatewayv1.HTTPRoute, gateways map[types.NamespacedName]*gatewayv1.Gateway, known Known) gatewayv1.RouteStatus {
	out := gatewayv1.RouteStatus{Parents: []gatewayv1.RouteParentStatus{}}
	for _, p := range route.Status.Parents {
		if p.ControllerName != ControllerOf(known.Revision) {
			out.Parents = append(out.Parents, p)
		}
	}
	for _, ref := range route.Spec.ParentRefs {
		g := gateways[parent(ref, route.Namespace)]
		if g == nil || !isGateway(ref) {
			continue
		}
		out.Parents = append(out.Parents, gatewayv1.RouteParentStatus{
			ParentRef: ref, ControllerName: ControllerOf(known.Revision), Conditions: parentConditions(route, ref, g, known),
		})
	}
	return out
}

func isGateway(ref gatewayv1.ParentReference) bool {
	return (ref.Kind == nil || *ref.Kind == "Gateway") && (ref.Group == nil || *ref.Group == gatewayv1.GroupName)
}

// parent is the name of the parent that a route of namespace refers to.
func parent(ref gatewayv1.ParentReference, namespace string) types.NamespacedName {
	if ref.Namespace != nil {
		namespace = string(*ref.Namespace)
	}
	return types.NamespacedName{Namespace: namespace, Name: string(ref.Name)}
}

// refersTo says whether ref of a route of namespace means g.
func refersTo(ref gatewayv1.ParentReference, namespace string, g *gatewayv1.Gateway) bool {
	return isGateway(ref) && parent(ref, namespace) == types.NamespacedName{Namespace: g.Namespace, Name: g.Name}
}

// chooses says whether ref, which means l's Gateway, means l too.
func chooses(ref gatewayv1.ParentReference, l *gatewayv1.Listener) bool {
	return (ref.SectionName == nil || *ref.SectionName == l.Name) && (ref.Port == nil || *ref.Port == l.Port)
}

// parentConditions are those of route at its parent g.
func parentConditions(route *gatewayv1.HTTPRoute, ref gatewayv1.ParentReference, g *gatewayv1.Gateway, known Known) []metav1.Condition {
	var before []metav1.Condition
	for _, p := range route.Status.Parents {
		if p.ControllerName == ControllerOf(known.Revision) && sameParent(p.ParentRef, ref) {
			before = p.Conditions
		}
	}
	c := conditions{before, route.Generation, known.Now}.clone()
	accepted, partly := string(gatewayv1.RouteConditionAccepted), string(gatewayv1.RouteConditionPartiallyInvalid)
	meta.RemoveStatusCondition(&c.list, partly)
	problem, whole := ruleProblems(route, known)
	unsupported := string(gatewayv1.RouteReasonUnsupportedValue)
	switch reason, message := accept(route, ref, g, known.World); {
	case reason != "":
		c.set(accepted, false, string(reason), message)
	case whole:
		c.set(accepted, false, unsupported, problem)
	default:
		c.set(accepted, true, string(gatewayv1.RouteReasonAccepted), "")
		if problem != "" {
			c.set(partly, true, unsupported, problem)
		}
	}
	resolved := string(gatewayv1.RouteConditionResolvedRefs)
	if reason, message := badBackend(route, known.World); reason != "" {
		c.set(resolved, false, string(reason), message)
	} else {
		c.set(resolved, true, string(gatewayv1.RouteReasonResolvedRefs), "")
	}
	return c.list
}

func sameParent(a, b gatewayv1.ParentReference) bool {
	return parent(a, "") == parent(b, "") && isGateway(a) == isGateway(b) &&
		value(a.SectionName) == value(b.SectionName) && value(a.Port) == value(b.Port)
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// accept is why none of g's listeners that ref means takes route; the reason is
// empty if one does. Of several the nearest miss is told.
func accept(route *gatewayv1.HTTPRoute, ref gatewayv1.ParentReference, g *gatewayv1.Gateway, world *mesh.World) (gatewayv1.RouteConditionReason, string) {
	misses := map[gatewayv1.RouteConditionReason]bool{}
	for i := range g.Spec.Listeners {
		l := &g.Spec.Listeners[i]
		if !chooses(ref, l) {
			continue
		}
		reason := attach(route, l, g, world)
		if reason == "" {
			return "", ""
		}
		misses[reason] = true
	}
	switch {
	case misses[gatewayv1.RouteReasonNoMatchingListenerHostname]:
		return gatewayv1.RouteReasonNoMatchingListenerHostname, "no listener has one of spec.hostnames"
	case misses[gatewayv1.RouteReasonNotAllowedByListeners]:
		return gatewayv1.RouteReasonNotAllowedByListeners, "the listeners' allowedRoutes do not take it"
	}
	return gatewayv1.RouteReasonNoMatchingParent, "no listener has this sectionName and port"
}

// attach is why l does not take route, empty if it does.
func attach(route *gatewayv1.HTTPRoute, l *gatewayv1.Listener, g *gatewayv1.Gateway, world *mesh.World) gatewayv1.RouteConditionReason {
	if kinds, _ := supportedKinds(l); len(kinds) == 0 || !allows(l, g, route.Namespace, world) {
		return gatewayv1.RouteReasonNotAllowedByListeners
	}
	host := "*"
	if h := value(l.Hostname); h != "" {
		host = strings.ToLower(string(h))
	}
	if len(route.Spec.Hostnames) > 0 && !slices.ContainsFunc(route.Spec.Hostnames, func(h gatewayv1.Hostname) bool {
		_, ok := mesh.HostIntersection(host, strings.ToLower(string(h)))
		return ok
	}) {
		return gatewayv1.RouteReasonNoMatchingListenerHostname
	}
	return ""
}

// allows says whether l takes routes of namespace.
func allows(l *gatewayv1.Listener, g *gatewayv1.Gateway, namespace string, world *mesh.World) bool {
	from, chosen := gatewayv1.NamespacesFromSame, (*metav1.LabelSelector)(nil)
	if l.AllowedRoutes != nil && l.AllowedRoutes.Namespaces != nil && l.AllowedRoutes.Namespaces.From != nil {
		from, chosen = *l.AllowedRoutes.Namespaces.From, l.AllowedRoutes.Namespaces.Selector
	}
	switch from {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSame:
		return namespace == g.Namespace
	case gatewayv1.NamespacesFromSelector:
		selector, err := metav1.LabelSelectorAsSelector(chosen)
		return err == nil && selector.Matches(labels.Set(world.NamespaceLabels(namespace)))
	}
	return false
}

// badBackend is why a backend of route cannot be had; the reason is empty if all
// can.
func badBackend(route *gatewayv1.HTTPRoute, world *mesh.World) (gatewayv1.RouteConditionReason, string) {
	view := world.View(route.Namespace)
	for i, rule := range route.Spec.Rules {
		for j, ref := range rule.BackendRefs {
			at := fmt.Sprintf("spec.rules[%d].backendRefs[%d]: ", i, j)
			switch {
			case ref.Kind != nil && *ref.Kind != "Service" || value(ref.Group) != "":
				return gatewayv1.RouteReasonInvalidKind, at + "only a Service can be a backend"
			case ref.Namespace != nil && string(*ref.Namespace) != route.Namespace:
				return gatewayv1.RouteReasonRefNotPermitted, at + "a Service of another namespace needs a ReferenceGrant, which is not supported"
			}
			s := view.Service(string(ref.Name), route.Namespace)
			if s == nil || s.External {
				return gatewayv1.RouteReasonBackendNotFound, at + "there is no Service " + string(ref.Name)
			}
			if port := value(ref.Port); port == 0 {
				return gatewayv1.RouteReasonBackendNotFound, at + "port is missing"
			} else if _, ok := s.Port(uint32(port)); !ok {
				return gatewayv1.RouteReasonBackendNotFound, fmt.Sprintf("%sService %s has no port %d", at, ref.Name, port)
			}
		}
	}
	return "", ""
}

// ruleProblems is what translate found wrong with route's rules, but for backends
// that cannot be had; whole, if no rule is without.
func ruleProblems(route *gatewayv1.HTTPRoute, known Known) (problem string, whole bool) {
	var found []string
	for i := range route.Spec.Rules {
		field, bad := fmt.Sprintf("spec.rules[%d]", i), false
		for _, p := range known.Problems {
			below, ok := strings.CutPrefix(p.Field, field)
			if !of(p, route) || !ok || below != "" && below[0] != '.' || strings.HasPrefix(below, ".backendRefs") && !strings.HasSuffix(below, ".filters") {
				continue
			}
			bad = true
			found = append(found, message(p))
		}
		if i == 0 {
			whole = bad
		}
		whole = whole && bad
	}
	return join(found), whole
}
