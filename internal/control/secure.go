package control

import (
	"context"
	"fmt"
	"maps"
	"net"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/chandler-proxy/chandler/internal/identity"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/translate"
	"github.com/chandler-proxy/chandler/internal/xds"
)

// Trust is how proxies and the control plane know each other on the secure port.
type Trust struct {
	Authority *identity.Authority    // makes the control plane's certificates; not run by Run
	Tokens    identity.TokenReviewer // nil: proxies have client certificates only
	Domain    string                 // trust domain of client certificates; default identity.DefaultDomain
}

func (t Trust) authenticators() []identity.Authenticator {
	all := []identity.Authenticator{identity.Certificates{Domain: t.Domain}}
	if t.Tokens != nil {
		// A token is bound to the pod that has it, a certificate to nobody.
		all = append([]identity.Authenticator{identity.NewTokens(t.Tokens, identity.Audience)}, all...)
	}
	return all
}

// How much one credential may have at a time. That of a pod is one proxy's: an agent
// has one stream, and for a moment two when it connects again; labels may change. One
// that is bound to no pod, such as a client certificate, serves a whole namespace.
const (
	podStreams, podClasses             = 16, 4
	namespaceStreams, namespaceClasses = 10_000, 1000
)

// bound is how much whoever opened the stream with that context may have. This
// machine is trusted.
func bound(ctx context.Context) xds.Bound {
	peer, ok := identity.FromContext(ctx)
	switch {
	case !ok:
		return xds.Bound{}
	case peer.Pod != "":
		return xds.Bound{Holder: peer.String(), Streams: podStreams, Classes: podClasses}
	default:
		return xds.Bound{Holder: peer.String(), Streams: namespaceStreams, Classes: namespaceClasses}
	}
}

// plaintext marks the streams of the port where nobody is asked who they are.
type plaintext struct{}

// class is the key of the proxies that get the same configuration as node, if
// the stream with that context may have it. What is in world decides over what the
// node says; world is nil before the first.
func class(ctx context.Context, world *mesh.World, node *corev3.Node) (string, error) {
	proxy, err := mesh.ParseNode(node)
	if err != nil {
		return "", err
	}
	if ctx.Value(plaintext{}) == nil {
		peer, _ := identity.FromContext(ctx)
		if err := identity.Permit(peer, proxy.Namespace, proxy.Name); err != nil {
			return "", err
		}
	}
	if err := relabel(&proxy, world, node); err != nil {
		return "", err
	}
	return translate.Class(proxy), nil
}

// relabel gives proxy and its node the labels of the Pod that it is, if it is one:
// those of a running Pod may change, and are not for the proxy to choose.
func relabel(proxy *mesh.Proxy, world *mesh.World, node *corev3.Node) error {
	if world == nil {
		return nil
	}
	labels, found := world.PodLabels(proxy.Namespace, proxy.Name)
	if !found || maps.Equal(labels, proxy.Labels) {
		return nil
	}
	fields := make(map[string]any, len(labels))
	for key, value := range labels {
		fields[key] = value
	}
	said, err := structpb.NewValue(fields)
	if err != nil { // not UTF-8, which an API server lets nobody write
		return fmt.Errorf("labels of Pod %s/%s: %w", proxy.Namespace, proxy.Name, err)
	}
	if node.GetMetadata().GetFields() == nil {
		node.Metadata = &structpb.Struct{Fields: make(map[string]*structpb.Value)}
	}
	node.Metadata.Fields["LABELS"] = said
	proxy.Labels = labels
	return nil
}

// relabelled is what [xds.Server.Reclass] asks: whether a proxy is a Pod whose labels
// are others in next than its class has. It is nil if no Pod's labels have changed since
// last, which is nil before the first World.
func relabelled(objects []resource.Object, last, next *mesh.World) func(id string, class *corev3.Node) bool {
	changed := make(map[types.NamespacedName]map[string]string)
	for _, o := range objects {
		pod, ok := o.(*corev1.Pod)
		if !ok {
			continue
		}
		labels, found := next.PodLabels(pod.Namespace, pod.Name)
		if !found {
			continue
		}
		if last != nil {
			if before, was := last.PodLabels(pod.Namespace, pod.Name); was && maps.Equal(before, labels) {
				continue
			}
		}
		changed[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}] = labels
	}
	if len(changed) == 0 {
		return nil
	}
	return func(id string, class *corev3.Node) bool {
		node := &corev3.Node{Id: id, Metadata: class.GetMetadata()}
		proxy, err := mesh.ParseNode(node)
		if err != nil {
			return false
		}
		labels, found := changed[types.NamespacedName{Namespace: proxy.Namespace, Name: proxy.Name}]
		return found && !maps.Equal(labels, proxy.Labels)
	}
}

// inPlain lets streams in without asking who they are.
func inPlain(server any, s grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return handle(server, plainStream{s, context.WithValue(s.Context(), plaintext{}, true)})
}

type plainStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s plainStream) Context() context.Context { return s.ctx }

// serveADS serves ADS on l, and what replicas are told if there is that, until ctx
// ends. The xDS server then ends its streams; one whose client does not take that
// is cut off.
func (p *Plane) serveADS(ctx context.Context, l net.Listener, replicas *clientStatus, options ...grpc.ServerOption) error {
	server := grpc.NewServer(options...)
	p.xds.Register(server)
	if replicas != nil {
		replicas.stopping = ctx.Done()
		statusv3.RegisterClientStatusDiscoveryServiceServer(server, replicas)
	}
	p.log.Info("xds listens", "address", l.Addr().String())
	return Serve(ctx, func() error { return server.Serve(l) }, func() {
		cut := time.AfterFunc(stopPatience, server.Stop)
		defer cut.Stop()
		server.GracefulStop()
	})
}
