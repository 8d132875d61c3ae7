package dev

import (
	"cmp"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	netwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chandler-proxy/chandler/internal/engine/config"
)

const wasmPlugin = `apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: hello}
spec:
  url: oci://registry/hello:v1
  imagePullSecret: not-there
  pluginName: root
  failStrategy: %STRATEGY
  type: %TYPE
  vmConfig: {env: [{name: A, value: b}]}
  pluginConfig: {a: [1, "x"]}
`

func resourceText(strategy, kind string) string {
	return strings.NewReplacer("%STRATEGY", strategy, "%TYPE", kind).Replace(wasmPlugin)
}

// TestSettings reads configurations in every form.
func TestSettings(t *testing.T) {
	for _, tt := range []struct {
		name, file, text string
		want             string // configuration
		plugin, root     string
		policy           wasmv3.FailurePolicy
		network          bool
	}{
		{name: "resource", file: "a.yaml", text: resourceText("FAIL_CLOSE", "HTTP"), want: `{"a":[1,"x"]}`, plugin: "default.hello", root: "root"},
		{name: "that lets pass", file: "a.yml", text: resourceText("FAIL_OPEN", "HTTP"), want: `{"a":[1,"x"]}`, plugin: "default.hello", root: "root", policy: wasmv3.FailurePolicy_FAIL_OPEN},
		{name: "of a network filter", file: "a.yaml", text: resourceText("FAIL_CLOSE", "NETWORK"), want: `{"a":[1,"x"]}`, plugin: "default.hello", root: "root", network: true},
		{name: "among others", file: "a.yaml", text: "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 1}]}\n---\n" + resourceText("FAIL_CLOSE", "HTTP"),
			want: `{"a":[1,"x"]}`, plugin: "default.hello", root: "root"},
		{name: "TrafficExtension", file: "a.yaml", text: "apiVersion: extensions.istio.io/v1alpha1\nkind: TrafficExtension\nmetadata: {name: te, namespace: ns}\nspec: {wasm: {url: 'oci://a/b:c', pluginConfig: {x: z}}}\n",
			want: `{"x":"z"}`, plugin: "ns.te"},
		{name: "YAML", file: "a.yaml", text: "header_1: one\nkind: of\n", want: `{"header_1":"one","kind":"of"}`, plugin: "name"},
		{name: "JSON", file: "a.json", text: " {\"a\": 1}\n", want: " {\"a\": 1}\n", plugin: "name"},
		{name: "YAML of another's kind", file: "a.yaml", text: "kind: Service\n", want: `{"kind":"Service"}`, plugin: "name"},
		{name: "text", file: "a.conf", text: "a=b", want: "a=b", plugin: "name"},
		{name: "nothing", file: "a.txt", plugin: "name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := parseSettings("name", tt.file, []byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if s.network != tt.network {
				t.Errorf("network = %v", s.network)
			}
			var p *wasmv3.PluginConfig
			e := s.extension("/m.wasm", tt.network)
			if tt.network {
				m := new(netwasmv3.Wasm)
				err = e.GetTypedConfig().UnmarshalTo(m)
				p = m.GetConfig()
			} else {
				m := new(httpwasmv3.Wasm)
				err = e.GetTypedConfig().UnmarshalTo(m)
				p = m.GetConfig()
			}
			if err != nil {
				t.Fatal(err)
			}
			text := new(wrapperspb.StringValue)
			if c := p.GetConfiguration(); c != nil {
				if err := c.UnmarshalTo(text); err != nil {
					t.Fatal(err)
				}
			}
			if text.GetValue() != tt.want || p.GetName() != tt.plugin || p.GetRootId() != tt.root {
				t.Errorf("plugin %s, root %q, configuration %q", p.GetName(), p.GetRootId(), text.GetValue())
			}
			if want := cmp.Or(tt.policy, wasmv3.FailurePolicy_FAIL_RELOAD); p.GetFailurePolicy() != want {
				t.Errorf("policy = %s, want %s", p.GetFailurePolicy(), want)
			}
			vm := p.GetVmConfig()
			if vm.GetCode().GetLocal().GetFilename() != "/m.wasm" {
				t.Errorf("module = %v", vm.GetCode())
			}
			for name := range vm.GetEnvironmentVariables().GetKeyValues() {
				if name != "A" {
					t.Errorf("the plugin sees %s", name)
				}
			}
			if decoded, err := config.DecodeExtension(e); err != nil {
				t.Errorf("the engine refuses %v: %v", decoded, err)
			}
		})
	}
}

func TestSettingsRefuse(t *testing.T) {
	for _, tt := range []struct{ name, file, text, want string }{
		{"no YAML", "a.yaml", "a: [", "a.yaml: "},
		{"no JSON", "a.json", "{", "a.json: not JSON: unexpected end of JSON input"},
		{"a resource without apiVersion", "a.yaml", "kind: WasmPlugin\nspec: {pluginConf: {}}\n", "apiVersion"},
		{"a mistake in a resource", "a.yaml", strings.Replace(resourceText("FAIL_CLOSE", "HTTP"), "pluginName", "pluginname", 1), "pluginname"},
		{"no plugin among resources", "a.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 1}]}\n", "has 0 WasmPlugins, want one"},
		{"two plugins", "a.yaml", resourceText("FAIL_CLOSE", "HTTP") + "---\n" + strings.Replace(resourceText("FAIL_CLOSE", "HTTP"), "name: hello", "name: two", 1), "has 2 WasmPlugins, want one"},
		{"Lua", "a.yaml", "apiVersion: extensions.istio.io/v1alpha1\nkind: TrafficExtension\nmetadata: {name: te}\nspec: {lua: {inlineCode: 'x = 1'}}\n", "no Wasm plugin"},
		{"what is no text", "a.conf", "\xff", "not UTF-8"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if s, err := parseSettings("name", tt.file, []byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("settings %v, %v, want %s", s, err, tt.want)
			}
		})
	}
	file := filepath.Join(folder(t, "a.yaml", resourceText("FAIL_CLOSE", "NETWORK")), "a.yaml")
	if _, err := (Config{ConfigFile: file}).settings(); err == nil || !strings.Contains(err.Error(), "run it with --network") {
		t.Errorf("a network filter before requests: %v", err)
	}
}

// Whatever a file holds, it is settings that the engine can read, or an error.
func FuzzSettings(f *testing.F) {
	for _, text := range []string{resourceText("FAIL_CLOSE", "HTTP"), "a: b", "kind: WasmPlugin\napiVersion: x", "- 1", "\xff", ""} {
		f.Add("a.yaml", text)
		f.Add("a.json", text)
	}
	f.Fuzz(func(t *testing.T, file, text string) {
		s, err := parseSettings("name", file, []byte(text))
		if err != nil {
			return
		}
		if _, err := config.DecodeExtension(s.extension("/m.wasm", s.network)); err != nil {
			t.Errorf("the engine refuses the settings: %v", err)
		}
	})
}

func TestClusters(t *testing.T) {
	for at, want := range map[string]struct {
		host string
		port uint32
		kind clusterv3.Cluster_DiscoveryType
	}{
		"127.0.0.1:80":         {"127.0.0.1", 80, clusterv3.Cluster_STATIC},
		"[::1]:80":             {"::1", 80, clusterv3.Cluster_STATIC},
		"localhost:8000":       {"localhost", 8000, clusterv3.Cluster_STRICT_DNS},
		"http://example":       {"example", 80, clusterv3.Cluster_STRICT_DNS},
		"http://example:8080/": {"example", 8080, clusterv3.Cluster_STRICT_DNS},
		"http://[::1]":         {"::1", 80, clusterv3.Cluster_STATIC},
	} {
		c, err := cluster("a", at)
		if err != nil {
			t.Errorf("%s: %v", at, err)
			continue
		}
		got := c.GetLoadAssignment().GetEndpoints()[0].GetLbEndpoints()[0].GetEndpoint().GetAddress().GetSocketAddress()
		if got.GetAddress() != want.host || got.GetPortValue() != want.port || c.GetType() != want.kind {
			t.Errorf("%s = %v %s", at, got, c.GetType())
		}
	}
	for _, at := range []string{"", "a", ":80", "a:0", "a:b", "a:70000", "https://a", "http://a/b", "http://a?b", "http://u@a", "a:1:2", "http://"} {
		if c, err := cluster("a", at); !errors.Is(err, ErrUpstream) {
			t.Errorf("%q = %v, %v", at, c, err)
		}
	}
	if _, err := clusters("a:1", map[string]string{upstreamCluster: "b:1"}); err == nil {
		t.Error("a cluster takes the upstream's name")
	}
}
