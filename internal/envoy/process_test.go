package envoy

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// roleVar makes the test binary play a part: envoy, or an agent that runs one.
const roleVar = "CHANDLER_TEST_ROLE"

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVar); role {
	case "":
		os.Exit(m.Run())
	case "agent":
		playAgent()
	default:
		playEnvoy(role)
	}
}

// playEnvoy stands in for Envoy: it serves an admin interface, says what it is
// asked on stdout, and ends at SIGTERM. By role it exits at once, dies without
// serving, or does not care for SIGTERM.
func playEnvoy(role string) {
	if role == "exit" {
		os.Exit(3)
	}
	signal.Ignore(syscall.SIGPIPE) // as Envoy does: who reads its output may be gone
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	var path string
	for i, arg := range os.Args {
		if arg == "--admin-address-path" {
			path = os.Args[i+1]
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			fmt.Println("asked", r.URL.Path)
		}
		switch {
		case r.URL.Path == "/ready" && role == "starting":
			http.Error(w, "INITIALIZING", http.StatusServiceUnavailable)
		case r.URL.Path == "/ready":
			io.WriteString(w, "LIVE\n")
		case r.URL.Path == "/stats":
			io.WriteString(w, "listener.admin.downstream_cx_active: 1\n")
		}
	}))
	if err := writeFile(path, []byte(l.Addr().String())); err != nil {
		panic(err)
	}
	fmt.Println("serving")
	for range term {
		fmt.Println("terminated")
		if role != "stubborn" {
			os.Exit(0)
		}
	}
}

// playAgent runs an Envoy until it is killed. Its arguments are the directory,
// the Envoy's path and the Envoy's arguments. What Envoy says goes into a pipe
// that breaks with the agent.
func playAgent() {
	os.Setenv(roleVar, "envoy")
	log := slog.New(slog.NewJSONHandler(os.Stdout, nil))
	err := run(context.Background(), Config{
		Dir: os.Args[1], Path: os.Args[2], Args: os.Args[3:],
		Bootstrap: []byte("{}"), Output: struct{ io.Writer }{os.Stderr}, Log: log,
	})
	log.Error("agent ended", "err", err)
}

func run(ctx context.Context, cfg Config) error {
	p, err := Open(ctx, cfg)
	if err != nil {
		return err
	}
	return p.Run(ctx)
}

// An event is one line of the Process's log.
type event struct {
	Msg string
	PID int
}

// A stage is a running Process and what it says.
type stage struct {
	*Process
	t      *testing.T
	events chan event
	output *bufio.Reader // what Envoy prints
	cancel context.CancelCauseFunc
	ended  chan error
}

// play runs a Process whose Envoy plays role.
func play(t *testing.T, role string, cfg Config) *stage {
	t.Helper()
	t.Setenv(roleVar, role)
	cfg.Path, cfg.Bootstrap = os.Args[0], append([]byte("{}"), cfg.Bootstrap...)
	return perform(t, cfg)
}

// perform runs a Process.
func perform(t *testing.T, cfg Config) *stage {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	s := &stage{t: t, events: make(chan event, 100), output: bufio.NewReader(r), ended: make(chan error, 1)}
	logR, logW := io.Pipe()
	go func() {
		for dec := json.NewDecoder(logR); ; {
			var e event
			if dec.Decode(&e) != nil {
				return
			}
			s.events <- e
		}
	}()
	t.Cleanup(func() { logR.Close() })
	cfg.Output, cfg.Log = w, slog.New(slog.NewJSONHandler(logW, nil))
	ctx, cancel := context.WithCancelCause(t.Context())
	s.cancel = cancel
	if s.Process, err = Open(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	go func() { s.ended <- s.Run(ctx) }()
	t.Cleanup(func() { s.end(nil) })
	return s
}

// want waits for an event.
func (s *stage) want(msg string) event {
	s.t.Helper()
	for {
		select {
		case e := <-s.events:
			if e.Msg == msg {
				return e
			}
		case err := <-s.ended:
			s.ended <- err
			s.t.Fatalf("Run returned %v before %q", err, msg)
		}
	}
}

// end stops the Process, waits for it and returns its error.
func (s *stage) end(cause error) error {
	s.cancel(cause)
	err := <-s.ended
	s.ended <- err
	return err
}

// says waits until Envoy prints line, and returns what it printed before.
func (s *stage) says(line string) (before []string) {
	s.t.Helper()
	for {
		got, err := s.output.ReadString('\n')
		if err != nil {
			s.t.Fatal(err)
		}
		if got = strings.TrimSpace(got); got == line {
			return before
		}
		before = append(before, got)
	}
}

func TestRunDrains(t *testing.T) {
	s := play(t, "envoy", Config{Dir: t.TempDir()})
	if s.Live() {
		t.Error("live before it was started")
	}
	s.want("envoy live")
	if err := s.Ready(t.Context()); err != nil || !s.Live() || s.Adopted() {
		t.Errorf("Ready = %v, Live = %v, Adopted = %v", err, s.Live(), s.Adopted())
	}
	if err := s.end(nil); err != nil {
		t.Errorf("Run = %v", err)
	}
	asked := strings.Join(s.says("terminated"), "|")
	if want := "serving|asked /healthcheck/fail|asked /drain_listeners"; asked != want {
		t.Errorf("before the end envoy said %q, want %q", asked, want)
	}
	if _, err := s.Admin(); !errors.Is(err, ErrNotRunning) || s.Live() {
		t.Errorf("after the end: Admin error = %v, Live = %v", err, s.Live())
	}
}

func TestRunNoDrain(t *testing.T) {
	s := play(t, "envoy", Config{Dir: t.TempDir()})
	s.want("envoy live")
	s.end(ErrNoDrain)
	if asked := s.says("terminated"); len(asked) != 1 {
		t.Errorf("before the end envoy said %q, want no more than that it serves", asked)
	}
}

// An Envoy that is only starting has nothing to drain and is stopped at once.
func TestRunCancelledWhileStarting(t *testing.T) {
	s := play(t, "starting", Config{Dir: t.TempDir()})
	s.says("serving")
	if err := s.end(nil); err != nil {
		t.Errorf("Run = %v", err)
	}
	if asked := s.says("terminated"); len(asked) != 0 {
		t.Errorf("envoy was asked %q", asked)
	}
}

func TestRunRestarts(t *testing.T) {
	s := play(t, "envoy", Config{Dir: t.TempDir()})
	first := s.want("envoy live")
	if err := syscall.Kill(first.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.want("envoy died")
	if second := s.want("envoy live"); second.PID == first.PID {
		t.Errorf("process %d is live again", second.PID)
	}
}

func TestRunKills(t *testing.T) {
	s := play(t, "stubborn", Config{Dir: t.TempDir(), Grace: 1})
	s.want("envoy live")
	s.cancel(nil)
	s.want("envoy killed")
	if err := s.end(nil); err != nil {
		t.Errorf("Run = %v", err)
	}
}

func TestRunGivesUp(t *testing.T) {
	s := play(t, "exit", Config{Dir: t.TempDir()})
	err := <-s.ended
	s.ended <- err
	var exit *exec.ExitError
	if !errors.Is(err, errNeverUp) || !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("Run = %v, want that it never came up, and exit status 3", err)
	}
}

func TestOpenMissingBinary(t *testing.T) {
	_, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "envoy"), Dir: t.TempDir()})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error = %v, want %v", err, os.ErrNotExist)
	}
}

// killAgent runs an agent in dir, with an Envoy and its arguments, and kills it
// when its Envoy is live. It returns the Envoy's pid.
func killAgent(t *testing.T, dir string, envoy ...string) int {
	t.Helper()
	agent := exec.Command(os.Args[0], append([]string{dir}, envoy...)...)
	agent.Env = append(os.Environ(), roleVar+"=agent")
	out, err := agent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	var e event
	for dec := json.NewDecoder(out); e.Msg != "envoy live"; {
		if err := dec.Decode(&e); err != nil {
			t.Fatal(err)
		}
	}
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	agent.Wait()
	if err := syscall.Kill(e.PID, 0); err != nil {
		t.Fatalf("envoy died with its agent: %v", err)
	}
	return e.PID
}

func TestOpenAdopts(t *testing.T) {
	dir := t.TempDir()
	pid := killAgent(t, dir, os.Args[0])
	s := play(t, "envoy", Config{Dir: dir})
	if !s.Live() {
		t.Error("an adopted Envoy that serves is not live from the first")
	}
	if e := s.want("envoy adopted"); e.PID != pid {
		t.Errorf("adopted process %d, want %d", e.PID, pid)
	}
	if !s.Adopted() {
		t.Error("not known as adopted")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.want("envoy died")
	s.want("envoy live")
	if s.Adopted() {
		t.Error("the one that was started in its place is known as adopted")
	}
}

func TestAdoptedIsStopped(t *testing.T) {
	dir := t.TempDir()
	pid := killAgent(t, dir, os.Args[0])
	s := play(t, "envoy", Config{Dir: dir})
	s.want("envoy adopted")
	s.cancel(nil)
	s.want("envoy draining")
	if err := s.end(nil); err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
}

// gone checks that process pid has ended. A zombie, for whoever inherited it to
// bury, has ended.
func gone(t *testing.T, pid int) {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err == nil && !strings.Contains(string(stat), ") Z ") {
		t.Errorf("process %d is there still: %s", pid, stat)
	}
}

func TestOpenReplaces(t *testing.T) {
	for _, tt := range []struct {
		name      string
		bootstrap string
		change    func(t *testing.T, dir string)
	}{
		{"other bootstrap", " ", func(*testing.T, string) {}},
		{"no state", "", func(t *testing.T, dir string) { remove(t, filepath.Join(dir, stateFile)) }},
		{"garbled state", "", func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, stateFile), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"no admin address", "", func(t *testing.T, dir string) { remove(t, filepath.Join(dir, adminFile)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			pid := killAgent(t, dir, os.Args[0])
			tt.change(t, dir)
			s := play(t, "envoy", Config{Dir: dir, Bootstrap: []byte(tt.bootstrap)})
			if e := s.want("envoy replaced"); e.PID != pid {
				t.Errorf("replaced process %d, want %d", e.PID, pid)
			}
			if e := s.want("envoy started"); e.PID == pid {
				t.Error("started the same process")
			}
			gone(t, pid)
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// A state file that names a process which is not Envoy, though it lives, is ignored.
func TestOpenStaleState(t *testing.T) {
	dir := t.TempDir()
	start, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(state{PID: os.Getpid(), Start: start})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, stateFile), text, 0o600); err != nil {
		t.Fatal(err)
	}
	s := play(t, "envoy", Config{Dir: dir})
	s.want("envoy live")
	if s.Adopted() {
		t.Error("adopted")
	}
}

func TestParseStartTime(t *testing.T) {
	const fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20"
	for _, command := range []string{"envoy", "a b", ") S 1 (", "(("} {
		got, err := parseStartTime([]byte("17 (" + command + ") " + fields))
		if err != nil || got != 4242 {
			t.Errorf("command %q: %d, %v; want 4242", command, got, err)
		}
	}
	if _, err := parseStartTime([]byte("17 (envoy) S 1")); err == nil {
		t.Error("a short line was accepted")
	}
}

func FuzzParseStartTime(f *testing.F) {
	f.Add([]byte("17 (envoy) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20"))
	f.Fuzz(func(t *testing.T, stat []byte) {
		if n, err := parseStartTime(stat); err == nil && !strings.Contains(string(stat), strconv.FormatUint(n, 10)) {
			t.Errorf("%d is not in %q", n, stat)
		}
	})
}
