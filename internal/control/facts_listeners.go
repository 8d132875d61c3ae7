package control

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"github.com/chandler-proxy/chandler/internal/ecds"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/xds"
)

// noLua is why the embedded engine does not run an extension in Lua; translate has
// denied the requests in its place.
const noLua = "the embedded engine has no Lua: requests are answered 403"

// listeners remembers which filters listeners have, so that each is decoded once. The
// zero value is ready for use. Safe for concurrent use.
type listeners struct {
	mu    sync.Mutex
	known map[*xds.Resource]filters
}

// filters are the versions of a listener's filters, HTTP and network, by name: of Lua
// that of its code, and of others none.
type filters map[string]string

// A listenerLook looks at the listeners of one moment. It is of one goroutine.
type listenerLook struct {
	from   *listeners
	before map[*xds.Resource]filters // never changed
	used   map[*xds.Resource]filters
}

func (l *listeners) look() *listenerLook {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &listenerLook{from: l, before: l.known, used: make(map[*xds.Resource]filters)}
}

// done leaves what was looked at for the next look, and nothing else.
func (k *listenerLook) done() {
	k.from.mu.Lock()
	defer k.from.mu.Unlock()
	k.from.known = k.used
}

func (k *listenerLook) filters(r *xds.Resource) filters {
	found, ok := k.used[r]
	if ok {
		return found
	}
	if found, ok = k.before[r]; !ok {
		found = filtersOf(r)
	}
	k.used[r] = found
	return found
}

// filtersOf decodes what the control plane itself has encoded.
func filtersOf(r *xds.Resource) filters {
	l, found := new(listenerv3.Listener), make(filters)
	if r.Body.UnmarshalTo(l) != nil {
		return nil
	}
	for _, c := range append(l.GetFilterChains(), l.GetDefaultFilterChain()) {
		for _, f := range c.GetFilters() {
			found[f.GetName()] = ""
			m := new(hcmv3.HttpConnectionManager)
			if f.GetTypedConfig() == nil || !f.GetTypedConfig().MessageIs(m) || f.GetTypedConfig().UnmarshalTo(m) != nil {
				continue
			}
			for _, f := range m.GetHttpFilters() {
				lua := new(luav3.Lua)
				found[f.GetName()] = ""
				if config := f.GetTypedConfig(); config.MessageIs(lua) && config.UnmarshalTo(lua) == nil {
					found[f.GetName()] = codeVersion(lua.GetDefaultSourceCode().GetInlineString())
				}
			}
		}
	}
	return found
}

// codeVersion stands for Lua code, for every replica the same.
func codeVersion(lua string) string {
	sum := sha256.Sum256([]byte(lua))
	return hex.EncodeToString(sum[:12])
}

// refused are the refusals of listeners of snap, by the filters that these have. open is
// what the proxy has not accepted.
func (k *listenerLook) refused(snap *xds.Snapshot, open []xds.Held) map[string]xds.Held {
	refusals := make(map[string]xds.Held)
	for _, h := range open {
		if h.State == xds.Nacked {
			refusals[h.Name] = h
		}
	}
	if len(refusals) == 0 {
		return nil
	}
	refused := make(map[string]xds.Held)
	for _, r := range snap.Resources(xds.ListenerType) {
		h, ok := refusals[r.Name]
		if !ok {
			continue
		}
		for filter := range k.filters(r) {
			if _, ok := refused[filter]; !ok { // the first of several listeners is told
				refused[filter] = xds.Held{
					Name: filter, State: xds.Nacked, Since: h.Since,
					Reason: fmt.Sprintf("listener %s: %s", h.Name, h.Reason),
				}
			}
		}
	}
	return refused
}

// unless is held, or the refusal of a listener that has version of an extension: then
// what became of the extension itself is of no use.
func unless(refusals map[string]xds.Held, held xds.Held, version string) xds.Held {
	refusal, ok := refusals[held.Name]
	if !ok || held.State == xds.Nacked {
		return held
	}
	refusal.Version = version
	if held.State == xds.Acked && held.Version == version {
		refusal.Code = ecds.Fetched
	}
	return refusal
}

// scripts adds to to what the members of c do with the extensions that are Lua. What
// becomes of one is what becomes of the listeners that it is in.
func (k *listenerLook) scripts(to map[string]delivered, c xds.Class, members []xds.Proxy, refusals []map[string]xds.Held, scripts []*mesh.Extension) {
	if len(scripts) == 0 {
		return
	}
	proxy, err := mesh.ParseNode(c.Node)
	engine := err == nil && proxy.Engine
	for _, e := range scripts {
		version, in := k.script(c.Snapshot, e)
		if len(in) == 0 {
			continue
		}
		d := to[e.Resource]
		if !slices.Contains(d.versions, version) {
			d.versions = append(d.versions, version)
		}
		for i, p := range members {
			held := xds.Held{Name: e.Resource, State: xds.Acked, Version: version, Running: version}
			listeners := p.Types[xds.ListenerType]
			switch {
			case engine:
				held = xds.Held{Name: e.Resource, State: xds.Nacked, Version: version, Reason: noLua}
			case listeners.Settled != c.Snapshot.Version(xds.ListenerType) || pending(listeners.Open, in):
				held = xds.Held{Name: e.Resource, State: xds.Pending}
			}
			d.proxies = append(d.proxies, member{p.ID, p.Connected, version, unless(refusals[i], held, version)})
		}
		to[e.Resource] = d
	}
}

// script is the version of a Lua extension in snap, and the names of the listeners that
// have it.
func (k *listenerLook) script(snap *xds.Snapshot, e *mesh.Extension) (version string, in []string) {
	version = codeVersion(e.Lua)
	for _, r := range snap.Resources(xds.ListenerType) {
		if v, ok := k.filters(r)[e.Resource]; ok {
			in = append(in, r.Name)
			if v != "" {
				version = v
			}
		}
	}
	return version, in
}

// pending reports whether one of those listeners is not answered yet.
func pending(open []xds.Held, listeners []string) bool {
	return slices.ContainsFunc(open, func(h xds.Held) bool {
		return h.State == xds.Pending && slices.Contains(listeners, h.Name)
	})
}
