package modcache

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/fetch/fetchtest"
	"github.com/chandler-proxy/chandler/internal/fetch/httpget"
	"github.com/chandler-proxy/chandler/internal/module"
)

// A server of one module, which counts downloads and may stop in the middle of them.
type server struct {
	*httptest.Server
	module []byte

	mu        sync.Mutex
	downloads int
	stuck     int           // downloads, from the first, that get no further than the half
	half      chan struct{} // gets one for each of these, there
	end       chan struct{} // closed with the test
}

func startServer(t *testing.T, stuck int) *server {
	s := &server{module: fetchtest.Module(1 << 20), stuck: stuck, half: make(chan struct{}, 10), end: make(chan struct{})}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		close(s.end)
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.downloads++
	stuck := s.downloads <= s.stuck
	s.mu.Unlock()
	w.Header().Set("Content-Length", fmt.Sprint(len(s.module)))
	half := len(s.module) / 2
	w.Write(s.module[:half])
	if stuck {
		_ = http.NewResponseController(w).Flush() // the client tells
		s.half <- struct{}{}
		select {
		case <-r.Context().Done():
		case <-s.end:
		}
		return
	}
	w.Write(s.module[half:])
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.downloads
}

// An agent is a process that gets a module when it is told to.
type agent struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Reader
}

// startAgent starts one that shares dir, and waits until it could start at once.
func startAgent(t *testing.T, dir, url string, patience time.Duration) *agent {
	t.Helper()
	a := &agent{t: t, cmd: exec.Command(os.Args[0], "-test.run=^TestAgent$")}
	a.cmd.Env = append(os.Environ(), "MODCACHE_TEST_DIR="+dir, "MODCACHE_TEST_URL="+url, "MODCACHE_TEST_PATIENCE="+patience.String())
	a.cmd.Stderr = t.Output()
	in, err := a.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = a.cmd.Process.Kill() // it may be gone already
		_ = a.cmd.Wait()
	})
	a.in, a.out = in, bufio.NewReader(out)
	a.says("ready")
	return a
}

func (a *agent) tell(what string) {
	a.t.Helper()
	if _, err := io.WriteString(a.in, what+"\n"); err != nil {
		a.t.Fatal(err)
	}
}

func (a *agent) says(want string) {
	a.t.Helper()
	if line, err := a.out.ReadString('\n'); err != nil || strings.TrimSpace(line) != want {
		a.t.Errorf("the agent says %q, %v, want %q", line, err, want)
	}
}

// TestAgent is an agent, in a process of its own.
func TestAgent(t *testing.T) {
	dir, url := os.Getenv("MODCACHE_TEST_DIR"), os.Getenv("MODCACHE_TEST_URL")
	if dir == "" {
		t.Skip("for the tests below")
	}
	tr := fetch.NewTransport(fetch.TransportConfig{})
	c, _ := newCache(t, dir, httpget.New(httpget.Config{Transport: tr}))
	patience, err := time.ParseDuration(os.Getenv("MODCACHE_TEST_PATIENCE"))
	if err != nil {
		t.Fatal(err)
	}
	c.cfg.Patience = patience
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	l, err := c.Get(t.Context(), want(t, url))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer l.Release()
	text, err := os.ReadFile(l.Path)
	fmt.Println("has", bytes.Equal(text, fetchtest.Module(1<<20)), err)
}

const hasIt = "has true <nil>"

// Agents that share a folder and want the same at the same instant fetch it once.
func TestAgentsTogetherFetchOnce(t *testing.T) {
	s, dir := startServer(t, 0), t.TempDir()
	agents := make([]*agent, 6)
	for i := range agents {
		agents[i] = startAgent(t, dir, s.URL, time.Minute)
	}
	for _, a := range agents {
		a.tell("go")
	}
	for _, a := range agents {
		a.says(hasIt)
	}
	if got := s.count(); got != 1 {
		t.Errorf("%d downloads for %d agents", got, len(agents))
	}
}

// One is killed in the middle of its download: of those who wait, one fetches.
func TestAgentKilledWhileItFetches(t *testing.T) {
	s, dir := startServer(t, 1), t.TempDir()
	agents := make([]*agent, 4)
	for i := range agents {
		agents[i] = startAgent(t, dir, s.URL, time.Hour)
	}
	agents[0].tell("go")
	<-s.half
	for _, a := range agents[1:] {
		a.tell("go")
	}
	if err := agents[0].cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, a := range agents[1:] {
		a.says(hasIt)
	}
	if got := s.count(); got != 2 {
		t.Errorf("%d downloads, want that of the dead and another", got)
	}
}

// One hangs in the middle of its download, or its server does: others do not.
func TestAgentHangsWhileItFetches(t *testing.T) {
	for name, hang := range map[string]func(*agent) error{
		"process": func(a *agent) error { return a.cmd.Process.Signal(syscall.SIGSTOP) },
		"server":  func(*agent) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := startServer(t, 1), t.TempDir()
			a, b := startAgent(t, dir, s.URL, time.Hour), startAgent(t, dir, s.URL, 100*time.Millisecond)
			a.tell("go")
			<-s.half
			if err := hang(a); err != nil {
				t.Fatal(err)
			}
			b.tell("go")
			b.says(hasIt)
			if got := s.count(); got != 2 {
				t.Errorf("%d downloads, want 2", got)
			}
		})
	}
}

// Within a process, what is wanted under other credentials is asked for with these, but
// not downloaded twice.
func TestTurnsWithinAProcess(t *testing.T) {
	s := newShelf()
	s.put(image, content(1))
	s.gate = make(chan struct{})
	c, _ := newCache(t, t.TempDir(), s)
	secret := want(t, image)
	secret.Secret = []byte("s3cret")
	var wg sync.WaitGroup
	for _, w := range []module.Want{want(t, image), secret} {
		wg.Go(func() {
			l, err := c.Get(t.Context(), w)
			if err != nil {
				t.Error(err)
			}
			l.Release()
		})
	}
	<-s.entered
	waiters(c, 2)
	close(s.gate)
	wg.Wait()
	if got := s.counts(); got != "2/1" {
		t.Errorf("asked and downloaded %s times, want 2/1", got)
	}
}
