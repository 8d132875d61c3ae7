package kube

import (
	"context"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// seek is how often the API server is asked for the kinds that it does not have.
const seek = 2 * time.Second

// A catalog follows the kinds that the API server has: those of Kubernetes
// itself always, others while their CRDs are there.
type catalog struct {
	*held
	api    *api
	custom []kind
	// running belongs to the goroutine that is in run.
	running map[schema.GroupResource]*following
	wg      sync.WaitGroup // of followings
}

// A following is a reflector that runs.
type following struct {
	set     *set
	version string
	stop    context.CancelFunc
	ended   chan struct{}
	since   time.Time
}

// start begins to follow what s is for. wg has it until it has ended.
func start(ctx context.Context, wg *sync.WaitGroup, a *api, s *set, version string) *following {
	ctx, stop := context.WithCancel(ctx)
	f := &following{set: s, version: version, stop: stop, ended: make(chan struct{}), since: time.Now()}
	wg.Go(func() {
		defer close(f.ended)
		defer stop()
		s.follow(ctx, a.reader(s.kind, version, s.one))
	})
	return f
}

// run follows all kinds that there are until ctx ends.
func (c *catalog) run(ctx context.Context) {
	defer c.wg.Wait()
	for _, k := range kinds() {
		if !k.builtIn() {
			c.custom = append(c.custom, k)
			continue
		}
		s := &set{held: c.held, kind: k}
		c.add(s)
		start(ctx, &c.wg, c.api, s, k.versions[0])
	}
	all := true
	for ctx.Err() == nil {
		again := c.look(ctx, all)
		select {
		case <-ctx.Done():
		case <-again:
			all = false
		case <-c.missing:
			all = true
		}
	}
}

// look finds out which kinds there are, of all or of those that there were not,
// and acts on it. It returns what to wait for before it is done again; a kind
// that is gone shows when it cannot be read any more.
func (c *catalog) look(ctx context.Context, all bool) (again <-chan time.Time) {
	sought := slices.DeleteFunc(slices.Clone(c.custom), func(k kind) bool { return !all && c.running[k.GroupResource] != nil })
	served, err := c.api.served(ctx, sought)
	c.note(ctx, &c.served, "/apis", "get", err)
	if err != nil {
		return time.After(seek)
	}
	for _, k := range sought {
		c.serve(ctx, k, served[k.GroupResource])
	}
	c.noteKnown()
	if len(c.running) < len(c.custom) {
		return time.After(seek)
	}
	return nil
}

// noteKnown says that every kind there is has its set by now.
func (c *catalog) noteKnown() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.served.read {
		c.served.read = true
		signal(c.changed)
	}
}

// serve begins, goes on or ends to follow k: it can be read in version, or not
// at all if that is empty.
func (c *catalog) serve(ctx context.Context, k kind, version string) {
	f := c.running[k.GroupResource]
	if f != nil && f.version == version {
		return
	}
	s := &set{held: c.held, kind: k}
	if f != nil {
		f.stop()
		<-f.ended
		delete(c.running, k.GroupResource)
		s = f.set
	}
	switch {
	case version == "" && f != nil:
		c.log.Info("kind is gone", "resource", k.GroupResource.String())
		c.drop(s)
	case version != "":
		c.log.Debug("kind is there", "resource", k.GroupResource.String(), "version", version)
		c.add(s)
		c.running[k.GroupResource] = start(ctx, &c.wg, c.api, s, version)
	}
}
