package control

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/chandler-proxy/chandler/internal/identity"
	"github.com/chandler-proxy/chandler/internal/xds"
)

// A clientStatus tells the other replicas of this control plane what proxies do
// with their extensions, by Envoy's client status discovery service. It answers
// the first request on a stream at once, and each after it when there is news.
type clientStatus struct {
	statusv3.UnimplementedClientStatusDiscoveryServiceServer

	self       identity.Peer // who may ask: the control plane itself
	deliveries func() map[string]delivered
	news       *news
	stopping   <-chan struct{}
}

// FetchClientStatus tells what is so now.
func (c *clientStatus) FetchClientStatus(ctx context.Context, _ *statusv3.ClientStatusRequest) (*statusv3.ClientStatusResponse, error) {
	if err := c.permit(ctx); err != nil {
		return nil, err
	}
	return encodeDeliveries(c.deliveries())
}

// StreamClientStatus tells what is so now, and again whenever that has changed and
// the other has asked again.
func (c *clientStatus) StreamClientStatus(s statusv3.ClientStatusDiscoveryService_StreamClientStatusServer) error {
	if err := c.permit(s.Context()); err != nil {
		return err
	}
	for {
		if _, err := s.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		next := c.news.next()
		response, err := encodeDeliveries(c.deliveries())
		if err != nil {
			return err
		}
		if err := s.Send(response); err != nil {
			return err
		}
		select {
		case <-next:
		case <-c.stopping:
			return status.Error(codes.Unavailable, "control plane is stopping")
		case <-s.Context().Done():
			return nil
		}
	}
}

func (c *clientStatus) permit(ctx context.Context) error {
	p, _ := identity.FromContext(ctx)
	if p.Namespace != c.self.Namespace || p.ServiceAccount != c.self.ServiceAccount {
		return status.Error(codes.PermissionDenied, "only replicas of the control plane are told of all proxies")
	}
	return nil
}

// news is told, and tells those who wait. Safe for concurrent use.
type news struct {
	mu sync.Mutex
	c  chan struct{}
}

// next is closed when there is news after this call.
func (n *news) next() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.c == nil {
		n.c = make(chan struct{})
	}
	return n.c
}

func (n *news) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.c != nil {
		close(n.c)
		n.c = nil
	}
}

// What client status discovery has no field for, as a Struct in the place of a
// configuration.
const (
	newestField    = "newest"    // version that the proxy is to run
	moduleField    = "module"    // digest of the one that runs
	codeField      = "code"      // of a refusal
	connectedField = "connected" // when the proxy did so
	runningField   = "running"   // version that runs
	sinceField     = "since"     // when it came to its state
)

var clientStates = map[xds.State]adminv3.ClientResourceStatus{
	xds.Pending: adminv3.ClientResourceStatus_REQUESTED,
	xds.Missing: adminv3.ClientResourceStatus_DOES_NOT_EXIST,
	xds.Acked:   adminv3.ClientResourceStatus_ACKED,
	xds.Nacked:  adminv3.ClientResourceStatus_NACKED,
}

func encodeDeliveries(to map[string]delivered) (*statusv3.ClientStatusResponse, error) {
	clients := make(map[string]*statusv3.ClientConfig)
	for _, name := range slices.Sorted(maps.Keys(to)) {
		d := to[name]
		for _, m := range d.proxies {
			config, err := encodeMember(name, m)
			if err != nil {
				return nil, err
			}
			c := clients[m.id]
			if c == nil {
				c = &statusv3.ClientConfig{Node: &corev3.Node{Id: m.id}}
				clients[m.id] = c
			}
			c.GenericXdsConfigs = append(c.GenericXdsConfigs, config)
		}
	}
	response := new(statusv3.ClientStatusResponse)
	for _, id := range slices.Sorted(maps.Keys(clients)) {
		response.Config = append(response.Config, clients[id])
	}
	return response, nil
}

func encodeMember(name string, m member) (*statusv3.ClientConfig_GenericXdsConfig, error) {
	h := m.held
	more, err := anypb.New(&structpb.Struct{Fields: map[string]*structpb.Value{
		newestField:    structpb.NewStringValue(m.want),
		moduleField:    structpb.NewStringValue(h.Module),
		codeField:      structpb.NewNumberValue(float64(h.Code)),
		connectedField: structpb.NewStringValue(m.connected.UTC().Format(time.RFC3339Nano)),
		runningField:   structpb.NewStringValue(h.Running),
		sinceField:     structpb.NewStringValue(h.Since.UTC().Format(time.RFC3339Nano)),
	}})
	if err != nil {
		return nil, err
	}
	config := &statusv3.ClientConfig_GenericXdsConfig{
		TypeUrl:      xds.ExtensionType,
		Name:         name,
		VersionInfo:  h.Version,
		XdsConfig:    more,
		ClientStatus: clientStates[h.State],
	}
	if h.State == xds.Nacked {
		config.ErrorState = &adminv3.UpdateFailureState{Details: h.Reason, VersionInfo: h.Version}
	}
	return config, nil
}

func decodeDeliveries(r *statusv3.ClientStatusResponse) (map[string]delivered, error) {
	to := make(map[string]delivered)
	for _, c := range r.GetConfig() {
		for _, config := range c.GetGenericXdsConfigs() {
			more := new(structpb.Struct)
			if err := config.GetXdsConfig().UnmarshalTo(more); err != nil {
				return nil, err
			}
			fields := more.GetFields()
			held := xds.Held{
				Name:    config.GetName(),
				State:   xds.Pending,
				Version: config.GetVersionInfo(),
				Running: fields[runningField].GetStringValue(),
				Since:   timeIn(fields[sinceField]),
				Reason:  config.GetErrorState().GetDetails(),
				Code:    codes.Code(fields[codeField].GetNumberValue()),
				Module:  fields[moduleField].GetStringValue(),
			}
			for state, s := range clientStates {
				if s == config.GetClientStatus() {
					held.State = state
				}
			}
			m := member{c.GetNode().GetId(), timeIn(fields[connectedField]), fields[newestField].GetStringValue(), held}
			d := to[held.Name]
			if !slices.Contains(d.versions, m.want) {
				d.versions = append(d.versions, m.want)
			}
			d.proxies = append(d.proxies, m)
			to[held.Name] = d
		}
	}
	return to, nil
}

// timeIn is a time as encodeMember writes it; zero if a replica of another version
// does not tell it.
func timeIn(v *structpb.Value) time.Time {
	t, _ := time.Parse(time.RFC3339Nano, v.GetStringValue())
	return t
}

// leastPause keeps peers from asking more often than is of use.
const leastPause = time.Second
