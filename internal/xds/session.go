package xds

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/chandler-proxy/chandler/internal/module"
)

// Bounds of one stream. They are far above what Envoy needs.
const (
	maxTypes         = 64
	maxSubscriptions = 100_000 // names, of all types together
	maxName          = 2048    // bytes of a name or type URL
	maxReason        = 4096    // bytes of a refusal's reason that are kept
	maxResponse      = 1 << 20 // bytes after which a delta response is not filled further
)

// How long a session waits for its client.
const (
	// warmPatience is how long changed listeners and routes wait for the answer
	// to the clusters they may refer to. Envoy withholds it until they are warm.
	warmPatience = 5 * time.Second
	// usePatience is how long the removal of clusters waits for the answer to
	// the listeners and routes that no longer use them.
	usePatience = 15 * time.Second
	// settle is how long it waits after that answer: a listener that was accepted
	// may still be warming while the one it replaces serves.
	settle = time.Second
)

// Errors of a request that end its stream.
var (
	ErrNoType       = errors.New("request has no type URL")
	ErrTooManyTypes = errors.New("too many types on one stream")
	ErrTooManyNames = errors.New("too many subscriptions on one stream")
	ErrLongName     = errors.New("name of a resource or type is too long")
)

// A request is what the requests of both variants say.
type request struct {
	typeURL string
	nonce   string // of the response that it answers; empty if none
	refused bool
	reason  string // why refused
	code    codes.Code

	// Delta.
	subscribe, unsubscribe []string
	initial                map[string]string // versions by name, of what the client has from an earlier stream

	modules map[string]module.Digest // that the client says it runs, by extension config

	// State of the world.
	names   []string
	version string // that the client has
}

func (r *request) check() error {
	if r.typeURL == "" {
		return ErrNoType
	}
	tooLong := func(name string) bool { return len(name) > maxName }
	if tooLong(r.typeURL) || slices.ContainsFunc(r.subscribe, tooLong) || slices.ContainsFunc(r.names, tooLong) {
		return ErrLongName
	}
	return nil
}

// A response is what the responses of both variants say.
type response struct {
	typeURL   string
	version   string
	nonce     string
	resources []*Resource
	removed   []string // delta only
}

// A Nack is a client's refusal of a response.
type Nack struct {
	Type    string   // type URL
	Names   []string // of the resources in the response; empty if Late
	Version string   // of the response; empty if Late
	Nonce   string
	Reason  string // as the client gave it
	Late    bool   // newer responses had replaced the one refused
}

// A session is the state of one stream: requests and snapshots in, responses
// out. It is pure but for its own fields: it does not send, and is told the time.
type session struct {
	delta    bool
	prefix   string // of nonces, so that those of other streams are not taken for its own
	snapshot *Snapshot
	watches  map[string]*watch
	order    []*watch // as their responses go out
	names    int      // subscribed to, of all types
	nonces   uint64

	// warming are the endpoints of clusters that were sent before the client
	// subscribed to any endpoints. It is to get them even if it says it has them.
	warming map[string]struct{}
	// answered is when the client last answered listeners or routes, resumed when it said
	// that it has something from an earlier stream. Zero if it did not.
	answered, resumed time.Time
	// past is what clients of state of the world had; it may be nil. class is this one's.
	past  *past
	class string
}

func newSession(delta bool, prefix string) *session {
	return &session{
		delta:   delta,
		prefix:  prefix,
		watches: make(map[string]*watch),
		warming: make(map[string]struct{}),
	}
}

// offer makes snap what the client should have.
func (s *session) offer(snap *Snapshot) {
	s.snapshot = snap
	for _, w := range s.order {
		w.catchUp(snap.set(w.typeURL))
	}
}

// request takes one request. It returns the refusal in it, if there is one, and
// an error if the stream must end.
func (s *session) request(r *request, now time.Time) (*Nack, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	w := s.watches[r.typeURL]
	first := w == nil
	if first {
		if len(s.watches) == maxTypes {
			return nil, ErrTooManyTypes
		}
		w = s.open(r.typeURL)
	}
	if first && (len(r.initial) > 0 || r.version != "") {
		s.resumed = now
	}
	nack := s.answer(w, r, now)
	w.report(r.modules)
	var err error
	switch {
	case s.delta:
		err = s.subscribeDelta(w, r, first)
	case first || r.nonce == "" || w.last == nil || r.nonce == w.last.nonce: // else a newer response is on its way
		err = s.subscribeWorld(w, r, first)
	}
	if s.snapshot != nil {
		w.catchUp(s.snapshot.set(w.typeURL))
	}
	return nack, err
}

func (s *session) open(typeURL string) *watch {
	w := newWatch(typeURL, s.delta)
	s.watches[typeURL] = w
	s.order = append(s.order, w)
	slices.SortStableFunc(s.order, func(a, b *watch) int { return cmp.Compare(rank(a.typeURL), rank(b.typeURL)) })
	return w
}

// rank is the place of a type among those that are sent.
func rank(typeURL string) int {
	if i := slices.Index(Types(), typeURL); i >= 0 {
		return i
	}
	return len(Types())
}

// answer takes the ack or nack in r. A nack counts even if what it refuses has
// been replaced; an ack after a nack of the same response heals it.
func (s *session) answer(w *watch, r *request, now time.Time) *Nack {
	d, reason := w.sent[r.nonce], r.reason[:min(len(r.reason), maxReason)]
	switch {
	case d == nil && r.refused:
		return &Nack{Type: w.typeURL, Nonce: r.nonce, Reason: reason, Late: true}
	case d == nil:
		return nil
	case !r.refused && !s.delta && r.version != d.version:
		return nil // only a subscription: after a nack it still has the nonce, but not the version
	}
	w.answer(d, r.refused, r.code, reason, now)
	if w.typeURL == ListenerType || w.typeURL == RouteType {
		s.answered = now
	}
	if !r.refused {
		return nil
	}
	nack := &Nack{Type: w.typeURL, Version: d.version, Nonce: d.nonce, Reason: reason}
	for _, res := range d.resources {
		nack.Names = append(nack.Names, res.Name)
	}
	return nack
}

// subscribeDelta applies what a delta request says of subscriptions.
func (s *session) subscribeDelta(w *watch, r *request, first bool) error {
	if first {
		if len(r.initial) > maxSubscriptions {
			return ErrTooManyNames
		}
		w.legacy = len(r.subscribe) == 0 && fullState(w.typeURL)
		w.wildcard = w.legacy
		w.owed = w.legacy && len(r.initial) == 0
	}
	s.subscribeAll(w, r, first)
	for _, name := range r.unsubscribe {
		s.unsubscribe(w, name)
	}
	for _, name := range r.subscribe {
		if err := s.subscribe(w, name); err != nil {
			return err
		}
	}
	if first {
		s.resume(w, r.initial)
	}
	return nil
}

// resume takes what the client has from an earlier stream. Endpoints of clusters
// that were just sent are sent again: the clusters wait for them.
func (s *session) resume(w *watch, initial map[string]string) {
	for name, version := range initial {
		_, warming := s.warming[name]
		if w.wants(name) && !(warming && w.typeURL == EndpointType) {
			w.have[name] = holding{res: &Resource{Type: w.typeURL, Name: name, Version: version}, acked: version}
		}
	}
	if w.typeURL == EndpointType {
		clear(s.warming)
	}
}

// subscribeAll applies what r says of the wildcard, before what it says of names.
func (s *session) subscribeAll(w *watch, r *request, first bool) {
	all := w.wildcard && !slices.Contains(r.unsubscribe, wildcard)
	w.legacy = w.legacy && all
	if slices.Contains(r.subscribe, wildcard) {
		w.owed = w.owed || !w.wildcard && !(first && len(r.initial) > 0)
		all, w.legacy = true, false
	}
	w.setWildcard(all)
}

// subscribe adds name. A client that subscribes again gets the resource again.
func (s *session) subscribe(w *watch, name string) error {
	if name == wildcard {
		return nil
	}
	if res := s.snapshot.set(w.typeURL).resources[name]; res != nil {
		name = res.Name // one string for all streams
	}
	if !w.named(name) {
		if s.names == maxSubscriptions {
			return ErrTooManyNames
		}
		s.names++
		w.names[name] = struct{}{}
	}
	w.resend(name)
	return nil
}

func (s *session) unsubscribe(w *watch, name string) {
	if !w.named(name) {
		return
	}
	delete(w.names, name)
	s.names--
	if w.wildcard && w.have[name].res != nil {
		w.resend(name) // still wanted, as one of all
		return
	}
	w.forget(name)
	if w.wildcard && s.snapshot.set(w.typeURL).resources[name] != nil {
		w.lookAt(name)
	}
}

// subscribeWorld applies the names in a state-of-the-world request, which are
// all that the client wants.
func (s *session) subscribeWorld(w *watch, r *request, first bool) error {
	if first {
		w.claim, w.claimed = r.version, r.version != ""
		w.legacy = fullState(w.typeURL)
		w.owed = true
		s.recall(w)
	}
	w.legacy = w.legacy && len(r.names) == 0
	names := make(map[string]struct{}, len(r.names))
	for _, name := range r.names {
		names[name] = struct{}{}
	}
	_, star := names[wildcard]
	delete(names, wildcard)
	all := star || w.legacy
	w.owed = w.owed || all && !w.wildcard
	w.setWildcard(all)
	return s.replaceNames(w, names)
}

// recall notes the clusters that the client has from an earlier stream, if its word for
// them is known. What is not known to be there is removed as soon as clusters are sent:
// state of the world has no way to ask, nor to leave it alone.
func (s *session) recall(w *watch) {
	if w.typeURL != ClusterType {
		return
	}
	for _, res := range s.past.clusters(pastKey{s.class, w.claim}) {
		w.have[res.Name] = holding{res: res, acked: res.Version}
	}
}

func (s *session) replaceNames(w *watch, names map[string]struct{}) error {
	if s.names+len(names)-len(w.names) > maxSubscriptions {
		return ErrTooManyNames
	}
	before := w.names
	w.names = names
	s.names += len(names) - len(before)
	for name := range names {
		if _, ok := before[name]; !ok {
			w.resend(name)
			w.owed = true
		}
	}
	for name := range before {
		if !w.wants(name) {
			w.forget(name)
		}
	}
	return nil
}

// next returns the next response to send, or nil and the time at which to ask
// again; if that is zero, the next request or snapshot is soon enough. The
// response is taken as sent.
func (s *session) next(now time.Time) (*response, time.Time) {
	if s.snapshot == nil {
		return nil, time.Time{}
	}
	var held, retry time.Time
	for _, w := range s.order {
		set := s.snapshot.set(w.typeURL)
		w.sweep(set)
		refused, again, at := w.retry(set, now)
		retry = earlier(retry, at)
		if !w.due() && refused == nil {
			continue
		}
		if until := s.heldBack(w); until.After(now) {
			held = until
			continue
		}
		if w.due() {
			if r := s.update(w, now); r != nil {
				return r, time.Time{}
			}
		}
		if refused != nil {
			return s.sendAgain(w, refused, again, now), time.Time{}
		}
	}
	if !held.IsZero() {
		return nil, earlier(held, retry)
	}
	r, wake := s.nextRemoval(now)
	if r != nil {
		return r, time.Time{}
	}
	return nil, earlier(wake, retry)
}

// heldBack is until when w's update waits for the clusters sent before it.
// A client that is only starting needs everything at once.
func (s *session) heldBack(w *watch) time.Time {
	if (w.typeURL != ListenerType && w.typeURL != RouteType) || !w.serving() {
		return time.Time{}
	}
	until, _ := s.watches[ClusterType].openUntil(s.snapshot.set(ClusterType), warmPatience)
	return until
}

// update is the response that brings w up to date, or a part of it.
func (s *session) update(w *watch, now time.Time) *response {
	if !s.delta {
		return s.world(w, now)
	}
	set := s.snapshot.set(w.typeURL)
	var resources []*Resource
	size := 0
	for len(w.queue) > 0 && size < maxResponse {
		res := set.resources[w.queue[0]]
		w.queue = w.queue[1:]
		resources = append(resources, res)
		size += res.Size()
		if len(w.queue) == 0 {
			w.queue = nil
		}
		if w.typeURL == ExtensionType {
			break // a slow one must not hold back another
		}
	}
	var removed []string
	if w.typeURL == ListenerType { // at once: a new listener may take the place of one that goes
		removed = takeGone(w)
	}
	return s.respond(w, set.version, resources, removed, now)
}

// world is the state-of-the-world response of w; nil if it is what the client
// said at first that it has.
func (s *session) world(w *watch, now time.Time) *response {
	if w.typeURL == ListenerType {
		takeGone(w)
	}
	resources := w.present(s.snapshot.set(w.typeURL))
	version := versionOf(resources)
	w.queue = nil
	claim := w.claim
	w.claim = ""
	if w.wildcard && len(w.names) == 0 && claim == version {
		for _, res := range resources {
			w.have[res.Name] = holding{res: res, acked: res.Version}
		}
		w.owed = false
		return nil
	}
	if w.typeURL == ClusterType {
		s.past.note(pastKey{s.class, version}, resources)
	}
	return s.respond(w, version, resources, nil, now)
}

// takeGone lets go of what is gone and returns its names, sorted.
func takeGone(w *watch) []string {
	names := slices.Sorted(maps.Keys(w.gone))
	for _, name := range names {
		w.drop(name)
		w.tell(name)
	}
	return names
}

// nextRemoval tells the client of what it waits for in vain, then takes back
// what nothing uses any more.
func (s *session) nextRemoval(now time.Time) (*response, time.Time) {
	for _, w := range s.order {
		if len(w.absent) > 0 {
			names := slices.Sorted(maps.Keys(w.absent))
			for _, name := range names {
				w.tell(name)
			}
			return s.respond(w, s.snapshot.set(w.typeURL).version, nil, names, now), time.Time{}
		}
	}
	for _, w := range slices.Backward(s.order) {
		if len(w.gone) == 0 {
			continue
		}
		if wake, ok := s.unused(now); !ok {
			return nil, wake
		}
		removed := takeGone(w)
		if s.delta {
			return s.respond(w, s.snapshot.set(w.typeURL).version, nil, removed, now), time.Time{}
		}
		return s.world(w, now), time.Time{}
	}
	return nil, time.Time{}
}

// unused says whether the client has taken the listeners and routes that no
// longer use what is gone; if not, when to ask again. As long as it refuses
// them, it goes on using the old ones. One that was connected before may not have asked
// for them yet.
func (s *session) unused(now time.Time) (time.Time, bool) {
	until := time.Time{}
	for _, at := range []time.Time{s.answered, s.resumed} {
		if end := at.Add(settle); !at.IsZero() && end.After(until) {
			until = end
		}
	}
	for _, typeURL := range []string{ListenerType, RouteType} {
		open, refused := s.watches[typeURL].openUntil(s.snapshot.set(typeURL), usePatience)
		if refused {
			return time.Time{}, false
		}
		if open.After(until) {
			until = open
		}
	}
	return until, !until.After(now)
}

// respond makes a response and notes it as sent.
func (s *session) respond(w *watch, version string, resources []*Resource, removed []string, now time.Time) *response {
	s.nonces++
	d := &delivery{
		nonce:     s.prefix + strconv.FormatUint(s.nonces, 36),
		version:   version,
		resources: resources,
		state:     Pending,
		since:     now,
	}
	for _, res := range w.deliver(d) {
		if res.endpoints != "" {
			s.warm(res.endpoints)
		}
	}
	return &response{typeURL: w.typeURL, version: version, nonce: d.nonce, resources: resources, removed: removed}
}

// warm has endpoints sent, again if need be, after a cluster that is new or
// changed: the client waits for them and need not ask
// (https://github.com/envoyproxy/envoy/issues/33607).
func (s *session) warm(endpoints string) {
	w := s.watches[EndpointType]
	switch {
	case w == nil:
		s.warming[endpoints] = struct{}{}
	case w.have[endpoints].res != nil:
		w.resend(endpoints)
	}
}
