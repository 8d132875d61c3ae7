package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/encoding/protojson"
	extensions "istio.io/api/extensions/v1alpha1"
	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/chandler-proxy/chandler/internal/ecds"
	"github.com/chandler-proxy/chandler/internal/resource"
)

func node(t testing.TB, text string) *corev3.Node {
	t.Helper()
	j, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	n := new(corev3.Node)
	if err := protojson.Unmarshal(j, n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestParseNode(t *testing.T) {
	for _, tt := range []struct {
		name, node string
		want       Proxy
		fails      bool
	}{
		{name: "id alone", node: "id: router~10.0.0.1~gw-0.edge~edge.svc.cluster.local",
			want: Proxy{Role: Router, Name: "gw-0", Namespace: "edge", Domain: "edge.svc.cluster.local", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}},
		{name: "all metadata", node: `
id: sidecar~10.0.0.1~web.v1-0.default~default.svc.cluster.local
metadata:
  NAMESPACE: other
  LABELS: {app: web, number: 1}
  INSTANCE_IPS: "10.0.0.2, fd00::2"
  CLUSTER_ID: one
  WORKLOAD_NAME: web
  ISTIO_VERSION: 1.31.0
  INTERCEPTION_MODE: REDIRECT
  NAME: web.v1-0
  OWNER: someone
  PROXY_CONFIG: {a: b}
`, want: Proxy{Role: Sidecar, Name: "web.v1-0", Namespace: "other", Domain: "default.svc.cluster.local", Cluster: "one", Workload: "web",
			IPs: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}, Labels: map[string]string{"app": "web"},
			Version: "1.31.0", Redirected: true, Metadata: map[string]string{"OWNER": "someone"}}},
		{name: "no redirection", node: "{id: sidecar~~a.b~c, metadata: {INTERCEPTION_MODE: NONE}}",
			want: Proxy{Role: Sidecar, Name: "a", Namespace: "b", Domain: "c"}},
		{name: "the engine", node: "{id: sidecar~~a.b~c, userAgentBuildVersion: {metadata: {implementation: chandler engine}}}",
			want: Proxy{Role: Sidecar, Name: "a", Namespace: "b", Domain: "c", Engine: true}},
		{name: "an Envoy", node: "{id: sidecar~~a.b~c, userAgentBuildVersion: {version: {majorNumber: 1}}}",
			want: Proxy{Role: Sidecar, Name: "a", Namespace: "b", Domain: "c"}},
		{name: "no id", node: "{}", fails: true},
		{name: "short id", node: "id: router~10.0.0.1~a.b", fails: true},
		{name: "waypoint", node: "id: waypoint~10.0.0.1~a.b~c", fails: true},
		{name: "no namespace", node: "id: router~10.0.0.1~a~c", fails: true},
		{name: "address", node: "id: router~10.0.0~a.b~c", fails: true},
		{name: "addresses", node: "{id: router~10.0.0.1~a.b~c, metadata: {INSTANCE_IPS: x}}", fails: true},
		{name: "interception", node: "{id: sidecar~10.0.0.1~a.b~c, metadata: {INTERCEPTION_MODE: TPROXY}}", fails: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseNode(node(t, tt.node))
			if tt.fails {
				if !errors.Is(err, ErrNode) {
					t.Fatalf("error = %v, want one that wraps ErrNode", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func FuzzParseNode(f *testing.F) {
	f.Add("router~10.0.0.1~a.b~c", "NAMESPACE", "x", "10.0.0.1")
	f.Add("sidecar~~a~", "INTERCEPTION_MODE", "REDIRECT", "::1,")
	f.Fuzz(func(t *testing.T, id, key, value, ips string) {
		n := &corev3.Node{Id: id}
		j, err := yaml.Marshal(map[string]any{"metadata": map[string]any{key: value, "INSTANCE_IPS": ips}})
		if err == nil {
			if j, err = yaml.YAMLToJSON(j); err == nil {
				_ = protojson.Unmarshal(j, n) // whatever came of it is a node
				n.Id = id
			}
		}
		p, err := ParseNode(n)
		if err != nil && !errors.Is(err, ErrNode) {
			t.Errorf("error %v does not wrap ErrNode", err)
		}
		if err == nil && (p.Namespace == "" || p.Role != Router && p.Role != Sidecar) {
			t.Errorf("proxy %+v is of no role or namespace", p)
		}
	})
}

func TestPortProtocol(t *testing.T) {
	app := func(s string) *string { return &s }
	for _, tt := range []struct {
		port corev1.ServicePort
		want Protocol
	}{
		{corev1.ServicePort{Name: "http"}, HTTP},
		{corev1.ServicePort{Name: "http-web"}, HTTP},
		{corev1.ServicePort{Name: "HTTP2-x"}, HTTP2},
		{corev1.ServicePort{Name: "grpc"}, GRPC},
		{corev1.ServicePort{Name: "grpc-web-x"}, GRPCWeb},
		{corev1.ServicePort{Name: "https-a"}, HTTPS},
		{corev1.ServicePort{Name: "tls"}, TLS},
		{corev1.ServicePort{Name: "tcp-db"}, TCP},
		{corev1.ServicePort{Name: "mongo"}, TCP},
		{corev1.ServicePort{Name: "httpx"}, Undeclared},
		{corev1.ServicePort{Name: "", Port: 80}, Undeclared},
		{corev1.ServicePort{Name: "db", Port: 3306}, TCP},
		{corev1.ServicePort{Name: "http", Port: 3306}, HTTP},
		{corev1.ServicePort{Name: "tcp", AppProtocol: app("http")}, HTTP},
		{corev1.ServicePort{Name: "http", AppProtocol: app("kubernetes.io/h2c")}, HTTP2},
		{corev1.ServicePort{Name: "x", AppProtocol: app("kubernetes.io/ws")}, HTTP},
		{corev1.ServicePort{Name: "x", AppProtocol: app("kubernetes.io/wss")}, HTTPS},
		{corev1.ServicePort{Name: "http", Protocol: corev1.ProtocolUDP}, UDP},
	} {
		if got := portProtocol(tt.port); got != tt.want {
			t.Errorf("portProtocol(%+v) = %q, want %q", tt.port, got, tt.want)
		}
	}
}

func TestHostMatches(t *testing.T) {
	for _, tt := range []struct {
		pattern, host string
		want          bool
	}{
		{"*", "a.example", true},
		{"*", "*.example", true},
		{"a.example", "a.example", true},
		{"a.example", "b.example", false},
		{"*.example", "a.example", true},
		{"*.example", "b.a.example", true},
		{"*.example", "example", false},
		{"*.example", ".example", false},
		{"*.example", "*.example", true},
		{"*.example", "*.a.example", true},
		{"*.a.example", "*.example", false},
		{"a.example", "*.example", false},
		{"*.example", "*", false},
		{"*-a.example", "b-a.example", true},
	} {
		if got := HostMatches(tt.pattern, tt.host); got != tt.want {
			t.Errorf("HostMatches(%q, %q) = %v, want %v", tt.pattern, tt.host, got, tt.want)
		}
	}
}

func TestValidHost(t *testing.T) {
	for s, want := range map[string]bool{
		"a.example": true, "*": true, "*.example": true, "*-x.example": true,
		"": false, "a.*": false, "**": false, "a b": false, "a\x00": false,
	} {
		if got := ValidHost(s); got != want {
			t.Errorf("ValidHost(%q) = %v, want %v", s, got, want)
		}
	}
}

func TestHostIntersection(t *testing.T) {
	for _, tt := range []struct{ a, b, want string }{
		{"*", "a.example", "a.example"},
		{"*.example", "*", "*.example"},
		{"*.example", "*.a.example", "*.a.example"},
		{"a.example", "b.example", ""},
		{"*.a", "*.b", ""},
	} {
		for _, pair := range [][2]string{{tt.a, tt.b}, {tt.b, tt.a}} {
			if got, ok := HostIntersection(pair[0], pair[1]); got != tt.want || ok != (tt.want != "") {
				t.Errorf("HostIntersection(%q, %q) = %q, %v, want %q", pair[0], pair[1], got, ok, tt.want)
			}
		}
	}
}

func TestCompareHosts(t *testing.T) {
	want := []string{"long.a.example", "a.example", "*.long.example", "*.example", "*"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, CompareHosts)
	if !slices.Equal(got, want) {
		t.Errorf("order is %q, want %q", got, want)
	}
}

// world decodes text as a user's file and makes a World of it; problems of it
// are want, one a line.
func world(t testing.TB, text string, want ...string) *World {
	t.Helper()
	objects, problems := resource.NewDecoder().Decode("in.yaml", []byte(text))
	for _, p := range problems {
		t.Error(p)
	}
	w, problems := New(objects, Options{})
	var got []string
	for _, p := range problems {
		got = append(got, p.String())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	return w
}

func endpoints(w *World, host string, port uint32) string {
	var out []string
	for _, e := range w.View("default").Service(host, "default").Endpoints(port) {
		out = append(out, fmt.Sprintf("%s:%d %v %d", e.Address, e.Port, e.Labels, e.Weight))
	}
	return strings.Join(out, "; ")
}

func TestEndpoints(t *testing.T) {
	w := world(t, `
{apiVersion: v1, kind: Pod, metadata: {name: a-1, namespace: default, labels: {app: a, version: v1}}, spec: {containers: [{name: c, image: c, ports: [{name: web, containerPort: 8080}]}]}, status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a-2, namespace: default, labels: {app: a}}, spec: {containers: [{name: c, image: c}]}, status: {podIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a-not-ready, namespace: default, labels: {app: a}}, spec: {containers: [{name: c, image: c}]}, status: {podIP: 10.0.0.3, conditions: [{type: Ready, status: "False"}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a-done, namespace: default, labels: {app: a}}, spec: {containers: [{name: c, image: c}]}, status: {podIP: 10.0.0.4, phase: Succeeded}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a-elsewhere, namespace: other, labels: {app: a}}, spec: {containers: [{name: c, image: c}]}, status: {podIP: 10.0.0.5}}
---
{apiVersion: v1, kind: Service, metadata: {name: by-pods, namespace: default}, spec: {selector: {app: a}, ports: [{name: http, port: 80, targetPort: web}, {name: plain, port: 81}, {name: number, port: 82, targetPort: 9000}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: by-slices, namespace: default}, spec: {selector: {app: a}, ports: [{name: http, port: 80, targetPort: web}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: one, namespace: default, labels: {kubernetes.io/service-name: by-slices}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: else, port: 1}]
endpoints: [{addresses: [10.0.0.2]}, {addresses: [10.0.0.1], targetRef: {kind: Pod, name: a-1}}, {addresses: [10.0.0.9], conditions: {ready: false}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: two, namespace: default, labels: {kubernetes.io/service-name: by-slices}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.0.2]}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: inline, namespace: default}
spec:
  hosts: [INLINE.example]
  ports: [{name: http, number: 80, protocol: HTTP}, {name: https, number: 443, protocol: HTTPS, targetPort: 8443}]
  resolution: STATIC
  endpoints: [{address: 192.0.2.2, weight: 5}, {address: 192.0.2.1, ports: {https: 9443}, labels: {a: b}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: selected, namespace: default}
spec: {hosts: [selected.example], ports: [{name: http, number: 80, protocol: HTTP}], resolution: STATIC, workloadSelector: {labels: {version: v1}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: dns, namespace: default}
spec: {hosts: [dns.example], ports: [{name: http, number: 80, protocol: HTTP, targetPort: 8080}], resolution: DNS}
`)
	for _, tt := range []struct {
		host string
		port uint32
		want string
	}{
		{"by-pods", 80, "10.0.0.1:8080 map[app:a version:v1] 0"},
		{"by-pods", 81, "10.0.0.1:81 map[app:a version:v1] 0; 10.0.0.2:81 map[app:a] 0"},
		{"by-pods.default", 82, "10.0.0.1:9000 map[app:a version:v1] 0; 10.0.0.2:9000 map[app:a] 0"},
		{"by-slices.default.svc", 80, "10.0.0.1:8080 map[app:a version:v1] 0; 10.0.0.2:8080 map[app:a] 0"},
		{"inline.example", 80, "192.0.2.1:80 map[a:b] 0; 192.0.2.2:80 map[] 5"},
		{"inline.example", 443, "192.0.2.1:9443 map[a:b] 0; 192.0.2.2:8443 map[] 5"},
		{"selected.example", 80, "10.0.0.1:80 map[app:a version:v1] 0"},
		{"dns.example", 80, "dns.example:8080 map[] 0"},
	} {
		if got := endpoints(w, tt.host, tt.port); got != tt.want {
			t.Errorf("endpoints of %s:%d are %q, want %q", tt.host, tt.port, got, tt.want)
		}
	}
}

func TestViews(t *testing.T) {
	w := world(t, `
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: e, namespace: a}, spec: {hosts: [e.example], ports: [{name: http, number: 80, protocol: HTTP}], resolution: DNS}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: e, namespace: b}, spec: {hosts: [e.example], ports: [{name: http, number: 80, protocol: HTTP}], resolution: DNS}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: private, namespace: a}, spec: {hosts: [private.example], ports: [{name: http, number: 80, protocol: HTTP}], resolution: DNS, exportTo: ["."]}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: given, namespace: a}, spec: {hosts: [given.example], ports: [{name: http, number: 80, protocol: HTTP}], resolution: DNS, exportTo: [b]}}
---
{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: of-service, namespace: a}, spec: {host: e.example}}
---
{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: of-client, namespace: b}, spec: {host: "*.example"}}
---
{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: of-root, namespace: istio-system}, spec: {host: "*.example"}}
`)
	for _, tt := range []struct{ namespace, host, service, rule string }{
		{"a", "e.example", "a/e", "of-service"},
		{"b", "e.example", "b/e", "of-client"},
		{"c", "e.example", "a/e", "of-service"},
		{"a", "private.example", "a/private", "of-root"},
		{"b", "private.example", "", ""},
		{"b", "given.example", "a/given", "of-client"},
		{"c", "given.example", "", ""},
	} {
		v := w.View(tt.namespace)
		service, rule := "", ""
		if s := v.Service(tt.host, tt.namespace); s != nil {
			service = s.Name.String()
			if r := v.DestinationRule(s); r != nil {
				rule = r.Name
			}
		}
		if service != tt.service || rule != tt.rule {
			t.Errorf("%s sees %s as %q with rule %q, want %q, %q", tt.namespace, tt.host, service, rule, tt.service, tt.rule)
		}
	}
}

// Where nothing is private there is one View, so that what is made of it is
// made once.
func TestViewIsShared(t *testing.T) {
	w := world(t, `
{apiVersion: v1, kind: Service, metadata: {name: s, namespace: a}, spec: {ports: [{name: http, port: 80}]}}
---
{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: s, namespace: a}, spec: {host: s}}
`)
	if w.View("a") != w.View("b") {
		t.Error("namespaces that see the same have Views of their own")
	}
	if r := w.View("b").DestinationRule(w.View("b").Service("s", "a")); r == nil || r.Name != "s" {
		t.Errorf("rule of s is %v", r)
	}
}

func TestProblems(t *testing.T) {
	world(t, `
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: one, namespace: a}, spec: {hosts: [e.example], ports: [{name: http, number: 80, protocol: HTTP}], resolution: DNS}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: two, namespace: a}, spec: {hosts: [e.example], ports: [{name: http, number: 81, protocol: HTTP}], resolution: DNS}}
---
{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: one, namespace: a}, spec: {host: e.example}}
---
{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: two, namespace: a}, spec: {host: e.example}}
---
{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: workloads, namespace: a}, spec: {host: f.example, workloadSelector: {matchLabels: {a: b}}}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: lost, namespace: a}, spec: {parentRefs: [{name: nowhere}, {kind: Service, group: "", name: s}], rules: [{backendRefs: [{name: s, port: 80}]}]}}
`,
		"ServiceEntry a/two: spec.hosts: e.example belongs to an older resource of this namespace; put all its ports into one",
		"DestinationRule a/two: spec.host: an older DestinationRule of this namespace is for the same host; join the two",
		"DestinationRule a/workloads: spec.workloadSelector: is not supported; remove it; a rule holds for every client that sees it",
		"HTTPRoute a/lost: spec.parentRefs[0]: there is no Gateway a/nowhere; create it, or correct the reference",
		"HTTPRoute a/lost: spec.parentRefs[1]: only a Gateway of gateway.networking.k8s.io can be a parent; name a Gateway",
	)
}

// plugin is a WasmPlugin, changed by edit.
func plugin(edit func(*extensionsv1alpha1.WasmPlugin)) *extensionsv1alpha1.WasmPlugin {
	p := &extensionsv1alpha1.WasmPlugin{
		TypeMeta:   metav1.TypeMeta{Kind: "WasmPlugin", APIVersion: "extensions.istio.io/v1alpha1"},
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "istio-system"},
		Spec:       extensions.WasmPlugin{Url: "oci://r.example/p:v1"},
	}
	if edit != nil {
		edit(p)
	}
	return p
}

func pluginConfig(t *testing.T, p *extensionsv1alpha1.WasmPlugin) *wasmv3.PluginConfig {
	t.Helper()
	w, problems := New([]resource.Object{p}, Options{})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	filter := new(httpwasmv3.Wasm)
	if err := w.AllExtensions()[0].Config.TypedConfig.UnmarshalTo(filter); err != nil {
		t.Fatal(err)
	}
	return filter.Config
}

// Plugins share a VM if, and only if, module and environment are the same.
func TestVMID(t *testing.T) {
	base := pluginConfig(t, plugin(nil)).GetVmConfig().VmId
	for _, tt := range []struct {
		name string
		edit func(*extensionsv1alpha1.WasmPlugin)
		same bool
	}{
		{"another plugin", func(p *extensionsv1alpha1.WasmPlugin) { p.Name = "q"; p.Spec.PluginName = "q" }, true},
		{"policy", func(p *extensionsv1alpha1.WasmPlugin) { p.Spec.ImagePullPolicy = extensions.PullPolicy_Always }, true},
		{"scheme", func(p *extensionsv1alpha1.WasmPlugin) { p.Spec.Url = "r.example/p:v1" }, true},
		{"module", func(p *extensionsv1alpha1.WasmPlugin) { p.Spec.Url = "oci://r.example/p:v2" }, false},
		{"digest", func(p *extensionsv1alpha1.WasmPlugin) { p.Spec.Sha256 = strings.Repeat("0", 64) }, false},
		{"environment", func(p *extensionsv1alpha1.WasmPlugin) {
			p.Spec.VmConfig = &extensions.VmConfig{Env: []*extensions.EnvVar{{Name: "A", Value: "b"}}}
		}, false},
	} {
		if got := pluginConfig(t, plugin(tt.edit)).GetVmConfig().VmId == base; got != tt.same {
			t.Errorf("%s: same VM = %v, want %v", tt.name, got, tt.same)
		}
	}
}

// The version that makes pull policy Always pull again changes with what users
// write, and not with what controllers do.
func TestVersion(t *testing.T) {
	version := func(edit func(*extensionsv1alpha1.WasmPlugin)) string {
		return pluginConfig(t, plugin(edit)).GetVmConfig().GetEnvironmentVariables().KeyValues[ecds.ResourceVersionEnv]
	}
	base := version(nil)
	for _, tt := range []struct {
		name string
		edit func(*extensionsv1alpha1.WasmPlugin)
		same bool
	}{
		{"status", func(p *extensionsv1alpha1.WasmPlugin) { p.ResourceVersion = "7"; p.Status.ObservedGeneration = 7 }, true},
		{"kubectl's note", func(p *extensionsv1alpha1.WasmPlugin) {
			p.Annotations = map[string]string{corev1.LastAppliedConfigAnnotation: "x"}
		}, true},
		{"annotation", func(p *extensionsv1alpha1.WasmPlugin) { p.Annotations = map[string]string{"pull": "again"} }, false},
		{"label", func(p *extensionsv1alpha1.WasmPlugin) { p.Labels = map[string]string{"pull": "again"} }, false},
		{"spec", func(p *extensionsv1alpha1.WasmPlugin) { p.Spec.PluginName = "x" }, false},
		{"created anew", func(p *extensionsv1alpha1.WasmPlugin) { p.UID = "x" }, false},
	} {
		if got := version(tt.edit) == base; got != tt.same {
			t.Errorf("%s: same version = %v, want %v", tt.name, got, tt.same)
		}
	}
}

func TestExtensionURLs(t *testing.T) {
	for _, tt := range []struct{ url, want string }{
		{"r.example/p:v1", "oci://r.example/p:v1"},
		{"localhost:5000/p", "oci://localhost:5000/p"},
		{"oci://r.example/p@sha256:abc", "oci://r.example/p@sha256:abc"},
		{"http://e.example/a.wasm", "http://e.example/a.wasm"},
		{"file:///a/b.wasm", "/a/b.wasm"},
	} {
		c := pluginConfig(t, plugin(func(p *extensionsv1alpha1.WasmPlugin) { p.Spec.Url = tt.url })).GetVmConfig().Code
		if got := c.GetRemote().GetHttpUri().GetUri() + c.GetLocal().GetFilename(); got != tt.want {
			t.Errorf("%s becomes %s, want %s", tt.url, got, tt.want)
		}
	}
}

func TestExtensionRefusals(t *testing.T) {
	env := func(vars ...*extensions.EnvVar) func(*extensionsv1alpha1.WasmPlugin) {
		return func(p *extensionsv1alpha1.WasmPlugin) { p.Spec.VmConfig = &extensions.VmConfig{Env: vars} }
	}
	for _, tt := range []struct {
		name string
		edit func(*extensionsv1alpha1.WasmPlugin)
		want string
	}{
		{"reserved variable", env(&extensions.EnvVar{Name: "ISTIO_META_X"}), "spec.vmConfig.env[0].name"},
		{"variable twice", env(&extensions.EnvVar{Name: "A"}, &extensions.EnvVar{Name: "A", ValueFrom: extensions.EnvValueSource_HOST}), "spec.vmConfig.env[1].name"},
		{"scheme", func(p *extensionsv1alpha1.WasmPlugin) { p.Spec.Url = "ftp://e.example/a" }, "spec.url"},
		{"url", func(p *extensionsv1alpha1.WasmPlugin) { p.Spec.Url = "oci://%zz" }, "spec.url"},
		{"verification", func(p *extensionsv1alpha1.WasmPlugin) { p.Spec.VerificationKey = "k" }, "spec.verificationKey"},
		{"not UTF-8", func(p *extensionsv1alpha1.WasmPlugin) { p.Spec.PluginName = "\xff" }, "spec."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, problems := New([]resource.Object{plugin(tt.edit)}, Options{})
			if len(problems) != 1 || problems[0].Field != tt.want {
				t.Errorf("problems = %v, want one with %s", problems, tt.want)
			}
			if got := w.AllExtensions(); len(got) != 0 {
				t.Errorf("it is there all the same")
			}
		})
	}
}

// A Secret's content is in the resource for the agent, and in no problem.
func TestPullSecretStaysInItsNamespace(t *testing.T) {
	secret := func(namespace, key string) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: namespace}, Data: map[string][]byte{key: []byte("top secret")}}
	}
	p := plugin(func(p *extensionsv1alpha1.WasmPlugin) { p.Spec.ImagePullSecret = "s" })
	for _, tt := range []struct {
		secret *corev1.Secret
		want   string
	}{
		{secret("istio-system", corev1.DockerConfigJsonKey), "top secret"},
		{secret("other", corev1.DockerConfigJsonKey), ""},
		{secret("istio-system", "other"), ""},
	} {
		w, problems := New([]resource.Object{p, tt.secret}, Options{})
		filter := new(httpwasmv3.Wasm)
		if err := w.AllExtensions()[0].Config.TypedConfig.UnmarshalTo(filter); err != nil {
			t.Fatal(err)
		}
		got, ok := filter.Config.GetVmConfig().GetEnvironmentVariables().KeyValues[ecds.PullSecretEnv]
		if !ok || got != tt.want || (tt.want == "") != (len(problems) == 1) || strings.Contains(fmt.Sprint(problems), "top") {
			t.Errorf("secret is %q, problems %v, want %q", got, problems, tt.want)
		}
	}
}

func TestPodLabels(t *testing.T) {
	w := world(t, `
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: default, labels: {app: a}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: bare, namespace: default}}
`)
	for name, want := range map[string]string{
		"default/a": "map[app:a] true", "default/bare": "map[] true", "other/a": "map[] false", "default/none": "map[] false",
	} {
		namespace, pod, _ := strings.Cut(name, "/")
		labels, found := w.PodLabels(namespace, pod)
		if got := fmt.Sprint(labels, found); got != want {
			t.Errorf("labels of %s are %s, want %s", name, got, want)
		}
	}
}

func TestServicesOf(t *testing.T) {
	w := world(t, `
{apiVersion: v1, kind: Service, metadata: {name: selected, namespace: default}, spec: {selector: {app: a}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: by-hand, namespace: default}, spec: {ports: [{port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: by-hand, namespace: default, labels: {kubernetes.io/service-name: by-hand}}, addressType: IPv4, ports: [{port: 80}], endpoints: [{addresses: [10.0.0.1]}]}
---
{apiVersion: v1, kind: Service, metadata: {name: selected, namespace: other}, spec: {selector: {app: a}, ports: [{port: 80}]}}
`)
	ip := []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	for _, tt := range []struct {
		name string
		p    Proxy
		want string
	}{
		{"labels and address", Proxy{Role: Sidecar, Namespace: "default", Labels: map[string]string{"app": "a"}, IPs: ip}, "by-hand selected"},
		{"redirected", Proxy{Role: Sidecar, Namespace: "default", Labels: map[string]string{"app": "a"}, IPs: ip, Redirected: true}, "selected"},
		{"redirected without labels", Proxy{Role: Sidecar, Namespace: "default", IPs: ip, Redirected: true}, "by-hand"},
		{"gateway", Proxy{Role: Router, Namespace: "default", Labels: map[string]string{"app": "a"}, IPs: ip}, "selected"},
		{"stranger", Proxy{Role: Sidecar, Namespace: "default", Labels: map[string]string{"app": "b"}}, ""},
	} {
		var names []string
		for _, s := range w.ServicesOf(tt.p) {
			names = append(names, s.Name.Name)
		}
		if got := strings.Join(names, " "); got != tt.want {
			t.Errorf("%s: services are %q, want %q", tt.name, got, tt.want)
		}
	}
}

// A port by name is found in the Pod that the proxy is, also if the proxy has
// labels that the Pod has not.
func TestTargetPort(t *testing.T) {
	w := world(t, `
{apiVersion: v1, kind: Pod, metadata: {name: a-1, namespace: default, labels: {app: a}}, spec: {containers: [{name: c, image: c, ports: [{name: web, containerPort: 8081}]}]}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a-2, namespace: default, labels: {app: a, version: v2}}, spec: {containers: [{name: c, image: c, ports: [{name: web, containerPort: 8082}]}]}, status: {podIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: bare, namespace: default}, spec: {containers: [{name: c, image: c, ports: [{name: web, containerPort: 8083}]}]}, status: {podIP: 10.0.0.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a-1, namespace: other, labels: {app: a}}, spec: {containers: [{name: c, image: c, ports: [{name: web, containerPort: 8084}]}]}, status: {podIP: 10.0.0.4}}
`)
	web := Port{Number: 80, Target: intstr.FromString("web")}
	labels := func(pairs ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	for _, tt := range []struct {
		name string
		p    Proxy
		want uint32 // 0 for none
	}{
		{"labels of its Pod", Proxy{Labels: labels("app", "a", "version", "v2")}, 8082},
		{"more than its Pod has", Proxy{Labels: labels("app", "a", "version", "v2", "rev", "x")}, 8082},
		{"more than a Pod with fewer has", Proxy{Labels: labels("app", "a", "rev", "x")}, 8081},
		{"others, but its address", Proxy{Labels: labels("app", "b"), IPs: []netip.Addr{netip.MustParseAddr("10.0.0.3")}}, 8083},
		{"others, but its name", Proxy{Labels: labels("app", "b"), Name: "bare"}, 8083},
		{"none, but its address", Proxy{IPs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}}, 8082},
		{"nothing of a Pod's", Proxy{Labels: labels("app", "b"), Name: "b"}, 0},
		{"a Pod without labels is not everybody's", Proxy{Labels: labels("x", "y")}, 0},
	} {
		tt.p.Role, tt.p.Namespace = Sidecar, "default"
		if got, ok := w.TargetPort(tt.p, web); got != tt.want || ok != (tt.want > 0) {
			t.Errorf("%s: port is %d, %v, want %d", tt.name, got, ok, tt.want)
		}
	}
}

// Addresses that are none do not reach a proxy, whoever let them through: Envoy would
// refuse all endpoints that come with them.
func TestEndpointAddresses(t *testing.T) {
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, Namespace: "a", Labels: map[string]string{"app": "a", discoveryv1.LabelServiceName: "sliced"}}
	}
	service := func(name string, selector map[string]string) *corev1.Service {
		return &corev1.Service{ObjectMeta: meta(name), Spec: corev1.ServiceSpec{Selector: selector, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}
	}
	pod := func(name, ip string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: meta(name), Status: corev1.PodStatus{PodIP: ip}}
	}
	w, _ := New([]resource.Object{
		service("sliced", nil),
		&discoveryv1.EndpointSlice{ObjectMeta: meta("sliced"), Ports: []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(80))}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1", "", "web.example", "fd00::1", "fe80::1%eth0"}}}},
		service("selected", map[string]string{"app": "a"}), pod("good", "10.0.0.2"), pod("bad", "nowhere"),
	}, Options{})
	for name, want := range map[string][]string{"sliced": {"10.0.0.1", "fd00::1"}, "selected": {"10.0.0.2"}} {
		var got []string
		for _, e := range w.View("a").Service(name, "a").Endpoints(80) {
			got = append(got, e.Address)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s has endpoints %v, want %v", name, got, want)
		}
	}
}
