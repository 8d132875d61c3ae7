//go:build e2e

package engine

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
)

const filtersByRoute = `
- name: fault
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault}
- name: cors
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}
- name: rbac
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC}` + discovered

const routesWithFilters = `
- match: {prefix: /abort}
  route: {cluster: backend, timeout: 0s}
  typed_per_filter_config:
    fault: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {http_status: 418, percentage: {numerator: 100}}}
- match: {prefix: /grpc-abort}
  route: {cluster: backend, timeout: 0s}
  typed_per_filter_config:
    fault: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {grpc_status: 14, percentage: {numerator: 100}}}
- match: {prefix: /delay}
  route: {cluster: backend, timeout: 0s}
  typed_per_filter_config:
    fault:
      "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
      delay: {fixed_delay: 0.05s, percentage: {numerator: 100}}
      abort: {http_status: 503, percentage: {numerator: 1000000, denominator: MILLION}}
- match: {prefix: /never}
  route: {cluster: backend, timeout: 0s}
  typed_per_filter_config:
    fault: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {http_status: 418, percentage: {numerator: 0}}}
- match: {prefix: /cors}
  route: {cluster: backend, timeout: 0s}
  typed_per_filter_config:
    cors:
      "@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy
      filter_enabled: {default_value: {numerator: 100}}
      allow_origin_string_match: [{exact: "https://a.example"}, {prefix: "http://b."}]
      allow_methods: "GET,POST"
      allow_headers: x-a,x-b
      expose_headers: x-c
      max_age: "60"
      allow_credentials: true
- match: {prefix: /strict-cors}
  route: {cluster: backend, timeout: 0s}
  typed_per_filter_config:
    cors:
      "@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy
      allow_origin_string_match: [{exact: "*"}]
      forward_not_matching_preflights: false
- match: {prefix: /only-a}
  route: {cluster: backend, timeout: 0s}
  typed_per_filter_config:
    cors:
      "@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy
      allow_origin_string_match: [{exact: "https://a.example"}]
      forward_not_matching_preflights: false
- match: {prefix: /no-plugin}
  route: {cluster: backend, timeout: 0s}
  typed_per_filter_config:
    plugin: {"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}
- match: {prefix: /denied}
  route: {cluster: backend, timeout: 0s}
  typed_per_filter_config:
    rbac: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute, rbac: {rules: {}}}
- match: {prefix: /}
  route: {cluster: backend, timeout: 0s}`

// TestRouteFiltersLikeEnvoy has routes speak to filters: faults, CORS, RBAC, and a
// plugin that is left out.
func TestRouteFiltersLikeEnvoy(t *testing.T) {
	back := rawBackend(t)
	module, err := filepath.Abs(wasmDir + "addheader.wasm")
	if err != nil {
		t.Fatal(err)
	}
	p := startPair(t, func(port int) []proto.Message {
		return []proto.Message{
			staticCluster(t, "backend", back), routeConfig(t, routesWithFilters), wasmExtension(t, module, ""),
			httpListener(t, "main", port, filtersByRoute, "stream_idle_timeout: 0s"),
		}
	})
	preflight := func(path, origin string) string {
		return request("OPTIONS", path, "", "Origin: "+origin, "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: x-a")
	}
	p.same(t, map[string]string{
		"abort":                   request("GET", "/abort", ""),
		"abort of a post":         request("POST", "/abort", "hello", "Content-Length: 5"),
		"abort of gRPC":           request("POST", "/grpc-abort", "", "Content-Type: application/grpc", "Content-Length: 0"),
		"abort by gRPC's status":  request("GET", "/grpc-abort", ""),
		"delay and abort":         request("GET", "/delay", ""),
		"never":                   request("GET", "/never", ""),
		"cors":                    request("GET", "/cors", "", "Origin: https://a.example"),
		"cors by prefix":          request("GET", "/cors", "", "Origin: http://b.example"),
		"cors of another":         request("GET", "/cors", "", "Origin: https://c.example"),
		"no origin":               request("GET", "/cors", ""),
		"preflight":               preflight("/cors", "https://a.example"),
		"preflight of another":    preflight("/cors", "https://c.example"),
		"strict preflight":        preflight("/strict-cors", "https://c.example"),
		"preflight not forwarded": preflight("/only-a", "https://c.example"),
		"options":                 request("OPTIONS", "/cors", "", "Origin: https://a.example"),
		"without the plugin":      request("GET", "/no-plugin", ""),
		"with the plugin":         request("GET", "/with", ""),
		"denied":                  request("GET", "/denied", ""),
		"cors of a local reply":   request("GET", "/cors/close", "", "Origin: https://a.example"),
	})
}

// named answers with a status, and its name.
func named(t *testing.T, name string, status int) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		fmt.Fprint(w, name)
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func withCluster(t *testing.T, c *clusterv3.Cluster, more string) *clusterv3.Cluster {
	proto.Merge(c, parse(t, more, new(clusterv3.Cluster)))
	return c
}

// TestBreakersLikeEnvoy has limits that let nothing through.
func TestBreakersLikeEnvoy(t *testing.T) {
	back, down := rawBackend(t), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	p := startPair(t, func(port int) []proto.Message {
		return []proto.Message{
			withCluster(t, staticCluster(t, "pending", back), "circuit_breakers: {thresholds: [{max_pending_requests: 0}]}"),
			withCluster(t, staticCluster(t, "requests", back), "circuit_breakers: {thresholds: [{max_requests: 0}]}"),
			withCluster(t, staticCluster(t, "one", back), "circuit_breakers: {thresholds: [{max_connections: 0}]}"),
			withCluster(t, staticCluster(t, "retries", down), "circuit_breakers: {thresholds: [{max_retries: 0}]}"),
			httpListener(t, "main", port, "", "stream_idle_timeout: 0s"), routeConfig(t, `
- match: {prefix: /pending}
  route: {cluster: pending, timeout: 0s, retry_policy: {num_retries: 2, retry_on: "5xx,reset,connect-failure"}}
- match: {prefix: /requests}
  route: {cluster: requests, timeout: 0s}
- match: {prefix: /one}
  route: {cluster: one, timeout: 0s}
- match: {prefix: /retries}
  route: {cluster: retries, timeout: 0s, retry_policy: {num_retries: 2, retry_on: connect-failure}}`),
		}
	})
	p.same(t, map[string]string{
		"pending":                              request("GET", "/pending", ""),
		"requests":                             request("GET", "/requests", ""),
		"a first connection is always allowed": request("GET", "/one", ""),
		"retries":                              request("GET", "/retries", ""),
	})
}

// TestOutliersLikeEnvoy has endpoints that fail ejected, as many as may be.
func TestOutliersLikeEnvoy(t *testing.T) {
	bad, good, better := named(t, "bad", 503), named(t, "good", 200), named(t, "better", 200)
	for name, tt := range map[string]struct {
		detection string
		ejected   int
	}{
		"consecutive":      {"{consecutive_5xx: 2, max_ejection_percent: 100, interval: 60s}", 1},
		"gateway":          {"{consecutive_gateway_failure: 3, enforcing_consecutive_gateway_failure: 100, enforcing_consecutive_5xx: 0, max_ejection_percent: 100, interval: 60s}", 1},
		"too many at once": {"{consecutive_5xx: 2, max_ejection_percent: 10, interval: 60s}", 0},
		"always one":       {"{consecutive_5xx: 2, max_ejection_percent: 10, interval: 60s, always_eject_one_host: true}", 1},
		"not enforced":     {"{consecutive_5xx: 2, enforcing_consecutive_5xx: 0, max_ejection_percent: 100, interval: 60s}", 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := startPair(t, func(port int) []proto.Message {
				return []proto.Message{
					withCluster(t, staticCluster(t, "backend", bad, good, better), "lb_policy: ROUND_ROBIN\noutlier_detection: "+tt.detection),
					routeConfig(t, toBackend), httpListener(t, "main", port, "", "stream_idle_timeout: 0s"),
				}
			})
			for proxy, at := range map[string]struct {
				port  int
				admin string
			}{"envoy": {p.envoyPort, p.envoyAdmin}, "the engine": {p.enginePort, p.engAdmin}} {
				if n := failures(t, at.port); n == 0 {
					t.Errorf("%s does not ask the bad endpoint at first", proxy)
				}
				ejected(t, at.admin, tt.ejected)
				if n := failures(t, at.port); n > 0 == (tt.ejected > 0) {
					t.Errorf("%s asks the bad endpoint %d times; %d are ejected", proxy, n, tt.ejected)
				}
			}
		})
	}
}

// failures is how many of some requests fail.
func failures(t *testing.T, port int) (n int) {
	for range 12 {
		if strings.HasPrefix(raw(t, port, request("GET", "/", "")), "HTTP/1.1 503") {
			n++
		}
	}
	return n
}

// ejected waits until so many endpoints are.
func ejected(t *testing.T, admin string, want int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		resp, err := http.Get("http://" + admin + "/stats?filter=backend.outlier_detection.ejections_active")
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if strings.Contains(string(text), fmt.Sprintf("ejections_active: %d", want)) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("want %d ejections: %s", want, text)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// TestMirrorLikeEnvoy compares the copies of requests.
func TestMirrorLikeEnvoy(t *testing.T) {
	for name, tt := range map[string]struct{ policy, request string }{
		"get":       {"{cluster: mirror}", request("GET", "/a?b", "", "X-A: 1")},
		"post":      {"{cluster: mirror, trace_sampled: false}", request("POST", "/a", "hello", "Content-Length: 5")},
		"same host": {"{cluster: mirror, disable_shadow_host_suffix_append: true}", request("GET", "/a", "")},
		"port":      {"{cluster: mirror}", strings.Replace(request("GET", "/a", ""), "example.com", "example.com:8080", 1)},
	} {
		t.Run(name, func(t *testing.T) {
			back := rawBackend(t)
			addr, heard := recorder(t)
			p := startPair(t, func(port int) []proto.Message {
				return []proto.Message{
					staticCluster(t, "backend", back), staticCluster(t, "mirror", addr), httpListener(t, "main", port, "", "stream_idle_timeout: 0s"),
					routeConfig(t, fmt.Sprintf("\n- match: {prefix: /}\n  route: {cluster: backend, timeout: 3s, request_mirror_policies: [%s]}", tt.policy)),
				}
			})
			var copies []string
			for _, port := range []int{p.envoyPort, p.enginePort} {
				raw(t, port, tt.request)
				select {
				case text := <-heard:
					copies = append(copies, anyID.ReplaceAllString(text, "(id)"))
				case <-time.After(5 * time.Second):
					t.Fatal("no copy has come")
				}
			}
			if diff := cmp.Diff(copies[0], copies[1]); diff != "" {
				t.Errorf("copy (-envoy +engine):\n%s", diff)
			}
		})
	}
}

// recorder tells of each request that comes, head and body.
func recorder(t *testing.T) (addr string, heard chan string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	heard = make(chan string, 16)
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				defer c.Close()
				r := bufio.NewReader(c)
				var text strings.Builder
				size := 0
				for {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					_, _ = fmt.Sscanf(line, "content-length: %d", &size)
					text.WriteString(line)
					if line == "\r\n" {
						break
					}
				}
				for range size {
					b, err := r.ReadByte()
					if err != nil {
						return
					}
					text.WriteByte(b)
				}
				fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
				heard <- text.String()
			}()
		}
	}()
	return l.Addr().String(), heard
}

const logFormat = `%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %REQ(:path):4% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% ` +
	`%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% ` +
	`%RESP(X-BACK)% \"%REQ(USER-AGENT)%\" \"%REQ(:AUTHORITY)%\" %UPSTREAM_HOST% %UPSTREAM_CLUSTER% %UPSTREAM_CLUSTER_RAW% ` +
	`%UPSTREAM_REQUEST_ATTEMPT_COUNT% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% ` +
	`%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT% %REQUESTED_SERVER_NAME% %ROUTE_NAME% %FILTER_CHAIN_NAME% 100%%\n`

var logFormats = map[string]string{
	"text": `log_format: {text_format_source: {inline_string: "` + logFormat + `"}}`,
	"old":  `format: "` + logFormat + `"`,
	"omit": `log_format: {omit_empty_values: true, text_format_source: {inline_string: "%REQ(x-nothing)%|%RESP(x-back)%|%UPSTREAM_HOST%\n"}}`,
	"json": `log_format: {json_format: {code: "%RESPONSE_CODE%", flags: "%RESPONSE_FLAGS%", nothing: "%REQ(x-nothing)%", both: "%REQ(:method)% %PROTOCOL%", ` +
		`sent: "%BYTES_SENT%", "a quote": "\"%REQ(user-agent)%\"", inner: {host: "%UPSTREAM_HOST%", zone: "fixed"}}}`,
	"json omit": `log_format: {omit_empty_values: true, json_format: {code: "%RESPONSE_CODE%", nothing: "%REQ(x-nothing)%", mixed: "x%REQ(x-nothing)%"}}`,
	"default":   ``,
}

// TestAccessLogsLikeEnvoy compares the lines for many requests, in many formats.
func TestAccessLogsLikeEnvoy(t *testing.T) {
	back, silent, down := rawBackend(t), silentBackend(t), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	dir := t.TempDir()
	file := func(name string, port int) string {
		return filepath.Join(dir, fmt.Sprintf("%s-%d.log", strings.ReplaceAll(name, " ", "-"), port))
	}
	p := startPair(t, func(port int) []proto.Message {
		var logs strings.Builder
		logs.WriteString("stream_idle_timeout: 0s\naccess_log:\n")
		for name, format := range logFormats {
			fmt.Fprintf(&logs, "- name: %s\n  typed_config:\n    \"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog\n    path: %s\n    %s\n",
				strings.ReplaceAll(name, " ", "-"), file(name, port), format)
		}
		return []proto.Message{
			staticCluster(t, "backend", back), staticCluster(t, "down", down), staticCluster(t, "none"), staticCluster(t, "silent", silent),
			routeConfig(t, manyRoutes), httpListener(t, "main", port, "", logs.String()),
		}
	})
	requests := []string{
		request("GET", "/p/x?q", "", `User-Agent: "me"`), request("POST", "/p/x", "hello", "Content-Length: 5"), request("GET", "/p/chunked", ""),
		request("GET", "/p/204", ""), request("HEAD", "/p/x", ""), request("GET", "/swap/a?b", ""), request("GET", "/nothing", ""), request("GET", "/direct", ""),
		request("GET", "/nocluster", ""), request("GET", "/down", ""), request("GET", "/retrydown", ""), request("GET", "/none", ""), request("GET", "/late", ""),
		request("GET", "/try", ""), request("GET", "/p/close", ""), request("GET", "/attempts/503", ""), request("GET", "/redirect/path", ""),
	}
	for _, r := range requests {
		for _, port := range []int{p.envoyPort, p.enginePort} {
			raw(t, port, r)
		}
	}
	if _, err := http.Post("http://"+p.envoyAdmin+"/reopen_logs", "", nil); err != nil { // has Envoy write what it holds back
		t.Fatal(err)
	}
	for name := range logFormats {
		t.Run(name, func(t *testing.T) {
			want, got := logLines(t, file(name, p.envoyPort), len(requests)), logLines(t, file(name, p.enginePort), len(requests))
			if diff := lineDiff(want, got); diff != "" {
				t.Errorf("log (-envoy +engine):\n%s", diff)
			}
		})
	}
}

var (
	logTime   = regexp.MustCompile(`^\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\]`)
	logMillis = regexp.MustCompile(`( \d+ \d+) \d+ (\d+|-) "`)
)

// logLines waits until the file has n lines, and makes equal what differs each time.
func logLines(t *testing.T, file string, n int) []string {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); ; {
		raw, err := os.ReadFile(file)
		lines := strings.Split(strings.TrimSuffix(string(raw), "\n"), "\n")
		if err == nil && len(raw) > 0 && len(lines) >= n {
			for i, l := range lines {
				l = logTime.ReplaceAllString(anyID.ReplaceAllString(l, "(id)"), "[time]")
				lines[i] = logMillis.ReplaceAllString(l, `$1 (ms) (ms) "`)
			}
			slices.Sort(lines) // a request may be logged after the next one, of another connection
			return lines
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s has %d lines, want %d: %v\n%s", file, len(lines), n, err, raw)
		}
		<-time.After(20 * time.Millisecond)
	}
}

const faultOf = `fault: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {http_status: %d, percentage: {numerator: 100}}}`

// levelRoutes speaks to filters on all levels of a route: the configuration, the virtual
// host, the route and the weighted cluster.
func levelRoutes() string {
	weighted := func(path, filters, ofRoute string) string {
		return fmt.Sprintf(`
  - match: {prefix: %s}
    typed_per_filter_config: {%s}
    route:
      timeout: 0s
      weighted_clusters: {clusters: [{name: none, weight: 0}, {name: backend, weight: 1, typed_per_filter_config: {%s}}]}`, path, ofRoute, filters)
	}
	const typed = `{"@type": type.googleapis.com/envoy.`
	cors := func(fields string) string {
		return `cors: ` + typed + `extensions.filters.http.cors.v3.CorsPolicy, ` + fields + `}`
	}
	const off, on, only = typed + `config.route.v3.FilterConfig, disabled: true}`, typed + `config.route.v3.FilterConfig, config: {}}`,
		typed + `extensions.filters.http.rbac.v3.RBACPerRoute, rbac: {rules: {policies: {get: {permissions: [{header: {name: ":method", string_match: {exact: GET}}}], principals: [{any: true}]}}}}}`
	return `
name: routes
typed_per_filter_config:
  ` + fmt.Sprintf(faultOf, 410) + `
  ` + cors(`max_age: "7", expose_headers: x-all, allow_methods: PUT, allow_origin_string_match: [{exact: "https://wide.example"}]`) + `
virtual_hosts:
- name: bare
  domains: [bare.example]
  routes:
  - {match: {prefix: /}, route: {cluster: backend, timeout: 0s}}
- name: all
  domains: ["*"]
  typed_per_filter_config:
    ` + fmt.Sprintf(faultOf, 411) + `
    plugin: ` + off + `
    ` + cors(`allow_headers: "*", allow_credentials: true, forward_not_matching_preflights: false`) + `
  routes:` + weighted("/host", "", "") + weighted("/route", "", fmt.Sprintf(faultOf, 412)) +
		weighted("/weighted", fmt.Sprintf(faultOf, 413), fmt.Sprintf(faultOf, 412)) + weighted("/off", "fault: "+off, fmt.Sprintf(faultOf, 412)) +
		weighted("/plugin", "plugin: "+on, "fault: "+off) + weighted("/rbac", "rbac: "+only, "fault: "+off) +
		weighted("/free", "rbac: "+typed+"extensions.filters.http.rbac.v3.RBACPerRoute}", "fault: "+off) +
		weighted("/cors", cors(`allow_origin_string_match: [{exact: "https://a.example"}]`), "fault: "+off+", "+cors(`allow_methods: "*", allow_credentials: false`)) +
		weighted("/wide-cors", "", "fault: "+off) + `
  - {match: {prefix: /direct}, direct_response: {status: 200}, typed_per_filter_config: {` + cors(`allow_origin_string_match: [{exact: "*"}]`) + `, fault: ` + off + `}}`
}

// TestRouteLevelsLikeEnvoy has every level of a route speak to filters: the most specific one counts.
func TestRouteLevelsLikeEnvoy(t *testing.T) {
	back := rawBackend(t)
	module, err := filepath.Abs(wasmDir + "addheader.wasm")
	if err != nil {
		t.Fatal(err)
	}
	p := startPair(t, func(port int) []proto.Message {
		return []proto.Message{
			staticCluster(t, "backend", back), staticCluster(t, "none"), parse(t, levelRoutes(), new(routev3.RouteConfiguration)),
			wasmExtension(t, module, ""), httpListener(t, "main", port, filtersByRoute, "stream_idle_timeout: 0s"),
		}
	})
	preflight := func(path, origin string) string {
		return request("OPTIONS", path, "", "Origin: "+origin, "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: x-a")
	}
	requests := map[string]string{"configuration": "GET / HTTP/1.1\r\nHost: bare.example\r\n\r\n", "unknown": request("GET", "/nothing", ""), "denied": request("POST", "/rbac", "")}
	for _, path := range []string{"host", "route", "weighted", "off", "plugin", "rbac", "free", "cors", "wide-cors", "direct"} {
		requests[path] = request("GET", "/"+path, "")
		for name, origin := range map[string]string{"a": "https://a.example", "wide": "https://wide.example", "other": "https://other.example"} {
			requests[path+" from "+name] = request("GET", "/"+path, "", "Origin: "+origin)
			requests[path+" preflight of "+name] = preflight("/"+path, origin)
		}
	}
	p.same(t, requests)
}

// TestRequireTLSLikeEnvoy sends clients to HTTPS, whether there is a route for what they want or not.
func TestRequireTLSLikeEnvoy(t *testing.T) {
	back := rawBackend(t)
	p := startPair(t, func(port int) []proto.Message {
		return []proto.Message{
			staticCluster(t, "backend", back), httpListener(t, "main", port, "", "stream_idle_timeout: 0s"), parse(t, `
name: routes
response_headers_to_add: [{header: {key: x-all, value: "1"}}]
virtual_hosts:
- name: all
  domains: ["*"]
  require_tls: ALL
  response_headers_to_add: [{header: {key: x-host, value: "1"}}]
  routes:
  - {match: {prefix: /a}, route: {cluster: backend}, response_headers_to_add: [{header: {key: x-route, value: "1"}}]}`, new(routev3.RouteConfiguration)),
		}
	})
	p.same(t, map[string]string{
		"route": request("GET", "/a?b", ""), "no route": request("GET", "/b?c", ""), "https": request("GET", "/a", "", "X-Forwarded-Proto: https"),
		"no route over https": request("GET", "/b", "", "X-Forwarded-Proto: https"), "port": "GET /b HTTP/1.1\r\nHost: h:80\r\n\r\n",
	})
}
