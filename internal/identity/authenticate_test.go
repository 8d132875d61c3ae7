package identity

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A reviewer is a TokenReviewer that knows some tokens.
type reviewer struct {
	mu    sync.Mutex
	peers map[string]Peer
	err   error
	asked int
}

func (r *reviewer) Review(_ context.Context, token string) (Peer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	if r.err != nil {
		return Peer{}, r.err
	}
	p, ok := r.peers[token]
	if !ok {
		return Peer{}, fmt.Errorf("unknown token: %w", ErrRefused)
	}
	return p, nil
}

// secret is in every token of these tests; no error may hold it.
const secret = "c2lnbmF0dXJl"

// token makes one with those claims.
func token(t testing.TB, claims map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"RS256"}`)) + "." + encode(payload) + "." + secret
}

// goodToken is for our audience until then.
func goodToken(t testing.TB, until time.Time, subject string) string {
	return token(t, map[string]any{"aud": []string{Audience}, "exp": until.Unix(), "sub": subject})
}

var httpbin = Peer{Namespace: "default", ServiceAccount: "httpbin", Pod: "httpbin-1"}

func TestTokens(t *testing.T) {
	in := time.Now().Add(time.Hour)
	good := goodToken(t, in, "good")
	for _, tt := range []struct {
		name  string
		token string
		peer  Peer
		err   error
		says  string
		asked int
	}{
		{name: "good", token: good, peer: httpbin, asked: 1},
		{name: "none", err: ErrNoCredential},
		{name: "not known", token: goodToken(t, in, "forged"), err: ErrRefused, says: "unknown token", asked: 1},
		{name: "expired", token: goodToken(t, time.Now().Add(-time.Second), "good"), err: ErrRefused, says: "has expired"},
		{name: "other audience", token: token(t, map[string]any{"aud": []string{"https://kubernetes"}, "exp": in.Unix()}), err: ErrRefused, says: `audience ["https://kubernetes"]`},
		{name: "no audience", token: token(t, map[string]any{"exp": in.Unix()}), err: ErrRefused, says: "audience"},
		{name: "not a token", token: "hello." + secret, err: ErrRefused, says: "no JSON Web Token"},
		{name: "long", token: strings.Repeat(secret, maxToken), err: ErrRefused, says: "longer than"},
		{name: "of no namespace", token: goodToken(t, in, "nowhere"), err: ErrRefused, says: "not a service account's", asked: 1},
		{name: "nobody's", token: goodToken(t, in, "nobody"), err: ErrRefused, says: "not a service account's", asked: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &reviewer{peers: map[string]Peer{good: httpbin, goodToken(t, in, "nobody"): {}, goodToken(t, in, "nowhere"): {ServiceAccount: "x"}}}
			got, err := NewTokens(r, "").Authenticate(t.Context(), Credentials{Token: tt.token})
			if !errors.Is(err, tt.err) {
				t.Fatalf("error = %v, want %v", err, tt.err)
			}
			if err != nil && (!strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), secret)) {
				t.Errorf("error = %v, want one that says %q, and not the token", err, tt.says)
			}
			if err == nil {
				if !got.Expires.Equal(in.Truncate(time.Second)) {
					t.Errorf("expires %v, want %v", got.Expires, in)
				}
				got.Expires = time.Time{}
			}
			if got != tt.peer || r.asked != tt.asked {
				t.Errorf("peer = %v after %d reviews, want %v after %d", got, r.asked, tt.peer, tt.asked)
			}
		})
	}
}

func TestTokensRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := goodToken(t, time.Now().Add(time.Hour), "long")
		short := goodToken(t, time.Now().Add(20*time.Second), "short")
		r := &reviewer{peers: map[string]Peer{long: httpbin, short: httpbin}}
		tokens := NewTokens(r, "")
		asks := func(token string, want int) error {
			t.Helper()
			before := r.asked
			_, err := tokens.Authenticate(t.Context(), Credentials{Token: token})
			if got := r.asked - before; got != want {
				t.Errorf("%d reviews, want %d", got, want)
			}
			return err
		}
		for _, step := range []struct {
			token string
			wait  time.Duration
			asked int
		}{
			{long, 0, 1}, {long, trustToken - time.Second, 0}, {long, time.Second, 1}, {long, 0, 0},
			{short, 0, 0}, // expired by now
		} {
			time.Sleep(step.wait)
			err := asks(step.token, step.asked)
			if (err != nil) != (step.token == short) {
				t.Errorf("error = %v", err)
			}
		}
		// What was good is refused once it is asked about again.
		r.peers = nil
		time.Sleep(trustToken)
		for range 2 {
			if err := asks(long, 1); !errors.Is(err, ErrRefused) {
				t.Errorf("revoked token: %v", err)
			}
		}
		// That nobody answers says nothing of the token.
		r.err = errors.New("no answer")
		if err := asks(long, 1); err == nil || errors.Is(err, ErrRefused) {
			t.Errorf("outage: %v", err)
		}
	})
}

// TestTokensNotLongerThanTheyLive: a token that ends is not trusted for the rest of
// the minute.
func TestTokensNotLongerThanTheyLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		short := goodToken(t, time.Now().Add(20*time.Second), "short")
		tokens := NewTokens(&reviewer{peers: map[string]Peer{short: httpbin}}, "")
		if _, err := tokens.Authenticate(t.Context(), Credentials{Token: short}); err != nil {
			t.Fatal(err)
		}
		for _, known := range tokens.known {
			if left := time.Until(known.until); left > 20*time.Second {
				t.Errorf("remembered for %v", left)
			}
		}
		time.Sleep(20 * time.Second)
		if _, err := tokens.Authenticate(t.Context(), Credentials{Token: short}); !errors.Is(err, ErrRefused) {
			t.Errorf("expired token: %v", err)
		}
	})
}

func TestTokensBounded(t *testing.T) {
	tokens := NewTokens(new(reviewer), "")
	now := time.Now()
	key := func(i int) (k [32]byte) { k[0], k[1], k[2] = byte(i), byte(i>>8), byte(i>>16); return k }
	for i := range maxTokens + 50 {
		tokens.remember(key(i), Peer{Expires: now.Add(time.Hour)}, now)
	}
	if n := len(tokens.known); n != maxTokens {
		t.Errorf("%d tokens remembered, want %d", n, maxTokens)
	}
	if _, ok := tokens.lookup(key(maxTokens+49), now); !ok {
		t.Error("the newest was forgotten")
	}
	tokens.remember(key(-1), Peer{Expires: now.Add(2 * time.Hour)}, now.Add(trustToken))
	if n := len(tokens.known); n != 1 {
		t.Errorf("%d tokens remembered when all others were over", n)
	}
}

// A slow reviewer does not answer until the one who asks gives up.
type slow struct{ asked atomic.Int32 }

func (s *slow) Review(ctx context.Context, _ string) (Peer, error) {
	s.asked.Add(1)
	<-ctx.Done()
	return Peer{}, ctx.Err()
}

// TestTokensReviewedAtOnce: made-up tokens keep a reviewer busy no more than is allowed.
func TestTokensReviewedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(slow)
		tokens := NewTokens(s, "")
		var callers sync.WaitGroup
		for i := range 3 * maxReviews {
			callers.Go(func() {
				made := goodToken(t, time.Now().Add(time.Hour), fmt.Sprint(i))
				if _, err := tokens.Authenticate(t.Context(), Credentials{Token: made}); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrRefused) {
					t.Errorf("Authenticate = %v, want that it could not be checked", err)
				}
			})
		}
		synctest.Wait()
		if n := s.asked.Load(); n != maxReviews {
			t.Errorf("%d reviews at once, want %d", n, maxReviews)
		}
		callers.Wait()
	})
}

func TestCertificates(t *testing.T) {
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	const good = "spiffe://cluster.local/ns/default/sa/httpbin"
	later := time.Now().Add(time.Hour)
	for _, tt := range []struct {
		name        string
		domain      string
		certificate *x509.Certificate
		err         error
		says        string
	}{
		{name: "good", certificate: &x509.Certificate{NotAfter: later, URIs: []*url.URL{uri(good)}}},
		{name: "none", err: ErrNoCredential},
		{name: "expired since the connection began", certificate: &x509.Certificate{NotAfter: time.Now().Add(-time.Second), URIs: []*url.URL{uri(good)}}, err: ErrRefused, says: "has expired"},
		{name: "no id", certificate: &x509.Certificate{NotAfter: later}, err: ErrRefused, says: "0 URIs"},
		{name: "two ids", certificate: &x509.Certificate{NotAfter: later, URIs: []*url.URL{uri(good), uri(good)}}, err: ErrRefused, says: "2 URIs"},
		{name: "another form", certificate: &x509.Certificate{NotAfter: later, URIs: []*url.URL{uri("spiffe://cluster.local/x")}}, err: ErrRefused, says: "is not spiffe"},
		{name: "escaped", certificate: &x509.Certificate{NotAfter: later, URIs: []*url.URL{uri("spiffe://cluster.local/ns/def%61ult/sa/httpbin")}}, err: ErrRefused, says: "namespace"},
		{name: "another domain", domain: "example.org", certificate: &x509.Certificate{NotAfter: later, URIs: []*url.URL{uri(good)}}, err: ErrRefused, says: `"example.org"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Certificates{tt.domain}.Authenticate(t.Context(), Credentials{Certificate: tt.certificate})
			if !errors.Is(err, tt.err) || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("error = %v, want %v that says %q", err, tt.err, tt.says)
			}
			if want := (Peer{Namespace: "default", ServiceAccount: "httpbin", Expires: later}); err == nil && got != want {
				t.Errorf("peer = %v, want %v", got, want)
			}
		})
	}
}

func TestParseClaims(t *testing.T) {
	for _, tt := range []struct {
		payload  string
		audience string // joined; "!" means refused
		expires  int64
	}{
		{`{"aud":["a","b"],"exp":1767225600}`, "a,b", 1767225600},
		{`{"aud":"a","exp":1767225600.5}`, "a", 1767225600},
		{`{}`, "", 0},
		{`{"aud":null}`, "", 0},
		{`{"aud":[]}`, "", 0},
		{`{"aud":5}`, "!", 0},
		{`{"aud":[5]}`, "!", 0},
		{`{"exp":"x"}`, "!", 0},
		{`{"exp":-1}`, "!", 0},
		{`{"exp":1e30}`, "!", 0},
		{`[]`, "!", 0},
		{`x`, "!", 0},
		{``, "!", 0},
	} {
		got, err := parseClaims("e30." + base64.RawURLEncoding.EncodeToString([]byte(tt.payload)) + ".x")
		if tt.audience == "!" {
			if err == nil {
				t.Errorf("%s is accepted: %v", tt.payload, got)
			}
			continue
		}
		if err != nil || strings.Join(got.audience, ",") != tt.audience || got.expires.Unix() != tt.expires {
			t.Errorf("%s: %v, %v", tt.payload, got, err)
		}
	}
	for _, bad := range []string{"", ".", "..", "a.b", "a.b.c.d", "a.!.c", "a.e30=.c"} {
		if _, err := parseClaims(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func FuzzParseClaims(f *testing.F) {
	f.Add(goodToken(f, time.Unix(1767225600, 0), "x"))
	f.Add("e30.e30.e30")
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		c, err := parseClaims(token)
		if err != nil {
			if len(token) > 8 && strings.Contains(err.Error(), token) {
				t.Errorf("error tells the token: %v", err)
			}
			return
		}
		if year := c.expires.UTC().Year(); year < 1970 || year > 9999 {
			t.Errorf("expires in %d", year)
		}
	})
}
