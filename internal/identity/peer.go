package identity

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A Peer is who a proxy has proved to be.
type Peer struct {
	Namespace      string
	ServiceAccount string
	Pod            string // that the credential is bound to; empty if to none
	PodUID         string
	Expires        time.Time // when the credential ends; zero if that is not known
}

// String is NAMESPACE/SERVICEACCOUNT, and the pod if there is one.
func (p Peer) String() string {
	s := p.Namespace + "/" + p.ServiceAccount
	if p.Pod != "" {
		s += " of pod " + p.Pod
	}
	return s
}

type peerKey struct{}

// NewContext returns a context that has the peer.
func NewContext(ctx context.Context, p Peer) context.Context {
	return context.WithValue(ctx, peerKey{}, p)
}

// FromContext returns the peer of a call that a [Gate] has let in.
func FromContext(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(peerKey{}).(Peer)
	return p, ok
}

// Permit says whether the peer may have the configuration of a proxy that calls
// itself pod of namespace. The error is a gRPC status: Unauthenticated for the
// zero Peer, PermissionDenied for somebody else's configuration. A credential
// that is not bound to a pod serves every proxy of its namespace.
func Permit(p Peer, namespace, pod string) error {
	switch {
	case p.Namespace == "":
		return status.Error(codes.Unauthenticated, "no credential was checked for this proxy")
	case p.Namespace != namespace:
		return status.Errorf(codes.PermissionDenied,
			"proxy asks for configuration of namespace %q, but its credential is for %s: it can only have that of namespace %q", namespace, p, p.Namespace)
	case p.Pod != "" && p.Pod != pod:
		return status.Errorf(codes.PermissionDenied,
			"proxy calls itself %q, but its token is for %s: the node id must name that pod", pod, p)
	}
	return nil
}

// An ID is a SPIFFE id in Istio's form, spiffe://DOMAIN/ns/NAMESPACE/sa/SERVICEACCOUNT.
type ID struct {
	Domain         string // trust domain
	Namespace      string
	ServiceAccount string
}

func (id ID) url() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.Domain, Path: "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount}
}

// String is the id as a URI.
func (id ID) String() string { return id.url().String() }

// ParseID reads a SPIFFE id. It takes only what [ID.String] writes for valid
// names, so that one identity has one form.
func ParseID(uri string) (ID, error) {
	rest, ok := strings.CutPrefix(uri, "spiffe://")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return ID{}, fmt.Errorf("%.256q is not spiffe://DOMAIN/ns/NAMESPACE/sa/SERVICEACCOUNT", uri)
	}
	id := ID{Domain: parts[0], Namespace: parts[2], ServiceAccount: parts[4]}
	if err := id.check(); err != nil {
		return ID{}, err
	}
	return id, nil
}

func (id ID) check() error {
	switch {
	case !validDomain(id.Domain):
		return fmt.Errorf("trust domain %.256q is not one", id.Domain)
	case !validLabel(id.Namespace):
		return fmt.Errorf("%.256q is not a namespace's name", id.Namespace)
	case !validName(id.ServiceAccount):
		return fmt.Errorf("%.256q is not a service account's name", id.ServiceAccount)
	}
	return nil
}

// validDomain is the SPIFFE standard's rule for trust domains, section 2.1.
func validDomain(s string) bool {
	return s != "" && len(s) <= 255 && strings.IndexFunc(s, func(r rune) bool {
		return !(isLowerAlphanumeric(r) || r == '.' || r == '-' || r == '_')
	}) < 0
}

// validName is a DNS subdomain as RFC 1123 has it, which object names are.
func validName(s string) bool {
	if len(s) > 253 {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if !isAlphanumericWithin(part) {
			return false
		}
	}
	return true
}

// validLabel is a DNS label as RFC 1123 has it, which namespaces are.
func validLabel(s string) bool { return len(s) <= 63 && isAlphanumericWithin(s) }

// isAlphanumericWithin says that s is of lower-case letters and digits, and of
// hyphens between them.
func isAlphanumericWithin(s string) bool {
	return s != "" && !strings.HasPrefix(s, "-") && !strings.HasSuffix(s, "-") &&
		strings.IndexFunc(s, func(r rune) bool { return !isLowerAlphanumeric(r) && r != '-' }) < 0
}

func isLowerAlphanumeric(r rune) bool { return 'a' <= r && r <= 'z' || '0' <= r && r <= '9' }
