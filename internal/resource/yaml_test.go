package resource

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	sigsyaml "sigs.k8s.io/yaml"
)

// asKubectl is what kubectl makes of a YAML document before it sends it.
func asKubectl(data []byte) (any, error) {
	converted, err := sigsyaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, err
	}
	var v any
	return v, json.Unmarshal(converted, &v)
}

// asRead is what we make of it; ok is false if we refuse it.
func asRead(data []byte) (v any, ok bool) {
	nodes, bad := parse(data)
	if len(bad) > 0 || len(nodes) != 1 {
		return nil, false
	}
	r := reader{left: maxValues}
	tree := r.read(nodes[0], "", 0)
	if len(r.findings) > 0 {
		return nil, false
	}
	converted, err := json.Marshal(tree)
	if err != nil {
		return nil, false
	}
	return v, json.Unmarshal(converted, &v) == nil
}

func TestScalarsAreThoseOfKubectl(t *testing.T) {
	for _, scalar := range []string{
		"text", "yes", "No", "on", "OFF", "y", "N", "true", "True", "~", "null", `"yes"`, "'1'",
		"1", "-1", "+1", "0", "0x1f", "0o17", "017", "0b11", "1_000", "9223372036854775807", "9223372036854775808", "18446744073709551616",
		"1.5", "-.5", "1e3", "1.", "1e400", "2024-01-02", "2024-01-02T03:04:05Z", "12:30", "1.2.3", "v1", "=", "<", "!!str 1", "!!str yes", "!!int 3", "!!float 3",
	} {
		data := []byte("a: " + scalar + "\n")
		want, err := asKubectl(data)
		got, ok := asRead(data)
		if ok != (err == nil) {
			t.Errorf("%s: taken %v, kubectl says %v", scalar, ok, err)
		} else if diff := cmp.Diff(want, got); ok && diff != "" {
			t.Errorf("%s (-kubectl +got):\n%s", scalar, diff)
		}
	}
}

// FuzzReadAsKubectl looks for YAML that means something else to kubectl. What
// one of the two refuses is out of scope: the parsers differ there.
func FuzzReadAsKubectl(f *testing.F) {
	for _, path := range inputs(f) {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, c := range split(data) {
			f.Add(c.data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if bytes.Contains(data, []byte("<<")) || bytes.ContainsAny(data, "!") {
			t.Skip("merges and tags are not compared")
		}
		want, err := asKubectl(data)
		got, ok := asRead(data)
		if err != nil || !ok {
			t.Skip("refused")
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-kubectl +got):\n%s", data, diff)
		}
	})
}

func TestMerge(t *testing.T) {
	got, ok := asRead([]byte(`
a: &a {x: 1, y: 2}
b: &b {y: 3, z: 4}
c: {<<: [*a, *b], x: 0}
d: {x: 0, <<: *b}
`))
	want := map[string]any{
		"a": map[string]any{"x": 1.0, "true": 2.0},
		"b": map[string]any{"true": 3.0, "z": 4.0},
		"c": map[string]any{"x": 0.0, "true": 2.0, "z": 4.0},
		"d": map[string]any{"x": 0.0, "true": 3.0, "z": 4.0},
	}
	if diff := cmp.Diff(any(want), got); !ok || diff != "" {
		t.Errorf("read ok %v (-want +got):\n%s", ok, diff)
	}
	if _, ok := asRead([]byte("{<<: 1}")); ok {
		t.Error("a merge of what is no mapping is taken")
	}
}

func TestSplit(t *testing.T) {
	var got []chunk
	for _, c := range split([]byte("a\n---\nb\n--- c\n---d\n --- e\n---")) {
		got = append(got, chunk{c.data, c.line})
	}
	want := []chunk{{[]byte("a\n"), 0}, {[]byte("---\nb\n"), 1}, {[]byte("--- c\n---d\n --- e\n"), 3}, {[]byte("---"), 6}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(chunk{})); diff != "" {
		t.Errorf("split (-want +got):\n%s", diff)
	}
}

func TestLocate(t *testing.T) {
	var document yaml.Node
	if err := yaml.Unmarshal([]byte(`
a:
  b.c:
    d: 1
  b:
    c: {e: 2}
  l:
  - x: 1
  -
    x: 2
anchor: &anchor
  deep: 1
alias: *anchor
`), &document); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path  string
		keys  string
		line  int
		whole bool
	}{
		{"", "", 0, true},
		{"a", "a", 2, true},
		{"a.b.c.d", "a b.c d", 4, true},
		{"a[b.c].d", "a b.c d", 4, true},
		{"a.b.c.e", "a b c e", 6, true},
		{"a.l[1].x", "a l [] x", 10, true},
		{"a.l[1].y", "a l []", 10, false},
		{"a.l[2].y", "a l", 7, false},
		{"a.nothing", "a", 2, false},
		{"alias.deep", "alias deep", 12, true},
		{"missing", "", 0, false},
	} {
		keys, line, whole := locate(document.Content[0], tt.path)
		if strings.Join(keys, " ") != tt.keys || line != tt.line || whole != tt.whole {
			t.Errorf("locate(%s) = %v, %d, %v; want %s, %d, %v", tt.path, keys, line, whole, tt.keys, tt.line, tt.whole)
		}
	}
}

func TestProblemString(t *testing.T) {
	for _, tt := range []struct {
		p    Problem
		want string
	}{
		{Problem{File: "f.yaml", Line: 3, Kind: "WasmPlugin", Namespace: "ns", Name: "n", Field: "spec.url", Message: "Required value"}, "f.yaml:3: WasmPlugin ns/n: spec.url: Required value"},
		{Problem{Kind: "GatewayClass", Name: "n", Field: "spec.x", Message: `unknown field "spec.x"`, Mend: "remove it"}, `GatewayClass n: unknown field "spec.x"; remove it`},
		{Problem{File: "f.yaml", Message: "larger than 4 MiB"}, "f.yaml: larger than 4 MiB"},
	} {
		if got := tt.p.String(); got != tt.want {
			t.Errorf("String = %s, want %s", got, tt.want)
		}
	}
}
