//go:build e2e

package engine

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/chandler-proxy/chandler/internal/envoy"
	"github.com/chandler-proxy/chandler/internal/mesh"
)

// A pair is the real Envoy and the engine, each with its control plane, that are
// given the same configuration but for the port.
type pair struct {
	envoy, engine         *controlPlane
	envoyPort, enginePort int
	envoyAdmin, engAdmin  string
	engineLog, envoyLog   *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startPair starts both and waits until they are live.
func startPair(t testing.TB, resources func(port int) []proto.Message) *pair {
	t.Helper()
	binary := os.Getenv("CHANDLER_ENVOY")
	if binary == "" {
		t.Fatal("CHANDLER_ENVOY does not name an Envoy")
	}
	p := &pair{envoy: newControlPlane(t), engine: newControlPlane(t), envoyPort: freePort(t), enginePort: freePort(t), engineLog: new(lockedBuffer), envoyLog: new(lockedBuffer)}
	p.envoy.set(resources(p.envoyPort)...)
	p.engine.set(resources(p.enginePort)...)
	proxy := mesh.Proxy{Role: mesh.Sidecar, Name: "a", Namespace: "b", Workload: "a", IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}
	node, err := envoy.Node(proxy, "")
	if err != nil {
		t.Fatal(err)
	}
	p.startEnvoy(t, binary, proxy)
	p.startEngine(t, node)
	return p
}

func (p *pair) startEngine(t testing.TB, node *corev3.Node) {
	admin, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.engAdmin = admin.Addr().String()
	out := io.Writer(p.engineLog)
	e := New(Config{Node: node, XDS: p.engine.socket, Admin: admin, Log: slog.New(slog.NewTextHandler(out, nil)), Concurrency: 1})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := e.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if t.Failed() {
			t.Logf("engine:\n%s", p.engineLog)
		}
	})
	select {
	case <-e.Ready():
	case <-time.After(30 * time.Second):
		t.Fatalf("the engine is not live; refused: %q", p.engine.nacks)
	}
}

func (p *pair) startEnvoy(t testing.TB, binary string, proxy mesh.Proxy) {
	port := freePort(t)
	p.envoyAdmin = fmt.Sprintf("127.0.0.1:%d", port)
	raw, err := envoy.Bootstrap{Proxy: proxy, Socket: p.envoy.socket, Admin: netip.MustParseAddrPort(p.envoyAdmin)}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	workers := "1" // what is logged is in order
	if _, ok := t.(*testing.B); ok {
		workers = strconv.Itoa(runtime.GOMAXPROCS(0))
	}
	cmd := exec.Command(binary, "-c", file, "--use-dynamic-base-id", "--concurrency", workers, "-l", "warning", "--component-log-level", "wasm:info")
	cmd.Stdout, cmd.Stderr = p.envoyLog, p.envoyLog
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("envoy:\n%s", p.envoyLog)
		}
	})
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		resp, err := http.Get("http://" + p.envoyAdmin + "/ready")
		if err == nil {
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if strings.TrimSpace(string(body)) == "LIVE" {
				return
			}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-t.Context().Done():
		}
	}
	t.Fatalf("envoy is not live; refused: %q\n%s", p.envoy.nacks, p.envoyLog)
}

// rawBackend answers each request with its own bytes as the body, or as the path says.
func rawBackend(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for answerRaw(c, r) {
				}
			})
		}
	})
	return l.Addr().String()
}

// answerRaw answers one request; false ends the connection.
func answerRaw(c net.Conn, r *bufio.Reader) bool {
	var head strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return false
		}
		head.WriteString(line)
		if line == "\r\n" {
			break
		}
	}
	req, err := http.ReadRequest(bufio.NewReader(io.MultiReader(strings.NewReader(head.String()), r)))
	if err != nil {
		return false
	}
	var body []byte
	if req.ContentLength > 0 {
		body = make([]byte, req.ContentLength)
		_, err = io.ReadFull(r, body)
	} else if req.ContentLength < 0 {
		// The bytes of the chunks themselves.
		for !bytes.HasSuffix(body, []byte("0\r\n\r\n")) {
			b, err := r.ReadByte()
			if err != nil {
				return false
			}
			body = append(body, b)
		}
	}
	if err != nil {
		return false
	}
	all := head.String() + string(body)
	path, _, _ := strings.Cut(req.URL.Path, "?")
	switch {
	case strings.HasSuffix(path, "/close"):
		return false
	case strings.HasSuffix(path, "/chunked"):
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Back: yes\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
	case strings.HasSuffix(path, "/trailers"):
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n3\r\nabc\r\n0\r\nX-End: 1\r\n\r\n")
	case strings.HasSuffix(path, "/204"):
		fmt.Fprintf(c, "HTTP/1.1 204 No Content\r\nX-Back: yes\r\n\r\n")
	case strings.HasSuffix(path, "/304"):
		fmt.Fprintf(c, "HTTP/1.1 304 Not Modified\r\nEtag: x\r\n\r\n")
	case strings.HasSuffix(path, "/empty"):
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	case strings.HasSuffix(path, "/503"):
		fmt.Fprintf(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy")
	case strings.HasSuffix(path, "/until-close"):
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Back: yes\r\n\r\nto the end")
		return false
	case strings.HasSuffix(path, "/garbage"):
		fmt.Fprintf(c, "nonsense\r\n\r\n")
		return false
	case strings.HasSuffix(path, "/fields"):
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nServer: mine\r\nDate: Sat, 01 Jan 2000 00:00:00 GMT\r\nZ: 1\r\nA: 2\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nX-Envoy-Upstream-Service-Time: 77\r\nX-Request-Id: back\r\nContent-Length: 2\r\n\r\nok")
	case req.Method == "HEAD":
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", 7)
	default:
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Back: yes\r\nContent-Length: %d\r\n\r\n%s", len(all), all)
	}
	return true
}

var (
	dateLine = regexp.MustCompile(`(?m)^date: .*GMT\r$`)
	idLine   = regexp.MustCompile(`(?m)^x-request-id: [0-9a-f-]{36}\r$`)
	timeLine = regexp.MustCompile(`(?m)^x-envoy-upstream-service-time: \d+\r$`)
)

// raw sends bytes and returns all that comes until the connection ends, with what
// differs from one time to the next made equal. The client ends its side last.
func raw(t *testing.T, port int, request string) string {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	var seen bytes.Buffer
	method, _, _ := strings.Cut(request, " ")
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	tee := bufio.NewReader(io.TeeReader(r, &seen))
	resp, err := http.ReadResponse(tee, &http.Request{Method: method})
	if err == nil && resp.StatusCode == 100 {
		resp, err = http.ReadResponse(tee, &http.Request{Method: method})
	}
	if err != nil {
		return fmt.Sprintf("%s[%v]", seen.String(), err)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	text := seen.String()
	if err != nil {
		text += fmt.Sprintf("[%v]", err)
	}
	text = dateLine.ReplaceAllString(text, "date: now\r")
	text = idLine.ReplaceAllString(text, "x-request-id: id\r")
	text = timeLine.ReplaceAllString(text, "x-envoy-upstream-service-time: n\r")
	return text
}

// same sends every request to both and compares.
func (p *pair) same(t *testing.T, requests map[string]string) {
	for name, request := range requests {
		t.Run(name, func(t *testing.T) {
			want, got := raw(t, p.envoyPort, request), raw(t, p.enginePort, request)
			if diff := cmp.Diff(strings.ReplaceAll(want, "\r", ""), strings.ReplaceAll(got, "\r", "")); diff != "" {
				t.Errorf("%q (-envoy +engine):\n%s", request, diff)
			}
		})
	}
}

func request(method, path, body string, headers ...string) string {
	text := method + " " + path + " HTTP/1.1\r\nHost: example.com\r\n"
	for _, h := range headers {
		text += h + "\r\n"
	}
	return text + "\r\n" + body
}

const manyRoutes = `
- match: {path: /direct}
  direct_response: {status: 418, body: {inline_string: teapot}}
  response_headers_to_add: [{header: {key: x-direct, value: "1"}}]
- match: {path: /direct-empty}
  direct_response: {status: 204}
- match: {prefix: /redirect/prefix}
  redirect: {https_redirect: true, host_redirect: other.example, prefix_rewrite: /new, response_code: FOUND}
- match: {prefix: /redirect/path}
  redirect: {path_redirect: /there, port_redirect: 8443, response_code: PERMANENT_REDIRECT}
- match: {prefix: /redirect/scheme}
  redirect: {scheme_redirect: https}
- match: {path_separated_prefix: /swap}
  route: {cluster: backend, prefix_rewrite: /other, timeout: 0s, host_rewrite_literal: inner.example}
- match: {safe_regex: {regex: "/re/[0-9]+"}}
  route: {cluster: backend, timeout: 5s, regex_rewrite: {pattern: {regex: "^/re/([0-9]+)"}, substitution: "/n/\\1"}}
- match: {prefix: /add}
  request_headers_to_add:
  - {header: {key: x-set, value: "100%%"}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}
  - {header: {key: x-add, value: "%REQ(:path)%"}}
  request_headers_to_remove: [x-gone]
  response_headers_to_add:
  - {header: {key: x-r, value: "c"}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}
  - {header: {key: x-back, value: "more"}}
  response_headers_to_remove: [content-type]
  route: {cluster: backend, timeout: 0s}
- match: {prefix: /header, headers: [{name: x-a, string_match: {exact: "1"}}, {name: ":method", string_match: {exact: GET}}]}
  route: {cluster: backend, timeout: 0s}
- match: {prefix: /query, query_parameters: [{name: q, string_match: {exact: "1"}}]}
  route: {cluster: backend, timeout: 0s}
- match: {prefix: /nocluster}
  route: {cluster: unknown, timeout: 0s, cluster_not_found_response_code: INTERNAL_SERVER_ERROR}
- match: {prefix: /nocluster503}
  route: {cluster: unknown, timeout: 0s}
- match: {prefix: /down}
  route: {cluster: down, timeout: 0s}
- match: {prefix: /retrydown}
  route: {cluster: down, timeout: 0s, retry_policy: {num_retries: 2, retry_on: "connect-failure"}}
- match: {prefix: /none}
  route: {cluster: none, timeout: 0s}
- match: {prefix: /default-timeout}
  route: {cluster: backend}
- match: {prefix: /late}
  route: {cluster: silent, timeout: 0.2s}
- match: {prefix: /try}
  route: {cluster: silent, timeout: 2s, retry_policy: {num_retries: 1, retry_on: "5xx", per_try_timeout: 0.1s}}
- match: {prefix: /attempts}
  route: {cluster: backend, timeout: 0s, retry_policy: {num_retries: 2, retry_on: "5xx"}}
- match: {prefix: /p/}
  route: {cluster: backend, timeout: 0s}
`

func manyRequests() map[string]string {
	r := map[string]string{
		"get":              request("GET", "/p/x", ""),
		"query":            request("GET", "/p/x?a=1&b=%20#frag", ""),
		"order":            request("GET", "/p/x", "", "Zebra: 1", "Apple: 2", "User-Agent: me", "Zebra: 3", "Accept: */*"),
		"post":             request("POST", "/p/x", "hello", "Content-Length: 5", "Content-Type: text/plain"),
		"post empty":       request("POST", "/p/x", "", "Content-Length: 0"),
		"post nothing":     request("POST", "/p/x", ""),
		"put nothing":      request("PUT", "/p/x", ""),
		"delete nothing":   request("DELETE", "/p/x", ""),
		"options":          request("OPTIONS", "/p/x", ""),
		"get with body":    request("GET", "/p/x", "hello", "Content-Length: 5"),
		"chunked up":       request("POST", "/p/x", "3\r\nabc\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
		"head":             request("HEAD", "/p/x", ""),
		"chunked":          request("GET", "/p/chunked", ""),
		"trailers":         request("GET", "/p/trailers", ""),
		"204":              request("GET", "/p/204", ""),
		"304":              request("GET", "/p/304", ""),
		"empty":            request("GET", "/p/empty", ""),
		"503":              request("GET", "/p/503", ""),
		"until close":      request("GET", "/p/until-close", ""),
		"fields":           request("GET", "/p/fields", ""),
		"garbage":          request("GET", "/p/garbage", ""),
		"upstream closes":  request("GET", "/p/close", ""),
		"close":            request("GET", "/p/x", "", "Connection: close"),
		"hop by hop":       request("GET", "/p/x", "", "Connection: keep-alive, te", "Keep-Alive: 5", "TE: trailers", "Proxy-Connection: x"),
		"te":               request("GET", "/p/x", "", "TE: gzip"),
		"named hop":        request("GET", "/p/x", "", "Connection: x-named", "X-Named: 1"),
		"xff":              request("GET", "/p/x", "", "X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https"),
		"own id":           request("GET", "/p/x", "", "X-Request-Id: mine"),
		"xfcc":             request("GET", "/p/x", "", "X-Forwarded-Client-Cert: Hash=x"),
		"envoy headers":    request("GET", "/p/x", "", "X-Envoy-Max-Retries: 1", "X-Envoy-Retry-On: 5xx", "X-Envoy-Upstream-Rq-Timeout-Ms: 300", "X-Envoy-Internal: true", "X-Envoy-Expected-Rq-Timeout-Ms: 1"),
		"not found":        request("GET", "/nothing", ""),
		"post not found":   request("POST", "/nothing", "hello", "Content-Length: 5"),
		"direct":           request("GET", "/direct", ""),
		"direct head":      request("HEAD", "/direct", ""),
		"direct empty":     request("GET", "/direct-empty", ""),
		"post direct":      request("POST", "/direct", "hello", "Content-Length: 5"),
		"redirect prefix":  request("GET", "/redirect/prefix/a?b=c", ""),
		"redirect path":    request("GET", "/redirect/path/a?b=c", ""),
		"redirect scheme":  request("GET", "/redirect/scheme", ""),
		"swap":             request("GET", "/swap/a?b", ""),
		"swap exact":       request("GET", "/swap", ""),
		"swap not":         request("GET", "/swapped", ""),
		"regex":            request("GET", "/re/12?x", ""),
		"regex not":        request("GET", "/re/12a", ""),
		"add":              request("GET", "/add/x", "", "X-Set: 1", "X-Gone: 1", "X-Add: 0"),
		"header":           request("GET", "/header", "", "X-A: 1"),
		"header not":       request("GET", "/header", "", "X-A: 2"),
		"query match":      request("GET", "/query?q=1", ""),
		"query match not":  request("GET", "/query?q=2", ""),
		"no cluster":       request("GET", "/nocluster", ""),
		"no cluster 503":   request("GET", "/nocluster503", ""),
		"down":             request("GET", "/down", ""),
		"retry down":       request("GET", "/retrydown", ""),
		"upgrade down":     request("GET", "/down", "", "Connection: Upgrade", "Upgrade: websocket"),
		"retry an upgrade": request("GET", "/retrydown", "", "Connection: Upgrade", "Upgrade: websocket"),
		"none":             request("GET", "/none", ""),
		"grpc none":        request("POST", "/none", "", "Content-Type: application/grpc", "Content-Length: 0"),
		"default timeout":  request("GET", "/default-timeout", ""),
		"late":             request("GET", "/late", ""),
		"late post":        request("POST", "/late", "hello", "Content-Length: 5"),
		"try":              request("GET", "/try", ""),
		"attempts":         request("GET", "/attempts/503", ""),
		"attempts post":    request("POST", "/attempts/503", "hello", "Content-Length: 5"),
		"dots":             request("GET", "/p/a/../b/./c%2e%7Ex?x=/../", ""),
		"backslash":        request("GET", `/p/a\b`, ""),
		"escapes":          request("GET", "/p/%41%2f%2F%zz%e4", ""),
		"slashes":          request("GET", "/p//x", ""),
		"absolute form":    request("GET", "http://other.example/p/x", ""),
		"no slash":         request("GET", "p/x", ""),
		"asterisk":         request("OPTIONS", "*", ""),
		"upgrade refused":  request("GET", "/p/x", "", "Connection: Upgrade", "Upgrade: other"),
		"expect":           request("POST", "/p/x", "hello", "Content-Length: 5", "Expect: 100-continue"),
		"empty value":      request("GET", "/p/x", "", "X-Empty:", "X-Space:   a b  "),
		"lower te chunked": request("POST", "/p/x", "0\r\n\r\n", "Transfer-Encoding: Chunked"),
		"http 1.0":         "GET /p/x HTTP/1.0\r\nHost: example.com\r\n\r\n",
		"no host":          "GET /p/x HTTP/1.1\r\n\r\n",
		"bad name":         request("GET", "/p/x", "", "Bad Name: x"),
		"two lengths":      request("POST", "/p/x", "hello", "Content-Length: 5", "Content-Length: 6"),
		"length and te":    request("POST", "/p/x", "0\r\n\r\n", "Content-Length: 5", "Transfer-Encoding: chunked"),
		"coding":           request("POST", "/p/x", "x", "Transfer-Encoding: gzip"),
		"bad length":       request("POST", "/p/x", "x", "Content-Length: x"),
		"too many":         request("GET", "/p/x", "", strings.Split(strings.TrimSuffix(strings.Repeat("X-A: 1\n", 101), "\n"), "\n")...),
		"too large":        request("GET", "/p/x", "", "X-A: "+strings.Repeat("a", 61<<10)),
		"garbage in":       "garbage\r\n\r\n",
		"cookies":          request("GET", "/p/x", "", "Cookie: a=1", "Cookie: b=2"),
		"repeated":         request("GET", "/p/x", "", "Accept: a", "Accept: b", "X-A: 1", "X-A: 2", "User-Agent: a", "User-Agent: b"),
		"unknown method":   request("BREW", "/p/x", ""),
	}
	return r
}

func TestHTTPLikeEnvoy(t *testing.T) {
	for name, more := range map[string]string{
		"gateway": "normalize_path: true\nuse_remote_address: true\nstream_idle_timeout: 0s\nupgrade_configs: [{upgrade_type: websocket}]\nforward_client_cert_details: SANITIZE_SET",
		"sidecar": "normalize_path: true\nuse_remote_address: false\nstream_idle_timeout: 0s\nupgrade_configs: [{upgrade_type: websocket}]",
	} {
		t.Run(name, func(t *testing.T) {
			back, silent, down := rawBackend(t), silentBackend(t), fmt.Sprintf("127.0.0.1:%d", freePort(t))
			p := startPair(t, func(port int) []proto.Message {
				routes := routeConfig(t, manyRoutes)
				routes.VirtualHosts[0].IncludeRequestAttemptCount = name == "gateway"
				return []proto.Message{
					staticCluster(t, "backend", back), staticCluster(t, "down", down), staticCluster(t, "none"),
					staticCluster(t, "silent", silent), httpListener(t, "main", port, "", more), routes,
				}
			})
			p.same(t, manyRequests())
		})
	}
}

// A stream in which nothing moves is ended.
func TestStreamIdleLikeEnvoy(t *testing.T) {
	silent := silentBackend(t)
	p := startPair(t, func(port int) []proto.Message {
		return []proto.Message{
			staticCluster(t, "backend", silent), routeConfig(t, toBackend), httpListener(t, "main", port, "", "stream_idle_timeout: 0.3s"),
		}
	})
	p.same(t, map[string]string{
		"request is complete": request("GET", "/", ""),
		"request is not":      request("POST", "/", "half", "Content-Length: 10"),
	})
}

// silentBackend takes connections and says nothing.
func silentBackend(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String() // the kernel takes them
}
