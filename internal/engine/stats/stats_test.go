package stats

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/chandler-proxy/chandler/internal/abi"
)

func TestPrometheus(t *testing.T) {
	r := New()
	r.Counter(Scope{"cluster", `outbound|80||a"b`}, "upstream_rq_2xx").Add(3)
	r.Gauge(Scope{"http", "main"}, "downstream_rq_active").Set(2)
	r.Plugins.Metric(abi.Counter, "hello_header_counter").Add(1)
	r.Plugins.Metric(abi.Counter, "wasm_filter.auth.cache.hit.count").Add(5)
	r.Plugins.Metric(abi.Gauge, "a.b-c").Record(7)
	var b strings.Builder
	if err := r.WritePrometheus(&b, Query{}); err != nil {
		t.Fatal(err)
	}
	want := `# TYPE a_b_c gauge
a_b_c{} 7
# TYPE count counter
count{cache="hit",wasm_filter="auth"} 5
# TYPE envoy_cluster_upstream_rq_xx counter
envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="outbound|80||a\"b"} 3
# TYPE envoy_http_downstream_rq_active gauge
envoy_http_downstream_rq_active{envoy_http_conn_manager_prefix="main"} 2
# TYPE hello_header_counter counter
hello_header_counter{} 1
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("prometheus (-want +got):\n%s", diff)
	}
}

func TestText(t *testing.T) {
	r := New()
	r.Counter(Scope{"listener", "127.0.0.1_80"}, "downstream_cx_total").Inc()
	r.Counter(Scope{"cluster", "a:b"}, "upstream_rq_total")
	r.Plugins.Metric(abi.Counter, "mine").Add(1)
	for query, want := range map[Query]string{
		{}:               "cluster.a_b.upstream_rq_total: 0\nlistener.127.0.0.1_80.downstream_cx_total: 1\nwasmcustom.mine: 1\n",
		{UsedOnly: true}: "listener.127.0.0.1_80.downstream_cx_total: 1\nwasmcustom.mine: 1\n",
		{Filter: regexp.MustCompile(`downstream_cx`)}: "listener.127.0.0.1_80.downstream_cx_total: 1\n",
	} {
		var b strings.Builder
		if err := r.WriteText(&b, query); err != nil {
			t.Fatal(err)
		}
		if b.String() != want {
			t.Errorf("%+v: got %q, want %q", query, b.String(), want)
		}
	}
}
