package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is embedded must be what the modules in go.mod say.
func TestEmbeddedSchemasAreCurrent(t *testing.T) {
	want, err := generate()
	if err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob("../crds/*")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]byte{}
	for _, path := range paths {
		if got[filepath.Base(path)], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	for name := range want {
		if diff := cmp.Diff(string(want[name]), string(got[name])); diff != "" {
			t.Errorf("%s is stale; run go generate ./internal/resource (-want +got):\n%.2000s", name, diff)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s is embedded but not generated", name)
		}
	}
}
