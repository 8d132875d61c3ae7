package engine

import (
	"cmp"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chandler-proxy/chandler/internal/engine/admin"
	"github.com/chandler-proxy/chandler/internal/engine/stats"
)

func (e *Engine) admin() *admin.Server { return &admin.Server{Source: adminSource{e}} }

// adminSource is what the admin interface sees.
type adminSource struct{ e *Engine }

func (a adminSource) State() adminv3.ServerInfo_State {
	switch {
	case a.e.failing.Load():
		return adminv3.ServerInfo_DRAINING
	case a.e.Live():
		return adminv3.ServerInfo_LIVE
	}
	a.e.state.mu.Lock()
	defer a.e.state.mu.Unlock()
	if !a.e.state.gotCDS {
		return adminv3.ServerInfo_PRE_INITIALIZING
	}
	return adminv3.ServerInfo_INITIALIZING
}

func (a adminSource) ServerInfo() *adminv3.ServerInfo {
	up := durationpb.New(time.Since(a.e.started).Truncate(time.Second))
	return &adminv3.ServerInfo{
		Version: "chandler engine/1.40.0", State: a.State(), UptimeCurrentEpoch: up, UptimeAllEpochs: up, Node: a.e.cfg.Node,
		CommandLineOptions: &adminv3.CommandLineOptions{
			Concurrency: uint32(a.e.cfg.Concurrency), DrainTime: durationpb.New(a.e.cfg.DrainTime),
		},
	}
}

func (a adminSource) Stats() *stats.Registry {
	r := a.e.stats
	live := int64(0)
	if a.e.Live() {
		live = 1
	}
	r.Gauge(stats.Scope{}, "server.live").Set(live)
	r.Gauge(stats.Scope{}, "server.uptime").Set(int64(time.Since(a.e.started).Seconds()))
	r.Gauge(stats.Scope{}, "server.state").Set(int64(a.State()))
	r.Gauge(stats.Scope{}, "cluster_manager.active_clusters").Set(int64(len(*a.e.state.clusters.Load())))
	r.Gauge(stats.Scope{}, "listener_manager.total_listeners_active").Set(int64(len(*a.e.state.listening.Load())))
	connected := int64(0)
	if a.e.state.client.Connected() {
		connected = 1
	}
	r.Gauge(stats.Scope{}, "control_plane.connected_state").Set(connected)
	// The agent takes the admin interface's own for a sign that connections are counted.
	r.Gauge(stats.Scope{Family: "listener", Name: "admin"}, "downstream_cx_active")
	return r
}

func (a adminSource) FailHealth(fail bool) {
	a.e.failing.Store(fail)
	if fail {
		a.e.state.drain()
	}
}

func (a adminSource) Drain(d admin.Drain) {
	s := a.e.state
	switch {
	case d.Inbound:
		a.drainInbound(d)
		return
	case d.Gracefully, d.SkipExit:
		s.drain()
	}
	if !d.SkipExit {
		s.stopListening()
	}
}

// drainInbound is Drain for the listeners of that direction alone.
func (a adminSource) drainInbound(d admin.Drain) {
	s := a.e.state
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, l := range s.listeners {
		if l.current == nil || !l.current.Config.Inbound {
			continue
		}
		if d.Gracefully || d.SkipExit {
			l.current.Goodbye(s.ctx)
		}
		if sock := s.sockets[name]; sock != nil && !d.SkipExit {
			sock.Stop()
			delete(s.sockets, name)
		}
	}
}

func (a adminSource) Quit() { a.e.cfg.Quit() }

func (a adminSource) Level(name, level string) (map[string]string, error) {
	if name != "" && name != "wasm" {
		return nil, admin.ErrLogger
	}
	if level != "" {
		i := slices.Index(admin.Levels(), level)
		if i < 0 {
			return nil, admin.ErrLevel
		}
		a.e.level.Store(uint32(i))
	}
	return map[string]string{"wasm": admin.Levels()[a.e.level.Load()]}, nil
}

func (a adminSource) Clusters() *adminv3.Clusters {
	list := new(adminv3.Clusters)
	for name, c := range *a.e.state.clusters.Load() {
		st := &adminv3.ClusterStatus{
			Name: name, ObservabilityName: name, AddedViaApi: true, CircuitBreakers: breakers(c.Config.Message),
			EdsServiceName: c.Config.Message.GetEdsClusterConfig().GetServiceName(),
		}
		for _, h := range c.Hosts() {
			st.HostStatuses = append(st.HostStatuses, &adminv3.HostStatus{
				Address: addressOf(h.Address), Weight: uint32(h.Weight()), Locality: new(corev3.Locality),
				HealthStatus: &adminv3.HostHealthStatus{EdsHealthStatus: corev3.HealthStatus_HEALTHY},
				Stats: []*adminv3.SimpleMetric{
					{Name: "cx_active", Type: adminv3.SimpleMetric_GAUGE, Value: uint64(h.Connections())},
					{Name: "rq_active", Type: adminv3.SimpleMetric_GAUGE, Value: uint64(h.Active())},
				},
			})
		}
		list.ClusterStatuses = append(list.ClusterStatuses, st)
	}
	slices.SortFunc(list.ClusterStatuses, func(a, b *adminv3.ClusterStatus) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// breakers are the limits of a cluster, by priority: Envoy's where it says nothing.
func breakers(c *clusterv3.Cluster) *clusterv3.CircuitBreakers {
	list := new(clusterv3.CircuitBreakers)
	for _, priority := range []corev3.RoutingPriority{corev3.RoutingPriority_DEFAULT, corev3.RoutingPriority_HIGH} {
		said := new(clusterv3.CircuitBreakers_Thresholds)
		if i := slices.IndexFunc(c.GetCircuitBreakers().GetThresholds(), func(t *clusterv3.CircuitBreakers_Thresholds) bool { return t.GetPriority() == priority }); i >= 0 {
			said = c.GetCircuitBreakers().GetThresholds()[i]
		}
		or := func(v *wrapperspb.UInt32Value, n uint32) *wrapperspb.UInt32Value {
			return cmp.Or(v, wrapperspb.UInt32(n))
		}
		list.Thresholds = append(list.Thresholds, &clusterv3.CircuitBreakers_Thresholds{
			Priority: priority, MaxConnections: or(said.GetMaxConnections(), 1024), MaxPendingRequests: or(said.GetMaxPendingRequests(), 1024),
			MaxRequests: or(said.GetMaxRequests(), 1024), MaxRetries: or(said.GetMaxRetries(), 3),
		})
	}
	return list
}

func addressOf(s string) *corev3.Address {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: s}}}
	}
	n, _ := strconv.ParseUint(port, 10, 16)
	return socketAddress(host, uint32(n))
}

func socketAddress(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

func (a adminSource) Listeners() *adminv3.Listeners {
	s := a.e.state
	s.mu.Lock()
	defer s.mu.Unlock()
	list := new(adminv3.Listeners)
	for name, l := range s.listeners {
		if l.current == nil {
			continue
		}
		at := l.current.Config.Address
		if sock := s.sockets[name]; sock != nil {
			at = netip.AddrPortFrom(at.Addr(), sock.Addr.Port())
		}
		list.ListenerStatuses = append(list.ListenerStatuses, &adminv3.ListenerStatus{
			Name: name, LocalAddress: socketAddress(at.Addr().String(), uint32(at.Port())),
		})
	}
	slices.SortFunc(list.ListenerStatuses, func(a, b *adminv3.ListenerStatus) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// ConfigDump tells what was taken, by type and name.
func (a adminSource) ConfigDump() (*adminv3.ConfigDump, error) {
	s := a.e.state
	s.mu.Lock()
	defer s.mu.Unlock()
	clusters, listeners, routes := new(adminv3.ClustersConfigDump), new(adminv3.ListenersConfigDump), new(adminv3.RoutesConfigDump)
	secrets, extensions, endpoints := new(adminv3.SecretsConfigDump), new(adminv3.EcdsConfigDump), new(adminv3.EndpointsConfigDump)
	for _, name := range slices.Sorted(maps.Keys(s.byCluster)) {
		c := s.byCluster[name]
		d := &adminv3.ClustersConfigDump_DynamicCluster{VersionInfo: c.raw.GetVersion(), Cluster: c.raw.GetResource()}
		if c.current == nil {
			clusters.DynamicWarmingClusters = append(clusters.DynamicWarmingClusters, d)
		} else {
			clusters.DynamicActiveClusters = append(clusters.DynamicActiveClusters, d)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.listeners)) {
		l := s.listeners[name]
		state := &adminv3.ListenersConfigDump_DynamicListenerState{VersionInfo: l.raw.GetVersion(), Listener: l.raw.GetResource()}
		d := &adminv3.ListenersConfigDump_DynamicListener{Name: name}
		if l.next != nil {
			d.WarmingState = state
		} else {
			d.ActiveState = state
		}
		listeners.DynamicListeners = append(listeners.DynamicListeners, d)
	}
	for _, r := range taken(s.routes, func(r *routeSlot) *discoveryv3.Resource { return r.raw }) {
		routes.DynamicRouteConfigs = append(routes.DynamicRouteConfigs,
			&adminv3.RoutesConfigDump_DynamicRouteConfig{VersionInfo: r.GetVersion(), RouteConfig: r.GetResource()})
	}
	for _, r := range taken(s.secrets, func(x *secret) *discoveryv3.Resource { return x.raw }) {
		secrets.DynamicActiveSecrets = append(secrets.DynamicActiveSecrets,
			&adminv3.SecretsConfigDump_DynamicSecret{Name: r.GetName(), VersionInfo: r.GetVersion(), Secret: r.GetResource()})
	}
	for _, r := range taken(s.slots, func(x *slot) *discoveryv3.Resource { return x.raw }) {
		extensions.EcdsFilters = append(extensions.EcdsFilters,
			&adminv3.EcdsConfigDump_EcdsFilterConfig{VersionInfo: r.GetVersion(), EcdsFilter: r.GetResource()})
	}
	for _, r := range taken(s.endpoints, func(x *endpointSet) *discoveryv3.Resource { return x.raw }) {
		endpoints.DynamicEndpointConfigs = append(endpoints.DynamicEndpointConfigs,
			&adminv3.EndpointsConfigDump_DynamicEndpointConfig{VersionInfo: r.GetVersion(), EndpointConfig: r.GetResource()})
	}
	return &adminv3.ConfigDump{Configs: []*anypb.Any{
		mustAny(clusters), mustAny(endpoints), mustAny(extensions), mustAny(listeners), mustAny(routes), mustAny(secrets),
	}}, nil
}

// taken are the resources that there are, sorted by name.
func taken[T any](m map[string]T, raw func(T) *discoveryv3.Resource) []*discoveryv3.Resource {
	var list []*discoveryv3.Resource
	for _, x := range m {
		if r := raw(x); r != nil {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b *discoveryv3.Resource) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return list
}

// count counts a response as taken or refused.
func (s *state) count(typeURL string, errs []error) {
	name := map[string]string{
		clusterType: "cluster_manager.cds", listenerType: "listener_manager.lds", routeType: "rds",
		endpointType: "eds", secretType: "sds", extensionType: "extension_config_discovery",
	}[typeURL]
	if len(errs) > 0 {
		name += ".update_rejected"
	} else {
		name += ".update_success"
	}
	s.e.stats.Counter(stats.Scope{}, name).Inc()
}
