package kube

import (
	"errors"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// patience is how long the API server may answer with an error, other than that
// something is forbidden, before what it keeps to itself is not waited for.
const patience = 10 * time.Second

// access is whether something can be read, by what became of the requests. Its
// methods need the lock of held.
type access struct {
	read     bool               // it was, once
	failures map[string]failure // by verb; the last request of that verb failed
}

// A failure is an answer of the API server that is not what was asked for. That
// there is no answer is none: it says nothing about one resource.
type failure struct {
	err   error
	since time.Time
	told  bool // to the user, and not waited for
}

// record takes down the outcome of a request and reports whether a problem came or
// went with it.
func (a *access) record(verb string, err error, now time.Time) (changed bool) {
	old, failing := a.failures[verb]
	if err == nil {
		delete(a.failures, verb)
		return old.told
	}
	if !isAnswer(err) {
		return false
	}
	next := failure{err: err, since: old.since}
	if !failing {
		next.since = now
	}
	next.told = apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) || now.Sub(next.since) >= patience
	if a.failures == nil {
		a.failures = map[string]failure{}
	}
	a.failures[verb] = next
	return next.told != old.told || next.told && next.err.Error() != old.err.Error()
}

// refusal is why it cannot be read, if that is to be told.
func (a *access) refusal() error {
	for _, verb := range []string{"get", "list", "watch"} {
		if f := a.failures[verb]; f.told {
			return f.err
		}
	}
	return nil
}

// settled says that waiting would not help.
func (a *access) settled() bool { return a.read || a.refusal() != nil }

// isAnswer reports whether err is an answer of the API server.
func isAnswer(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status)
}
