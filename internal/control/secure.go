package control

import (
	"context"
	"net"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"google.golang.org/grpc"

	"github.com/chandler-proxy/chandler/internal/identity"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/translate"
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

// plaintext marks the streams of the port where nobody is asked who they are.
type plaintext struct{}

// class is the key of the proxies that get the same configuration as node, if
// the stream with that context may have it.
func class(ctx context.Context, node *corev3.Node) (string, error) {
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
	return translate.Class(proxy), nil
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
