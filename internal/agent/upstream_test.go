package agent

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/chandler-proxy/chandler/internal/xds"
)

// A silence is a network that stops passing anything on, without a word.
type silence struct {
	net.Conn
	begun <-chan struct{}
	ended chan struct{}
	close sync.Once
}

func (s *silence) Write(b []byte) (int, error) {
	select {
	case <-s.begun:
		return len(b), nil
	default:
		return s.Conn.Write(b)
	}
}

func (s *silence) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	select {
	case <-s.begun:
		<-s.ended
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (s *silence) Close() error {
	s.close.Do(func() { close(s.ended) })
	return s.Conn.Close()
}

// serveADS serves in memory, with options, until the test ends.
func serveADS(t *testing.T, options ...grpc.ServerOption) *bufconn.Listener {
	t.Helper()
	plane := xds.New(xds.Config{Class: func(context.Context, *corev3.Node) (string, error) { return "all", nil }})
	server := grpc.NewServer(options...)
	plane.Register(server)
	l := bufconn.Listen(1 << 16)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = plane.Run(ctx) })
	wg.Go(func() {
		if err := server.Serve(l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		server.Stop()
		wg.Wait()
	})
	return l
}

// subscribe opens a stream to l as an agent does that has proved who it is, or not.
func subscribe(t *testing.T, l *bufconn.Listener, proved bool, silent <-chan struct{}) discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///control", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(pings(proved)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			c, err := l.DialContext(ctx)
			return &silence{Conn: c, begun: silent, ended: make(chan struct{})}, err
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "a"}, TypeUrl: xds.ExtensionType}); err != nil {
		t.Fatal(err)
	}
	return stream
}

// A control plane whose packets are dropped is noticed in 15 s, and one that is
// there and has nothing to say is not bothered too much by what that takes.
func TestSilentControlPlane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := make(chan struct{})
		stream := subscribe(t, serveADS(t, xds.Options()...), true, silent)
		ended := make(chan error, 1)
		go func() {
			_, err := stream.Recv()
			ended <- err
		}()
		select {
		case err := <-ended:
			t.Fatalf("the stream ended though all is well: %v", err)
		case <-time.After(time.Hour):
		}
		close(silent)
		began := time.Now()
		if err := <-ended; grpcstatus.Code(err) != codes.Unavailable {
			t.Errorf("the stream ended with %v, want Unavailable", err)
		}
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("noticed after %s, want 15 s at most", took)
		}
	})
}

// A server as strict as Istio's, which is not ours, is never asked too often.
func TestStrictControlPlane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		strict := grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 15 * time.Second})
		stream := subscribe(t, serveADS(t, append(xds.Options(), strict)...), false, make(chan struct{}))
		ended := make(chan error, 1)
		go func() {
			_, err := stream.Recv()
			ended <- err
		}()
		select {
		case err := <-ended:
			t.Fatalf("the stream ended: %v", err)
		case <-time.After(time.Hour):
		}
	})
}
