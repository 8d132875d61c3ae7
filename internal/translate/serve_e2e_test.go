//go:build e2e

package translate

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// TestEnvoyServes sends requests through the real Envoy and looks at what
// reaches the workload, or comes back. PORT is the workload's, GATEWAY a free one.
func TestEnvoyServes(t *testing.T) {
	const services = `
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: edge}, spec: {ports: [{name: http, port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web, namespace: edge, labels: {kubernetes.io/service-name: web}}, addressType: IPv4, ports: [{name: http, port: PORT}], endpoints: [{addresses: [127.0.0.1]}]}
`
	for _, tt := range []struct{ name, node, resources, requests string }{
		{"Gateway API", `{id: router~127.0.0.1~web-0.edge~x, metadata: {LABELS: {gateway.networking.k8s.io/gateway-name: web}}}`, `
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: web, namespace: edge}, spec: {gatewayClassName: c, listeners: [{name: http, port: GATEWAY, protocol: HTTP}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: a, namespace: edge}
spec:
  parentRefs: [{name: web}]
  hostnames: [a.example]
  rules:
  - {matches: [{path: {value: /pre/}}], filters: [{type: URLRewrite, urlRewrite: {hostname: inner, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /swap}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /other/}}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /full}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: '/a\1'}}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /old}}], filters: [{type: RequestRedirect, requestRedirect: {hostname: b.example, port: 80, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]}
  - {matches: [{path: {value: /lost}}], backendRefs: [{name: nowhere, port: 80}]}
  - {matches: [{path: {type: Exact, value: /exact}}], filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: location, value: "100%"}]}}], backendRefs: [{name: web, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: any, namespace: edge}
spec:
  parentRefs: [{name: web}]
  hostnames: ["*.example"]
  rules: [{matches: [{path: {value: /any}}], backendRefs: [{name: web, port: 80}]}]
`, `
a.example /pre -> 200 inner /
a.example /pre/ -> 200 inner /
a.example /pre/x?q=1 -> 200 inner /x?q=1
a.example /prefix -> 404
a.example /swap/x -> 200 a.example /other/x
a.example /swap -> 200 a.example /other
a.example /full/x?q=1 -> 200 a.example /a\1?q=1
a.example /old/x -> 302 http://b.example/new/x
a.example /lost -> 500
a.example /exact -> 200 a.example /exact 100%
a.example /any -> 200 a.example /any
b.example /any -> 200 b.example /any
b.example /exact -> 404
b.elsewhere /any -> 404
`},
		{"Istio", `{id: router~127.0.0.1~gw-0.edge~x, metadata: {LABELS: {istio: gw}}}`, `
{apiVersion: networking.istio.io/v1, kind: Gateway, metadata: {name: gw, namespace: edge}, spec: {selector: {istio: gw}, servers: [{port: {number: GATEWAY, name: http, protocol: HTTP}, hosts: ["*"]}]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, namespace: edge}
spec:
  hosts: [a.example]
  gateways: [gw]
  http:
  - {match: [{uri: {prefix: /pre}}], rewrite: {uri: /new, authority: inner}, route: [{destination: {host: web}}]}
  - {match: [{uri: {prefix: /regex}}], rewrite: {uriRegexRewrite: {match: "^/regex/([a-z]+)", rewrite: '/\1'}}, route: [{destination: {host: web}}]}
  - {match: [{uri: {exact: /moved}}], redirect: {uri: /there, redirectCode: 303}}
  - {match: [{uri: {exact: /answer}}], directResponse: {status: 418}}
  - {match: [{uri: {exact: /delegate}}], delegate: {name: x}}
  - {match: [{uri: {exact: /lost}}], route: [{destination: {host: nowhere}}]}
  - {match: [{uri: {exact: /fault}}], fault: {abort: {httpStatus: 503, percentage: {value: 100}}}, route: [{destination: {host: web}}]}
  - {match: [{uri: {prefix: /Case}, ignoreUriCase: true, withoutHeaders: {x-no: {}}}], route: [{destination: {host: web}}]}
`, `
a.example /pre/x -> 200 inner /new/x
a.example /regex/abc/1 -> 200 a.example /abc/1
a.example /moved -> 303 http://a.example/there
a.example /answer -> 418
a.example /delegate -> 500
a.example /lost -> 503
a.example /fault -> 503
a.example /cASE -> 200 a.example /cASE
a.example /else -> 404
b.example /pre -> 404
`},
		{"sidecar", `{id: sidecar~127.0.0.2~web-0.edge~x, metadata: {LABELS: {app: web}}}`, `
{apiVersion: v1, kind: Service, metadata: {name: declared, namespace: edge}, spec: {selector: {app: web}, ports: [{name: http, port: GATEWAY, targetPort: PORT}]}}
`, `
any.example /x -> 200 any.example /x
`},
		{"sidecar of no declared protocol", `{id: sidecar~127.0.0.2~web-0.edge~x, metadata: {LABELS: {app: web}}}`, `
{apiVersion: v1, kind: Service, metadata: {name: undeclared, namespace: edge}, spec: {selector: {app: web}, ports: [{port: GATEWAY, targetPort: PORT}]}}
`, `
any.example /x -> 200 any.example /x
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			workload := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprint(w, r.Host, " ", r.RequestURI)
			}))
			defer workload.Close()
			u, err := url.Parse(workload.URL)
			if err != nil {
				t.Fatal(err)
			}
			port := freePort(t)
			text := strings.NewReplacer("PORT", u.Port(), "GATEWAY", port).Replace(tt.resources + services)
			p := readNode(t, tt.node)
			at := p.IPs[0].String() + ":" + port
			if p.Role == mesh.Sidecar {
				at = p.IPs[0].String() + ":" + u.Port()
			}
			w, _ := mesh.New(decode(t, text), mesh.Options{})
			r, _ := Build(w, p)
			serve(t, r)
			for _, line := range strings.Split(strings.TrimSpace(tt.requests), "\n") {
				request, want, _ := strings.Cut(line, " -> ")
				if got := ask(t, at, request); got != want {
					t.Errorf("%s -> %s, want %s", request, got, want)
				}
			}
		})
	}
}

func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// ask sends a request, HOST PATH, to an address and tells status, body or
// location.
func ask(t *testing.T, at, request string) string {
	t.Helper()
	host, path, _ := strings.Cut(request, " ")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+at+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	out := fmt.Sprint(res.StatusCode)
	if res.StatusCode == http.StatusOK {
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		out += " " + string(body)
	}
	if l := res.Header.Get("Location"); l != "" {
		out += " " + l
	}
	return out
}

// serve runs Envoy with r, all of it static, until the test ends.
func serve(t *testing.T, r *Resources) {
	t.Helper()
	envoy, err := exec.LookPath(cmp.Or(os.Getenv("CHANDLER_ENVOY"), "envoy"))
	if err != nil {
		t.Fatal(err)
	}
	boot := bootstrap(t, r)
	for i, c := range boot.StaticResources.Clusters {
		if c.GetType() != clusterv3.Cluster_EDS {
			continue
		}
		c = proto.Clone(c).(*clusterv3.Cluster)
		c.ClusterDiscoveryType, c.EdsClusterConfig = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}, nil
		for _, e := range r.Endpoints {
			if e.ClusterName == c.Name {
				c.LoadAssignment = e
			}
		}
		boot.StaticResources.Clusters[i] = c
	}
	j, err := protojson.Marshal(boot)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(file, j, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), envoy, "-c", file, "--use-dynamic-base-id", "--concurrency", "1", "-l", "info")
	log := &untilReady{ready: make(chan struct{})}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	select {
	case <-log.ready:
	case <-time.After(time.Minute):
		t.Fatal("envoy does not begin to serve")
	}
}

// untilReady is a log that closes ready when Envoy says that it serves.
type untilReady struct {
	ready chan struct{}
	seen  []byte
	done  bool
}

func (u *untilReady) Write(p []byte) (int, error) {
	if !u.done {
		u.seen = append(u.seen, p...)
		if u.done = bytes.Contains(u.seen, []byte("starting main dispatch loop")); u.done {
			close(u.ready)
		}
	}
	return len(p), nil
}
