package control

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
	"github.com/chandler-proxy/chandler/internal/translate"
	"github.com/chandler-proxy/chandler/internal/xds"
)

// A publisher makes a World of each snapshot of the source, and of the World the
// configuration of each class of proxies that is connected.
type publisher struct {
	xds       *xds.Server
	problems  *problems
	log       *slog.Logger
	changes   chan source.Snapshot // the newest that was not taken yet; holds one
	appeared  <-chan struct{}      // a class has no configuration yet
	published func()               // there is news
	trials    trials               // of listeners, for proxies that are the embedded engine

	newWorld func([]resource.Object) (*mesh.World, []resource.Problem)
	build    func(*mesh.World, mesh.Proxy) (*translate.Resources, []resource.Problem)

	mu      sync.Mutex
	current *generation // nil before the first; replaced only by Run
}

// A generation is one World and what was made of it.
type generation struct {
	number  int
	built   time.Time
	objects map[string]int // by kind
	world   *mesh.World
	encoder *xds.Encoder

	written   []resource.Object             // as the source has them; what is judged
	refused   []source.Refused              // what it does not take; the same
	revisions map[string]string             // that namespaces have chosen, by name
	snap      source.Snapshot               // where the World's objects are written
	problems  []resource.Problem            // of the source and the mesh
	classes   map[string][]resource.Problem // of each class that was built
}

func newPublisher(server *xds.Server, appeared <-chan struct{}, opts mesh.Options, problems *problems, log *slog.Logger) *publisher {
	return &publisher{
		xds:       server,
		problems:  problems,
		log:       log,
		changes:   make(chan source.Snapshot, 1),
		appeared:  appeared,
		published: func() {},
		newWorld: func(objects []resource.Object) (*mesh.World, []resource.Problem) {
			world, problems := mesh.New(objects, opts)
			return world, append(problems, translate.Problems(world)...)
		},
		build: translate.Build,
	}
}

// deliver takes a snapshot from the source. It does not block: a snapshot that
// is still waiting is replaced. It is not called concurrently.
func (p *publisher) deliver(snap source.Snapshot) {
	select {
	case <-p.changes:
	default:
	}
	p.changes <- snap
}

// signal tells whoever reads c, which holds one, that there is something to do.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run publishes what the source delivers until ctx ends: a lone change at once, a
// storm of changes gathered.
func (p *publisher) Run(ctx context.Context) error {
	var changed source.Snapshot
	var gathered gather
	due := time.NewTimer(0)
	<-due.C
	for {
		select {
		case <-ctx.Done():
			return nil
		case changed = <-p.changes:
			now := time.Now()
			due.Reset(gathered.changed(now).Sub(now))
		case <-due.C:
			p.renew(changed)
			gathered.publish(time.Now())
		case <-p.appeared:
			p.publish(func(c xds.Class) bool { return c.Snapshot == nil })
		}
	}
}

// renew makes a new World and publishes it to every class. Before the first, it
// waits until all of the source was read: proxies may run what was not.
func (p *publisher) renew(snap source.Snapshot) {
	if snap.Unread && p.generation() == nil {
		p.problems.set(snap.Problems)
		return
	}
	world, problems := p.newWorld(snap.Objects)
	next := &generation{
		number:    1,
		built:     time.Now(),
		objects:   make(map[string]int),
		world:     world,
		encoder:   xds.NewEncoder(),
		written:   snap.Objects,
		refused:   snap.Refused,
		revisions: revisions(snap.Objects),
		snap:      source.Snapshot{Places: snap.Places},
		problems:  append(problems[:len(problems):len(problems)], snap.Problems...),
		classes:   make(map[string][]resource.Problem),
	}
	for _, o := range snap.Objects {
		next.objects[o.GetObjectKind().GroupVersionKind().Kind]++
	}
	var before *mesh.World
	if last := p.generation(); last != nil {
		next.number, before = last.number+1, last.world
	}
	p.mu.Lock()
	p.current = next
	p.mu.Unlock()
	if moved := relabelled(snap.Objects, before, world); moved != nil { // not before current is set: they come back at once
		p.xds.Reclass(moved)
	}
	p.publish(func(xds.Class) bool { return true })
}

// generation is the newest; nil before the first. It is not to be changed.
func (p *publisher) generation() *generation {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current
}

// publish builds the configuration of the classes that want it and publishes
// each as soon as it is there. It does nothing before the first World.
func (p *publisher) publish(want func(xds.Class) bool) {
	gen := p.generation()
	if gen == nil {
		return
	}
	began := time.Now()
	found := make(map[string][]resource.Problem)
	var mu sync.Mutex // of found
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	built := 0
	classes := p.xds.Classes()
	p.trials.keep(classes)
	for _, c := range classes {
		if !want(c) {
			mu.Lock()
			found[c.Key] = gen.classes[c.Key]
			mu.Unlock()
			continue
		}
		built++
		g.Go(func() error {
			problems := p.publishClass(gen, c)
			mu.Lock()
			defer mu.Unlock()
			found[c.Key] = problems
			return nil
		})
	}
	_ = g.Wait() // none returns an error: what is wrong with a class is its problem
	gen.classes = found
	p.problems.set(gen.allProblems())
	p.published()
	p.log.Info("configuration published", "generation", gen.number, "classes", built, "took", time.Since(began))
}

func (g *generation) allProblems() []resource.Problem {
	all := g.problems[:len(g.problems):len(g.problems)]
	for _, problems := range g.classes {
		all = append(all, problems...)
	}
	return g.snap.Locate(all)
}

// publishClass builds and publishes the configuration of one class. If it cannot
// be encoded, the class keeps what it has.
func (p *publisher) publishClass(gen *generation, c xds.Class) []resource.Problem {
	proxy, err := mesh.ParseNode(c.Node)
	if err != nil { // it was parsed to know its class
		return []resource.Problem{{Message: fmt.Sprintf("configuration of %s: %v", c.Node.GetId(), err)}}
	}
	built, problems := p.build(gen.world, proxy)
	snap, twice, err := snapshot(gen.encoder, c.Snapshot, built)
	if err != nil {
		return append(problems, resource.Problem{
			Message: fmt.Sprintf("configuration of %s and its like: %v", c.Node.GetId(), err),
			Mend:    "they keep what they had; undo the last change",
		})
	}
	p.xds.Publish(c.Key, snap)
	problems = append(problems, twice...)
	if proxy.Engine {
		problems = append(problems, p.trials.try(c.Key, snap, built.Listeners)...)
	}
	return problems
}

// snapshot encodes resources, sharing what is as it was in prev. Of several with
// one name the first is taken, and the others are problems.
func snapshot(enc *xds.Encoder, prev *xds.Snapshot, r *translate.Resources) (*xds.Snapshot, []resource.Problem, error) {
	type key struct{ typeURL, name string }
	taken := make(map[key]bool)
	var all []*xds.Resource
	var twice []resource.Problem
	for m := range messages(r) {
		res, err := enc.Encode(m)
		if err != nil {
			return nil, nil, err
		}
		k := key{res.Type, res.Name}
		if taken[k] {
			kind := res.Type[strings.LastIndexByte(res.Type, '.')+1:]
			twice = append(twice, resource.Problem{Message: fmt.Sprintf("Envoy %s %q is made twice; the first is used", kind, res.Name)})
			continue
		}
		taken[k] = true
		all = append(all, res)
	}
	snap, err := xds.NewSnapshot(prev, all)
	return snap, twice, err
}

// messages yields all of r.
func messages(r *translate.Resources) iter.Seq[proto.Message] {
	return func(yield func(proto.Message) bool) {
		_ = each(r.Clusters, yield) && each(r.Endpoints, yield) && each(r.Secrets, yield) &&
			each(r.Extensions, yield) && each(r.Listeners, yield) && each(r.Routes, yield)
	}
}

func each[M proto.Message](messages []M, yield func(proto.Message) bool) bool {
	for _, m := range messages {
		if !yield(m) {
			return false
		}
	}
	return true
}
