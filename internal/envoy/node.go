package envoy

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// Node is the xDS node of p: what [mesh.ParseNode] reads. Its id has Istio's form
// TYPE~IP~NAME.NAMESPACE~DOMAIN; service is its cluster, by default
// WORKLOAD.NAMESPACE. A proxy without an address gets 127.0.0.1, one without a
// domain NAMESPACE.svc.cluster.local, and one without a workload its own name.
func Node(p mesh.Proxy, service string) (*corev3.Node, error) {
	if p.Name == "" || p.Namespace == "" {
		return nil, errors.New("node: name and namespace are required")
	}
	if p.Role != mesh.Router && p.Role != mesh.Sidecar {
		return nil, fmt.Errorf("node: role %q is neither %s nor %s", p.Role, mesh.Router, mesh.Sidecar)
	}
	if strings.Contains(p.Name+p.Namespace+p.Domain, "~") {
		return nil, errors.New("node: ~ separates the parts of an id and cannot be in one")
	}
	if len(p.IPs) == 0 {
		p.IPs = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	p.Domain = cmp.Or(p.Domain, p.Namespace+".svc.cluster.local")
	p.Workload = cmp.Or(p.Workload, p.Name)
	meta, err := structpb.NewStruct(metadata(p))
	if err != nil {
		return nil, fmt.Errorf("node: metadata: %w", err)
	}
	return &corev3.Node{
		Id:       strings.Join([]string{string(p.Role), p.IPs[0].String(), p.Name + "." + p.Namespace, p.Domain}, "~"),
		Cluster:  cmp.Or(service, p.Workload+"."+p.Namespace),
		Metadata: meta,
	}, nil
}

// metadata is the node's metadata under Istio's names. A name that has a field
// of its own in p takes that field's value, whatever p.Metadata says.
func metadata(p mesh.Proxy) map[string]any {
	m := map[string]any{}
	for k, v := range p.Metadata {
		m[k] = v
	}
	ips := make([]string, len(p.IPs))
	for i, ip := range p.IPs {
		ips[i] = ip.String()
	}
	m["INSTANCE_IPS"] = strings.Join(ips, ",")
	m["NAME"] = p.Name
	m["NAMESPACE"] = p.Namespace
	m["WORKLOAD_NAME"] = p.Workload
	m["INTERCEPTION_MODE"] = "NONE"
	if p.Redirected {
		m["INTERCEPTION_MODE"] = "REDIRECT"
	}
	labels := map[string]any{}
	for k, v := range p.Labels {
		labels[k] = v
	}
	m["LABELS"] = labels
	if p.Cluster != "" {
		m["CLUSTER_ID"] = p.Cluster
	}
	if p.Version != "" {
		m["ISTIO_VERSION"] = p.Version
	}
	return m
}
