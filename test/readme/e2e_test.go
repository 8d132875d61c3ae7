//go:build e2e

package readme

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A machine that does much else takes its time: a plugin in Go is compiled three times,
// once by Go's toolchain, then where it is tried and where it runs.
const (
	startup  = 2 * time.Minute // until chandler run is ready
	patience = 5 * time.Minute // until a command prints what it should
)

// TestExamples runs what each document shows against a chandler that runs what
// the document says to run, on the well-known ports. The commands see a copy
// of what they need of the project, so that they can edit it.
func TestExamples(t *testing.T) {
	sidecar := []string{"--id", "sidecar~127.0.0.2~httpbin.default~default.svc.cluster.local", "--labels", "app=httpbin"}
	for _, tt := range []struct {
		file string
		args []string
	}{
		{"examples/bookinfo/README.md", []string{"-f", "examples/bookinfo"}},
		{"examples/envoyfilter/README.md", []string{"-f", "examples/envoyfilter"}},
		{"examples/httpbin/README.md", append([]string{"-f", "examples/httpbin"}, sidecar...)},
		{"docs/authors.md", []string{"-f", "live"}},
	} {
		t.Run(tt.file+" on the engine", func(t *testing.T) { testExample(t, tt.file, tt.args) })
		t.Run(tt.file+" on Envoy", func(t *testing.T) {
			envoy := os.Getenv("CHANDLER_ENVOY")
			if envoy == "" {
				t.Fatal("CHANDLER_ENVOY is not set: run make e2e")
			}
			testExample(t, tt.file, slices.Concat(tt.args, []string{"--proxy", "envoy", "--envoy", envoy}))
		})
	}
}

// testExample runs what one document shows.
func testExample(t *testing.T, file string, args []string) {
	text, err := os.ReadFile("../../" + file)
	if err != nil {
		t.Fatal(err)
	}
	commands, err := Parse(file, string(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(commands) == 0 {
		t.Fatal("no commands")
	}
	dir := project(t)
	chandler(t, dir, args)
	for _, c := range commands {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err := c.Run(ctx, dir, nil)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// project makes a folder of what the commands in documents need of this project: the
// binary, the examples, the plugins' sources, and live, which a document has its reader make.
func project(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, part := range []string{"examples", "plugins"} {
		if err := os.CopyFS(filepath.Join(dir, part), os.DirFS("../../"+part)); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"go.mod", "go.sum", "examples/bookinfo/gateway.yaml", "examples/bookinfo/productpage.yaml", "examples/bookinfo/virtualservice.yaml"} {
		to := filepath.Join(dir, file)
		if strings.HasPrefix(file, "examples") {
			to = filepath.Join(dir, "live", filepath.Base(file))
		}
		text, err := os.ReadFile("../../" + file)
		err = errors.Join(err, os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, text, 0o600))
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { endLeftOver(t, filepath.Join(dir, "dev.pid")) })
	binary, err := filepath.Abs(os.Getenv("CHANDLER_BIN"))
	if err = errors.Join(err, os.Mkdir(filepath.Join(dir, "bin"), 0o755), os.Symlink(binary, filepath.Join(dir, "bin", "chandler"))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// endLeftOver ends a process that a document began and, since the test failed, did not
// end, if the file with its number is there.
func endLeftOver(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		return
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGTERM)
	}
	if err != nil {
		t.Errorf("end what %s names: %v", file, err)
	}
}

// chandler runs `chandler run args` in dir until the test ends; it returns when
// the proxy is ready.
func chandler(t *testing.T, dir string, args []string) {
	t.Helper()
	binary := os.Getenv("CHANDLER_BIN")
	if binary == "" {
		t.Fatal("CHANDLER_BIN is not set: run make e2e")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, binary, append([]string{"run", "--data", filepath.Join(dir, "data")}, args...)...)
	cmd.Dir = dir
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	var log safeBuffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() {
		cancel()
		if err := <-exited; err != nil && !strings.Contains(err.Error(), "context canceled") {
			t.Errorf("chandler run ended with %v", err)
		}
		if t.Failed() {
			t.Logf("log of chandler run:\n%s", log.String())
		}
	})

	deadline := time.After(startup)
	ticks := time.NewTicker(50 * time.Millisecond)
	defer ticks.Stop()
	for {
		select {
		case err := <-exited:
			exited <- err
			t.Fatalf("chandler run ended before it was ready: %v", err)
		case <-deadline:
			t.Fatalf("chandler run is not ready after %v", startup)
		case <-ticks.C:
			if ready(ctx) {
				return
			}
		}
	}
}

// ready asks the agent.
func ready(ctx context.Context) bool {
	r, err := http.NewRequestWithContext(ctx, "GET", "http://127.0.0.1:15020/healthz/ready", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// A safeBuffer takes what a process prints while others read it.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
