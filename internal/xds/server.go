package xds

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"

	"github.com/chandler-proxy/chandler/internal/identity"
)

// A Config is what a Server must be told. Only Class is required.
type Config struct {
	// Class is the key of the proxies that get the same configuration as the
	// node. An error refuses the proxy; it is told the reason, with the code of
	// gRPC that the error has, if any. The context is that of the proxy's stream.
	// Class may put right what the node says: [Class.Node] is as it leaves it.
	Class func(context.Context, *corev3.Node) (string, error)
	// Bound is how much whoever opened the stream with that context may have. Nil
	// bounds nobody.
	Bound func(context.Context) Bound
	// Appeared is called when a class has its first proxy and needs a snapshot.
	// The proxy waits until it is published. Appeared must not block, nor call
	// the Server.
	Appeared func()

	// Changed is called when what [Server.Proxies] tells of extension configs may
	// have changed. It must not block, nor call the Server.
	Changed func()

	Log        *slog.Logger          // default: none
	Registerer prometheus.Registerer // default: metrics are not registered
}

// A Server serves snapshots to proxies. Its methods are safe for concurrent use.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	cfg      Config
	metrics  *metrics
	lines    *identity.Lines // of the log, about proxies that are refused
	past     *past
	stopping chan struct{}
	streams  sync.WaitGroup // goroutines that receive

	mu      sync.Mutex
	stopped bool
	serial  uint64 // of streams
	classed uint64 // how often streams were classed anew
	classes map[string]*class
	holders map[string]*holder
}

// A class is proxies that get the same configuration.
type class struct {
	key      string
	node     *corev3.Node // of the first of them
	snapshot *Snapshot    // nil until one is published
	streams  map[*stream]struct{}
}

// New returns a Server that serves nothing until it is registered and published to.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Appeared == nil {
		cfg.Appeared = func() {}
	}
	if cfg.Bound == nil {
		cfg.Bound = func(context.Context) Bound { return Bound{} }
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	s := &Server{
		cfg:      cfg,
		past:     newPast(),
		stopping: make(chan struct{}),
		classes:  make(map[string]*class),
		holders:  make(map[string]*holder),
		lines:    identity.NewLines(),
	}
	s.metrics = newMetrics(cfg.Registerer)
	return s
}

// Keepalive notices a proxy that is gone without a word, as Istio does.
func Keepalive() keepalive.ServerParameters {
	return keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}
}

// leastPing is the time between two pings of a client below which it counts as a
// nuisance: half of what our agent leaves between them.
const leastPing = 5 * time.Second

// Options are those of a gRPC server that serves many proxies over long-lived
// streams: keepalive as Istio has it, but with more pings of clients allowed, no
// maximum age, and small buffers, since nearly all connections are silent nearly
// always. Server needs their codec.
func Options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.KeepaliveParams(Keepalive()),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: leastPing, PermitWithoutStream: true}),
		grpc.MaxRecvMsgSize(16 << 20),
		grpc.ReadBufferSize(4 << 10),
		grpc.WriteBufferSize(8 << 10),
		grpc.WaitForHandlers(true),
		grpc.ForceServerCodecV2(newCodec()),
	}
}

// Register makes g, a gRPC server with [Options], serve ADS.
func (s *Server) Register(g grpc.ServiceRegistrar) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, s)
}

// Run returns when ctx has ended and no stream is left; it ends them all. It is
// needed only for that.
func (s *Server) Run(ctx context.Context) error {
	<-ctx.Done()
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	close(s.stopping)
	s.streams.Wait()
	return nil
}

// A Class is what is known of the proxies that get the same configuration.
type Class struct {
	Key      string
	Node     *corev3.Node // of one of them, without its list of extensions; not to be changed
	Snapshot *Snapshot    // last published; nil if none was
	Proxies  int          // connected
}

// Classes are those with a proxy connected, sorted by key.
func (s *Server) Classes() []Class {
	s.mu.Lock()
	defer s.mu.Unlock()
	classes := make([]Class, 0, len(s.classes))
	for _, c := range s.classes {
		classes = append(classes, Class{Key: c.key, Node: c.node, Snapshot: c.snapshot, Proxies: len(c.streams)})
	}
	slices.SortFunc(classes, func(a, b Class) int { return cmp.Compare(a.Key, b.Key) })
	return classes
}

// Publish makes snap the configuration of the class. It does nothing if no
// proxy of the class is connected any more.
func (s *Server) Publish(class string, snap *Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.classes[class]
	if c == nil {
		return
	}
	c.snapshot = snap
	for st := range c.streams {
		st.offer(snap)
	}
}

// Reclass ends the streams of proxies that are no longer of their class, as moved says
// of a proxy's id and the node of its class: they connect again and are classed anew. So
// is a proxy that is just being classed. The Server may be called in moved.
func (s *Server) Reclass(moved func(id string, class *corev3.Node) bool) {
	type member struct {
		stream *stream
		node   *corev3.Node
	}
	var members []member
	s.mu.Lock()
	s.classed++
	for _, c := range s.classes {
		for st := range c.streams {
			members = append(members, member{st, c.node})
		}
	}
	s.mu.Unlock()
	for _, m := range members {
		if moved(m.stream.id, m.node) {
			m.stream.move()
		}
	}
}

// Errors that end streams, which the client is to open again.
var (
	errStopping = errors.New("control plane is stopping")
	errMoved    = errors.New("labels changed")
)

// classings is how often streams were classed anew.
func (s *Server) classings() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.classed
}

// join makes a stream one of its class, as it was found after classed classings. The
// receiving goroutine that comes with it is counted.
func (s *Server) join(h *holder, node *corev3.Node, key string, classed uint64, delta bool, peer string) (*stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, errStopping
	}
	if s.classed != classed {
		return nil, errMoved
	}
	if err := h.take(key); err != nil {
		return nil, err
	}
	s.serial++
	st := &stream{
		holder:    h,
		id:        node.GetId(),
		class:     key,
		peer:      peer,
		serial:    s.serial,
		connected: time.Now(),
		session:   newSession(delta, strconv.FormatUint(s.serial, 36)+"."),
		wake:      make(chan struct{}, 1),
		moved:     make(chan struct{}),
		nacks:     rate.NewLimiter(rate.Every(nackPause), nackLines),
	}
	st.session.past, st.session.class = s.past, key
	c := s.classes[key]
	if c == nil {
		c = &class{key: key, node: withoutExtensions(node), streams: make(map[*stream]struct{})}
		s.classes[key] = c
		s.cfg.Appeared()
	}
	if c.snapshot != nil {
		st.session.offer(c.snapshot)
	}
	c.streams[st] = struct{}{}
	s.streams.Add(1)
	s.metrics.connected.Inc()
	return st, nil
}

// withoutExtensions leaves out what Envoy tells of itself by the hundred.
func withoutExtensions(node *corev3.Node) *corev3.Node {
	node = proto.CloneOf(node)
	node.Extensions = nil
	return node
}

// leave ends a stream's membership, and its class with the last.
func (s *Server) leave(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.classes[st.class]
	delete(c.streams, st)
	st.holder.drop(st.class)
	s.cfg.Changed()
	if len(c.streams) == 0 {
		delete(s.classes, st.class)
	}
	s.metrics.connected.Dec()
}

// nodeClass is Config.Class, checked.
func (s *Server) nodeClass(ctx context.Context, node *corev3.Node) (string, error) {
	if node.GetId() == "" {
		return "", errors.New("first request has no node id")
	}
	if n := proto.Size(node); n > maxNode {
		return "", fmt.Errorf("node is %d bytes long, of which %d are taken", n, maxNode)
	}
	key, err := s.cfg.Class(ctx, node)
	if err != nil {
		return "", fmt.Errorf("node %q: %w", node.GetId(), err)
	}
	return key, nil
}
