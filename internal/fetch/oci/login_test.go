package oci_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/fetch/fetchtest"
	"github.com/chandler-proxy/chandler/internal/fetch/oci"
)

// A desk is before a hub, and lets in who logs in as it wants it today.
type desk struct {
	*hub
	mu     sync.Mutex
	wants  string            // none, basic, bearer
	users  map[string]string // passwords
	tokens map[string]bool   // that are good
	serial int
	slow   chan struct{} // if set, the token service waits for it
	seen   []string
}

func newDesk(t *testing.T, wants string) *desk {
	d := &desk{hub: newHub(t), wants: wants, users: map[string]string{"user": "s3cret"}, tokens: map[string]bool{}}
	forms["docker"](t, d.hub, "plugin", "v1", fetchtest.Module(1000))
	d.intercept(d.serve)
	return d
}

// set changes d under its lock.
func (d *desk) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

func (d *desk) serve(w http.ResponseWriter, r *http.Request) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	parts := strings.Split(r.URL.Path, "/")
	what := parts[len(parts)-1]
	if len(parts) > 3 {
		what = parts[len(parts)-2]
	}
	d.seen = append(d.seen, what)
	user, password, _ := r.BasicAuth()
	known := d.users[user] != "" && d.users[user] == password
	switch {
	case r.URL.Path == "/token":
		if slow := d.slow; slow != nil {
			d.mu.Unlock()
			select {
			case <-slow:
			case <-r.Context().Done():
			}
			d.mu.Lock()
		}
		if !known {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		d.serial++
		token := fmt.Sprint("token-", d.serial)
		d.tokens[token] = true
		fmt.Fprintf(w, `{"token":%q,"expires_in":300}`, token)
		return true
	case d.wants == "none", d.wants == "basic" && known:
		return false
	case d.wants == "basic":
		w.Header().Set("WWW-Authenticate", `Basic realm="hub"`)
	default:
		if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok && d.tokens[token] {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="hub"`, r.Host))
	}
	w.WriteHeader(http.StatusUnauthorized)
	return true
}

// fetch fetches, and returns what d was asked for.
func (d *desk) fetch(t *testing.T, f fetch.Fetcher, user, password string) (asked string, err error) {
	t.Helper()
	d.set(func() { d.seen = nil })
	var s fetchtest.Sink
	r := fetchtest.Request(t, d.host+"/plugin:v1", "", &s)
	if user != "" {
		r.Secret = secretFor(d.host, user, password)
	}
	_, err = f.Fetch(t.Context(), r)
	if s.Has(fetchtest.Module(1000)) != (err == nil) {
		t.Errorf("fetched: %v, but the error is %v", err != nil, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.seen, " "), err
}

func (d *desk) has(t *testing.T, f fetch.Fetcher, user, password, asked string) {
	t.Helper()
	if got, err := d.fetch(t, f, user, password); err != nil || got != asked {
		t.Errorf("%s: asked for %q, %v, want %q", user, got, err, asked)
	}
}

func (d *desk) denies(t *testing.T, f fetch.Fetcher, user, password, asked string) {
	t.Helper()
	got, err := d.fetch(t, f, user, password)
	if e, ok := errors.AsType[*fetch.Error](err); !ok || e.Kind != fetch.Denied || got != asked {
		t.Errorf("%s: asked for %q, %v, want a denial after %q", user, got, err, asked)
	}
}

func TestRegistryIsRemembered(t *testing.T) {
	for wants, first := range map[string]string{"none": " manifests blobs", "basic": " manifests blobs", "bearer": " token manifests blobs"} {
		t.Run(wants, func(t *testing.T) {
			d, f := newDesk(t, wants), plainFetcher(t, 1<<20)
			d.has(t, f, "user", "s3cret", first)
			d.has(t, f, "user", "s3cret", "manifests blobs")
			d.has(t, plainFetcher(t, 1<<20), "user", "s3cret", first) // by this fetcher alone
		})
	}
}

// Nobody gets in by what another has, and who is refused is asked for a password once.
func TestCredentialsAreNotShared(t *testing.T) {
	for wants, refusal := range map[string]string{"basic": "manifests", "bearer": "token"} {
		t.Run(wants, func(t *testing.T) {
			d, f := newDesk(t, wants), plainFetcher(t, 1<<20)
			if _, err := d.fetch(t, f, "user", "s3cret"); err != nil {
				t.Fatal(err)
			}
			d.denies(t, f, "user", "other", refusal)
			if _, err := d.fetch(t, f, "user", "s3cret"); err != nil {
				t.Fatal(err)
			}
			d.denies(t, f, "", "", refusal)
			d.set(func() { d.users["second"] = "too" })
			if _, err := d.fetch(t, f, "second", "too"); err != nil {
				t.Errorf("another who may: %v", err)
			}
			if len(d.tokens) > 2 {
				t.Errorf("%d tokens for two", len(d.tokens))
			}
		})
	}
}

func TestFailedLoginIsNotRemembered(t *testing.T) {
	d, f := newDesk(t, "bearer"), plainFetcher(t, 1<<20)
	d.denies(t, f, "late", "s3cret", " token")
	d.set(func() { d.users["late"] = "s3cret" })
	d.has(t, f, "late", "s3cret", " token manifests blobs")

	// One that was called off.
	d.set(func() { d.slow, d.users["slow"] = make(chan struct{}), "s3cret" })
	ctx, cancel := context.WithCancel(t.Context())
	var s fetchtest.Sink
	r := fetchtest.Request(t, d.host+"/plugin:v1", "", &s)
	r.Secret = secretFor(d.host, "slow", "s3cret")
	ended := make(chan error)
	d.set(func() { d.seen = nil })
	go func() {
		_, err := f.Fetch(ctx, r)
		ended <- err
	}()
	for asked := false; !asked; {
		d.set(func() { asked = len(d.seen) > 0 })
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	d.set(func() { close(d.slow); d.slow = nil })
	d.has(t, f, "slow", "s3cret", "token manifests blobs")
}

// What was remembered is asked for again when the registry has other ideas: no fetch fails.
func TestRegistryChangesItsMind(t *testing.T) {
	d, f := newDesk(t, "bearer"), plainFetcher(t, 1<<20)
	d.has(t, f, "user", "s3cret", " token manifests blobs")
	d.set(func() { clear(d.tokens) }) // before their time
	d.has(t, f, "user", "s3cret", "manifests token manifests blobs")
	for _, wants := range []string{"basic", "bearer", "none", "bearer", "basic"} {
		d.set(func() { d.wants = wants; clear(d.tokens) })
		if asked, err := d.fetch(t, f, "user", "s3cret"); err != nil {
			t.Errorf("wants %s now: %v after %q", wants, err, asked)
		}
	}
	// A password that is good no more.
	d.set(func() { d.wants = "bearer"; clear(d.tokens); d.users["user"] = "newer" })
	if asked, err := d.fetch(t, f, "user", "s3cret"); err == nil {
		t.Errorf("fetched with an old password, after %q", asked)
	}
	if asked, err := d.fetch(t, f, "user", "newer"); err != nil {
		t.Errorf("new password: %v, after %q", err, asked)
	}
}

// The registry comes back with TLS, and without.
func TestRegistryChangesItsScheme(t *testing.T) {
	d, f := newDesk(t, "none"), newFetcher(t, oci.Config{}, fetch.TransportConfig{Insecure: fetch.Hosts{"*"}})
	d.Close()
	for _, secure := range []bool{false, true, false, true} {
		listener, err := net.Listen("tcp", d.host)
		if err != nil {
			t.Fatal(err)
		}
		s := &httptest.Server{Listener: listener, Config: &http.Server{Handler: d.Config.Handler, ErrorLog: log.New(io.Discard, "", 0)}}
		if secure {
			s.StartTLS()
		} else {
			s.Start()
		}
		for range 2 {
			if asked, err := d.fetch(t, f, "user", "s3cret"); err != nil {
				t.Errorf("with TLS: %v: %v after %q", secure, err, asked)
			}
		}
		s.CloseClientConnections()
		s.Close()
	}
}
