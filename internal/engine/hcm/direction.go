package hcm

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/engine/http1"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// A direction is a request or a response on its way through the filters. Those see
// a request in their order, a response in the reverse one.
//
// The goroutine that has the direction feeds it, and waits where a filter holds
// back headers. What a filter holds back of a body goes on when the filter says
// so: by then that goroutine may be waiting for more of the body, so another one
// takes it on. mu lets in one of them at a time.
type direction struct {
	s    *stream
	kind abi.Stream

	mu       sync.Mutex
	resumed  uint64 // filters, of which there are 64 at most, that were told to go on; guarded by s.signal
	held     uint64 // filters that hold back some of the body
	endAt    uint64 // of these, those that have seen the end
	trailAt  uint64 // and those that hold back trailers
	trail    *http1.Fields
	added    *http1.Fields // trailers that a filter adds
	complete atomic.Bool   // the source was read to its end
	resumes  sync.WaitGroup
}

func (d *direction) init(s *stream, kind abi.Stream) { d.s, d.kind = s, kind }

// at returns the i-th filter of the way.
func (d *direction) at(i int) *filter {
	if d.kind == abi.Response {
		return d.s.filters[len(d.s.filters)-1-i]
	}
	return d.s.filters[i]
}

// run passes the request on: its head, then its body, if it has one.
func (d *direction) run(body requestBody, ready bool) {
	s := d.s
	if !d.headers(s.fields, body == nil) {
		s.router.never()
		return
	}
	if body == nil {
		d.complete.Store(true)
		return
	}
	if s.upgrade {
		if !s.waitUpgrade() {
			return
		}
		s.writer.raw()
		body, ready = s.writer.request()
	}
	if !ready {
		s.router.flush()
	}
	d.pump(body)
}

// waitUpgrade waits until the upstream agreed to another protocol, or did not.
func (s *stream) waitUpgrade() bool {
	s.signal.Lock()
	defer s.signal.Unlock()
	for s.signal.upgraded == nil {
		if s.signal.dead || s.signal.local != nil || s.signal.finished {
			return false
		}
		s.signal.cond.Wait()
	}
	return *s.signal.upgraded
}

// pump reads the body of the request until its end, or until no one wants it.
func (d *direction) pump(body requestBody) {
	s := d.s
	buf := s.m.buffers.Get().(*[16 << 10]byte)
	defer s.m.buffers.Put(buf)
	done, _ := body.(interface{ Done() bool })
	for {
		n, err := body.Read(buf[:])
		s.received.Add(int64(n))
		end := err == io.EOF || err == nil && done != nil && done.Done()
		if err != nil && err != io.EOF || end && s.upgrade {
			s.unreadable(err)
			return
		}
		s.active()
		if end {
			d.complete.Store(true)
			if t := body.Trailers(); t != nil {
				_ = (n == 0 || d.feed(buf[:n], false)) && d.end(t)
				return
			}
		}
		if (n > 0 || end) && !d.feed(buf[:n], end) || end {
			return
		}
	}
}

// unreadable ends a stream whose request cannot be read to its end: what comes is
// malformed, or the client is gone.
func (s *stream) unreadable(err error) {
	var refusal *http1.Refusal
	if !errors.As(err, &refusal) {
		s.abort()
		return
	}
	s.m.stats.protocolError.Inc()
	s.reply(&reply{status: refusal.Status, body: http.StatusText(refusal.Status), details: refusal.Details, flag: protocolError})
}

// headers shows the head to every filter, and gives it on. It returns false if
// the stream stops there.
func (d *direction) headers(f *http1.Fields, end bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.kind == abi.Response {
		d.s.head.Store(f)
	}
	for i := range d.s.filters {
		act := d.at(i).headers(d.kind, f, end)
		if act == proxywasm.Pause {
			if !d.wait(i) {
				return false
			}
			_, act = d.at(i).resume(d.kind)
		}
		if act != proxywasm.Continue {
			return false
		}
		if d.s.halted(d.kind) {
			return false
		}
	}
	if d.kind == abi.Response {
		return d.s.writeHead(f, end)
	}
	return d.s.router.headers(f, end)
}

// flush sends the client what there is of the response.
func (d *direction) flush() {
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = d.s.writer.flush(nil) // what comes next fails, too
}

// halted reports whether that direction goes no further.
func (s *stream) halted(kind abi.Stream) bool {
	s.signal.Lock()
	defer s.signal.Unlock()
	return s.signal.dead || s.signal.local != nil || kind == abi.Request && s.signal.finished
}

// wait waits until the i-th filter goes on. d.mu is kept: nothing else moves meanwhile.
func (d *direction) wait(i int) bool {
	s := d.s
	s.signal.Lock()
	defer s.signal.Unlock()
	for d.resumed&(1<<i) == 0 {
		if s.signal.dead || s.signal.local != nil || d.kind == abi.Request && s.signal.finished {
			return false
		}
		s.signal.cond.Wait()
	}
	d.resumed &^= 1 << i
	return true
}

// resume notes that a filter goes on. It does not block.
func (d *direction) resume(f *filter) {
	s := d.s
	i := f.index
	if d.kind == abi.Response {
		i = len(s.filters) - 1 - i
	}
	s.signal.Lock()
	defer s.signal.Unlock()
	d.resumed |= 1 << i
	s.signal.cond.Broadcast()
	if !s.signal.finished && !s.signal.dead {
		d.resumes.Go(func() { d.release(i) })
	}
}

// release passes on what the i-th filter held back, unless whoever waited for its
// headers does.
func (d *direction) release(i int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.s
	s.signal.Lock()
	told := d.resumed&(1<<i) != 0 && !s.signal.dead && s.signal.local == nil
	d.resumed &^= 1 << i
	s.signal.Unlock()
	if !told || d.held&(1<<i) == 0 {
		return
	}
	end, trailers := d.endAt&(1<<i) != 0, d.trailAt&(1<<i) != 0
	out, act := d.at(i).resume(d.kind)
	d.held &^= 1 << i
	d.endAt &^= 1 << i
	d.trailAt &^= 1 << i
	if act != proxywasm.Continue {
		return
	}
	switch {
	case trailers:
		_ = (len(out) == 0 || d.data(i+1, out, false)) && d.trailersFrom(i+1, d.trail)
	case len(out) > 0 || end:
		d.data(i+1, out, end)
	}
}

// feed passes some of the body on. It returns false if the stream stops.
func (d *direction) feed(p []byte, end bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.s.halted(d.kind) {
		return false
	}
	return d.data(0, p, end)
}

// data passes some of the body on from the i-th filter.
func (d *direction) data(i int, p []byte, end bool) bool {
	for ; i < len(d.s.filters); i++ {
		out, act := d.at(i).data(d.kind, p, end)
		switch act {
		case proxywasm.Continue:
			d.held &^= 1 << i
			d.endAt &^= 1 << i
			p = out
		case proxywasm.Pause:
			d.held |= 1 << i
			if end {
				d.endAt |= 1 << i
			}
			return true
		case proxywasm.Overflow:
			d.overflow()
			return false
		default:
			return false
		}
		if end && d.added != nil { // the filter added trailers: the end comes after them
			t := d.added
			d.added = nil
			return (len(p) == 0 || d.data(i+1, p, false)) && d.trailersFrom(i+1, t)
		}
	}
	return d.emit(p, end)
}

// overflow ends a stream of which a filter holds back too much.
func (d *direction) overflow() {
	if d.kind == abi.Request {
		d.s.reply(&reply{status: 413, body: "Payload Too Large", details: "request_payload_too_large"})
		return
	}
	d.s.reply(&reply{status: 500, body: "Internal Server Error", details: "response_payload_too_large"})
}

// end passes trailers on.
func (d *direction) end(t *http1.Fields) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.s.halted(d.kind) {
		return false
	}
	return d.trailersFrom(0, t)
}

func (d *direction) trailersFrom(i int, t *http1.Fields) bool {
	d.trail = t
	if d.kind == abi.Response {
		d.s.trailers.Store(t)
	}
	for ; i < len(d.s.filters); i++ {
		out, act := d.at(i).trailers(d.kind, t)
		switch act {
		case proxywasm.Continue:
			d.held &^= 1 << i
		case proxywasm.Pause:
			d.held |= 1 << i
			d.trailAt |= 1 << i
			return true
		default:
			return false
		}
		if len(out) > 0 && !d.data(i+1, out, false) {
			return false
		}
	}
	return d.emitTrailers(t)
}

// emit gives some of the body to the other side.
func (d *direction) emit(p []byte, end bool) bool {
	s := d.s
	if d.kind == abi.Request {
		s.router.data(p, end)
		return true
	}
	s.sent.Add(int64(len(p)))
	if err := s.writer.data(p, end); err != nil {
		s.abort()
		return false
	}
	return !end || d.emitTrailers(nil)
}

func (d *direction) emitTrailers(t *http1.Fields) bool {
	s := d.s
	if d.kind == abi.Request {
		s.router.trailers(t)
		return true
	}
	err := s.writer.finish(t)
	if err != nil {
		s.abort()
		return false
	}
	s.finished()
	return true
}

// settle waits until the whole response was given to the client.
func (d *direction) settle() {
	s := d.s
	s.signal.Lock()
	for !s.signal.finished && !s.signal.dead {
		s.signal.cond.Wait()
	}
	broken := !s.signal.finished
	s.signal.Unlock()
	if broken {
		s.writer.reset()
	}
}
