package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// GatewayNameLabel is the label by which a proxy says which Gateway API Gateway
// of its namespace it serves.
const GatewayNameLabel = "gateway.networking.k8s.io/gateway-name"

// ErrNode is what every error of [ParseNode] wraps.
var ErrNode = errors.New("not a node we can serve")

// A Role is what a proxy is for, the TYPE of its node id.
type Role string

const (
	Router  Role = "router"  // a gateway
	Sidecar Role = "sidecar" // beside one workload
)

// A Proxy is what its xDS node says of it. See [ParseNode].
type Proxy struct {
	Role      Role
	Name      string // workload instance, as in pod name
	Namespace string
	Domain    string // DNS domain, NAMESPACE.svc.cluster.local
	Cluster   string // metadata CLUSTER_ID
	Workload  string // metadata WORKLOAD_NAME
	IPs       []netip.Addr
	Labels    map[string]string
	Version   string            // metadata ISTIO_VERSION if any: EnvoyFilter's proxyVersion matches it
	Metadata  map[string]string // the other string-valued metadata: EnvoyFilter's proxy match looks there

	// Redirected says that traffic reaches the proxy through redirection, so that
	// listeners take the original destination (metadata INTERCEPTION_MODE REDIRECT);
	// otherwise a sidecar listens at each port directly.
	Redirected bool

	// Engine says that it is the embedded engine, which cannot do all that Envoy can.
	Engine bool
}

// Implementation is the key in the metadata of a node's build version under which the
// embedded engine, which otherwise calls itself Envoy, says [Engine].
const (
	Implementation = "implementation"
	Engine         = "chandler engine"
)

// ParseNode reads a node in Istio's form: id TYPE~IP~NAME.NAMESPACE~DOMAIN and
// metadata NAMESPACE, LABELS, INSTANCE_IPS, CLUSTER_ID, WORKLOAD_NAME,
// INTERCEPTION_MODE and ISTIO_VERSION, and what the embedded engine says of itself.
// Metadata wins over the id. Errors wrap [ErrNode].
func ParseNode(n *corev3.Node) (Proxy, error) {
	parts := strings.Split(n.GetId(), "~")
	if len(parts) != 4 {
		return Proxy{}, fmt.Errorf("id %q is not TYPE~IP~NAME.NAMESPACE~DOMAIN: %w", n.GetId(), ErrNode)
	}
	p := Proxy{Role: Role(parts[0]), Domain: parts[3]}
	if p.Role != Router && p.Role != Sidecar {
		return Proxy{}, fmt.Errorf("type %q is neither router nor sidecar: %w", parts[0], ErrNode)
	}
	p.Engine = n.GetUserAgentBuildVersion().GetMetadata().GetFields()[Implementation].GetStringValue() == Engine
	p.Name, p.Namespace = splitInstance(parts[2])
	if err := p.readMetadata(n.GetMetadata().GetFields()); err != nil {
		return Proxy{}, err
	}
	if len(p.IPs) == 0 && parts[1] != "" {
		ip, err := netip.ParseAddr(parts[1])
		if err != nil {
			return Proxy{}, fmt.Errorf("address %q of id: %w", parts[1], ErrNode)
		}
		p.IPs = []netip.Addr{ip}
	}
	if p.Namespace == "" {
		return Proxy{}, fmt.Errorf("id %q and metadata name no namespace: %w", n.GetId(), ErrNode)
	}
	return p, nil
}

// splitInstance splits NAME.NAMESPACE; a name may hold dots, a namespace cannot.
func splitInstance(s string) (name, namespace string) {
	i := strings.LastIndexByte(s, '.')
	if i < 0 {
		return s, ""
	}
	return s[:i], s[i+1:]
}

// readMetadata sets what the node's metadata says. NAME is left out: it differs
// from instance to instance and the id has it already.
func (p *Proxy) readMetadata(fields map[string]*structpb.Value) error {
	for key, value := range fields {
		switch key {
		case "NAMESPACE":
			if s := value.GetStringValue(); s != "" {
				p.Namespace = s
			}
		case "LABELS":
			p.Labels = stringFields(value.GetStructValue())
		case "INSTANCE_IPS":
			ips, err := parseIPs(value.GetStringValue())
			if err != nil {
				return err
			}
			p.IPs = ips
		case "CLUSTER_ID":
			p.Cluster = value.GetStringValue()
		case "WORKLOAD_NAME":
			p.Workload = value.GetStringValue()
		case "ISTIO_VERSION":
			p.Version = value.GetStringValue()
		case "INTERCEPTION_MODE":
			redirected, err := interception(value.GetStringValue())
			if err != nil {
				return err
			}
			p.Redirected = redirected
		case "NAME":
		default:
			if s, ok := value.GetKind().(*structpb.Value_StringValue); ok {
				if p.Metadata == nil {
					p.Metadata = map[string]string{}
				}
				p.Metadata[key] = s.StringValue
			}
		}
	}
	return nil
}

func interception(mode string) (redirected bool, err error) {
	switch mode {
	case "REDIRECT":
		return true, nil
	case "", "NONE":
		return false, nil
	}
	return false, fmt.Errorf("INTERCEPTION_MODE %q is neither REDIRECT nor NONE: %w", mode, ErrNode)
}

func parseIPs(s string) ([]netip.Addr, error) {
	var ips []netip.Addr
	for _, part := range strings.Split(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		ip, err := netip.ParseAddr(part)
		if err != nil {
			return nil, fmt.Errorf("INSTANCE_IPS %q: %w", part, ErrNode)
		}
		ips = append(ips, ip)
	}
	return ips, nil
}

func stringFields(s *structpb.Struct) map[string]string {
	out := make(map[string]string, len(s.GetFields()))
	for k, v := range s.GetFields() {
		if str, ok := v.GetKind().(*structpb.Value_StringValue); ok {
			out[k] = str.StringValue
		}
	}
	return out
}

// DualStack says that the proxy has addresses of either family.
func (p Proxy) DualStack() bool {
	is4 := func(ip netip.Addr) bool { return ip.Unmap().Is4() }
	return slices.ContainsFunc(p.IPs, is4) && !p.IPv4Only()
}

// IPv4Only says that the proxy has addresses and all of them are IPv4.
func (p Proxy) IPv4Only() bool {
	for _, ip := range p.IPs {
		if !ip.Unmap().Is4() {
			return false
		}
	}
	return len(p.IPs) > 0
}

// IPv6Only says that the proxy has addresses and none of them is IPv4.
func (p Proxy) IPv6Only() bool {
	for _, ip := range p.IPs {
		if ip.Unmap().Is4() {
			return false
		}
	}
	return len(p.IPs) > 0
}
