package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"
	"sync"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Type URLs of the resources that can be encoded, in the order in which a
// change is sent: what is referred to goes before what refers to it.
const (
	ClusterType   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType  = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	SecretType    = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	ExtensionType = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
	ListenerType  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteType     = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// Types are the type URLs above, in their order.
func Types() []string {
	return []string{ClusterType, EndpointType, SecretType, ExtensionType, ListenerType, RouteType}
}

// A Resource is one encoded resource. It is immutable and shared by all streams.
type Resource struct {
	Type    string // type URL
	Name    string
	Version string // hash of the encoded bytes: equal versions are equal resources
	Body    *anypb.Any

	delta, world, value mem.Buffer // the body, and what goes before it in either variant
	// endpoints is, of a cluster found through EDS, the name of the endpoints
	// it waits for when it is new or changed.
	endpoints string
}

// Size is the number of bytes of the encoded resource.
func (r *Resource) Size() int { return len(r.Body.GetValue()) }

// An Encoder encodes resources and gives equal ones, whichever class they are
// for, the same Resource. It keeps what it encoded: make a new one for each
// generation of resources. Safe for concurrent use.
type Encoder struct {
	mu        sync.Mutex
	byPointer map[*corev3.TypedExtensionConfig]*Resource
	byContent map[resourceKey]*Resource
}

type resourceKey struct{ typeURL, name, version string }

// NewEncoder returns an empty Encoder.
func NewEncoder() *Encoder {
	return &Encoder{
		byPointer: make(map[*corev3.TypedExtensionConfig]*Resource),
		byContent: make(map[resourceKey]*Resource),
	}
}

// Encode encodes a resource of one of the [Types]. The same extension config,
// by pointer, is encoded once; it must not change afterwards.
func (e *Encoder) Encode(m proto.Message) (*Resource, error) {
	ext, isExtension := m.(*corev3.TypedExtensionConfig)
	if isExtension {
		if r := e.encoded(ext); r != nil {
			return r, nil
		}
	}
	r, err := encode(m)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	key := resourceKey{r.Type, r.Name, r.Version}
	if known := e.byContent[key]; known != nil {
		r = known
	} else {
		e.byContent[key] = r
	}
	if isExtension {
		e.byPointer[ext] = r
	}
	return r, nil
}

func (e *Encoder) encoded(ext *corev3.TypedExtensionConfig) *Resource {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.byPointer[ext]
}

func encode(m proto.Message) (*Resource, error) {
	r := new(Resource)
	switch m := m.(type) {
	case *clusterv3.Cluster:
		r.Type, r.Name, r.endpoints = ClusterType, m.GetName(), endpointsOf(m)
	case *endpointv3.ClusterLoadAssignment:
		r.Type, r.Name = EndpointType, m.GetClusterName()
	case *tlsv3.Secret:
		r.Type, r.Name = SecretType, m.GetName()
	case *corev3.TypedExtensionConfig:
		r.Type, r.Name = ExtensionType, m.GetName()
	case *listenerv3.Listener:
		r.Type, r.Name = ListenerType, m.GetName()
	case *routev3.RouteConfiguration:
		r.Type, r.Name = RouteType, m.GetName()
	default:
		return nil, fmt.Errorf("encode %T: not a resource", m)
	}
	if r.Name == "" || r.Name == wildcard {
		return nil, fmt.Errorf("encode %s: a resource cannot be named %q", r.Type, r.Name)
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", r.Type, r.Name, err)
	}
	h := sha256.New()
	h.Write(body)
	r.Version = version(h)
	r.Body = &anypb.Any{TypeUrl: r.Type, Value: body}
	r.encodeHead()
	return r, nil
}

// version is short, and long enough that no two resources are ever taken for one.
func version(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)[:12]) }

func endpointsOf(c *clusterv3.Cluster) string {
	if c.GetType() != clusterv3.Cluster_EDS {
		return ""
	}
	if name := c.GetEdsClusterConfig().GetServiceName(); name != "" {
		return name
	}
	return c.GetName()
}

// A Snapshot is the whole configuration of one class of proxies. It is immutable.
type Snapshot struct {
	sets map[string]*set // by type URL
}

// A set is all resources of one type in a snapshot.
type set struct {
	version   string // hash of the names and versions in it
	resources map[string]*Resource

	// changed are the names that differ, either way, from the set with version
	// base: worked out once, for all streams that are there.
	base    string
	changed []string
}

// ErrDuplicate is that two resources of one type have the same name.
var ErrDuplicate = errors.New("name is used twice")

// NewSnapshot makes a snapshot of resources. What is unchanged since prev, which
// may be nil, is shared with it.
func NewSnapshot(prev *Snapshot, resources []*Resource) (*Snapshot, error) {
	snap := &Snapshot{sets: make(map[string]*set)}
	for _, r := range resources {
		s := snap.sets[r.Type]
		if s == nil {
			s = &set{resources: make(map[string]*Resource)}
			snap.sets[r.Type] = s
		}
		if s.resources[r.Name] != nil {
			return nil, fmt.Errorf("%s %s: %w", r.Type, r.Name, ErrDuplicate)
		}
		s.resources[r.Name] = r
	}
	for _, typeURL := range prev.types() {
		if snap.sets[typeURL] == nil {
			snap.sets[typeURL] = new(set)
		}
	}
	for typeURL, s := range snap.sets {
		s.version = versionOf(s.sorted())
		snap.sets[typeURL] = s.after(prev.set(typeURL))
	}
	return snap, nil
}

// after is s with its differences to prev, or prev itself if there are none.
func (s *set) after(prev *set) *set {
	if s.version == prev.version {
		return prev
	}
	s.base = prev.version
	for name, r := range s.resources {
		if old := prev.resources[name]; old == nil || old.Version != r.Version {
			s.changed = append(s.changed, name)
		} else {
			s.resources[name] = old
		}
	}
	for name := range prev.resources {
		if s.resources[name] == nil {
			s.changed = append(s.changed, name)
		}
	}
	return s
}

func (s *set) sorted() []*Resource {
	sorted := make([]*Resource, 0, len(s.resources))
	for _, name := range slices.Sorted(maps.Keys(s.resources)) {
		sorted = append(sorted, s.resources[name])
	}
	return sorted
}

// versionOf is the version of a whole that consists of resources, in their order.
func versionOf(resources []*Resource) string {
	h := sha256.New()
	for _, r := range resources {
		fmt.Fprintf(h, "%d:", len(r.Name))
		io.WriteString(h, r.Name+r.Version)
	}
	return version(h)
}

func (s *Snapshot) types() []string {
	if s == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(s.sets))
}

// set is the resources of a type; one without any if the snapshot has none.
func (s *Snapshot) set(typeURL string) *set {
	if s != nil {
		if t := s.sets[typeURL]; t != nil {
			return t
		}
	}
	return noResources
}

// noResources is the set of a type that a snapshot has none of. It is never changed.
var noResources = &set{version: versionOf(nil)}

// Resources are all resources of a type, sorted by name.
func (s *Snapshot) Resources(typeURL string) []*Resource { return s.set(typeURL).sorted() }

// Version stands for everything of a type in the snapshot.
func (s *Snapshot) Version(typeURL string) string { return s.set(typeURL).version }
