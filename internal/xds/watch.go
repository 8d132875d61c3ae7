package xds

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
	"unique"

	"google.golang.org/grpc/codes"

	"github.com/chandler-proxy/chandler/internal/module"
)

// wildcard subscribes to all resources of a type.
const wildcard = "*"

// A watch is what a session knows of one type: what the client wants of it,
// what it has, and so what is to be sent.
type watch struct {
	typeURL string
	delta   bool

	wildcard bool
	legacy   bool                // wildcard because no name was ever given
	names    map[string]struct{} // subscribed to by name

	have map[string]holding
	at   string // version of the set that have and the lists below were compared with

	look   map[string]struct{} // names to compare with the snapshot
	queue  []string            // to be sent, sorted
	gone   map[string]struct{} // the client has them, the snapshot has not: removed when safe
	absent map[string]struct{} // subscribed to, never sent, not there: the client is to be told
	owed   bool                // a response is due even if it holds nothing
	claim  string              // state of the world: version that the client says it has

	claimed bool // state of the world: the client has something from an earlier stream
	refused bool // some of sent may be refused

	sent  map[string]*delivery // by nonce: the last, and those that are the newest of some resource
	last  *delivery
	acked *delivery // the last that was accepted
}

// A holding is what a client has of one resource.
type holding struct {
	res    *Resource                    // newest that was sent, or that the client said it has; nil if none
	in     *delivery                    // in which it was sent; nil if the client had it before
	acked  string                       // version that the client accepted last
	module unique.Handle[module.Digest] // that it says it runs; the zero Handle if it has not
	again  bool                         // send it again, even if it is the same
	told   bool                         // the client knows, or need not, that there is no such resource
}

// A delivery is a response that was sent.
type delivery struct {
	nonce     string
	version   string // of the type
	resources []*Resource
	newest    int // how many of resources no later response has replaced

	state State
	since time.Time // in state: pending since it was sent
	err   string    // if refused
	code  codes.Code

	// Of what was refused and is sent again. The refusal stands until that is answered.
	tries int  // how often it was sent again because of the time
	open  bool // it was sent again and is not answered
	again bool // it is to be sent again at once
}

// A State is what has become of something sent.
type State string

// States of what was sent.
const (
	Pending State = "pending" // not answered
	Acked   State = "acked"   // accepted
	Nacked  State = "nacked"  // refused: the client goes on with what it had
	Missing State = "missing" // subscribed to, and there is no such resource
)

func newWatch(typeURL string, delta bool) *watch {
	return &watch{
		typeURL: typeURL,
		delta:   delta,
		names:   make(map[string]struct{}),
		have:    make(map[string]holding),
		gone:    make(map[string]struct{}),
		absent:  make(map[string]struct{}),
		sent:    make(map[string]*delivery),
	}
}

func (w *watch) named(name string) bool {
	_, ok := w.names[name]
	return ok
}

func (w *watch) wants(name string) bool { return w.wildcard || w.named(name) }

// setWildcard makes w want everything, or only what is named.
func (w *watch) setWildcard(all bool) {
	if all == w.wildcard {
		return
	}
	w.wildcard, w.at = all, ""
	for _, name := range w.queue {
		w.lookAt(name)
	}
	w.queue = nil
}

// serving says that the client runs on something of this type already.
func (w *watch) serving() bool {
	if w.claimed {
		return true
	}
	for _, h := range w.have {
		if h.res != nil {
			return true
		}
	}
	return false
}

// lookAt has name compared with the snapshot.
func (w *watch) lookAt(name string) {
	if w.look == nil {
		w.look = make(map[string]struct{})
	}
	w.look[name] = struct{}{}
}

// resend makes name to be sent even if the client has it, or, if there is no
// such resource, the client to be told; but of an extension config that it may
// have, it never is.
func (w *watch) resend(name string) {
	h := w.have[name]
	h.again = h.res != nil
	h.told = h.told && w.typeURL == ExtensionType
	w.have[name] = h
	w.lookAt(name)
}

// drop says that the client no longer has name.
func (w *watch) drop(name string) {
	h, ok := w.have[name]
	if !ok {
		return
	}
	w.release(h.in)
	w.have[name] = holding{acked: h.acked}
}

// report takes what the client says it runs of what it subscribes to.
func (w *watch) report(modules map[string]module.Digest) {
	for name, digest := range modules {
		if h, ok := w.have[name]; ok && w.typeURL == ExtensionType {
			h.module = unique.Handle[module.Digest]{}
			if !digest.IsZero() {
				h.module = unique.Make(digest) // a thousand clients run the same
			}
			w.have[name] = h
		}
	}
}

// open are the resources whose newest is not accepted, sorted by name, with the part of
// the reason that is about each; see [Type].
func (w *watch) open() []Held {
	var open []Held
	for _, d := range w.sent {
		if d.state == Acked {
			continue
		}
		named := slices.ContainsFunc(d.resources, func(r *Resource) bool { return find(d.err, r.Name) >= 0 })
		for _, res := range d.resources {
			if w.have[res.Name].in != d || named && find(d.err, res.Name) < 0 {
				continue
			}
			held := w.held(res.Name)
			held.Reason = about(d.err, res.Name)
			open = append(open, held)
		}
	}
	slices.SortFunc(open, func(a, b Held) int { return cmp.Compare(a.Name, b.Name) })
	return open
}

// find is where reason has the name of a resource, not as a part of another's; negative
// if it has not.
func find(reason, name string) int {
	for from := 0; ; {
		i := strings.Index(reason[from:], name)
		if i < 0 {
			return -1
		}
		start, end := from+i, from+i+len(name)
		if (start == 0 || !inName(reason[start-1])) && (end == len(reason) || !inName(reason[end])) {
			return start
		}
		from = start + 1
	}
}

func inName(c byte) bool {
	return c == '_' || c == '-' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// about is what follows the name of a resource in reason, as far as the line goes; all of
// reason if it does not put it so.
func about(reason, name string) string {
	i := find(reason, name)
	if i < 0 {
		return reason
	}
	after, ok := strings.CutPrefix(reason[i+len(name):], ": ")
	if !ok {
		return reason
	}
	after, _, _ = strings.Cut(after, "\n")
	return after
}

// settled is the version of the set of which nothing is left to be sent; empty if
// something is.
func (w *watch) settled() string {
	if w.owed || len(w.queue)+len(w.look) > 0 {
		return ""
	}
	return w.at
}

// forget removes every trace of name.
func (w *watch) forget(name string) {
	w.release(w.have[name].in)
	delete(w.have, name)
	delete(w.look, name)
	delete(w.gone, name)
	delete(w.absent, name)
	if i, ok := slices.BinarySearch(w.queue, name); ok {
		w.queue = slices.Delete(w.queue, i, i+1)
	}
}

// release says that d is no longer the newest of one of its resources.
func (w *watch) release(d *delivery) {
	if d == nil {
		return
	}
	d.newest--
	if d.newest == 0 && d != w.last {
		delete(w.sent, d.nonce)
	}
}

// catchUp notes what may differ between what the client has and s. A client
// that is just one change behind costs only that change.
func (w *watch) catchUp(s *set) {
	if w.at != s.version && w.at != "" {
		w.retryRefused()
	}
	switch w.at {
	case s.version:
		return
	case s.base:
		for _, name := range s.changed {
			w.note(name)
		}
	default:
		w.compareAll(s)
	}
	w.at = s.version
}

func (w *watch) note(name string) {
	if _, has := w.have[name]; has || w.wants(name) {
		w.lookAt(name)
	}
}

func (w *watch) compareAll(s *set) {
	for name := range w.have {
		w.lookAt(name)
	}
	for name := range w.names {
		w.lookAt(name)
	}
	if w.wildcard {
		for name := range s.resources {
			w.lookAt(name)
		}
	}
}

// sweep decides of each name to look at what is to be done.
func (w *watch) sweep(s *set) {
	if len(w.look) == 0 {
		return
	}
	for _, name := range w.queue {
		w.lookAt(name)
	}
	w.queue = nil
	for name := range w.look {
		w.decide(name, s.resources[name])
	}
	w.look = nil // most of the time there is nothing, for thousands of proxies
	slices.Sort(w.queue)
}

func (w *watch) decide(name string, res *Resource) {
	h := w.have[name]
	delete(w.gone, name)
	delete(w.absent, name)
	switch {
	case !w.wants(name):
		w.forget(name)
	case res != nil && (h.res == nil || h.res.Version != res.Version || h.again):
		w.queue = append(w.queue, name)
	case res != nil:
		// The client has it.
	case h.res != nil && w.removable():
		w.gone[name] = struct{}{}
	case h.res != nil:
		w.drop(name)
		w.tell(name)
	case !h.told && w.delta && w.named(name):
		w.absent[name] = struct{}{}
	}
}

// removable says that the client is told when a resource of the type is gone.
// Envoy would answer an extension config's removal with 500s for as long as a
// listener that is draining still uses it. In state of the world only clusters
// and listeners can be removed at all.
func (w *watch) removable() bool {
	if w.delta {
		return w.typeURL != ExtensionType
	}
	return fullState(w.typeURL)
}

// fullState says that a state-of-the-world response of the type is everything,
// so that what is not in it is removed.
func fullState(typeURL string) bool { return typeURL == ClusterType || typeURL == ListenerType }

// tell notes that the client knows, or need not know, that name is not there.
func (w *watch) tell(name string) {
	if !w.named(name) {
		w.forget(name)
		return
	}
	h := w.have[name]
	h.told = true
	w.have[name] = h
	delete(w.absent, name)
	delete(w.gone, name)
}

// due says that something can be sent at once.
func (w *watch) due() bool {
	return w.owed || len(w.queue) > 0 || w.typeURL == ListenerType && len(w.gone) > 0
}

// deliver notes that d was sent. It returns the resources in it that the
// client had not, or had otherwise, or refused.
func (w *watch) deliver(d *delivery) (news []*Resource) {
	before := w.last
	w.sent[d.nonce], w.last = d, d
	if before != nil && before.newest == 0 {
		delete(w.sent, before.nonce)
	}
	d.newest = len(d.resources)
	for _, res := range d.resources {
		h := w.have[res.Name]
		if h.res == nil || h.res.Version != res.Version || h.in != nil && h.in.state == Nacked {
			news = append(news, res)
		}
		w.release(h.in)
		w.have[res.Name] = holding{res: res, in: d, acked: h.acked, module: h.module}
	}
	w.owed = false
	return news
}

// answer notes what the client says of d.
func (w *watch) answer(d *delivery, refused bool, code codes.Code, reason string, now time.Time) {
	d.since, d.err, d.code, d.open = now, reason, code, false
	if refused {
		d.state, w.refused = Nacked, true
		return
	}
	d.state, w.acked = Acked, d
	for _, res := range d.resources {
		if h := w.have[res.Name]; h.in == d {
			h.acked = res.Version
			w.have[res.Name] = h
		}
	}
}

// openUntil is when the answers that are open are waited for no longer, and
// whether the newest of something is refused that is still in s.
func (w *watch) openUntil(s *set, patience time.Duration) (until time.Time, refused bool) {
	if w == nil {
		return time.Time{}, false
	}
	for _, d := range w.sent {
		switch {
		case d.state == Nacked:
			refused = refused || len(w.current(d, s)) > 0
		case d.state == Pending && d.since.Add(patience).After(until):
			until = d.since.Add(patience)
		}
	}
	return until, refused
}

// present are the resources of s that the client wants, and those that are gone
// but still held for it, sorted: everything, for state of the world.
func (w *watch) present(s *set) []*Resource {
	all := make(map[string]*Resource)
	for name := range w.gone {
		all[name] = w.have[name].res
	}
	if w.wildcard {
		maps.Copy(all, s.resources)
	}
	for name := range w.names {
		if res := s.resources[name]; res != nil {
			all[name] = res
		}
	}
	return (&set{resources: all}).sorted()
}
