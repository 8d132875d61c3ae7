package resource

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	apiextensionsv1alpha1 "istio.io/api/extensions/v1alpha1"
	apitype "istio.io/api/type/v1beta1"
	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

var update = flag.Bool("update", false, "rewrite testdata/*.golden")

// What becomes of each file in testdata is in its .golden: the objects, then
// the problems as a user sees them.
func TestDecodeGolden(t *testing.T) {
	d := NewDecoder()
	for _, path := range inputs(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := outcome(d.Decode(filepath.Base(path), data))
			golden := path + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("run with -update if this is right (-want +got):\n%s", diff)
			}
		})
	}
}

// inputs are the files in testdata that users could have written.
func inputs(t testing.TB) []string {
	t.Helper()
	var paths []string
	for _, pattern := range []string{"testdata/*.yaml", "testdata/*.json"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatal(pattern, found, err)
		}
		paths = append(paths, found...)
	}
	return paths
}

func outcome(objects []Object, problems []Problem) string {
	var b strings.Builder
	for _, o := range objects {
		gvk := o.GetObjectKind().GroupVersionKind()
		fmt.Fprintf(&b, "%T %s %s %s/%s\n", o, gvk.GroupVersion(), gvk.Kind, o.GetNamespace(), o.GetName())
	}
	for _, p := range problems {
		fmt.Fprintln(&b, p)
	}
	return b.String()
}

const plugin = `apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata:
  name: auth
spec:
  url: oci://registry.example/auth:v1
`

// one decodes the only resource in data.
func one[T Object](t *testing.T, data string) T {
	t.Helper()
	objects, problems := NewDecoder().Decode("f.yaml", []byte(data))
	if len(problems) > 0 || len(objects) != 1 {
		t.Fatalf("Decode = %d objects, problems %v", len(objects), problems)
	}
	object, ok := objects[0].(T)
	if !ok {
		t.Fatalf("Decode = %T", objects[0])
	}
	return object
}

func TestDecodeWasmPlugin(t *testing.T) {
	p := one[*extensionsv1alpha1.WasmPlugin](t, plugin+`  phase: STATS
  failStrategy: FAIL_OPEN
  imagePullPolicy: Always
  type: NETWORK
  priority: 7
  match:
  - mode: CLIENT_AND_SERVER
    ports: [{number: 80}]
  vmConfig:
    env: [{name: HOME, valueFrom: HOST}]
  pluginConfig: {deep: [{x: 1}], text: "yes", plain: yes}
`)
	want := &apiextensionsv1alpha1.WasmPlugin{
		Url:             "oci://registry.example/auth:v1",
		Phase:           apiextensionsv1alpha1.PluginPhase_STATS,
		FailStrategy:    apiextensionsv1alpha1.FailStrategy_FAIL_OPEN,
		ImagePullPolicy: apiextensionsv1alpha1.PullPolicy_Always,
		Type:            apiextensionsv1alpha1.PluginType_NETWORK,
		Priority:        wrapperspb.Int32(7),
		Match: []*apiextensionsv1alpha1.WasmPlugin_TrafficSelector{{
			Mode:  apitype.WorkloadMode_CLIENT_AND_SERVER,
			Ports: []*apitype.PortSelector{{Number: 80}},
		}},
		VmConfig: &apiextensionsv1alpha1.VmConfig{Env: []*apiextensionsv1alpha1.EnvVar{
			{Name: "HOME", ValueFrom: apiextensionsv1alpha1.EnvValueSource_HOST},
		}},
		PluginConfig: &structpb.Struct{Fields: map[string]*structpb.Value{
			"deep": structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{
				structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"x": structpb.NewNumberValue(1)}}),
			}}),
			"text":  structpb.NewStringValue("yes"),
			"plain": structpb.NewBoolValue(true),
		}},
	}
	if diff := cmp.Diff(want, &p.Spec, protocmp.Transform()); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
	if want := (Key{Group: "extensions.istio.io", Kind: "WasmPlugin", Namespace: "default", Name: "auth"}); KeyOf(p) != want {
		t.Errorf("KeyOf = %v, want %v", KeyOf(p), want)
	}
}

// Nothing is set that was not written, but what the project that owns the kind sets.
func TestDecodeDefaults(t *testing.T) {
	p := one[*extensionsv1alpha1.WasmPlugin](t, plugin)
	if diff := cmp.Diff(&apiextensionsv1alpha1.WasmPlugin{Url: "oci://registry.example/auth:v1"}, &p.Spec, protocmp.Transform()); diff != "" {
		t.Errorf("WasmPlugin (-want +got):\n%s", diff)
	}

	r := one[*gatewayv1.HTTPRoute](t, `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  rules:
  - backendRefs: [{name: a, port: 80}]
`)
	rule := r.Spec.Rules[0]
	if got := *rule.BackendRefs[0].Weight; got != 1 {
		t.Errorf("HTTPRoute weight = %d, want 1", got)
	}
	if got := *rule.Matches[0].Path.Value; got != "/" {
		t.Errorf("HTTPRoute path = %q, want /", got)
	}

	s := one[*corev1.Service](t, `
apiVersion: v1
kind: Service
metadata: {name: s}
spec:
  ports: [{port: 80}]
`)
	want := corev1.ServiceSpec{
		Type:  corev1.ServiceTypeClusterIP,
		Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(80)}},
	}
	if diff := cmp.Diff(want, s.Spec); diff != "" {
		t.Errorf("Service (-want +got):\n%s", diff)
	}

	secret := one[*corev1.Secret](t, `
apiVersion: v1
kind: Secret
metadata: {name: s}
data: {a: Yg==}
stringData: {c: d}
`)
	if diff := cmp.Diff(map[string][]byte{"a": []byte("b"), "c": []byte("d")}, secret.Data); diff != "" {
		t.Errorf("Secret data (-want +got):\n%s", diff)
	}
}

// ResourceVersion stands for the content, not for how it is written.
func TestResourceVersion(t *testing.T) {
	version := func(data string) string {
		return one[*extensionsv1alpha1.WasmPlugin](t, data).ResourceVersion
	}
	base := version(plugin)
	if base == "" {
		t.Fatal("no ResourceVersion")
	}
	for name, same := range map[string]string{
		"comment":       "# hello\n" + plugin,
		"namespace":     strings.Replace(plugin, "name: auth", "name: auth\n  namespace: default", 1),
		"server fields": strings.Replace(plugin, "name: auth", "name: auth\n  uid: x\n  resourceVersion: \"9\"\n  generation: 4", 1),
		"status":        plugin + "status: {observedGeneration: 3}\n",
		"json":          `{"kind":"WasmPlugin","apiVersion":"extensions.istio.io/v1alpha1","spec":{"url":"oci://registry.example/auth:v1"},"metadata":{"name":"auth"}}`,
	} {
		if got := version(same); got != base {
			t.Errorf("%s: ResourceVersion changed", name)
		}
	}
	for name, other := range map[string]string{
		"tag":   strings.Replace(plugin, ":v1\n", ":v2\n", 1),
		"label": strings.Replace(plugin, "name: auth", "name: auth\n  labels: {a: b}", 1),
	} {
		if got := version(other); got == base {
			t.Errorf("%s: ResourceVersion did not change", name)
		}
	}
	if o := one[*extensionsv1alpha1.WasmPlugin](t, strings.Replace(plugin, "name: auth", "name: auth\n  uid: x", 1)); o.UID != "" {
		t.Errorf("UID = %q, want none", o.UID)
	}
}

// What was decoded is, written as JSON, the same resource again.
func TestDecodeIsIdempotent(t *testing.T) {
	d := NewDecoder()
	for _, path := range inputs(t) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		objects, _ := d.Decode(path, data)
		for _, o := range objects {
			written, err := json.Marshal(o)
			if err != nil {
				t.Fatal(err)
			}
			again, problems := d.Decode(path, written)
			if len(problems) > 0 || len(again) != 1 {
				t.Errorf("%v again: %v\n%s", KeyOf(o), problems, written)
				continue
			}
			again[0].SetResourceVersion(o.GetResourceVersion())
			if diff := cmp.Diff(o, again[0], protocmp.Transform()); diff != "" {
				t.Errorf("%v again (-first +second):\n%s", KeyOf(o), diff)
			}
		}
	}
}

// Every served version of every kind can be written, and compiles.
func TestEveryVersionOfEveryKind(t *testing.T) {
	d := NewDecoder()
	for _, k := range kinds() {
		if k.crd != "" {
			if _, err := d.definitions[k.crd](); err != nil {
				t.Error(err)
			}
		}
		for _, version := range k.versions {
			data := fmt.Sprintf("{apiVersion: %s, kind: %s}", joinVersion(k.group, version), k.name)
			_, problems := d.Decode("f", []byte(data))
			if len(problems) == 0 || problems[0].Field == "kind" || problems[0].Field == "apiVersion" {
				t.Errorf("%s: problems %v, want those of an empty resource", data, problems)
			}
		}
	}
}

func TestDocuments(t *testing.T) {
	got := NewDecoder().Documents("f.yaml", []byte("a: {b: c\n---\n"+plugin+"---\n"+plugin+"---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: c}}\n"))
	type summary struct {
		Line     int
		Name     string
		Object   bool
		Problems int
	}
	var summaries []summary
	for _, d := range got {
		summaries = append(summaries, summary{d.Line, d.Key.Name, d.Object != nil, len(d.Problems)})
	}
	want := []summary{{1, "", false, 1}, {3, "auth", true, 0}, {10, "auth", false, 1}, {17, "c", false, 0}}
	if diff := cmp.Diff(want, summaries); diff != "" {
		t.Errorf("Documents (-want +got):\n%s", diff)
	}
}

func TestLines(t *testing.T) {
	const file = `{apiVersion: v1, kind: ConfigMap, metadata: {name: c}}
---
apiVersion: v1
kind: List
items:
- apiVersion: extensions.istio.io/v1alpha1
  kind: WasmPlugin
  metadata:
    name: a
    labels: {a.b/c: d}
  spec:
    url: oci://r.example/a
    vmConfig:
      env:
      - name: A
        value: x
      - name: B
        value: z
`
	documents := NewDecoder().Documents("f.yaml", []byte(file))
	d := documents[len(documents)-1]
	if d.Object == nil {
		t.Fatal(d.Problems)
	}
	for field, want := range map[string]int{
		"":                          6,
		"nowhere":                   6,
		"spec.url":                  12,
		"spec.vmConfig.env[1].name": 17,
		"spec.vmConfig.env[1].deep": 17, // as far as it is there
		"spec.vmConfig.env[7]":      14,
		"metadata.labels[a.b/c]":    10,
	} {
		if got := d.Lines.Field(d.Line, field); got != want {
			t.Errorf("%q is at line %d, want %d", field, got, want)
		}
	}
	if got := (*Lines)(nil).Field(3, "spec"); got != 3 {
		t.Errorf("without lines: %d, want that of the document", got)
	}
}

// A file cannot make Decode work or report without bound.
func TestDecodeBounds(t *testing.T) {
	bomb := "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
	for c := 'b'; c < 'k'; c++ {
		p := string(c - 1)
		bomb += fmt.Sprintf("%c: &%c [*%s, *%s, *%s, *%s, *%s, *%s, *%s, *%s, *%s, *%s]\n", c, c, p, p, p, p, p, p, p, p, p, p)
	}
	chain := "a0: &a0 x\n"
	for i := 1; i < 2*maxDepth; i++ {
		chain += fmt.Sprintf("a%d: &a%d [*a%d]\n", i, i, i-1)
	}
	tooLarge := "too large"
	for _, tt := range []struct{ name, data, want string }{
		{"size", strings.Repeat("#", MaxFile+1), "larger than 4 MiB"},
		{"documents", strings.Repeat("---\na: b\n", maxDocuments+1), "more than 10000 resources"},
		{"empty documents", strings.Repeat("---\n", 3*maxDocuments), "more than 20000 documents"},
		{"list", "kind: List\nitems: [" + strings.Repeat("{},", maxDocuments+1) + "]", "more than 10000 resources"},
		{"alias bomb", plugin + bomb, tooLarge},
		{"alias chain", plugin + chain, tooLarge},
		{"alias of itself", plugin + "  pluginConfig: &a {b: *a}\n", tooLarge},
		{"depth", plugin + "  pluginConfig: {a: " + strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth) + "}\n", tooLarge},
		{"JSON depth", `{"a":` + strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1) + "}", tooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			objects, problems := NewDecoder().Decode("f", []byte(tt.data))
			if len(objects) > 0 || len(problems) == 0 || !strings.Contains(fmt.Sprint(problems), tt.want) {
				t.Errorf("Decode = %v, problems %.200v, want %q", objects, problems, tt.want)
			}
		})
	}
}

func TestDecodeTellsNotTooMuch(t *testing.T) {
	data := plugin
	for i := range 1000 {
		data += fmt.Sprintf("  unknown%d: x\n", i)
	}
	_, problems := NewDecoder().Decode("f", []byte(data))
	if len(problems) != maxProblems+1 {
		t.Errorf("%d problems, want %d", len(problems), maxProblems+1)
	}
}

// What is secret must not get into problems, which are logged.
func TestProblemsHaveNoSecrets(t *testing.T) {
	for _, data := range []string{
		"data: {k: HUSH not base64}",
		"data: HUSH",
		"data: [HUSH]",
		"data: {k: [HUSH]}",
		"stringData: {k: {HUSH: HUSH}}",
		"stringData: HUSH",
		"stringData: {k: 666}",
		"immutable: HUSH",
	} {
		_, problems := NewDecoder().Decode("f", []byte("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n"+data))
		if len(problems) == 0 {
			t.Errorf("%s: no problem", data)
		}
		if told := fmt.Sprint(problems); strings.Contains(told, "HUSH") || strings.Contains(told, "666") {
			t.Errorf("%s: told as %s", data, told)
		}
	}
}

func TestDecoderIsConcurrent(t *testing.T) {
	d := NewDecoder()
	var wg sync.WaitGroup
	for range 2 {
		for _, path := range inputs(t) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(path + ".golden")
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				if got := outcome(d.Decode(filepath.Base(path), data)); got != string(want) {
					t.Errorf("%s: another outcome than alone", path)
				}
			})
		}
	}
	wg.Wait()
}

// FuzzDecode looks for panics, and for lines that a file does not have.
func FuzzDecode(f *testing.F) {
	for _, path := range inputs(f) {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"apiVersion":"extensions.istio.io/v1alpha1","kind":"WasmPlugin","":{}}`))
	d := NewDecoder()
	f.Fuzz(func(t *testing.T, data []byte) {
		lines := 1 // YAML has more line breaks than one
		for _, r := range string(data) {
			if strings.ContainsRune("\n\r\u0085\u2028\u2029", r) {
				lines++
			}
		}
		for _, document := range d.Documents("f", data) {
			if o := document.Object; o != nil {
				if len(document.Problems) > 0 || KeyOf(o) != document.Key || document.Key.Name == "" || o.GetResourceVersion() == "" {
					t.Errorf("object %v of %v with problems %v", KeyOf(o), document.Key, document.Problems)
				}
			}
			if line := document.Lines.Field(document.Line, "spec.match[0].mode"); line < 0 || line > lines+1 {
				t.Errorf("a field at line %d of %d", line, lines)
			}
			for _, p := range document.Problems {
				if p.Line < 0 || p.Line > lines+1 || p.Message == "" {
					t.Errorf("problem %q at line %d of %d", p, p.Line, lines)
				}
			}
		}
	})
}
