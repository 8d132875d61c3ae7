package dev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// patience is how long anything may take that a test waits for.
const patience = time.Minute

// A console keeps what is printed, and tells when something is.
type console struct {
	mu   sync.Mutex
	text bytes.Buffer
	seen int // bytes that were waited for
	more chan struct{}
}

func newConsole() *console { return &console{more: make(chan struct{}, 1)} }

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text.Write(p)
	select {
	case c.more <- struct{}{}:
	default:
	}
	return len(p), nil
}

// wait waits until the pattern is printed, after what was waited for before, and
// returns its groups.
func (c *console) wait(t *testing.T, pattern string) []string {
	t.Helper()
	want := regexp.MustCompile("(?m)" + pattern)
	late := time.After(patience)
	for {
		c.mu.Lock()
		unseen := c.text.String()[c.seen:]
		at := want.FindStringSubmatchIndex(unseen)
		if at != nil {
			c.seen += at[1]
			c.mu.Unlock()
			return want.FindStringSubmatch(unseen)
		}
		c.mu.Unlock()
		select {
		case <-c.more:
		case <-late:
			t.Fatalf("%s is not printed, but:\n%s", pattern, unseen)
		}
	}
}

// start runs dev until the test ends, and returns the address that it serves at.
func start(t *testing.T, cfg Config) (*console, string) {
	t.Helper()
	out := newConsole()
	cfg.Out, cfg.Listen = out, "127.0.0.1:0"
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		if t.Failed() {
			t.Logf("printed:\n%s", out.text.String())
		}
	})
	return out, out.wait(t, `^dev: listening on (?:http://)?(\S+), in front of `)[1]
}

// write writes a file at once, as editors do.
func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path+".tmp", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

// module is one of those of package plugins.
func module(t *testing.T, name string) []byte {
	t.Helper()
	wasm, err := os.ReadFile(filepath.Join("..", "..", "plugins", "testdata", name+".wasm"))
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

func get(t *testing.T, url string) (*http.Response, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// A load is clients that send requests all the time.
type load struct {
	wg     sync.WaitGroup
	stop   atomic.Bool
	sent   atomic.Int64
	failed atomic.Pointer[string]
}

// under sends requests from four clients until end is called.
func under(url string) *load {
	l := new(load)
	for range 4 {
		l.wg.Go(func() {
			for !l.stop.Load() {
				l.sent.Add(1)
				resp, err := http.Get(url)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				if err == nil && resp.StatusCode != http.StatusOK {
					err = errors.New(resp.Status)
				}
				if err != nil {
					text := err.Error()
					l.failed.Store(&text)
				}
			}
		})
	}
	return l
}

func (l *load) end(t *testing.T) {
	t.Helper()
	l.stop.Store(true)
	l.wg.Wait()
	if f := l.failed.Load(); f != nil {
		t.Errorf("of %d requests at least one failed: %s", l.sent.Load(), *f)
	}
}

// TestSwap changes a module that is built elsewhere, and its configuration, under load.
func TestSwap(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) }))
	t.Cleanup(upstream.Close)
	dir := t.TempDir()
	wasm, config := filepath.Join(dir, "a.wasm"), filepath.Join(dir, "config.json")
	write(t, wasm, module(t, "addheader"))
	write(t, config, []byte(`{"value":"one"}`))
	out, addr := start(t, Config{Dir: dir, Module: wasm, ConfigFile: config, Upstream: upstream.URL, Trace: true})
	url := "http://" + addr + "/books?a=b"
	out.wait(t, `^    proxy_on_configure\(context=1,size=15\) = 1$`)
	out.wait(t, `^dev: serving sha256:[0-9a-f]{12}… \(\d.* kB, ABI 0\.2\.1\)$`)

	resp, body := get(t, url)
	if resp.Header.Get("x-wasm") != "one" || body != "/books" {
		t.Errorf("answer %v %q", resp.Header, body)
	}
	out.wait(t, `^GET /books\?a=b 200 \d+(\.\d+)?(µs|ms)
    proxy_on_request_headers\(context=2,headers=\d+,end=1\) = 0
    proxy_on_response_headers\(context=2,headers=\d+,end=0\) = 0
      proxy_add_header_map_value\(map=2,key="x-wasm",value="one"\) = OK$`)

	load := under(url)
	write(t, config, []byte(`{"value":"two"}`))
	out.wait(t, `^dev: changed: config.json$`)
	out.wait(t, `^dev: serving `)
	if resp, _ := get(t, url); resp.Header.Get("x-wasm") != "two" {
		t.Errorf("after a change of the configuration: %v", resp.Header)
	}

	write(t, wasm, module(t, "refuse-config"))
	out.wait(t, `^plugin error: configuration refused: this module refuses all$`)
	out.wait(t, `^dev: refused: .*proxy_on_configure refused the plugin configuration$`)
	out.wait(t, `^dev: sha256:\S+ .* goes on serving$`)

	write(t, wasm, []byte("no module"))
	out.wait(t, `^dev: changed: a.wasm$`)
	out.wait(t, `^dev: .*not a Wasm module`)
	out.wait(t, `^dev: sha256:\S+ .* goes on serving$`)

	write(t, wasm, module(t, "missing-import"))
	out.wait(t, `^dev: .*a.wasm: Envoy would refuse the module: `)
	out.wait(t, `^dev: sha256:\S+ .* goes on serving$`)
	if resp, _ := get(t, url); resp.Header.Get("x-wasm") != "two" {
		t.Errorf("after modules that do not work: %v", resp.Header)
	}

	write(t, wasm, module(t, "noop"))
	out.wait(t, `^dev: serving `)
	if resp, _ := get(t, url); resp.Header.Get("x-wasm") != "" {
		t.Errorf("after a change of the module: %v", resp.Header)
	}
	load.end(t)

	write(t, wasm, module(t, "trap-on-request"))
	out.wait(t, `^dev: serving `)
	for range 2 { // it is started anew each time
		if resp, _ := get(t, url); resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("from a module that traps: %s", resp.Status)
		}
		out.wait(t, `^plugin error: Wasm VM failed proxy_on_request_headers: wasm error: unreachable`)
		out.wait(t, `^GET /books\?a=b 503 .*
    proxy_on_request_headers\(.*\) failed: proxy_on_request_headers: wasm error: unreachable`)
	}
}

// TestNothingYet has a module that is not there, then one.
func TestNothingYet(t *testing.T) {
	dir := t.TempDir()
	wasm := filepath.Join(dir, "a.wasm")
	out, addr := start(t, Config{Dir: dir, Module: wasm})
	out.wait(t, `^dev: read module: open .*a.wasm: no such file or directory; it is taken as soon as it is there$`)
	out.wait(t, `^dev: nothing serves yet: requests are answered with 503$`)
	url := "http://" + addr + "/headers"
	if resp, body := get(t, url); resp.StatusCode != http.StatusServiceUnavailable || body != notYet {
		t.Errorf("answer %s %q", resp.Status, body)
	}
	out.wait(t, `^GET /headers 503 .*\(direct_response\)$`)
	write(t, wasm, module(t, "addheader"))
	out.wait(t, `^dev: serving `)
	if resp, body := get(t, url); resp.StatusCode != http.StatusOK || !strings.Contains(body, `"Host": "`+addr) {
		t.Errorf("answer %s %q", resp.Status, body)
	}
	out.wait(t, `^GET /headers 200 \S+$`)
	if strings.Contains(out.text.String(), "proxy_on") {
		t.Errorf("calls are printed without being asked for:\n%s", out.text.String())
	}
}

// TestNetwork has the module before connections.
func TestNetwork(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	echoed := make(chan struct{})
	go func() {
		defer close(echoed)
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	dir := t.TempDir()
	wasm := filepath.Join(dir, "a.wasm")
	out, addr := start(t, Config{Dir: dir, Module: wasm, Network: true, Upstream: l.Addr().String(), Trace: true})
	out.wait(t, `^dev: nothing serves yet: connections are closed$`)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("a connection without a plugin: read %d bytes", n)
	}
	write(t, wasm, module(t, "noop"))
	out.wait(t, `^dev: serving `)
	if c, err = net.Dial("tcp", addr); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "hello")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
		t.Errorf("echo = %q, %v", got, err)
	}
	c.Close()
	<-echoed
}

func TestRunRefuses(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, tt := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"an address that is taken", Config{Listen: taken.Addr().String()}, "address already in use"},
		{"an admin address that is taken", Config{Listen: "127.0.0.1:0", Admin: taken.Addr().String()}, "admin interface: "},
		{"an upstream without a port", Config{Listen: "127.0.0.1:0", Upstream: "localhost"}, ErrUpstream.Error()},
		{"a cluster without a port", Config{Listen: "127.0.0.1:0", Clusters: map[string]string{"a": "b"}}, `cluster a: "b": want HOST:PORT`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Out = io.Discard
			if err := Run(t.Context(), tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Run = %v, want %s", err, tt.want)
			}
		})
	}
}
