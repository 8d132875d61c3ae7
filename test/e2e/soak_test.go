//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	// connections is how many clients are held.
	connections = 10_000
	// underway is how many of them wait for an answer at a time.
	underway = 24
	// files is how many files the process of either end must be able to open.
	files = connections + 2_000
	// fewer than this are no growth of goroutines or files: a listener that was replaced
	// drains for ten minutes, and the connections to the backend come and go.
	fewer = 200
	// soakVariable in the environment asks for the long form: so many requests.
	// An hour at 1,000 a second is 3600000.
	soakVariable = "CHANDLER_SOAK"
)

// Through agent and engine, 10,000 clients keep their connections and send requests
// on them in turn, as fast as they are answered, while every second the plugin
// changes, to versions good and bad, and now and then routes and listeners. Every
// request is answered, by a version that is good, and by none older than one that
// answered before. Nothing grows.
func TestSoak(t *testing.T) {
	warm, changes, requests := length(t)
	raiseFiles(t, files)
	s := startSoak(t)
	empty := s.sample()
	s.open(t.Context())
	t.Logf("%d connections: %v, before: %v", connections, s.sample(), empty)

	began := time.Now()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	stop := s.load(t.Context())
	defer stop()
	s.changes(tick.C, warm, 0)
	before, from := s.sample(), s.latest.Load()
	s.changes(tick.C, changes, requests)
	after, to := s.sample(), s.latest.Load()
	s.settle()
	stop()

	t.Logf("%d requests in %v, %d failed, on %d connections, %d opened again; %d of %d versions seen", s.answered.Load(),
		time.Since(began).Round(time.Second), s.failed.Load(), connections, s.renewed.Load(), s.versions(), s.latest.Load())
	t.Logf("after change %d: %v; after change %d: %v", from, before, to, after)
	if n := s.failed.Load(); n > 0 {
		t.Errorf("%d of %d requests failed", n, s.answered.Load()+n)
	}
	if n, most := s.renewed.Load(), connections*filterChanges(s.latest.Load()); n > most {
		t.Errorf("%d connections were ended, %d by changes of the filters", n, most)
	}
	after.within(t, before)
	s.close()
	eventually(t, "connections are given up", func() error {
		if now := s.sample(); now.goroutines > empty.goroutines+fewer || now.files > empty.files+fewer {
			return fmt.Errorf("%v, before: %v", now, empty)
		}
		return nil
	})
}

// length is how many changes come before the first look at what the agent takes, and
// how many more, and how many requests altogether, at least, before the last.
func length(t *testing.T) (warm, changes int, requests int64) {
	t.Helper()
	text := os.Getenv(soakVariable)
	if text == "" {
		return 12, 24, 5 * connections
	}
	requests, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatalf("%s is no number of requests: %v", soakVariable, err)
	}
	return 60, 120, requests
}

// raiseFiles allows this process, and those it starts, to open n files.
func raiseFiles(t *testing.T, n uint64) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	want := syscall.Rlimit{Cur: max(limit.Cur, n), Max: max(limit.Max, n)}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &want); err != nil {
		t.Fatalf("%d open files are needed, %d allowed, and no more can be had (%v): raise ulimit -n", n, limit.Max, err)
	}
}

// A soak is clients of a mesh, and changes to it. A version is the number of the
// change that made it; what it is, and whether it is good, follows from that number.
type soak struct {
	t       *testing.T
	m       *mesh
	shelf   *shelf
	backend string // host:port
	spare   int    // port of a listener that comes and goes

	latest atomic.Int64 // version that was written last
	idle   chan *client // connections that wait for their turn

	seen, route               atomic.Int64 // newest versions of plugin and routes that answered
	answered, failed, renewed atomic.Int64
	mu                        sync.Mutex
	met                       map[int64]struct{} // versions that answered
}

// startSoak runs a mesh with the first version of the plugin.
func startSoak(t *testing.T) *soak {
	t.Helper()
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "backend") }))
	t.Cleanup(backend.Close)
	s := &soak{
		t: t, shelf: startShelf(t), backend: backend.Listener.Addr().String(), spare: freePort(t),
		idle: make(chan *client, connections), met: map[int64]struct{}{},
	}
	s.m = start(t, func(m *mesh) {
		m.Proxy = "engine"
		m.write("gateway.yaml", s.gateway(m.Gateway, 0))
	})
	s.change()
	s.m.answers(200, "1")
	return s
}

// A kind is what a version does to the plugin.
type kind int

const (
	configured kind = iota // other configuration, of a module that was had before
	replaced               // a module that nobody has seen
	missing                // a module that is not there
	refusing               // a module that refuses its configuration
)

func kindOf(version int64) kind {
	switch {
	case version%5 == 3:
		return missing
	case version%11 == 7:
		return refusing
	case version%4 == 0:
		return replaced
	}
	return configured
}

// good says whether the version can answer.
func good(version int64) bool {
	k := kindOf(version)
	return version > 0 && (k == configured || k == replaced)
}

// filterChanges is how many versions up to this one have another set of filters, each of
// which ends every connection after one more answer.
func filterChanges(version int64) int64 { return (version + 25) / 30 }

// change makes the next version.
func (s *soak) change() {
	s.t.Helper()
	v := s.latest.Load() + 1
	url := s.shelf.url("missing.wasm")
	switch kindOf(v) {
	case configured:
		url = s.shelf.put(fmt.Sprintf("module-%d.wasm", v%2), module(s.t, fmt.Sprint(v%2)))
	case replaced:
		url = s.shelf.put(fmt.Sprintf("new-%d.wasm", v), module(s.t, fmt.Sprint("new ", v)))
	case refusing:
		url = s.shelf.put("refuse.wasm", testModule(s.t, "refuse-config"))
	}
	s.latest.Store(v) // before anyone can see it
	s.m.write("plugin.yaml", plugin("version", url, fmt.Sprint(v)))
	if v%4 == 1 {
		s.m.write("gateway.yaml", s.gateway(s.m.Gateway, v))
	}
	if filterChanges(v) > filterChanges(v-1) {
		s.toggle("more.yaml", plugin("more", s.shelf.put("more.wasm", module(s.t, "more")), "more", "phase: AUTHN"))
	}
}

// toggle makes a file, or removes it.
func (s *soak) toggle(name, text string) {
	s.t.Helper()
	if _, err := os.Stat(s.m.Dir + "/" + name); err == nil {
		s.m.remove(name)
		return
	}
	s.m.write(name, text)
}

// gateway is a gateway whose routes say that they are of that version. Every second
// one has one listener more.
func (s *soak) gateway(listen string, version int64) string {
	text := strings.Replace(gateway(listen, s.backend), "  - route:",
		fmt.Sprintf("  - headers: {response: {set: {x-route: %q}}}\n    route:", fmt.Sprint(version)), 1)
	if version%8 == 5 {
		text = strings.Replace(text, "  servers:",
			fmt.Sprintf("  servers:\n  - {port: {number: %d, name: more, protocol: HTTP}, hosts: [more.example]}", s.spare), 1)
	}
	return text
}

// changes makes a change at each tick, until there are so many more and there were
// so many answers.
func (s *soak) changes(tick <-chan time.Time, changes int, answers int64) {
	s.t.Helper()
	for to := s.latest.Load() + int64(changes); s.latest.Load() < to || s.answered.Load() < answers; {
		<-tick
		s.change()
		if s.t.Failed() || s.failed.Load() > 1000 {
			s.t.Fatalf("%d requests failed, after %d answers and %d changes", s.failed.Load(), s.answered.Load(), s.latest.Load())
		}
	}
}

// settle makes changes up to a good one, and waits until it answers.
func (s *soak) settle() {
	s.t.Helper()
	for s.change(); !good(s.latest.Load()); {
		s.change()
	}
	eventually(s.t, fmt.Sprintf("version %d answers", s.latest.Load()), func() error {
		if seen := s.seen.Load(); seen != s.latest.Load() {
			return fmt.Errorf("version %d answers", seen)
		}
		return nil
	})
}

// versions is how many versions answered.
func (s *soak) versions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.met)
}

// A client is one kept connection.
type client struct {
	net.Conn
	r    *bufio.Reader
	from net.IP
}

// open opens all connections, from several addresses, so that there are ports enough.
func (s *soak) open(ctx context.Context) {
	s.t.Helper()
	var wg sync.WaitGroup
	for i := range underway {
		wg.Go(func() {
			for n := i; n < connections && !s.t.Failed(); n += underway {
				c := &client{from: net.IPv4(127, 0, 1, byte(1+n%20))}
				if err := c.dial(ctx, s.m.Gateway); err != nil {
					s.t.Errorf("open connection %d: %v", n, err)
				}
				s.idle <- c
			}
		})
	}
	wg.Wait()
	if s.t.Failed() {
		s.t.FailNow()
	}
	eventually(s.t, "all connections are held", func() error {
		if now := s.sample(); now.files < connections {
			return errors.New(now.String())
		}
		return nil
	})
}

func (s *soak) close() {
	for range connections {
		(<-s.idle).Close()
	}
}

// dial makes a connection in place of the one there was.
func (c *client) dial(ctx context.Context, address string) error {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: c.from}, Timeout: patience}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	c.Conn, c.r = conn, bufio.NewReaderSize(conn, 512)
	return nil
}

// load sends requests until it is told to stop, which waits for the last answers.
func (s *soak) load(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for range underway {
		wg.Go(func() { s.run(ctx) })
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

// run sends requests on one connection after the other.
func (s *soak) run(ctx context.Context) {
	for ctx.Err() == nil {
		c := <-s.idle
		if err := s.ask(c); err != nil {
			if n := s.failed.Add(1); n <= 20 {
				s.t.Logf("request %d, after change %d: %v", s.answered.Load(), s.latest.Load(), err)
			}
			c.Close()
			if err := c.dial(context.WithoutCancel(ctx), s.m.Gateway); err != nil {
				s.t.Errorf("open connection after a failure: %v", err)
			}
		}
		s.idle <- c
	}
}

// ask sends a request and judges the answer.
func (s *soak) ask(c *client) error {
	plugin, route := s.seen.Load(), s.route.Load()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nhost: soak.example\r\n\r\n"); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return fmt.Errorf("read body: %w", err)
	}
	if res.StatusCode != http.StatusOK || string(body) != "backend\n" {
		return fmt.Errorf("answer %s %q", res.Status, body)
	}
	if err := s.judge(res.Header, plugin, route); err != nil {
		return err
	}
	s.answered.Add(1)
	if !res.Close {
		return nil
	}
	s.renewed.Add(1)
	c.Close()
	if err := c.dial(context.Background(), s.m.Gateway); err != nil {
		return fmt.Errorf("open connection again: %w", err)
	}
	return nil
}

// judge tells what is wrong with an answer to a request that was sent when these
// versions had answered others.
func (s *soak) judge(h http.Header, plugin, route int64) error {
	version := int64(-1)
	for _, v := range h.Values("x-wasm") {
		if v == "more" {
			continue
		}
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || version >= 0 {
			return fmt.Errorf("answer with x-wasm %q", h.Values("x-wasm"))
		}
		version = n
	}
	if !good(version) || version > s.latest.Load() {
		return fmt.Errorf("answer of version %d, the last is %d", version, s.latest.Load())
	}
	if version < plugin {
		return fmt.Errorf("answer of version %d after one of version %d", version, plugin)
	}
	if raise(&s.seen, version) {
		s.mu.Lock()
		s.met[version] = struct{}{}
		s.mu.Unlock()
	}
	routed, err := strconv.ParseInt(h.Get("x-route"), 10, 64)
	if err != nil || routed > s.latest.Load() {
		return fmt.Errorf("answer with x-route %q", h.Get("x-route"))
	}
	if routed < route {
		return fmt.Errorf("answer by routes of version %d after one of version %d", routed, route)
	}
	raise(&s.route, routed)
	return nil
}

// raise makes v at least n, and reports whether it was less.
func raise(v *atomic.Int64, n int64) bool {
	for {
		old := v.Load()
		if old >= n {
			return false
		}
		if v.CompareAndSwap(old, n) {
			return true
		}
	}
}

// A sample is what an agent with its engine takes.
type sample struct {
	resident, heap    float64 // MB; heap is what lives after a collection, and as much again
	goroutines, files int
}

func (s *soak) sample() sample {
	s.t.Helper()
	value := func(name string) float64 { return s.m.metric(s.m.AgentHTTP, "istio_agent_"+name) }
	return sample{
		resident:   value("process_resident_memory_bytes") / (1 << 20),
		heap:       value("go_memstats_next_gc_bytes") / (1 << 20),
		goroutines: int(value("go_goroutines")),
		files:      int(value("process_open_fds")),
	}
}

func (s sample) String() string {
	return fmt.Sprintf("%.0f MB resident, heap %.0f MB, %d goroutines, %d files", s.resident, s.heap, s.goroutines, s.files)
}

// within fails the test if s is more than before, by more than chance.
func (s sample) within(t *testing.T, before sample) {
	t.Helper()
	for what, v := range map[string]struct{ now, then, slack float64 }{
		"MB resident": {s.resident, before.resident, 24 + before.resident/8},
		"MB of heap":  {s.heap, before.heap, 8 + before.heap/8},
		"goroutines":  {float64(s.goroutines), float64(before.goroutines), fewer},
		"files":       {float64(s.files), float64(before.files), fewer},
	} {
		if v.now > v.then+v.slack {
			t.Errorf("%.0f %s became %.0f", v.then, what, v.now)
		}
	}
}
