// Package ads is a client of an ADS server, in the incremental variant of the
// protocol, as Envoy is one.
//
// A [Client] keeps one stream, subscribes to what it is told to, and gives each
// response to [Config.Apply], whose error becomes the nack's reason. When the stream
// ends it makes another, with growing pauses, and tells the server what it has, so that
// only what changed is sent. It knows nothing about the resources themselves.
//
// Start at [Client.Run].
//
// https://www.envoyproxy.io/docs/envoy/v1.40.0/api-docs/xds_protocol#incremental-xds
package ads

import (
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// How soon a client comes back: at a time by chance within an interval that begins with
// retryBase and doubles up to retryMost, and begins anew after a stream on which the
// server has answered. Envoy's, unless its bootstrap says otherwise.
const (
	retryBase = 500 * time.Millisecond
	retryMost = 30 * time.Second
)

// A Config is what a client needs. All but Log are required.
type Config struct {
	Node *corev3.Node
	Conn grpc.ClientConnInterface
	// Apply takes what a response brings. It is called by one goroutine. Its error
	// refuses the response.
	Apply func(ctx context.Context, u Update) error
	Log   *slog.Logger
}

// An Update is what a response brings.
type Update struct {
	Type      string // URL
	Resources []*discoveryv3.Resource
	Removed   []string
}

// A Client is an ADS client. Its methods may be called concurrently.
type Client struct {
	cfg       Config
	connected atomic.Bool
	changed   chan struct{} // has room for one

	mu    sync.Mutex
	types map[string]*subscription
	order []string // of the types, as they were subscribed to first
}

// A subscription is to resources of one type.
type subscription struct {
	wildcard bool
	want     map[string]bool
	versions map[string]string // of what was accepted, by name

	// Of the stream.
	sent  map[string]bool // what the server was told
	begun bool            // the first request was sent
}

// New makes a client. It starts nothing.
func New(cfg Config) *Client {
	return &Client{cfg: cfg, types: map[string]*subscription{}, changed: make(chan struct{}, 1)}
}

// Connected reports whether there is a stream on which the server has answered.
func (c *Client) Connected() bool { return c.connected.Load() }

func (c *Client) subscription(typeURL string) *subscription {
	s := c.types[typeURL]
	if s == nil {
		s = &subscription{want: map[string]bool{}, versions: map[string]string{}, sent: map[string]bool{}}
		c.types[typeURL] = s
		c.order = append(c.order, typeURL)
	}
	return s
}

// SubscribeAll subscribes to all resources of a type.
func (c *Client) SubscribeAll(typeURL string) {
	c.mu.Lock()
	c.subscription(typeURL).wildcard = true
	c.mu.Unlock()
	c.poke()
}

// Subscribe sets the names of the resources that are wanted.
func (c *Client) Subscribe(typeURL string, names []string) {
	c.mu.Lock()
	defer c.poke()
	defer c.mu.Unlock()
	if c.types[typeURL] == nil && len(names) == 0 {
		return
	}
	s := c.subscription(typeURL)
	clear(s.want)
	for _, n := range names {
		s.want[n] = true
	}
	maps.DeleteFunc(s.versions, func(n, _ string) bool { return !s.want[n] })
}

func (c *Client) poke() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// Run keeps a stream until ctx ends.
func (c *Client) Run(ctx context.Context) error {
	wait := retryBase
	for ctx.Err() == nil {
		answered, err := c.stream(ctx)
		c.connected.Store(false)
		if ctx.Err() != nil {
			return nil
		}
		if answered {
			wait = retryBase
		}
		pause := rand.N(wait) + 1
		c.cfg.Log.Debug("xDS stream ended", "error", err, "retry", pause)
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
		wait = min(2*wait, retryMost)
	}
	return nil
}

// stream has one stream until it ends.
func (c *Client) stream(ctx context.Context) (answered bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(c.cfg.Conn).DeltaAggregatedResources(ctx, grpc.WaitForReady(true))
	if err != nil {
		cancel()
		return false, err
	}
	responses := make(chan *discoveryv3.DeltaDiscoveryResponse)
	var receiver sync.WaitGroup
	var failure error
	receiver.Go(func() {
		defer close(responses)
		for {
			r, err := s.Recv()
			if err != nil {
				failure = err
				return
			}
			select {
			case responses <- r:
			case <-ctx.Done():
				failure = ctx.Err()
				return
			}
		}
	})
	defer receiver.Wait()
	defer cancel()
	c.restart()
	c.poke()
	first := true // the node goes with the first request only
	send := func(r *discoveryv3.DeltaDiscoveryRequest) error {
		if first {
			r.Node, first = c.cfg.Node, false
		}
		return s.Send(r)
	}
	for {
		select {
		case <-ctx.Done():
			return answered, ctx.Err()
		case <-c.changed:
			for _, r := range c.requests() {
				if err := send(r); err != nil {
					return answered, err
				}
			}
		case r, ok := <-responses:
			if !ok {
				return answered, failure
			}
			answered = true
			c.connected.Store(true)
			if err := send(c.take(ctx, r)); err != nil {
				return answered, err
			}
		}
	}
}

// restart forgets what the last stream's server was told.
func (c *Client) restart() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.types {
		s.begun = false
		clear(s.sent)
	}
}

// requests are what the server must be told now.
func (c *Client) requests() []*discoveryv3.DeltaDiscoveryRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*discoveryv3.DeltaDiscoveryRequest
	for _, typeURL := range c.order {
		if r := c.types[typeURL].request(typeURL); r != nil {
			list = append(list, r)
		}
	}
	return list
}

func (s *subscription) request(typeURL string) *discoveryv3.DeltaDiscoveryRequest {
	r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL}
	for n := range s.want {
		if !s.sent[n] {
			r.ResourceNamesSubscribe = append(r.ResourceNamesSubscribe, n)
			s.sent[n] = true
		}
	}
	for n := range s.sent {
		if !s.want[n] {
			r.ResourceNamesUnsubscribe = append(r.ResourceNamesUnsubscribe, n)
			delete(s.sent, n)
		}
	}
	slices.Sort(r.ResourceNamesSubscribe)
	slices.Sort(r.ResourceNamesUnsubscribe)
	first := !s.begun && (s.wildcard || len(s.want) > 0)
	if first {
		s.begun = true
		r.InitialResourceVersions = maps.Clone(s.versions)
	}
	if first || len(r.ResourceNamesSubscribe)+len(r.ResourceNamesUnsubscribe) > 0 {
		return r
	}
	return nil
}

// take applies a response and returns the ack or nack.
func (c *Client) take(ctx context.Context, r *discoveryv3.DeltaDiscoveryResponse) *discoveryv3.DeltaDiscoveryRequest {
	answer := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}
	err := c.cfg.Apply(ctx, Update{Type: r.GetTypeUrl(), Resources: r.GetResources(), Removed: r.GetRemovedResources()})
	if err != nil {
		c.cfg.Log.Warn("refuse configuration", "type", r.GetTypeUrl(), "error", err)
		answer.ErrorDetail = &rpcstatus.Status{Code: int32(codes.Internal), Message: err.Error()}
		return answer
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.types[r.GetTypeUrl()]
	if s == nil {
		return answer
	}
	for _, res := range r.GetResources() {
		if s.wildcard || s.want[res.GetName()] {
			s.versions[res.GetName()] = res.GetVersion()
		}
	}
	for _, n := range r.GetRemovedResources() {
		delete(s.versions, n)
	}
	return answer
}
