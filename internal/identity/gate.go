package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const (
	// MaxAge is how long a connection lives, give or take a tenth (gRPC sees to
	// that, so that they do not all end at once). The proxy then connects again,
	// with the credential that it has by then: one that was revoked or has expired
	// serves no longer than that, and the minute for which a token is remembered.
	MaxAge = 30 * time.Minute
	// lastCalls is how long calls under way may go on when a connection is too old;
	// then it is cut. A stream of configuration ends only so.
	lastCalls = 5 * time.Second
	// maxIdle is how long a connection without a call lives: whoever was refused
	// keeps none.
	maxIdle = 5 * time.Minute
	// maxCalls bounds the calls under way of one connection. An agent has one, a
	// replica of the control plane a few.
	maxCalls = 100
)

// A GateConfig is what a [Gate] must be told. TLS and Authenticators are required.
type GateConfig struct {
	TLS            *tls.Config     // see [Authority.ServerTLS]
	Authenticators []Authenticator // the first that does not return [ErrNoCredential] decides

	Log        *slog.Logger          // default: none
	Registerer prometheus.Registerer // default: metrics are not registered
}

// A Gate lets callers into a gRPC server who prove who they are, and tells the
// server: see [FromContext]. Safe for concurrent use.
type Gate struct {
	cfg     GateConfig
	results *prometheus.CounterVec
	// What the log has of callers; who is refused does not keep the other out of it.
	refused, unchecked *Lines
}

// NewGate returns a Gate.
func NewGate(cfg GateConfig) *Gate {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	g := &Gate{cfg: cfg, refused: NewLines(), unchecked: NewLines(), results: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "chandler_authentications_total",
		Help: "Calls of proxies, by what became of their credential: accepted, refused, or unchecked since the reviewer could not be asked.",
	}, []string{"result"})}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(g.results)
	}
	return g
}

// Options are those of a gRPC server behind the gate. They set keepalive as a
// whole, and so must come after others that do: pings are params', whose maximum
// age is replaced by [MaxAge]. A connection has at most 100 calls under way, as
// Envoy's documentation advises, and ends after five minutes without one.
func (g *Gate) Options(params keepalive.ServerParameters) []grpc.ServerOption {
	params.MaxConnectionAge, params.MaxConnectionAgeGrace, params.MaxConnectionIdle = MaxAge, lastCalls, maxIdle
	return []grpc.ServerOption{
		grpc.Creds(credentials.NewTLS(g.cfg.TLS)),
		grpc.ChainStreamInterceptor(g.stream),
		grpc.ChainUnaryInterceptor(g.unary),
		grpc.KeepaliveParams(params),
		grpc.MaxConcurrentStreams(maxCalls),
	}
}

func (g *Gate) stream(server any, s grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ctx, err := g.admit(s.Context())
	if err != nil {
		return err
	}
	return handle(server, admitted{s, ctx})
}

// admitted is a stream whose context has the peer.
type admitted struct {
	grpc.ServerStream
	ctx context.Context
}

func (s admitted) Context() context.Context { return s.ctx }

func (g *Gate) unary(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	ctx, err := g.admit(ctx)
	if err != nil {
		return nil, err
	}
	return handle(ctx, request)
}

// admit returns ctx with the peer, or a gRPC status: Unauthenticated, or
// Unavailable if the credential could not be checked.
func (g *Gate) admit(ctx context.Context) (context.Context, error) {
	p, err := g.authenticate(ctx, credentialsOf(ctx))
	switch {
	case err == nil:
		g.results.WithLabelValues("accepted").Inc()
		return NewContext(ctx, p), nil
	case errors.Is(err, ErrRefused), errors.Is(err, ErrNoCredential):
		g.results.WithLabelValues("refused").Inc()
		g.tell(ctx, g.refused, "caller refused", err)
		return nil, status.Error(codes.Unauthenticated, err.Error())
	case ctx.Err() != nil:
		return nil, status.FromContextError(ctx.Err()).Err()
	default:
		g.results.WithLabelValues("unchecked").Inc()
		g.tell(ctx, g.unchecked, "credential unchecked", err)
		// The reason is ours to mend and may name what is inside.
		return nil, status.Error(codes.Unavailable, "credential cannot be checked now, try again")
	}
}

// tell logs why a caller was not let in, as long as lines has room.
func (g *Gate) tell(ctx context.Context, lines *Lines, message string, err error) {
	if unsaid, ok := lines.Tell(address(ctx)); ok {
		g.cfg.Log.Warn(message, "peer", address(ctx), "reason", err, "unsaid", unsaid)
	}
}

func (g *Gate) authenticate(ctx context.Context, c Credentials) (Peer, error) {
	for _, a := range g.cfg.Authenticators {
		if p, err := a.Authenticate(ctx, c); !errors.Is(err, ErrNoCredential) {
			return p, err
		}
	}
	return Peer{}, fmt.Errorf("%w: a service account's token or a client certificate is needed", ErrNoCredential)
}

// credentialsOf is what the caller has sent. A certificate counts only if TLS has
// verified it.
func credentialsOf(ctx context.Context) Credentials {
	var c Credentials
	// Of several, none is chosen.
	if values := metadata.ValueFromIncomingContext(ctx, "authorization"); len(values) == 1 {
		if scheme, token, ok := strings.Cut(values[0], " "); ok && strings.EqualFold(scheme, "Bearer") {
			c.Token = strings.TrimSpace(token)
		}
	}
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(info.State.VerifiedChains) > 0 {
			c.Certificate = info.State.VerifiedChains[0][0]
		}
	}
	return c
}

func address(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok {
		return p.Addr.String()
	}
	return ""
}
