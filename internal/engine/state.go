package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/chandler-proxy/chandler/internal/engine/ads"
	"github.com/chandler-proxy/chandler/internal/engine/certs"
	"github.com/chandler-proxy/chandler/internal/engine/config"
	"github.com/chandler-proxy/chandler/internal/engine/extension"
	"github.com/chandler-proxy/chandler/internal/engine/hcm"
	"github.com/chandler-proxy/chandler/internal/engine/listener"
	"github.com/chandler-proxy/chandler/internal/engine/upstream"
)

// The types of resources, by URL.
const (
	clusterType   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	endpointType  = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	listenerType  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	routeType     = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	secretType    = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	extensionType = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
)

// A state is the configuration of now. The stream of xDS changes it; connections
// see it through pointers that are replaced whole.
type state struct {
	e       *Engine
	client  *ads.Client
	opener  *extension.Opener
	env     *listener.Env
	ctx     context.Context // of connections and clusters
	cancel  context.CancelFunc
	workers sync.WaitGroup // connections
	parts   sync.WaitGroup // clusters, sockets, timers

	clusters  atomic.Pointer[map[string]*upstream.Cluster] // those that are warm
	listening atomic.Pointer[[]*listener.Listener]         // those that are live

	mu        sync.Mutex
	byCluster map[string]*cluster
	endpoints map[string]*endpointSet // by service
	routes    map[string]*routeSlot
	slots     map[string]*slot
	secrets   map[string]*secret
	listeners map[string]*listenerState
	sockets   map[string]*listener.Socket // by name of the listener
	logs      logFiles
	gotCDS    bool
	gotLDS    bool
	draining  bool
}

// A cluster is one as configured; what serves is current, until next is warm.
type cluster struct {
	cfg           *config.Cluster
	current, next *running
	raw           *discoveryv3.Resource
}

// A running cluster.
type running struct {
	*upstream.Cluster
	stop context.CancelFunc
}

type endpointSet struct {
	list []config.Endpoint
	raw  *discoveryv3.Resource
}

// known is whether a resource that a listener waits for has come, or was refused.
type known struct {
	told bool
	raw  *discoveryv3.Resource // the last one that was taken
}

type routeSlot struct {
	known
	current atomic.Pointer[config.Routes]
}

type slot struct {
	known
	current extension.Slot
}

type secret struct {
	known
	current listener.Secret
}

// A listenerState is a listener as configured; what serves is current, until next is warm.
type listenerState struct {
	current, next *listener.Listener
	since         time.Time // when next came
	raw           *discoveryv3.Resource
}

func newState(ctx context.Context, e *Engine) *state {
	s := &state{
		e: e, byCluster: map[string]*cluster{}, endpoints: map[string]*endpointSet{}, routes: map[string]*routeSlot{},
		slots: map[string]*slot{}, secrets: map[string]*secret{}, listeners: map[string]*listenerState{},
		sockets: map[string]*listener.Socket{},
	}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.clusters.Store(new(map[string]*upstream.Cluster))
	s.listening.Store(new([]*listener.Listener))
	s.env = &listener.Env{
		HTTP: &hcm.Env{
			Cluster: s.cluster, Stats: e.stats, Facts: newFacts(e.cfg.Node).property, Log: e.cfg.Log, Now: time.Now, Address: ownAddress(),
			AccessLog:  s.logs.writer,
			Background: func(f func(context.Context)) { s.workers.Go(func() { f(s.ctx) }) },
			Access:     e.cfg.Access,
		},
		Routes: func(name string) func() *config.Routes { return s.route(name).current.Load },
		Slot:   func(name string) *extension.Slot { return &s.slot(name).current },
		Secret: func(name string) *listener.Secret { return &s.secret(name).current },
		Open: func(c config.Extension) (*extension.Extension, error) {
			return s.opener.Open(s.ctx, c)
		},
		Find: s.find, Log: e.cfg.Log, NextID: func() uint64 { return e.ids.Add(1) }, Workers: &s.workers,
	}
	return s
}

// ownAddress is an address of this machine that is not for itself only, if it has
// one: what Envoy tells as that of a client on the same machine.
func ownAddress() netip.Addr {
	list, _ := net.InterfaceAddrs() // without any it is the loopback's
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() {
			return p.Addr()
		}
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// start subscribes to clusters. Listeners come when these are warm, as in Envoy.
func (s *state) start() { s.client.SubscribeAll(clusterType) }

// run lets listeners that have waited as long as they should go live.
func (s *state) run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.mu.Lock()
			s.settle()
			s.mu.Unlock()
		}
	}
}

// close ends all connections and waits for everything to end.
func (s *state) close() {
	s.cancel()
	s.mu.Lock()
	for _, sock := range s.sockets {
		sock.Stop()
	}
	s.mu.Unlock()
	s.parts.Wait()
	s.workers.Wait()
	s.mu.Lock()
	for _, x := range s.slots {
		x.current.Put(nil)
	}
	s.mu.Unlock()
	s.opener.Wait()
}

// cluster returns a warm cluster, or nil.
func (s *state) cluster(name string) *upstream.Cluster { return (*s.clusters.Load())[name] }

func (s *state) route(name string) *routeSlot {
	r := s.routes[name]
	if r == nil {
		r = new(routeSlot)
		s.routes[name] = r
	}
	return r
}

func (s *state) slot(name string) *slot {
	x := s.slots[name]
	if x == nil {
		x = new(slot)
		s.slots[name] = x
	}
	return x
}

func (s *state) secret(name string) *secret {
	x := s.secrets[name]
	if x == nil {
		x = new(secret)
		s.secrets[name] = x
	}
	return x
}

// apply takes what one response brings. What of it is good takes effect, as in
// Envoy; the error tells of the rest.
func (s *state) apply(ctx context.Context, u ads.Update) error {
	var take func(*discoveryv3.Resource) error
	remove := func(string) {}
	switch u.Type {
	case clusterType:
		take, remove = s.takeCluster, s.removeCluster
	case endpointType:
		take = s.takeEndpoints
	case listenerType:
		take, remove = s.takeListener, s.removeListener
	case routeType:
		take = s.takeRoutes
	case secretType:
		take = s.takeSecret
	case extensionType:
		return s.applyExtensions(ctx, u)
	default:
		return fmt.Errorf("resources of type %s were not asked for", u.Type)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, name := range u.Removed {
		remove(name)
	}
	for _, r := range u.Resources {
		if err := take(r); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", r.GetName(), err))
		}
	}
	s.gotCDS = s.gotCDS || u.Type == clusterType
	s.gotLDS = s.gotLDS || u.Type == listenerType
	s.count(u.Type, errs)
	s.settle()
	return join(errs)
}

// join is as errors.Join, on one line.
func join(errs []error) error {
	if len(errs) < 2 {
		return errors.Join(errs...)
	}
	text := make([]string, len(errs))
	for i, err := range errs {
		text[i] = err.Error()
	}
	return errors.New(strings.Join(text, "; "))
}

// settle does what may be due after a change: it lets go live what is warm, and
// subscribes to what is wanted.
func (s *state) settle() {
	now := time.Now()
	for name, l := range s.listeners {
		if l.next != nil && s.warm(l, now) {
			s.activate(name, l)
		}
	}
	s.subscribe()
	if s.gotCDS && !s.gotLDS && s.clustersWarm() {
		s.client.SubscribeAll(listenerType)
	}
	if s.gotLDS && !s.e.Live() {
		for _, l := range s.listeners {
			if l.current == nil {
				return
			}
		}
		s.e.becomeLive()
	}
}

func (s *state) clustersWarm() bool {
	for _, c := range s.byCluster {
		if c.current == nil {
			return false
		}
	}
	return true
}

// subscribe asks for all that clusters and listeners name.
func (s *state) subscribe() {
	var services []string
	for _, c := range s.byCluster {
		if c.cfg.Discovery == config.EDS {
			services = append(services, c.cfg.Service)
		}
	}
	s.client.Subscribe(endpointType, distinct(services))
	var names, extensions, secrets []string
	for _, l := range s.listeners {
		for _, x := range []*listener.Listener{l.current, l.next} {
			if x == nil {
				continue
			}
			r, e, c := x.Config.Dependencies()
			for n := range r {
				names = append(names, n)
			}
			for n := range e {
				extensions = append(extensions, n)
			}
			for n := range c {
				secrets = append(secrets, n)
			}
		}
	}
	s.client.Subscribe(secretType, distinct(secrets))
	s.client.Subscribe(routeType, distinct(names))
	s.client.Subscribe(extensionType, distinct(extensions))
}

func distinct(list []string) []string {
	slices.Sort(list)
	return slices.Compact(list)
}

// Clusters.

func (s *state) takeCluster(r *discoveryv3.Resource) error {
	m := new(clusterv3.Cluster)
	if err := r.GetResource().UnmarshalTo(m); err != nil {
		return err
	}
	cfg, err := config.DecodeCluster(m)
	if err != nil {
		return err
	}
	c := s.byCluster[cfg.Name]
	if c != nil && c.cfg.Identity == cfg.Identity {
		return nil
	}
	u, err := upstream.New(cfg, s.e.stats, s.e.cfg.Log)
	if err != nil {
		return err
	}
	if c == nil {
		c = new(cluster)
		s.byCluster[cfg.Name] = c
	}
	c.cfg, c.raw = cfg, r
	if c.next != nil {
		c.next.stop()
	}
	c.next = s.runCluster(cfg.Name, u)
	if cfg.Discovery == config.EDS {
		if have := s.endpoints[cfg.Service]; have != nil {
			u.SetEndpoints(have.list)
		}
	}
	s.promote(cfg.Name, u)
	return nil
}

// runCluster starts a cluster, and lets it serve when it is warm.
func (s *state) runCluster(name string, u *upstream.Cluster) *running {
	ctx, cancel := context.WithCancel(s.ctx)
	s.parts.Go(func() {
		_ = u.Run(ctx) // ends with ctx only
	})
	s.parts.Go(func() {
		var late <-chan time.Time
		if d := u.Config.Timeout; u.Config.Discovery == config.EDS && d > 0 {
			t := time.NewTimer(d)
			defer t.Stop()
			late = t.C
		}
		select {
		case <-u.Known():
		case <-late:
			u.SetEndpoints(nil)
		case <-ctx.Done():
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.promote(name, u)
		s.settle()
	})
	return &running{u, cancel}
}

// promote lets a cluster serve if it is the newest and warm.
func (s *state) promote(name string, u *upstream.Cluster) {
	c := s.byCluster[name]
	if c == nil || c.next == nil || c.next.Cluster != u {
		return
	}
	select {
	case <-u.Known():
	default:
		return
	}
	if c.current != nil {
		c.current.stop()
	}
	c.current, c.next = c.next, nil
	s.publishClusters()
}

func (s *state) publishClusters() {
	m := make(map[string]*upstream.Cluster, len(s.byCluster))
	for name, c := range s.byCluster {
		if c.current != nil {
			m[name] = c.current.Cluster
		}
	}
	s.clusters.Store(&m)
}

func (s *state) removeCluster(name string) {
	c := s.byCluster[name]
	if c == nil {
		return
	}
	delete(s.byCluster, name)
	for _, r := range []*running{c.current, c.next} {
		if r != nil {
			r.stop()
		}
	}
	s.publishClusters()
}

func (s *state) takeEndpoints(r *discoveryv3.Resource) error {
	m := new(endpointv3.ClusterLoadAssignment)
	if err := r.GetResource().UnmarshalTo(m); err != nil {
		return err
	}
	list, err := config.DecodeEndpoints(m)
	if err != nil {
		return err
	}
	s.endpoints[m.GetClusterName()] = &endpointSet{list, r}
	for name, c := range s.byCluster {
		if c.cfg.Discovery != config.EDS || c.cfg.Service != m.GetClusterName() {
			continue
		}
		if c.current != nil {
			c.current.SetEndpoints(list)
		}
		if c.next != nil {
			c.next.SetEndpoints(list)
			s.promote(name, c.next.Cluster)
		}
	}
	return nil
}

// Routes, secrets, extensions.

func (s *state) takeRoutes(r *discoveryv3.Resource) error {
	holder := s.route(r.GetName())
	holder.told = true // a listener waits no longer, whatever came
	m := new(routev3.RouteConfiguration)
	if err := r.GetResource().UnmarshalTo(m); err != nil {
		return err
	}
	decoded, err := config.DecodeRoutes(m)
	if err != nil {
		return err
	}
	holder.raw = r
	holder.current.Store(decoded)
	return nil
}

func (s *state) takeSecret(r *discoveryv3.Resource) error {
	holder := s.secret(r.GetName())
	m := new(tlsv3.Secret)
	if err := r.GetResource().UnmarshalTo(m); err != nil {
		return errors.New("not a secret")
	}
	decoded, err := config.DecodeSecret(m)
	if err != nil {
		return err
	}
	if decoded.Certificate != nil {
		pair, err := certs.Load(*decoded.Certificate)
		if err != nil {
			return err
		}
		holder.current.Certificate.Store(pair)
	} else {
		trust := &listener.Trust{SANs: decoded.Validation.SANs}
		if decoded.Validation.CA != nil {
			if trust.CA, err = certs.LoadCA(*decoded.Validation.CA); err != nil {
				return err
			}
		}
		holder.current.Trust.Store(trust)
	}
	holder.told, holder.raw = true, redacted(r, m)
	return nil
}

// redacted is the secret without its private key, for the dump.
func redacted(r *discoveryv3.Resource, m *tlsv3.Secret) *discoveryv3.Resource {
	m = proto.Clone(m).(*tlsv3.Secret)
	if c := m.GetTlsCertificate(); c != nil {
		c.PrivateKey = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "[redacted]"}}
	}
	return &discoveryv3.Resource{Name: r.GetName(), Version: r.GetVersion(), Resource: mustAny(m)}
}

// applyExtensions opens plugins without holding the state: that may take long.
func (s *state) applyExtensions(ctx context.Context, u ads.Update) error {
	var errs []error
	for _, r := range u.Resources {
		opened, err := s.open(ctx, r)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", r.GetName(), err))
		}
		s.mu.Lock()
		holder := s.slot(r.GetName())
		holder.told = true // a listener waits no longer, whatever came
		if opened != nil {
			holder.raw = r
			holder.current.Put(opened)
		}
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range u.Removed {
		if holder := s.slots[name]; holder != nil {
			holder.raw = nil
			holder.current.Put(nil)
		}
	}
	s.count(u.Type, errs)
	s.settle()
	return join(errs)
}

func (s *state) open(ctx context.Context, r *discoveryv3.Resource) (*extension.Extension, error) {
	m := new(corev3.TypedExtensionConfig)
	if err := r.GetResource().UnmarshalTo(m); err != nil {
		return nil, err
	}
	decoded, err := config.DecodeExtension(m)
	if err != nil {
		return nil, err
	}
	if err := s.fits(r.GetName(), m, decoded); err != nil {
		return nil, err
	}
	return s.opener.Open(ctx, decoded)
}

// fits checks that an extension is what the listeners that want it take.
func (s *state) fits(name string, m *corev3.TypedExtensionConfig, e config.Extension) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		for _, x := range []*listener.Listener{l.current, l.next} {
			if x == nil {
				continue
			}
			if err := x.Config.Takes(name, m, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// Listeners.

func (s *state) takeListener(r *discoveryv3.Resource) error {
	m := new(listenerv3.Listener)
	if err := r.GetResource().UnmarshalTo(m); err != nil {
		return err
	}
	cfg, err := config.DecodeListener(m)
	if err != nil {
		return err
	}
	if cfg.Name == "" {
		cfg.Name = r.GetName()
	}
	l := s.listeners[cfg.Name]
	if l != nil && l.raw != nil && proto.Equal(l.raw.GetResource(), r.GetResource()) {
		l.raw = r
		return nil
	}
	var current *listener.Listener
	if l != nil {
		current = l.current
	}
	if err := s.canBind(cfg, current); err != nil {
		return err
	}
	next, err := listener.Build(s.ctx, cfg, current, s.env)
	if err != nil {
		return err
	}
	if l == nil {
		l = new(listenerState)
		s.listeners[cfg.Name] = l
	}
	if l.next != nil {
		l.next.Drain(s.ctx, current, 0)
	}
	l.next, l.since, l.raw = next, time.Now(), r
	return nil
}

// canBind checks that the address is free, or the listener's already.
func (s *state) canBind(cfg *config.Listener, current *listener.Listener) error {
	if !cfg.Bind || current != nil && current.Config.Bind && current.Config.Address == cfg.Address {
		return nil
	}
	for name, other := range s.listeners {
		for _, x := range []*listener.Listener{other.current, other.next} {
			if x != nil && name != cfg.Name && x.Config.Bind && x.Config.Address == cfg.Address && cfg.Address.Port() != 0 {
				return fmt.Errorf("error adding listener: %q has duplicate address %q as existing listener %q", cfg.Name, cfg.Address, name)
			}
		}
	}
	l, err := bind(cfg.Address)
	if err != nil {
		return fmt.Errorf("bind %s: %w", cfg.Address, err)
	}
	return l.Close()
}

// bind listens at an address: at 0.0.0.0 for IPv4, and at :: for IPv6 only, as Envoy
// does. Package net would take both for both.
func bind(addr netip.AddrPort) (net.Listener, error) {
	if addr.Addr().Is4() {
		return net.Listen("tcp4", addr.String())
	}
	return net.Listen("tcp6", addr.String())
}

// warm reports whether all that the listener needs is there, or has been waited for long enough.
func (s *state) warm(l *listenerState, now time.Time) bool {
	names, extensions, secrets := l.next.Config.Dependencies()
	waits := func(told bool, timeout time.Duration) bool {
		return !told && (timeout == 0 || now.Before(l.since.Add(timeout)))
	}
	for n, d := range names {
		if waits(s.route(n).told, d) {
			return false
		}
	}
	for n, d := range extensions {
		if waits(s.slot(n).told, d) {
			return false
		}
	}
	for n, d := range secrets {
		if waits(s.secret(n).told, d) {
			return false
		}
	}
	return true
}

// activate lets a listener take connections.
func (s *state) activate(name string, l *listenerState) {
	old, next := l.current, l.next
	sock := s.sockets[name]
	reuse := sock != nil && old != nil && old.Config.Address == next.Config.Address && next.Config.Bind
	if !reuse {
		fresh, err := s.listen(next)
		if err != nil {
			s.e.cfg.Log.Error("listen", "listener", name, "error", err)
			return // tried again
		}
		if sock != nil {
			sock.Stop()
		}
		sock = fresh
		delete(s.sockets, name)
		if sock != nil {
			s.sockets[name] = sock
		}
	}
	if sock != nil {
		sock.Replace(next)
	}
	l.current, l.next = next, nil
	s.publishListeners()
	if old != nil {
		old.Drain(s.ctx, next, s.e.cfg.DrainTime)
	}
	s.e.cfg.Log.Info("listener is live", "listener", name)
}

// listen binds the listener's socket, if it has one.
func (s *state) listen(l *listener.Listener) (*listener.Socket, error) {
	if !l.Config.Bind || s.draining {
		return nil, nil
	}
	raw, err := bind(l.Config.Address)
	if err != nil {
		return nil, err
	}
	sock := listener.NewSocket(raw, l)
	s.parts.Go(func() {
		_ = sock.Run(s.ctx) // ends when it is stopped
	})
	return sock, nil
}

func (s *state) publishListeners() {
	var list []*listener.Listener
	for _, l := range s.listeners {
		if l.current != nil {
			list = append(list, l.current)
		}
	}
	s.listening.Store(&list)
}

// find returns the listener for an original destination: that with the address,
// else one for every address with the port.
func (s *state) find(dst netip.AddrPort) *listener.Listener {
	var any *listener.Listener
	for _, l := range *s.listening.Load() {
		switch a := l.Config.Address; {
		case a == dst:
			return l
		case a.Port() == dst.Port() && a.Addr().IsUnspecified():
			any = l
		}
	}
	return any
}

func (s *state) removeListener(name string) {
	l := s.listeners[name]
	if l == nil {
		return
	}
	delete(s.listeners, name)
	if sock := s.sockets[name]; sock != nil {
		sock.Stop()
		delete(s.sockets, name)
	}
	s.publishListeners()
	if l.current != nil {
		l.current.Drain(s.ctx, nil, s.e.cfg.DrainTime)
	}
	if l.next != nil {
		l.next.Drain(s.ctx, l.current, 0)
	}
}

// stopListening closes all sockets. Connections go on.
func (s *state) stopListening() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	for name, sock := range s.sockets {
		sock.Stop()
		delete(s.sockets, name)
	}
}

// drain has all connections end after their next answer.
func (s *state) drain() {
	for _, l := range *s.listening.Load() {
		l.Goodbye(s.ctx)
	}
}
