package upstream

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/engine/config"
	"github.com/chandler-proxy/chandler/internal/engine/http2"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// serve2 answers requests over HTTP/2, and returns its address and how many connections
// there were.
func serve2(t *testing.T, most int, handle func(*http2.Stream)) (*http2.Server, string, *int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, n := &http2.Server{MaxStreams: most}, 0
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n++
			serving.Go(func() { _ = s.Serve(c, bufio.NewReader(c), handle) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		s.Drain()
		serving.Wait()
	})
	return s, l.Addr().String(), &n
}

func request(path string) *proxywasm.Fields {
	return proxywasm.NewRequestFields(abi.Pair{Key: ":method", Value: "GET"}, abi.Pair{Key: ":path", Value: path},
		abi.Pair{Key: ":authority", Value: "x"}, abi.Pair{Key: ":scheme", Value: "http"})
}

func cluster2(t *testing.T, address string, connections, requests int) *Cluster {
	return newCluster(t, config.Cluster{HTTP2: true, Connect: time.Minute, Limits: config.Limits{Connections: int64(connections), Pending: 10, Requests: int64(requests)}}, address)
}

// As many connections are made as the server's limit of streams calls for, and no more than
// the breaker lets be.
func TestConnectionsOverHTTP2(t *testing.T) {
	finish := make(chan struct{})
	_, address, n := serve2(t, 2, func(s *http2.Stream) {
		<-finish
		_ = s.WriteHead(proxywasm.NewResponseFields(abi.Pair{Key: ":status", Value: "200"}), true)
	})
	h := cluster2(t, address, 3, 100).Choose(Wanted{})
	var all []Exchange
	begin := func() error {
		x, err := h.Start(t.Context(), Request{Fields: request("/"), End: true})
		if err == nil {
			all = append(all, x)
		}
		return err
	}
	if err := begin(); err != nil { // by then the server may have told its limit, or not
		t.Fatal(err)
	}
	for {
		if _, now := h.h2[""].conns[0].Usable(); !now || len(all) == 100 {
			break
		}
		if err := begin(); err != nil {
			t.Fatal(err)
		}
	}
	for len(all) < 100 {
		if err := begin(); err != nil {
			if !errors.Is(err, ErrOverflow) {
				t.Fatal(err)
			}
			break
		}
	}
	if h.Connections() > 3 {
		t.Errorf("%d connections", h.Connections())
	}
	close(finish)
	answered := 0
	for _, x := range all {
		_, err := x.Response()
		var reset *ResetError
		switch {
		case err == nil:
			answered++
		case !errors.As(err, &reset) || reset.Reason != RemoteRefused: // begun before the limit was known
			t.Errorf("Response: %v", err)
		}
		x.Finish()
	}
	if answered == 0 || h.Active() != 0 {
		t.Errorf("%d answered, %d active; %d connections", answered, h.Active(), *n)
	}
}

// A request gets the reason in Envoy's words, and trailers need no announcement.
func TestExchangeOverHTTP2(t *testing.T) {
	_, address, _ := serve2(t, 100, func(s *http2.Stream) {
		path, _ := s.Fields().Get(":path")
		ok := proxywasm.NewResponseFields(abi.Pair{Key: ":status", Value: "200"})
		switch path {
		case "/refuse":
			s.Reset(h2.ErrCodeRefusedStream)
		case "/reset":
			s.Reset(h2.ErrCodeInternal)
		case "/half":
			_ = s.WriteHead(ok, false)
		case "/malformed":
			_ = s.WriteHead(proxywasm.NewResponseFields(abi.Pair{Key: "a", Value: "b"}), true)
		default:
			_, _ = io.Copy(io.Discard, s)
			_ = s.WriteHead(ok, false)
			_ = s.Write([]byte("body"), false)
			_ = s.WriteTrailers(s.Trailers())
		}
	})
	h := cluster2(t, address, 1, 1).Choose(Wanted{})
	for path, want := range map[string]Reason{"/refuse": RemoteRefused, "/reset": RemoteReset, "/half": RemoteReset, "/malformed": ProtocolError} {
		x, err := h.Start(t.Context(), Request{Fields: request(path), End: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Start(t.Context(), Request{Fields: request(path), End: true}); !errors.Is(err, ErrOverflow) {
			t.Errorf("a second request: %v", err)
		}
		resp, err := x.Response()
		if err == nil {
			_, err = io.ReadAll(resp.Body)
		}
		var reset *ResetError
		if !errors.As(err, &reset) || reset.Reason != want {
			t.Errorf("%s: %v, want %s", path, err, want)
		}
		x.Finish()
	}
	x, err := h.Start(t.Context(), Request{Fields: request("/")})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(x.Send([]byte("abc"), true), x.SendEnd(proxywasm.NewFields(abi.Pair{Key: "t", Value: "1"}))); err != nil {
		t.Fatal(err)
	}
	resp, err := x.Response()
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if v, _ := resp.Body.Trailers().Get("t"); string(body) != "body" || err != nil || v != "1" {
		t.Errorf("%s, %v, %s", body, err, v)
	}
	x.Finish()
	if h.Connections() != 1 {
		t.Errorf("%d connections", h.Connections())
	}
}

// A server that goes away is asked no more; the next request has a new connection.
func TestGoAway(t *testing.T) {
	s, address, n := serve2(t, 100, func(s *http2.Stream) {
		_ = s.WriteHead(proxywasm.NewResponseFields(abi.Pair{Key: ":status", Value: "200"}), true)
	})
	h := cluster2(t, address, 10, 10).Choose(Wanted{})
	ask := func() {
		t.Helper()
		x, err := h.Start(t.Context(), Request{Fields: request("/"), End: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := x.Response(); err != nil {
			t.Fatal(err)
		}
		x.Finish()
	}
	ask()
	first := h.h2[""].conns[0]
	s.Drain()
	for usable := true; usable; usable, _ = first.Usable() {
		ask() // none is lost
	}
	ask()
	if *n < 2 {
		t.Errorf("%d connections", *n)
	}
}

// A request whose connection cannot be made fails, with all that wait for it.
func TestConnectOverHTTP2(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	h := cluster2(t, l.Addr().String(), 10, 10).Choose(Wanted{})
	var asking sync.WaitGroup
	for range 5 {
		asking.Go(func() {
			_, err := h.Start(t.Context(), Request{Fields: request("/"), End: true})
			if err == nil || !strings.Contains(err.Error(), string(ConnectFailure)) {
				t.Errorf("Start: %v", err)
			}
		})
	}
	asking.Wait()
	if h.Connections() != 0 || h.Active() != 0 {
		t.Errorf("%d connections, %d requests", h.Connections(), h.Active())
	}
}
