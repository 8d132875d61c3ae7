//go:build e2e

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// patience is how long anything that must happen may take.
const patience = 30 * time.Second

// tool is the path of a program that the tests need, from the environment.
func tool(t testing.TB, variable string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		t.Fatalf("%s is not set; run make e2e", variable)
	}
	return path
}

// ports are handed out one after the other, below those that the system takes for
// outgoing connections, so that no other socket takes one before it is bound.
var ports atomic.Int64

// freePort is a loopback port that nothing listens on.
func freePort(t testing.TB) int {
	t.Helper()
	const first, last = 20000, 32000
	ports.CompareAndSwap(0, first+rand.Int64N(last-first))
	for range last - first {
		port := int(first + ports.Add(1)%(last-first))
		l, err := net.Listen("tcp", loopback(port))
		if err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// eventually waits until f is nil.
func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	err := f()
	for err != nil {
		select {
		case <-tick.C:
			err = f()
		case <-ctx.Done():
			t.Fatalf("%s: still after %v: %v", what, patience, err)
		}
	}
}

// A logBuffer keeps what a process printed.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A process is a program under test or beside it.
type process struct {
	cmd  *exec.Cmd
	log  *logBuffer
	done chan struct{} // closed when it has ended
}

// spawn starts a program. When the test ends it is terminated, and what it
// printed is shown if the test failed.
func spawn(t testing.TB, env []string, name string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(name, args...), log: new(logBuffer), done: make(chan struct{})}
	// A file, not a pipe of ours, so that what it starts can outlive it.
	out, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // how it ended is in its log
		close(p.done)
	}()
	t.Cleanup(func() {
		p.stop(t)
		out.Close()
		if t.Failed() {
			text, err := os.ReadFile(out.Name())
			t.Logf("%s %s (%v):\n%s", filepath.Base(name), strings.Join(args, " "), err, tail(text, 12_000))
		}
	})
	return p
}

func tail(b []byte, n int) []byte {
	if len(b) > n {
		return b[len(b)-n:]
	}
	return b
}

// output is what p has printed so far.
func (p *process) output(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(p.cmd.Stdout.(*os.File).Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// stop terminates p and waits until it is gone.
func (p *process) stop(t testing.TB) {
	t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may be gone already
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Errorf("%s does not end on SIGTERM", p.cmd.Path)
		p.kill()
	}
}

// kill ends p as a crash would.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may be gone already
	<-p.done
}

// A mesh is a control plane, an agent and an Envoy as a gateway, with a folder
// of resources and a backend behind.
type mesh struct {
	t          testing.TB
	Dir        string // of resource files
	Data       string // of the agent
	Gateway    string // host:port
	Admin      string // of Envoy
	AgentHTTP  string
	ControlXDS string
	Monitoring string

	Proxy     string // envoy or engine
	AgentEnv  []string
	AgentArgs []string
	Control   *process
	Agent     *process
}

// start runs a mesh and waits until it serves. Options change it before it starts.
func start(t testing.TB, options ...func(*mesh)) *mesh {
	t.Helper()
	m := prepare(t, options...)
	m.startControl()
	m.startAgent()
	m.serving()
	return m
}

// prepare makes a mesh of which nothing runs but the backend.
func prepare(t testing.TB, options ...func(*mesh)) *mesh {
	t.Helper()
	m := &mesh{
		t:          t,
		Dir:        t.TempDir(),
		Proxy:      cmp.Or(os.Getenv("CHANDLER_E2E_PROXY"), "envoy"),
		Data:       shortTempDir(t),
		Gateway:    loopback(freePort(t)),
		Admin:      loopback(freePort(t)),
		AgentHTTP:  loopback(freePort(t)),
		ControlXDS: loopback(freePort(t)),
		Monitoring: loopback(freePort(t)),
	}
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "backend")
	}))
	t.Cleanup(backend.Close)
	m.write("gateway.yaml", gateway(m.Gateway, backend.Listener.Addr().String()))
	t.Cleanup(m.reap)
	for _, o := range options {
		o(m)
	}
	return m
}

// envoyPID is the process number of the Envoy that the agent started last; 0 if there is none.
func (m *mesh) envoyPID() int {
	var state struct{ PID int }
	text, err := os.ReadFile(filepath.Join(m.Data, "envoy.state.json"))
	if err != nil || json.Unmarshal(text, &state) != nil {
		return 0
	}
	return state.PID
}

// reap ends an Envoy that no agent has stopped.
func (m *mesh) reap() {
	if pid := m.envoyPID(); pid > 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may be gone already
	}
}

// shortTempDir is a temporary folder whose path leaves room for a Unix socket's.
func shortTempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ch")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (m *mesh) startControl() {
	m.t.Helper()
	m.Control = spawn(m.t, nil, tool(m.t, "CHANDLER_BIN"), "control",
		"--source", "dir:"+m.Dir, "--xds", m.ControlXDS, "--monitoring", m.Monitoring)
}

func (m *mesh) startAgent() {
	m.t.Helper()
	args := append([]string{"agent",
		"--control", m.ControlXDS, "--data", m.Data, "--proxy", m.Proxy, "--envoy", tool(m.t, "CHANDLER_ENVOY"),
		"--namespace", "istio-system", "--labels", "istio=ingressgateway",
		"--admin", m.Admin, "--status", m.AgentHTTP}, m.AgentArgs...)
	m.Agent = spawn(m.t, m.AgentEnv, tool(m.t, "CHANDLER_BIN"), args...)
}

// serving waits until the gateway answers.
func (m *mesh) serving() {
	m.t.Helper()
	// A connection that is kept would hold up Envoy's drain when the test ends.
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	eventually(m.t, "gateway serves", func() error {
		a, err := get(c, "http://"+m.Gateway+"/")
		if err == nil && a.status != http.StatusOK && a.status != http.StatusForbidden {
			err = fmt.Errorf("answer %+v", a)
		}
		return err
	})
}

// write puts a resource file in place as an editor does: whole, by renaming.
func (m *mesh) write(name, content string) {
	m.t.Helper()
	tmp := filepath.Join(m.Dir, "."+name+".tmp")
	if err := os.WriteFile(tmp, []byte(content), 0o600); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(m.Dir, name)); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mesh) remove(name string) {
	m.t.Helper()
	if err := os.Remove(filepath.Join(m.Dir, name)); err != nil {
		m.t.Fatal(err)
	}
}

// metric is the value of one series of the agent's or the control plane's metrics; 0 if there is none.
func (m *mesh) metric(addr, series string) float64 {
	m.t.Helper()
	a, err := get(http.DefaultClient, "http://"+addr+"/metrics")
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range strings.Lines(a.body) {
		var v float64
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			if _, err := fmt.Sscan(rest, &v); err != nil {
				m.t.Fatalf("metric %s: %v", line, err)
			}
			return v
		}
	}
	return 0
}

// An answer is what one request got. A plugin that adds x-wasm is seen in it.
type answer struct {
	status int
	wasm   string // headers x-wasm, joined by commas
	body   string
	err    string // no answer at all
}

func get(c *http.Client, url string) (answer, error) {
	res, err := c.Get(url)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	return answer{status: res.StatusCode, wasm: strings.Join(res.Header.Values("x-wasm"), ","), body: string(body)}, err
}

// get asks the gateway once, on a connection of its own.
func (m *mesh) get(path string) answer {
	m.t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	a, err := get(c, "http://"+m.Gateway+path)
	if err != nil {
		m.t.Fatal(err)
	}
	return a
}

// answers waits until the gateway's answer has that status and x-wasm header.
func (m *mesh) answers(status int, wasm string) {
	m.t.Helper()
	eventually(m.t, fmt.Sprintf("answer %d with x-wasm %q", status, wasm), func() error {
		if a := m.get("/"); a.status != status || a.wasm != wasm {
			return fmt.Errorf("answer %+v", a)
		}
		return nil
	})
}

// A load is a steady stream of requests from several clients, half of them on
// kept connections, half on new ones.
type load struct {
	t    testing.TB
	stop context.CancelFunc
	wg   sync.WaitGroup
	mu   sync.Mutex
	seen map[answer]int // body left out
}

// load starts requests to the gateway.
func (m *mesh) load() *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{t: m.t, stop: cancel, seen: make(map[answer]int)}
	for i := range 6 {
		l.wg.Go(func() {
			tr := &http.Transport{DisableKeepAlives: i%2 == 0}
			defer tr.CloseIdleConnections()
			l.run(ctx, &http.Client{Transport: tr, Timeout: patience}, "http://"+m.Gateway+"/")
		})
	}
	m.t.Cleanup(func() { cancel(); l.wg.Wait() })
	return l
}

func (l *load) run(ctx context.Context, c *http.Client, url string) {
	for ctx.Err() == nil {
		a, err := get(c, url)
		if err != nil {
			a.err = err.Error()
		}
		a.body = ""
		l.mu.Lock()
		l.seen[a]++
		l.mu.Unlock()
		select { // some 200 requests a second a client are enough
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// total is how many answers there were.
func (l *load) total() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, k := range l.seen {
		n += k
	}
	return n
}

// more waits until n more answers have come.
func (l *load) more(n int) {
	l.t.Helper()
	from := l.total()
	eventually(l.t, "requests go on", func() error {
		if l.total() < from+n {
			return errors.New("too few answers")
		}
		return nil
	})
}

// only ends the load and fails the test if there was any answer but these.
func (l *load) only(allowed ...answer) {
	l.t.Helper()
	l.stop()
	l.wg.Wait()
	if l.total() == 0 {
		l.t.Error("no answers under load")
	}
	for a, n := range l.seen {
		ok := false
		for _, want := range allowed {
			ok = ok || a == want
		}
		if !ok {
			l.t.Errorf("%d of %d requests were answered %+v", n, l.total(), a)
		}
	}
}

// ok is the answer of a proxy whose plugin adds x-wasm; empty for none.
func ok(wasm string) answer { return answer{status: http.StatusOK, wasm: wasm} }

// extension finds the status of one extension at the control plane.
func (m *mesh) extension(name string) (status map[string]any) {
	m.t.Helper()
	a, err := get(http.DefaultClient, "http://"+m.Monitoring+"/debug/extensionz")
	if err != nil {
		m.t.Fatal(err)
	}
	var all []map[string]any
	if err := json.Unmarshal([]byte(a.body), &all); err != nil {
		m.t.Fatalf("extensionz: %v in %s", err, a.body)
	}
	for _, e := range all {
		if n, _ := e["name"].(string); strings.HasSuffix(n, name) {
			return e
		}
	}
	return nil
}
