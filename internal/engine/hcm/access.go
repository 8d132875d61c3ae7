package hcm

import (
	"strconv"
	"sync"
	"time"
)

// An Access is a request that is over, for whoever wants to log it.
type Access struct {
	Method, Path string // as the client sent them
	Status       int    // that the client saw; 0 if it saw none
	Details      string // why the proxy answered itself, as Envoy words it; may be empty
	Took         time.Duration
	Trace        []string // calls to and from the plugins of the request; see proxywasm.Services
}

// maxTrace bounds the trace of one request, in lines.
const maxTrace = 1000

// A trace is what the plugins of one stream did, in order.
type trace struct {
	mu    sync.Mutex // plugins of one stream may be in different instances
	lines []string
	more  int // lines that are left out
}

func (t *trace) add(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.lines) == maxTrace {
		t.more++
		return
	}
	t.lines = append(t.lines, line)
}

func (t *trace) all() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.more > 0 {
		return append(t.lines, "... "+strconv.Itoa(t.more)+" more")
	}
	return t.lines
}

// Trace is [proxywasm.Tracer]'s.
func (f *filter) Trace(line string) { f.s.trace.add(line) }

// begun notes what may be changed before the request is over.
func (a *Access) begun(s *stream) {
	a.Method, _ = s.fields.Get(":method")
	a.Path, _ = s.fields.Get(":path")
}

// over tells of the request, whose plugins are done with it.
func (a *Access) over(s *stream) {
	a.Status, a.Took, a.Trace = s.status, s.m.env.Now().Sub(s.start), s.trace.all()
	if d := s.details.Load(); d != nil {
		a.Details = *d
	}
	s.m.env.Access(*a)
}
