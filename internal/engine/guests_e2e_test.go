//go:build e2e

package engine

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
)

// cGuest builds testdata/guests/c.
func cGuest(t *testing.T) string {
	t.Helper()
	return compile(t, "clang", "--target=wasm32", "-O2", "-nostdlib", "-fno-builtin", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror",
		"-Wl,--no-entry", "-Wl,--strip-debug", "testdata/guests/c/guest.c", "-o")
}

// compile runs a compiler, whose last argument is to be where the module goes.
func compile(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is missing (scripts/deps.sh installs it): %v", name, err)
	}
	out := filepath.Join(t.TempDir(), "guest.wasm")
	if text, err := exec.CommandContext(t.Context(), name, append(args, out)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, text)
	}
	return out
}

// guestExtension has the module with a configuration.
func guestExtension(t *testing.T, kind, module, configuration string) *corev3.TypedExtensionConfig {
	return parse(t, fmt.Sprintf(`
name: plugin
typed_config:
  "@type": type.googleapis.com/envoy.extensions.filters.%s.wasm.v3.Wasm
  config:
    name: guest
    root_id: root
    configuration: {"@type": type.googleapis.com/google.protobuf.StringValue, value: %q}
    vm_config:
      runtime: envoy.wasm.runtime.v8
      vm_id: vm
      configuration: {"@type": type.googleapis.com/google.protobuf.StringValue, value: settings}
      code: {local: {filename: %q}}`, kind, configuration, module), new(corev3.TypedExtensionConfig))
}

// guestPair has both run the module before the routes of manyRoutes.
func guestPair(t *testing.T, module, configuration string) *pair {
	back, silent, down, grpc := rawBackend(t), silentBackend(t), fmt.Sprintf("127.0.0.1:%d", freePort(t)), grpcBackend(t)
	return startPair(t, func(port int) []proto.Message {
		return []proto.Message{
			staticCluster(t, "backend", back), staticCluster(t, "silent", silent), staticCluster(t, "down", down), staticCluster(t, "none"),
			overHTTP2(t, staticCluster(t, "grpc", grpc)), overHTTP2(t, staticCluster(t, "grpcdown", down)),
			routeConfig(t, manyRoutes), guestExtension(t, "http", module, configuration),
			httpListener(t, "main", port, discovered, "stream_idle_timeout: 0s"),
		}
	})
}

func overHTTP2(t *testing.T, c *clusterv3.Cluster) *clusterv3.Cluster {
	c.TypedExtensionProtocolOptions = parse(t, `
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http2_protocol_options: {}}`, new(clusterv3.Cluster)).TypedExtensionProtocolOptions
	return c
}

// grpcBackend is a gRPC server, by hand: it does what no good one does, too.
func grpcBackend(t *testing.T) string {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	s := httptest.NewUnstartedServer(http.HandlerFunc(serveGRPC))
	s.Config.Protocols = protocols
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func serveGRPC(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("X-Initial", "yes")
	send := func(flag byte, message string) {
		frame := binary.BigEndian.AppendUint32([]byte{flag}, uint32(len(message)))
		_, _ = w.Write(append(frame, message...))
		_ = http.NewResponseController(w).Flush()
	}
	status := func(code, message string) {
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", code)
		if message != "" {
			w.Header().Set(http.TrailerPrefix+"Grpc-Message", message)
		}
		w.Header().Set(http.TrailerPrefix+"X-Trailing", "1")
	}
	method := strings.TrimPrefix(r.URL.Path, "/test.Service/")
	if !slices.Contains([]string{"Unary", "Chat", "Silent", "Resets"}, method) {
		_, _ = io.Copy(io.Discard, r.Body) // the proxy tells how long it took only if all was sent before
	}
	switch method {
	case "Unary":
		_, message, _ := receiveGRPC(r.Body)
		send(0, describe(r)+message)
		status("0", "")
	case "Fails":
		send(0, "for nothing")
		status("9", "no good")
	case "Encoded":
		send(0, "x")
		status("9", "a%20b %41")
	case "NoStatus":
		send(0, "x")
	case "BadFrame":
		send(1, "abc")
		status("0", "")
	case "OnlyTrailers":
		w.Header().Set("Grpc-Status", "5")
		w.Header().Set("Grpc-Message", "not there")
	case "NotFound":
		http.Error(w, "what?", 404)
	case "Broken":
		w.WriteHeader(500)
	case "Resets":
		panic(http.ErrAbortHandler)
	case "Silent":
		<-r.Context().Done()
	case "Nothing":
		_ = http.NewResponseController(w).Flush()
		status("0", "")
	case "Two":
		send(0, "first")
		send(0, "second")
		status("0", "")
	case "Chat":
		_ = http.NewResponseController(w).Flush()
		for {
			ok, message, _ := receiveGRPC(r.Body)
			if !ok {
				break
			}
			send(0, "you said "+message)
		}
		status("0", "")
	}
}

// receiveGRPC reads one message; false is the end.
func receiveGRPC(r io.Reader) (ok bool, message string, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return false, "", err
	}
	b := make([]byte, binary.BigEndian.Uint32(head[1:]))
	_, err = io.ReadFull(r, b)
	return err == nil, string(b), err
}

// describe is the head of a request, sorted, without what differs each time.
func describe(r *http.Request) string {
	lines := []string{r.Method + " " + r.RequestURI + " " + r.Host}
	for name, values := range r.Header {
		lines = append(lines, name+": "+strings.Join(values, ","))
	}
	slices.Sort(lines)
	return strings.Join(lines, "|") + "|"
}

var (
	envoyLine  = regexp.MustCompile(`(?m)^\[[^]]*\]\[\d+\]\[(\w+)\]\[wasm\] \[[^]]*\] wasm log(.*)$`)
	engineLine = regexp.MustCompile(`(?m)^time=\S+ level=(\w+) msg=("(?:[^"\\]|\\.)*")$`)
)

// saidByEnvoy are the lines that plugins have logged, with their level.
func saidByEnvoy(log string) (list []string) {
	for _, m := range envoyLine.FindAllStringSubmatch(log, -1) {
		list = append(list, m[1]+m[2])
	}
	return list
}

// saidByEngine likewise.
func saidByEngine(log string) (list []string) {
	levels := map[string]string{"INFO": "info", "WARN": "warning", "ERROR": "error"}
	for _, m := range engineLine.FindAllStringSubmatch(log, -1) {
		text, err := strconv.Unquote(m[2])
		if rest, ok := strings.CutPrefix(text, "wasm log"); ok && err == nil {
			list = append(list, levels[m[1]]+rest)
		}
	}
	return list
}

// until waits for the log to have n lines that end with the mark.
func until(t *testing.T, what string, said func() []string, mark string, n int) []string {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; {
		lines := said()
		have := 0
		for _, l := range lines {
			if strings.HasSuffix(l, mark) {
				have++
			}
		}
		if have >= n {
			return lines
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s has not logged %q %d times:\n%s", what, mark, n, strings.Join(lines, "\n"))
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (p *pair) saidByEnvoy() []string  { return saidByEnvoy(p.envoyLog.String()) }
func (p *pair) saidByEngine() []string { return saidByEngine(p.engineLog.String()) }

// A deed is one request that tells the guest what to do.
type deed struct {
	name    string
	request string
}

// do sends the request with the deed to both, and compares the answers and what the
// guests logged until each forgot the stream, which is the n-th.
func (p *pair) do(t *testing.T, d deed, n int) {
	t.Helper()
	fromEnvoy, fromEngine := len(p.saidByEnvoy()), len(p.saidByEngine())
	request := strings.Replace(d.request, "\r\n", "\r\nx-do: "+d.name+"\r\n", 1)
	want, got := raw(t, p.envoyPort, request), raw(t, p.enginePort, request)
	if diff := cmp.Diff(strings.ReplaceAll(want, "\r", ""), strings.ReplaceAll(got, "\r", "")); diff != "" {
		t.Errorf("answer (-envoy +engine):\n%s", diff)
	}
	wanted := masked(until(t, "envoy", p.saidByEnvoy, ": deleted", n)[fromEnvoy:])
	have := masked(until(t, "the engine", p.saidByEngine, ": deleted", n)[fromEngine:])
	if strings.HasPrefix(d.name, "grpc") || strings.HasPrefix(d.name, "stream") {
		wanted, have = unordered(wanted), unordered(have)
	}
	if diff := lineDiff(wanted, have); diff != "" {
		t.Errorf("log (-envoy +engine):\n%s", diff)
	}
	if !slices.ContainsFunc(wanted, func(l string) bool { return strings.Contains(l, "request headers "+d.name) }) {
		t.Errorf("the guest was not told: %q", wanted)
	}
}

var anyID = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

// atAnyTime are lines that come when they come.
var atAnyTime = regexp.MustCompile(`: (tick|queue is ready) = `)

// masked makes equal what differs each time.
func masked(lines []string) []string {
	lines = slices.DeleteFunc(lines, atAnyTime.MatchString)
	for i, l := range lines {
		lines[i] = varies.ReplaceAllString(anyID.ReplaceAllString(l, "(id)"), ": $1 = 0 (varies)")
	}
	return lines
}

// unordered sorts the metadata of gRPC, whose order package net/http does not keep.
func unordered(lines []string) []string {
	for i := 0; i < len(lines); i++ {
		end := i
		for end < len(lines) && strings.Contains(lines[end], ":   ") {
			end++
		}
		slices.Sort(lines[i:end])
		i = end
	}
	return lines
}

// lineDiff is the lines that only one of both has, with the step of a stream before them.
func lineDiff(a, b []string) string {
	longest := make([][]int, len(a)+1) // common to what is left of both
	for i := range longest {
		longest[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				longest[i][j] = longest[i+1][j+1] + 1
			} else {
				longest[i][j] = max(longest[i+1][j], longest[i][j+1])
			}
		}
	}
	var out strings.Builder
	step := ""
	for i, j := 0, 0; i < len(a) || j < len(b); {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			if !strings.Contains(a[i], " = ") {
				step = a[i]
			}
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && longest[i+1][j] >= longest[i][j+1]:
			fmt.Fprintf(&out, "- %s (after %s)\n", a[i], step)
			i++
		default:
			fmt.Fprintf(&out, "+ %s\n", b[j])
			j++
		}
	}
	return out.String()
}

// deeds has one deed for each name, over the same request.
func deeds(request string, names ...string) (list []deed) {
	for _, name := range names {
		list = append(list, deed{name, request})
	}
	return list
}

// TestGuestC has a guest that is written against the bare ABI do all that there is to do.
func TestGuestC(t *testing.T) {
	module := cGuest(t)
	p := guestPair(t, module, "")
	get := request("GET", "/p/x?q=1", "", "X-Mixed: Aa", "X-Twice: 1", "X-Twice: 2", "X-Gone: 1", "X-Empty:")
	post := request("POST", "/p/x", "hello", "Content-Length: 5")
	chunked := request("POST", "/p/x", "3\r\nabc\r\n0\r\n\r\n", "Transfer-Encoding: chunked")
	var all []deed
	for _, list := range [][]deed{
		deeds(get, "headers", "set", "wrong", "shared", "metrics", "set properties", "foreign", "log", "request later", "close later", "local later", "nothing"),
		deeds(post, "read", "append", "prepend", "replace", "middle", "drop", "past", "stream through"),
		deeds(chunked, "append", "replace"),
		deeds(request("GET", "/p/chunked", ""), "append", "replace"),
		deeds(request("GET", "/p/204", ""), "headers", "append"),
		deeds(request("HEAD", "/p/x", ""), "headers", "append"),
		deeds(request("GET", "/direct", ""), "headers", "append"),
		deeds(get, "local", "local empty", "local 204", "local grpc", "local twice", "close"),
		deeds(post, "local", "local body"),
		deeds(request("POST", "/p/x", "", "Content-Type: application/grpc", "Content-Length: 0"), "local", "local grpc"),
		deeds(get, "call", "call post", "call chunked", "call trailers", "call empty", "call closes", "call down", "call none", "call silent",
			"call twice", "call local", "call wrong"),
		deeds(post, "call", "call local", "call none"),
		deeds(chunked, "call", "call local"),
		deeds(request("POST", "/p/x", "hello", "Content-Length: 10"), "call local"),
		deeds(request("POST", "/p/x", "3\r\nabc\r\n", "Transfer-Encoding: chunked"), "call local"),
		deeds(get, "grpc unary", "grpc fails", "grpc encoded", "grpc no status", "grpc bad frame", "grpc only trailers", "grpc 404", "grpc 500",
			"grpc resets", "grpc silent", "grpc nothing", "grpc two", "grpc down", "grpc none", "grpc service", "grpc cancel"),
		deeds(get, "stream", "stream fails", "stream no status", "stream bad frame", "stream only trailers", "stream 404", "stream resets",
			"stream two", "stream down", "stream cancel"),
	} {
		all = append(all, list...)
	}
	for i, d := range all {
		line, _, _ := strings.Cut(d.request, " HTTP/1.1")
		t.Run(d.name+" "+strings.ReplaceAll(line, "/", "_"), func(t *testing.T) { p.do(t, d, i+1) })
	}
	for _, mark := range []string{": tick = 0", ": queue is ready = 0 ready"} {
		until(t, "envoy", p.saidByEnvoy, mark, 1)
		until(t, "the engine", p.saidByEngine, mark, 1)
	}
	if diff := cmp.Diff(guestMetrics(t, p.envoyAdmin), guestMetrics(t, p.engAdmin)); diff != "" {
		t.Errorf("metrics (-envoy +engine):\n%s", diff)
	}
}

// guestMetrics are the lines of the guest's metrics, of both formats.
func guestMetrics(t *testing.T, admin string) (list []string) {
	for _, path := range []string{"/stats?filter=guest", "/stats/prometheus?filter=guest"} {
		resp, err := http.Get("http://" + admin + path)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "guest") && !strings.Contains(line, "histogram") && !strings.Contains(line, "vm_reload") { // Envoy merges histograms every few seconds
				list = append(list, line)
			}
		}
	}
	return list
}

// attributes are the paths of all properties that Envoy documents, and of some that
// there are not.
//
// https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/advanced/attributes
var attributes = strings.Fields(`
request.path request.url_path request.host request.scheme request.method request.headers request.headers.x-mixed request.headers.x-twice
request.headers.x-nothing request.referer request.useragent request.time request.id request.protocol request.query request.duration
request.size request.total_size request
response.code response.code_details response.flags response.grpc_status response.headers response.headers.x-back response.trailers
response.size response.total_size response.backend_latency response
source.address source.port source destination upstream xds destination.address destination.port
connection.id connection.mtls connection.requested_server_name connection.tls_version connection.subject_local_certificate
connection.subject_peer_certificate connection.dns_san_local_certificate connection.dns_san_peer_certificate
connection.uri_san_local_certificate connection.uri_san_peer_certificate connection.sha256_peer_certificate_digest
connection.transport_failure_reason connection.termination_details connection
upstream.address upstream.port upstream.tls_version upstream.subject_local_certificate upstream.subject_peer_certificate
upstream.dns_san_local_certificate upstream.uri_san_peer_certificate upstream.sha256_peer_certificate_digest upstream.local_address
upstream.transport_failure_reason upstream.request_attempt_count upstream.cx_pool_ready_duration upstream.locality
metadata filter_state upstream_filter_state
xds.cluster_name xds.cluster_metadata xds.route_name xds.route_metadata xds.upstream_host_metadata xds.filter_chain_name
xds.listener_metadata xds.listener_direction xds.node xds.node.id xds.node.cluster xds.node.metadata xds.node.metadata.NAME
xds.virtual_host_name xds.virtual_host_metadata xds.upstream_host_locality_metadata
plugin_name plugin_root_id plugin_vm_id cluster_name cluster_metadata route_name route_metadata upstream_host_metadata
listener_direction listener_metadata connection_id node node.id node.metadata request.nothing nothing.at.all`)

// varies are properties that differ from one proxy, or one run, to the other: only
// their length is compared, or whether they are there.
var varies = regexp.MustCompile(`: (request\.(headers|time|id|duration|total_size)|source\.(address|port)|destination\.(address|port)|` +
	`connection\.id|connection_id|upstream\.(local_address|cx_pool_ready_duration)|response\.(headers|size|total_size|backend_latency)|xds\.node|xds\.node\.metadata) = 0 .*$`)

// TestGuestProperties has the guest look at every property at every step.
func TestGuestProperties(t *testing.T) {
	module := cGuest(t)
	p := guestPair(t, module, strings.Join(attributes, "\n"))
	for i, d := range []deed{
		{"properties", request("GET", "/p/x?q=1", "", "X-Mixed: Aa", "X-Twice: 1", "X-Twice: 2", "User-Agent: me", "Referer: there")},
		{"properties", request("POST", "/p/x", "hello", "Content-Length: 5")},
		{"properties", request("POST", "/p/chunked", "3\r\nabc\r\n0\r\n\r\n", "Transfer-Encoding: chunked")},
		{"properties", request("GET", "/direct", "")},
		{"properties", request("GET", "/nothing", "")},
		{"properties", request("GET", "/down", "")},
		{"properties", request("GET", "/none", "")},
		{"properties", request("GET", "/nocluster", "")},
		{"properties", request("GET", "/p/close", "")},
		{"properties", request("GET", "/late", "")},
		{"properties", request("GET", "/retrydown", "")},
		{"properties", request("GET", "/p/503", "")},
	} {
		line, _, _ := strings.Cut(d.request, " HTTP/1.1")
		t.Run(strings.ReplaceAll(line, "/", "_"), func(t *testing.T) { p.do(t, d, i+1) })
	}
}

// tcpPair has both run the module as a network filter before an echo.
func tcpPair(t *testing.T, module, configuration string) *pair {
	back := echoBackend(t)
	return startPair(t, func(port int) []proto.Message {
		l := parse(t, fmt.Sprintf(`
name: tcp
address: {socket_address: {address: 127.0.0.1, port_value: %d}}
filter_chains:
- filters:
  - name: plugin
    config_discovery:
      config_source: %s
      type_urls: [type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm]
  - %s`, port, adsSource, tcpTo("backend")), new(listenerv3.Listener))
		return []proto.Message{staticCluster(t, "backend", back), l, guestExtension(t, "network", module, configuration)}
	})
}

// TestGuestTCP sends bytes through the guest as a network filter, both ways.
func TestGuestTCP(t *testing.T) {
	paths := slices.DeleteFunc(slices.Clone(attributes), func(a string) bool { return strings.HasPrefix(a, "re") })
	p := tcpPair(t, cGuest(t), strings.Join(paths, "\n"))
	for i, tt := range []struct{ name, say, want string }{
		{"bytes", "hello", "hello<>"},
		{"held back and let go", "wait.", "wait.<>"},
		{"closed", "quit", ""},
	} {
		t.Run(tt.name, func(t *testing.T) { p.talkToBoth(t, i+1, tt.say, tt.want) })
	}
}

// talkToBoth says something to both, compares what comes back with what is wanted, and
// what the guests logged until each forgot the connection, which is the n-th.
func (p *pair) talkToBoth(t *testing.T, n int, say, want string) {
	t.Helper()
	fromEnvoy, fromEngine := len(p.saidByEnvoy()), len(p.saidByEngine())
	for proxy, port := range map[string]int{"envoy": p.envoyPort, "engine": p.enginePort} {
		if got := talk(t, port, say, len(want)); got != want {
			t.Errorf("%s: %q, want %q", proxy, got, want)
		}
	}
	wanted := masked(until(t, "envoy", p.saidByEnvoy, ": deleted", n)[fromEnvoy:])
	have := masked(until(t, "the engine", p.saidByEngine, ": deleted", n)[fromEngine:])
	if diff := lineDiff(wanted, have); diff != "" {
		t.Errorf("log (-envoy +engine):\n%s", diff)
	}
}

// echoBackend says back what it hears, until the client ends its side.
func echoBackend(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

// talk says words and hears n bytes.
func talk(t *testing.T, port int, words string, n int) string {
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, words); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, n)
	m, _ := io.ReadFull(c, got)
	if n == 0 { // the proxy is to close the connection, not the client
		_, _ = io.Copy(io.Discard, c)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	_, _ = io.Copy(io.Discard, c)
	return string(got[:m])
}

// goGuest builds testdata/guests/go.
func goGuest(t *testing.T) string {
	t.Helper()
	t.Setenv("GOOS", "wasip1")
	t.Setenv("GOARCH", "wasm")
	return compile(t, "go", "-C", "testdata/guests/go", "build", "-buildmode=c-shared", "-buildvcs=false", "-o")
}

// rustGuest builds testdata/guests/rust.
func rustGuest(t *testing.T) string {
	t.Helper()
	const target = "wasm32-wasip1"
	if out, err := exec.CommandContext(t.Context(), "rustc", "--print", "target-libdir", "--target", target).Output(); err != nil {
		t.Skipf("rustc is missing (https://rustup.rs): %v", err)
	} else if _, err := os.Stat(strings.TrimSpace(string(out))); err != nil {
		t.Skipf("rustc has no %s (rustup target add %s): %v", target, target, err)
	}
	dir := compile(t, "cargo", "build", "--release", "--locked", "--quiet", "--target", target,
		"--manifest-path", "testdata/guests/rust/Cargo.toml", "--target-dir")
	return filepath.Join(dir, target, "release", "guest.wasm")
}

// assemblyScriptGuest builds testdata/guests/assemblyscript, in a copy: the compiler is
// put beside it.
func assemblyScriptGuest(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("npm"); err != nil {
		t.Skipf("npm is missing: %v", err)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/guests/assemblyscript")); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "guest.wasm")
	for _, args := range [][]string{{"npm", "install", "--silent"}, {"npx", "asc", "assembly/index.ts", "--target", "release", "--outFile", out}} {
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Dir = dir
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, text)
		}
	}
	return out
}

// TestGuestLanguages has guests in other languages, with what their SDKs and runtimes
// import, do the same, over HTTP and TCP.
func TestGuestLanguages(t *testing.T) {
	get := request("GET", "/p/x?q=1", "", "X-Mixed: Aa", "X-Twice: 1", "X-Twice: 2", "X-Gone: 1", "X-Empty:")
	post := request("POST", "/p/x", "hello", "Content-Length: 5")
	for name, build := range map[string]func(*testing.T) string{"go": goGuest, "rust": rustGuest, "assemblyscript": assemblyScriptGuest} {
		t.Run(name, func(t *testing.T) {
			module := build(t)
			p := guestPair(t, module, "")
			for i, d := range slices.Concat(
				deeds(get, "nothing", "headers", "local", "shared", "metrics", "call", "call nobody", "grpc unary"),
				deeds(post, "append", "call", "local"),
				deeds(request("GET", "/p/chunked", ""), "append"),
			) {
				t.Run(d.name, func(t *testing.T) { p.do(t, d, i+1) })
			}
			until(t, "envoy", p.saidByEnvoy, ": deleted", 12)
			if diff := cmp.Diff(guestMetrics(t, p.envoyAdmin), guestMetrics(t, p.engAdmin)); diff != "" {
				t.Errorf("metrics (-envoy +engine):\n%s", diff)
			}
			t.Run("panic", func(t *testing.T) {
				p.same(t, map[string]string{"panics": request("GET", "/p/x", "", "X-Do: panic"), "after": request("GET", "/p/x", "")})
			})
		})
		if name == "assemblyscript" {
			continue
		}
		t.Run(name+" over TCP", func(t *testing.T) {
			p := tcpPair(t, build(t), "network")
			p.talkToBoth(t, 1, "hello", "[all]")
			p.talkToBoth(t, 2, "more", "[all]")
		})
	}
}
