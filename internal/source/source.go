// Package source is the contract of what feeds resources to the control plane:
// files (source/dir) and the Kubernetes API (source/kube).
//
// A source reads, watches and decodes; it does not judge what resources mean
// together. It delivers whole sets, never changes: whoever takes them needs no
// memory. Contract tests are in source/sourcetest.
package source

import (
	"context"
	"maps"

	"k8s.io/apimachinery/pkg/types"

	"github.com/chandler-proxy/chandler/internal/resource"
)

// A Snapshot is everything a source holds at one moment.
type Snapshot struct {
	// Objects are all valid resources, in no particular order, each kind,
	// namespace and name once.
	Objects []resource.Object
	// Problems is what could not be taken. Where a resource was valid before,
	// its last valid form is still among Objects.
	Problems []resource.Problem
	// Refused are the objects that Problems is about, of sources that tell one state
	// of an object from another, in no particular order.
	Refused []Refused
	// Places is where objects were written, for sources that know. What is found
	// wrong with a valid object later is told with it; see [Snapshot.Locate].
	Places map[resource.Key]Place
	// Unread says that part of the source could not be read even once. What it
	// holds is not known, and may be what proxies run: that it is not among
	// Objects does not mean that it is gone.
	Unread bool
}

// A Refused object is there and is not valid as it is now. What it was before may
// still be among the Objects.
type Refused struct {
	Key        resource.Key
	UID        types.UID
	Generation int64 // that was refused
}

// A Place is where an object is written.
type Place struct {
	File  string
	Line  int             // where it begins, 1-based
	Lines *resource.Lines // of the file; nil if it is not known where fields are
}

// Locate returns problems with the files and lines of the objects that they are
// about, as far as they are known. A Problem does not tell the group of its kind:
// where objects of two groups have the same kind and name, none is chosen.
func (s Snapshot) Locate(problems []resource.Problem) []resource.Problem {
	if len(s.Places) == 0 || len(problems) == 0 {
		return problems
	}
	keys := resource.ByProblem(maps.Keys(s.Places))
	out := make([]resource.Problem, len(problems))
	for i, p := range problems {
		if p.File == "" {
			place := s.Places[keys[p.About()]]
			p.File, p.Line = place.File, place.Lines.Field(place.Line, p.Field)
		}
		out[i] = p
	}
	return out
}

// A Source delivers snapshots.
type Source interface {
	// Run calls deliver with the first complete snapshot, then with a new one
	// after every change, never concurrently, until ctx ends; then it returns
	// nil. It returns an error only if it cannot go on at all. It is called once.
	Run(ctx context.Context, deliver func(Snapshot)) error
}
