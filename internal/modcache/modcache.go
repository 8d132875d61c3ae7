// Package modcache turns a wanted module into a verified local file.
//
// [Cache.Get] looks into the store first; only if the module is not there, or
// the pull policy or the caller's rights demand it, the registry or server is
// asked, once however many callers want the same. It does not judge modules
// beyond their header, and never falls back to another version than the wanted.
//
// A module is served from the store only to a want whose credentials the
// registry has accepted for that very reference before. Other credentials are
// tried against the registry first, which costs a request but no download. A
// want without a pull secret counts as having those of the machine. What is
// kept of a secret is a keyed hash.
//
// Agents that share a store fetch a reference once, too, even if they start at the same
// instant: they take turns, and look again when theirs comes; see [store.Turn]. One that
// dies, hangs or gets nothing from its server holds up no other.
//
// Pull policy Always pulls again for every resource version not seen before:
// several resources may share a reference, each with its own version.
//
// Metrics have Istio's names: istio_agent_wasm_cache_entries,
// istio_agent_wasm_cache_lookup_count, istio_agent_wasm_remote_fetch_count.
package modcache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/module"
	"github.com/chandler-proxy/chandler/internal/store"
)

// Config is what a Cache is made of. Store, Fetcher, Metrics and Log are required.
type Config struct {
	Store   *store.Store
	Fetcher fetch.Fetcher
	Metrics prometheus.Registerer
	Log     *slog.Logger

	Timeout  time.Duration // bounds a fetch with all its tries; default 5m
	Patience time.Duration // with another process that fetches the same and gets no further; default 5s
	Expiry   time.Duration // of modules nobody uses; default 24h, WASM_MODULE_EXPIRY
	Purge    time.Duration // how often to look for those; default 1h, WASM_PURGE_INTERVAL
}

// A Cache gets modules. It is made by [New].
type Cache struct {
	cfg     Config
	metrics metrics

	mu      sync.Mutex
	flights map[flightKey]*flight // that can be joined
	air     map[*flight]struct{}  // that are under way, joinable or given up
	over    bool                  // Run has ended

	running sync.WaitGroup // flights and what follows them; none begins when over
}

// New makes a Cache and registers its metrics.
func New(cfg Config) *Cache {
	cfg.Timeout = cmp.Or(cfg.Timeout, 5*time.Minute)
	cfg.Patience = cmp.Or(cfg.Patience, 5*time.Second)
	cfg.Expiry = cmp.Or(cfg.Expiry, 24*time.Hour)
	cfg.Purge = cmp.Or(cfg.Purge, time.Hour)
	return &Cache{
		cfg:     cfg,
		metrics: newMetrics(cfg.Metrics, cfg.Store),
		flights: make(map[flightKey]*flight),
		air:     make(map[*flight]struct{}),
	}
}

// errOver ends the fetches that are under way when Run ends.
var errOver = errors.New("module cache has ended")

// Run removes modules that no process has used for Config.Expiry, until ctx
// ends. Then it ends the fetches that are under way, waits for them, and
// returns nil; Get fails from then on. The first look is after the first
// interval: what a restarted agent is about to want may be old.
func (c *Cache) Run(ctx context.Context) error {
	tick := time.NewTicker(c.cfg.Purge)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			c.purge()
		case <-ctx.Done():
			c.end()
			return nil
		}
	}
}

func (c *Cache) purge() {
	n, err := c.cfg.Store.Collect(time.Now().Add(-c.cfg.Expiry))
	if err != nil {
		c.cfg.Log.Warn("module store not cleaned", "error", err)
	}
	if n > 0 {
		c.cfg.Log.Info("unused modules removed", "count", n)
	}
}

func (c *Cache) end() {
	c.mu.Lock()
	c.over = true
	for f := range c.air {
		f.cancel(errOver)
	}
	c.mu.Unlock()
	c.running.Wait()
}

// Get leases the module that w wants, fetching it if need be. The caller
// releases the lease. Fetching goes on while any caller waits for it, and ends
// when ctx of the last one does. Errors wrap *fetch.Error or those of package
// store; with ctx ended its cause.
func (c *Cache) Get(ctx context.Context, w module.Want) (*store.Lease, error) {
	k := c.keyOf(w)
	lease, err := c.stored(k)
	if err != nil {
		return nil, err
	}
	c.metrics.lookup(lease != nil)
	if lease != nil {
		return lease, nil
	}
	return c.join(ctx, k, w)
}

// A flightKey is what makes two wants the same.
type flightKey struct {
	ref     string
	version string // of the resource, if the policy is Always; else empty
	always  bool
	access  string // fingerprint of the secret, empty for none
}

func (c *Cache) keyOf(w module.Want) flightKey {
	k := flightKey{ref: w.Ref.Key()}
	if w.PullPolicy() == module.PullAlways {
		k.always, k.version = true, w.Version
	}
	if w.Ref.Scheme() == module.OCI {
		k.access = c.cfg.Store.Fingerprint(w.Secret)
	}
	return k
}

// stored leases the module from the store, if it is there and may be used. A
// lease of nil without error is a miss.
func (c *Cache) stored(k flightKey) (*store.Lease, error) {
	// What this process knows is asked first, without touching the disk; then
	// what others have stored since.
	for _, look := range []func(string) (store.Record, bool){c.cfg.Store.Find, c.cfg.Store.Refresh} {
		r, ok := look(k.ref)
		if !ok || !k.satisfiedBy(r) {
			continue
		}
		lease, err := c.cfg.Store.Lease(r.Digest)
		if err == nil {
			return lease, nil
		}
		if !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		if _, damaged := errors.AsType[*module.DigestError](err); damaged {
			c.cfg.Log.Warn("stored module damaged, fetched again", "reference", r.Ref, "error", err)
		}
	}
	return nil, nil
}

// satisfiedBy says whether what r remembers may be used without asking.
func (k flightKey) satisfiedBy(r store.Record) bool {
	return slices.Contains(r.Access, k.access) && (!k.always || slices.Contains(r.Versions, k.version))
}

// A flight is one fetch and those who wait for it.
type flight struct {
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when lease and err are set

	waiters int // guarded by Cache.mu, as is the release of lease
	lease   *store.Lease
	err     error
}

// errDeserted is the end of a fetch that nobody waits for any more.
var errDeserted = errors.New("nobody wants the module any more")

// join waits for the flight for k, which it starts if there is none.
func (c *Cache) join(ctx context.Context, k flightKey, w module.Want) (*store.Lease, error) {
	c.mu.Lock()
	if c.over {
		c.mu.Unlock()
		return nil, errOver
	}
	f := c.flights[k]
	if f == nil {
		f = c.start(ctx, k, w)
	}
	f.waiters++
	c.mu.Unlock()
	defer c.leave(k, f)
	select {
	case <-f.done:
		if f.err != nil {
			return nil, f.err
		}
		return c.cfg.Store.Lease(f.lease.Digest)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// start starts a flight, with a deadline of its own. c.mu is held.
func (c *Cache) start(ctx context.Context, k flightKey, w module.Want) *flight {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	f := &flight{cancel: cancel, done: make(chan struct{})}
	c.flights[k] = f
	c.air[f] = struct{}{}
	c.running.Go(func() {
		defer cancel(nil)
		lease, err := c.fetch(ctx, k, w)
		later := c.hold(lease)
		c.land(k, f, lease, err)
		c.settle(later)
	})
	return f
}

func (c *Cache) land(k flightKey, f *flight, lease *store.Lease, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f.lease, f.err = lease, err
	c.close(k, f)
	delete(c.air, f)
	close(f.done)
	if f.waiters == 0 {
		lease.Release()
	}
}

// hold is another lease on the same.
func (c *Cache) hold(l *store.Lease) *store.Lease {
	if l == nil {
		return nil
	}
	again, _ := c.cfg.Store.Lease(l.Digest) // one that cannot be leased needs no settling
	return again
}

// settle puts a module onto the disk when it is of use already: a disk takes as long for a
// small one as the rest of its fetch.
func (c *Cache) settle(l *store.Lease) {
	if err := l.Sync(); err != nil {
		c.cfg.Log.Warn("module not put onto the disk", "digest", l.Digest.String(), "error", err)
	}
	l.Release()
}

// leave is called by everyone who joined f, when done with it.
func (c *Cache) leave(k flightKey, f *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.waiters--; f.waiters > 0 {
		return
	}
	select {
	case <-f.done:
		f.lease.Release()
	default:
		c.close(k, f)
		f.cancel(errDeserted)
	}
}

// close makes f no longer joinable. c.mu is held.
func (c *Cache) close(k flightKey, f *flight) {
	if c.flights[k] == f {
		delete(c.flights, k)
	}
}

// fetch gets the module when no other process of those that share the store does.
func (c *Cache) fetch(ctx context.Context, k flightKey, w module.Want) (*store.Lease, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.Timeout,
		fmt.Errorf("not done within %v: %w", c.cfg.Timeout, context.DeadlineExceeded))
	defer cancel()
	turn, err := c.cfg.Store.Turn(ctx, k.ref, c.cfg.Patience)
	defer turn.End()
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("fetch %s: wait for another process: %w", w.Ref, context.Cause(ctx))
	case err != nil:
		c.cfg.Log.Warn("others not kept from fetching the same", "reference", w.Ref.String(), "error", err)
	case turn != nil:
		if lease, err := c.stored(k); lease != nil || err != nil {
			return lease, err
		}
	}
	return c.download(ctx, k, w, turn)
}

// download asks for the module, stores it, and remembers what led to it.
func (c *Cache) download(ctx context.Context, k flightKey, w module.Want, turn *store.Turn) (*store.Lease, error) {
	start := time.Now()
	h := &holder{store: c.cfg.Store, turn: turn}
	last, _ := c.cfg.Store.Find(k.ref)
	res, err := c.cfg.Fetcher.Fetch(ctx, fetch.Request{Want: w, Put: h.put, Source: last.Source, Known: h.known})
	if err == nil && h.lease == nil {
		err = errors.New("fetcher returned no module")
	}
	c.metrics.fetched(ctx, res, err)
	if err != nil {
		h.hold(nil)
		return nil, fmt.Errorf("fetch %s: %w", w.Ref, err)
	}
	record := store.Record{Ref: w.Ref.String(), Digest: h.lease.Digest, Size: h.lease.Size, Source: res.Source}
	if err := c.cfg.Store.Remember(k.ref, record, w.Version, k.access); err != nil {
		// The module is there all the same; it is only fetched again next time.
		c.cfg.Log.Warn("reference not remembered", "reference", w.Ref.String(), "error", err)
	}
	c.cfg.Log.Info("module fetched", "reference", w.Ref.String(), "digest", h.lease.Digest.String(),
		"bytes", h.lease.Size, "downloaded", !res.Known, "took", time.Since(start))
	return h.lease, nil
}

// A holder is the store as one fetch sees it; it holds the lease on the module
// that was found last.
type holder struct {
	store *store.Store
	turn  *store.Turn // nil if none
	lease *store.Lease
}

func (h *holder) hold(l *store.Lease) {
	h.lease.Release()
	h.lease = l
}

func (h *holder) put(want module.Digest, r io.Reader) error {
	l, err := h.store.Put(want, progressing{r, h.turn})
	h.hold(l)
	return err
}

// A progressing reader tells those who wait for the turn that it gets on.
type progressing struct {
	io.Reader
	turn *store.Turn
}

func (p progressing) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if n > 0 {
		p.turn.Progress()
	}
	return n, err
}

func (h *holder) known(source string) bool {
	var l *store.Lease
	if d, ok := h.store.FindSource(source); ok {
		l, _ = h.store.Lease(d) // one that cannot be leased is not there
	}
	h.hold(l)
	return l != nil
}
