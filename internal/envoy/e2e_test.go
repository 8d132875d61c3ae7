//go:build e2e

package envoy

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/chandler-proxy/chandler/internal/envoy/envoytest"
)

// realEnvoy is the path of Envoy's binary.
func realEnvoy(t *testing.T) string {
	t.Helper()
	return envoytest.Tool(t, "CHANDLER_ENVOY")
}

func TestRealBootstrapValid(t *testing.T) {
	for name := range bootstraps() {
		out, err := exec.Command(realEnvoy(t), "--mode", "validate", "-c", filepath.Join("testdata", name+".json")).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "OK") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if strings.Contains(string(out), "[warning]") || strings.Contains(string(out), "[error]") {
			t.Errorf("%s: envoy complains:\n%s", name, out)
		}
	}
}

// ownBootstrap has a listener that answers by itself, but sends /slow to
// backend. Filters go before the router.
const ownBootstrap = `
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  clusters:
  - name: backend
    load_assignment: {cluster_name: backend, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: BACKEND}}}}]}]}
  listeners:
  - name: http
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          route_config: {virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /slow}, route: {cluster: backend}}, {match: {prefix: /}, direct_response: {status: 200}}]}]}
          http_filters: [FILTERS{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
`

// ownArgs are Envoy's arguments for ownBootstrap.
func ownArgs(t *testing.T, backend, filters string) []string {
	t.Helper()
	text := strings.NewReplacer("BACKEND", backend, "FILTERS", filters).Replace(ownBootstrap)
	file := filepath.Join(t.TempDir(), "own.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"-c", file, "--concurrency", "2", "-l", "warning"}
}

// address is where the listener listens.
func (s *stage) address() string {
	s.t.Helper()
	a, err := s.Admin()
	if err != nil {
		s.t.Fatal(err)
	}
	list, err := a.Listeners(s.t.Context())
	if err != nil || len(list) != 1 {
		s.t.Fatalf("listeners: %v, %v", list, err)
	}
	return fmt.Sprintf("127.0.0.1:%d", list[0].GetLocalAddress().GetSocketAddress().GetPortValue())
}

// A load is clients that send requests one after another, each over a
// connection that it keeps until it is told to close it.
type load struct {
	wg      sync.WaitGroup
	stop    chan struct{}
	mu      sync.Mutex
	answers int
	failed  []string
}

// start sends load; it returns when every client has had an answer. A client
// ends when it is told to close its connection if polite, else goes on.
func (l *load) start(addr string, polite bool) {
	l.stop = make(chan struct{})
	var first sync.WaitGroup
	for range 16 {
		first.Add(1)
		l.wg.Go(func() { l.client(addr, polite, first.Done) })
	}
	first.Wait()
}

func (l *load) client(addr string, polite bool, first func()) {
	c := http.Client{Transport: new(http.Transport)}
	defer c.CloseIdleConnections()
	for once := sync.OnceFunc(first); ; once() {
		select {
		case <-l.stop:
			return
		default:
		}
		resp, err := c.Get("http://" + addr + "/")
		l.count(resp, err)
		if err != nil {
			once()
			return
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if polite && resp.Close {
			return
		}
	}
}

func (l *load) count(resp *http.Response, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err != nil:
		l.failed = append(l.failed, err.Error())
	case resp.StatusCode != http.StatusOK:
		l.failed = append(l.failed, resp.Status)
	default:
		l.answers++
	}
}

// check waits for all clients and fails the test if any request was lost.
func (l *load) check(t *testing.T) {
	t.Helper()
	l.wg.Wait()
	t.Logf("%d requests answered", l.answers)
	if len(l.failed) > 0 {
		t.Errorf("%d requests failed, the first: %s", len(l.failed), l.failed[0])
	}
}

func TestRealRestart(t *testing.T) {
	s := perform(t, Config{Path: realEnvoy(t), Args: ownArgs(t, "1", ""), Dir: t.TempDir()})
	first := s.want("envoy live")
	if err := syscall.Kill(first.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.want("envoy died")
	s.want("envoy live")
	var after load
	after.start(s.address(), false)
	close(after.stop)
	after.check(t)
}

func TestRealBadBootstrap(t *testing.T) {
	s := perform(t, Config{Path: realEnvoy(t), Args: []string{"--config-yaml", "no_such_field: 1", "-l", "error"}, Bootstrap: []byte("{}"), Dir: t.TempDir()})
	err := <-s.ended
	s.ended <- err
	if err == nil || !strings.Contains(err.Error(), errNeverUp.Error()) {
		t.Errorf("Run = %v, want %v", err, errNeverUp)
	}
}

// Every request is answered of clients that go when they are told to, also the
// slow ones that outlast the drain time.
func TestRealDrain(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-release
	}))
	defer backend.Close()
	_, port, _ := strings.Cut(backend.Listener.Addr().String(), ":")
	s := perform(t, Config{Path: realEnvoy(t), Args: ownArgs(t, port, ""), Dir: t.TempDir()})
	s.want("envoy live")
	addr := s.address()

	var all load
	slow := http.Client{Transport: new(http.Transport)}
	for range 4 {
		all.wg.Go(func() { all.count(slow.Get("http://" + addr + "/slow")) })
		<-arrived
	}
	all.start(addr, true)
	s.cancel(nil)
	s.want("envoy draining")
	close(release)
	all.check(t)
	if err := s.end(nil); err != nil {
		t.Errorf("Run = %v", err)
	}
	slow.CloseIdleConnections()
}

func TestRealAdoption(t *testing.T) {
	dir, path, args := t.TempDir(), realEnvoy(t), ownArgs(t, "1", "")
	pid := killAgent(t, dir, append([]string{path}, args...)...)
	a, err := (&child{admin: filepath.Join(dir, adminFile)}).client()
	if err != nil {
		t.Fatal(err)
	}
	orphan := &stage{t: t, Process: new(Process)}
	orphan.current.Store(&child{admin: filepath.Join(dir, adminFile)})
	var all load
	all.start(orphan.address(), false)
	for range 100 { // it must stand that nobody reads what it prints any more
		if err := a.post(t.Context(), "/logging?level=debug"); err != nil {
			t.Fatal(err)
		}
	}
	s := perform(t, Config{Path: path, Args: args, Dir: dir})
	if e := s.want("envoy adopted"); e.PID != pid || !s.Live() {
		t.Errorf("adopted process %d, live %v; want %d, live", e.PID, s.Live(), pid)
	}
	close(all.stop)
	all.check(t)
	if err := s.end(nil); err != nil {
		t.Error(err)
	}
	gone(t, pid)
}

// A plugin's metric is printed under its own name, and without any setting.
func TestRealPluginMetric(t *testing.T) {
	module, err := filepath.Abs("testdata/counter.wasm")
	if err != nil {
		t.Fatal(err)
	}
	filter := `{name: w, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm,
	  config: {name: w, vm_config: {runtime: envoy.wasm.runtime.v8, code: {local: {filename: ` + module + `}}}}}}, `
	b := bootstraps()["least"]
	b.Socket = filepath.Join(t.TempDir(), "s")
	text, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	// Over ours the listener; without a control plane nothing is waited for.
	own := strings.NewReplacer("BACKEND", "1", "FILTERS", filter).Replace(ownBootstrap) +
		"dynamic_resources: {lds_config: {initial_fetch_timeout: 0.001s}, cds_config: {initial_fetch_timeout: 0.001s}}\n"
	s := perform(t, Config{Path: realEnvoy(t), Args: []string{"--config-yaml", own, "-l", "warning"}, Bootstrap: text, Dir: t.TempDir()})
	s.want("envoy live")
	resp, err := http.Get("http://" + s.address())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections() // or draining waits for it
	a, err := s.Admin()
	if err != nil {
		t.Fatal(err)
	}
	stats, err := a.Prometheus(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer stats.Close()
	all, err := io.ReadAll(stats)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"# TYPE hello_header_counter counter\nhello_header_counter{} 1\n",
		"# TYPE requests counter\nrequests{cache=\"hit\",wasm_filter=\"opa\"} 1\n",
	} {
		if !strings.Contains(string(all), want) {
			t.Errorf("%q is not in envoy's metrics:\n%s", want, grep(string(all), "hello|requests"))
		}
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	if _, err := parser.TextToMetricFamilies(strings.NewReader(string(all))); err != nil {
		t.Errorf("envoy's metrics do not parse: %v", err)
	}
}

// grep returns the lines of text that have one of the words.
func grep(text, words string) string {
	var found strings.Builder
	for line := range strings.Lines(text) {
		for word := range strings.SplitSeq(words, "|") {
			if strings.Contains(line, word) {
				found.WriteString(line)
				break
			}
		}
	}
	return found.String()
}
