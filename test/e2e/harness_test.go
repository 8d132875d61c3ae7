//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chandler-proxy/chandler/internal/envoy/envoytest"
)

// patience is how long anything that must happen may take.
const patience = 30 * time.Second

// tool is the path of a program that the tests need, from the environment.
func tool(t testing.TB, variable string) string {
	t.Helper()
	return envoytest.Tool(t, variable)
}

// freePort is a loopback port that nothing listens on.
func freePort(t testing.TB) int {
	t.Helper()
	return envoytest.Port(t)
}

func loopback(port int) string { return envoytest.Loopback(port) }

// eventually waits until f is nil.
func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	envoytest.Wait{Patience: patience, Every: 10 * time.Millisecond}.Until(t, what, f)
}

// A process is a program under test or beside it.
type process = envoytest.Process

// spawn starts one.
func spawn(t testing.TB, env []string, name string, args ...string) *process {
	t.Helper()
	return envoytest.Start(t, env, name, args...)
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
	return envoytest.ShortDir(t)
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
