package control

import (
	"cmp"
	"context"
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
// those of the resources, in their order, then what else proxies want. missing are
// the addresses of replicas that do not answer. Safe for concurrent use.
func (p *Plane) Extensions(ctx context.Context) (all []Extension, missing []string) {
	proxies := p.xds.Proxies()
	if p.peers != nil {
		var theirs []xds.Proxy
		theirs, missing = p.peers.fetch(ctx)
		proxies = newest(append(proxies, theirs...))
	}
	var world []*mesh.Extension
	if gen := p.publisher.generation(); gen != nil {
		world = gen.world.AllExtensions()
	}
	return extensions(world, xds.Extensions(proxies)), missing
}

// newest is proxies without those that have a newer connection, sorted by id.
func newest(proxies []xds.Proxy) []xds.Proxy {
	slices.SortStableFunc(proxies, func(a, b xds.Proxy) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), b.Connected.Compare(a.Connected))
	})
	return slices.CompactFunc(proxies, func(a, b xds.Proxy) bool { return a.ID == b.ID })
}

// extensions joins what is written with what became of it.
func extensions(written []*mesh.Extension, became []xds.Extension) []Extension {
	out := make([]Extension, 0, len(written)+len(became))
	taken := make(map[string]bool, len(written))
	for _, e := range written {
		taken[e.Resource] = true
		found := xds.Extension{Name: e.Resource, Running: map[string]int{}}
		if i, ok := slices.BinarySearchFunc(became, e.Resource, func(x xds.Extension, name string) int { return cmp.Compare(x.Name, name) }); ok {
			found = became[i]
		}
		out = append(out, Extension{
			Extension: found,
			Kind:      e.Object.GetObjectKind().GroupVersionKind().Kind,
			Namespace: e.Object.GetNamespace(),
			Resource:  e.Object.GetName(),
			Phase:     e.Phase.String(),
			Priority:  e.Priority,
		})
	}
	for _, e := range became {
		if !taken[e.Name] {
			out = append(out, Extension{Extension: e})
		}
	}
	return out
}

// extensionPage is Extensions as JSON.
func (p *Plane) extensionPage(w http.ResponseWriter, r *http.Request) {
	all, missing := p.Extensions(r.Context())
	for _, address := range missing {
		w.Header().Add(MissingHeader, address)
	}
	writeJSON(w, all)
}
