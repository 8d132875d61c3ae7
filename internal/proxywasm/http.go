package proxywasm

import (
	"github.com/chandler-proxy/chandler/internal/abi"
)

// An Action is what becomes of what the guest was shown.
type Action uint8

const (
	// Continue lets it go on. For a body, what goes on is what is returned.
	Continue Action = iota
	// Pause holds it back, and all that follows in its direction, until the host is
	// told to Continue. A body is to be shown to the guest further, which may wait for
	// more of it.
	Pause
	// PauseHeaders holds back headers, while the guest wants to see the body: only
	// with AllowHeadersStop.
	PauseHeaders
	// Stop ends it: the guest answered the request, or failed and fails closed. The
	// host has been told, or is about to be.
	Stop
	// Overflow says that more of a body is held back than may be. Envoy answers 413
	// for a request and 500 for a response.
	Overflow
)

// String is the action in words.
func (a Action) String() string {
	return [...]string{"continue", "pause", "pause headers", "stop", "overflow"}[a]
}

// An HTTP is one HTTP request and its response, as a plugin sees them. The two
// directions may be used by two goroutines; each is in order: headers, body, trailers.
//
// What may be changed when follows Envoy: headers, from their callback until they go
// on; a body, likewise; trailers, likewise, and at the end of a body that has none.
type HTTP struct {
	c        Context
	host     HTTPHost
	verdict  Verdict
	req      half
	resp     half
	log      *[4]Headers // by map, while proxy_on_log runs
	answered bool        // with 503, because the guest failed
	closed   bool
}

// A half is one direction of an HTTP stream. Guarded by the instance's lock.
type half struct {
	headers  Headers // nil when the guest may not see them
	trailers Headers
	body     body
	end      bool // the guest has seen the last of the body
	paused   bool

	// While the headers are held back, the rest waits unseen.
	waiting      bool
	waitingBody  []byte
	waitingData  bool // there was a body, if only an empty one
	waitingEnd   bool
	waitingTrail Headers
}

// NewHTTP returns a stream for the plugin, in one of its instances. The guest learns
// of it with the first callback. It must be closed.
func (p *Plugin) NewHTTP(host HTTPHost) *HTTP {
	s := &HTTP{host: host}
	in, verdict := p.choose()
	s.verdict = verdict
	if verdict != Run {
		return s
	}
	in.lock()
	defer in.unlock()
	r := in.roots[p]
	if r == nil { // the plugin is closed, or the instance failed just now
		s.verdict = p.afterFailure()
		return s
	}
	s.c.http, s.c.root = s, r
	s.req.body.room, s.resp.body.room = &in.vm.host.bodies, &in.vm.host.bodies
	in.enter(&s.c)
	p.streams.Add(1)
	return s
}

// afterFailure is what becomes of a stream whose guest failed while it had it.
func (p *Plugin) afterFailure() Verdict {
	if p.cfg.Policy == FailOpen || p.cfg.Policy == FailIgnore {
		return Skip
	}
	return Deny
}

// headersOf returns a map that the guest may see, nil if it may not.
func (s *HTTP) headersOf(m abi.Map) Headers {
	switch m {
	case abi.HTTPRequestHeaders:
		return s.req.headers
	case abi.HTTPRequestTrailers:
		return s.req.trailers
	case abi.HTTPResponseHeaders:
		return s.resp.headers
	}
	return s.resp.trailers
}

// addTrailers makes trailers for a message whose body ends here.
func (d *half) addTrailers(s *HTTP, dir abi.Stream) Headers {
	if d.body.open && d.end && d.trailers == nil {
		if h := s.host.AddTrailers(dir); h != nil {
			d.trailers = h
		}
	}
	return d.trailers
}

// OnRequestHeaders is proxy_on_request_headers. end says that the request has no body.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_on_request_headers
func (s *HTTP) OnRequestHeaders(h Headers, end bool) Action {
	return s.onHeaders(&s.req, onRequestHeaders, h, end)
}

// OnRequestBody is proxy_on_request_body. It returns what goes on, which may be more
// or less than the chunk, may share its memory, and is good until the next call for the
// same direction, or Close.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_on_request_body
func (s *HTTP) OnRequestBody(chunk []byte, end bool) ([]byte, Action) {
	return s.onBody(&s.req, onRequestBody, chunk, end)
}

// OnRequestTrailers is proxy_on_request_trailers. It returns what of the body was held
// back and goes on before them.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_on_request_trailers
func (s *HTTP) OnRequestTrailers(h Headers) ([]byte, Action) {
	return s.onTrailers(&s.req, onRequestTrailers, h)
}

// OnResponseHeaders is proxy_on_response_headers. Envoy shows a plugin the responses
// of others, such as local ones, too, but not the 503 of its own failure.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_on_response_headers
func (s *HTTP) OnResponseHeaders(h Headers, end bool) Action {
	return s.onHeaders(&s.resp, onResponseHeaders, h, end)
}

// OnResponseBody is proxy_on_response_body. It returns what goes on, which may be more
// or less than the chunk, may share its memory, and is good until the next call for the
// same direction, or Close.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_on_response_body
func (s *HTTP) OnResponseBody(chunk []byte, end bool) ([]byte, Action) {
	return s.onBody(&s.resp, onResponseBody, chunk, end)
}

// OnResponseTrailers is proxy_on_response_trailers. It returns what of the body was
// held back and goes on before them.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_on_response_trailers
func (s *HTTP) OnResponseTrailers(h Headers) ([]byte, Action) {
	return s.onTrailers(&s.resp, onResponseTrailers, h)
}

// enter locks the instance for a callback. If it returns false the guest is not to be
// called, and the action is already known.
func (s *HTTP) enter(d *half) (Action, bool) {
	switch s.verdict {
	case Skip:
		return Continue, false
	case Deny:
		return s.deny(d), false
	}
	s.c.in.lock()
	if s.c.in.failed.Load() != nil || s.closed {
		act, local := s.failure(d)
		s.c.in.unlock()
		s.answer(local)
		return act, false
	}
	s.c.create()
	return Continue, true
}

// leave unlocks the instance after a callback, whose action it was unless the guest
// failed.
func (s *HTTP) leave(d *half, act Action) Action {
	local := false
	if s.c.in.failed.Load() != nil {
		act, local = s.failure(d)
	}
	s.c.in.unlock()
	s.answer(local)
	return act
}

// failure is the action of a stream whose guest failed, and whether to answer it, see
// [FailPolicy]. As in Envoy that answer passes, and what else may come after it does too.
func (s *HTTP) failure(d *half) (act Action, answer bool) {
	switch {
	case s.closed, s.c.root.plugin.cfg.Policy == FailIgnore:
		return Continue, false
	case s.answered && d == &s.resp:
		return Continue, false
	case s.answered:
		return Stop, false
	}
	s.answered = true
	return Stop, true
}

func (s *HTTP) answer(local bool) {
	if local {
		s.host.SendLocalResponse(failure())
	}
}

// deny answers a stream that never had a guest.
func (s *HTTP) deny(d *half) Action {
	switch {
	case d == &s.resp:
		return Continue
	case !s.answered:
		s.answered = true
		s.answer(true)
	}
	return Stop
}

func (s *HTTP) onHeaders(d *half, cb callback, h Headers, end bool) Action {
	act, ok := s.enter(d)
	if !ok {
		return act
	}
	in := s.c.in
	d.headers, d.end = h, end
	status := in.call(&s.c, cb, s.c.id, uint32(h.Len()), asUint(end))
	act = s.headersAction(status)
	switch act {
	case Continue:
		d.headers = nil
	case Pause:
		d.paused, d.waiting = true, true
	case PauseHeaders:
		d.paused = true
	}
	return s.leave(d, act)
}

// headersAction is what a headers callback wants. Envoy stops all that follows even if
// the guest wants to stop the headers alone, unless told otherwise.
func (s *HTTP) headersAction(status uint32) Action {
	switch {
	case s.c.in.stop:
		return Stop
	case abi.HeadersStatus(status) == abi.HeadersContinue:
		return Continue
	case abi.HeadersStatus(status) == abi.HeadersStop && s.c.root.plugin.cfg.AllowHeadersStop:
		return PauseHeaders
	}
	return Pause
}

func (s *HTTP) onBody(d *half, cb callback, chunk []byte, end bool) ([]byte, Action) {
	act, ok := s.enter(d)
	if !ok {
		return d.passed(chunk, act)
	}
	if d.waiting {
		d.waitingBody = append(d.waitingBody, chunk...)
		d.waitingData, d.waitingEnd = true, end
		return nil, s.leave(d, s.bounded(len(d.waitingBody)))
	}
	out, act := s.showBody(d, cb, chunk, end)
	return goesOn(out, s.leave(d, act))
}

// goesOn is what was let go, unless the stream then stopped.
func goesOn(out []byte, act Action) ([]byte, Action) {
	if act != Continue {
		return nil, act
	}
	return out, act
}

// passed is what was held back, and the chunk, if the stream goes on without the guest.
func (d *half) passed(chunk []byte, act Action) ([]byte, Action) {
	held := append(d.body.take(), d.waitingBody...)
	d.waiting, d.waitingBody, d.waitingData, d.waitingTrail = false, nil, false, nil
	if len(held) > 0 {
		chunk = append(held, chunk...)
	}
	return passed(chunk, act)
}

// passed is the chunk if the stream goes on without the guest.
func passed(chunk []byte, act Action) ([]byte, Action) {
	if act == Continue {
		return chunk, act
	}
	return nil, act
}

// bounded is Pause, or Overflow if too much is held back.
func (s *HTTP) bounded(n int) Action {
	if n > s.c.root.plugin.cfg.BufferLimit {
		return Overflow
	}
	return Pause
}

// showBody shows the guest a chunk, with what it held back of those before.
func (s *HTTP) showBody(d *half, cb callback, chunk []byte, end bool) ([]byte, Action) {
	in, b := s.c.in, &d.body
	b.add(chunk)
	d.end = end
	status := abi.DataStatus(in.call(&s.c, cb, s.c.id, uint32(len(b.visible)), asUint(end)))
	switch {
	case in.failed.Load() != nil:
		return b.take(), Continue // heeded for FailIgnore alone
	case in.stop:
		b.take()
		return nil, Stop
	case status == abi.DataContinue:
		d.paused = false
		return b.take(), Continue
	}
	b.hold(status)
	d.paused = true
	return nil, s.bounded(b.size())
}

func (s *HTTP) onTrailers(d *half, cb callback, h Headers) ([]byte, Action) {
	act, ok := s.enter(d)
	if !ok {
		return d.passed(nil, act)
	}
	if d.waiting {
		d.waitingTrail = h
		return nil, s.leave(d, Pause)
	}
	out, act := s.showTrailers(d, cb, h)
	return goesOn(out, s.leave(d, act))
}

func (s *HTTP) showTrailers(d *half, cb callback, h Headers) ([]byte, Action) {
	in := s.c.in
	d.trailers = h
	status := in.call(&s.c, cb, s.c.id, uint32(h.Len()))
	switch {
	case in.stop:
		return nil, Stop
	case status == 0:
		d.trailers, d.paused = nil, false
		return d.body.take(), Continue
	}
	d.paused = true
	return nil, Pause
}

// continued is proxy_continue_stream, done.
func (c *Context) continued(dir abi.Stream) {
	var paused *bool
	switch {
	case c.tcp != nil:
		paused = &c.tcp.down.paused
	case dir == abi.Request:
		paused = &c.http.req.paused
	default:
		paused = &c.http.resp.paused
	}
	c.in.lock()
	was := *paused
	*paused = false
	c.in.unlock()
	switch {
	case !was:
	case c.tcp != nil:
		c.tcp.host.Continue(dir)
	default:
		c.http.host.Continue(dir)
	}
}

// Resume returns what was held back of a direction that the host was told to Continue,
// as long-lived as what OnRequestBody returns.
// If that were its headers, they go on now, and what came after them meanwhile is
// shown to the guest: its action is that of this.
func (s *HTTP) Resume(dir abi.Stream) ([]byte, Action) {
	d, bodyCB, trailersCB := &s.req, onRequestBody, onRequestTrailers
	if dir == abi.Response {
		d, bodyCB, trailersCB = &s.resp, onResponseBody, onResponseTrailers
	}
	act, ok := s.enter(d)
	if !ok {
		return d.passed(nil, act)
	}
	d.headers = nil
	if !d.waiting {
		return d.body.take(), s.leave(d, Continue)
	}
	out, act := s.showWaiting(d, bodyCB, trailersCB)
	return goesOn(out, s.leave(d, act))
}

func (s *HTTP) showWaiting(d *half, bodyCB, trailersCB callback) (out []byte, act Action) {
	chunk, data, end, trailers := d.waitingBody, d.waitingData, d.waitingEnd, d.waitingTrail
	d.waiting, d.waitingBody, d.waitingData, d.waitingEnd, d.waitingTrail = false, nil, false, false, nil
	if data {
		if out, act = s.showBody(d, bodyCB, chunk, end); act == Stop || act == Overflow {
			return out, act
		}
	}
	if trailers == nil || s.c.in.failed.Load() != nil {
		return out, act
	}
	rest, act := s.showTrailers(d, trailersCB, trailers)
	return append(out, rest...), act
}

// OnLog is proxy_on_log, at the end of the stream, with the maps that its access log
// sees; any may be nil. A stream that the guest has not seen yet is created for it, as
// in Envoy.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_on_log
func (s *HTTP) OnLog(request, response, responseTrailers Headers) {
	if s.verdict != Run {
		return
	}
	s.c.in.lock()
	defer s.c.in.unlock()
	if s.closed || s.c.in.failed.Load() != nil {
		return
	}
	s.c.create()
	s.log = &[4]Headers{abi.HTTPRequestHeaders: request, abi.HTTPResponseHeaders: response, abi.HTTPResponseTrailers: responseTrailers}
	s.c.in.call(&s.c, onLog, s.c.id)
	s.log = nil
}

// Close is proxy_on_done and proxy_on_delete. Envoy calls them after proxy_on_log,
// other than the specification says, and lets a stream not wait for proxy_done. It may
// be called more than once.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_on_done
func (s *HTTP) Close() {
	if s.verdict != Run {
		return
	}
	s.c.in.lock()
	defer s.c.in.unlock()
	if s.closed {
		return
	}
	s.closed = true
	if s.c.created {
		s.c.in.call(&s.c, onDone, s.c.id)
	}
	s.c.remove()
	s.req.body.done()
	s.resp.body.done()
	s.c.root.plugin.end()
}

// ID is the number by which the guest knows the stream, 0 if it does not see it.
func (s *HTTP) ID() uint32 { return s.c.id }

func asUint(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}
