package http2

import (
	"sync"
	"time"
)

// respite is how long a worker that has nothing to do is kept.
const respite = time.Second

// workers are goroutines that serve streams: one that has done so is used again, and
// with it its stack, which has grown to what plugins take. Who waits for a worker waits
// for its stream; one without ends by itself.
type workers struct {
	mu    sync.Mutex
	idle  []chan *Stream // the last used last
	spare int            // how many were idle at the least since the clock was set
	armed bool
}

// do has s served, at once.
func (w *workers) do(s *Stream) {
	w.mu.Lock()
	n := len(w.idle) - 1
	if n < 0 {
		w.mu.Unlock()
		go w.work(s) // the connection waits for its streams
		return
	}
	next := w.idle[n]
	w.idle = w.idle[:n]
	w.spare = min(w.spare, n)
	w.mu.Unlock()
	next <- s
}

func (w *workers) work(s *Stream) {
	next := make(chan *Stream, 1)
	for s != nil {
		s.serve()
		w.mu.Lock()
		w.idle = append(w.idle, next)
		if !w.armed {
			w.armed, w.spare = true, len(w.idle)
			time.AfterFunc(respite, w.dismiss)
		}
		w.mu.Unlock()
		s = <-next
	}
}

// dismiss ends the workers that were not needed lately.
func (w *workers) dismiss() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, next := range w.idle[:w.spare] {
		close(next)
	}
	w.idle = append([]chan *Stream(nil), w.idle[w.spare:]...)
	w.spare = len(w.idle)
	if w.armed = len(w.idle) > 0; w.armed {
		time.AfterFunc(respite, w.dismiss)
	}
}
