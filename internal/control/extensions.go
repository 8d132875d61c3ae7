package control

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"slices"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/xds"
)

// An Extension is one extension as its user wrote it, and what has become of it
// at the proxies.
type Extension struct {
	xds.Extension

	// Of one that is not a resource of its own, such as an EnvoyFilter's, the
	// following are empty.
	Kind      string `json:"kind,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Resource  string `json:"resource,omitempty"` // name of the resource
	Phase     string `json:"phase,omitempty"`
	Priority  int32  `json:"priority,omitempty"`
}

// MissingHeader of the page with extensions has the address of each replica that did
// not answer, and whose proxies are not among those that are counted.
const MissingHeader = "Chandler-Missing-Replica"

// Extensions is what has become of each extension at the proxies of all replicas:
// those of the resources, in their order, then what else proxies are to run or want.
// missing are the addresses of replicas that do not answer. Safe for concurrent use.
func (p *Plane) Extensions(ctx context.Context) (all []Extension, missing []string) {
	to := p.deliveries()
	if p.peers != nil {
		var told []map[string]delivered
		told, missing = p.peers.fetch(ctx)
		merge(to, told)
	}
	var world []*mesh.Extension
	if gen := p.publisher.generation(); gen != nil {
		world = gen.world.AllExtensions()
	}
	return extensions(world, to, xds.Extensions(p.xds.Proxies())), missing
}

// extensions joins what is written with what proxies are to run, and with what they
// want although there is no such thing.
func extensions(written []*mesh.Extension, to map[string]delivered, wanted []xds.Extension) []Extension {
	out := make([]Extension, 0, len(written)+len(to))
	taken := make(map[string]bool, len(written))
	for _, e := range written {
		taken[e.Resource] = true
		out = append(out, Extension{
			Extension: to[e.Resource].sum(e.Resource),
			Kind:      e.Object.GetObjectKind().GroupVersionKind().Kind,
			Namespace: e.Object.GetNamespace(),
			Resource:  e.Object.GetName(),
			Phase:     e.Phase.String(),
			Priority:  e.Priority,
		})
	}
	others := make(map[string]xds.Extension)
	for _, e := range wanted {
		others[e.Name] = e
	}
	for name, d := range to {
		others[name] = d.sum(name)
	}
	for _, name := range slices.Sorted(maps.Keys(others)) {
		if !taken[name] {
			out = append(out, Extension{Extension: others[name]})
		}
	}
	return out
}

// sum is what proxies do with the extension of that name, counted as status does: one
// that still runs an older version is pending, if it does not refuse the newest.
func (d delivered) sum(name string) xds.Extension {
	e := xds.Extension{Name: name, Running: make(map[string]int)}
	for _, m := range d.proxies {
		held := m.held
		if held.State == xds.Missing || held.State == xds.Acked && !d.newest(m) {
			held.State = xds.Pending
		}
		e.Add(m.id, held)
	}
	slices.SortFunc(e.Refused, func(a, b xds.Refusal) int { return cmp.Compare(a.Proxy, b.Proxy) })
	return e
}

// extensionPage is Extensions as JSON.
func (p *Plane) extensionPage(w http.ResponseWriter, r *http.Request) {
	all, missing := p.Extensions(r.Context())
	for _, address := range missing {
		w.Header().Add(MissingHeader, address)
	}
	writeJSON(w, all)
}
