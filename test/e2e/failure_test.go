//go:build e2e

package e2e

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// route is one more VirtualService, of which the gateway answers itself: a
// change of routes that a request can tell.
func route(path string, status int) string {
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: answer, namespace: default}
spec:
  hosts: [answer.example]
  gateways: [istio-system/gateway]
  http: [{match: [{uri: {exact: %s}}], directResponse: {status: %d}}]
`, path, status)
}

// routes waits until the gateway answers a path of answer.example with a status.
func (m *mesh) routes(path string, status int) {
	m.t.Helper()
	eventually(m.t, fmt.Sprintf("%s is answered %d", path, status), func() error {
		r, err := http.NewRequest(http.MethodGet, "http://"+m.Gateway+path, nil)
		if err != nil {
			return err
		}
		r.Host = "answer.example"
		res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(r)
		if err != nil {
			return err
		}
		res.Body.Close()
		if res.StatusCode != status {
			return fmt.Errorf("answered %d", res.StatusCode)
		}
		return nil
	})
}

// The agent is killed and comes back, while the registry is gone: no request is
// lost, nothing is fetched, and what was changed meanwhile takes effect.
func TestAgentKilled(t *testing.T) {
	r := startRegistry(t)
	url := r.push(t, "header:1", module(t, "agent"), "docker")
	m := start(t)
	m.write("plugin.yaml", plugin("header", url, "first"))
	m.answers(200, "first")
	m.runs("header")
	r.Stop(t)
	pid := m.envoyPID()
	before := m.configChanges()
	l := m.load()
	l.more(200)

	m.Agent.Kill()
	l.more(300)
	m.startAgent()
	m.ready()
	eventually(t, "agent looks after the extension again", func() error {
		if m.conversions() == 0 {
			return errors.New("no conversion")
		}
		return nil
	})
	m.runs("header")
	if diff := cmp.Diff(before, m.configChanges()); diff != "" {
		t.Errorf("Envoy's configuration was changed (-before +after):\n%s", diff)
	}
	l.more(200)
	l.only(ok("first"))

	l = m.load()
	m.write("plugin.yaml", plugin("header", url, "second"))
	m.answers(200, "second")
	m.write("route.yaml", route("/one", 418))
	m.routes("/one", 418)
	l.more(200)

	m.Agent.Kill()
	m.write("plugin.yaml", plugin("header", url, "third"))
	m.write("route.yaml", route("/two", 418))
	l.more(200)
	m.startAgent()
	m.answers(200, "third")
	m.routes("/two", 418)
	l.more(200)
	l.only(ok("first"), ok("second"), ok("third"))

	if got := m.fetches(); got != 0 {
		t.Errorf("%v modules were fetched again", got)
	}
	if got := m.envoyPID(); got != pid {
		t.Errorf("Envoy is process %d, was %d: it was not adopted", got, pid)
	}
	if log := m.Agent.Output(t); !strings.Contains(log, "envoy adopted") {
		t.Errorf("log does not tell that Envoy was adopted:\n%s", log)
	}
}

// The agent is told to stop while requests go on: those that the proxy has let
// in are answered; new ones are answered or not let in.
func TestAgentStopped(t *testing.T) {
	release := make(chan struct{})
	var waiting sync.WaitGroup
	var passed atomic.Int64 // requests that reached the backend
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			waiting.Done()
			<-release
			return
		}
		passed.Add(1)
	}))
	t.Cleanup(backend.Close)
	m := start(t, func(m *mesh) { m.write("gateway.yaml", gateway(m.Gateway, backend.Listener.Addr().String())) })
	pid := m.envoyPID()
	passed.Store(0)
	l := m.load()
	l.more(200)

	const slow = 8
	waiting.Add(slow)
	answers := make(chan answer, slow)
	var asking sync.WaitGroup
	for range slow {
		asking.Go(func() { answers <- page("http://" + m.Gateway + "/slow") })
	}
	waiting.Wait()
	if err := m.Agent.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "no more clients are let in", func() error {
		c, err := net.Dial("tcp", m.Gateway)
		if err == nil {
			c.Close()
			return errors.New("still listening")
		}
		return nil
	})
	if len(answers) > 0 {
		t.Errorf("%d slow requests were answered early: %+v", len(answers), <-answers)
	}
	close(release)
	asking.Wait()
	close(answers)
	for a := range answers {
		if a.status != http.StatusOK {
			t.Errorf("a request that was under way was answered %+v", a)
		}
	}
	<-m.Agent.Done
	if code := m.Agent.Cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("agent exits with %d", code)
	}
	if err := syscall.Kill(pid, 0); m.Proxy == "envoy" && !errors.Is(err, syscall.ESRCH) {
		t.Errorf("Envoy is still there: %v", err)
	}
	// A connection that waits to be let in while the port is closed is reset by
	// the kernel, instead of refused: the proxy never saw it.
	l.check(func(a answer) bool {
		return a == ok("") || strings.HasSuffix(a.err, "connection refused") || strings.HasSuffix(a.err, "connection reset by peer")
	})
	if got := passed.Load(); got != int64(l.seen[ok("")]) {
		t.Errorf("%d requests reached the backend, %d were answered", got, l.seen[ok("")])
	}
}

// The control plane is killed and comes back. Proxies lose nothing, are not
// sent again what they have, and get what changed.
func TestControlKilled(t *testing.T) {
	s := startShelf(t)
	url := s.put("header.wasm", module(t, "control"))
	m := start(t)
	m.write("plugin.yaml", plugin("header", url, "first"))
	m.write("route.yaml", route("/one", 418))
	m.answers(200, "first")
	m.routes("/one", 418)
	m.runs("header")
	l := m.load()
	l.more(200)

	before, converted := m.configChanges(), m.conversions()
	m.Control.Kill()
	l.more(200)
	m.startControl()
	m.isConnected()
	m.runs("header")
	if diff := cmp.Diff(before, m.configChanges()); diff != "" {
		t.Errorf("Envoy's configuration was changed (-before +after):\n%s", diff)
	}
	if got := m.conversions(); got != converted {
		t.Errorf("extension was sent again: %v conversions, %v before", got, converted)
	}
	l.more(200)
	l.only(ok("first"))

	l = m.load()
	m.Control.Kill()
	m.write("plugin.yaml", plugin("header", url, "second"))
	m.write("route.yaml", route("/two", 418))
	l.more(200)
	pauses := m.attempts(6)
	m.startControl()
	m.answers(200, "second")
	m.routes("/two", 418)
	l.more(200)
	l.only(ok("first"), ok("second"))

	// 100 ms, each time 1.6 times as long, give or take a fifth
	if last := pauses[len(pauses)-1]; last < 4*100*time.Millisecond {
		t.Errorf("agent does not wait longer and longer between attempts to connect: %v", pauses)
	}
}

// isConnected waits until the control plane knows of a proxy.
func (m *mesh) isConnected() {
	m.t.Helper()
	eventually(m.t, "proxy connects to the control plane", func() error {
		if a := page("http://" + m.Monitoring + "/debug/syncz"); !strings.Contains(a.body, `"proxy_type": "router"`) {
			return fmt.Errorf("syncz: %+v", a)
		}
		return nil
	})
}

// attempts stands in for the control plane, turns n connections away, and
// returns the pauses between them.
func (m *mesh) attempts(n int) []time.Duration {
	m.t.Helper()
	l, err := net.Listen("tcp", m.ControlXDS)
	if err != nil {
		m.t.Fatal(err)
	}
	defer l.Close()
	var pauses []time.Duration
	var last time.Time
	for len(pauses) < n-1 {
		if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(patience)); err != nil {
			m.t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			m.t.Fatalf("agent does not connect again after %v: %v", pauses, err)
		}
		c.Close()
		if !last.IsZero() {
			pauses = append(pauses, time.Since(last))
		}
		last = time.Now()
	}
	return pauses
}

// Agent and proxy start before the control plane is there, the control plane
// before its resources are there or can be read.
func TestControlAwayAtStart(t *testing.T) {
	m := prepare(t)
	gatewayText, err := os.ReadFile(filepath.Join(m.Dir, "gateway.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	m.remove("gateway.yaml")
	m.startAgent()
	eventually(t, "agent says why it is not ready", func() error {
		a := page("http://" + m.AgentHTTP + "/healthz/ready")
		if a.status != http.StatusServiceUnavailable || a.body == "" {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})

	// A folder that cannot be read, not even by root: a link to itself.
	away := m.Dir + ".away"
	if err := errors.Join(os.Rename(m.Dir, away), os.Symlink(m.Dir, m.Dir)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(away) })
	m.startControl()
	eventually(t, "control plane says what is wrong", func() error {
		if log := m.Control.Output(t); !strings.Contains(log, m.Dir+": cannot be read") {
			return fmt.Errorf("log:\n%s", log)
		}
		return nil
	})
	if err := errors.Join(os.Remove(m.Dir), os.Rename(away, m.Dir)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "problem is gone", func() error {
		if all := m.problems(); len(all) > 0 {
			return fmt.Errorf("problems: %+v", all)
		}
		return nil
	})
	m.ready() // a proxy without anything to do is ready to do that

	m.write("gateway.yaml", string(gatewayText))
	m.serving()
	l := m.load()
	l.more(100)
	l.only(ok(""))
}

// Envoy is killed: it comes back by itself, with its plugin, from the store.
func TestEnvoyKilled(t *testing.T) {
	s := startShelf(t)
	m := start(t)
	m.write("plugin.yaml", plugin("header", s.put("header.wasm", module(t, "envoy")), "first"))
	m.answers(200, "first")
	m.runs("header")
	s.server.Close()
	l := m.load()
	l.more(200)

	pid := m.envoyPID()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another Envoy serves", func() error {
		if now := m.envoyPID(); now == pid || now == 0 {
			return fmt.Errorf("process %d", now)
		}
		if a := page("http://" + m.Gateway + "/"); a != (answer{status: 200, wasm: "first", body: "backend\n"}) {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
	// What fails is not answered at all; no request gets past the plugin.
	l.check(func(a answer) bool { return a == ok("first") || a.err != "" && a.status == 0 })

	l = m.load()
	l.more(300)
	l.only(ok("first"))
	if got := m.fetches(); got != 1 {
		t.Errorf("%v fetches, want the first only", got)
	}
	if log := m.Agent.Output(t); !strings.Contains(log, "envoy died") {
		t.Errorf("log does not tell that Envoy died:\n%s", log)
	}
}

// An Envoy that cannot start is not tried for ever; one that has run before is,
// less and less often.
func TestEnvoyExitsAtOnce(t *testing.T) {
	t.Run("never ran", func(t *testing.T) {
		m := prepare(t)
		m.AgentArgs = []string{"--", "--no-such-option"}
		m.startControl()
		m.startAgent()
		eventually(t, "agent gives up", func() error {
			select {
			case <-m.Agent.Done:
				return nil
			default:
				return errors.New("runs")
			}
		})
		if code := m.Agent.Cmd.ProcessState.ExitCode(); code != 1 {
			t.Errorf("agent exits with %d, want 1", code)
		}
		log := m.Agent.Output(t)
		for _, say := range []string{"exited at every start", "exit status 1", "no-such-option"} {
			if !strings.Contains(log, say) {
				t.Errorf("log does not say %q:\n%s", say, log)
			}
		}
	})
	t.Run("ran before", func(t *testing.T) {
		broken := filepath.Join(t.TempDir(), "broken")
		wrapper := filepath.Join(t.TempDir(), "envoy")
		script := fmt.Sprintf("#!/bin/sh\nif [ -e %s ]; then echo 'out of order' >&2; exit 3; fi\nexec %s \"$@\"\n", broken, tool(t, "CHANDLER_ENVOY"))
		if err := os.WriteFile(wrapper, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		m := start(t, func(m *mesh) { m.AgentArgs = []string{"--envoy", wrapper} })
		eventually(t, "agent has seen Envoy live", func() error {
			if a := page("http://" + m.AgentHTTP + "/healthz/ready"); a.status != http.StatusOK {
				return errors.New(a.body)
			}
			return nil
		})
		if err := os.WriteFile(broken, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(m.envoyPID(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		said := regexp.MustCompile(`envoy died.*exit status 3.*restart_in=(\S+)`)
		var pauses [][]string
		eventually(t, "Envoy dies again and again", func() error {
			if pauses = said.FindAllStringSubmatch(m.Agent.Output(t), -1); len(pauses) < 4 {
				return fmt.Errorf("%q", pauses)
			}
			return nil
		})
		last := time.Duration(0)
		for _, p := range pauses {
			pause, err := time.ParseDuration(p[1])
			if err != nil || pause <= last {
				t.Errorf("pause %v after one of %v (%v)", pause, last, err)
			}
			last = pause
		}
		if a := page("http://" + m.AgentHTTP + "/healthz/ready"); a.status != http.StatusServiceUnavailable {
			t.Errorf("readiness while Envoy is away: %+v", a)
		}
		if err := os.Remove(broken); err != nil {
			t.Fatal(err)
		}
		m.serving()
		m.ready()
	})
}

// The disk is full: a module that does not fit is refused, and nothing is left
// of it. When there is room it arrives by itself.
func TestDiskFull(t *testing.T) {
	modules := t.TempDir()
	if err := syscall.Mount("none", modules, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mount a small disk (this needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(modules, 0); err != nil {
			t.Error(err)
		}
	})
	s := startShelf(t)
	m := start(t, func(m *mesh) { m.AgentArgs = []string{"--modules", modules} })
	m.write("plugin.yaml", plugin("header", s.put("small.wasm", module(t, "small")), "first"))
	m.answers(200, "first")
	before := list(t, modules)
	l := m.load()
	l.more(200)

	filling := make([]byte, 3<<20)
	rand.Read(filling)
	m.write("plugin.yaml", plugin("header", s.put("large.wasm", module(t, string(filling))), "second"))
	m.refusal("header", "large.wasm", "no space left")
	if diff := cmp.Diff(before, list(t, modules)); diff != "" {
		t.Errorf("something is left of a module that does not fit (-before +after):\n%s", diff)
	}
	l.more(200)
	l.only(ok("first"))

	l = m.load()
	if err := syscall.Mount("none", modules, "tmpfs", syscall.MS_REMOUNT, "size=16m"); err != nil {
		t.Fatal(err)
	}
	m.answers(200, "second")
	m.runs("header")
	l.more(100)
	l.only(ok("first"), ok("second"))
}

// list is the files below a folder.
func list(t testing.TB, dir string) []string {
	t.Helper()
	var names []string
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, _ fs.DirEntry, err error) error {
		names = append(names, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// A file in the store that is not what it was is not given to Envoy.
func TestStoreDamaged(t *testing.T) {
	s := startShelf(t)
	m := start(t)
	m.write("plugin.yaml", plugin("header", s.put("header.wasm", module(t, "damaged")), "first"))
	m.answers(200, "first")
	for name, damage := range map[string]func(module []byte) []byte{
		"nothing":   func(module []byte) []byte { return module },
		"truncated": func(module []byte) []byte { return module[:len(module)/2] },
		"empty":     func([]byte) []byte { return nil },
		"flipped":   func(module []byte) []byte { module[len(module)/2] ^= 0xff; return module },
	} {
		t.Run(name, func(t *testing.T) {
			m.Agent.Stop(t)
			stored, err := filepath.Glob(filepath.Join(m.Data, "modules", "*.wasm"))
			if err != nil || len(stored) != 1 {
				t.Fatalf("stored modules: %v, %v", stored, err)
			}
			text, err := os.ReadFile(stored[0])
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(stored[0], damage(bytes.Clone(text)), 0o444); err != nil {
				t.Fatal(err)
			}
			m.startAgent()
			eventually(t, "gateway serves", func() error {
				if a := page("http://" + m.Gateway + "/"); a.status != 200 || a.wasm != "first" {
					return fmt.Errorf("%+v", a)
				}
				return nil
			})
			want := 1.0
			if name == "nothing" {
				want = 0
			}
			if got := m.fetches(); got != want {
				t.Errorf("%v fetches after this damage, want %v", got, want)
			}
			if now, err := os.ReadFile(stored[0]); err != nil || !bytes.Equal(now, text) {
				t.Errorf("the store was not mended: %d bytes, want %d (%v)", len(now), len(text), err)
			}
		})
	}
}

// Two agents of one machine share their modules: what one has fetched the other has.
func TestModulesShared(t *testing.T) {
	s := startShelf(t)
	modules := t.TempDir()
	share := func(m *mesh) { m.AgentArgs = []string{"--modules", modules} }
	url := s.put("header.wasm", module(t, "shared"))
	a, b := start(t, share), start(t, share)
	a.write("plugin.yaml", plugin("header", url, "first"))
	a.answers(200, "first")
	a.runs("header") // and so it is stored for good
	b.write("plugin.yaml", plugin("header", url, "second"))
	b.answers(200, "second")
	if asked, _ := s.count("header.wasm"); asked != 1 {
		t.Errorf("%d requests for the module, want 1", asked)
	}
	if got := a.fetches() + b.fetches(); got != 1 {
		t.Errorf("%v fetches in all, want 1", got)
	}
}

// The same, if both want it at the same instant, when they start.
func TestModulesSharedFromTheStart(t *testing.T) {
	s := startShelf(t)
	modules := t.TempDir()
	url := s.put("header.wasm", module(t, "from the start"))
	release := s.hold("header.wasm")
	defer release()
	var both []*mesh
	for range 2 {
		m := prepare(t, func(m *mesh) { m.AgentArgs = []string{"--modules", modules} })
		m.write("plugin.yaml", plugin("header", url, "first"))
		m.startControl()
		both = append(both, m)
	}
	for _, m := range both {
		m.startAgent()
	}
	for _, m := range both {
		eventually(t, "module is looked for", func() error {
			if m.lookups() == 0 {
				return errors.New("not yet")
			}
			return nil
		})
	}
	release()
	for _, m := range both {
		m.serving()
		m.answers(200, "first")
	}
	if asked, _ := s.count("header.wasm"); asked != 1 {
		t.Errorf("%d requests for the module, want 1", asked)
	}
}

// lookups is how often an agent has looked for a module that it had not; 0 as long as it
// does not tell.
func (m *mesh) lookups() float64 {
	if a := page("http://" + m.AgentHTTP + "/metrics"); a.status != http.StatusOK {
		return 0
	}
	return m.metric(m.AgentHTTP, missed)
}
