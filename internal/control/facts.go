package control

import (
	"errors"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/chandler-proxy/chandler/internal/ecds"
	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/identity"
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

// facts is what is known of every resource, whether the source takes it or not:
// what is wrong with it, and of extensions what proxies do with them.
func facts(gen *generation, problems []resource.Problem, extensions []*mesh.Extension, to map[string]delivered) []status.Fact {
	written, refused := gen.written, gen.refused
	known := make(map[resource.Key]*mesh.Extension, len(extensions))
	for _, e := range extensions {
		known[resource.KeyOf(e.Object)] = e
	}
	all := make([]status.Fact, 0, len(written)+len(refused))
	place := make(map[resource.Key]int, len(written)+len(refused))
	for _, o := range written {
		f := status.Fact{Key: resource.KeyOf(o), UID: o.GetUID(), Generation: o.GetGeneration()}
		if e := known[f.Key]; e != nil {
			f.Reference = e.Reference
			to[e.Resource].tell(&f)
		}
		place[f.Key] = len(all)
		all = append(all, f)
	}
	for _, r := range refused {
		f := status.Fact{Key: r.Key, UID: r.UID, Generation: r.Generation}
		if i, ok := place[r.Key]; ok { // proxies have what it was before: nothing was made of it as it is
			f.Reference, f.Proxies = all[i].Reference, all[i].Proxies
			all[i] = f
			continue
		}
		place[r.Key] = len(all)
		all = append(all, f)
	}
	wrong := byObject(maps.Keys(place), problems)
	for i := range all {
		all[i].Problems = wrong[all[i].Key]
		all[i].Revision = gen.revisions[all[i].Key.Namespace]
	}
	return all
}

// revisions are those that namespaces have chosen, by name; empty where one has not.
func revisions(written []resource.Object) map[string]string {
	chosen := make(map[string]string)
	for _, o := range written {
		if n, ok := o.(*corev1.Namespace); ok {
			chosen[n.Name] = identity.ChosenRevision(n.Labels)
		}
	}
	return chosen
}

// byObject are problems by the objects that they are about, as far as that is clear.
func byObject(objects iter.Seq[resource.Key], problems []resource.Problem) map[resource.Key][]resource.Problem {
	if len(problems) == 0 {
		return nil
	}
	keys := resource.ByProblem(objects)
	found := make(map[resource.Key][]resource.Problem)
	for _, p := range problems {
		if key := keys[p.About()]; key != (resource.Key{}) {
			found[key] = append(found[key], p)
		}
	}
	return found
}

// deliveries are who is to run each extension, which is told by what classes of
// proxies were given, and what they do with it. Of extensions those in Lua are looked
// at, which are in the listeners themselves.
func deliveries(classes []xds.Class, proxies []xds.Proxy, extensions []*mesh.Extension, known *listeners) map[string]delivered {
	members := make(map[string][]xds.Proxy)
	for _, p := range proxies {
		members[p.Class] = append(members[p.Class], p)
	}
	scripts := slices.Collect(func(yield func(*mesh.Extension) bool) {
		for _, e := range extensions {
			if e.Config == nil && !yield(e) {
				return
			}
		}
	})
	look := known.look()
	to := make(map[string]delivered)
	for _, c := range classes {
		refusals := make([]map[string]xds.Held, len(members[c.Key])) // of the member's listeners, by filter
		for i, p := range members[c.Key] {
			refusals[i] = look.refused(c.Snapshot, p.Types[xds.ListenerType].Open)
		}
		for _, r := range c.Snapshot.Resources(xds.ExtensionType) {
			d := to[r.Name]
			if !slices.Contains(d.versions, r.Version) {
				d.versions = append(d.versions, r.Version)
			}
			for i, p := range members[c.Key] {
				d.proxies = append(d.proxies, member{p.ID, p.Connected, r.Version, unless(refusals[i], p.Held(r.Name), r.Version)})
			}
			to[r.Name] = d
		}
		if len(members[c.Key]) > 0 {
			look.scripts(to, c, members[c.Key], refusals, scripts)
		}
	}
	look.done()
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

// newest reports whether what m does is with the version that it is to have now.
func (d delivered) newest(m member) bool {
	return m.held.Version == m.want && slices.Contains(d.versions, m.want)
}

// tell adds to f what proxies do with the extension.
func (d delivered) tell(f *status.Fact) {
	if len(d.versions) > 0 {
		f.Want = d.versions[0] // stands for all of them
	}
	for _, m := range d.proxies {
		held := m.held
		newest := d.newest(m)
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
			f.Fetched = f.Fetched || newest && held.Code == ecds.Fetched
		}
		f.Proxies = append(f.Proxies, doing)
	}
}
