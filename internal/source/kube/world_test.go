package kube_test

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/testing/protocmp"
	"sigs.k8s.io/yaml"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
	"github.com/chandler-proxy/chandler/internal/source/dir"
	"github.com/chandler-proxy/chandler/internal/translate"
)

// The same resources give every proxy the same, be they in files or in a cluster.
func TestSameWorldAsFromFiles(t *testing.T) {
	golden, err := filepath.Glob("../../translate/testdata/*.in.yaml")
	if err != nil || len(golden) == 0 {
		t.Fatalf("no golden inputs: %v", err)
	}
	for _, file := range golden {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".in.yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			node, resources, _ := strings.Cut(string(data), "\n---\n")
			sameWorld(t, resources, proxyOf(t, node))
		})
	}
	for _, name := range []string{"bookinfo", "envoyfilter", "httpbin"} {
		t.Run("examples/"+name, func(t *testing.T) {
			files, err := filepath.Glob("../../../examples/" + name + "/*.yaml")
			if err != nil || len(files) == 0 {
				t.Fatalf("no example: %v", err)
			}
			var all strings.Builder
			for _, f := range files {
				data, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				all.WriteString("\n---\n" + string(data))
			}
			sameWorld(t, all.String())
		})
	}
}

func proxyOf(t *testing.T, node string) mesh.Proxy {
	t.Helper()
	data, err := yaml.YAMLToJSON([]byte(node))
	if err != nil {
		t.Fatal(err)
	}
	n := new(corev3.Node)
	if err := protojson.Unmarshal(data, n); err != nil {
		t.Fatal(err)
	}
	p, err := mesh.ParseNode(n)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// sameWorld feeds resources to both sources and compares what given proxies, and
// those that the resources speak of, are told.
func sameWorld(t *testing.T, resources string, proxies ...mesh.Proxy) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "all.yaml")
	if err := os.WriteFile(file, []byte(resources), 0o600); err != nil {
		t.Fatal(err)
	}
	c := start(t)
	c.noUID = true // it makes a difference to when a module is pulled again
	c.Put(t, traffic(resources))

	want := run(t, dir.New(dir.Config{Paths: []string{file}})).next()
	got := run(t, c.Source()).next()
	wantWorld, wantProblems := mesh.New(want.Objects, mesh.Options{})
	gotWorld, gotProblems := mesh.New(got.Objects, mesh.Options{})
	if diff := gocmp.Diff(sorted(want.Problems), sorted(got.Problems), withoutPlace()); diff != "" {
		t.Errorf("problems of the source (-files +cluster):\n%s", diff)
	}
	if diff := gocmp.Diff(sorted(wantProblems), sorted(gotProblems)); diff != "" {
		t.Errorf("problems of the mesh (-files +cluster):\n%s", diff)
	}
	if diff := gocmp.Diff(wantWorld.Proxies(), gotWorld.Proxies(), gocmp.Comparer(func(a, b mesh.Proxy) bool { return translate.Class(a) == translate.Class(b) && a.Name == b.Name })); diff != "" {
		t.Errorf("proxies (-files +cluster):\n%s", diff)
	}
	for _, p := range append(proxies, wantWorld.Proxies()...) {
		wantConfig, wantProblems := translate.Build(wantWorld, p)
		gotConfig, gotProblems := translate.Build(gotWorld, p)
		if diff := gocmp.Diff(wantConfig, gotConfig, protocmp.Transform()); diff != "" {
			t.Errorf("configuration of %s/%s (-files +cluster):\n%s", p.Namespace, p.Name, diff)
		}
		if diff := gocmp.Diff(sorted(wantProblems), sorted(gotProblems)); diff != "" {
			t.Errorf("problems of %s/%s (-files +cluster):\n%s", p.Namespace, p.Name, diff)
		}
	}
}

// traffic is resources without those that say nothing about traffic, which a
// source does not read.
func traffic(resources string) string {
	var out []string
	for _, document := range strings.Split("\n"+resources, "\n---") {
		if !strings.Contains(document, "\nkind: Deployment") && !strings.Contains(document, "\nkind: ServiceAccount") {
			out = append(out, document)
		}
	}
	return strings.Join(out, "\n---")
}

func sorted(problems []resource.Problem) []resource.Problem {
	return slices.SortedFunc(slices.Values(problems), func(a, b resource.Problem) int { return cmp.Compare(a.String(), b.String()) })
}

func withoutPlace() gocmp.Option {
	return gocmp.Transformer("withoutPlace", func(p resource.Problem) struct{ Kind, Namespace, Name, Field, Message string } {
		return struct{ Kind, Namespace, Name, Field, Message string }{p.Kind, p.Namespace, p.Name, p.Field, p.Message}
	})
}

// A session is a source that runs; it ends with the test.
type session struct {
	t         testing.TB
	snapshots chan source.Snapshot
	done      chan error
}

func run(t testing.TB, src source.Source) *session {
	s := &session{t: t, snapshots: make(chan source.Snapshot), done: make(chan error, 1)}
	ctx := t.Context()
	go func() {
		s.done <- src.Run(ctx, func(snapshot source.Snapshot) {
			select {
			case s.snapshots <- snapshot:
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(func() {
		if err := <-s.done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
	return s
}

// next is the next snapshot.
func (s *session) next() source.Snapshot {
	s.t.Helper()
	select {
	case snapshot := <-s.snapshots:
		return snapshot
	case err := <-s.done:
		s.done <- err
		s.t.Fatalf("Run returned early: %v", err)
		panic("unreachable")
	}
}

// until is the first snapshot that holds what is wanted.
func (s *session) until(wanted func(source.Snapshot) bool) source.Snapshot {
	s.t.Helper()
	for {
		if snapshot := s.next(); wanted(snapshot) {
			return snapshot
		}
	}
}

// find is the object of that kind and name, or nil.
func find(s source.Snapshot, kind, name string) resource.Object {
	for _, o := range s.Objects {
		if k := resource.KeyOf(o); k.Kind == kind && k.Name == name {
			return o
		}
	}
	return nil
}
