package mesh

import (
	"cmp"
	"slices"
)

// A View is what proxies of one namespace see of the World: one Service for
// each host, and the DestinationRule that holds for it.
type View struct {
	// Scope is equal for namespaces that see the same.
	Scope string

	world     *World
	namespace string
	services  []*Service
	byHost    map[string]*Service
}

type viewKey struct{ scope string }

// View is what proxies of namespace see. Views are made once and shared; where
// all namespaces see the same they are one.
func (w *World) View(namespace string) *View {
	scope := ""
	if w.scoped {
		scope = namespace
	}
	return Derive(w, viewKey{scope}, func() *View { return w.newView(scope) })
}

func (w *World) newView(namespace string) *View {
	v := &View{Scope: namespace, world: w, namespace: namespace, byHost: map[string]*Service{}}
	for _, s := range w.services {
		if !visible(s.ExportTo, s.Name.Namespace, namespace) {
			continue
		}
		if first := v.byHost[s.Host]; first == nil || first.Name.Namespace != namespace && s.Name.Namespace == namespace {
			v.byHost[s.Host] = s
		}
	}
	for _, s := range v.byHost {
		v.services = append(v.services, s)
	}
	slices.SortFunc(v.services, func(a, b *Service) int { return cmp.Compare(a.Host, b.Host) })
	return v
}

// Services are all that the View has, by host.
func (v *View) Services() []*Service { return v.services }

// Service finds a destination that a resource in namespace names: in full, or
// in a short form (NAME, NAME.NS, NAME.NS.svc). A name that no Service has may be
// covered by a wildcard host of a ServiceEntry.
func (v *View) Service(host, namespace string) *Service {
	full := v.world.FQDN(host, namespace)
	domain := v.world.opts.Domain
	for _, name := range []string{full, full + "." + domain, full + ".svc." + domain} {
		if s := v.byHost[name]; s != nil {
			return s
		}
	}
	return nil
}

// DestinationRule is the rule for s: the most specific one of the client's
// namespace, else of the Service's, else of the root namespace. It is nil if
// there is none.
func (v *View) DestinationRule(s *Service) *DestinationRule {
	for _, namespace := range []string{v.namespace, s.Name.Namespace, v.world.opts.RootNamespace} {
		for _, r := range v.world.rules[namespace] {
			if HostMatches(r.Host, s.Host) && visible(r.Spec.ExportTo, r.Namespace, v.namespace) {
				return r
			}
		}
	}
	return nil
}

// visible says whether a resource of namespace owner with this exportTo holds
// for clients in namespace client.
func visible(exportTo []string, owner, client string) bool {
	if len(exportTo) == 0 {
		return true
	}
	return slices.ContainsFunc(exportTo, func(e string) bool {
		return e == "*" || e == client || e == "." && owner == client
	})
}

// differsByNamespace says whether namespaces may see different Services or
// DestinationRules.
func (w *World) differsByNamespace() bool {
	hosts := make(map[string]string, len(w.services)) // host to namespace
	for _, s := range w.services {
		if _, again := hosts[s.Host]; again || !public(s.ExportTo) {
			return true
		}
		hosts[s.Host] = s.Name.Namespace
	}
	for namespace, rules := range w.rules {
		for _, r := range rules {
			if !public(r.Spec.ExportTo) || namespace != w.opts.RootNamespace && hosts[r.Host] != namespace {
				return true
			}
		}
	}
	return false
}

func public(exportTo []string) bool {
	return len(exportTo) == 0 || slices.Contains(exportTo, "*")
}
