package http2

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	h2 "golang.org/x/net/http2"

	"github.com/chandler-proxy/chandler/internal/engine/http1"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// A ResetError is why a stream ended early.
type ResetError struct {
	Code  h2.ErrCode
	Local bool // it was ended at this side
}

func (e *ResetError) Error() string { return fmt.Sprintf("stream reset: %s", e.Code) }

// errDone is what is read and written when there is nothing to be read or written.
var errDone = &ResetError{h2.ErrCodeStreamClosed, true}

// A Stream is a request and its response. One goroutine may read the one while another
// writes the other.
type Stream struct {
	c      *conn
	id     uint32
	fields *http1.Fields // of what is read
	whole  bool          // which is its head alone
	began  time.Time

	// All that follows is guarded by the connection's mutex.
	moved   sync.Cond // something that is waited for, by two goroutines at most
	err     error     // the stream is over
	onReset func()

	blocks   [][]byte // of the body that are not read
	from     int      // in the first of them
	buffered int      // bytes in them
	window   int      // bytes that the peer may send
	unread   int      // bytes that it has not been given back
	left     int64    // of content-length; -1 if there is none
	ended    bool     // the peer sends no more
	deaf     bool     // no one reads
	trailers *http1.Fields

	send     int  // bytes that may be sent
	answered bool // there is a response
	bare     bool // it has no body, whatever its content-length
	done     bool // the response is complete
	stall    *time.Timer
}

func newStream(c *conn, id uint32, f *http1.Fields, end bool, length int64) *Stream {
	s := &Stream{c: c, id: id, fields: f, whole: end, ended: end, began: time.Now(), window: streamWindow, left: length, send: c.first}
	s.moved.L = &c.mu
	return s
}

// Fields is the head of the request, of a server's stream: whoever has the stream owns it.
func (s *Stream) Fields() *http1.Fields { return s.fields }

// End reports whether the request has neither body nor trailers.
func (s *Stream) End() bool { return s.whole }

// OnReset has f called if the stream ends before the handler returns: at once if it has.
// f is called once and must not block.
func (s *Stream) OnReset(f func()) {
	s.c.mu.Lock()
	over := s.err != nil
	if !over {
		s.onReset = f
	}
	s.c.mu.Unlock()
	if over {
		f()
	}
}

// Read reads some of the body. Its end is [io.EOF], which may come with the last of it.
func (s *Stream) Read(p []byte) (int, error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for s.buffered == 0 && !s.ended && s.err == nil && !s.deaf {
		s.moved.Wait()
	}
	switch {
	case s.err != nil && s.buffered == 0:
		return 0, s.err
	case s.deaf:
		return 0, errDone
	}
	n := 0
	for s.buffered > 0 && n < len(p) {
		m := copy(p[n:], s.blocks[0][s.from:])
		n += m
		s.from += m
		s.buffered -= m
		if s.from == len(s.blocks[0]) {
			c.free(s.blocks[0])
			s.blocks[0] = nil
			s.blocks, s.from = s.blocks[1:], 0
		}
	}
	s.giveBack(n)
	if s.ended && s.buffered == 0 {
		return n, io.EOF
	}
	return n, nil
}

// Ready reports whether some of the body can be read without waiting.
func (s *Stream) Ready() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.buffered > 0 || s.ended || s.err != nil
}

// Trailers are those of what is read, once its end was read: nil if there are none.
func (s *Stream) Trailers() *http1.Fields {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.trailers
}

// StopReading has Read fail, from any goroutine. What comes is dropped.
func (s *Stream) StopReading() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.deaf = true
	s.drop()
	s.moved.Broadcast()
}

// drop forgets what was not read. c.mu is held.
func (s *Stream) drop() {
	for _, b := range s.blocks {
		s.c.free(b)
	}
	s.c.giveBack(s.buffered)
	s.blocks, s.from, s.buffered = nil, 0, 0
}

// giveBack lets the peer send as much as was read. c.mu is held.
func (s *Stream) giveBack(n int) {
	s.c.giveBack(n)
	if s.ended || s.err != nil {
		return
	}
	if s.unread += n; s.unread >= streamWindow/4 {
		s.c.out.windowUpdate(s.id, s.unread)
		s.c.out.wake()
		s.window += s.unread
		s.unread = 0
	}
}

// take takes some of the body, which has size bytes with its padding. c.mu is held.
func (s *Stream) take(p []byte, size int, end bool) error {
	c := s.c
	if s.window -= size; s.window < 0 {
		return &ProtocolError{h2.ErrCodeFlowControl, "window of a stream"}
	}
	if s.left >= 0 {
		if s.left -= int64(len(p)); s.left < 0 || end && s.left > 0 {
			c.giveBack(size)
			s.fail(h2.ErrCodeProtocol)
			return nil
		}
	}
	if s.deaf {
		s.giveBack(size)
	} else {
		s.giveBack(size - len(p))
		s.store(p)
	}
	if end {
		s.end()
	}
	s.moved.Broadcast()
	return nil
}

// store keeps some of the body.
func (s *Stream) store(p []byte) {
	s.buffered += len(p)
	for len(p) > 0 {
		last := len(s.blocks) - 1
		if last < 0 || len(s.blocks[last]) == cap(s.blocks[last]) {
			s.blocks = append(s.blocks, s.c.room(len(p)))
			last++
		}
		b := s.blocks[last]
		n := copy(b[len(b):cap(b)], p)
		s.blocks[last] = b[:len(b)+n]
		p = p[n:]
	}
}

// end notes that the peer sends no more. c.mu is held.
func (s *Stream) end() {
	s.ended = true
	s.moved.Broadcast()
	if s.done {
		s.c.forget(s)
	}
}

// Continue tells the client to send the body.
func (s *Stream) Continue() error {
	return s.write(proceed(), false)
}

func proceed() *http1.Fields {
	f := proxywasm.NewResponseFields()
	f.Add(":status", "100")
	return f
}

// WriteHead writes the head of the response. end says that there is nothing else.
func (s *Stream) WriteHead(f *http1.Fields, end bool) error {
	s.c.mu.Lock()
	s.answered = true
	s.c.mu.Unlock()
	return s.write(f, end)
}

// WriteTrailers ends what is written with trailers.
func (s *Stream) WriteTrailers(f *http1.Fields) error { return s.write(f, true) }

func (s *Stream) write(f *http1.Fields, end bool) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for s.err == nil && !s.done && c.out.len() >= enough {
		s.queue(&c.out.crowd)
	}
	if err := s.writable(); err != nil {
		return err
	}
	c.encode(s.id, f, end)
	c.out.wake()
	c.admit()
	if end {
		s.complete()
	}
	return nil
}

func (s *Stream) writable() error {
	if s.err == nil && s.done {
		return errDone
	}
	return s.err
}

// Write writes some of the body. end says that it is the last. It waits until the peer
// lets it be sent and what was written before is on its way.
func (s *Stream) Write(p []byte, end bool) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(p) > 0 || end {
		if err := s.writable(); err != nil {
			return err
		}
		n := min(len(p), maxFrame, max(s.send, 0), max(c.send, 0))
		switch {
		case c.out.len() >= enough:
			s.queue(&c.out.crowd)
			continue
		case n == 0 && len(p) > 0 && s.send <= 0:
			s.wait()
			continue
		case n == 0 && len(p) > 0:
			s.queue(&c.blocked)
			continue
		}
		last := end && n == len(p)
		c.out.data(s.id, p[:n], last)
		c.out.wake()
		p = p[n:]
		s.send -= n
		c.send -= n
		c.unblock()
		c.admit()
		if last {
			s.complete()
			return nil
		}
	}
	return s.err
}

// complete notes that there is nothing else to be written. c.mu is held.
func (s *Stream) complete() {
	s.done = true
	if s.ended {
		s.c.forget(s)
	}
}

// queue waits for its turn. c.mu is held.
func (s *Stream) queue(q *[]*Stream) {
	*q = append(*q, s)
	s.wait()
	*q = slices.DeleteFunc(*q, func(o *Stream) bool { return o == s })
	if s.err != nil {
		s.yield()
	}
}

// yield lets others have what this stream was woken for and does not take. c.mu is held.
func (s *Stream) yield() {
	s.c.unblock()
	s.c.admit()
}

// wait waits until something has moved, but not for ever: a peer that takes nothing
// must not keep what it was sent. c.mu is held.
func (s *Stream) wait() {
	s.yield()
	if d := s.c.stall; d > 0 && s.stall == nil {
		s.stall = time.AfterFunc(d, s.stalled)
	} else if d > 0 {
		s.stall.Reset(d)
	}
	s.moved.Wait()
	if s.stall != nil {
		s.stall.Stop()
	}
}

// stalled ends a stream whose peer took nothing for too long.
func (s *Stream) stalled() { s.Reset(h2.ErrCodeCancel) }

// Reset ends the stream, from any goroutine.
func (s *Stream) Reset(code h2.ErrCode) {
	c := s.c
	c.mu.Lock()
	var told func()
	if s.err == nil && !(s.done && s.ended) {
		c.reset(s.id, code)
		told = s.over(&ResetError{code, true})
	}
	c.mu.Unlock()
	if told != nil {
		told()
	}
}

// fail ends the stream for what the peer did. c.mu is held, by the goroutine that reads.
func (s *Stream) fail(code h2.ErrCode) {
	s.c.reset(s.id, code)
	s.c.tell(s.over(&ResetError{code, true}))
}

// over ends the stream, and returns what is to be called then, without c.mu, which is
// held: nil if there is nothing.
func (s *Stream) over(err error) (told func()) {
	s.err = err
	if !s.c.client { // of a response what has come is passed on
		s.drop()
	}
	s.c.forget(s)
	s.moved.Broadcast()
	told, s.onReset = s.onReset, nil
	return told
}

// serve has the request answered.
func (s *Stream) serve() {
	c := s.c
	defer c.handlers.Done()
	c.handle(s)
	c.mu.Lock()
	c.running--
	s.onReset = nil
	code := h2.ErrCodeInternal
	if s.done { // as in Envoy
		code = h2.ErrCodeNo
	}
	c.mu.Unlock()
	s.Reset(code)
	s.StopReading() // of what came before
}
