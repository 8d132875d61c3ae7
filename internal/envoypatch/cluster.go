package envoypatch

import (
	"fmt"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	api "istio.io/api/networking/v1alpha3"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// clusters returns list with p applied.
func (p *patch) clusters(list []*clusterv3.Cluster, role mesh.Role) ([]*clusterv3.Cluster, error) {
	if p.op == api.EnvoyFilter_Patch_ADD {
		if !p.forRole(role) {
			return list, nil
		}
		return appended(list, p)
	}
	return each(list, func(c *clusterv3.Cluster) (*clusterv3.Cluster, error) {
		if !p.inContext(role, isInboundName(c.GetName())) || !p.matchesCluster(c) {
			return c, nil
		}
		if p.op == api.EnvoyFilter_Patch_REMOVE {
			return nil, nil
		}
		return changed(c, func(c *clusterv3.Cluster) (bool, error) { return true, p.mergeCluster(c) })
	})
}

// mergeCluster merges p's value into c. Its transport socket goes into that of
// the same name among c's transport_socket_matches, if c has any.
func (p *patch) mergeCluster(c *clusterv3.Cluster) error {
	value := proto.Clone(p.value).(*clusterv3.Cluster)
	if err := mergeClusterSocket(c, value.GetTransportSocket()); err != nil {
		return fmt.Errorf("%s: %w", describe(c), err)
	}
	value.TransportSocket = nil
	merge(c.ProtoReflect(), value.ProtoReflect(), p.replaceLists())
	return nil
}

func mergeClusterSocket(c *clusterv3.Cluster, value *corev3.TransportSocket) (err error) {
	matches := c.GetTransportSocketMatches()
	if value == nil || len(matches) == 0 {
		c.TransportSocket, err = mergeSocket(c.GetTransportSocket(), value)
		return err
	}
	i := slices.IndexFunc(matches, func(m *clusterv3.Cluster_TransportSocketMatch) bool {
		return m.GetTransportSocket().GetName() == value.GetName()
	})
	if i < 0 {
		return refuse("no transport socket match has %s, and a cluster cannot have a transport_socket beside them", describe(value)).
			or("name one that it has")
	}
	return mergeNamed(matches[i].TransportSocket, value)
}
