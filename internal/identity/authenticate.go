package identity

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// Audience is that of the tokens by which proxies prove who they are: a token
// for another service, such as the API server, is not taken.
const Audience = "chandler-ca"

var (
	// ErrNoCredential is that a caller has sent none of the kind that an
	// Authenticator judges.
	ErrNoCredential = errors.New("no credential")
	// ErrRefused is that a credential is not good. Any other error is that it
	// could not be checked, and a caller may try again.
	ErrRefused = errors.New("credential refused")
)

// Credentials are what a caller has sent to prove who it is.
type Credentials struct {
	Token string // bearer token, empty if there was none
	// Certificate is the client's, which TLS has verified; nil if there was none.
	Certificate *x509.Certificate
}

// An Authenticator tells who a caller is. It returns [ErrNoCredential] for one
// that has sent nothing that it judges, and otherwise decides. Errors never hold
// a credential. Safe for concurrent use.
type Authenticator interface {
	Authenticate(ctx context.Context, c Credentials) (Peer, error)
}

// A TokenReviewer asks whoever has issued a token whether it is good, and for the
// right audience. It returns an error that wraps [ErrRefused] if it is not; it
// may leave [Peer.Expires] zero. Safe for concurrent use.
type TokenReviewer interface {
	Review(ctx context.Context, token string) (Peer, error)
}

// Certificates judges client certificates, which name their client by one SPIFFE
// id of the trust domain.
type Certificates struct {
	Domain string // trust domain; empty means [DefaultDomain]
}

// Authenticate implements [Authenticator].
func (a Certificates) Authenticate(_ context.Context, c Credentials) (Peer, error) {
	if c.Certificate == nil {
		return Peer{}, ErrNoCredential
	}
	// TLS has seen to that when the connection began, which may be long ago.
	if end := c.Certificate.NotAfter; time.Now().After(end) {
		return Peer{}, fmt.Errorf("client certificate has expired at %s: %w", end.UTC().Format(time.RFC3339), ErrRefused)
	}
	if n := len(c.Certificate.URIs); n != 1 {
		return Peer{}, fmt.Errorf("client certificate has %d URIs instead of one SPIFFE id: %w", n, ErrRefused)
	}
	id, err := ParseID(c.Certificate.URIs[0].String())
	if err != nil {
		return Peer{}, fmt.Errorf("client certificate: %w: %w", err, ErrRefused)
	}
	domain := a.Domain
	if domain == "" {
		domain = DefaultDomain
	}
	if id.Domain != domain {
		return Peer{}, fmt.Errorf("client certificate is of trust domain %q, not %q: %w", id.Domain, domain, ErrRefused)
	}
	return Peer{Namespace: id.Namespace, ServiceAccount: id.ServiceAccount, Expires: c.Certificate.NotAfter}, nil
}

const (
	// trustToken is how long a good token is not asked about again. It is for
	// proxies that reconnect all at once; a revoked token is good that much longer.
	trustToken = time.Minute
	// maxTokens bounds the tokens that are remembered.
	maxTokens = 10_000
	// maxToken bounds a token: the API server's are below 2 KiB.
	maxToken = 16 << 10
	// reviewTime is how long a review may take, with its wait for others.
	reviewTime = 10 * time.Second
	// maxReviews bounds the reviews under way: whoever makes tokens up is to keep the
	// API server busy no more than this.
	maxReviews = 64
)

// Tokens judges bearer tokens. What a [TokenReviewer] has said of a good one
// holds for a minute, but not longer than the token; refusals are not remembered.
type Tokens struct {
	reviewer TokenReviewer
	audience string
	reviews  chan struct{} // has one of each review under way

	mu    sync.Mutex
	known map[[sha256.Size]byte]trusted // by the token's hash
}

// trusted is a peer whose token is not asked about until then.
type trusted struct {
	peer  Peer
	until time.Time
}

// NewTokens returns an Authenticator of tokens for audience, or for [Audience] if
// that is empty.
func NewTokens(r TokenReviewer, audience string) *Tokens {
	if audience == "" {
		audience = Audience
	}
	return &Tokens{
		reviewer: r, audience: audience,
		reviews: make(chan struct{}, maxReviews),
		known:   make(map[[sha256.Size]byte]trusted),
	}
}

// Authenticate implements [Authenticator]. What a token says of itself is read
// first, so that an evidently useless one costs no review and gets a better answer.
func (t *Tokens) Authenticate(ctx context.Context, c Credentials) (Peer, error) {
	if c.Token == "" {
		return Peer{}, ErrNoCredential
	}
	claims, err := parseClaims(c.Token)
	if err != nil {
		return Peer{}, fmt.Errorf("%w: %w", err, ErrRefused)
	}
	now := time.Now()
	if err := claims.check(now, t.audience); err != nil {
		return Peer{}, fmt.Errorf("%w: %w", err, ErrRefused)
	}
	key := sha256.Sum256([]byte(c.Token))
	if peer, ok := t.lookup(key, now); ok {
		return peer, nil
	}
	peer, err := t.review(ctx, c.Token)
	if err != nil {
		return Peer{}, err
	}
	if peer.Namespace == "" || peer.ServiceAccount == "" {
		return Peer{}, fmt.Errorf("token is not a service account's: %w", ErrRefused)
	}
	peer.Expires = claims.expires // the reviewer has vouched for that
	t.remember(key, peer, now)
	return peer, nil
}

// review asks about a token when its turn comes.
func (t *Tokens) review(ctx context.Context, token string) (Peer, error) {
	ctx, cancel := context.WithTimeout(ctx, reviewTime)
	defer cancel()
	select {
	case t.reviews <- struct{}{}:
		defer func() { <-t.reviews }()
		return t.reviewer.Review(ctx, token)
	case <-ctx.Done():
		return Peer{}, fmt.Errorf("review token: too many at once: %w", ctx.Err())
	}
}

func (t *Tokens) lookup(key [sha256.Size]byte, now time.Time) (Peer, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	known, ok := t.known[key]
	if !ok || !now.Before(known.until) {
		return Peer{}, false
	}
	return known.peer, true
}

// remember keeps that a token, which was reviewed after then, is good.
func (t *Tokens) remember(key [sha256.Size]byte, p Peer, then time.Time) {
	until := then.Add(trustToken)
	if p.Expires.Before(until) {
		until = p.Expires
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.known) >= maxTokens {
		t.forget(then)
	}
	t.known[key] = trusted{p, until}
}

// forget makes room: what is over goes, and if nothing is, any one.
func (t *Tokens) forget(now time.Time) {
	for key, known := range t.known {
		if !now.Before(known.until) {
			delete(t.known, key)
		}
	}
	for key := range t.known {
		if len(t.known) < maxTokens {
			return
		}
		delete(t.known, key)
	}
}

// claims is what a token says of itself. None of it is proved.
type claims struct {
	audience []string
	expires  time.Time
}

func (c claims) check(now time.Time, audience string) error {
	if !slices.Contains(c.audience, audience) {
		return fmt.Errorf("token is for audience %.256q, not %q: mount a projected token with that audience", c.audience, audience)
	}
	if !now.Before(c.expires) {
		return fmt.Errorf("token has expired at %s: its file must be read again for each connection", c.expires.UTC().Format(time.RFC3339))
	}
	return nil
}

var errNoToken = errors.New("token is not a service account's: no JSON Web Token")

// parseClaims reads a token's claims without verifying it (RFC 7519). Errors
// tell nothing of the token.
func parseClaims(token string) (claims, error) {
	if len(token) > maxToken {
		return claims{}, fmt.Errorf("token is longer than %d bytes", maxToken)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return claims{}, errNoToken
	}
	payload, err := base64.RawURLEncoding.Strict().DecodeString(parts[1])
	if err != nil {
		return claims{}, errNoToken
	}
	var body struct {
		Audience json.RawMessage `json:"aud"`
		Expires  float64         `json:"exp"` // NumericDate may have a fraction
	}
	if json.Unmarshal(payload, &body) != nil {
		return claims{}, errNoToken
	}
	// Before 1970 and after 9999 is no time that anyone means.
	if body.Expires < 0 || body.Expires > 253402300799 {
		return claims{}, errNoToken
	}
	c := claims{expires: time.Unix(int64(body.Expires), 0)}
	if len(body.Audience) > 0 && json.Unmarshal(body.Audience, &c.audience) != nil {
		var one string
		if json.Unmarshal(body.Audience, &one) != nil {
			return claims{}, errNoToken
		}
		c.audience = []string{one}
	}
	return c, nil
}
