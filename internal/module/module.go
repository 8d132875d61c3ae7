// Package module says what a Wasm module is as a thing to ship: where it comes
// from ([Ref]), what must be true of it ([Digest]), how it is wanted ([Want]),
// and what a module file says of itself ([Inspect]).
//
// It does no I/O and keeps nothing. Reference forms and pull policies follow
// Istio's WasmPlugin API (istio.io/api extensions/v1alpha1); digests follow the
// OCI image specification. Start at [ParseRef].
package module

import "time"

// A PullPolicy says when a module is pulled again although a copy is at hand.
// It is moot for a Ref that carries a digest.
type PullPolicy int

const (
	// PullDefault is IfNotPresent, but Always for an OCI reference whose tag is latest.
	PullDefault PullPolicy = iota
	// PullIfNotPresent takes the copy at hand, however old.
	PullIfNotPresent
	// PullAlways pulls again when the resource that asks has changed, not at every push.
	PullAlways
)

// A Want is a Ref with all that fetching it needs.
type Want struct {
	Ref     Ref
	Policy  PullPolicy
	Version string        // of the resource that asks; under PullAlways a new one pulls again
	Secret  []byte        // a dockerconfigjson, or empty; never logged
	Timeout time.Duration // for one try; 0 is the fetcher's own
}
