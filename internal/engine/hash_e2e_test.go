//go:build e2e

package engine

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chandler-proxy/chandler/internal/engine/config"
)

// numbered are n backends that answer with their number.
func numbered(t *testing.T, n int) (addrs []string) {
	for i := range n {
		addrs = append(addrs, backend(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, i) }))
	}
	return addrs
}

// hashCluster is a cluster over addrs. weights may be fewer than those.
func hashCluster(t *testing.T, name string, policy clusterv3.Cluster_LbPolicy, more string, addrs []string, weights ...uint32) *clusterv3.Cluster {
	c := staticCluster(t, name, addrs...)
	proto.Merge(c, parse(t, "{"+more+"}", new(clusterv3.Cluster)))
	c.LbPolicy = policy
	for i, w := range weights {
		c.LoadAssignment.Endpoints[0].LbEndpoints[i].LoadBalancingWeight = wrapperspb.UInt32(w)
	}
	return c
}

// hashRoute sends what starts with /NAME to a cluster.
func hashRoute(name, cluster, policy string) string {
	return fmt.Sprintf("\n- match: {prefix: /%s/}\n  route: {cluster: %s, timeout: 0s, prefix_rewrite: /x/, hash_policy: [%s]}", name, cluster, policy)
}

// TestHashingLikeEnvoy has both choose endpoints by what requests have: they choose the same.
func TestHashingLikeEnvoy(t *testing.T) {
	addrs := numbered(t, 5)
	byKey := `{header: {header_name: x-key}}`
	p := startPair(t, func(port int) []proto.Message {
		return []proto.Message{
			hashCluster(t, "ring", clusterv3.Cluster_RING_HASH, "", addrs),
			hashCluster(t, "small-ring", clusterv3.Cluster_RING_HASH, "ring_hash_lb_config: {minimum_ring_size: 7, maximum_ring_size: 11}", addrs, 1, 4, 2, 9, 3),
			hashCluster(t, "maglev", clusterv3.Cluster_MAGLEV, "", addrs),
			hashCluster(t, "small-maglev", clusterv3.Cluster_MAGLEV, "maglev_lb_config: {table_size: 251}", addrs, 5, 1, 1, 7, 2),
			httpListener(t, "main", port, "", "stream_idle_timeout: 0s"),
			routeConfig(t, hashRoute("ring", "ring", byKey)+hashRoute("small-ring", "small-ring", byKey)+hashRoute("maglev", "maglev", byKey)+
				hashRoute("small-maglev", "small-maglev", byKey)+
				hashRoute("path", "ring", `{header: {header_name: ":path"}}`)+
				hashRoute("host", "ring", `{header: {header_name: host}}`)+
				hashRoute("rewritten", "ring", `{header: {header_name: x-key, regex_rewrite: {pattern: {regex: "^k(.).*"}, substitution: "\\1"}}}`)+
				hashRoute("query", "ring", `{query_parameter: {name: q}}`)+
				hashRoute("cookie", "ring", `{cookie: {name: c}}`)+
				hashRoute("source", "ring", `{connection_properties: {source_ip: true}}`)+
				hashRoute("several", "ring", `{header: {header_name: x-key}}, {query_parameter: {name: q}}, {header: {header_name: x-none}}, {header: {header_name: x-key}}`)+
				hashRoute("terminal", "ring", `{cookie: {name: c}, terminal: true}, {header: {header_name: x-key}, terminal: true}, {query_parameter: {name: q}}`)),
		}
	})
	chosen := map[string]bool{}
	for _, route := range []string{"ring", "small-ring", "maglev", "small-maglev", "path", "host", "rewritten", "query", "cookie", "source", "several", "terminal"} {
		for i := range 40 {
			r := fmt.Sprintf("GET /%s/%d?p=1&q=v%d&q=w HTTP/1.1\r\nHost: h%d\r\nX-Key: k%d-b\r\nX-Key: a%d\r\nX-Forwarded-For: 10.1.2.%d\r\n", route, i, i, i, i, i, i)
			if route != "terminal" || i%2 == 0 {
				r += fmt.Sprintf("Cookie: a=b; cc=1; c=\"v%d\"; c=no\r\n", i)
			}
			_, want := exchange(t, p.envoyPort, r+"\r\n")
			resp, got := exchange(t, p.enginePort, r+"\r\n")
			if resp.StatusCode != 200 {
				t.Fatalf("%s %d: %s %q", route, i, resp.Status, got)
			}
			if want != got {
				t.Errorf("%s %d: Envoy chooses %s, the engine %s", route, i, want, got)
			}
			chosen[got] = true
		}
	}
	if len(chosen) != len(addrs) {
		t.Errorf("%d of %d endpoints were chosen", len(chosen), len(addrs))
	}
}

// TestCookieLikeEnvoy has clients given cookies that keep them with their endpoint.
func TestCookieLikeEnvoy(t *testing.T) {
	addrs := numbered(t, 5)
	down := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	p := startPair(t, func(port int) []proto.Message {
		return []proto.Message{
			hashCluster(t, "ring", clusterv3.Cluster_RING_HASH, "", addrs), staticCluster(t, "plain", addrs[0]),
			hashCluster(t, "down", clusterv3.Cluster_MAGLEV, "", []string{down}), hashCluster(t, "none", clusterv3.Cluster_MAGLEV, "", nil),
			httpListener(t, "main", port, "", "stream_idle_timeout: 0s"),
			routeConfig(t, hashRoute("hour", "ring", `{cookie: {name: c, ttl: 3600s, path: /p}}`)+hashRoute("session", "ring", `{cookie: {name: c, ttl: 0s}}`)+
				hashRoute("attributes", "ring", `{cookie: {name: c, ttl: 7.9s, attributes: [{name: SameSite, value: Strict}, {name: Secure}]}}`)+
				hashRoute("two", "ring", `{cookie: {name: c, ttl: 0s}}, {cookie: {name: d, ttl: 0s}}`)+
				hashRoute("plain", "plain", `{cookie: {name: c, ttl: 0s}}`)+hashRoute("down", "down", `{cookie: {name: c, ttl: 0s}}`)+
				hashRoute("none", "none", `{cookie: {name: c, ttl: 0s}}`)),
		}
	})
	for _, route := range []string{"hour", "session", "attributes", "two", "plain", "down", "none"} {
		var answers [2]string
		for i, port := range []int{p.envoyPort, p.enginePort} {
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			addr := func(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }
			value := config.ConnectionCookie(addr(c.LocalAddr()), addr(c.RemoteAddr()))
			client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}}
			req, err := http.NewRequest("GET", "http://example.com/"+route+"/", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			first, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			answers[i] = fmt.Sprint(resp.StatusCode, resp.Header["Set-Cookie"])
			if n := strings.Count(answers[i], value); n != len(resp.Header["Set-Cookie"]) {
				t.Errorf("%s: the cookies %s do not have %s", route, answers[i], value)
			}
			answers[i] = strings.ReplaceAll(answers[i], value, "(value)")
			for _, cookie := range resp.Header["Set-Cookie"] {
				_, again := exchange(t, port, get("/"+route+"/", "Cookie: "+cookie))
				if route != "two" && resp.StatusCode == 200 && again != string(first) {
					t.Errorf("%s: the cookie leads to %s, it was made for %s", route, again, first)
				}
			}
		}
		if diff := cmp.Diff(answers[0], answers[1]); diff != "" {
			t.Errorf("%s (-envoy +engine):\n%s", route, diff)
		}
	}
}
