package control

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/status"
	"github.com/chandler-proxy/chandler/internal/xds"
)

// A delivered extension is what proxies are to run, and what they do with it.
type delivered struct {
	versions []string // the newest; several if EnvoyFilters change it for some classes
	proxies  []member
}

// A member is one proxy that is to run an extension.
type member struct {
	id        string
	connected time.Time
	want      string // the version that it is to run
	held      xds.Held
}

// facts is what is known of every resource: what is wrong with it, and of
// extensions what proxies do with them.
func facts(written []resource.Object, problems []resource.Problem, extensions []*mesh.Extension, to map[string]delivered) []status.Fact {
	known := make(map[resource.Key]*mesh.Extension, len(extensions))
	for _, e := range extensions {
		known[resource.KeyOf(e.Object)] = e
	}
	wrong := byObject(written, problems)
	all := make([]status.Fact, 0, len(written))
	for _, o := range written {
		key := resource.KeyOf(o)
		f := status.Fact{Key: key, UID: o.GetUID(), Generation: o.GetGeneration(), Problems: wrong[key]}
		if e := known[key]; e != nil {
			f.Reference = e.Reference
			to[e.Resource].tell(&f)
		}
		all = append(all, f)
	}
	return all
}

// byObject are problems by the objects that they are about, as far as that is clear.
func byObject(written []resource.Object, problems []resource.Problem) map[resource.Key][]resource.Problem {
	if len(problems) == 0 {
		return nil
	}
	keys := resource.ByProblem(func(yield func(resource.Key) bool) {
		for _, o := range written {
			if !yield(resource.KeyOf(o)) {
				return
			}
		}
	})
	found := make(map[resource.Key][]resource.Problem)
	for _, p := range problems {
		if key := keys[p.About()]; key != (resource.Key{}) {
			found[key] = append(found[key], p)
		}
	}
	return found
}

// deliveries are who is to run each extension, which is told by what classes of
// proxies were given.
func deliveries(classes []xds.Class, proxies []xds.Proxy) map[string]delivered {
	members := make(map[string][]xds.Proxy)
	for _, p := range proxies {
		members[p.Class] = append(members[p.Class], p)
	}
	to := make(map[string]delivered)
	for _, c := range classes {
		for _, r := range c.Snapshot.Resources(xds.ExtensionType) {
			d := to[r.Name]
			if !slices.Contains(d.versions, r.Version) {
				d.versions = append(d.versions, r.Version)
			}
			for _, p := range members[c.Key] {
				d.proxies = append(d.proxies, member{p.ID, p.Connected, r.Version, p.Held(r.Name)})
			}
			to[r.Name] = d
		}
	}
	return to
}

// once leaves of a proxy that several connections are told of the newest alone: it
// came back, perhaps to another replica, before the loss of the old one was noticed.
func once(to map[string]delivered) {
	newest := make(map[string]time.Time)
	for _, d := range to {
		for _, m := range d.proxies {
			if m.connected.After(newest[m.id]) {
				newest[m.id] = m.connected
			}
		}
	}
	for name, d := range to {
		seen := make(map[string]bool, len(d.proxies))
		var kept []member
		for _, m := range d.proxies {
			if !seen[m.id] && !m.connected.Before(newest[m.id]) {
				seen[m.id] = true
				kept = append(kept, m)
			}
		}
		d.proxies = kept
		to[name] = d
	}
}

// tell adds to f what proxies do with the extension.
func (d delivered) tell(f *status.Fact) {
	if len(d.versions) > 0 {
		f.Want = d.versions[0] // stands for all of them
	}
	for _, m := range d.proxies {
		held := m.held
		newest := held.Version == m.want && slices.Contains(d.versions, m.want)
		// The relay says which extension of a response it is about.
		reason := strings.TrimPrefix(held.Reason, "extension "+held.Name+": ")
		doing := status.Proxy{ID: m.id, Version: held.Version, Reason: reason}
		switch {
		case newest:
			doing.Version = f.Want
		case held.Version == f.Want: // the newest for others
			doing.Version = ""
		}
		switch held.State {
		case xds.Acked:
			doing.State = status.Running
			if newest && held.Module != "" {
				f.Digest = held.Module
			}
		case xds.Nacked:
			doing.State = status.Refused
			if kind, ok := fetch.KindOf(held.Code); ok && newest {
				f.ResolveError = &fetch.Error{Kind: kind, Err: errors.New(reason)}
			}
		}
		f.Proxies = append(f.Proxies, doing)
	}
}
