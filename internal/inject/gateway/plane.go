package gateway

import (
	"cmp"

	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/chandler-proxy/chandler/internal/identity"
)

// ControllerOf is what a GatewayClass says to be that of a revision's control plane.
func ControllerOf(revision string) gatewayv1.GatewayController {
	return gatewayv1.GatewayController(ofRevision(string(ControllerName), revision))
}

// ClassOf is the GatewayClass of a revision that is there without anyone making it.
func ClassOf(revision string) string { return ofRevision(ClassName, revision) }

func ofRevision(name, revision string) string {
	if cmp.Or(revision, identity.DefaultRevision) == identity.DefaultRevision {
		return name
	}
	return name + "-" + revision
}

// yields reports whether another control plane of the same revision was here first:
// the class that nobody makes by hand is its own. All else is left to it then, the
// status of routes included. A class from before control planes marked theirs is
// anybody's.
func (c *Controller) yields() bool {
	if c.plane == (identity.Plane{}) {
		return false
	}
	name := ClassOf(c.plane.Revision)
	found := identity.Foreign{
		APIVersion: gatewayv1.GroupVersion.String(), Kind: "GatewayClass", Resource: "gatewayclasses", Name: name,
	}
	if class := get[*gatewayv1.GatewayClass](c.cache.classes, types.NamespacedName{Name: name}); class != nil {
		owner := identity.PlaneOf(class.Labels)
		if owner != (identity.Plane{}) && owner.Namespace != c.plane.Namespace && c.there(owner.Namespace) {
			found.UID, found.Owner = string(class.UID), owner
		}
	}
	c.found(found)
	return found.Owner != (identity.Plane{})
}
