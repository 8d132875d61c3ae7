package envoytest

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long a process may take to end.
const patience = 30 * time.Second

// A Process is a program that runs until its test ends, if not for less.
type Process struct {
	Cmd  *exec.Cmd
	Log  string        // path of what it prints
	Done chan struct{} // closed when it has ended
}

// Start starts a program, with more in its environment than this process has. When the
// test ends it is terminated, and the last of what it printed is shown if the test failed.
func Start(t testing.TB, env []string, program string, args ...string) *Process {
	t.Helper()
	// A file, not a pipe of ours, so that what it starts can outlive it.
	out, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	p := &Process{Cmd: exec.Command(program, args...), Log: out.Name(), Done: make(chan struct{})}
	p.Cmd.Stdout, p.Cmd.Stderr = out, out
	p.Cmd.Env = append(os.Environ(), env...)
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.Cmd.Wait() // how it ended is in its log
		close(p.Done)
	}()
	t.Cleanup(func() {
		p.Stop(t)
		out.Close()
		if t.Failed() {
			text, err := os.ReadFile(p.Log)
			t.Logf("%s %s (%v):\n%s", filepath.Base(program), strings.Join(args, " "), err, text[max(0, len(text)-12_000):])
		}
	})
	return p
}

// PID is the process's number.
func (p *Process) PID() int { return p.Cmd.Process.Pid }

// Output is what p has printed so far.
func (p *Process) Output(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(p.Log)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Stop terminates p and waits until it is gone.
func (p *Process) Stop(t testing.TB) {
	t.Helper()
	_ = p.Cmd.Process.Signal(syscall.SIGTERM) // it may be gone already
	kill := time.NewTimer(patience)
	defer kill.Stop()
	select {
	case <-p.Done:
	case <-kill.C:
		t.Errorf("%s does not end on SIGTERM", p.Cmd.Path)
		p.Kill()
	}
}

// Kill ends p as a crash would.
func (p *Process) Kill() {
	_ = p.Cmd.Process.Kill() // it may be gone already
	<-p.Done
}

// An Envoy is a real one, of CHANDLER_ENVOY, without an agent.
type Envoy struct {
	*Process
	Admin string // host:port
}

// StartEnvoy starts Envoy with a bootstrap, in YAML or JSON, which is made for the address
// of its admin interface. It does not wait for anything.
func StartEnvoy(t testing.TB, bootstrap func(adminHost, adminPort string) string, args ...string) *Envoy {
	t.Helper()
	port := Port(t)
	file := filepath.Join(t.TempDir(), "envoy.yaml")
	if err := os.WriteFile(file, []byte(bootstrap("127.0.0.1", fmt.Sprint(port))), 0o600); err != nil {
		t.Fatal(err)
	}
	args = append([]string{"-c", file, "--disable-hot-restart", "--concurrency", "2", "-l", "warning"}, args...)
	return &Envoy{Start(t, nil, Tool(t, "CHANDLER_ENVOY"), args...), Loopback(port)}
}

// Get is what the admin interface answers to a path.
func (e *Envoy) Get(path string) (string, error) {
	res, err := http.Get("http://" + e.Admin + path) //nolint:noctx // a test
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s is answered %s", path, res.Status)
	}
	return string(body), err
}

// Live waits until Envoy serves.
func (e *Envoy) Live(t testing.TB, w Wait) {
	t.Helper()
	w.Until(t, "Envoy is live", func() error {
		_, err := e.Get("/ready")
		return err
	})
}
