package hcm

import (
	"context"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/engine/config"
	"github.com/chandler-proxy/chandler/internal/engine/http1"
	"github.com/chandler-proxy/chandler/internal/engine/upstream"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// A requestBody is that of a request.
type requestBody interface {
	io.Reader
	Trailers() *http1.Fields
}

// A writer is the client's side of a stream. One goroutine uses it.
type writer interface {
	// request returns the body of the request, and whether some of it is at hand.
	request() (body requestBody, ready bool)
	// raw makes the body whatever the client sends from now on.
	raw()
	// proceed tells the client to send the body.
	proceed() error
	// interrupt ends reading the body, from any goroutine.
	interrupt()
	// early says that the response comes before the end of the request.
	early()
	// multiplexed reports whether other streams share the connection.
	multiplexed() bool
	headers(f *http1.Fields, end bool) error
	// flush sends what is not sent yet.
	flush(err error) error
	data(p []byte, more bool) error
	finish(trailers *http1.Fields) error
	// reset ends a response that was begun and cannot be completed.
	reset()
}

// A stream is one request and its response.
//
// What is used by one goroutine at a time is not guarded: the request's side by
// request.mu, the response's by response.mu. signal guards what tells one side of
// the other.
type stream struct {
	m        *Manager
	conn     *Conn
	writer   writer
	protocol string
	start    time.Time
	ctx      context.Context
	cancel   context.CancelFunc

	routes   *config.Routes // of when the request came; nil if there are none
	fields   *http1.Fields  // of the request
	end      bool           // the request has no body
	upgrade  bool
	remote   remote
	filters  []*filter
	request  direction
	response direction
	router   router
	pump     sync.WaitGroup

	signal struct {
		sync.Mutex
		cond     *sync.Cond
		local    *reply // to be sent in place of a response
		phase    phase
		routed   routed
		upgraded *bool // whether the upstream agreed to another protocol; nil if it has not said
		dead     bool  // reset
		finished bool  // the response is complete
	}

	head     atomic.Pointer[http1.Fields] // of the response, once filters see it
	trailers atomic.Pointer[http1.Fields] // of the response
	details  atomic.Pointer[string]
	flags    flags
	backend  atomic.Int64 // nanoseconds that the upstream took for all of its response; 0 before
	set      *proxywasm.FilterState
	ahead    *ahead // of the body of a request over HTTP/1.1
	status   int
	idle     *time.Timer  // nil without a limit
	sent     atomic.Int64 // bytes of the response's body
	received atomic.Int64 // and of the request's
	trace    trace        // of plugins
}

func newStream(ctx context.Context, m *Manager, c *Conn, f *http1.Fields, w writer, protocol string) *stream {
	s := &stream{m: m, conn: c, fields: f, writer: w, protocol: protocol, start: m.env.Now(), routes: m.routes(), remote: remote{c.Remote}}
	s.ctx, s.cancel = context.WithCancel(ctx)
	s.set = proxywasm.NewFilterState(ConnectionState(ctx))
	s.signal.cond = sync.NewCond(&s.signal)
	s.request.init(s, abi.Request)
	s.response.init(s, abi.Response)
	s.router.init(s)
	return s
}

// run does everything.
func (s *stream) run() {
	m := s.m
	m.stats.rqTotal.Inc()
	m.stats.rqActive.Inc()
	defer m.stats.rqActive.Dec()
	if m.env.Access != nil {
		access := new(Access)
		access.begun(s)
		defer access.over(s)
	}
	defer s.close()
	if d := m.cfg.StreamIdle; d > 0 {
		s.idle = time.AfterFunc(d, s.idled)
	}
	if !s.prepare() {
		s.answer()
		return
	}
	s.openFilters()
	if s.end {
		s.request.run(nil, false)
	} else {
		body, ready := s.writer.request()
		if w, ok := s.writer.(*writer1); ok && !s.upgrade {
			s.ahead = newAhead(s, body, w.arrived)
			body = s.ahead
		}
		s.pump.Go(func() {
			m.deepen()
			s.request.run(body, ready)
		})
	}
	s.answer()
}

// active says that something moved.
func (s *stream) active() {
	if s.idle != nil {
		s.idle.Reset(s.m.cfg.StreamIdle)
	}
}

// idled ends a stream in which nothing moved for too long.
func (s *stream) idled() {
	status := 504
	if !s.end && !s.request.complete.Load() {
		status = 408
	}
	s.reply(&reply{status: status, body: "stream timeout", details: "stream_idle_timeout", flag: streamIdle})
}

// answer passes the response on: the upstream's, or the proxy's own.
func (s *stream) answer() {
	resp := s.router.response()
	if local := s.takeLocal(); local != nil {
		if resp != nil {
			s.router.abandon()
		}
		s.respond(local)
		return
	}
	if resp == nil { // reset
		s.flag(clientGone)
		s.writer.reset()
		return
	}
	s.forward(resp)
}

// A phase is how far a response is.
type phase uint8

const (
	waiting  phase = iota
	filtered       // filters see it
	begun          // the client has its head
)

// takeLocal returns the proxy's own answer if there is to be one.
func (s *stream) takeLocal() *reply {
	s.signal.Lock()
	defer s.signal.Unlock()
	s.signal.phase = filtered
	local := s.signal.local
	s.signal.local = nil
	return local
}

// reply has the proxy answer itself, unless the client has the head of a response
// already; then the stream is reset.
func (s *stream) reply(r *reply) {
	s.signal.Lock()
	switch {
	case s.signal.finished, s.signal.dead, s.signal.local != nil:
	case s.signal.phase == begun:
		s.signal.dead = true
	default:
		s.signal.local = r
	}
	s.signal.cond.Broadcast()
	s.signal.Unlock()
	s.router.stop()
}

// commit reports whether the head may be given to the client: no filter wants
// another answer.
func (s *stream) commit() bool {
	s.signal.Lock()
	defer s.signal.Unlock()
	if s.signal.local != nil || s.signal.dead {
		return false
	}
	s.signal.phase = begun
	return true
}

// abort resets the stream: the client is gone, or a plugin wants it.
func (s *stream) abort() {
	s.signal.Lock()
	if !s.signal.finished {
		s.signal.dead = true
	}
	s.signal.cond.Broadcast()
	s.signal.Unlock()
	s.router.stop()
	s.cancel()
}

// stopped reports whether the request goes no further.
func (s *stream) stopped() bool {
	s.signal.Lock()
	defer s.signal.Unlock()
	return s.signal.local != nil || s.signal.dead || s.signal.finished
}

func (s *stream) dead() bool {
	s.signal.Lock()
	defer s.signal.Unlock()
	return s.signal.dead
}

// respond sends the proxy's own answer through the filters.
func (s *stream) respond(r *reply) {
	f, end := r.head(s), r.body == ""
	if !s.response.headers(f, end) {
		s.respondDirect()
		return
	}
	if !end {
		s.response.feed([]byte(r.body), true)
	}
	s.response.settle()
}

// respondDirect sends the answer that a filter wants in place of a response whose
// head it was shown. No filter sees it.
func (s *stream) respondDirect() {
	r := s.takeLocal()
	if r == nil {
		s.writer.reset()
		return
	}
	f, end := r.head(s), r.body == ""
	if !s.writeHead(f, end) {
		s.writer.reset()
		return
	}
	if !end {
		_ = s.writer.data([]byte(r.body), true)
		_ = s.writer.finish(nil)
		s.sent.Add(int64(len(r.body)))
		s.finished()
	}
}

// forward passes the upstream's response through the filters.
func (s *stream) forward(resp *upstream.Response) {
	if !s.response.headers(resp.Fields, resp.End) {
		s.router.abandon()
		s.respondDirect()
		return
	}
	if s.upgrade {
		s.signal.Lock()
		s.signal.upgraded = &resp.Upgraded
		s.signal.cond.Broadcast()
		s.signal.Unlock()
	}
	if b, ok := resp.Body.(interface{ Ready() bool }); !resp.End && !(ok && b.Ready()) {
		s.response.flush()
	}
	if resp.End {
		s.router.heard()
	}
	if !resp.End && !s.copyBody(resp) {
		s.router.abandon()
		s.writer.reset()
		return
	}
	s.response.settle()
}

// copyBody reads the response's body until its end. It returns false if that does not come.
func (s *stream) copyBody(resp *upstream.Response) bool {
	buf := s.m.buffers.Get().(*[16 << 10]byte)
	defer s.m.buffers.Put(buf)
	done, _ := resp.Body.(interface{ Done() bool })
	for {
		n, err := resp.Body.Read(buf[:])
		s.active()
		if s.dead() {
			return false
		}
		end := err == io.EOF || err == nil && done != nil && done.Done()
		if err != nil && err != io.EOF {
			return false
		}
		if end {
			s.router.heard()
			if t := resp.Body.Trailers(); t != nil {
				return s.response.feed(buf[:n], false) && s.response.end(t)
			}
		}
		if (n > 0 || end) && !s.response.feed(buf[:n], end) {
			return false
		}
		if end {
			return true
		}
	}
}

// writeHead gives the head of the response to the client.
func (s *stream) writeHead(f *http1.Fields, end bool) bool {
	if !s.commit() {
		return false
	}
	s.finalize(f)
	if !s.end && !s.hasRequest() {
		s.writer.early()
	}
	s.status = statusOf(f)
	s.m.answered(s.status)
	if err := s.writer.headers(f, end); err != nil {
		s.abort()
		return false
	}
	if end {
		s.finished()
	}
	return true
}

// hasRequest reports whether the whole request has come.
func (s *stream) hasRequest() bool {
	s.ahead.catchUp()
	return s.request.complete.Load()
}

func (s *stream) finished() {
	s.signal.Lock()
	s.signal.finished = true
	s.signal.cond.Broadcast()
	s.signal.Unlock()
}

// close ends the stream. The body of the request that is not read yet never will be.
func (s *stream) close() {
	if s.idle != nil {
		s.idle.Stop()
	}
	s.finished()
	if !s.request.complete.Load() {
		if !s.end {
			s.writer.interrupt()
		}
		s.router.stop()
	}
	s.ahead.close()
	s.pump.Wait()
	s.router.close()
	s.request.resumes.Wait()
	s.response.resumes.Wait()
	s.log()
	s.closeFilters()
	s.cancel()
}

func statusOf(f *http1.Fields) int {
	v, _ := f.Get(":status")
	return atoi(v)
}

func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0
	}
	return n
}

// cutQuery cuts a path at its query, without the fragment.
func cutQuery(path string) (string, string) {
	if i := strings.IndexByte(path, '#'); i >= 0 {
		path = path[:i]
	}
	p, q, _ := strings.Cut(path, "?")
	return p, q
}
