package engine

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// A controlPlane is an ADS server in process. It serves what it is given, and
// remembers what was refused.
type controlPlane struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	socket string
	server *grpc.Server

	mu        sync.Mutex
	version   int
	resources map[string]map[string]*discoveryv3.Resource
	streams   map[chan struct{}]bool
	nacks     []string
	acked     map[string]int // responses that were taken, by type
	initial   []map[string]string
	changed   *sync.Cond
}

func newControlPlane(t testing.TB) *controlPlane {
	return newControlPlaneAt(t, filepath.Join(shortDir(t), "xds"))
}

func newControlPlaneAt(t testing.TB, socket string) *controlPlane {
	c := &controlPlane{
		socket:    socket,
		resources: map[string]map[string]*discoveryv3.Resource{}, streams: map[chan struct{}]bool{}, acked: map[string]int{},
	}
	c.changed = sync.NewCond(&c.mu)
	l, err := net.Listen("unix", c.socket)
	if err != nil {
		t.Fatal(err)
	}
	c.server = grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(c.server, c)
	var serving sync.WaitGroup
	serving.Go(func() { _ = c.server.Serve(l) })
	t.Cleanup(func() {
		c.server.Stop()
		serving.Wait()
	})
	return c
}

// set adds or replaces resources, and tells the clients.
func (c *controlPlane) set(messages ...proto.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range messages {
		c.version++
		a := mustAny(m)
		name := nameOf(m)
		if c.resources[a.TypeUrl] == nil {
			c.resources[a.TypeUrl] = map[string]*discoveryv3.Resource{}
		}
		c.resources[a.TypeUrl][name] = &discoveryv3.Resource{Name: name, Version: fmt.Sprint(c.version), Resource: a}
	}
	c.tell()
}

func (c *controlPlane) tell() {
	for s := range c.streams {
		select {
		case s <- struct{}{}:
		default:
		}
	}
}

func nameOf(m proto.Message) string {
	switch m := m.(type) {
	case *clusterv3.Cluster:
		return m.GetName()
	case *endpointv3.ClusterLoadAssignment:
		return m.GetClusterName()
	case *listenerv3.Listener:
		return m.GetName()
	case *routev3.RouteConfiguration:
		return m.GetName()
	case *tlsv3.Secret:
		return m.GetName()
	case *corev3.TypedExtensionConfig:
		return m.GetName()
	}
	panic(fmt.Sprintf("%T is no resource", m))
}

// nack waits for the n-th refusal and returns its reason.
func (c *controlPlane) nack(n int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.nacks) < n {
		c.changed.Wait()
	}
	return c.nacks[n-1]
}

// taken waits until n responses of the type were acked.
func (c *controlPlane) taken(typeURL string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.acked[typeURL] < n {
		c.changed.Wait()
	}
}

func (c *controlPlane) acks(typeURL string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.acked[typeURL]
}

// A clientType is what a stream's client has of one type.
type clientType struct {
	wildcard, begun bool
	names           map[string]bool
	has             map[string]string // versions
}

func (c *controlPlane) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	poke := make(chan struct{}, 1)
	c.mu.Lock()
	c.streams[poke] = true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.streams, poke)
		c.mu.Unlock()
	}()
	requests := make(chan *discoveryv3.DeltaDiscoveryRequest)
	var receiving sync.WaitGroup
	defer receiving.Wait()
	receiving.Go(func() {
		defer close(requests)
		for {
			r, err := s.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- r:
			case <-s.Context().Done():
				return
			}
		}
	})
	types := map[string]*clientType{}
	for {
		select {
		case <-s.Context().Done():
			return nil
		case <-poke:
		case r, ok := <-requests:
			if !ok {
				return nil
			}
			c.note(types, r)
		}
		for _, m := range c.due(types) {
			if err := s.Send(m); err != nil {
				return err
			}
		}
	}
}

// note takes a request.
func (c *controlPlane) note(types map[string]*clientType, r *discoveryv3.DeltaDiscoveryRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ct := types[r.GetTypeUrl()]
	if ct == nil {
		ct = &clientType{names: map[string]bool{}, has: map[string]string{}}
		types[r.GetTypeUrl()] = ct
		ct.wildcard = len(r.GetResourceNamesSubscribe()) == 0
		for n, v := range r.GetInitialResourceVersions() {
			ct.has[n] = v
		}
		c.initial = append(c.initial, r.GetInitialResourceVersions())
	}
	for _, n := range r.GetResourceNamesSubscribe() {
		if n == "*" {
			ct.wildcard = true
			continue
		}
		ct.names[n] = true
	}
	for _, n := range r.GetResourceNamesUnsubscribe() {
		delete(ct.names, n)
		delete(ct.has, n)
	}
	switch {
	case r.GetErrorDetail() != nil:
		c.nacks = append(c.nacks, r.GetErrorDetail().GetMessage())
	case r.GetResponseNonce() != "":
		c.acked[r.GetTypeUrl()]++
	}
	c.changed.Broadcast()
}

// due are the responses that a client must get now.
func (c *controlPlane) due(types map[string]*clientType) []*discoveryv3.DeltaDiscoveryResponse {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*discoveryv3.DeltaDiscoveryResponse
	for _, typeURL := range []string{clusterType, endpointType, listenerType, routeType, secretType, extensionType} {
		ct := types[typeURL]
		if ct == nil {
			continue
		}
		m := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: fmt.Sprint(c.version, typeURL)}
		for n, r := range c.resources[typeURL] {
			if (ct.wildcard || ct.names[n]) && ct.has[n] != r.GetVersion() {
				m.Resources = append(m.Resources, r)
				ct.has[n] = r.GetVersion()
			}
		}
		for n := range ct.has {
			if c.resources[typeURL][n] == nil {
				m.RemovedResources = append(m.RemovedResources, n)
				delete(ct.has, n)
			}
		}
		slices.SortFunc(m.Resources, func(a, b *discoveryv3.Resource) int { return slices.Compare([]byte(a.Name), []byte(b.Name)) })
		if len(m.Resources)+len(m.RemovedResources) > 0 || ct.wildcard && !ct.begun {
			list = append(list, m)
		}
		ct.begun = true
	}
	return list
}
