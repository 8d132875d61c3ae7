package xds

import (
	"cmp"
	"maps"
	"slices"
	"time"
	"unique"

	"google.golang.org/grpc/codes"

	"github.com/chandler-proxy/chandler/internal/module"
)

// A Proxy is what is known of one connected proxy.
type Proxy struct {
	ID        string          `json:"proxy"` // of its node
	Class     string          `json:"class"`
	Peer      string          `json:"peer"` // its address
	Connected time.Time       `json:"connected"`
	Delta     bool            `json:"delta"`
	Types     map[string]Type `json:"types"` // by type URL, those it subscribed to
}

// A Type is what has become of one type at one proxy.
type Type struct {
	Wildcard   bool   `json:"wildcard,omitempty"`
	Subscribed int    `json:"subscribed"`         // names
	Resources  int    `json:"resources"`          // sent, or had by the proxy before
	Nonce      string `json:"nonce,omitempty"`    // of the last response
	Sent       string `json:"sent,omitempty"`     // version of the last response
	Acked      string `json:"acked,omitempty"`    // version of the last response accepted
	Nacked     string `json:"nacked,omitempty"`   // version of the newest response that is refused
	Reason     string `json:"reason,omitempty"`   // of that refusal
	Extensions []Held `json:"resource,omitempty"` // of extension configs only, sorted by name
	Waiting    bool   `json:"waiting,omitempty"`  // the last response is not answered yet

	// Open are, of listeners only, those whose newest version is not accepted, sorted by
	// name. A proxy refuses a response as a whole: of one that it refuses these are the
	// listeners that its reason names, as Envoy and our engine do, if it names any.
	Open []Held `json:"open,omitempty"`
	// Settled is the version of the type in the [Snapshot] that all was sent of, or was
	// there before; empty while something is still to be sent.
	Settled string `json:"settled,omitempty"`
}

// A Held is what has become of one extension config, or listener, at one proxy.
type Held struct {
	Name    string     `json:"name"`
	State   State      `json:"state"`             // of Version
	Version string     `json:"version,omitempty"` // newest sent
	Running string     `json:"running,omitempty"` // last accepted on this stream, or had before it
	Reason  string     `json:"reason,omitempty"`  // why Version is refused, as the proxy told it
	Code    codes.Code `json:"-"`                 // with that reason
	Since   time.Time  `json:"since,omitzero"`    // State
	Module  string     `json:"module,omitempty"`  // digest of the module that it runs, if the proxy has told
}

// Held is what has become of the extension config of that name at p; pending if
// p has not asked for it yet.
func (p Proxy) Held(name string) Held {
	held := p.Types[ExtensionType].Extensions
	i, ok := slices.BinarySearchFunc(held, name, func(h Held, name string) int { return cmp.Compare(h.Name, name) })
	if !ok {
		return Held{Name: name, State: Pending}
	}
	return held[i]
}

// Proxies are the connected proxies, sorted by id. Of a proxy that has several
// streams, since it came back before the loss of the old one was noticed, the
// newest counts.
func (s *Server) Proxies() []Proxy {
	newest := make(map[string]*stream)
	s.mu.Lock()
	for _, c := range s.classes {
		for st := range c.streams {
			if old := newest[st.id]; old == nil || old.serial < st.serial {
				newest[st.id] = st
			}
		}
	}
	s.mu.Unlock()
	proxies := make([]Proxy, 0, len(newest))
	for _, st := range newest {
		proxies = append(proxies, st.status())
	}
	slices.SortFunc(proxies, func(a, b Proxy) int { return cmp.Compare(a.ID, b.ID) })
	return proxies
}

// Snapshot is what the proxy with that id should have, and whether it is connected.
// It is nil if there is none yet.
func (s *Server) Snapshot(id string) (snap *Snapshot, connected bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	serial := uint64(0)
	for _, c := range s.classes {
		for st := range c.streams {
			if st.id == id && st.serial > serial {
				snap, serial = c.snapshot, st.serial
			}
		}
	}
	return snap, serial > 0
}

func (st *stream) status() Proxy {
	st.mu.Lock()
	defer st.mu.Unlock()
	p := Proxy{
		ID:        st.id,
		Class:     st.class,
		Peer:      st.peer,
		Connected: st.connected,
		Delta:     st.session.delta,
		Types:     make(map[string]Type, len(st.session.watches)),
	}
	for typeURL, w := range st.session.watches {
		p.Types[typeURL] = w.status()
	}
	return p
}

func (w *watch) status() Type {
	t := Type{Wildcard: w.wildcard, Subscribed: len(w.names)}
	for _, h := range w.have {
		if h.res != nil {
			t.Resources++
		}
	}
	if w.last != nil {
		t.Nonce, t.Sent, t.Waiting = w.last.nonce, w.last.version, w.last.state == Pending
	}
	if w.acked != nil {
		t.Acked = w.acked.version
	}
	if d := w.nacked(); d != nil {
		t.Nacked, t.Reason = d.version, d.err
	}
	t.Settled = w.settled()
	switch w.typeURL {
	case ListenerType:
		t.Open = w.open()
	case ExtensionType:
		for _, name := range slices.Sorted(maps.Keys(w.names)) {
			t.Extensions = append(t.Extensions, w.held(name))
		}
	}
	return t
}

// nacked is the newest refusal that stands.
func (w *watch) nacked() *delivery {
	var newest *delivery
	for _, d := range w.sent {
		if d.state == Nacked && (newest == nil || d.since.After(newest.since)) {
			newest = d
		}
	}
	return newest
}

func (w *watch) held(name string) Held {
	h := w.have[name]
	held := Held{Name: name, Running: h.acked}
	if h.module != (unique.Handle[module.Digest]{}) {
		held.Module = h.module.Value().String()
	}
	switch {
	case h.res == nil && h.told:
		held.State = Missing
	case h.res == nil:
		held.State = Pending
	case h.in == nil: // it had this before the stream began
		held.State, held.Version = Acked, h.res.Version
	default:
		held.State, held.Version, held.Since = h.in.state, h.res.Version, h.in.since
		held.Reason, held.Code = h.in.err, h.in.code
	}
	return held
}

// An Extension is what has become of one extension config at all proxies.
type Extension struct {
	Name    string         `json:"name"`
	Wanted  int            `json:"wanted"`            // proxies that are to run it
	Running map[string]int `json:"running"`           // proxies that run it, by version
	Modules map[string]int `json:"modules,omitempty"` // proxies that run the module with that digest, as far as they have told
	Pending int            `json:"pending"`           // proxies that have not answered yet
	Missing int            `json:"missing"`           // proxies that want it while there is no such extension
	Refused []Refusal      `json:"refused,omitempty"` // sorted by proxy
}

// A Refusal is one proxy's of one version of an extension config. The proxy
// goes on with the version that it runs, if any.
type Refusal struct {
	Proxy   string    `json:"proxy"`
	Version string    `json:"version"`
	Running string    `json:"running,omitempty"`
	Reason  string    `json:"reason"`
	Since   time.Time `json:"since"`
}

// Extensions sums up what proxies, as of [Server.Proxies], say of each
// extension config they want, sorted by name.
func Extensions(proxies []Proxy) []Extension {
	sums := make(map[string]*Extension)
	for _, p := range proxies {
		for _, held := range p.Types[ExtensionType].Extensions {
			e := sums[held.Name]
			if e == nil {
				e = &Extension{Name: held.Name, Running: make(map[string]int)}
				sums[held.Name] = e
			}
			e.Add(p.ID, held)
		}
	}
	sorted := make([]Extension, 0, len(sums))
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		sorted = append(sorted, *sums[name])
	}
	return sorted
}

// Add counts what one more proxy does.
func (e *Extension) Add(proxy string, h Held) {
	e.Wanted++
	if h.Running != "" {
		e.Running[h.Running]++
	}
	if h.Module != "" {
		if e.Modules == nil {
			e.Modules = make(map[string]int)
		}
		e.Modules[h.Module]++
	}
	switch h.State {
	case Pending:
		e.Pending++
	case Missing:
		e.Missing++
	case Nacked:
		e.Refused = append(e.Refused, Refusal{Proxy: proxy, Version: h.Version, Running: h.Running, Reason: h.Reason, Since: h.Since})
	}
}
