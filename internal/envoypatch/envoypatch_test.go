package envoypatch

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	"sigs.k8s.io/yaml"

	"github.com/chandler-proxy/chandler/internal/envoytypes"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

var update = flag.Bool("update", false, "write the golden files anew")

// A written is a Config as a test writes it.
type written struct {
	Proxy struct {
		Role     mesh.Role
		Version  string
		Metadata map[string]string
	}
	Listeners, Routes, Clusters, Extensions []json.RawMessage
}

func TestGolden(t *testing.T) {
	ins, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(ins) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, in := range ins {
		name := strings.TrimSuffix(filepath.Base(in), ".in.yaml")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			head, rest, _ := strings.Cut(string(text), "\n---\n")
			cfg, proxy := readConfig(t, head)
			before := clone(cfg)
			kept := *cfg

			var filters []*Filter
			var problems []resource.Problem
			for doc := range strings.SplitSeq(rest, "\n---\n") {
				f, ps := Compile(readFilter(t, doc))
				filters, problems = append(filters, f), append(problems, ps...)
			}
			problems = append(problems, Apply(cfg, proxy, filters)...)
			if !equal(before, &kept) {
				t.Error("Apply changed messages it was given")
			}
			golden(t, filepath.Join("testdata", name+".out.yaml"), write(t, cfg, problems))
		})
	}
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func readConfig(t testing.TB, text string) (*Config, mesh.Proxy) {
	t.Helper()
	var w written
	if err := yaml.UnmarshalStrict([]byte(text), &w); err != nil {
		t.Fatal(err)
	}
	cfg := &Config{
		Listeners:  readAll(t, w.Listeners, func() *listenerv3.Listener { return new(listenerv3.Listener) }),
		Routes:     readAll(t, w.Routes, func() *routev3.RouteConfiguration { return new(routev3.RouteConfiguration) }),
		Clusters:   readAll(t, w.Clusters, func() *clusterv3.Cluster { return new(clusterv3.Cluster) }),
		Extensions: readAll(t, w.Extensions, func() *corev3.TypedExtensionConfig { return new(corev3.TypedExtensionConfig) }),
	}
	return cfg, mesh.Proxy{Role: w.Proxy.Role, Version: w.Proxy.Version, Metadata: w.Proxy.Metadata}
}

func readAll[M proto.Message](t testing.TB, in []json.RawMessage, empty func() M) (out []M) {
	t.Helper()
	for _, raw := range in {
		m := empty()
		if err := (protojson.UnmarshalOptions{Resolver: envoytypes.Types()}).Unmarshal(raw, m); err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

func readFilter(t testing.TB, text string) *networkingv1alpha3.EnvoyFilter {
	t.Helper()
	f := new(networkingv1alpha3.EnvoyFilter)
	if err := yaml.Unmarshal([]byte(text), f); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return f
}

func write(t testing.TB, cfg *Config, problems []resource.Problem) []byte {
	t.Helper()
	var out struct {
		Listeners  []any    `json:"listeners,omitempty"`
		Routes     []any    `json:"routes,omitempty"`
		Clusters   []any    `json:"clusters,omitempty"`
		Extensions []any    `json:"extensions,omitempty"`
		Problems   []string `json:"problems,omitempty"`
	}
	out.Listeners = writeAll(t, cfg.Listeners)
	out.Routes = writeAll(t, cfg.Routes)
	out.Clusters = writeAll(t, cfg.Clusters)
	out.Extensions = writeAll(t, cfg.Extensions)
	for _, p := range problems {
		out.Problems = append(out.Problems, p.String())
	}
	text, err := yaml.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func writeAll[M proto.Message](t testing.TB, in []M) (out []any) {
	t.Helper()
	for _, m := range in {
		text, err := protojson.MarshalOptions{Resolver: envoytypes.Types(), UseProtoNames: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := json.NewDecoder(bytes.NewReader(text)).Decode(&v); err != nil {
			t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

func clone(cfg *Config) *Config {
	return &Config{cloneAll(cfg.Listeners), cloneAll(cfg.Routes), cloneAll(cfg.Clusters), cloneAll(cfg.Extensions)}
}

func cloneAll[M proto.Message](in []M) (out []M) {
	for _, m := range in {
		out = append(out, proto.Clone(m).(M))
	}
	return out
}

func equal(a, b *Config) bool {
	return equalAll(a.Listeners, b.Listeners) && equalAll(a.Routes, b.Routes) &&
		equalAll(a.Clusters, b.Clusters) && equalAll(a.Extensions, b.Extensions)
}

func equalAll[M proto.Message](a, b []M) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !proto.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

// sketch is cfg by names alone, a line a list; * marks what is discovered.
func sketch(t testing.TB, cfg *Config) []string {
	t.Helper()
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for _, l := range cfg.Listeners {
		add("listener %s: %s", l.GetName(), names(l.GetListenerFilters()))
		for c := range chains(l) {
			add("%s chain %s: %s", l.GetName(), c.GetName(), names(c.GetFilters()))
			for _, f := range c.GetFilters() {
				if bare(f.GetTypedConfig().GetTypeUrl()) != hcmType {
					continue
				}
				hcm := new(hcmv3.HttpConnectionManager)
				if err := f.GetTypedConfig().UnmarshalTo(hcm); err != nil {
					t.Fatal(err)
				}
				add("%s %s http: %s", l.GetName(), c.GetName(), names(hcm.GetHttpFilters()))
				if rc := hcm.GetRouteConfig(); rc != nil {
					lines = append(lines, sketchRoutes(rc)...)
				}
			}
		}
	}
	for _, rc := range cfg.Routes {
		lines = append(lines, sketchRoutes(rc)...)
	}
	add("clusters: %s", names(cfg.Clusters))
	add("extensions: %s", names(cfg.Extensions))
	return lines
}

func sketchRoutes(rc *routev3.RouteConfiguration) (lines []string) {
	lines = append(lines, fmt.Sprintf("routes %s: %s", rc.GetName(), names(rc.GetVirtualHosts())))
	for _, vh := range rc.GetVirtualHosts() {
		lines = append(lines, fmt.Sprintf("%s %s: %s", rc.GetName(), vh.GetName(), names(vh.GetRoutes())))
	}
	return lines
}

func names[M interface{ GetName() string }](list []M) string {
	var out []string
	for _, m := range list {
		name := m.GetName()
		if d, ok := any(m).(interface {
			GetConfigDiscovery() *corev3.ExtensionConfigSource
		}); ok && d.GetConfigDiscovery() != nil {
			name += "*"
		}
		out = append(out, name)
	}
	return strings.Join(out, " ")
}

// changes are the lines that are not in both, in order: - of before, + of after.
func changes(before, after []string) (out []string) {
	for _, l := range before {
		if !contains(after, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range after {
		if !contains(before, l) {
			out = append(out, "+ "+l)
		}
	}
	return out
}

func contains(lines []string, l string) bool {
	for _, m := range lines {
		if m == l {
			return true
		}
	}
	return false
}
