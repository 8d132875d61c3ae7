package identity

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// A desk stands for what is behind a gate. The service that a caller asks for is
// NAMESPACE/POD, whose configuration it wants.
type desk struct {
	healthpb.UnimplementedHealthServer
}

func (desk) permit(ctx context.Context, service string) error {
	namespace, pod, _ := strings.Cut(service, "/")
	p, _ := FromContext(ctx)
	return Permit(p, namespace, pod)
}

func (d desk) Check(ctx context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	return new(healthpb.HealthCheckResponse), d.permit(ctx, r.GetService())
}

// Watch answers once and then stays.
func (d desk) Watch(r *healthpb.HealthCheckRequest, s healthpb.Health_WatchServer) error {
	if err := d.permit(s.Context(), r.GetService()); err != nil {
		return err
	}
	if err := s.Send(new(healthpb.HealthCheckResponse)); err != nil {
		return err
	}
	<-s.Context().Done()
	return nil
}

// A synced buffer takes log lines.
type synced struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *synced) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *synced) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// A site is an authority with a gate, served on loopback.
type site struct {
	authority *Authority
	keeper    *memory
	reviewer  *reviewer
	gate      *Gate
	addr      string
	log       synced
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{keeper: new(memory), reviewer: &reviewer{peers: map[string]Peer{}}}
	s.authority = open(t, s.keeper, never)
	start(t, s.authority)
	s.gate = NewGate(GateConfig{
		TLS:            s.authority.ServerTLS(),
		Authenticators: []Authenticator{NewTokens(s.reviewer, ""), Certificates{}},
		Log:            slog.New(slog.NewTextHandler(&s.log, nil)),
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = listener.Addr().String()
	server := grpc.NewServer(s.gate.Options(keepalive.ServerParameters{})...)
	healthpb.RegisterHealthServer(server, desk{})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

// ask opens a stream on a new connection and waits for the first answer.
func (s *site) ask(t *testing.T, service string, options ...grpc.DialOption) error {
	t.Helper()
	conn, err := grpc.NewClient(s.addr, options...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return watch(t, conn, service)
}

func watch(t *testing.T, conn *grpc.ClientConn, service string) error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	request := &healthpb.HealthCheckRequest{Service: service}
	stream, err := healthpb.NewHealthClient(conn).Watch(ctx, request)
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	// Both kinds of calls are behind the gate.
	if _, unary := healthpb.NewHealthClient(conn).Check(ctx, request); status.Code(unary) != status.Code(err) {
		return errors.Join(err, errors.New("a unary call has another end"), unary)
	}
	return err
}

// client has the site's roots, and a token of httpbin.
func (s *site) client(t *testing.T) (Client, files) {
	t.Helper()
	f := files{t.TempDir()}
	good := goodToken(t, time.Now().Add(time.Hour), "httpbin")
	s.reviewer.mu.Lock()
	s.reviewer.peers[good] = httpbin
	s.reviewer.mu.Unlock()
	f.write(t, "ca", s.authority.Bundle())
	f.write(t, "token", []byte(good+"\n"))
	return Client{CAFile: f.path("ca"), TokenFile: f.path("token")}, f
}

func TestGate(t *testing.T) {
	s := newSite(t)
	c, f := s.client(t)
	expired := goodToken(t, time.Now().Add(-time.Minute), "httpbin")
	s.reviewer.peers[expired] = httpbin
	f.write(t, "expired", []byte(expired))
	f.write(t, "forged", []byte(goodToken(t, time.Now().Add(time.Hour), "forged")))
	f.write(t, "audience", []byte(token(t, map[string]any{"aud": "vault", "exp": time.Now().Add(time.Hour).Unix()})))
	f.write(t, "empty", nil)
	pair := func(a *Authority, name, namespace string) {
		certificate, key, err := a.IssueClient(namespace, "httpbin", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		f.write(t, name+".crt", certificate)
		f.write(t, name+".key", key)
	}
	other := open(t, new(memory), nil)
	pair(s.authority, "good", "default")
	pair(other, "other", "default")
	f.write(t, "other-ca", other.Bundle())

	with := func(edit func(*Client)) []grpc.DialOption {
		c := c
		edit(&c)
		return c.DialOptions()
	}
	certificate := func(name, token string) []grpc.DialOption {
		return with(func(c *Client) {
			c.CertFile, c.KeyFile, c.TokenFile = f.path(name+".crt"), f.path(name+".key"), token
		})
	}
	for _, tt := range []struct {
		name    string
		service string
		options []grpc.DialOption
		want    codes.Code
		says    string
	}{
		{"token", "default/httpbin-1", c.DialOptions(), codes.OK, ""},
		{"certificate", "default/any", certificate("good", ""), codes.OK, ""},
		{"another name of the server", "default/httpbin-1", with(func(c *Client) { c.ServerName = "chandler.test" }), codes.OK, ""},
		{"other namespace", "prod/httpbin-1", c.DialOptions(), codes.PermissionDenied, `only have that of namespace "default"`},
		{"other namespace by certificate", "prod/any", certificate("good", ""), codes.PermissionDenied, `"prod"`},
		{"other pod", "default/httpbin-2", c.DialOptions(), codes.PermissionDenied, "must name that pod"},
		{"expired token", "default/httpbin-1", with(func(c *Client) { c.TokenFile = f.path("expired") }), codes.Unauthenticated, "has expired"},
		{"forged token", "default/httpbin-1", with(func(c *Client) { c.TokenFile = f.path("forged") }), codes.Unauthenticated, "unknown token"},
		{"token for another audience", "default/httpbin-1", with(func(c *Client) { c.TokenFile = f.path("audience") }), codes.Unauthenticated, "audience"},
		{"a bad token is not mended by a certificate", "default/any", certificate("good", f.path("forged")), codes.Unauthenticated, "unknown token"},
		{"nothing", "default/httpbin-1", with(func(c *Client) { c.TokenFile = "" }), codes.Unauthenticated, "token or a client certificate is needed"},
		{"empty token", "default/httpbin-1", with(func(c *Client) { c.TokenFile = f.path("empty") }), codes.Unauthenticated, "is empty"},
		{"certificate of another CA", "default/any", certificate("other", ""), codes.Unavailable, f.path("other.crt") + " is not one that the control plane takes"},
		{"server of another CA", "default/httpbin-1", with(func(c *Client) { c.CAFile = f.path("other-ca") }), codes.Unavailable, "verify control plane by the roots in " + f.path("other-ca")},
		{"server of another name", "default/httpbin-1", with(func(c *Client) { c.ServerName = "other.test" }), codes.Unavailable, "not other.test"},
		{"no roots", "default/httpbin-1", with(func(c *Client) { c.CAFile = f.path("no") }), codes.Unavailable, "chandler-ca-root-cert"},
		{"plaintext", "default/httpbin-1", []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, codes.Unavailable, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := s.ask(t, tt.service, tt.options...)
			if status.Code(err) != tt.want {
				t.Fatalf("error = %v, want %v", err, tt.want)
			}
			if err != nil && (!strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), secret)) {
				t.Errorf("error = %v, want one that says %q", err, tt.says)
			}
		})
	}
	if strings.Contains(s.log.String(), secret) {
		t.Error("a token is in the log")
	}
	if !strings.Contains(s.log.String(), "caller refused") {
		t.Error("refusals are not in the log")
	}
	if n := testutil.ToFloat64(s.gate.results.WithLabelValues("accepted")); n == 0 {
		t.Error("no call is counted as accepted")
	}
}

// TestTokenNeedsTLS: no token goes out in plain.
func TestTokenNeedsTLS(t *testing.T) {
	_, err := grpc.NewClient("127.0.0.1:1", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithPerRPCCredentials(tokenFile("x")))
	if err == nil {
		t.Error("a plaintext connection takes a token")
	}
}

// TestGateOutage: a token that nobody can judge is no bad token.
func TestGateOutage(t *testing.T) {
	s := newSite(t)
	c, _ := s.client(t)
	s.reviewer.mu.Lock()
	s.reviewer.err = errors.New("dial 10.0.0.1: refused")
	s.reviewer.mu.Unlock()
	err := s.ask(t, "default/httpbin-1", c.DialOptions()...)
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "try again") {
		t.Errorf("error = %v, want Unavailable", err)
	}
	if strings.Contains(err.Error(), "10.0.0.1") || !strings.Contains(s.log.String(), "10.0.0.1") {
		t.Errorf("the cause is the log's to tell, not %v's", err)
	}
}

// TestTokenRefreshed: what is in the file now is what a new stream sends, on the
// same connection.
func TestTokenRefreshed(t *testing.T) {
	s := newSite(t)
	c, f := s.client(t)
	conn, err := grpc.NewClient(s.addr, c.DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := watch(t, conn, "default/httpbin-1"); err != nil {
		t.Fatal(err)
	}
	f.write(t, "token", []byte(goodToken(t, time.Now().Add(-time.Minute), "old")))
	if err := watch(t, conn, "default/httpbin-1"); status.Code(err) != codes.Unauthenticated {
		t.Errorf("error = %v, want Unauthenticated", err)
	}
	next := goodToken(t, time.Now().Add(time.Hour), "next")
	s.reviewer.mu.Lock()
	s.reviewer.peers[next] = httpbin
	s.reviewer.mu.Unlock()
	f.write(t, "token", []byte(next))
	if err := watch(t, conn, "default/httpbin-1"); err != nil {
		t.Error(err)
	}
}

// TestGateRotation: while another replica replaces the root, a client that
// connects anew gets through at every step, by token and by a certificate from
// before it; once the old root is gone, who has only that does not.
func TestGateRotation(t *testing.T) {
	s := newSite(t)
	c, f := s.client(t)
	certificate, key, err := s.authority.IssueClient("default", "httpbin", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	f.write(t, "crt", certificate)
	f.write(t, "key", key)
	f.write(t, "first", s.authority.Bundle())
	c.CertFile, c.KeyFile = f.path("crt"), f.path("key")
	byCertificate := c
	byCertificate.TokenFile = ""

	bundles := make(chan []byte)
	ctx, cancel := context.WithCancel(t.Context())
	followed := make(chan error, 1)
	go func() {
		followed <- s.authority.Follow(ctx, func(b []byte) {
			select {
			case bundles <- b:
			case <-ctx.Done():
			}
		})
	}()
	defer func() {
		cancel()
		if err := <-followed; err != nil {
			t.Error(err)
		}
	}()
	<-bundles
	now := s.authority.held()
	for _, next := range []step{stepPublish, stepSign} {
		if now, err = testPolicy.take(now, next, time.Now()); err != nil {
			t.Fatal(err)
		}
		s.keeper.replace(t, now)
		if next == stepPublish {
			f.write(t, "ca", <-bundles)
		} else if err := s.authority.sync(t.Context()); err != nil { // nothing tells of this one: the bundle is the same
			t.Fatal(err)
		}
		for _, client := range []Client{c, byCertificate} {
			if err := s.ask(t, "default/httpbin-1", client.DialOptions()...); err != nil {
				t.Fatalf("after %s: %v", next, err)
			}
		}
	}
	stale := c
	stale.CAFile = f.path("first")
	if err := s.ask(t, "default/httpbin-1", stale.DialOptions()...); status.Code(err) != codes.Unavailable {
		t.Errorf("roots from before the rotation: %v, want Unavailable", err)
	}
	if now, err = testPolicy.take(now, stepRetire, time.Now()); err != nil {
		t.Fatal(err)
	}
	s.keeper.replace(t, now)
	f.write(t, "ca", <-bundles)
	if err := s.ask(t, "default/httpbin-1", byCertificate.DialOptions()...); err == nil {
		t.Error("a certificate of a root that is gone is taken")
	}
	c.CertFile, c.KeyFile = "", ""
	if err := s.ask(t, "default/httpbin-1", c.DialOptions()...); err != nil {
		t.Errorf("token after the rotation: %v", err)
	}
}

// TestMaxAge: a stream that was opened with a good token ends in time to ask for a
// newer one.
func TestMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, _ := inMemory(t)
		begun := time.Now()
		stream, err := healthpb.NewHealthClient(conn).Watch(t.Context(), &healthpb.HealthCheckRequest{Service: "default/httpbin-1"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		if age := time.Since(begun); status.Code(err) != codes.Unavailable || age < MaxAge*9/10 || age > MaxAge*11/10+time.Minute {
			t.Errorf("stream ended after %v: %v; want Unavailable after about %v", age, err, MaxAge)
		}
		if err := watch(t, conn, "default/httpbin-1"); status.Code(err) != codes.Unauthenticated {
			t.Errorf("token that has expired meanwhile: %v", err)
		}
	})
}

// TestCallsOfOneConnection: it has so many under way, and does not stay without any.
func TestCallsOfOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, dialled := inMemory(t)
		ctx, cancel := context.WithCancel(t.Context())
		for range maxCalls {
			stream, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{Service: "default/httpbin-1"})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
		}
		late, end := context.WithTimeout(t.Context(), time.Minute)
		defer end()
		_, err := healthpb.NewHealthClient(conn).Check(late, &healthpb.HealthCheckRequest{Service: "default/httpbin-1"})
		if status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("call %d: %v, want it to wait in vain", maxCalls+1, err)
		}
		cancel()
		time.Sleep(maxIdle - time.Second)
		if state := conn.GetState(); state != connectivity.Ready {
			t.Errorf("connection is %s before it was idle for long, want ready", state)
		}
		time.Sleep(2 * time.Second)
		if state := conn.GetState(); state == connectivity.Ready {
			t.Error("connection goes on without a call")
		}
		if n := dialled.Load(); n != 1 {
			t.Errorf("dialled %d times, want once", n)
		}
	})
}

// inMemory is a connection by a good token of httpbin, for ten minutes from now, to a
// gate in memory, and how often it was dialled.
func inMemory(t *testing.T) (*grpc.ClientConn, *atomic.Int32) {
	t.Helper()
	a := open(t, new(memory), nil)
	good := goodToken(t, time.Now().Add(10*time.Minute), "httpbin")
	gate := NewGate(GateConfig{
		TLS:            a.ServerTLS(),
		Authenticators: []Authenticator{NewTokens(&reviewer{peers: map[string]Peer{good: httpbin}}, "")},
	})
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer(gate.Options(keepalive.ServerParameters{})...)
	healthpb.RegisterHealthServer(server, desk{})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	f := files{t.TempDir()}
	f.write(t, "ca", a.Bundle())
	f.write(t, "token", []byte(good))
	c := Client{CAFile: f.path("ca"), TokenFile: f.path("token"), ServerName: "chandler.test"}
	dialled := new(atomic.Int32)
	conn, err := grpc.NewClient("passthrough:///x", append(c.DialOptions(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			dialled.Add(1)
			return listener.DialContext(ctx)
		}))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, dialled
}

func TestCredentialsOf(t *testing.T) {
	for _, tt := range []struct {
		values []string
		want   string
	}{
		{nil, ""},
		{[]string{"Bearer abc"}, "abc"},
		{[]string{"bearer  abc "}, "abc"},
		{[]string{"Basic abc"}, ""},
		{[]string{"abc"}, ""},
		{[]string{"Bearer"}, ""},
		{[]string{"Bearer a", "Bearer b"}, ""},
	} {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.MD{"authorization": tt.values})
		if got := credentialsOf(ctx); got.Token != tt.want || got.Certificate != nil {
			t.Errorf("%q: %+v, want token %q", tt.values, got, tt.want)
		}
	}
}
