package oci

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/chandler-proxy/chandler/internal/fetch"
)

const (
	// rememberFor bounds how long anything that a registry said is trusted.
	rememberFor = 5 * time.Minute
	// leastToken is how long a token is good for that does not say.
	//
	// https://distribution.github.io/distribution/spec/auth/token/#token-response-fields
	leastToken = time.Minute
	// mostRemembered bounds how many things are remembered of each kind.
	mostRemembered = 256
)

// A memory keeps values for some time. Its methods may be called concurrently.
type memory[K comparable, V any] struct {
	mu      sync.Mutex
	entries map[K]remembered[V]
}

type remembered[V any] struct {
	value V
	until time.Time
}

func (m *memory[K, V]) get(k K) (v V, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.entries[k]
	if !ok || !time.Now().Before(e.until) {
		return v, false
	}
	return e.value, true
}

// put remembers v for some time, and makes room if need be: what is forgotten early
// costs a request.
func (m *memory[K, V]) put(k K, v V, d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.entries == nil {
		m.entries = make(map[K]remembered[V])
	}
	now := time.Now()
	for k, e := range m.entries {
		if len(m.entries) >= mostRemembered || !now.Before(e.until) {
			delete(m.entries, k)
		}
	}
	m.entries[k] = remembered[V]{v, now.Add(d)}
}

func (m *memory[K, V]) drop(k K) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.entries, k)
}

// A tokenKey is a hash of all that a token is for, credentials included: who has others,
// or none, never gets it.
type tokenKey [sha256.Size]byte

func keyOf(registry, scope string, ch *transport.Challenge, cfg *authn.AuthConfig) (tokenKey, error) {
	text, err := json.Marshal([]any{
		registry, scope, ch.Parameters, ch.Insecure,
		cfg.Username, cfg.Password, cfg.Auth, cfg.IdentityToken, cfg.RegistryToken,
	})
	if err != nil {
		return tokenKey{}, err
	}
	return sha256.Sum256(text), nil
}

// A login is how to ask a registry for something, with some credentials.
type login struct {
	f     *Fetcher
	repo  name.Repository
	scope string
	cfg   *authn.AuthConfig
	way   *way

	key tokenKey // zero if there is no token
	// What was remembered, rather than asked for: it may be good no more.
	challenge *transport.Challenge
	token     *transport.Token
}

// enter finds out how the registry wants to be asked, and gets a token if that is how.
// What is remembered is not asked again.
func (l *login) enter(ctx context.Context) (http.RoundTripper, error) {
	ch, ok := l.f.challenges.get(l.repo.RegistryStr())
	if !ok {
		return l.enterAnew(ctx)
	}
	l.challenge = ch
	rt, err := l.authorize(ctx, ch)
	refused, ok := errors.AsType[*transport.Error](err)
	switch {
	case err == nil:
		return rt, nil
	case ok && isDenial(refused.StatusCode): // it works, but not for these credentials
		l.forget()
		return nil, l.way.explain(err)
	case ctx.Err() != nil:
		return nil, l.way.explain(err)
	}
	return l.enterAnew(ctx)
}

// enterAnew is enter for what is not known, or does not work any more.
func (l *login) enterAnew(ctx context.Context) (http.RoundTripper, error) {
	l.forget()
	l.way = l.way.to("") // either scheme
	ch, err := transport.Ping(ctx, l.repo.Registry, l.way)
	if err != nil {
		return nil, l.way.explain(err)
	}
	rt, err := l.authorize(ctx, ch)
	if err != nil {
		return nil, l.way.explain(err)
	}
	l.f.challenges.put(l.repo.RegistryStr(), ch, rememberFor)
	return rt, nil
}

// forget forgets what l stands on.
func (l *login) forget() {
	l.f.challenges.drop(l.repo.RegistryStr())
	l.f.tokens.drop(l.key)
	l.challenge, l.token = nil, nil
}

// mayBeStale says whether a request that failed, with that answer or none, might not have
// if nothing had been remembered. Credentials that are refused are not tried twice.
func (l *login) mayBeStale(resp *http.Response) bool {
	switch {
	case l.challenge == nil:
		return false
	case resp == nil, resp.StatusCode == http.StatusBadRequest: // it may speak the other scheme
		return true
	case resp.StatusCode == http.StatusUnauthorized:
		wants, _, _ := strings.Cut(resp.Header.Get("WWW-Authenticate"), " ")
		return l.token != nil || !strings.EqualFold(wants, l.challenge.Scheme)
	}
	return l.token != nil && isDenial(resp.StatusCode)
}

func isDenial(status int) bool {
	return status == http.StatusUnauthorized || status == http.StatusForbidden
}

// auth is what the library takes for the credentials.
func (l *login) auth() authn.Authenticator {
	if *l.cfg == (authn.AuthConfig{}) {
		return authn.Anonymous
	}
	return authn.FromConfig(*l.cfg)
}

// authorize makes what adds the credentials, or a token that is got for them.
func (l *login) authorize(ctx context.Context, ch *transport.Challenge) (http.RoundTripper, error) {
	l.way = l.way.to("https")
	if ch.Insecure {
		l.way = l.way.to("http")
	}
	inner := transport.NewUserAgent(l.way, "")
	token := new(transport.Token)
	if strings.EqualFold(ch.Scheme, "bearer") {
		var err error
		if token, err = l.exchange(ctx, ch, inner); err != nil {
			return nil, err
		}
	}
	return transport.FromToken(l.repo.Registry, l.auth(), inner, ch, token)
}

// exchange gets a token for the credentials, unless one is known.
func (l *login) exchange(ctx context.Context, ch *transport.Challenge, inner http.RoundTripper) (*transport.Token, error) {
	if l.cfg.RegistryToken != "" {
		return &transport.Token{Token: l.cfg.RegistryToken}, nil
	}
	var err error
	if l.key, err = keyOf(l.repo.RegistryStr(), l.scope, ch, l.cfg); err != nil {
		return nil, err
	}
	if token, ok := l.f.tokens.get(l.key); ok {
		l.token = token
		return token, nil
	}
	token, err := transport.Exchange(ctx, l.repo.Registry, l.auth(), inner, []string{l.scope}, ch)
	if err != nil {
		return nil, err
	}
	token = &transport.Token{Token: cmp.Or(token.AccessToken, token.Token), ExpiresIn: token.ExpiresIn}
	l.f.tokens.put(l.key, token, validity(token.ExpiresIn))
	return token, nil
}

// validity is how long to use a token that is good for so many seconds: a fetch that
// begins with it needs some of them.
func validity(seconds int) time.Duration {
	d := max(time.Duration(min(seconds, 1<<20))*time.Second, leastToken)
	return min(d*4/5, rememberFor)
}

// credentials are those of the secret if there is one, and then no others.
func (f *Fetcher) credentials(ctx context.Context, secret []byte, repo name.Repository) (*authn.AuthConfig, error) {
	auth, err := f.authenticate(ctx, secret, repo)
	if err != nil {
		return nil, &fetch.Error{Kind: fetch.Denied, Err: err}
	}
	cfg, err := authn.Authorization(ctx, auth)
	if err != nil {
		return nil, &fetch.Error{Kind: fetch.Denied, Err: fmt.Errorf("read credentials for %s: %w", repo.RegistryStr(), err)}
	}
	return cfg, nil
}
