package modcache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/fetch/fetchtest"
	"github.com/chandler-proxy/chandler/internal/module"
	"github.com/chandler-proxy/chandler/internal/store"
)

// A shelf is a registry in memory: a Fetcher of what is on it.
type shelf struct {
	mu        sync.Mutex
	modules   map[string][]byte // by target
	secrets   map[string]string // that is asked for, by target
	asked     int
	downloads int
	err       error
	gate      chan struct{} // if set, fetches wait until it is closed, or for their end
	entered   chan struct{} // gets one for each fetch that waits
}

func (s *shelf) Fetch(ctx context.Context, r fetch.Request) (fetch.Result, error) {
	s.mu.Lock()
	s.asked++
	content, ok := s.modules[r.Ref.Target()]
	secret, gate, err := s.secrets[r.Ref.Target()], s.gate, s.err
	s.mu.Unlock()
	if gate != nil {
		s.entered <- struct{}{}
		select {
		case <-gate:
		case <-ctx.Done():
			return fetch.Result{}, fetch.Transient(context.Cause(ctx))
		}
	}
	switch {
	case err != nil:
		return fetch.Result{}, err
	case !ok:
		return fetch.Result{}, &fetch.Error{Kind: fetch.NotFound, Manifest: true, Err: errors.New("no such image")}
	case secret != "" && string(r.Secret) != secret:
		return fetch.Result{}, &fetch.Error{Kind: fetch.Denied, Manifest: true, Err: errors.New("denied")}
	}
	source := module.Digest(sha256.Sum256(append([]byte("manifest of "), content...))).String()
	if r.IsKnown(source) {
		return fetch.Result{Source: source, Known: true}, nil
	}
	s.mu.Lock()
	s.downloads++
	s.mu.Unlock()
	return fetch.Result{Source: source}, r.Put(module.Digest{}, bytes.NewReader(content))
}

// counts is how often the shelf was asked, and for how many downloads.
func (s *shelf) counts() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("%d/%d", s.asked, s.downloads)
}

func (s *shelf) put(target string, content []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.modules[target] = content
}

func newShelf() *shelf {
	return &shelf{modules: map[string][]byte{}, secrets: map[string]string{}, entered: make(chan struct{}, 100)}
}

func newCache(t testing.TB, dir string, f fetch.Fetcher) (*Cache, *prometheus.Registry) {
	t.Helper()
	s, err := store.Open(dir, 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	r := prometheus.NewRegistry()
	return New(Config{Store: s, Fetcher: f, Metrics: r, Log: slog.New(slog.DiscardHandler)}), r
}

func want(t testing.TB, url string) module.Want {
	t.Helper()
	ref, err := module.ParseRef(url, "")
	if err != nil {
		t.Fatal(err)
	}
	return module.Want{Ref: ref}
}

func content(i int) []byte {
	return append(fetchtest.Module(1000), 0, byte(i), byte(i>>8)) // not valid, which is not asked here
}

func get(t testing.TB, c *Cache, w module.Want) *store.Lease {
	t.Helper()
	l, err := c.Get(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// has fails the test unless the lease is on exactly that content.
func has(t testing.TB, l *store.Lease, content []byte) {
	t.Helper()
	got, err := os.ReadFile(l.Path)
	if err != nil || !bytes.Equal(got, content) || l.Digest != sha256.Sum256(content) || l.Size != int64(len(content)) {
		t.Errorf("lease on %s: other content, %v", l.Path, err)
	}
}

const image = "r.io/plugin:v1"

func TestPullPolicy(t *testing.T) {
	for _, tt := range []struct {
		name     string
		url      string
		policy   module.PullPolicy
		versions string // of the resource, one a Get
		moved    bool   // the tag, before the last Get
		counts   string
		newest   bool
	}{
		{name: "default", url: image, versions: "123", moved: true, counts: "1/1"},
		{name: "always, same version", url: image, policy: module.PullAlways, versions: "111", moved: true, counts: "1/1"},
		{name: "always, new version", url: image, policy: module.PullAlways, versions: "112", moved: true, counts: "2/2", newest: true},
		{name: "always, new version, same image", url: image, policy: module.PullAlways, versions: "112", counts: "2/1", newest: true},
		{name: "always, two resources", url: image, policy: module.PullAlways, versions: "121212", counts: "2/1", newest: true},
		{name: "latest", url: "r.io/plugin:latest", versions: "12", moved: true, counts: "2/2", newest: true},
		{name: "latest if not present", url: "r.io/plugin:latest", policy: module.PullIfNotPresent, versions: "12", moved: true, counts: "1/1"},
		{name: "digest always", url: "r.io/plugin@sha256:" + strings.Repeat("ab", 32), policy: module.PullAlways, versions: "12", counts: "1/1", newest: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newShelf()
			w := want(t, tt.url)
			w.Policy = tt.policy
			s.put(w.Ref.Target(), content(1))
			c, _ := newCache(t, t.TempDir(), s)
			var l *store.Lease
			for i, v := range tt.versions {
				if tt.moved && i == len(tt.versions)-1 {
					s.put(w.Ref.Target(), content(2))
				}
				w.Version = string(v)
				l = get(t, c, w)
				l.Release()
			}
			expect := content(1)
			if tt.moved && tt.newest {
				expect = content(2)
			}
			has(t, l, expect)
			if got := s.counts(); got != tt.counts {
				t.Errorf("asked and downloaded %s times, want %s", got, tt.counts)
			}
		})
	}
}

func TestRestartNeedsNoFetch(t *testing.T) {
	dir, s := t.TempDir(), newShelf()
	s.put(image, content(1))
	c, _ := newCache(t, dir, s)
	get(t, c, want(t, image)).Release()
	s.err = errors.New("registry is down")
	again, metrics := newCache(t, dir, s)
	l := get(t, again, want(t, image))
	defer l.Release()
	has(t, l, content(1))
	expect(t, metrics, 1, map[string]int{"true": 1})
}

// Of several agents on a machine one fetches; the others find it, also those
// that started before.
func TestAgentsShare(t *testing.T) {
	dir, s := t.TempDir(), newShelf()
	s.put(image, content(1))
	a, _ := newCache(t, dir, s)
	b, _ := newCache(t, dir, s)
	get(t, a, want(t, image)).Release()
	get(t, b, want(t, image)).Release()
	if got := s.counts(); got != "1/1" {
		t.Errorf("asked and downloaded %s times, want once", got)
	}
}

func TestSameImageUnderAnotherName(t *testing.T) {
	s := newShelf()
	s.put(image, content(1))
	s.put("r.io/other:v2", content(1))
	c, _ := newCache(t, t.TempDir(), s)
	get(t, c, want(t, image)).Release()
	l := get(t, c, want(t, "r.io/other:v2"))
	defer l.Release()
	has(t, l, content(1))
	if got := s.counts(); got != "2/1" {
		t.Errorf("asked and downloaded %s times, want 2/1", got)
	}
}

func TestPrivateModule(t *testing.T) {
	dir, s := t.TempDir(), newShelf()
	s.put(image, content(1))
	s.secrets[image] = "good"
	c, _ := newCache(t, dir, s)
	with := func(secret string) module.Want {
		w := want(t, image)
		w.Secret = []byte(secret)
		return w
	}
	try := func(c *Cache, secret string, ok bool, counts string) {
		t.Helper()
		l, err := c.Get(t.Context(), with(secret))
		l.Release()
		if (err == nil) != ok {
			t.Errorf("with %q: %v", secret, err)
		}
		if e, is := errors.AsType[*fetch.Error](err); err != nil && (!is || e.Kind != fetch.Denied) {
			t.Errorf("with %q: error is %v", secret, err)
		}
		if got := s.counts(); got != counts {
			t.Errorf("with %q: asked and downloaded %s times, want %s", secret, got, counts)
		}
	}
	try(c, "good", true, "1/1")
	try(c, "good", true, "1/1") // known to be good
	try(c, "", false, "2/1")    // no secret: asked, refused
	try(c, "bad", false, "3/1")
	s.mu.Lock()
	s.secrets[image] = "newer"
	s.mu.Unlock()
	try(c, "newer", true, "4/1") // asked, accepted, not downloaded again
	try(c, "newer", true, "4/1")
	again, _ := newCache(t, dir, s)
	try(again, "newer", true, "4/1") // also after a restart
	try(again, "bad", false, "5/1")

	// The secret itself is nowhere on disk.
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		sum := sha256.Sum256([]byte("newer"))
		if bytes.Contains(data, []byte("newer")) || bytes.Contains(data, fmt.Appendf(nil, "%x", sum)) {
			t.Errorf("%s holds the secret or its plain hash", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A module that anyone can pull needs no secret, whatever was there before.
func TestSecretIsNoneOfHTTP(t *testing.T) {
	s := newShelf()
	s.put("http://h/p.wasm", content(1))
	c, _ := newCache(t, t.TempDir(), s)
	w := want(t, "http://h/p.wasm")
	get(t, c, w).Release()
	w.Secret = []byte("x")
	get(t, c, w).Release()
	if got := s.counts(); got != "1/1" {
		t.Errorf("asked and downloaded %s times, want once", got)
	}
}

func TestDamagedModuleIsFetchedAgain(t *testing.T) {
	dir, s := t.TempDir(), newShelf()
	s.put(image, content(1))
	c, _ := newCache(t, dir, s)
	l := get(t, c, want(t, image))
	l.Release()
	if err := errors.Join(os.Chmod(l.Path, 0o600), os.WriteFile(l.Path, content(2), 0o600)); err != nil {
		t.Fatal(err)
	}
	again, _ := newCache(t, dir, s)
	l = get(t, again, want(t, image))
	defer l.Release()
	has(t, l, content(1))
}

// expect compares the metrics: entries, then lookups and fetches by label value.
func expect(t *testing.T, r *prometheus.Registry, entries int, counts map[string]int) {
	t.Helper()
	text := fmt.Sprintf(`
# HELP istio_agent_wasm_cache_entries Number of Wasm modules in the local store.
# TYPE istio_agent_wasm_cache_entries gauge
istio_agent_wasm_cache_entries %d
# HELP istio_agent_wasm_cache_lookup_count Number of lookups in the Wasm module cache, by whether the module was there.
# TYPE istio_agent_wasm_cache_lookup_count counter
istio_agent_wasm_cache_lookup_count{hit="false"} %d
istio_agent_wasm_cache_lookup_count{hit="true"} %d
# HELP istio_agent_wasm_remote_fetch_count Number of Wasm module downloads, by result.
# TYPE istio_agent_wasm_remote_fetch_count counter
istio_agent_wasm_remote_fetch_count{result="checksum_mismatched"} %d
istio_agent_wasm_remote_fetch_count{result="download_failure"} %d
istio_agent_wasm_remote_fetch_count{result="manifest_failure"} %d
istio_agent_wasm_remote_fetch_count{result="success"} %d
`, entries, counts["false"], counts["true"], counts["checksum_mismatched"], counts["download_failure"], counts["manifest_failure"], counts["success"])
	if err := testutil.GatherAndCompare(r, strings.NewReader(text)); err != nil {
		t.Error(err)
	}
}

func TestMetrics(t *testing.T) {
	s := newShelf()
	c, r := newCache(t, t.TempDir(), s)
	expect(t, r, 0, nil)
	s.put(image, content(1))
	get(t, c, want(t, image)).Release()
	get(t, c, want(t, image)).Release()
	expect(t, r, 1, map[string]int{"false": 1, "true": 1, "success": 1})
	for _, err := range []error{
		&fetch.Error{Kind: fetch.Denied, Manifest: true, Err: errors.New("x")},
		&fetch.Error{Kind: fetch.Denied, Err: errors.New("x")},
		&fetch.Error{Kind: fetch.Checksum, Manifest: true, Err: errors.New("x")},
		&fetch.Error{Kind: fetch.Checksum, Err: errors.New("x")},
		errors.New("disk"),
	} {
		s.err = err
		if _, got := c.Get(t.Context(), want(t, "r.io/absent:v1")); !errors.Is(got, err) {
			t.Errorf("error is %v, want %v", got, err)
		}
	}
	expect(t, r, 1, map[string]int{"false": 6, "true": 1, "success": 1,
		"manifest_failure": 1, "download_failure": 2, "checksum_mismatched": 2})
}

func TestConcurrentWantsAreOneFetch(t *testing.T) {
	s := newShelf()
	s.put(image, content(1))
	s.gate = make(chan struct{})
	c, _ := newCache(t, t.TempDir(), s)
	const n = 20
	leases := make(chan *store.Lease, n)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			l, err := c.Get(t.Context(), want(t, image))
			if err != nil {
				t.Error(err)
			}
			leases <- l
		})
	}
	<-s.entered
	close(s.gate)
	wg.Wait()
	close(leases)
	for l := range leases {
		has(t, l, content(1))
		l.Release()
	}
	if got := s.counts(); got != "1/1" {
		t.Errorf("asked and downloaded %s times, want once", got)
	}
	if got := testutil.ToFloat64(c.metrics.success); got != 1 {
		t.Errorf("%v successes", got)
	}
	if len(c.flights) != 0 || len(c.air) != 0 {
		t.Errorf("%d flights, %d in the air", len(c.flights), len(c.air))
	}
}

// Who gives up does not fail the rest; when all have, the fetch ends.
func TestFetchEndsWithItsLastCaller(t *testing.T) {
	s := newShelf()
	s.put(image, content(1))
	s.gate = make(chan struct{})
	c, r := newCache(t, t.TempDir(), s)
	gone := errors.New("superseded")
	first, giveUp := context.WithCancelCause(t.Context())
	second, giveUpToo := context.WithCancelCause(t.Context())
	results := make(chan error)
	ask := func(ctx context.Context) {
		l, err := c.Get(ctx, want(t, image))
		l.Release()
		results <- err
	}
	go ask(first)
	<-s.entered
	go ask(second)
	waiters(c, 2)
	giveUp(gone)
	if err := <-results; !errors.Is(err, gone) {
		t.Errorf("error is %v", err)
	}
	var flying *flight
	c.mu.Lock()
	for f := range c.air {
		flying = f
	}
	c.mu.Unlock()
	select {
	case <-flying.done:
		t.Error("the fetch ended with its first caller")
	default:
	}
	giveUpToo(gone)
	if err := <-results; !errors.Is(err, gone) {
		t.Errorf("error is %v", err)
	}
	<-flying.done
	if !errors.Is(flying.err, errDeserted) {
		t.Errorf("the fetch ended with %v", flying.err)
	}
	expect(t, r, 0, map[string]int{"false": 2}) // being called off is no failure

	s.mu.Lock()
	s.gate = nil
	s.mu.Unlock()
	get(t, c, want(t, image)).Release()
}

// waiters blocks until n callers wait for a flight.
func waiters(c *Cache, n int) {
	for {
		c.mu.Lock()
		sum := 0
		for f := range c.air {
			sum += f.waiters
		}
		c.mu.Unlock()
		if sum == n {
			return
		}
		runtime.Gosched()
	}
}

func TestFetchHasItsOwnDeadline(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		s.put(image, content(1))
		s.gate = make(chan struct{})
		c, _ := newCache(t, dir, s)
		start := time.Now()
		_, err := c.Get(t.Context(), want(t, image))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 5*time.Minute || !strings.Contains(err.Error(), "not done within 5m0s") {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

func TestRunRemovesUnusedModules(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		s.put(image, content(1))
		s.put("r.io/used:v1", content(2))
		c, r := newCache(t, dir, s)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		get(t, c, want(t, image)).Release()
		used := get(t, c, want(t, "r.io/used:v1"))
		for _, step := range []struct {
			after   time.Duration
			entries int
		}{{23 * time.Hour, 2}, {3 * time.Hour, 1}, {100 * time.Hour, 1}} {
			time.Sleep(step.after) // synctest's clock
			synctest.Wait()
			if got := testutil.CollectAndCount(r); got != 7 {
				t.Errorf("%d series", got)
			}
			if got := c.cfg.Store.Len(); got != step.entries {
				t.Errorf("%v later: %d modules, want %d", step.after, got, step.entries)
			}
		}
		has(t, used, content(2))
		used.Release()
		time.Sleep(23 * time.Hour) // used until now, so it stays for a day
		synctest.Wait()
		if got := c.cfg.Store.Len(); got != 1 {
			t.Errorf("%d modules a while after the last use, want 1", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestRunEndsFetches(t *testing.T) {
	s := newShelf()
	s.put(image, content(1))
	s.gate = make(chan struct{})
	c, _ := newCache(t, t.TempDir(), s)
	result := make(chan error)
	go func() {
		_, err := c.Get(t.Context(), want(t, image))
		result <- err
	}()
	<-s.entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Run(ctx); err != nil {
		t.Error(err)
	}
	if err := <-result; !errors.Is(err, errOver) {
		t.Errorf("error is %v", err)
	}
	if _, err := c.Get(t.Context(), want(t, image)); !errors.Is(err, errOver) {
		t.Errorf("error after the end is %v", err)
	}
}

// TestHammer lets two agents on one directory want, give up, and collect as
// fast as they can. Whatever is leased must be there, whole.
func TestHammer(t *testing.T) {
	dir, s := t.TempDir(), newShelf()
	const images = 5
	for i := range images {
		s.put(fmt.Sprintf("r.io/plugin:v%d", i), content(i))
	}
	a, _ := newCache(t, dir, s)
	b, _ := newCache(t, dir, s)
	rounds := 300
	if testing.Short() {
		rounds = 50
	}
	var wg sync.WaitGroup
	for i, c := range []*Cache{a, b, a, b, a, b, a, b} {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			for range rounds {
				hammer(t, c, rnd, images)
			}
		})
	}
	for _, c := range []*Cache{a, b} {
		wg.Go(func() {
			for range rounds {
				if _, err := c.cfg.Store.Collect(time.Now().Add(time.Hour)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, c := range []*Cache{a, b} {
		if err := runOnce(t, c); err != nil {
			t.Error(err)
		}
		if len(c.air) != 0 || len(c.flights) != 0 {
			t.Errorf("%d flights, %d in the air", len(c.flights), len(c.air))
		}
	}
	if n, err := a.cfg.Store.Collect(time.Now().Add(time.Hour)); err != nil || a.cfg.Store.Len() != 0 {
		t.Errorf("something is still leased: removed %d, %d left, %v", n, a.cfg.Store.Len(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "ingest-*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func runOnce(t *testing.T, c *Cache) error {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return c.Run(ctx)
}

func hammer(t *testing.T, c *Cache, rnd *rand.Rand, images int) {
	i := rnd.IntN(images)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := want(t, fmt.Sprintf("r.io/plugin:v%d", i))
	w.Secret = []byte{byte('a' + rnd.IntN(2))}
	quit := rnd.IntN(3) == 0
	var quitter sync.WaitGroup
	defer quitter.Wait()
	if quit {
		quitter.Go(cancel)
	}
	l, err := c.Get(ctx, w)
	if err != nil {
		if !quit || !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		return
	}
	has(t, l, content(i))
	l.Release()
}

func BenchmarkHit(b *testing.B) {
	for _, size := range []int{1 << 10, 10 << 20} {
		for _, leased := range []bool{true, false} {
			b.Run(fmt.Sprintf("size=%d/leased=%v", size, leased), func(b *testing.B) {
				s := newShelf()
				s.put(image, fetchtest.Module(size))
				c, _ := newCache(b, b.TempDir(), s)
				w := want(b, image)
				w.Secret = []byte(`{"auths":{"r.io":{"auth":"dXNlcjpwYXNz"}}}`)
				first := get(b, c, w)
				if !leased {
					first.Release()
				}
				defer first.Release()
				b.ReportAllocs()
				for b.Loop() {
					get(b, c, w).Release()
				}
			})
		}
	}
}
