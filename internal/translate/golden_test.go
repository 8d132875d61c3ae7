package translate

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

var update = flag.Bool("update", false, "write what Build gives into testdata/*.out.yaml")

// TestGolden builds testdata/NAME.in.yaml, a node and then resources, and
// compares with NAME.out.yaml.
func TestGolden(t *testing.T) {
	for _, name := range goldens(t) {
		t.Run(name, func(t *testing.T) {
			objects, p := readInput(t, name)
			w, problems := mesh.New(objects, mesh.Options{})
			r, more := Build(w, p)
			got := render(t, r, append(problems, more...))
			file := filepath.Join("testdata", name+".out.yaml")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", file, diff)
			}
		})
	}
}

func goldens(t testing.TB) []string {
	files, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden inputs: %v", err)
	}
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".in.yaml"))
	}
	return names
}

// readInput reads a golden input as a user's file would be read.
func readInput(t testing.TB, name string) ([]resource.Object, mesh.Proxy) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name+".in.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := bytes.Cut(data, []byte("\n---\n"))
	if !ok {
		t.Fatalf("%s has no resources", name)
	}
	return decode(t, string(rest)), readNode(t, string(head))
}

func decode(t testing.TB, text string) []resource.Object {
	t.Helper()
	objects, problems := resource.NewDecoder().Decode("in.yaml", []byte(text))
	for _, p := range problems {
		t.Error(p)
	}
	return objects
}

func readNode(t testing.TB, text string) mesh.Proxy {
	t.Helper()
	j, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var n corev3.Node
	if err := protojson.Unmarshal(j, &n); err != nil {
		t.Fatal(err)
	}
	p, err := mesh.ParseNode(&n)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func render(t testing.TB, r *Resources, problems []resource.Problem) []byte {
	t.Helper()
	out := map[string]any{}
	add := func(key string, m proto.Message) {
		j, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(j, &v); err != nil {
			t.Fatal(err)
		}
		list, _ := out[key].([]any)
		out[key] = append(list, v)
	}
	for _, m := range r.Listeners {
		add("listeners", m)
	}
	for _, m := range r.Routes {
		add("routes", m)
	}
	for _, m := range r.Clusters {
		add("clusters", m)
	}
	for _, m := range r.Extensions {
		add("extensions", m)
	}
	for _, m := range r.Endpoints {
		add("endpoints", m)
	}
	for _, m := range r.Secrets {
		add("secrets", m)
	}
	for _, p := range problems {
		list, _ := out["problems"].([]any)
		out["problems"] = append(list, p.String())
	}
	y, err := yaml.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	return y
}
