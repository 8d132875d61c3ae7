package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/chandler-proxy/chandler/internal/ecds"
	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/module"
	"github.com/chandler-proxy/chandler/internal/store"
)

// A session is the state of extension configs on one stream. Its methods are
// called by one goroutine; what they want done they leave in the outboxes, and
// fetches that they start answer through fetched.
type session struct {
	relay *Relay
	d     dialect
	// start runs a fetch for the extension; its result comes back to fetched with gen.
	start func(ctx context.Context, name string, gen uint64, delay time.Duration, w *wanted)
	ctx   context.Context // of the stream: parent of fetches

	awaited    map[string]uint64 // extensions that a listener brings to a serving Envoy, which has nothing for them; see await
	awaits     uint64
	down, up   []frame // to send, oldest first
	listeners  []frame // from above: to follow down once Envoy has answered all deliveries
	extensions map[string]*extension
	batches    map[string]*batch // responses from above with extensions that are still wanted, by nonce
	deliveries map[string]*delivery
	nonces     uint64
	gens       uint64
}

// An extension is one that Envoy subscribes to.
type extension struct {
	name   string
	wanted *wanted            // the newest from above; nil before the first
	cancel context.CancelFunc // ends the fetch of wanted, under way or due; nil if none
	tries  int                // fetches of wanted that failed
	ext    *ecds.Extension    // of the last that was wanted and could be read
	idle   bool               // no listener has it: it is a no-op, and wanted is not pursued

	// situation is what Envoy was doing when it first asked. One that was starting
	// then goes live as soon as it refuses the extension: that does not make it one
	// that served without.
	situation ecds.Situation

	have string    // version that Envoy runs; empty: nothing
	sent *delivery // awaits Envoy's answer
	next *delivery // follows sent
}

// wanted is one version of an extension config, as the control plane sent it.
type wanted struct {
	gen     uint64 // tells results for this version from those for an older one
	version string
	nonce   string // of the batch
	ext     *ecds.Extension
	arrived time.Time
}

// A delivery is one version of an extension config on its way to Envoy.
type delivery struct {
	name    string
	gen     uint64 // of the wanted version; 0 for a stand-in
	version string
	body    *anypb.Any
	lease   *store.Lease
	verdict ecds.Verdict // of a stand-in
	types   []string     // a stand-in was made for
	again   bool         // Envoy runs it already; see session.restore
}

// same reports whether Envoy sees no difference between d and other.
func (d *delivery) same(other *delivery) bool {
	return d.version == other.version || proto.Equal(d.body, other.body)
}

// A batch is one response from above. It is acked when every extension in it is
// running or superseded, and nacked when one has failed.
type batch struct {
	live    map[string]bool    // extensions whose wanted version came in it
	waiting map[string]bool    // of these, those whose outcome is open
	failed  map[string]failure // of these, those that failed
	said    string             // what was answered: "", ackSaid or the reason of a nack
}

const ackSaid = "\x00ack"

// A failure is why an extension is refused.
type failure struct {
	reason string
	code   codes.Code
}

// failed is the failure that err is: one to fetch a module has a code of its own, and
// so has what comes after.
func failed(err error) failure {
	f := failure{err.Error(), codes.InvalidArgument}
	if e, ok := errors.AsType[*fetch.Error](err); ok {
		f.code = e.Kind.Code()
	} else if errors.As(err, new(Refusal)) {
		f.code = ecds.Fetched
	}
	return f
}

func newSession(ctx context.Context, r *Relay, d dialect) *session {
	return &session{
		relay:      r,
		d:          d,
		ctx:        ctx,
		awaited:    make(map[string]uint64),
		extensions: make(map[string]*extension),
		batches:    make(map[string]*batch),
		deliveries: make(map[string]*delivery),
	}
}

// A version as Envoy knows it is the control plane's, a tilde, and what Envoy
// has of it: the first digits of the module's digest, or the verdict of a
// stand-in. So an agent that did not live when it was delivered can still tell.
func realVersion(version string, lease *store.Lease) string {
	if lease == nil {
		return version
	}
	return version + "~" + lease.Digest.Hex()[:12]
}

func standInVersion(version string, v ecds.Verdict) string { return version + "~" + string(v) }

func isStandIn(version string) bool {
	return strings.HasSuffix(version, "~"+string(ecds.Allow)) || strings.HasSuffix(version, "~"+string(ecds.Deny))
}

// fromEnvoy takes one request for extension configs.
func (s *session) fromEnvoy(f frame) error {
	req, err := s.d.request(f)
	if err != nil {
		return fmt.Errorf("decode request for extension configs: %w", err)
	}
	if req.nonce != "" {
		if err := s.answered(req.nonce, req.reject); err != nil {
			return err
		}
	}
	if req.first {
		s.relay.drop(func(name string) bool { return !slices.Contains(req.subscribe, name) })
	}
	for _, name := range req.unsubscribe {
		if err := s.unsubscribe(name); err != nil {
			return err
		}
	}
	for _, name := range req.subscribe {
		s.subscribe(name, &req)
	}
	s.passListeners()
	if err := s.sendHeld(); err != nil {
		return err
	}
	if req.first || len(req.subscribe)+len(req.unsubscribe) > 0 {
		return errors.Join(s.sendUp(s.d.subscribe(req)), s.report(req.subscribe...))
	}
	return nil
}

// report tells a control plane of Chandler's which modules Envoy runs as the
// extensions. To others that would be noise, and a node without an id.
func (s *session) report(names ...string) error {
	if !s.relay.own.Load() {
		return nil
	}
	modules := make(map[string]module.Digest)
	for _, name := range names {
		if h, ok := s.relay.holds(name); ok {
			modules[name] = module.Digest{} // not that of what ran before
			if h.lease != nil {
				modules[name] = h.lease.Digest
			}
		}
	}
	if len(modules) == 0 {
		return nil
	}
	return s.sendUp(s.d.report(modules))
}

// subscribe starts an extension. What Envoy has from an earlier stream is kept
// in req.have for the control plane only where this relay knows what it is;
// otherwise the control plane is to send it again.
func (s *session) subscribe(name string, req *request) {
	if s.extensions[name] != nil {
		return
	}
	e := &extension{name: name, situation: ecds.Starting}
	if s.relay.cfg.Serving() {
		e.situation = ecds.Serving
	}
	s.extensions[name] = e
	has, ok := req.have[name]
	if !ok {
		return
	}
	known, isKnown := s.relay.holds(name)
	if e.have = has; e.have == "" { // state of the world does not tell
		if e.have = known.version; !isKnown {
			e.have = "unknown"
		}
	}
	delete(s.awaited, name)
	delete(req.have, name)
	if isKnown && has == known.version {
		upstream, _, _ := cutLast(known.version, "~")
		req.have[name] = upstream
	}
}

// cutLast is strings.Cut around the last sep.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func (s *session) unsubscribe(name string) error {
	e := s.extensions[name]
	if e == nil {
		return nil
	}
	e.release()
	delete(s.extensions, name)
	delete(s.awaited, name)
	s.relay.drop(func(n string) bool { return n == name })
	return s.supersede(e)
}

// release gives back the modules that are on their way to Envoy.
func (e *extension) release() {
	for _, d := range []*delivery{e.sent, e.next} {
		if d != nil {
			d.lease.Release()
		}
	}
}

// supersede ends everything that is under way for e's wanted version.
func (s *session) supersede(e *extension) error {
	if e.cancel != nil {
		e.cancel()
		e.cancel = nil
	}
	if e.wanted == nil {
		return nil
	}
	nonce := e.wanted.nonce
	if b := s.batches[nonce]; b != nil {
		delete(b.live, e.name)
		s.settle(e, failure{})
		if len(b.live) == 0 { // nothing is left to tell: it neither runs nor failed
			delete(s.batches, nonce)
		}
	}
	e.wanted, e.tries = nil, 0
	return s.answer(nonce)
}

// fromAbove takes one response with extension configs, and returns its nonce
// and the control plane's identifier.
func (s *session) fromAbove(f frame) (nonce, from string, err error) {
	res, err := s.d.response(f)
	if err != nil {
		return "", "", fmt.Errorf("decode extension configs: %w", err)
	}
	return res.nonce, res.from, s.take(res)
}

func (s *session) take(res response) error {
	b := &batch{live: make(map[string]bool), waiting: make(map[string]bool), failed: make(map[string]failure)}
	for _, r := range res.resources {
		if s.extensions[r.name] != nil {
			b.live[r.name], b.waiting[r.name] = true, true
		}
	}
	for _, name := range res.removed {
		// Envoy is not told: see the package's guarantees.
		if e := s.extensions[name]; e != nil {
			if err := s.supersede(e); err != nil {
				return err
			}
		}
	}
	s.batches[res.nonce] = b
	for _, r := range res.resources {
		if e := s.extensions[r.name]; e != nil {
			if err := s.want(e, r, res.nonce); err != nil {
				return err
			}
		}
	}
	return s.answer(res.nonce)
}

// want makes r the version of e that is wanted.
func (s *session) want(e *extension, r resource, nonce string) error {
	if err := s.supersede(e); err != nil {
		return err
	}
	s.gens++
	e.wanted = &wanted{gen: s.gens, version: r.version, nonce: nonce, arrived: time.Now()}
	ext, err := ecds.Decode(r.body)
	e.wanted.ext, e.idle = ext, false
	if err != nil {
		return s.refuse(e, resultUnmarshalFailure, err)
	}
	e.ext = ext
	return s.pursue(e)
}

// pursue gets what e's wanted version needs, and delivers it.
func (s *session) pursue(e *extension) error {
	ext := e.wanted.ext
	switch _, err := ext.Want(); {
	case errors.Is(err, ecds.ErrNotRemote):
		body, err := ext.Pass()
		if err != nil {
			return s.refuse(e, resultMarshalFailure, err)
		}
		s.relay.metrics.converted(resultNoRemoteLoad, e.wanted.arrived)
		return s.deliver(e, &delivery{name: e.name, gen: e.wanted.gen, version: realVersion(e.wanted.version, nil), body: body})
	case err != nil:
		return s.refuse(e, wantResult(err), err)
	}
	s.fetch(e, 0)
	if e.situation == ecds.Starting {
		return nil
	}
	// A listener that waits for its extension would go live without it, and
	// answer 500, as soon as Envoy refuses any other or loses the stream.
	return s.standIn(e)
}

// renamed acts on extensions that no listener has any more, and on those that
// have one again. The former become a no-op: Envoy keeps what it has of them for
// listeners that drain, and would give it to a new extension of the same name.
func (s *session) renamed(gone, back []string) error {
	for _, name := range gone {
		delete(s.awaited, name)
		e := s.extensions[name]
		if e == nil || e.ext == nil || e.idle {
			continue
		}
		e.idle = true
		if e.cancel != nil {
			e.cancel()
			e.cancel = nil
		}
		if err := s.rest(e); err != nil {
			return err
		}
	}
	for _, name := range back {
		e := s.extensions[name]
		if e == nil || !e.idle {
			continue
		}
		e.idle = false
		if e.wanted == nil || e.wanted.ext == nil || e.wanted.ext != e.ext {
			continue // there is nothing to be had yet
		}
		if err := s.pursue(e); err != nil {
			return err
		}
	}
	return s.sendHeld()
}

// rest makes e a no-op after what is on its way.
func (s *session) rest(e *extension) error {
	body, err := e.ext.Fallback(ecds.Allow, s.relay.listenerTypes(e.name))
	if err != nil {
		if errors.Is(err, ecds.ErrNoFallback) {
			return nil
		}
		return err
	}
	s.relay.drop(func(name string) bool { return name == e.name })
	return s.deliver(e, &delivery{name: e.name, version: standInVersion("none", ecds.Allow), body: body, verdict: ecds.Allow})
}

// fetch starts a fetch of e's module after delay.
func (s *session) fetch(e *extension, delay time.Duration) {
	ctx, cancel := context.WithCancel(s.ctx)
	e.cancel = cancel
	s.start(ctx, e.name, e.wanted.gen, delay, e.wanted)
}

// fetched takes the outcome of a fetch.
func (s *session) fetched(name string, gen uint64, lease *store.Lease, err error) error {
	e := s.extensions[name]
	if e == nil || e.wanted == nil || e.wanted.gen != gen || e.cancel == nil {
		lease.Release() // the result of what is not wanted any more
		return nil
	}
	e.cancel()
	e.cancel = nil
	if err != nil {
		e.tries++
		if errors.As(err, new(Refusal)) {
			return s.refuse(e, resultFetchFailure, err)
		}
		if err := s.refuse(e, resultFetchFailure, err); err != nil {
			return err
		}
		s.fetch(e, backoff(e.tries, s.relay.random()))
		return nil
	}
	body, err := e.wanted.ext.Localize(lease.Path)
	if err != nil {
		lease.Release()
		return s.refuse(e, resultMarshalFailure, err)
	}
	s.relay.metrics.converted(resultSuccess, e.wanted.arrived)
	return s.deliver(e, &delivery{
		name:    name,
		gen:     gen,
		version: realVersion(e.wanted.version, lease),
		body:    body,
		lease:   lease,
	})
}

// refuse tells the control plane that e's wanted version cannot be had, and
// gives Envoy a stand-in if it has nothing.
func (s *session) refuse(e *extension, result string, err error) error {
	s.relay.metrics.converted(result, e.wanted.arrived)
	s.relay.cfg.Log.Warn("extension refused",
		"extension", e.name, "version", e.wanted.version, "try", e.tries, "runs", e.have, "reason", err)
	s.settle(e, failed(err))
	return errors.Join(s.standIn(e), s.answer(e.wanted.nonce))
}

// standIn gives Envoy something to run instead of e if it has nothing.
func (s *session) standIn(e *extension) error {
	if e.have != "" || e.sent != nil || e.wanted.ext == nil {
		return nil
	}
	return s.sendStandIn(e, e.wanted.ext.Verdict(e.situation), s.relay.listenerTypes(e.name))
}

func (s *session) sendStandIn(e *extension, v ecds.Verdict, types []string) error {
	body, err := e.wanted.ext.Fallback(v, types)
	if errors.Is(err, ecds.ErrNoFallback) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.send(e, &delivery{
		name:    e.name,
		version: standInVersion(e.wanted.version, v),
		body:    body,
		verdict: v,
		types:   types,
	})
}

// deliver sends d to Envoy, after what is under way, and not while a listener may be
// opened by its refusal. An extension that is new
// to a serving Envoy is a no-op first (one with a remote module is already):
// should Envoy refuse d, it has that.
func (s *session) deliver(e *extension, d *delivery) error {
	if e.sent == nil && e.have == d.version {
		return s.running(e, d) // Envoy has it from an earlier stream
	}
	if e.sent == nil && e.have == "" && e.situation == ecds.Serving {
		if err := s.standIn(e); err != nil {
			return err
		}
	}
	if e.next != nil {
		e.next.lease.Release()
	}
	e.next = d
	return s.sendNext(e)
}

// sendNext sends what is next for e, if it may go.
func (s *session) sendNext(e *extension) error {
	d := e.next
	if d == nil || e.sent != nil || d.gen != 0 && s.exposed(e.name) {
		return nil
	}
	e.next = nil
	return s.send(e, d)
}

// sendHeld sends what was held back, if nothing is exposed any more.
func (s *session) sendHeld() error {
	for _, name := range slices.Sorted(maps.Keys(s.extensions)) {
		if err := s.sendNext(s.extensions[name]); err != nil {
			return err
		}
	}
	return nil
}

// await notes that a listener on its way brings extensions to a serving Envoy that it
// has nothing for. Until it has, it is sent nothing that it may refuse: with any refusal
// of an extension config Envoy tells all that wait for theirs that there is none, so that
// the listener would go live without these, and answer 500. It returns what ends the
// wait, to be given to awaitedEnough, and whether there is one: Envoy may refuse the
// listener, and the control plane may not have the extension.
func (s *session) await(names []string) (wait uint64, begun bool) {
	if !s.relay.cfg.Serving() {
		return 0, false
	}
	s.awaits++
	for _, name := range names {
		if e := s.extensions[name]; e == nil || e.have == "" {
			s.awaited[name] = s.awaits
			begun = true
		}
	}
	return s.awaits, begun
}

// awaitedEnough ends a wait that Envoy has not.
func (s *session) awaitedEnough(wait uint64) error {
	maps.DeleteFunc(s.awaited, func(_ string, w uint64) bool { return w == wait })
	return s.sendHeld()
}

// exposed says whether a listener waits for extensions, and not for this one: what it
// waits for goes at once, where there is no stand-in for it.
func (s *session) exposed(name string) bool {
	_, own := s.awaited[name]
	return len(s.awaited) > 0 && !own
}

func (s *session) send(e *extension, d *delivery) error {
	s.nonces++
	nonce := strconv.FormatUint(s.nonces, 10)
	f, err := s.d.deliver(nonce, resource{d.name, d.version, d.body})
	if err != nil {
		return fmt.Errorf("encode extension config %s: %w", d.name, err)
	}
	e.sent = d
	s.deliveries[nonce] = d
	s.down = append(s.down, f)
	return nil
}

// answered takes Envoy's ack of a delivery, or its nack if reject is not empty.
func (s *session) answered(nonce, reject string) error {
	d := s.deliveries[nonce]
	if d == nil {
		return nil // a request that repeats the last nonce only to subscribe
	}
	delete(s.deliveries, nonce)
	if s.d.cumulative() {
		if err := s.answeredBefore(nonce); err != nil {
			return err
		}
	}
	e := s.extensions[d.name]
	if e == nil || e.sent != d {
		return nil // unsubscribed meanwhile
	}
	e.sent = nil
	var err error
	if reject == "" {
		err = s.running(e, d)
	} else {
		err = s.rejected(e, d, reject)
	}
	if err != nil {
		return err
	}
	return s.sendNext(e)
}

// answeredBefore takes deliveries before nonce as acked: in state of the world
// Envoy may answer only the last of several responses.
func (s *session) answeredBefore(nonce string) error {
	last, err := strconv.ParseUint(nonce, 10, 64)
	if err != nil {
		return fmt.Errorf("nonce of an extension config: %w", err)
	}
	for n := range s.deliveries {
		if older, _ := strconv.ParseUint(n, 10, 64); older < last {
			if err := s.answered(n, ""); err != nil {
				return err
			}
		}
	}
	return nil
}

// running records that Envoy runs d.
func (s *session) running(e *extension, d *delivery) error {
	e.have = d.version
	delete(s.awaited, e.name)
	if d.again || isStandIn(d.version) {
		return nil
	}
	s.relay.hold(e.name, held{d.version, d.lease, d.body})
	if e.wanted == nil || e.wanted.gen != d.gen {
		return nil
	}
	if e.tries > 0 {
		s.relay.cfg.Log.Info("extension healed", "extension", e.name, "version", d.version)
	}
	e.tries = 0
	s.settle(e, failure{})
	return errors.Join(s.answer(e.wanted.nonce), s.report(e.name))
}

// rejected acts on Envoy's refusal of d.
func (s *session) rejected(e *extension, d *delivery, reason string) error {
	d.lease.Release()
	if d.again {
		s.relay.cfg.Log.Error("extension refused by the proxy that runs it", "extension", e.name, "version", d.version, "reason", reason)
		return nil
	}
	if d.gen == 0 { // a stand-in; one that is Wasm goes wherever e goes
		s.relay.cfg.Log.Error("stand-in refused by the proxy", "extension", e.name, "version", d.version, "reason", reason)
		if len(d.types) == 0 || e.wanted == nil || e.next != nil {
			return nil
		}
		return s.sendStandIn(e, d.verdict, nil)
	}
	if e.next != nil && e.next.same(d) { // Envoy would take it for known, and ack it
		d.gen = e.next.gen
		e.next.lease.Release()
		e.next = nil
	}
	switch {
	case e.next != nil:
		return nil
	case e.wanted == nil:
		return s.restore(e)
	case e.wanted.gen != d.gen:
		return errors.Join(s.standIn(e), s.restore(e))
	}
	s.relay.cfg.Log.Warn("extension refused by the proxy",
		"extension", e.name, "version", d.version, "runs", e.have, "reason", reason)
	s.settle(e, failed(Refusal{errors.New("the proxy refused it: " + reason)}))
	return errors.Join(s.standIn(e), s.restore(e), s.answer(e.wanted.nonce))
}

// passListeners lets listeners go down if no delivery is unanswered. Should Envoy
// refuse one, listeners with that filter would be refused with it; see restore.
func (s *session) passListeners(more ...frame) {
	s.listeners = append(s.listeners, more...)
	for _, e := range s.extensions {
		if e.sent != nil {
			return
		}
	}
	s.down = append(s.down, s.listeners...)
	s.listeners = nil
}

// restore sends Envoy what it runs once more, after it has refused something
// else. Envoy notes a config as the newest before it tries it: until there is
// another, it refuses every change to a listener with this filter, for the same
// reason, and takes what it has refused for known, and acks it, should it come
// again. What an agent before this one delivered is not at hand, and stays away.
func (s *session) restore(e *extension) error {
	if e.have == "" || e.sent != nil {
		return nil
	}
	if isStandIn(e.have) {
		if e.wanted == nil {
			return nil // no listener takes it any more
		}
		_, verdict, _ := cutLast(e.have, "~")
		return s.sendStandIn(e, ecds.Verdict(verdict), s.relay.listenerTypes(e.name))
	}
	h, ok := s.relay.holds(e.name)
	if !ok || h.version != e.have {
		return nil
	}
	return s.send(e, &delivery{name: e.name, version: h.version, body: h.body, again: true})
}

// settle records the outcome of e's wanted version: a failure, or none if it is zero.
func (s *session) settle(e *extension, f failure) {
	b := s.batches[e.wanted.nonce]
	if b == nil {
		return
	}
	delete(b.waiting, e.name)
	if f == (failure{}) {
		delete(b.failed, e.name)
	} else {
		b.failed[e.name] = f
	}
}

// answer acks or nacks the response with that nonce, once its outcome is clear,
// and again when it changes.
func (s *session) answer(nonce string) error {
	b := s.batches[nonce]
	if b == nil || len(b.waiting) > 0 && len(b.failed) == 0 {
		return nil
	}
	say := sayOf(b.failed)
	if say == b.said {
		return nil
	}
	b.said = say
	if len(b.live) == 0 {
		delete(s.batches, nonce)
	}
	if say == ackSaid {
		return s.sendUp(s.d.ack(nonce))
	}
	return s.sendUp(s.d.nack(nonce, codeOf(b.failed), say))
}

// open reports whether the outcome of a response is still open and untold.
func (s *session) open(nonce string) bool {
	b := s.batches[nonce]
	return b != nil && b.said == ""
}

// lateAck acks a response whose outcome is still open, so that a control plane
// that sends nothing new of a type before the last was answered is not held up
// by a slow fetch. Should the fetch fail, a nack with the same nonce follows.
func (s *session) lateAck(nonce string) error {
	if !s.open(nonce) {
		return nil
	}
	s.batches[nonce].said = ackSaid
	return s.sendUp(s.d.ack(nonce))
}

// sayOf is what to say of a batch: ackSaid, or the reasons of a nack.
func sayOf(failed map[string]failure) string {
	if len(failed) == 0 {
		return ackSaid
	}
	reasons := make([]string, 0, len(failed))
	for name, f := range failed {
		reasons = append(reasons, "extension "+name+": "+f.reason)
	}
	slices.Sort(reasons)
	return strings.Join(reasons, "; ")
}

// codeOf is the code of failures that all have the same.
func codeOf(failed map[string]failure) codes.Code {
	code := codes.OK
	for _, f := range failed {
		if code != codes.OK && code != f.code {
			return codes.InvalidArgument
		}
		code = f.code
	}
	return code
}

func (s *session) sendUp(f frame, err error) error {
	if err != nil {
		return fmt.Errorf("encode request for extension configs: %w", err)
	}
	if f != nil {
		s.up = append(s.up, f)
	}
	return nil
}

// end gives back what is not held by Envoy.
func (s *session) end() {
	for _, e := range s.extensions {
		e.release()
	}
}
