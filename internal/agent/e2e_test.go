//go:build e2e

package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	// protojson must know what the listener consists of
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"github.com/chandler-proxy/chandler/internal/envoy"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/xds"
)

func realEnvoy(t *testing.T) string {
	t.Helper()
	path := os.Getenv("CHANDLER_ENVOY")
	if path == "" {
		t.Fatal("CHANDLER_ENVOY must be the path of an envoy")
	}
	return path
}

// A control is a control plane with one listener and one extension.
type control struct {
	t      *testing.T
	server *xds.Server
	addr   string
	module string // URL
	hits   atomic.Int64
	mu     sync.Mutex
	last   *xds.Snapshot
}

func newControl(t *testing.T) *control {
	t.Helper()
	wasm, err := os.ReadFile("../envoy/testdata/counter.wasm")
	if err != nil {
		t.Fatal(err)
	}
	appeared := make(chan struct{}, 100)
	c := &control{t: t, server: xds.New(xds.Config{
		Class:    func(_ context.Context, n *corev3.Node) (string, error) { return n.GetCluster(), nil },
		Appeared: func() { appeared <- struct{}{} },
	})}
	modules := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.hits.Add(1)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(wasm))
	}))
	t.Cleanup(modules.Close)
	c.module = modules.URL + "/counter.wasm"
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.addr = l.Addr().String()
	g := grpc.NewServer(xds.Options()...)
	c.server.Register(g)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	stop := make(chan struct{})
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for {
			select {
			case <-appeared:
				c.mu.Lock()
				c.server.Publish("gateway.default", c.last)
				c.mu.Unlock()
			case <-stop:
				return
			}
		}
	})
	t.Cleanup(func() { g.Stop(); <-served; close(stop); publishing.Wait() })
	return c
}

// publish makes every proxy answer body.
func (c *control) publish(body string) {
	c.t.Helper()
	listener, extension := new(listenerv3.Listener), new(corev3.TypedExtensionConfig)
	c.parse(listener, `{"name":"http","address":{"socket_address":{"address":"127.0.0.1","port_value":0}},"filter_chains":[{"filters":[{"name":"hcm","typed_config":{
		"@type":"type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager","stat_prefix":"http",
		"route_config":{"virtual_hosts":[{"name":"v","domains":["*"],"routes":[{"match":{"prefix":"/"},"direct_response":{"status":200,"body":{"inline_string":"`+body+`"}}}]}]},
		"http_filters":[
			{"name":"extensions.istio.io/wasmplugin/default.counter","config_discovery":{"config_source":{"ads":{},"initial_fetch_timeout":"0s","resource_api_version":"V3"},
				"type_urls":["type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm","type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"]}},
			{"name":"router","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]}`)
	c.parse(extension, `{"name":"extensions.istio.io/wasmplugin/default.counter","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
		"config":{"name":"default.counter","vm_config":{"runtime":"envoy.wasm.runtime.v8","code":{"remote":{"http_uri":{"uri":"`+c.module+`","cluster":"_","timeout":"30s"}}}}}}}`)
	enc := xds.NewEncoder()
	var resources []*xds.Resource
	for _, m := range []proto.Message{listener, extension} {
		r, err := enc.Encode(m)
		if err != nil {
			c.t.Fatal(err)
		}
		resources = append(resources, r)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	snap, err := xds.NewSnapshot(c.last, resources)
	if err != nil {
		c.t.Fatal(err)
	}
	c.last = snap
	c.server.Publish("gateway.default", snap)
}

func (c *control) parse(m proto.Message, text string) {
	c.t.Helper()
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		c.t.Fatal(err)
	}
}

// listenAddr asks Envoy where it listens.
func listenAddr(t *testing.T, dataDir string) string {
	t.Helper()
	admin, err := os.ReadFile(filepath.Join(dataDir, "envoy.admin"))
	if err != nil {
		t.Fatal(err)
	}
	list, err := envoy.NewAdmin(string(admin)).Listeners(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatalf("listeners: %v, %v", list, err)
	}
	return fmt.Sprintf("127.0.0.1:%d", list[0].GetLocalAddress().GetSocketAddress().GetPortValue())
}

// A load is clients that send requests one after another until they are stopped.
// When told to close a connection, one takes another, or ends if polite.
type load struct {
	wg      sync.WaitGroup
	stop    chan struct{}
	sawTwo  chan struct{} // closed when "two" was answered
	two     sync.Once
	answers atomic.Int64
	mu      sync.Mutex
	failed  []string
}

func startLoad(addr string, polite bool) *load {
	l := &load{stop: make(chan struct{}), sawTwo: make(chan struct{})}
	var first sync.WaitGroup
	for range 8 {
		first.Add(1)
		l.wg.Go(func() {
			c := http.Client{Transport: new(http.Transport)}
			defer c.CloseIdleConnections()
			for once := sync.OnceFunc(first.Done); ; once() {
				select {
				case <-l.stop:
					return
				default:
				}
				if end, err := l.request(&c, addr); err != nil {
					l.mu.Lock()
					l.failed = append(l.failed, err.Error())
					l.mu.Unlock()
				} else if end && polite {
					return
				}
			}
		})
	}
	first.Wait()
	return l
}

func (l *load) request(c *http.Client, addr string) (end bool, err error) {
	resp, err := c.Get("http://" + addr + "/")
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return false, err
	}
	switch {
	case resp.StatusCode != 200:
		return false, fmt.Errorf("%s: %s", resp.Status, body)
	case string(body) == "two":
		l.two.Do(func() { close(l.sawTwo) })
	}
	l.answers.Add(1)
	return resp.Close, nil
}

func (l *load) check(t *testing.T) {
	t.Helper()
	l.wg.Wait()
	t.Logf("%d requests answered", l.answers.Load())
	if len(l.failed) > 0 {
		t.Errorf("%d requests failed, the first: %s", len(l.failed), l.failed[0])
	}
}

// killAgent runs an agent in a process of its own and kills it when its Envoy is
// live and has the real extension.
func killAgent(t *testing.T, s startup, beforeDeath func()) {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], string(text))
	cmd.Env = append(os.Environ(), roleVar+"=agent")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var e struct{ Msg string }
	for dec := json.NewDecoder(out); e.Msg != "envoy live"; {
		if err := dec.Decode(&e); err != nil {
			t.Fatal(err)
		}
	}
	beforeDeath()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
}

// An agent that is killed and started again loses no request and fetches
// nothing, and Envoy gets what is new from it.
func TestRealAgentKilled(t *testing.T) {
	c := newControl(t)
	c.publish("one")
	s := startup{Upstream: c.addr, DataDir: t.TempDir(), Envoy: realEnvoy(t)}
	var all *load
	killAgent(t, s, func() { all = startLoad(listenAddr(t, s.DataDir), false) })
	killed := time.Now()
	a := runAgent(t, s.config())
	a.want("envoy adopted")
	c.publish("two")
	<-all.sawTwo
	t.Logf("from the agent's death to a new answer: %v", time.Since(killed))
	if code, body := a.ask("GET", "/healthz/ready"); code != 200 {
		t.Errorf("ready: %d %s", code, body)
	}
	_, metrics := a.ask("GET", "/stats/prometheus")
	parses(t, metrics)
	if !strings.Contains(metrics, "\nhello_header_counter{} ") {
		t.Error("the plugin's metric is not at the agent's port")
	}
	close(all.stop)
	all.check(t)
	http.DefaultClient.CloseIdleConnections()
	if n := c.hits.Load(); n != 1 {
		t.Errorf("module fetched %d times, want once", n)
	}
	if err := a.end(); err != nil {
		t.Errorf("Run = %v", err)
	}
}

// An agent that is told to stop loses no request of clients that go when told
// to, in both variants of ADS and with a bootstrap of the user's own.
func TestRealAgentStops(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*testing.T, *Config)
	}{
		{"delta", func(*testing.T, *Config) {}},
		{"state of the world", func(_ *testing.T, cfg *Config) { cfg.StateOfTheWorld = true }},
		{"own bootstrap", func(t *testing.T, cfg *Config) {
			text, err := envoy.Bootstrap{Proxy: cfg.Proxy, Admin: cfg.Admin, Socket: filepath.Join(cfg.DataDir, socketFile)}.Encode()
			if err != nil {
				t.Fatal(err)
			}
			own := filepath.Join(t.TempDir(), "own.yaml")
			if err := os.WriteFile(own, text, 0o600); err != nil {
				t.Fatal(err)
			}
			cfg.Proxy = mesh.Proxy{}
			cfg.EnvoyArgs = append(cfg.EnvoyArgs, "-c", own)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newControl(t)
			c.publish("one")
			cfg := startup{Upstream: c.addr, DataDir: t.TempDir(), Envoy: realEnvoy(t)}.config()
			tt.change(t, &cfg)
			a := runAgent(t, cfg)
			a.want("envoy live")
			all := startLoad(listenAddr(t, cfg.DataDir), true)
			if err := a.end(); err != nil {
				t.Errorf("Run = %v", err)
			}
			all.check(t)
			if n := c.hits.Load(); n != 1 {
				t.Errorf("module fetched %d times, want once", n)
			}
		})
	}
}
