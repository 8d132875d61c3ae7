//go:build e2e

package engine

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"
)

// fileLog is an access log of all that there is to tell of a connection.
func fileLog(path, filter string) string {
	const format = `%PROTOCOL% %REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% ` +
		`\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %RESP(X-BACK)% \"%REQ(:AUTHORITY)%\" %UPSTREAM_HOST% %UPSTREAM_CLUSTER% ` +
		`%UPSTREAM_REQUEST_ATTEMPT_COUNT% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% ` +
		`%REQUESTED_SERVER_NAME% %ROUTE_NAME% %FILTER_CHAIN_NAME%\n`
	return fmt.Sprintf(`{name: file, %s typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: %q, log_format: {text_format_source: {inline_string: "%s"}}}}`,
		filter, path, format)
}

// tcpChain is a filter chain for a destination port, whose TCP proxy has further fields.
func tcpChain(name string, port int, logs, fields string) string {
	return fmt.Sprintf(`
- name: %s
  filter_chain_match: {destination_port: %d}
  filters:
  - name: tcp
    typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, access_log: [%s], %s}`, name, port, logs, fields)
}

var (
	localPort = regexp.MustCompile(`127\.0\.0\.1:\d+ 127\.0\.0\.1 127\.0\.0\.1`)
	sentBytes = regexp.MustCompile(`"-" 42 12[67]`) // the head tells how long it took
)

// connectionLines are the lines of a log, with the ports made equal that are random.
func connectionLines(t *testing.T, file string, n int) []string {
	lines := logLines(t, file, n)
	for i, l := range lines {
		l = sentBytes.ReplaceAllString(l, `"-" 42 (n)`)
		lines[i] = localPort.ReplaceAllString(l, "(local) 127.0.0.1 127.0.0.1")
	}
	return lines
}

// TestConnectionLogsLikeEnvoy compares what is logged of connections, by the TCP proxy and by the listener.
func TestConnectionLogsLikeEnvoy(t *testing.T) {
	back, down := rawBackend(t), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	dir := t.TempDir()
	const kinds = "plain down none unknown http shy"
	ports := map[int]map[string]int{}
	file := func(of string, port int) string { return filepath.Join(dir, fmt.Sprintf("%s-%d.log", of, port)) }
	p := startPair(t, func(main int) []proto.Message {
		ports[main] = map[string]int{"nothing": main}
		all := []proto.Message{
			staticCluster(t, "plain", back), staticCluster(t, "down", down), staticCluster(t, "none"), staticCluster(t, "backend", back),
			routeConfig(t, toBackend),
		}
		for kind := range strings.FieldsSeq(kinds) {
			port := freePort(t)
			ports[main][kind] = port
			l := new(listenerv3.Listener)
			if kind == "http" {
				l = httpListener(t, kind, port, "", "stream_idle_timeout: 0s\naccess_log: ["+fileLog(file("http", main), "")+"]")
			} else {
				l = parse(t, fmt.Sprintf("name: %s\naddress: {socket_address: {address: 127.0.0.1, port_value: %d}}\nfilter_chains:%s",
					kind, port, tcpChain(kind, port, fileLog(file(kind, main), ""), "cluster: "+kind)), l)
			}
			if kind == "shy" {
				proto.Merge(l, parse(t, `listener_filters: [{name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}]`, new(listenerv3.Listener)))
			}
			proto.Merge(l, parse(t, "access_log: ["+fileLog(file("listener-"+kind, main), "")+"]", new(listenerv3.Listener)))
			all = append(all, l)
		}
		return append(all, parse(t, fmt.Sprintf("name: nothing\naddress: {socket_address: {address: 127.0.0.1, port_value: %d}}\naccess_log: [%s]\nfilter_chains:%s",
			main, fileLog(file("listener-nothing", main), ""), tcpChain("other", main+1, "", "cluster: plain")), new(listenerv3.Listener)))
	})
	for _, main := range []int{p.envoyPort, p.enginePort} {
		for kind := range strings.FieldsSeq(kinds + " nothing") {
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[main][kind]))
			if err != nil {
				t.Fatal(err)
			}
			if kind == "shy" { // and says nothing
				c.Close()
				continue
			}
			if _, err := io.WriteString(c, request("GET", "/x/204", "")); err != nil {
				t.Fatal(err)
			}
			if kind == "plain" || kind == "http" {
				var head [10]byte
				if _, err := io.ReadFull(c, head[:]); err != nil {
					t.Fatal(err)
				}
			}
			_ = c.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c) // the connection may be reset
			c.Close()
		}
	}
	if _, err := http.Post("http://"+p.envoyAdmin+"/reopen_logs", "", nil); err != nil {
		t.Fatal(err)
	}
	for kind := range strings.FieldsSeq(kinds + " nothing") {
		for _, of := range []string{kind, "listener-" + kind} {
			if of == "nothing" || of == "shy" { // no filter chain had it
				continue
			}
			t.Run(of, func(t *testing.T) {
				want, got := connectionLines(t, file(of, p.envoyPort), 1), connectionLines(t, file(of, p.enginePort), 1)
				if diff := lineDiff(want, got); diff != "" {
					t.Errorf("log (-envoy +engine):\n%s", diff)
				}
			})
		}
	}
}

// TestLogFiltersLikeEnvoy has logs want only some requests.
func TestLogFiltersLikeEnvoy(t *testing.T) {
	back, down := rawBackend(t), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	dir := t.TempDir()
	file := func(of string, port int) string { return filepath.Join(dir, fmt.Sprintf("%s-%d.log", of, port)) }
	compare := func(of, op string, n int) string {
		return fmt.Sprintf(`%s: {comparison: {op: %s, value: {default_value: %d, runtime_key: x}}}`, of, op, n)
	}
	const healthy, any = `not_health_check_filter: {}`, `response_flag_filter: {}`
	filters := map[string]string{
		"all": "", "errors": compare("status_code_filter", "GE", 400), "exactly": compare("status_code_filter", "EQ", 404), "least": compare("status_code_filter", "LE", 200),
		"long": compare("duration_filter", "GE", 3_600_000), "short": compare("duration_filter", "LE", 3_600_000), "healthy": healthy, "flagged": any,
		"routeless": `response_flag_filter: {flags: [NR, DC]}`, "header": `header_filter: {header: {name: x-log, string_match: {prefix: "y"}}}`,
		"unmarked": `header_filter: {header: {name: x-log, present_match: true, invert_match: true}}`,
		"and":      `and_filter: {filters: [{` + any + `}, {` + compare("status_code_filter", "GE", 500) + `}]}`,
		"or":       `or_filter: {filters: [{response_flag_filter: {flags: [NR]}}, {and_filter: {filters: [{` + compare("status_code_filter", "EQ", 200) + `}, {header_filter: {header: {name: x-log, string_match: {exact: "yes"}}}}]}}]}`,
	}
	p := startPair(t, func(port int) []proto.Message {
		var logs []string
		for name, filter := range filters {
			if filter != "" {
				filter = "filter: {" + filter + "},"
			}
			logs = append(logs, fileLog(file(name, port), filter))
		}
		return []proto.Message{
			staticCluster(t, "backend", back), staticCluster(t, "down", down), routeConfig(t, "\n- {match: {prefix: /p}, route: {cluster: backend}}\n- {match: {prefix: /down}, route: {cluster: down}}"),
			httpListener(t, "main", port, "", "access_log: ["+strings.Join(logs, ", ")+"]"),
		}
	})
	for _, r := range []string{
		request("GET", "/p/x", ""), request("GET", "/p/x", "", "X-Log: yes"), request("GET", "/p/503", "", "X-Log: yellow"), request("GET", "/down", "", "X-Log: no"), request("GET", "/nothing", ""),
	} {
		raw(t, p.envoyPort, r)
		raw(t, p.enginePort, r)
	}
	if _, err := http.Post("http://"+p.envoyAdmin+"/reopen_logs", "", nil); err != nil {
		t.Fatal(err)
	}
	text := func(name string, port int) []string {
		raw, err := os.ReadFile(file(name, port))
		if err != nil && !os.IsNotExist(err) { // the engine opens a file when it writes to it
			t.Fatal(err)
		}
		lines := strings.Split(upstreamPort.ReplaceAllString(string(raw), "$1 (local) "), "\n")
		slices.Sort(lines)
		return lines
	}
	logLines(t, file("all", p.enginePort), 5)
	deadline := time.Now().Add(10 * time.Second) // Envoy writes when it sees fit
	for name := range filters {
		diff := lineDiff(text(name, p.envoyPort), text(name, p.enginePort))
		for diff != "" && time.Now().Before(deadline) {
			<-time.After(20 * time.Millisecond)
			diff = lineDiff(text(name, p.envoyPort), text(name, p.enginePort))
		}
		if diff != "" {
			t.Errorf("%s (-envoy +engine):\n%s", name, diff)
		}
	}
}

var upstreamPort = regexp.MustCompile(`(\d) 127\.0\.0\.1:\d+ `)

// TestStandardLogsLikeEnvoy has both write to their standard output and error.
func TestStandardLogsLikeEnvoy(t *testing.T) {
	var files [2]*os.File
	for i, std := range []**os.File{&os.Stdout, &os.Stderr} {
		f, err := os.Create(filepath.Join(t.TempDir(), "log"))
		if err != nil {
			t.Fatal(err)
		}
		was := *std
		*std, files[i] = f, f
		t.Cleanup(func() {
			*std = was
			f.Close()
		})
	}
	back := rawBackend(t)
	log := func(kind string) string {
		return fmt.Sprintf(`{name: %s, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.%sAccessLog, log_format: {text_format_source: {inline_string: "to %s: %%REQ(:path)%% %%RESPONSE_CODE%%\n"}}}}`, kind, kind, kind)
	}
	p := startPair(t, func(port int) []proto.Message {
		return []proto.Message{
			staticCluster(t, "backend", back), routeConfig(t, toBackend),
			httpListener(t, "main", port, "", "access_log: ["+log("Stdout")+", "+log("Stderr")+"]"),
		}
	})
	for _, path := range []string{"/a", "/b/503", "/c"} {
		raw(t, p.envoyPort, request("GET", path, ""))
		raw(t, p.enginePort, request("GET", path, ""))
	}
	said := regexp.MustCompile(`(?m)^to .*$`)
	want := []string{"to Stderr: /a 200", "to Stderr: /b/503 503", "to Stderr: /c 200", "to Stdout: /a 200", "to Stdout: /b/503 503", "to Stdout: /c 200"}
	lines := func(texts ...string) []string {
		var all []string
		for _, text := range texts {
			all = append(all, said.FindAllString(text, -1)...)
		}
		slices.Sort(all)
		return all
	}
	ofEngine := func() []string {
		var texts [2]string
		for i, kind := range []string{"Stdout", "Stderr"} {
			raw, err := os.ReadFile(files[i].Name())
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range said.FindAllString(string(raw), -1) {
				if !strings.HasPrefix(line, "to "+kind) {
					t.Errorf("%s has %q", kind, line)
				}
			}
			texts[i] = string(raw)
		}
		return lines(texts[:]...)
	}
	ofEnvoy := func() []string { return lines(p.envoyLog.String()) }
	for of, got := range map[string]func() []string{"Envoy": ofEnvoy, "the engine": ofEngine} {
		deadline := time.Now().Add(15 * time.Second)
		for !slices.Equal(got(), want) && time.Now().Before(deadline) {
			<-time.After(20 * time.Millisecond)
		}
		if diff := lineDiff(want, got()); diff != "" {
			t.Errorf("what %s logs (-want +got):\n%s", of, diff)
		}
	}
}
