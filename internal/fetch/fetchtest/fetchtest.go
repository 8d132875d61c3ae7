// Package fetchtest is the contract of fetch.Fetcher, for every implementation
// to pass: which bytes arrive, which errors tell what went wrong, and that a
// large module does not cost memory. Start at [Run].
package fetchtest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/module"
)

// A Subject is a Fetcher and a place that it fetches from.
type Subject struct {
	// New makes a Fetcher that takes modules of up to maxModule bytes.
	New func(t testing.TB, maxModule int64) fetch.Fetcher
	// Publish puts content where the Fetcher finds it, and returns a reference to
	// it and the digest to pin.
	Publish func(t testing.TB, content []byte) (url, pin string)
	// Absent is a reference to what is not there.
	Absent func(t testing.TB) string
	// Large is the size of the module that must not cost memory, in bytes;
	// default 32 MiB.
	Large int
}

const limit = 1 << 20

// Module is a valid module of size bytes, at least 16: a custom section of zeros.
func Module(size int) []byte {
	// The section's size is written in five bytes, whatever it is.
	body := size - 8 - 1 - 5
	head := []byte{0, 'a', 's', 'm', 1, 0, 0, 0, 0}
	for i := range 5 {
		b := byte(body>>(7*i)) & 0x7f
		if i < 4 {
			b |= 0x80
		}
		head = append(head, b)
	}
	return append(head, make([]byte, body)...)
}

// A Sink is a receiver that keeps digests, not modules.
type Sink struct {
	Fail error // returned at once if set

	mu    sync.Mutex
	calls int
	got   module.Digest
	size  int64
	whole bool
}

// Put implements fetch.Request.Put.
func (s *Sink) Put(want module.Digest, r io.Reader) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if s.Fail != nil {
		return s.Fail
	}
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		return err
	}
	got := module.Digest(h.Sum(nil))
	if !want.IsZero() && got != want {
		return &module.DigestError{Want: want, Got: got}
	}
	s.got, s.size, s.whole = got, n, true
	return nil
}

// Has says whether the sink took exactly content.
func (s *Sink) Has(content []byte) bool {
	return s.whole && s.size == int64(len(content)) && s.got == sha256.Sum256(content)
}

// Calls is how often Put was called.
func (s *Sink) Calls() int { return s.calls }

// Request is what asks for url, pinned if pin is not empty.
func Request(t testing.TB, url, pin string, s *Sink) fetch.Request {
	t.Helper()
	ref, err := module.ParseRef(url, pin)
	if err != nil {
		t.Fatal(err)
	}
	return fetch.Request{Want: module.Want{Ref: ref}, Put: s.Put}
}

// Refused fails the test unless err is a *fetch.Error of that kind which says
// all of words, is not to be retried, and the sink kept nothing.
func Refused(t testing.TB, err error, s *Sink, kind fetch.Kind, words ...string) {
	t.Helper()
	e, ok := errors.AsType[*fetch.Error](err)
	if !ok || e.Kind != kind || e.Retry {
		t.Errorf("error is %v (%+v), want one of kind %q, not to be retried", err, e, kind)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error is %q, want one with %q", err, w)
		}
	}
	if s.whole {
		t.Error("the receiver took it all the same")
	}
}

// Run runs the contract.
func Run(t *testing.T, subject Subject) {
	for name, test := range map[string]func(*testing.T, Subject){
		"whole": whole, "pinned": pinned, "other digest": otherDigest, "absent": absent,
		"no module": noModule, "too large": tooLarge, "receiver fails": receiverFails,
		"cancelled": cancelled, "known": known, "together": together, "streams": streams,
	} {
		t.Run(name, func(t *testing.T) { test(t, subject) })
	}
}

func whole(t *testing.T, subject Subject) {
	for _, size := range []int{16, 1000, limit} {
		content := Module(size)
		url, _ := subject.Publish(t, content)
		var s Sink
		if _, err := subject.New(t, limit).Fetch(t.Context(), Request(t, url, "", &s)); err != nil || !s.Has(content) {
			t.Errorf("%d bytes: %v; got %d", size, err, s.size)
		}
	}
}

func pinned(t *testing.T, subject Subject) {
	content := Module(1000)
	url, pin := subject.Publish(t, content)
	var s Sink
	if _, err := subject.New(t, limit).Fetch(t.Context(), Request(t, url, pin, &s)); err != nil || !s.Has(content) {
		t.Error(err)
	}
}

func otherDigest(t *testing.T, subject Subject) {
	url, _ := subject.Publish(t, Module(1000))
	var s Sink
	_, err := subject.New(t, limit).Fetch(t.Context(), Request(t, url, strings.Repeat("ab", 32), &s))
	Refused(t, err, &s, fetch.Checksum, strings.Repeat("ab", 32))
}

func absent(t *testing.T, subject Subject) {
	var s Sink
	_, err := subject.New(t, limit).Fetch(t.Context(), Request(t, subject.Absent(t), "", &s))
	Refused(t, err, &s, fetch.NotFound)
}

func noModule(t *testing.T, subject Subject) {
	for _, content := range []string{"", "\x00asm", "<html>sorry</html>"} {
		url, _ := subject.Publish(t, []byte(content))
		var s Sink
		_, err := subject.New(t, limit).Fetch(t.Context(), Request(t, url, "", &s))
		Refused(t, err, &s, fetch.NotModule, "not a Wasm module")
		if s.calls != 0 {
			t.Errorf("%q: the receiver was asked", content)
		}
	}
}

func tooLarge(t *testing.T, subject Subject) {
	for _, size := range []int{limit + 1, 4 * limit} {
		url, _ := subject.Publish(t, Module(size))
		var s Sink
		_, err := subject.New(t, limit).Fetch(t.Context(), Request(t, url, "", &s))
		Refused(t, err, &s, fetch.TooLarge, "larger than the limit")
	}
}

func receiverFails(t *testing.T, subject Subject) {
	url, _ := subject.Publish(t, Module(1000))
	s := Sink{Fail: errors.New("disk on fire")}
	_, err := subject.New(t, limit).Fetch(t.Context(), Request(t, url, "", &s))
	if e, ok := errors.AsType[*fetch.Error](err); !errors.Is(err, s.Fail) || ok && e.Retry {
		t.Errorf("error is %v, want the receiver's, not to be retried", err)
	}
}

func cancelled(t *testing.T, subject Subject) {
	url, _ := subject.Publish(t, Module(1000))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var s Sink
	_, err := subject.New(t, limit).Fetch(ctx, Request(t, url, "", &s))
	if !errors.Is(err, context.Canceled) || s.whole {
		t.Errorf("error is %v, want context.Canceled", err)
	}
}

// known fetches twice; what has a source is downloaded only once.
func known(t *testing.T, subject Subject) {
	content := Module(1000)
	url, _ := subject.Publish(t, content)
	f := subject.New(t, limit)
	var s Sink
	r := Request(t, url, "", &s)
	first, err := f.Fetch(t.Context(), r)
	if err != nil || first.Known {
		t.Fatalf("Fetch = %+v, %v", first, err)
	}
	for _, hint := range []string{first.Source, ""} {
		s = Sink{}
		r.Source = hint
		r.Known = func(source string) bool { return source == first.Source }
		again, err := f.Fetch(t.Context(), r)
		if err != nil || again.Source != first.Source {
			t.Errorf("Fetch = %+v, %v; want source %q", again, err, first.Source)
		}
		if again.Known == s.whole {
			t.Errorf("known: %v, but downloaded: %v", again.Known, s.whole)
		}
		if hint != "" && !again.Known {
			t.Error("downloaded although it is known")
		}
	}
	s = Sink{}
	r.Known = func(string) bool { return false }
	if _, err := f.Fetch(t.Context(), r); err != nil || !s.Has(content) {
		t.Errorf("not downloaded although it is not known: %v", err)
	}
}

func together(t *testing.T, subject Subject) {
	content := Module(limit)
	url, _ := subject.Publish(t, content)
	f := subject.New(t, limit)
	var wg sync.WaitGroup
	for range 8 {
		var s Sink
		r := Request(t, url, "", &s)
		wg.Go(func() {
			if _, err := f.Fetch(t.Context(), r); err != nil || !s.Has(content) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// streams fetches a large module and counts what that allocates, the server's
// part included.
func streams(t *testing.T, subject Subject) {
	if testing.Short() {
		t.Skip("a large module")
	}
	const most = 16 << 20 // a zstd window is 8 MiB
	size := cmp.Or(subject.Large, 32<<20)
	content := Module(size)
	url, _ := subject.Publish(t, content)
	f := subject.New(t, int64(size))
	var s Sink
	r := Request(t, url, "", &s)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := f.Fetch(t.Context(), r)
	runtime.ReadMemStats(&after)
	if err != nil || !s.Has(content) {
		t.Fatal(err)
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > most {
		t.Errorf("allocated %d bytes for %d", grown, size)
	}
}

// Publisher is a Publish for what serves bytes by name; put makes content
// available and returns where.
func Publisher(put func(t testing.TB, name string, content []byte) string) func(testing.TB, []byte) (string, string) {
	return func(t testing.TB, content []byte) (string, string) {
		d := module.Digest(sha256.Sum256(content))
		return put(t, d.Hex()+".wasm", bytes.Clone(content)), d.String()
	}
}
