// Package kube is the source that reads the Kubernetes API.
//
// It watches the kinds that package resource knows, over the whole cluster; of
// Secrets only those that a plugin or a gateway names, one by one. A kind of
// Kubernetes itself is taken as the API server has it, without what nobody here
// reads; one that a CRD defines goes through the decoder that files go through.
//
// It refuses to guess: what it cannot see is not gone. Guarantees:
//
//   - The first snapshot comes when every kind that there is has been read, or
//     the API server has refused it; see [source.Snapshot.Unread]. A Secret that
//     it refuses is a problem of those that name it alone.
//   - A kind without CRD is looked for until it appears; one whose CRD is gone
//     takes its objects with it. Anything else that goes wrong removes nothing:
//     an API server that is lost, a permission that is taken away, an object that
//     does not decode any more.
//   - A lone change is delivered after a few milliseconds; a storm of them at most
//     every [interval], the last one included.
//   - What has not changed is not decoded again, and a change of nothing that is
//     read, such as the status of a plugin, delivers nothing.
//
// Where a rule is not obvious it is Istio's. Start at [Source.Run]; which kinds,
// and what is kept of them, is in kinds.go.
package kube

import (
	"cmp"
	"context"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
)

// A Config says which API server to read, and how. Only Cluster is required.
type Config struct {
	Cluster *rest.Config // see Connect
	// RootNamespace is where a gateway may be that is not a Pod, and its Secrets;
	// default istio-system.
	RootNamespace string
	Decoder       *resource.Decoder     // default: one of its own
	Log           *slog.Logger          // default: none
	Registerer    prometheus.Registerer // default: metrics are not registered
}

// A Source reads one API server. It implements source.Source.
type Source struct {
	config  Config
	metrics *metrics
}

// New returns a source. It makes no connection yet.
func New(c Config) *Source {
	c.RootNamespace = cmp.Or(c.RootNamespace, "istio-system")
	c.Decoder = cmp.Or(c.Decoder, resource.NewDecoder())
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	return &Source{config: c, metrics: newMetrics(c.Registerer)}
}

// Run delivers what the API server holds, now and after each change, until ctx
// ends; then it returns nil. An API server that does not answer is waited for. It
// returns an error if the configuration cannot be used.
func (s *Source) Run(ctx context.Context, deliver func(source.Snapshot)) error {
	if s.config.Cluster == nil {
		return ErrNoCluster
	}
	api, err := newAPI(s.config.Cluster)
	if err != nil {
		return err
	}
	defer api.close()
	held := &held{
		decoder: s.config.Decoder,
		log:     s.config.Log,
		metrics: s.metrics,
		changed: make(chan struct{}, 1),
		missing: make(chan struct{}, 1),
		sets:    map[*set]bool{},
	}
	catalog := catalog{held: held, api: api, running: map[schema.GroupResource]*following{}}
	secrets := secrets{held: held, api: api, running: map[types.NamespacedName]*following{}}
	var wg sync.WaitGroup
	wg.Go(func() { catalog.run(ctx) })
	pump(ctx, held.changed, func(now time.Time) (source.Snapshot, time.Duration) {
		return s.compose(ctx, held, &secrets, now)
	}, func(snapshot source.Snapshot) {
		s.metrics.snapshots.Inc()
		deliver(snapshot)
	})
	wg.Wait()
	secrets.wg.Wait()
	return nil
}

// compose makes a snapshot. It returns how long to wait instead, unless something
// changes, if it is not time yet.
func (s *Source) compose(ctx context.Context, held *held, secrets *secrets, now time.Time) (source.Snapshot, time.Duration) {
	snapshot, ok := held.snapshot()
	if !ok {
		return snapshot, math.MaxInt64
	}
	secrets.want(ctx, secretsOf(snapshot.Objects, s.config.RootNamespace))
	wait := secrets.appendTo(&snapshot, now)
	return snapshot, wait
}
