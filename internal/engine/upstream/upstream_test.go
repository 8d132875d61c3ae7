package upstream

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/engine/config"
	"github.com/chandler-proxy/chandler/internal/engine/stats"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

func newCluster(t *testing.T, c config.Cluster, addrs ...string) *Cluster {
	t.Helper()
	for _, a := range addrs {
		p := netip.MustParseAddrPort(a)
		c.Endpoints = append(c.Endpoints, config.Endpoint{Host: p.Addr().String(), Port: p.Port(), Weight: 1})
	}
	c.Connect = 5 * time.Second
	cluster, err := New(&c, stats.New(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.retireAll)
	return cluster
}

func start(t *testing.T, h *Host) (Exchange, error) {
	return h.Start(t.Context(), Request{End: true, Fields: proxywasm.NewRequestFields(
		abi.Pair{Key: ":method", Value: "GET"}, abi.Pair{Key: ":path", Value: "/"}, abi.Pair{Key: ":authority", Value: "x"}, abi.Pair{Key: ":scheme", Value: "http"})})
}

func finish(t *testing.T, x Exchange) {
	resp, err := x.Response()
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	}
	if err != nil {
		t.Error(err)
	}
	x.Finish()
}

// Requests beyond the connections that there may be wait for one of them.
func TestRequestsWaitForConnection(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }))
	t.Cleanup(s.Close)
	c := newCluster(t, config.Cluster{Limits: config.Limits{Connections: 1, Pending: 4, Requests: 10}}, s.Listener.Addr().String())
	h := c.Choose(Wanted{})
	first, err := start(t, h)
	if err != nil {
		t.Fatal(err)
	}
	var waiting sync.WaitGroup
	for range 4 {
		waiting.Go(func() {
			x, err := start(t, h)
			if err != nil {
				t.Error(err)
				return
			}
			finish(t, x)
		})
	}
	for c.Stats.cxOverflow.Get() < 4 {
		runtime.Gosched()
	}
	if _, err := start(t, h); !errors.Is(err, ErrOverflow) {
		t.Errorf("a fifth that waits: %v, want %v", err, ErrOverflow)
	}
	finish(t, first)
	waiting.Wait()
	if n := c.Stats.CxTotal.Get(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	for name, b := range map[string]*Breaker{"connections": &c.Breakers.connections, "pending": &c.Breakers.pending, "requests": &c.Breakers.requests} {
		if n, want := b.n.Load(), map[string]int64{"connections": 1}[name]; n != want {
			t.Errorf("%s: %d are taken, want %d", name, n, want)
		}
	}
}

// One that waits gives up with its context, and leaves nothing behind.
func TestWaitingEnds(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }))
	t.Cleanup(s.Close)
	c := newCluster(t, config.Cluster{Limits: config.Limits{Connections: 1, Pending: 4, Requests: 10}}, s.Listener.Addr().String())
	h := c.Choose(Wanted{})
	first, err := start(t, h)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.connect(ctx, ""); err == nil {
		t.Error("a connection beyond the limit")
	}
	finish(t, first)
	if n := c.Breakers.pending.n.Load(); n != 0 {
		t.Errorf("%d are pending", n)
	}
	x, err := start(t, h)
	if err != nil {
		t.Fatal(err)
	}
	finish(t, x)
}

// chosen is how often each endpoint is chosen of n times.
func chosen(c *Cluster, n int) map[string]int {
	count := map[string]int{}
	for range n {
		if h := c.Choose(Wanted{}); h != nil {
			count[h.Address]++
		}
	}
	return count
}

func outlierCluster(t *testing.T, o config.Outliers, percent float64, n int) (*Cluster, *time.Time) {
	var addrs []string
	for i := range n {
		addrs = append(addrs, "127.0.0.1:"+strconv.Itoa(1001+i))
	}
	c := newCluster(t, config.Cluster{Outliers: &o, Panic: percent}, addrs...)
	now := time.Unix(1000, 0)
	c.now = func() time.Time { return now }
	return c, &now
}

// An endpoint that fails is ejected, and taken back; each time for longer.
func TestEjection(t *testing.T) {
	c, now := outlierCluster(t, config.Outliers{Consecutive5xx: 3, Interval: time.Second, Base: 10 * time.Second, Most: 15 * time.Second, MaxPercent: 100}, 0, 2)
	bad := (*c.hosts.Load())[0]
	fail := func() {
		for range 3 {
			bad.Report(500)
		}
	}
	bad.Report(500)
	bad.Report(500)
	bad.Report(200)
	bad.Report(500)
	if got := chosen(c, 10)[bad.Address]; got == 0 {
		t.Fatal("ejected although a success was between the failures")
	}
	bad.Report(200)
	fail()
	if got := chosen(c, 10)[bad.Address]; got != 0 {
		t.Fatalf("chosen %d times although it is ejected", got)
	}
	for _, tt := range []struct {
		after time.Duration
		back  bool
	}{{9 * time.Second, false}, {10 * time.Second, true}} {
		c.judge(now.Add(tt.after))
		if got := chosen(c, 10)[bad.Address] > 0; got != tt.back {
			t.Errorf("after %v it is chosen: %t", tt.after, got)
		}
	}
	*now = now.Add(time.Minute)
	fail()
	c.judge(now.Add(14 * time.Second))
	if got := chosen(c, 10)[bad.Address]; got != 0 {
		t.Error("ejected for no longer than the first time")
	}
	c.judge(now.Add(15 * time.Second))
	if got := chosen(c, 10)[bad.Address]; got == 0 {
		t.Error("ejected for longer than the most")
	}
	if n := c.Stats.ejected.Get(); n != 0 {
		t.Errorf("%d are ejected", n)
	}
}

// With too few good endpoints all are used.
func TestPanic(t *testing.T) {
	for _, tt := range []struct {
		threshold float64
		want      int // endpoints that are chosen
	}{{50, 3}, {30, 1}, {0, 1}} {
		c, _ := outlierCluster(t, config.Outliers{Consecutive5xx: 1, Interval: time.Second, Base: time.Second, Most: time.Second, MaxPercent: 100}, tt.threshold, 3)
		for _, h := range (*c.hosts.Load())[:2] {
			h.Report(500)
		}
		if got := len(chosen(c, 30)); got != tt.want {
			t.Errorf("threshold %v: %d endpoints, want %d", tt.threshold, got, tt.want)
		}
	}
}

// An endpoint that succeeds far less than the others is ejected.
func TestSuccessRate(t *testing.T) {
	c, now := outlierCluster(t, config.Outliers{
		Interval: time.Second, Base: time.Minute, Most: time.Minute, MaxPercent: 100, SuccessRate: true, MinimumHosts: 5, RequestVolume: 10, Factor: 1.9,
	}, 0, 6)
	bad := (*c.hosts.Load())[2]
	answer := func() {
		for _, h := range *c.hosts.Load() {
			for i := range 20 {
				if h == bad && i%2 == 0 {
					h.Report(500)
				} else {
					h.Report(200)
				}
			}
		}
	}
	answer()
	c.judge(*now)
	got := chosen(c, 60)
	if got[bad.Address] != 0 || len(got) != 5 {
		t.Errorf("chosen: %v", got)
	}
}

// Trailers are sent over HTTP/2. Package net/http's server wants them announced.
func TestTrailersOverHTTP2(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		io.WriteString(w, r.Trailer.Get("x-end"))
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	c := newCluster(t, config.Cluster{HTTP2: true, Limits: config.Limits{Connections: 1, Pending: 1, Requests: 1}}, s.Listener.Addr().String())
	x, err := c.Choose(Wanted{}).Start(t.Context(), Request{Fields: proxywasm.NewRequestFields(
		abi.Pair{Key: ":method", Value: "POST"}, abi.Pair{Key: ":path", Value: "/"}, abi.Pair{Key: ":authority", Value: "x"}, abi.Pair{Key: ":scheme", Value: "http"},
		abi.Pair{Key: "trailer", Value: "x-end"})})
	if err != nil {
		t.Fatal(err)
	}
	var sending sync.WaitGroup
	sending.Go(func() {
		if err := errors.Join(x.Send([]byte("body"), true), x.SendEnd(proxywasm.NewFields(abi.Pair{Key: "x-end", Value: "last"}))); err != nil {
			t.Error(err)
		}
	})
	resp, err := x.Response()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(resp.Body); string(got) != "last" || err != nil {
		t.Errorf("the server saw the trailer %q, %v", got, err)
	}
	sending.Wait()
	x.Finish()
}

// The head of a request that may be late is sent before its body when that does not
// come, and with it when it does.
func TestLateHead(t *testing.T) {
	seen := make(chan string)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r.URL.Path
		_, _ = io.Copy(w, r.Body)
	}))
	t.Cleanup(s.Close)
	h := newCluster(t, config.Cluster{Limits: config.Limits{Connections: 1, Pending: 1, Requests: 1}}, s.Listener.Addr().String()).Choose(Wanted{})
	for _, path := range []string{"/late", "/ready"} {
		x, err := h.Start(t.Context(), Request{Late: true, Fields: proxywasm.NewRequestFields(
			abi.Pair{Key: ":method", Value: "POST"}, abi.Pair{Key: ":path", Value: path}, abi.Pair{Key: ":authority", Value: "x"},
			abi.Pair{Key: ":scheme", Value: "http"}, abi.Pair{Key: "content-length", Value: "4"})})
		if err != nil {
			t.Fatal(err)
		}
		var sending sync.WaitGroup
		sending.Go(func() {
			if path == "/late" { // the server has the head before
				if got := <-seen; got != path {
					t.Errorf("server was asked for %s", got)
				}
			}
			if err := errors.Join(x.Send([]byte("body"), true), x.SendEnd(nil)); err != nil {
				t.Error(err)
			}
			if path != "/late" {
				<-seen
			}
		})
		resp, err := x.Response()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(resp.Body); string(got) != "body" || err != nil {
			t.Errorf("%s: %q, %v", path, got, err)
		}
		sending.Wait()
		x.Finish()
	}
}
