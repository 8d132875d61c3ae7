package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is installed must be what the modules in go.mod say.
func TestDefinitionsAreCurrent(t *testing.T) {
	want, err := generate("../../internal/resource/crds")
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range want {
		got, err := os.ReadFile(filepath.Join("..", "base", name))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(data), string(got)); diff != "" {
			t.Errorf("%s is stale; run go generate ./deploy (-want +got):\n%.2000s", name, diff)
		}
	}
}
