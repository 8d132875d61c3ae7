package mesh

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Proxies are the proxies that the resources speak of, for who wants to know
// what each would run without one being there: every Pod, as a gateway if an
// Istio Gateway selects it or it serves one of the Gateway API, else as one with
// a sidecar; a gateway for each selector that selects no Pod, in the root
// namespace; and a gateway for each Gateway of the Gateway API that no Pod
// serves. They are sorted by role, namespace and name.
func (w *World) Proxies() []Proxy {
	var out []Proxy
	selected := map[string]bool{} // selectors that a Pod has
	served := map[string]bool{}   // Gateways that a Pod serves, NAMESPACE/NAME
	for name, pod := range w.pods {
		p := Proxy{Role: Sidecar, Name: name.Name, Namespace: name.Namespace, Labels: pod.Labels}
		for _, ip := range pod.IPs {
			if addr, err := netip.ParseAddr(ip); err == nil {
				p.IPs = append(p.IPs, addr)
			}
		}
		for _, g := range w.Gateways(p) {
			p.Role = Router
			selected[selectorKey(g.Spec.Selector)] = true
		}
		if w.KubernetesGateway(p) != nil {
			p.Role = Router
			served[name.Namespace+"/"+p.Labels[GatewayNameLabel]] = true
		}
		out = append(out, p)
	}
	for _, g := range w.gateways {
		if key := selectorKey(g.Spec.Selector); !selected[key] {
			selected[key] = true
			out = append(out, Proxy{Role: Router, Namespace: w.opts.RootNamespace, Labels: g.Spec.Selector})
		}
	}
	for name := range w.kubernetesGateways {
		if !served[name.String()] {
			out = append(out, Proxy{Role: Router, Namespace: name.Namespace, Labels: map[string]string{GatewayNameLabel: name.Name}})
		}
	}
	slices.SortFunc(out, func(a, b Proxy) int {
		return cmp.Or(cmp.Compare(a.Role, b.Role), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name),
			cmp.Compare(selectorKey(a.Labels), selectorKey(b.Labels)))
	})
	return out
}

// selectorKey is the same for equal labels.
func selectorKey(labels map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		b.WriteString(k + "=" + labels[k] + ",")
	}
	return b.String()
}
