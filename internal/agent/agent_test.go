package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/part"
)

// roleVar makes the test binary play a part: an Envoy, or an agent.
const roleVar = "CHANDLER_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVar) {
	case "":
		os.Exit(m.Run())
	case "envoy":
		playEnvoy()
	case "agent":
		playAgent(os.Args[1])
	}
}

// playEnvoy stands in for an Envoy that is live at once.
func playEnvoy() {
	signal.Ignore(syscall.SIGPIPE)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	admin := os.Args[slices.Index(os.Args, "--admin-address-path")+1]
	if err := os.WriteFile(admin, []byte(l.Addr().String()), 0o600); err != nil {
		panic(err)
	}
	http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ready":
			io.WriteString(w, "LIVE\n")
		case "/stats":
			io.WriteString(w, "listener.admin.downstream_cx_active: 1\n")
		case "/stats/prometheus":
			io.WriteString(w, "# TYPE envoy_server_live gauge\nenvoy_server_live{} 1\n")
		}
	}))
}

// A startup is what an agent in a process of its own is told.
type startup struct {
	Upstream, DataDir, Envoy string
}

func (s startup) config() Config {
	return Config{
		Upstream:  s.Upstream,
		DataDir:   s.DataDir,
		Envoy:     s.Envoy,
		EnvoyArgs: []string{"--concurrency", "2", "-l", "error"},
		Proxy:     mesh.Proxy{Role: mesh.Router, Name: "gateway", Namespace: "default"},
		Admin:     netip.MustParseAddrPort("127.0.0.1:0"),
	}
}

// playAgent runs an agent until it is killed.
func playAgent(text string) {
	var s startup
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		panic(err)
	}
	os.Unsetenv(roleVar)
	cfg := s.config()
	cfg.Log = slog.New(slog.NewJSONHandler(os.Stdout, nil))
	var err error
	if cfg.Status, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		panic(err)
	}
	cfg.Log.Error("agent ended", "err", Run(context.Background(), cfg))
}

// An anAgent is a running agent, and what it logs.
type anAgent struct {
	t      *testing.T
	events chan string
	status string // address
	health string // address
	stop   context.CancelFunc
	ended  chan error
}

func runAgent(t *testing.T, cfg Config) *anAgent {
	t.Helper()
	status, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	a := &anAgent{t: t, events: make(chan string, 1000), status: status.Addr().String(), ended: make(chan error, 1)}
	go func() {
		for dec := json.NewDecoder(r); ; {
			var e struct{ Msg string }
			if dec.Decode(&e) != nil {
				return
			}
			a.events <- e.Msg
		}
	}()
	health, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a.health = health.Addr().String()
	cfg.Status, cfg.Health, cfg.Log = status, health, slog.New(slog.NewJSONHandler(w, nil))
	ctx, stop := context.WithCancel(t.Context())
	a.stop = stop
	go func() { a.ended <- Run(ctx, cfg) }()
	t.Cleanup(func() { a.end(); r.Close() })
	return a
}

// want waits until the agent logs msg.
func (a *anAgent) want(msg string) {
	a.t.Helper()
	for {
		select {
		case got := <-a.events:
			if got == msg {
				return
			}
		case err := <-a.ended:
			a.ended <- err
			a.t.Fatalf("Run returned %v before %q", err, msg)
		}
	}
}

func (a *anAgent) end() error {
	a.stop()
	return a.wait()
}

func (a *anAgent) wait() error {
	err := <-a.ended
	a.ended <- err
	return err
}

// ask asks the agent's status port.
func (a *anAgent) ask(method, path string) (int, string) {
	a.t.Helper()
	return a.askAt(a.status, method, path)
}

func (a *anAgent) askAt(address, method, path string) (int, string) {
	a.t.Helper()
	req, err := http.NewRequest(method, "http://"+address+path, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestRun(t *testing.T) {
	t.Setenv(roleVar, "envoy")
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	start := startup{Upstream: nobody.Addr().String(), DataDir: t.TempDir(), Envoy: os.Args[0]}
	a := runAgent(t, start.config())
	a.want("envoy live")

	if code, body := a.ask("GET", "/healthz/ready"); code != 503 || !strings.Contains(body, "has not answered") {
		t.Errorf("ready: %d %s; want 503, for there is no control plane", code, body)
	}
	if code, body := a.askAt(a.health, "GET", "/healthz/ready"); code != 503 || !strings.Contains(body, "has not answered") {
		t.Errorf("ready at the port for health: %d %s; want 503", code, body)
	}
	_, metrics := a.ask("GET", "/metrics")
	parses(t, metrics)
	for _, want := range []string{
		"istio_agent_wasm_cache_entries 0\n",
		`istio_agent_wasm_cache_lookup_count{hit="false"} 0` + "\n",
		"istio_agent_go_goroutines ", "istio_agent_process_",
		"envoy_server_live{} 1\n",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics are without %q", want)
		}
	}
	if _, err := os.Stat(filepath.Join(start.DataDir, socketFile)); err != nil {
		t.Error(err)
	}
	second := runAgent(t, start.config())
	if err := second.wait(); !errors.Is(err, ErrInUse) {
		t.Errorf("second Run on the same directory = %v, want %v", err, ErrInUse)
	}
	if code, _ := a.askAt(a.health, "POST", "/quitquitquit"); code != 404 {
		t.Errorf("quitquitquit at the port for health: %d", code)
	}
	if code, _ := a.ask("POST", "/quitquitquit"); code != 200 {
		t.Errorf("quitquitquit: %d", code)
	}
	if err := a.wait(); err != nil {
		t.Errorf("Run = %v", err)
	}
}

func TestRunRefuses(t *testing.T) {
	whole := Config{Upstream: "c:1", Envoy: os.Args[0], Log: slog.New(slog.DiscardHandler), DataDir: t.TempDir()}
	for _, tt := range []struct {
		name, want string
		change     func(*Config)
	}{
		{"no upstream", "upstream is required", func(c *Config) { c.Upstream = "" }},
		{"an upstream without a port", "upstream foo is not HOST:PORT", func(c *Config) { c.Upstream = "foo" }},
		{"a port that is none", "upstream foo:x is not HOST:PORT", func(c *Config) { c.Upstream = "foo:x" }},
		{"no envoy", "path of envoy is required", func(c *Config) { c.Envoy = "" }},
		{"no log", "log is required", func(c *Config) { c.Log = nil }},
		{"no proxy", "name and namespace are required", func(*Config) {}},
		{"own bootstrap without admin", "admin.address is missing", func(c *Config) { c.EnvoyArgs = []string{"-c", "/dev/null"} }},
		{"no such envoy", "no such file", func(c *Config) {
			c.Envoy, c.Proxy = "/nonexistent/envoy", mesh.Proxy{Role: mesh.Router, Name: "a", Namespace: "b"}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := whole
			tt.change(&cfg)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			cfg.Status = l
			if err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Run = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

// What Envoy stands on does not end before Envoy has.
func TestStage(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	g, ctx := errgroup.WithContext(ctx)
	draining, drained := make(chan struct{}), make(chan struct{})
	after := stage(ctx, g, "envoy", func(ctx context.Context) error {
		<-ctx.Done()
		close(draining)
		<-drained
		return nil
	})
	stop()
	<-draining
	if after.Err() != nil {
		t.Error("ended with ctx")
	}
	close(drained)
	<-after.Done()
	if err := g.Wait(); err != nil {
		t.Errorf("error = %v", err)
	}
}

// A part that returns early is an error, and ends the others.
func TestStageStopsAll(t *testing.T) {
	g, ctx := errgroup.WithContext(t.Context())
	after := stage(ctx, g, "envoy", func(ctx context.Context) error {
		<-ctx.Done()
		return nil
	})
	g.Go(part.Run(after, "xds relay", func(context.Context) error { return nil }))
	if err := g.Wait(); err == nil || err.Error() != "xds relay: stopped" {
		t.Errorf("error = %v", err)
	}
}
