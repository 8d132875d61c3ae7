package xds

import (
	"errors"
	"fmt"
)

// Errors of streams that are one too many, told with the code ResourceExhausted.
var (
	ErrTooManyStreams = errors.New("too many streams of one credential")
	ErrTooManyClasses = errors.New("too many kinds of proxies of one credential")
)

// maxNode bounds what a client tells of itself, in bytes: an Envoy that lists its
// extensions needs a tenth.
const maxNode = 1 << 20

// A Bound is how much a Server does for one holder of a credential at a time: a
// class costs memory and, at every change, time, and whoever connects can make them
// up.
type Bound struct {
	Holder  string // streams of one are counted together; empty: they are not counted
	Streams int
	Classes int // that these streams are of
}

// A holder is who has streams that are counted.
type holder struct {
	Bound
	streams int
	classes map[string]int // streams by class
}

// enter counts a stream that has begun, and returns who has it; nil if it is not
// counted.
func (s *Server) enter(b Bound) (*holder, error) {
	if b.Holder == "" {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.holders[b.Holder]
	if h == nil {
		h = &holder{classes: make(map[string]int)}
		s.holders[b.Holder] = h
	}
	h.Bound = b
	if h.streams >= h.Streams {
		return nil, fmt.Errorf("%s: %w: %d are open, an agent needs one", h.Holder, ErrTooManyStreams, h.streams)
	}
	h.streams++
	return h, nil
}

// exit is the end of a stream that entered.
func (s *Server) exit(h *holder) {
	if h == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.streams--; h.streams == 0 {
		delete(s.holders, h.Holder)
	}
}

// take counts a stream as one of the class. The lock of the Server is held, as it
// is for drop.
func (h *holder) take(class string) error {
	if h == nil {
		return nil
	}
	if h.classes[class] == 0 && len(h.classes) >= h.Classes {
		return fmt.Errorf("%s: %w: %d are connected", h.Holder, ErrTooManyClasses, len(h.classes))
	}
	h.classes[class]++
	return nil
}

func (h *holder) drop(class string) {
	if h == nil {
		return
	}
	if h.classes[class]--; h.classes[class] == 0 {
		delete(h.classes, class)
	}
}
