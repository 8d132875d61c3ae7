package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// maxState bounds what is read of a kept state: two roots are 2 KiB.
const maxState = 64 << 10

// A phase is how far the replacement of a root is.
type phase string

const (
	steady     phase = "steady"     // there is one root
	publishing phase = "publishing" // there is a second one, for proxies to learn; the first signs
	retiring   phase = "retiring"   // the second signs; the first is trusted until it ends
)

// A state is all that a CA keeps. It is a value: steps make new ones.
type state struct {
	phase phase
	since time.Time // when the phase began
	roots []root    // in the order in which they were made; none only in the zero state
}

// A root is a self-signed certificate and its key.
type root struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func (s state) empty() bool { return len(s.roots) == 0 }

// signer is the root that issues certificates.
func (s state) signer() root {
	if s.phase == retiring {
		return s.roots[1]
	}
	return s.roots[0]
}

// bundle is the roots that are trusted, as PEM.
func (s state) bundle() []byte {
	var b bytes.Buffer
	for _, r := range s.roots {
		b.Write(certificatePEM(r.certificate.Raw))
	}
	return b.Bytes()
}

func (s state) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, r := range s.roots {
		pool.AddCert(r.certificate)
	}
	return pool
}

// A Policy is how long roots live. The zero value is the default.
type Policy struct {
	Life    time.Duration // of a root; default 10 years
	Overlap time.Duration // how long before a root's end its successor is made; default a tenth of Life
	// Publish is how long the successor is trusted before it signs: all agents must
	// have the new bundle by then, also those to which people carry it. Default a
	// twelfth of Overlap, about a month.
	Publish time.Duration
}

func (p Policy) withDefaults() (Policy, error) {
	if p.Life == 0 {
		p.Life = 10 * 365 * 24 * time.Hour
	}
	if p.Overlap == 0 {
		p.Overlap = p.Life / 10
	}
	if p.Publish == 0 {
		p.Publish = p.Overlap / 12
	}
	if p.Publish < 0 || p.Publish >= p.Overlap || p.Overlap >= p.Life {
		return p, fmt.Errorf("a root of %v cannot have a successor %v before its end that is published for %v", p.Life, p.Overlap, p.Publish)
	}
	return p, nil
}

// A step is a change of a state.
type step string

const (
	stepNone    step = "none"
	stepCreate  step = "create"  // the first root
	stepPublish step = "publish" // make the signing root's successor
	stepSign    step = "sign"    // with the successor from now on
	stepRetire  step = "retire"  // drop the old root
)

// due is the step that state s needs at now, and if it is none, when the next is.
//
// A root that ended while nobody was there to replace it is of no use to anyone:
// then the steps follow each other without a wait.
func (p Policy) due(s state, now time.Time) (step, time.Time) {
	if s.empty() {
		return stepCreate, now
	}
	var (
		next step
		end  = s.roots[0].certificate.NotAfter
		at   = end
	)
	switch s.phase {
	case steady:
		next, at = stepPublish, end.Add(-p.Overlap)
	case publishing:
		next = stepSign
		if learned := s.since.Add(p.Publish); learned.Before(end) {
			at = learned
		}
	case retiring:
		next = stepRetire
	}
	if now.Before(at) {
		return stepNone, at
	}
	return next, now
}

// take returns the state after a step that was due at now.
func (p Policy) take(s state, next step, now time.Time) (state, error) {
	switch next {
	case stepCreate, stepPublish:
		r, err := newRoot(now, p.Life)
		if err != nil {
			return state{}, err
		}
		after := state{phase: steady, since: now, roots: append(slices.Clone(s.roots), r)}
		if next == stepPublish {
			after.phase = publishing
		}
		return after, nil
	case stepSign:
		return state{phase: retiring, since: now, roots: s.roots}, nil
	case stepRetire:
		return state{phase: steady, since: now, roots: s.roots[1:]}, nil
	}
	return s, nil
}

// keptState is a state's form outside.
type keptState struct {
	Version int        `json:"version"`
	Phase   phase      `json:"phase"`
	Since   time.Time  `json:"since"`
	Roots   []keptRoot `json:"roots"`
}

type keptRoot struct {
	Certificate string `json:"certificate"` // PEM
	Key         string `json:"key"`         // PEM, PKCS #8
}

// stateVersion is that of the form outside.
const stateVersion = 1

func (s state) encode() ([]byte, error) {
	kept := keptState{Version: stateVersion, Phase: s.phase, Since: s.since.UTC()}
	for _, r := range s.roots {
		key, err := keyPEM(r.key)
		if err != nil {
			return nil, err
		}
		kept.Roots = append(kept.Roots, keptRoot{string(certificatePEM(r.certificate.Raw)), string(key)})
	}
	return json.Marshal(kept)
}

// ErrState is what errors about a kept CA wrap that is not one. It is never
// overwritten: somebody may still have the right one.
var ErrState = errors.New("not the state of a certificate authority")

// decodeState reads what encode wrote. Its errors wrap [ErrState] and tell
// nothing of what they read: it holds keys.
func decodeState(data []byte) (state, error) {
	if len(data) > maxState {
		return state{}, fmt.Errorf("more than %d bytes: %w", maxState, ErrState)
	}
	var kept keptState
	if json.Unmarshal(data, &kept) != nil {
		return state{}, fmt.Errorf("no JSON of its form: %w", ErrState)
	}
	if kept.Version != stateVersion {
		return state{}, fmt.Errorf("version %d instead of %d: %w", kept.Version, stateVersion, ErrState)
	}
	roots, ok := map[phase]int{steady: 1, publishing: 2, retiring: 2}[kept.Phase]
	if !ok || roots != len(kept.Roots) {
		return state{}, fmt.Errorf("%d roots in phase %.16q: %w", len(kept.Roots), kept.Phase, ErrState)
	}
	s := state{phase: kept.Phase, since: kept.Since}
	for i, k := range kept.Roots {
		r, err := k.decode()
		if err != nil {
			return state{}, fmt.Errorf("root %d: %w: %w", i+1, err, ErrState)
		}
		s.roots = append(s.roots, r)
	}
	return s, nil
}

func (k keptRoot) decode() (root, error) {
	block, rest := pem.Decode([]byte(k.Certificate))
	if block == nil || block.Type != pemCertificate || len(bytes.TrimSpace(rest)) > 0 {
		return root{}, errors.New("not one certificate")
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return root{}, errors.New("certificate is malformed")
	}
	if !certificate.IsCA || !certificate.BasicConstraintsValid {
		return root{}, errors.New("certificate is not an authority's")
	}
	key, err := parseKey([]byte(k.Key))
	if err != nil {
		return root{}, err
	}
	if !key.PublicKey.Equal(certificate.PublicKey) {
		return root{}, errors.New("key is not the certificate's")
	}
	return root{certificate, key}, nil
}
