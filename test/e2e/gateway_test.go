//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// backend is a server that says its name and what it was asked.
func backend(t testing.TB, name string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/slow") {
			<-r.Context().Done()
			return
		}
		fmt.Fprintf(w, "%s %s %s %s added=%s", name, r.Method, r.Host, r.URL.RequestURI(), r.Header.Get("x-added"))
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// service is a Service with port 80 and one endpoint.
func service(namespace, name, endpoint string) string {
	host, port, _ := net.SplitHostPort(endpoint)
	return fmt.Sprintf(`
---
{apiVersion: v1, kind: Service, metadata: {name: %s, namespace: %s}, spec: {ports: [{name: http, port: 80, targetPort: %s}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %s-1, namespace: %s, labels: {kubernetes.io/service-name: %s}}
addressType: IPv4
ports: [{name: http, port: %s}]
endpoints: [{addresses: [%s]}]
`, name, namespace, port, name, namespace, name, port, host)
}

// certificate makes a certificate of its own for host, as a Secret, and as
// what a client is to trust.
func certificate(t testing.TB, namespace, name, host string) (secret string, trust *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{CommonName: host},
		DNSNames:              []string{host},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	trust = x509.NewCertPool()
	trust.AppendCertsFromPEM(chain)
	return fmt.Sprintf(`
---
apiVersion: v1
kind: Secret
metadata: {name: %s, namespace: %s}
type: kubernetes.io/tls
data: {tls.crt: %s, tls.key: %s}
`, name, namespace, base64.StdEncoding.EncodeToString(chain),
		base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))), trust
}

// A request is one to a gateway, and what must come of it.
type request struct {
	name, method, host, path string
	header                   string // of the request, NAME=VALUE; empty for none
	status                   int
	body                     string // exactly
	location                 string
	added                    string // response header x-added
}

// ask sends the request to a gateway's address.
func (r request) ask(c *http.Client, scheme, addr string) (*http.Response, string, error) {
	method := r.method
	if method == "" {
		method = http.MethodGet
	}
	q, err := http.NewRequest(method, scheme+"://"+addr+r.path, nil)
	if err != nil {
		return nil, "", err
	}
	q.Host = r.host
	if name, value, ok := strings.Cut(r.header, "="); ok {
		q.Header.Set(name, value)
	}
	res, err := c.Do(q)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res, string(body), err
}

func (r request) check(c *http.Client, addr string) error {
	res, body, err := r.ask(c, "http", addr)
	if err != nil {
		return err
	}
	if res.StatusCode != r.status || r.body != "" && body != r.body ||
		res.Header.Get("location") != r.location || res.Header.Get("x-added") != r.added {
		return fmt.Errorf("answer %s, location %q, x-added %q, %q", res.Status, res.Header.Get("location"), res.Header.Get("x-added"), body)
	}
	return nil
}

// direct is a client that takes each answer as it is, on a connection of its own.
func direct(config *tls.Config, dial string) *http.Client {
	return &http.Client{
		Timeout:       patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DisableKeepAlives: true,
			TLSClientConfig:   config,
			ForceAttemptHTTP2: true,
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				if dial != "" {
					addr = dial
				}
				return new(net.Dialer).DialContext(ctx, network, addr)
			},
		},
	}
}

// One Envoy is the gateway of an Istio Gateway with VirtualServices and of a
// Gateway API Gateway with HTTPRoutes; each feature is asked for once.
func TestGatewayRoutes(t *testing.T) {
	a, b := backend(t, "a"), backend(t, "b")
	ports := map[string]int{"ISTIO-HTTP": freePort(t), "ISTIO-HTTPS": freePort(t), "API-HTTP": freePort(t), "API-HTTPS": freePort(t)}
	istioSecret, istioTrust := certificate(t, "istio-system", "istio-cert", "secure.example")
	apiSecret, apiTrust := certificate(t, "istio-system", "api-cert", "secure.example")
	text := `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gateway, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: ISTIO-HTTP, name: http, protocol: HTTP}, hosts: ["*"]}
  - {port: {number: ISTIO-HTTPS, name: https, protocol: HTTPS}, hosts: [secure.example], tls: {mode: SIMPLE, credentialName: istio-cert}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: all, namespace: default}
spec:
  hosts: ["app.example", "secure.example"]
  gateways: [istio-system/gateway]
  http:
  - match: [{uri: {exact: /exact}}]
    route: [{destination: {host: a, port: {number: 80}}}]
  - match: [{uri: {regex: "/re/[0-9]+"}}]
    route: [{destination: {host: b, port: {number: 80}}}]
  - match: [{uri: {prefix: /header}, headers: {x-version: {exact: "2"}}}]
    route: [{destination: {host: b, port: {number: 80}}}]
  - match: [{uri: {prefix: /header}, method: {exact: POST}}]
    directResponse: {status: 405}
  - match: [{uri: {prefix: /rewrite/}}]
    rewrite: {uri: /, authority: inner.example}
    headers: {request: {set: {x-added: request}}, response: {set: {x-added: response}}}
    route: [{destination: {host: a, port: {number: 80}}}]
  - match: [{uri: {exact: /redirect}}]
    redirect: {uri: /elsewhere, authority: other.example, redirectCode: 308}
  - match: [{uri: {prefix: /slow}}]
    timeout: 0.2s
    route: [{destination: {host: a, port: {number: 80}}}]
  - match: [{uri: {prefix: /weights}}]
    route:
    - {destination: {host: a, port: {number: 80}}, weight: 50}
    - {destination: {host: b, port: {number: 80}}, weight: 50}
  - match: [{uri: {prefix: /none}}]
    route:
    - {destination: {host: a, port: {number: 80}}, weight: 100}
    - {destination: {host: b, port: {number: 80}}, weight: 0}
  - match: [{uri: {prefix: /header}}]
    route: [{destination: {host: a, port: {number: 80}}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web, namespace: istio-system}
spec:
  gatewayClassName: chandler
  listeners:
  - {name: http, port: API-HTTP, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}
  - {name: https, port: API-HTTPS, protocol: HTTPS, hostname: secure.example, tls: {certificateRefs: [{name: api-cert}]}, allowedRoutes: {namespaces: {from: All}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: all, namespace: default}
spec:
  parentRefs: [{name: web, namespace: istio-system}]
  hostnames: ["app.example", "secure.example"]
  rules:
  - matches: [{path: {type: Exact, value: /exact}}]
    backendRefs: [{name: a, port: 80}]
  - matches: [{path: {type: RegularExpression, value: "/re/[0-9]+"}}]
    backendRefs: [{name: b, port: 80}]
  - matches: [{path: {value: /header}, headers: [{name: x-version, value: "2"}]}]
    backendRefs: [{name: b, port: 80}]
  - matches: [{path: {value: /header}, method: POST}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /posted}, statusCode: 302}}]
  - matches: [{path: {value: /rewrite}}]
    filters:
    - {type: URLRewrite, urlRewrite: {hostname: inner.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-added, value: request}]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-added, value: response}]}}
    backendRefs: [{name: a, port: 80}]
  - matches: [{path: {value: /redirect}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: other.example, port: 443, statusCode: 301, path: {type: ReplacePrefixMatch, replacePrefixMatch: /elsewhere}}}]
  - matches: [{path: {value: /slow}}]
    timeouts: {request: 200ms}
    backendRefs: [{name: a, port: 80}]
  - matches: [{path: {value: /weights}}]
    backendRefs: [{name: a, port: 80, weight: 1}, {name: b, port: 80, weight: 1}]
  - matches: [{path: {value: /none}}]
    backendRefs: [{name: a, port: 80, weight: 1}, {name: b, port: 80, weight: 0}]
  - matches: [{path: {value: /header}}]
    backendRefs: [{name: a, port: 80}]
` + service("default", "a", a) + service("default", "b", b) + istioSecret + apiSecret
	for name, port := range ports {
		text = strings.ReplaceAll(text, name+",", fmt.Sprint(port)+",")
	}
	m := prepare(t)
	m.write("gateway.yaml", text)
	m.AgentArgs = []string{"--labels", "gateway.networking.k8s.io/gateway-name=web"}
	m.startControl()
	m.startAgent()
	m.ready()
	if all := m.problems(); len(all) > 0 {
		t.Fatalf("problems: %+v", all)
	}

	common := []request{
		{name: "exact path", path: "/exact", status: 200, body: "a GET app.example /exact added="},
		{name: "not the exact path", path: "/exact/more", status: 404},
		{name: "regex", path: "/re/42?q=1", status: 200, body: "b GET app.example /re/42?q=1 added="},
		{name: "regex does not match", path: "/re/x", status: 404},
		{name: "header", path: "/header", header: "x-version=2", status: 200, body: "b GET app.example /header added="},
		{name: "other header", path: "/header", header: "x-version=3", status: 200, body: "a GET app.example /header added="},
		{name: "rewrite", path: "/rewrite/in", status: 200, body: "a GET inner.example /in added=request", added: "response"},
		{name: "timeout", path: "/slow", status: 504},
		{name: "other host", host: "nobody.example", path: "/exact", status: 404},
	}
	for gateway, own := range map[string][]request{
		"ISTIO": {
			{name: "method", method: "POST", path: "/header", status: 405},
			{name: "redirect", path: "/redirect", status: 308, location: "http://other.example/elsewhere"},
		},
		"API": {
			{name: "method", method: "POST", path: "/header", status: 302, location: fmt.Sprintf("http://app.example:%d/posted", ports["API-HTTP"])},
			{name: "redirect", path: "/redirect/page?q=1", status: 301, location: "https://other.example/elsewhere/page?q=1"},
		},
	} {
		addr := loopback(ports[gateway+"-HTTP"])
		for _, r := range append(own, common...) {
			t.Run(gateway+"/"+r.name, func(t *testing.T) {
				if r.host == "" {
					r.host = "app.example"
				}
				if err := r.check(direct(nil, ""), addr); err != nil {
					t.Error(err)
				}
			})
		}
		t.Run(gateway+"/weights", func(t *testing.T) {
			for path, want := range map[string]string{"/weights": "ab", "/none": "a"} {
				seen := map[byte]bool{}
				for range 60 { // both of two with half each are seen but once in 2^59
					_, body, err := request{host: "app.example", path: path}.ask(direct(nil, ""), "http", addr)
					if err != nil || body == "" {
						t.Fatalf("%q, %v", body, err)
					}
					seen[body[0]] = true
				}
				if len(seen) != len(want) || !seen['a'] {
					t.Errorf("%s is answered by %v, want %s", path, seen, want)
				}
			}
		})
		t.Run(gateway+"/TLS", func(t *testing.T) {
			trust := map[string]*x509.CertPool{"ISTIO": istioTrust, "API": apiTrust}[gateway]
			addr := loopback(ports[gateway+"-HTTPS"])
			res, body, err := request{path: "/exact"}.ask(direct(&tls.Config{RootCAs: trust}, addr), "https", "secure.example")
			if err != nil || res.StatusCode != 200 || body != "a GET secure.example /exact added=" {
				t.Errorf("%v, %q", err, body)
			}
			_, err = tls.Dial("tcp", addr, &tls.Config{RootCAs: trust, ServerName: "nobody.example"})
			if err == nil {
				t.Error("a host that no server of the gateway has was let in")
			}
		})
	}

	// A Secret that changes is served without a restart.
	t.Run("other certificate", func(t *testing.T) {
		secret, trust := certificate(t, "istio-system", "api-cert", "secure.example")
		m.write("gateway.yaml", strings.Replace(text, apiSecret, secret, 1))
		eventually(t, "new certificate is served", func() error {
			_, _, err := request{path: "/exact"}.ask(direct(&tls.Config{RootCAs: trust}, loopback(ports["API-HTTPS"])), "https", "secure.example")
			return err
		})
	})
	_, key, _ := bytes.Cut([]byte(apiSecret), []byte("tls.key: "))
	for name, log := range map[string]string{"control plane": m.Control.Output(t), "agent": m.Agent.Output(t)} {
		if strings.Contains(log, string(key[:40])) {
			t.Errorf("private key is in the log of the %s", name)
		}
	}
}
