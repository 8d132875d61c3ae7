//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// A fault is how a server misbehaves; next is how it would behave.
type fault func(w http.ResponseWriter, r *http.Request, next http.Handler)

// A front is a server before another that can be made to fail.
type front struct {
	Addr string
	t    testing.TB
	next http.Handler
	srv  *http.Server
	done chan struct{} // srv has ended

	mu     sync.Mutex
	faults map[string]fault // by a part of the path
}

// startFront runs a front of next.
func startFront(t testing.TB, next http.Handler) *front {
	t.Helper()
	f := &front{t: t, next: next, faults: make(map[string]fault)}
	f.listen(loopback(0))
	t.Cleanup(f.down)
	return f
}

// before runs a front of a registry.
func before(t testing.TB, r *registry) *front {
	t.Helper()
	p := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: r.Addr})
	p.ErrorLog = log.New(io.Discard, "", 0) // of requests that were given up
	return startFront(t, p)
}

func (f *front) listen(addr string) {
	f.t.Helper()
	var l net.Listener
	eventually(f.t, "listen at "+addr, func() (err error) { // a client may have the port for a moment
		l, err = net.Listen("tcp", addr)
		return err
	})
	f.Addr = l.Addr().String()
	f.srv = &http.Server{Handler: f, ErrorLog: log.New(io.Discard, "", 0)}
	f.done = make(chan struct{})
	go func() { // down waits for it
		_ = f.srv.Serve(l) // it ends with an error always
		close(f.done)
	}()
}

// down ends all connections and refuses new ones.
func (f *front) down() {
	f.srv.Close()
	<-f.done
}

// up is after down.
func (f *front) up() {
	f.t.Helper()
	f.listen(f.Addr)
}

// fail makes requests fail whose path has part in it.
func (f *front) fail(part string, how fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults[part] = how
}

// mend ends the faults.
func (f *front) mend() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.faults)
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	var how fault
	for part, candidate := range f.faults {
		if strings.Contains(r.URL.Path, part) {
			how = candidate
		}
	}
	f.mu.Unlock()
	if how == nil {
		f.next.ServeHTTP(w, r)
		return
	}
	how(w, r, f.next)
}

// answer with a status; what its text says may be shown to users.
func answerWith(status int, text string) fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { http.Error(w, text, status) }
}

// hang gives no answer, and ends when the client gives up.
func hang(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() }

// stall sends half of the answer, and nothing more until the client gives up.
func stall(w http.ResponseWriter, r *http.Request, next http.Handler) {
	half(w, r, next)
	_ = http.NewResponseController(w).Flush() // a client that has gone is no fault
	<-r.Context().Done()
}

// cut sends half of the answer and ends the connection.
func cut(w http.ResponseWriter, r *http.Request, next http.Handler) {
	half(w, r, next)
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

func half(w http.ResponseWriter, r *http.Request, next http.Handler) {
	body := record(w, r, next)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body[:len(body)/2])
}

// garble sends as many bytes as the answer has, but others.
func garble(w http.ResponseWriter, r *http.Request, next http.Handler) {
	body := record(w, r, next)
	for i := range body {
		body[i] ^= 0x55
	}
	_, _ = w.Write(body)
}

// record is the body of next's answer, whose header is w's already.
func record(w http.ResponseWriter, r *http.Request, next http.Handler) []byte {
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, r)
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	return rec.Body.Bytes()
}

// redirect sends clients somewhere else.
func redirect(to string) fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		http.Redirect(w, r, to, http.StatusTemporaryRedirect)
	}
}

// realm sends clients to a token service.
func realm(at string) fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="registry"`, at))
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// instead serves another tag's manifest.
func instead(tag string) fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		r = r.Clone(r.Context())
		r.URL.Path = r.URL.Path[:strings.LastIndex(r.URL.Path, "/")+1] + tag
		next.ServeHTTP(w, r)
	}
}

// A forbidden is a server at an address of its own that nobody may reach. It
// counts connections.
type forbidden struct {
	Addr  string
	dials atomic.Int64
}

// startForbidden listens at host, an address of this machine.
func startForbidden(t testing.TB, host string) *forbidden {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	f := &forbidden{Addr: l.Addr().String()}
	done := make(chan struct{})
	go func() { // waited for by the cleanup
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.dials.Add(1)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return f
}
