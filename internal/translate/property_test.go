package translate

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// encode is all of r as bytes that tell any difference.
func encode(t testing.TB, r *Resources, problems []resource.Problem) string {
	t.Helper()
	var b strings.Builder
	add := func(m proto.Message) {
		text, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%T %d ", m, len(text))
		b.Write(text)
	}
	for _, m := range r.Listeners {
		add(m)
	}
	for _, m := range r.Routes {
		add(m)
	}
	for _, m := range r.Clusters {
		add(m)
	}
	for _, m := range r.Extensions {
		add(m)
	}
	for _, m := range r.Endpoints {
		add(m)
	}
	for _, m := range r.Secrets {
		add(m)
	}
	fmt.Fprint(&b, problems)
	return b.String()
}

// The order in which objects come changes not one byte, and neither does another
// Build of the same World.
func TestOrderOfObjectsDoesNotMatter(t *testing.T) {
	for _, name := range goldens(t) {
		t.Run(name, func(t *testing.T) {
			objects, p := readInput(t, name)
			build := func() (string, []resource.Problem) {
				w, problems := mesh.New(objects, mesh.Options{})
				r, more := Build(w, p)
				first := encode(t, r, more)
				r, more = Build(w, p)
				if first != encode(t, r, more) {
					t.Fatal("a second Build of one World differs from the first")
				}
				return first, problems
			}
			want, wantProblems := build()
			random := rand.New(rand.NewPCG(1, 2))
			for range 20 {
				random.Shuffle(len(objects), func(i, j int) { objects[i], objects[j] = objects[j], objects[i] })
				got, problems := build()
				if got != want {
					t.Fatal("another order of objects gives other resources")
				}
				if diff := cmp.Diff(wantProblems, problems); diff != "" {
					t.Fatalf("another order of objects gives other problems:\n%s", diff)
				}
			}
		})
	}
}

// What does not concern a proxy changes nothing of its resources.
func TestUnrelatedResources(t *testing.T) {
	const unrelated = `
{apiVersion: v1, kind: Pod, metadata: {name: stranger, namespace: strange, labels: {app: stranger}}, spec: {containers: [{name: a, image: a}]}, status: {podIP: 10.99.0.1}}
---
{apiVersion: v1, kind: Secret, metadata: {name: stranger, namespace: strange}, stringData: {a: b}}
---
{apiVersion: extensions.istio.io/v1alpha1, kind: WasmPlugin, metadata: {name: stranger, namespace: strange}, spec: {url: "file:///a.wasm"}}
---
{apiVersion: extensions.istio.io/v1alpha1, kind: WasmPlugin, metadata: {name: stranger, namespace: istio-system}, spec: {url: "file:///a.wasm", selector: {matchLabels: {no: body}}}}
---
{apiVersion: networking.istio.io/v1, kind: Gateway, metadata: {name: stranger, namespace: strange}, spec: {selector: {no: body}, servers: [{port: {number: 1234, name: http, protocol: HTTP}, hosts: ["*"]}]}}
---
{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: stranger, namespace: strange}, spec: {hosts: [a.example], gateways: [stranger], http: [{directResponse: {status: 200}}]}}
`
	for _, name := range goldens(t) {
		t.Run(name, func(t *testing.T) {
			objects, p := readInput(t, name)
			w, _ := mesh.New(objects, mesh.Options{})
			want, problems := Build(w, p)
			w, _ = mesh.New(append(objects, decode(t, unrelated)...), mesh.Options{})
			got, more := Build(w, p)
			if encode(t, want, problems) != encode(t, got, more) {
				t.Error("resources of strangers change those of the proxy")
			}
		})
	}
}

// Every name that is referred to is there, and nothing else is.
func TestReferencesAreWhole(t *testing.T) {
	for _, name := range goldens(t) {
		t.Run(name, func(t *testing.T) {
			objects, p := readInput(t, name)
			w, _ := mesh.New(objects, mesh.Options{})
			r, _ := Build(w, p)
			refs := references{routes: map[string]bool{}, extensions: map[string]bool{}, endpoints: map[string]bool{}, secrets: map[string]bool{}}
			for _, l := range r.Listeners {
				refs.gather(l.ProtoReflect())
			}
			for _, c := range r.Clusters {
				refs.gather(c.ProtoReflect())
			}
			have := map[string][]string{}
			for _, m := range r.Routes {
				have["routes"] = append(have["routes"], m.Name)
			}
			for _, m := range r.Extensions {
				have["extensions"] = append(have["extensions"], m.Name)
			}
			for _, m := range r.Endpoints {
				have["endpoints"] = append(have["endpoints"], m.ClusterName)
			}
			for _, m := range r.Secrets {
				have["secrets"] = append(have["secrets"], m.Name)
			}
			for kind, want := range map[string]map[string]bool{
				"routes": refs.routes, "extensions": refs.extensions, "endpoints": refs.endpoints, "secrets": refs.secrets,
			} {
				got := have[kind]
				slices.Sort(got)
				if diff := cmp.Diff(sortedKeys(want), got, cmp.Transformer("set", func(s []string) []string { return append([]string{}, s...) })); diff != "" {
					t.Errorf("%s (-referred to +there):\n%s", kind, diff)
				}
			}
		})
	}
}

// All that Build gives is valid by Envoy's own rules.
func TestMessagesAreValid(t *testing.T) {
	for _, name := range goldens(t) {
		t.Run(name, func(t *testing.T) {
			objects, p := readInput(t, name)
			w, _ := mesh.New(objects, mesh.Options{})
			r, _ := Build(w, p)
			validate(t, r)
		})
	}
}

func validate(t testing.TB, r *Resources) {
	t.Helper()
	check := func(m interface{ ValidateAll() error }) {
		if err := m.ValidateAll(); err != nil {
			t.Errorf("%T: %v", m, err)
		}
	}
	for _, m := range r.Listeners {
		check(m)
	}
	for _, m := range r.Routes {
		check(m)
		claimed := map[string]bool{}
		for _, vh := range m.VirtualHosts {
			for _, d := range vh.Domains {
				if claimed[d] {
					t.Errorf("route configuration %s has domain %q twice", m.Name, d)
				}
				claimed[d] = true
			}
		}
	}
	for _, m := range r.Clusters {
		check(m)
	}
	for _, m := range r.Endpoints {
		check(m)
	}
	for _, m := range r.Secrets {
		check(m)
	}
}

// A World serves many Builds at once. Run with -race.
func TestBuildsOfOneWorld(t *testing.T) {
	objects, p := readInput(t, "envoyfilter")
	w, _ := mesh.New(objects, mesh.Options{})
	var wg sync.WaitGroup
	results := make([]*Resources, 8)
	for i := range results {
		wg.Go(func() { results[i], _ = Build(w, p) })
	}
	wg.Wait()
	for _, r := range results {
		if encode(t, r, nil) != encode(t, results[0], nil) {
			t.Error("Builds at once differ")
		}
	}
}

// Extension configs, clusters and endpoints are made once for a World.
func TestSharedMessages(t *testing.T) {
	objects, p := readInput(t, "bookinfo")
	w, _ := mesh.New(objects, mesh.Options{})
	a, _ := Build(w, p)
	p.Labels = map[string]string{"istio": "ingressgateway", "another": "class"}
	b, _ := Build(w, p)
	if a.Extensions[0] != b.Extensions[0] || a.Clusters[0] != b.Clusters[0] || a.Endpoints[0] != b.Endpoints[0] {
		t.Error("classes do not share messages")
	}
	if Extensions(w, p)[0].Config != a.Extensions[0] {
		t.Error("Extensions gives another config than Build")
	}
}

func TestClass(t *testing.T) {
	gateway := "id: router~10.0.0.1~gw-0.edge~edge.svc.cluster.local\nmetadata: {LABELS: {a: b}}"
	redirected := "id: sidecar~10.0.0.1~web-0.edge~edge.svc.cluster.local\nmetadata: {LABELS: {a: b}, INTERCEPTION_MODE: REDIRECT}"
	direct := "id: sidecar~10.0.0.1~web-0.edge~edge.svc.cluster.local\nmetadata: {LABELS: {a: b}}"
	for _, tt := range []struct {
		name, node, from, to string
		same                 bool
	}{
		{"gateway's name", gateway, "gw-0", "gw-1", true},
		{"gateway's address", gateway, "10.0.0.1", "10.0.0.2", true},
		{"gateway's address family", gateway, "10.0.0.1", "fd00::1", false},
		{"gateway's labels", gateway, "a: b", "a: c", false},
		{"gateway's namespace", gateway, "gw-0.edge", "gw-0.other", false},
		{"role", gateway, "router", "sidecar", false},
		{"redirected sidecar's name and address", redirected, "10.0.0.1~web-0", "10.0.0.2~web-1", true},
		{"redirection", redirected, "REDIRECT", "NONE", false},
		{"sidecar's address", direct, "10.0.0.1", "10.0.0.2", false},
		{"unlabelled sidecar's address", strings.Replace(redirected, "a: b", "", 1), "10.0.0.1", "10.0.0.2", false},
		{"metadata", gateway, "LABELS", "X: z, LABELS", false},
		{"workload", gateway, "LABELS", "WORKLOAD_NAME: gw, LABELS", false},
		{"cluster", gateway, "LABELS", "CLUSTER_ID: one, LABELS", false},
		{"version", gateway, "LABELS", "ISTIO_VERSION: 1.31.0, LABELS", false},
		{"instance's own name in metadata", gateway, "LABELS", "NAME: gw-0, LABELS", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := readNode(t, tt.node), readNode(t, strings.Replace(tt.node, tt.from, tt.to, 1))
			if got := Class(a) == Class(b); got != tt.same {
				t.Errorf("same class = %v, want %v:\n%s\n%s", got, tt.same, Class(a), Class(b))
			}
		})
	}
}

// FuzzBuild puts any string into any place of the golden inputs. Envoy's own
// rules must allow what is built of it.
func FuzzBuild(f *testing.F) {
	type golden struct {
		objects []resource.Object
		proxy   mesh.Proxy
	}
	var all []golden
	for _, name := range goldens(f) {
		objects, p := readInput(f, name)
		all = append(all, golden{objects, p})
	}
	for _, s := range []string{"", "*", "%", "a b", "\x00", "\n", "/", "(", "*.*", "\\9", "ns/*", "999999h", "-1s"} {
		f.Add(uint(0), uint(0), uint(0), s)
	}
	f.Fuzz(func(t *testing.T, which, object, place uint, value string) {
		g := all[which%uint(len(all))]
		objects := slices.Clone(g.objects)
		i := object % uint(len(objects))
		objects[i] = objects[i].DeepCopyObject().(resource.Object)
		places := stringsOf(reflect.ValueOf(objects[i]).Elem())
		if len(places) == 0 || !utf8.ValidString(value) {
			return
		}
		places[place%uint(len(places))].SetString(value)
		w, _ := mesh.New(objects, mesh.Options{})
		r, problems := Build(w, g.proxy)
		validate(t, r)
		encode(t, r, problems)
	})
}

// stringsOf finds the strings in v that can be set, but for those in maps, in
// metadata and in status.
func stringsOf(v reflect.Value) []reflect.Value {
	switch v.Kind() {
	case reflect.String:
		if v.CanSet() {
			return []reflect.Value{v}
		}
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			return stringsOf(v.Elem())
		}
	case reflect.Slice:
		var out []reflect.Value
		for i := range v.Len() {
			out = append(out, stringsOf(v.Index(i))...)
		}
		return out
	case reflect.Struct:
		var out []reflect.Value
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() && f.Name != "TypeMeta" && f.Name != "ObjectMeta" && f.Name != "Status" {
				out = append(out, stringsOf(v.Field(i))...)
			}
		}
		return out
	}
	return nil
}

// large is n extensions, and services of which each has ten Pods.
func large(b *testing.B, extensions, pods int) []resource.Object {
	b.Helper()
	objects, _ := readInput(b, "bookinfo")
	text := &strings.Builder{}
	for i := range extensions {
		fmt.Fprintf(text, "---\n{apiVersion: extensions.istio.io/v1alpha1, kind: WasmPlugin, metadata: {name: p%d, namespace: istio-system}, spec: {url: 'oci://r.example/p%d:v1', selector: {matchLabels: {istio: ingressgateway}}, pluginConfig: {a: [1, 2, 3]}}}\n", i, i)
	}
	for i := range pods {
		if i%10 == 0 {
			fmt.Fprintf(text, "---\n{apiVersion: v1, kind: Service, metadata: {name: s%d, namespace: default}, spec: {selector: {app: s%d}, ports: [{name: http, port: %d}]}}\n", i/10, i/10, 8000+i/10%5)
		}
		fmt.Fprintf(text, "---\n{apiVersion: v1, kind: Pod, metadata: {name: p%d, namespace: default, labels: {app: s%d, tier: back}}, spec: {containers: [{name: a, image: a}]}, status: {podIP: 10.%d.%d.%d}}\n", i, i/10, 1+i>>16, i>>8&255, i&255)
	}
	return append(objects, decode(b, text.String())...)
}

func BenchmarkNew(b *testing.B) {
	for _, n := range []int{1, 5} {
		objects := large(b, 200*n, 1000*n)
		b.Run(fmt.Sprintf("extensions=%d/pods=%d", 200*n, 1000*n), func(b *testing.B) {
			for b.Loop() {
				mesh.New(objects, mesh.Options{})
			}
		})
	}
}

func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{1, 5} {
		objects := large(b, 200*n, 1000*n)
		_, gateway := readInput(b, "bookinfo")
		_, sidecar := readInput(b, "outbound")
		for _, p := range []mesh.Proxy{gateway, sidecar} {
			b.Run(fmt.Sprintf("%s/first/extensions=%d/pods=%d", p.Role, 200*n, 1000*n), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					w, _ := mesh.New(objects, mesh.Options{})
					b.StartTimer()
					Build(w, p)
				}
			})
			w, _ := mesh.New(objects, mesh.Options{})
			b.Run(fmt.Sprintf("%s/more/extensions=%d/pods=%d", p.Role, 200*n, 1000*n), func(b *testing.B) {
				for b.Loop() {
					Build(w, p)
				}
			})
		}
	}
}
