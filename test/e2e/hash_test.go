//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestConsistentHash: a DestinationRule's consistentHash, of every key and by either
// table, has Envoy and the engine send the same key to the same of several endpoints,
// and not all keys to one.
func TestConsistentHash(t *testing.T) {
	text := &strings.Builder{}
	fmt.Fprint(text, `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: several, namespace: default}
spec:
  hosts: [several.example]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints:
`)
	for i := range 7 {
		_, port, _ := net.SplitHostPort(backend(t, fmt.Sprint("b", i)))
		fmt.Fprintf(text, "  - {address: 127.0.0.1, ports: {http: %s}}\n", port)
	}
	fmt.Fprint(text, `---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: several, namespace: default}
spec:
  host: several.example
  trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: X-User}}}
  subsets:
  - {name: maglev, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: X-User, maglev: {tableSize: 1009}}}}}
  - {name: cookie, trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: user, ttl: 60s, path: /cookie}, ringHash: {minimumRingSize: 64}}}}}
  - {name: query, trafficPolicy: {portLevelSettings: [{port: {number: 80}, loadBalancer: {consistentHash: {httpQueryParameterName: user, maglev: {}}}}]}}
  - {name: source, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: several, namespace: default}
spec:
  hosts: [several.example]
  gateways: [istio-system/gateway]
  http:
`)
	for _, subset := range []string{"maglev", "cookie", "query", "source"} {
		fmt.Fprintf(text, "  - {match: [{uri: {prefix: /%[1]s}}], route: [{destination: {host: several.example, subset: %[1]s}}]}\n", subset)
	}
	fmt.Fprint(text, "  - {route: [{destination: {host: several.example}}]}\n")

	told := map[string]map[string]string{}
	for _, proxy := range []string{"envoy", "engine"} {
		m := start(t, func(m *mesh) {
			m.Proxy = proxy
			m.write("several.yaml", text.String())
		})
		told[proxy] = hashed(t, m.Gateway)
	}
	if diff := cmp.Diff(told["envoy"], told["engine"]); diff != "" {
		t.Errorf("endpoints by request (-envoy +engine):\n%s", diff)
	}
	for _, path := range []string{"/ring", "/maglev", "/cookie", "/query"} {
		seen := map[string]bool{}
		for request, host := range told["envoy"] {
			if strings.HasPrefix(request, path+" ") {
				seen[host] = true
			}
		}
		if len(seen) < 5 {
			t.Errorf("%s: requests go to %v alone", path, slices.Sorted(maps.Keys(seen)))
		}
	}
}

// hashed is which endpoint each of many requests came to.
func hashed(t *testing.T, gateway string) map[string]string {
	t.Helper()
	out := map[string]string{}
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	for _, path := range []string{"/ring", "/maglev", "/cookie", "/query", "/source"} {
		for i := range 40 {
			user := fmt.Sprint("user-", i)
			q, err := http.NewRequest(http.MethodGet, "http://"+gateway+path+"?user="+user, nil)
			if err != nil {
				t.Fatal(err)
			}
			q.Host = "several.example"
			q.Header.Set("X-User", user)
			q.AddCookie(&http.Cookie{Name: "user", Value: user})
			res, err := c.Do(q)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			if err != nil || res.StatusCode != http.StatusOK {
				t.Fatalf("%s: %d %s %v", path, res.StatusCode, body, err)
			}
			res.Body.Close()
			out[path+" "+user], _, _ = strings.Cut(string(body), " ")
		}
	}
	// one without the cookie is given one, and comes back to the same endpoint
	first, cookie := withoutCookie(t, c, gateway, nil)
	if again, _ := withoutCookie(t, c, gateway, cookie); first != again {
		t.Errorf("a client with the cookie that it was given comes to %s, not to %s", again, first)
	}
	return out
}

func withoutCookie(t *testing.T, c *http.Client, gateway string, cookie *http.Cookie) (host string, given *http.Cookie) {
	t.Helper()
	q, err := http.NewRequest(http.MethodGet, "http://"+gateway+"/cookie", nil)
	if err != nil {
		t.Fatal(err)
	}
	q.Host = "several.example"
	if cookie != nil {
		q.AddCookie(cookie)
	}
	res, err := c.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	host, _, _ = strings.Cut(string(body), " ")
	for _, given := range res.Cookies() {
		if given.Name == "user" && given.Path == "/cookie" && given.MaxAge == 60 {
			return host, given
		}
	}
	if cookie == nil {
		t.Errorf("no cookie is given: %v", res.Header)
	}
	return host, nil
}
