package mesh

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// A Protocol is what a port speaks, as far as its owner declared it.
type Protocol string

const (
	Undeclared Protocol = ""
	HTTP       Protocol = "HTTP"
	HTTP2      Protocol = "HTTP2"
	GRPC       Protocol = "GRPC"
	GRPCWeb    Protocol = "GRPC-Web"
	HTTPS      Protocol = "HTTPS"
	TLS        Protocol = "TLS"
	TCP        Protocol = "TCP"
	UDP        Protocol = "UDP"
)

// IsHTTP says that requests can be told apart without terminating TLS.
func (p Protocol) IsHTTP() bool {
	return p == HTTP || p == HTTP2 || p == GRPC || p == GRPCWeb
}

// IsHTTP2 says that HTTP/2 is spoken without negotiation.
func (p Protocol) IsHTTP2() bool { return p == HTTP2 || p == GRPC }

// IsTLS says that the bytes are TLS.
func (p Protocol) IsTLS() bool { return p == HTTPS || p == TLS }

// ParseProtocol reads the name of a protocol as Istio spells it, in any case.
// Protocols that are opaque to us (mongo, mysql, redis) are TCP. A name that is
// not known is Undeclared.
func ParseProtocol(s string) Protocol {
	switch strings.ToLower(s) {
	case "http", "http_proxy":
		return HTTP
	case "http2", "kubernetes.io/h2c":
		return HTTP2
	case "grpc":
		return GRPC
	case "grpc-web":
		return GRPCWeb
	case "https":
		return HTTPS
	case "tls":
		return TLS
	case "tcp", "mongo", "mysql", "redis":
		return TCP
	case "udp":
		return UDP
	}
	return Undeclared
}

// portProtocol decides as Istio does: appProtocol, else the port's name up to
// the first hyphen, else TCP at ports of protocols in which the server speaks first.
func portProtocol(port corev1.ServicePort) Protocol {
	if port.Protocol == corev1.ProtocolUDP {
		return UDP
	}
	name := port.Name
	if port.AppProtocol != nil {
		name = *port.AppProtocol
	}
	switch name = strings.ToLower(name); {
	case strings.HasPrefix(name, "grpc-web"):
		return GRPCWeb
	case name == "kubernetes.io/h2c":
		return HTTP2
	case name == "kubernetes.io/ws":
		return HTTP
	case name == "kubernetes.io/wss":
		return HTTPS
	}
	prefix, _, _ := strings.Cut(name, "-")
	if p := ParseProtocol(prefix); p != Undeclared {
		return p
	}
	switch port.Port {
	case 25, 53, 3306, 27017:
		return TCP
	}
	return Undeclared
}
