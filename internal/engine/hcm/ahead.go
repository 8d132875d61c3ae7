package hcm

import (
	"io"
	"sync"
	"time"
)

// An ahead is the body of a request that is read while a filter holds back its head, as
// much of it as may be held: whether a request is complete when it is answered decides,
// as in Envoy, whether its connection can be used further. Until a filter does that it
// is nothing but the body.
//
// start, Read and Done are for the goroutine that reads the request. A nil one is never
// started.
type ahead struct {
	requestBody
	s       *stream
	arrived func() bool // whether a read would not have to wait
	started bool

	mu      sync.Mutex
	changed *sync.Cond
	reading bool
	held    []byte
	read    int // bytes so far
	ended   bool
	err     error // why, nil if the body tells so itself
	waiting bool  // for more to come, or for room
	closed  bool
}

func newAhead(s *stream, body requestBody, arrived func() bool) *ahead {
	a := &ahead{requestBody: body, s: s, arrived: arrived}
	a.changed = sync.NewCond(&a.mu)
	return a
}

// start begins to read.
func (a *ahead) start() {
	if a == nil || a.started {
		return
	}
	a.started = true
	a.mu.Lock()
	a.reading = true
	a.mu.Unlock()
	a.s.pump.Go(a.run)
}

func (a *ahead) run() {
	buf := a.s.m.buffers.Get().(*[readAtOnce]byte)
	defer a.s.m.buffers.Put(buf)
	for a.room(a.arrived()) {
		n, err := a.requestBody.Read(buf[:])
		a.s.active()
		if a.take(buf[:n], err) {
			break
		}
	}
	if err := a.err; err != nil && err != io.EOF {
		a.s.unreadable(err)
	}
}

// readAtOnce is how much is read at once, and what catchUp is content with.
const readAtOnce = 16 << 10

// room waits until more may be held, and notes whether the read that follows has to
// wait. It returns false once no one wants the body.
func (a *ahead) room(arrived bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.held) >= a.s.m.limit && !a.closed {
		a.waiting = true
		a.changed.Broadcast()
		a.changed.Wait()
	}
	a.waiting = !arrived
	a.changed.Broadcast()
	return !a.closed
}

// take holds what was read, and reports whether that is all.
func (a *ahead) take(p []byte, err error) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held = append(a.held, p...)
	a.read += len(p)
	a.err, a.ended, a.waiting = err, err != nil || isDone(a.requestBody), false
	if err == io.EOF || err == nil && a.ended {
		a.s.request.complete.Store(true)
	}
	a.changed.Broadcast()
	return a.ended
}

func isDone(b requestBody) bool {
	done, ok := b.(interface{ Done() bool })
	return ok && done.Done()
}

// patience is how long catchUp waits for the rest of a chunk's head to come: that some
// of it has come does not tell that a read has to wait.
const patience = 20 * time.Millisecond

// catchUp waits until what has come, or as much as is read at once, is read, if it is
// read ahead.
func (a *ahead) catchUp() {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.reading || a.ended || a.waiting {
		return
	}
	late := false
	defer time.AfterFunc(patience, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		late = true
		a.changed.Broadcast()
	}).Stop()
	for enough := a.read + readAtOnce; !a.ended && !a.waiting && !a.closed && !late && a.read < enough; {
		a.changed.Wait()
	}
}

// Read reads what is held, or the body itself.
func (a *ahead) Read(p []byte) (int, error) {
	if !a.started {
		return a.requestBody.Read(p)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.held) == 0 && !a.ended && !a.closed {
		a.changed.Wait()
	}
	n := copy(p, a.held)
	a.held = a.held[n:]
	a.changed.Broadcast()
	switch {
	case n > 0:
		return n, nil
	case !a.ended: // closed
		return 0, io.ErrClosedPipe
	case a.err == nil:
		return 0, io.EOF
	}
	return 0, a.err
}

// Done reports whether the end was read.
func (a *ahead) Done() bool {
	if !a.started {
		return isDone(a.requestBody)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.held) == 0 && a.ended && (a.err == nil || a.err == io.EOF)
}

// close ends reading ahead.
func (a *ahead) close() {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	a.changed.Broadcast()
}
