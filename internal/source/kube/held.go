package kube

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
)

// held is what the API server holds, as far as it was read.
type held struct {
	decoder *resource.Decoder
	log     *slog.Logger
	metrics *metrics
	changed chan struct{} // holds one
	missing chan struct{} // a kind may be gone; holds one

	mu     sync.Mutex
	sets   map[*set]bool // of kinds that there are
	served access        // which kinds there are
	begun  bool          // all was settled once
	down   bool          // the API server does not answer
}

// signal tells whoever reads c, which holds one, that there is something to do.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// add makes s part of what is held.
func (h *held) add(s *set) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sets[s] = true
}

// drop takes away s with all that it holds. Its reflector may still be ending.
func (h *held) drop(s *set) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.gone = true
	delete(h.sets, s)
	signal(h.changed)
}

// note takes down what became of a request for what a tells, which the log calls
// resource.
func (h *held) note(ctx context.Context, a *access, resource, verb string, err error) {
	if ctx.Err() != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.noteAnswer(err)
	if err != nil {
		h.metrics.errors.WithLabelValues(resource).Inc()
	}
	if !a.record(verb, err, time.Now()) {
		return
	}
	signal(h.changed)
	if err != nil {
		h.log.Warn("cannot read resources", "resource", resource, "verb", verb, "error", err)
	} else {
		h.log.Info("can read resources again", "resource", resource, "verb", verb)
	}
}

// noteAnswer tells once that the API server does not answer, and once that it does.
func (h *held) noteAnswer(err error) {
	down := err != nil && !isAnswer(err)
	switch {
	case down && !h.down:
		h.log.Warn("the API server does not answer; what was read stays in force", "error", err)
	case !down && h.down:
		h.log.Info("the API server answers again")
	}
	h.down = down
}

// snapshot is all that is held but the Secrets. There is none until all was
// settled once; a kind that appears later is not waited for.
func (h *held) snapshot() (s source.Snapshot, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	settled := h.served.settled()
	s.Unread = !h.served.read
	if err := h.served.refusal(); err != nil {
		s.Problems = append(s.Problems, undiscovered(err))
	}
	n := 0
	for set := range h.sets {
		settled = settled && set.settled()
		n += len(set.items)
	}
	h.begun = h.begun || settled
	if !h.begun {
		return source.Snapshot{}, false
	}
	s.Objects = make([]resource.Object, 0, n)
	for set := range h.sets {
		s.Unread = s.Unread || !set.read
		set.appendTo(&s)
	}
	slices.SortFunc(s.Problems, func(a, b resource.Problem) int { return cmp.Compare(a.String(), b.String()) })
	return s, true
}

// appendTo adds what is held of s to a snapshot. It needs the lock.
func (s *set) appendTo(snapshot *source.Snapshot) {
	if err := s.refusal(); err != nil {
		snapshot.Problems = append(snapshot.Problems, s.refused(err))
	}
	for _, i := range s.items {
		snapshot.Problems = append(snapshot.Problems, i.problems...)
		if len(i.problems) > 0 {
			snapshot.Refused = append(snapshot.Refused, i.refused)
		}
		if i.object != nil {
			snapshot.Objects = append(snapshot.Objects, i.object)
		}
	}
}

// refused is the problem that s cannot be read, by err.
func (s *set) refused(err error) resource.Problem {
	p := resource.Problem{
		Kind: s.name, Namespace: s.one.Namespace, Name: s.one.Name,
		Message: "cannot be read: " + err.Error(), Mend: "what was read before stays in force; it is tried again",
	}
	if apierrors.IsForbidden(err) {
		p.Mend = "allow to list and watch " + s.GroupResource.String() + "; " + p.Mend
	}
	return p
}

// undiscovered is the problem that it is not known which kinds there are.
func undiscovered(err error) resource.Problem {
	p := resource.Problem{Kind: "CustomResourceDefinition", Message: "cannot find out which kinds there are: " + err.Error()}
	if apierrors.IsForbidden(err) {
		p.Mend = "bind the ClusterRole system:discovery, which allows to get /apis"
	}
	return p
}
