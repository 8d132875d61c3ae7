package control

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/part"
	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/status"
)

// reportEvery is the least time between two reports: acks of a thousand proxies
// are one.
const reportEvery = 500 * time.Millisecond

// firstReport is how long whoever comes to lead waits before it tells anything:
// proxies and replicas are coming back, and what is told is seen by people.
const firstReport = 2 * time.Second

// settle is how long a control plane that has just started waits so: by then it is
// among the endpoints of its Service, and agents, which wait up to 6 s between two
// attempts, have found it. Before, every extension would seem to have lost its proxies.
const settle = 10 * time.Second

// Lead does what one of several replicas does for all, until ctx ends: it asks the
// others what their proxies do, and tells report what is known of every resource,
// soon and whenever that may have changed. It may be called again, but not
// twice at once.
func (p *Plane) Lead(ctx context.Context, report func([]status.Fact)) error {
	signal(p.changed)
	g, ctx := errgroup.WithContext(ctx)
	if p.peers != nil {
		g.Go(part.Run(ctx, "replicas", p.peers.Run))
	}
	g.Go(part.Run(ctx, "report", func(ctx context.Context) error { return p.report(ctx, report) }))
	return g.Wait()
}

// report tells facts when there may be new ones. It says nothing before the first World.
func (p *Plane) report(ctx context.Context, tell func([]status.Fact)) error {
	pause := time.NewTimer(max(firstReport, time.Until(p.settled)))
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-pause.C:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.changed:
		}
		if facts := p.facts(); facts != nil {
			tell(facts)
		}
		pause.Reset(reportEvery)
	}
}

// tell says that there is news of resources, or of what proxies do.
func (p *Plane) tell() {
	p.news.tell()
	signal(p.changed)
}

// written are the resources as the source has them; none before its first snapshot.
func (p *Plane) written() []resource.Object {
	if gen := p.publisher.generation(); gen != nil {
		return gen.written
	}
	return nil
}

// HasNamespace reports whether there is such a namespace, as far as is known: before
// the first World any may be there. Safe for concurrent use.
func (p *Plane) HasNamespace(name string) bool {
	gen := p.publisher.generation()
	if gen == nil {
		return true
	}
	_, ok := gen.revisions[name]
	return ok
}

// deliveries are those of this replica's proxies.
func (p *Plane) deliveries() map[string]delivered {
	var extensions []*mesh.Extension
	if gen := p.publisher.generation(); gen != nil {
		extensions = gen.world.AllExtensions()
	}
	return deliveries(p.xds.Classes(), p.xds.Proxies(), extensions, &p.listeners)
}

// facts are those of the newest World; nil before the first.
func (p *Plane) facts() []status.Fact {
	gen := p.publisher.generation()
	if gen == nil {
		return nil
	}
	to := p.deliveries()
	if p.peers != nil {
		p.peers.add(to)
	}
	return facts(gen, p.Problems(), gen.world.AllExtensions(), to)
}
