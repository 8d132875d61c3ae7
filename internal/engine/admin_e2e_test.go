//go:build e2e

package engine

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
)

// ask asks the admin interface at an address; what differs between two proxies of a pair
// is made equal.
func (p *pair) ask(t *testing.T, admin, method, path string) (status int, kind, body string) {
	t.Helper()
	r, err := http.NewRequest(method, "http://"+admin+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if v := resp.Header.Get("Cache-Control"); v != "no-cache, max-age=0" {
		t.Errorf("%s%s: cache-control %q", admin, path, v)
	}
	port := map[string]int{p.envoyAdmin: p.envoyPort, p.engAdmin: p.enginePort}[admin]
	return resp.StatusCode, resp.Header.Get("Content-Type"), strings.ReplaceAll(string(raw), strconv.Itoa(port), "PORT")
}

// TestAdminLikeEnvoy asks both admin interfaces the same.
func TestAdminLikeEnvoy(t *testing.T) {
	back := rawBackend(t)
	p := startPair(t, func(port int) []proto.Message {
		limited := staticCluster(t, "limited", back)
		limited.CircuitBreakers = parse(t, "{thresholds: [{max_connections: 5, max_retries: 7}]}", new(clusterv3.CircuitBreakers))
		return []proto.Message{
			staticCluster(t, "backend", back), staticCluster(t, "other", back), limited, routeConfig(t, toBackend), httpListener(t, "main", port, "", ""),
		}
	})
	for _, port := range []int{p.envoyPort, p.enginePort} {
		raw(t, port, request("GET", "/", ""))
		raw(t, port, request("GET", "/", ""))
	}
	whole := func(s string) string { return s }
	first := func(s string) string { line, _, _ := strings.Cut(s, "\n"); return line }
	for _, tt := range []struct {
		method, path string
		part         func(string) string // what is compared
	}{
		{"GET", "/ready", whole}, {"POST", "/ready", whole}, {"PUT", "/ready", whole},
		{"GET", "/nothing", first}, {"GET", "/help", first}, {"GET", "/stats/", first}, {"GET", "/ready/", first}, {"GET", "/", func(string) string { return "" }},
		{"GET", "/quitquitquit", whole}, {"GET", "/healthcheck/fail", whole}, {"GET", "/healthcheck/ok", whole}, {"GET", "/drain_listeners", whole}, {"GET", "/reset_counters", whole}, {"PUT", "/logging", whole},
		{"POST", "/logging?level=xx", usage}, {"POST", "/logging?nosuch=info", usage}, {"POST", "/logging?wasm=xx", usage}, {"POST", "/logging?level=info&wasm=debug", usage}, {"POST", "/logging?paths=nosuch:debug", usage},
		{"POST", "/logging?paths=wasm:nosuch", usage}, {"POST", "/logging?paths=wasm", usage}, {"POST", "/logging?group=wasm:info", usage}, {"POST", "/logging?paths=", first}, {"POST", "/logging", first},
		{"POST", "/logging?wasm=error", ofWasm}, {"POST", "/logging?wasm=", ofWasm}, {"POST", "/logging?paths=wasm:debug", ofWasm}, {"POST", "/logging?level=off", ofWasm}, {"POST", "/logging?level=", ofWasm}, {"POST", "/logging?level=info", ofWasm},
		{"GET", "/stats?filter=(", whole}, {"GET", "/stats/prometheus?filter=[", whole}, {"GET", "/stats?type=nosuch", whole}, {"GET", "/stats?format=prometheus&type=nosuch", whole}, {"GET", "/stats?hidden=nosuch", whole},
		{"GET", `/stats?filter=^cluster\.backend\.upstream_rq_(total|2xx|active)$`, whole}, {"GET", `/stats?format=json&filter=^cluster\.backend\.upstream_rq_(total|2xx|active)$`, whole},
		{"GET", `/stats?format=text&type=Gauges&filter=^cluster\.backend\.upstream_rq_(total|2xx|active)$`, whole}, {"GET", `/stats?type=Counters&filter=^cluster\.backend\.upstream_rq_(total|2xx|active)$`, whole},
		{"GET", `/stats?type=Histograms&filter=upstream_rq_total`, whole}, {"GET", `/stats?type=TextReadouts&filter=nothing`, whole}, {"GET", `/stats?format=json&filter=nothing`, whole},
		{"GET", `/stats?usedonly&filter=^cluster\.backend\.upstream_rq_(total|pending_overflow)$`, whole}, {"GET", "/stats?invert_filter&filter=^(cluster|http|server)", ofClusters},
		{"GET", `/stats/prometheus?filter=^cluster\.backend\.upstream_rq_total$`, whole}, {"GET", `/stats?format=prometheus&type=Gauges&filter=^cluster\.backend\.upstream_rq_total$`, whole}, {"GET", "/stats/prometheus?filter=nothing", whole},
		{"GET", "/stats/prometheus?text_readouts&filter=nothing", whole}, {"POST", `/stats?filter=^server\.live$`, whole},
		{"GET", "/clusters?filter=(", whole}, {"GET", "/clusters?filter=nothing", whole}, {"GET", "/clusters?format=json&filter=nothing", whole},
		{"GET", "/listeners", whole}, {"GET", "/listeners?format=json", whole}, {"GET", "/listeners?format=nosuch", whole},
		{"GET", "/config_dump?resource=nosuch", whole}, {"GET", "/config_dump?mask=nosuch", whole}, {"GET", "/config_dump?resource=version_info", whole}, {"GET", "/config_dump?name_regex=(", whole},
		{"GET", "/config_dump?resource=dynamic_active_clusters&mask=cluster.name", whole}, {"GET", "/config_dump?resource=dynamic_active_clusters&mask=version_info,cluster.name,cluster.type", whole},
		{"GET", "/config_dump?resource=dynamic_active_clusters&mask=version_info&name_regex=back", whole}, {"GET", "/config_dump?resource=dynamic_active_clusters&mask=version_info&name_regex=back.*|other", whole},
		{"GET", "/config_dump?resource=dynamic_listeners&mask=name", whole}, {"GET", "/config_dump?resource=dynamic_listeners&mask=name,active_state.version_info", whole}, {"GET", "/config_dump?resource=dynamic_listeners&name_regex=zz", whole},
		{"GET", "/config_dump?resource=dynamic_route_configs&mask=route_config.name", whole}, {"GET", "/config_dump?resource=dynamic_route_configs&name_regex=routes&mask=version_info", whole}, {"GET", "/config_dump?mask=dynamic_active_clusters.cluster.name", whole},
		{"GET", "/config_dump?resource=dynamic_endpoint_configs", whole},
		{"GET", "/config_dump?resource=dynamic_listeners&mask=active_state.listener.name", words}, {"GET", "/config_dump?resource=dynamic_listeners&mask=nosuch", words},
		{"POST", "/reset_counters", whole}, {"GET", `/stats?filter=^cluster\.backend\.upstream_(rq_total|cx_active)$`, whole},
		{"POST", "/healthcheck/fail", whole}, {"GET", "/ready", whole}, {"POST", "/healthcheck/ok", whole}, {"GET", "/ready", whole},
		{"POST", "/drain_listeners?skip_exit", whole},
	} {
		t.Run(tt.method+" "+strings.ReplaceAll(tt.path, "/", "_"), func(t *testing.T) {
			path := strings.NewReplacer(`\`, "%5C", "^", "%5E", "|", "%7C", "[", "%5B").Replace(tt.path)
			status, kind, body := p.ask(t, p.envoyAdmin, tt.method, path)
			gotStatus, gotKind, got := p.ask(t, p.engAdmin, tt.method, path)
			if status != gotStatus || kind != gotKind {
				t.Errorf("%d %s, want %d %s:\n%s", gotStatus, gotKind, status, kind, got)
			}
			if diff := cmp.Diff(tt.part(body), tt.part(got)); diff != "" {
				t.Errorf("(-envoy +engine):\n%s", diff)
			}
		})
	}
	t.Run("clusters", func(t *testing.T) { p.clusters(t) })
	for _, port := range []int{p.envoyPort, p.enginePort} {
		if answer := raw(t, port, request("GET", "/", "")); !strings.HasPrefix(answer, "HTTP/1.1 200 ") {
			t.Errorf("after draining without exit: %s", answer)
		}
	}
}

// usage is an answer of /logging without the loggers that there are.
func usage(s string) string {
	before, _, _ := strings.Cut(s, "active loggers")
	return before
}

func ofWasm(s string) string {
	for line := range strings.Lines(s) {
		if strings.HasPrefix(line, "  wasm: ") {
			return line
		}
	}
	return s
}

// ofClusters are the lines that begin so.
func ofClusters(s string) (lines string) {
	for line := range strings.Lines(s) {
		if strings.HasPrefix(line, "cluster.") || strings.HasPrefix(line, "server.") {
			lines += line
		}
	}
	return lines
}

// words is what is told without the mask, which Envoy prints otherwise each time.
func words(s string) string { return s[strings.LastIndex(s, " could"):] }

// clusters has all lines of the engine among Envoy's, in that order: it knows less of hosts.
func (p *pair) clusters(t *testing.T) {
	for _, name := range []string{"backend", "limited"} {
		_, _, want := p.ask(t, p.envoyAdmin, "GET", "/clusters?filter="+name)
		_, _, got := p.ask(t, p.engAdmin, "GET", "/clusters?filter="+name)
		lines := slices.Collect(strings.Lines(want))
		for line := range strings.Lines(got) {
			i := slices.Index(lines, line)
			if i < 0 {
				t.Fatalf("%q is not, or in another place, in\n%s", line, want)
			}
			lines = lines[i+1:]
		}
		if n := strings.Count(got, "\n"); n < 14 {
			t.Errorf("%d lines:\n%s", n, got)
		}
	}
	if _, _, got := p.ask(t, p.engAdmin, "GET", "/clusters?format=json&filter=limited"); !strings.Contains(got, fmt.Sprintf(`"max_connections": %d`, 5)) {
		t.Errorf("JSON: %s", got)
	}
}
