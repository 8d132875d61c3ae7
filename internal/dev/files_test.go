package dev

import (
	"crypto/sha256"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestIgnored(t *testing.T) {
	for name, want := range map[string]bool{
		"main.go": false, "main_test.go": true, "go.mod": false, "Cargo.lock": false, "plugin.cc": false, "wasmplugin.yaml": false,
		"README.md": true, "out.log": true, "plugin.wasm": true, "main.go~": true, ".main.go.swp": true, "#main.go#": true, "4913": true,
		".env": true, "build": false, // a file
	} {
		if got := ignored(name, false); got != want {
			t.Errorf("file %s: ignored = %v", name, got)
		}
	}
	for name, want := range map[string]bool{
		"src": false, "vendor": false, "build": true, "target": true, "node_modules": true, "dist": true, ".git": true, ".hg": true, ".svn": true, "CVS": true,
	} {
		if got := ignored(name, true); got != want {
			t.Errorf("folder %s: ignored = %v", name, got)
		}
	}
}

// folder makes a folder of files, each given as its name and content.
func folder(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		path := filepath.Join(dir, files[i])
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(files[i+1]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestLook has files come, change and go, in folders that come and go.
func TestLook(t *testing.T) {
	dir := folder(t, "main.go", "1", "sub/a.go", "1", "build/plugin.wasm", "1", ".git/HEAD", "1", "node_modules/x/y.js", "1")
	config := filepath.Join(folder(t, "config.json", "1"), "config.json")
	w, err := openWatch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	in := Config{Dir: dir, Language: "go", Module: filepath.Join(dir, "build/plugin.wasm"), ConfigFile: config}.inputs()
	look := func() map[string][sha256.Size]byte {
		t.Helper()
		found, err := w.look(in)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	before := look()
	names := func(paths []string) []string { return list(dir, paths) }
	want := []string{filepath.Join(filepath.Dir(config), "config.json"), "main.go", "sub/a.go"}
	if diff := cmp.Diff(slices.Sorted(slices.Values(want)), slices.Sorted(slices.Values(names(slices.Collect(maps.Keys(before)))))); diff != "" {
		t.Errorf("inputs (-want +got):\n%s", diff)
	}
	if changed := differ(before, look()); len(changed) != 0 {
		t.Errorf("changed = %v, want nothing", changed)
	}
	for _, tt := range []struct {
		do   func() error
		want []string
	}{
		{func() error { return os.WriteFile(filepath.Join(dir, "main.go"), []byte("2"), 0o600) }, []string{"main.go"}},
		{func() error { return os.WriteFile(filepath.Join(dir, "build/plugin.wasm"), []byte("2"), 0o600) }, nil},
		{func() error { return os.CopyFS(filepath.Join(dir, "new/er"), os.DirFS(filepath.Join(dir, "sub"))) }, []string{"new/er/a.go"}},
		{func() error { return os.RemoveAll(filepath.Join(dir, "sub")) }, []string{"sub/a.go"}},
		{func() error { return os.Remove(config) }, []string{config}},
		{func() error { return os.WriteFile(config, []byte("2"), 0o600) }, []string{config}},
	} {
		if err := tt.do(); err != nil {
			t.Fatal(err)
		}
		now := look()
		if diff := cmp.Diff(tt.want, names(differ(before, now))); diff != "" {
			t.Errorf("changed (-want +got):\n%s", diff)
		}
		before = now
	}
	watched := w.fs.WatchList()
	if want := filepath.Join(dir, "new", "er"); !slices.Contains(watched, want) {
		t.Errorf("%s is not watched, only %q", want, watched)
	}
	if slices.ContainsFunc(watched, func(path string) bool { return filepath.Base(path) == "build" || filepath.Base(path) == ".git" }) {
		t.Errorf("too much is watched: %q", watched)
	}
}

func TestLookRefuses(t *testing.T) {
	w := &watch{}
	if _, err := w.look(inputs{tree: filepath.Join(t.TempDir(), "nowhere")}); err == nil {
		t.Error("a folder that is not there can be read")
	}
	if found, err := w.look(inputs{files: []string{filepath.Join(t.TempDir(), "nowhere")}}); err != nil || len(found) != 0 {
		t.Errorf("a file that is not there = %v, %v, want no digest", found, err)
	}
}

func TestList(t *testing.T) {
	got := list("/p", []string{"/p/a", "/q/b", "/p/c/d", "/p/e", "/p/f", "/p/g"})
	if diff := cmp.Diff([]string{"a", "/q/b", "c/d", "e", "…"}, got); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
}

// TestSettled has files written one by one, then without an end.
func TestSettled(t *testing.T) {
	for _, tt := range []struct {
		writes int
		want   time.Duration
	}{
		{0, 50 * time.Millisecond},
		{3, 170 * time.Millisecond},
		{1000, 500 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			events := make(chan struct{})
			go func() {
				for range tt.writes {
					select {
					case <-time.After(40 * time.Millisecond):
					case <-t.Context().Done():
						return
					}
					select {
					case events <- struct{}{}:
					case <-t.Context().Done():
						return
					}
				}
			}()
			began := time.Now()
			settled(t.Context(), events)
			if got := time.Since(began); got != tt.want {
				t.Errorf("%d writes settle in %v, want %v", tt.writes, got, tt.want)
			}
		})
	}
}
