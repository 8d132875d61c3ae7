package listener

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httpinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/chandler-proxy/chandler/internal/engine/config"
	"github.com/chandler-proxy/chandler/internal/engine/hcm"
	"github.com/chandler-proxy/chandler/internal/engine/stats"
)

func packed(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// inspecting is the configuration of a listener that reads what clients say first.
func inspecting(t *testing.T) *config.Listener {
	t.Helper()
	cfg, err := config.DecodeListener(&listenerv3.Listener{
		Name: "main",
		Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 80},
		}}},
		ListenerFilters: []*listenerv3.ListenerFilter{
			{Name: "tls", ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: packed(t, new(tlsinspectorv3.TlsInspector))}},
			{Name: "http", ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: packed(t, new(httpinspectorv3.HttpInspector))}},
		},
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: "tcp", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed(t, &tcpv3.TcpProxy{
				StatPrefix: "tcp", ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: "backend"},
			})},
		}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// A rig is a listener with a chain for TLS and one for all else, which waits for
// requests over HTTP/1.1.
type rig struct {
	*Listener
	tls, plain *Chain
	workers    sync.WaitGroup
}

func newRig(t *testing.T, cfg *config.Listener) *rig {
	r := new(rig)
	env := &Env{
		HTTP: &hcm.Env{Stats: stats.New(), Now: time.Now, Log: slog.New(slog.DiscardHandler)},
		Log:  slog.New(slog.DiscardHandler), NextID: func() uint64 { return 1 }, Workers: &r.workers,
	}
	chain := func(m config.Match) *Chain {
		ctx, cancel := context.WithCancel(t.Context())
		return &Chain{
			cfg: &config.FilterChain{Match: m}, env: env, ctx: ctx, cancel: cancel,
			http: hcm.New(&config.HTTP{Codec: config.HTTP1}, env.HTTP, func() *config.Routes { return nil }, nil, hcm.Chain{}),
		}
	}
	r.tls, r.plain = chain(config.Match{Transport: "tls"}), chain(config.Match{})
	r.Listener = &Listener{Config: cfg, env: env, chains: []*Chain{r.tls}, rest: r.plain, stats: newStats(env.HTTP.Stats, netip.AddrPort{})}
	return r
}

// connect has a client connect.
func (r *rig) connect(t *testing.T) net.Conn {
	t.Helper()
	client, server := net.Pipe()
	if !r.enter() {
		t.Fatal("the listener takes no connection")
	}
	r.workers.Go(func() { r.take(server) })
	return client
}

func ended(c *Chain) bool { return c.ctx.Err() != nil }

const grace = 10 * time.Minute

func TestDrainWithoutConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, from := newRig(t, inspecting(t)), time.Now()
		r.Drain(t.Context(), nil, grace)
		r.workers.Wait()
		if took := time.Since(from); took > 0 || !ended(r.tls) || !ended(r.plain) {
			t.Errorf("ended %t, %t after %v, want at once", ended(r.tls), ended(r.plain), took)
		}
		if r.enter() {
			t.Error("the listener takes connections that none of its chains has")
		}
	})
}

// A chain is not gone while a connection may be its.
func TestDrainWaitsForConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, from := newRig(t, inspecting(t)), time.Now()
		client := r.connect(t)
		r.Drain(t.Context(), nil, grace)
		synctest.Wait()
		if ended(r.tls) || ended(r.plain) {
			t.Error("a chain ended that the connection may be for")
		}
		if _, err := io.WriteString(client, "GET / HTTP/1.1\r\n"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !ended(r.tls) || ended(r.plain) {
			t.Errorf("ended: the other chain %t, the connection's %t; want only the other", ended(r.tls), ended(r.plain))
		}
		client.Close()
		r.workers.Wait()
		if took := time.Since(from); took > 0 || !ended(r.plain) {
			t.Errorf("ended %t after %v, want at once with its connection", ended(r.plain), took)
		}
	})
}

// A client that goes before it said anything was no chain's.
func TestDrainOfTheSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, from := newRig(t, inspecting(t)), time.Now()
		client := r.connect(t)
		r.Drain(t.Context(), nil, grace)
		client.Close()
		r.workers.Wait()
		if took := time.Since(from); took > 0 || !ended(r.tls) || !ended(r.plain) {
			t.Errorf("ended %t, %t after %v", ended(r.tls), ended(r.plain), took)
		}
	})
}

// What does not end by itself is ended when the time is over.
func TestDrainByForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, from := newRig(t, &config.Listener{}), time.Now()
		client := r.connect(t)
		r.Drain(t.Context(), nil, grace)
		if _, err := client.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("client: %v, want EOF", err)
		}
		r.workers.Wait()
		if took := time.Since(from); took != grace {
			t.Errorf("it took %v, want %v", took, grace)
		}
	})
}

// A connection that comes while its listener is replaced is for the next one.
func TestEnterWhileReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newRig(t, &config.Listener{}), newRig(t, &config.Listener{})
		// Both have one chain in common, which the drained one is not to keep.
		second.Listener.rest = first.plain
		s := &Socket{}
		s.Replace(first.Listener)
		first.Drain(t.Context(), second.Listener, grace)
		first.workers.Wait()
		if l := s.enter(); l != nil {
			t.Error("a listener takes connections for a chain that is gone")
		}
		s.Replace(second.Listener)
		if l := s.enter(); l != second.Listener {
			t.Error("the next listener does not take the connection")
		}
		leave(second.all(), nil)
		second.Drain(t.Context(), nil, grace)
		second.workers.Wait()
		if !ended(first.plain) {
			t.Error("the chain that both have counts connections that it never had")
		}
	})
}

// What was read to find out what the client speaks is read again, and the room for it
// is gone.
func TestInspectLetsGo(t *testing.T) {
	r := newRig(t, inspecting(t))
	client, server := net.Pipe()
	const request = "GET / HTTP/1.1\r\nhost: x\r\n\r\n"
	var speak sync.WaitGroup
	defer speak.Wait()
	speak.Go(func() {
		_, _ = io.WriteString(client, request) // what is read shows
		_, _ = io.WriteString(client, "more")
		client.Close()
	})
	c := &hcm.Conn{Conn: server}
	said, ok := r.inspect(c)
	if !ok || len(said.applications) != 1 || said.applications[0] != "http/1.1" {
		t.Fatalf("inspect = %+v, %t", said, ok)
	}
	if n, most := c.R.Size(), bufio.NewReader(nil).Size(); n > most {
		t.Errorf("a reader of %d bytes stays, want %d at most", n, most)
	}
	if all, err := io.ReadAll(c.R); string(all) != request+"more" || err != nil {
		t.Errorf("read %q, %v", all, err)
	}
}
