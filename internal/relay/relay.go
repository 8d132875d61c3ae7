// Package relay stands between one Envoy and any ADS server. It passes every
// type of resource through as the bytes it is, at once and in order, in both
// variants of the protocol. Only extension configs (ECDS) end here: their
// remote modules are fetched, and what Envoy gets names a local file.
//
// Guarantees:
//   - An extension whose module cannot be had is refused upwards (nack), with a
//     reason, and Envoy keeps what it had. It is tried again, with backoff, as
//     long as it is wanted, and is acked when that succeeds.
//   - An extension that Envoy has nothing for gets a stand-in: a no-op if Envoy
//     is serving, allow or deny by its failure policy if it is only starting.
//     On a serving Envoy a new extension is always a no-op first, at once, so
//     that a slow fetch does not hold back a change of the listener, and an Envoy
//     that refuses the module still has something to run.
//   - An extension that Envoy refuses does not keep it from taking changes of the
//     listeners that have it: Envoy is sent what it runs once more, and listeners
//     wait for that moment. Nor does it open a listener that waits for another:
//     until Envoy has something for that, it is sent nothing that it may refuse.
//   - Extensions do not wait for each other, and the newest wanted wins: a newer
//     version cancels the fetch of an older one.
//   - An extension that no listener has any more becomes a no-op, even while
//     listeners that drain still have it: one of its name that comes later does
//     not begin as what it was.
//   - Envoy is never told that an extension is gone while it still subscribes to
//     it: Envoy would answer 500 for the listeners that are still draining.
//
// It neither fetches (Modules does) nor decides what a config means (package
// ecds does). One goroutine owns the state of a stream. Start at [Relay.Run],
// then session.
//
// The protocol is Envoy's "xDS REST and gRPC protocol"; the conventions towards
// the control plane are Istio's.
package relay

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/chandler-proxy/chandler/internal/ecds"
	"github.com/chandler-proxy/chandler/internal/module"
	"github.com/chandler-proxy/chandler/internal/store"
)

// Modules is where the relay gets modules.
type Modules interface {
	// Get returns a lease on a verified copy of the module. It gives up when ctx ends.
	Get(ctx context.Context, want module.Want) (*store.Lease, error)
}

// A Config is everything a Relay can be told. Upstream and Modules are required.
type Config struct {
	Upstream grpc.ClientConnInterface // to the ADS server
	Modules  Modules
	Serving  func() bool // whether Envoy takes traffic already; nil means no
	// Try tries a module with the configuration it is to have, before Envoy gets it.
	// An error refuses the extension until there is another version. Nil tries nothing.
	Try      func(context.Context, *ecds.Extension, *store.Lease) error
	PassECDS bool // treat extension configs like everything else
	Log      *slog.Logger
	Metrics  prometheus.Registerer // nil registers nothing
}

// A Relay serves ADS to one Envoy. Its methods may be called concurrently.
type Relay struct {
	cfg       Config
	metrics   *metrics
	random    func() float64 // in [0, 1)
	connected atomic.Bool
	own       atomic.Bool // the control plane is Chandler's, as far as it has told
	outage    outage
	streams   sync.WaitGroup

	mu        sync.Mutex
	held      map[string]held                // what Envoy runs, by extension
	listeners map[string]map[string][]string // by listener: the type URLs that it takes for each of its extensions
	blind     bool                           // Envoy has listeners that an agent before this one passed on
}

// A held module is one that Envoy has accepted and may read again at any time.
type held struct {
	version string // as Envoy knows it
	lease   *store.Lease
	body    *anypb.Any // the config, as Envoy has it
}

// New returns a Relay. It starts nothing.
func New(cfg Config) *Relay {
	if cfg.Serving == nil {
		cfg.Serving = func() bool { return false }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Relay{
		cfg:       cfg,
		metrics:   newMetrics(cfg.Metrics),
		random:    rand.Float64,
		held:      make(map[string]held),
		listeners: make(map[string]map[string][]string),
	}
}

const (
	service = "envoy.service.discovery.v3.AggregatedDiscoveryService"

	// maxMessage bounds one xDS message, in bytes. Istio and Envoy set no bound.
	maxMessage = 256 << 20
)

// Run serves ADS on l until ctx ends. It closes l, ends all streams and gives
// back all modules before it returns.
func (r *Relay) Run(ctx context.Context, l net.Listener) error {
	srv := grpc.NewServer(
		grpc.ForceServerCodecV2(codec{}),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
	)
	srv.RegisterService(&grpc.ServiceDesc{
		ServiceName: service,
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{
			r.streamDesc("StreamAggregatedResources", func() dialect { return new(sotw) }),
			r.streamDesc("DeltaAggregatedResources", func() dialect { return new(delta) }),
		},
	}, r)

	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		srv.Stop()
		close(stopped)
	})
	err := srv.Serve(l)
	if !stop() {
		<-stopped
		err = nil
	}
	r.streams.Wait()
	r.releaseAll()
	if err != nil {
		return fmt.Errorf("serve xDS on %s: %w", l.Addr(), err)
	}
	return nil
}

func (r *Relay) streamDesc(name string, newDialect func() dialect) grpc.StreamDesc {
	return grpc.StreamDesc{
		StreamName:    name,
		ServerStreams: true,
		ClientStreams: true,
		Handler: func(_ any, down grpc.ServerStream) error {
			return r.serve(down, "/"+service+"/"+name, newDialect())
		},
	}
}

// A Refusal is an error that another try of the same extension would not change.
type Refusal struct{ error }

// Unwrap returns the reason.
func (r Refusal) Unwrap() error { return r.error }

// Connected reports whether the control plane has ever answered.
func (r *Relay) Connected() bool { return r.connected.Load() }

// hold records that Envoy runs h as the extension name.
func (r *Relay) hold(name string, h held) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.held[name]; old.lease != h.lease {
		old.lease.Release()
	}
	r.held[name] = h
}

// holds is what Envoy runs as the extension, as far as this relay knows.
func (r *Relay) holds(name string) (held, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, ok := r.held[name]
	return h, ok
}

// drop forgets extensions that Envoy does not run any more.
func (r *Relay) drop(gone func(name string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, h := range r.held {
		if gone(name) {
			h.lease.Release()
			delete(r.held, name)
		}
	}
}

// begin notes that Envoy asks for listeners on a new stream, and whether it has some.
func (r *Relay) begin(has bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !has {
		clear(r.listeners)
	}
	r.blind = has && (r.blind || len(r.listeners) == 0)
}

// discovered notes which extensions the newest listeners have. It returns those
// that no listener has any more, and those that one has and none had. As long as
// there may be listeners that it has not seen, none of the former are told.
func (r *Relay) discovered(l listeners) (gone, back []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.named()
	if l.whole {
		clear(r.listeners)
	}
	for _, name := range l.removed {
		delete(r.listeners, name)
	}
	for name, body := range l.changed {
		types := make(map[string][]string)
		ecds.Discovered(body, types)
		r.listeners[name] = types
	}
	after := r.named()
	if !r.blind {
		gone = without(before, after)
	}
	return gone, without(after, before)
}

// named are the extensions that listeners have. r.mu is held.
func (r *Relay) named() []string {
	var names []string
	for _, types := range r.listeners {
		names = slices.AppendSeq(names, maps.Keys(types))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// listenerTypes are the type URLs that a listener takes for the extension, if known.
func (r *Relay) listenerTypes(name string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, types := range r.listeners {
		if t, ok := types[name]; ok {
			return t
		}
	}
	return nil
}

func (r *Relay) releaseAll() { r.drop(func(string) bool { return true }) }

// backoff is how long to wait before try n (from 1) of a fetch that failed:
// 1 s, doubling up to a minute, less up to a fifth at random so that many
// agents do not ask a registry at the same instant.
func backoff(n int, random float64) time.Duration {
	d := time.Minute
	if n < 7 {
		d = time.Second << (n - 1)
	}
	return d - time.Duration(random*0.2*float64(d))
}
