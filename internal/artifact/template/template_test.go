package template

import (
	"errors"
	"go/format"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chandler-proxy/chandler/internal/artifact/toolchain"
	"github.com/chandler-proxy/chandler/internal/spec"
)

// Every plugin is complete, has its name everywhere, and is of the language that it
// should be.
func TestWrite(t *testing.T) {
	for _, language := range toolchain.Languages() {
		t.Run(string(language), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "new", "my-plugin")
			if err := Write(dir, language, "my-plugin"); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"README.md", "Dockerfile", "wasmplugin.yaml", ".gitignore", "tests/headers.yaml"} {
				if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
					t.Error(err)
				}
			}
			// Whether they pass, the end-to-end tests find out.
			if suite, err := spec.Load(filepath.Join(dir, "tests", "headers.yaml"), spec.Options{Module: filepath.FromSlash("../../../plugins/testdata/noop.wasm")}); err != nil || len(suite.Tests) == 0 {
				t.Errorf("tests = %v, %v", suite, err)
			}
			named := 0
			err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				text, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				if strings.Contains(string(text), "__") && strings.Contains(string(text), "NAME__") || strings.HasSuffix(path, suffix) {
					t.Errorf("%s is not filled in", path)
				}
				if strings.Contains(string(text), "my-plugin") {
					named++
				}
				if filepath.Ext(path) == ".go" {
					if tidy, err := format.Source(text); err != nil || string(tidy) != string(text) {
						t.Errorf("%s is not as gofmt has it: %v", path, err)
					}
				}
				return nil
			})
			if err != nil || named < 4 {
				t.Errorf("%d files have the name, %v", named, err)
			}
			if got, err := toolchain.Detect(dir); got != language {
				t.Errorf("Detect = %q, %v, want %s", got, err, language)
			}
		})
	}
}

func TestWriteRefuses(t *testing.T) {
	for _, name := range []string{"", "My", "a_b", "-a", "a-", "a--b", "1a", "a/b", "..", "a b", "ä"} {
		dir := filepath.Join(t.TempDir(), "new")
		if err := Write(dir, toolchain.Go, name); err == nil {
			t.Errorf("name %q passes", name)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("name %q leaves a folder", name)
		}
	}
	if err := Write(t.TempDir(), "cobol", "a"); err == nil {
		t.Error("there is a template for cobol")
	}
	dir := t.TempDir()
	mine := filepath.Join(dir, "main.go")
	if err := os.WriteFile(mine, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Write(dir, toolchain.Go, "a"); !errors.Is(err, ErrExists) {
		t.Errorf("Write = %v, want ErrExists", err)
	}
	if err := Write(mine, toolchain.Go, "a"); !errors.Is(err, ErrExists) {
		t.Errorf("Write over a file = %v, want ErrExists", err)
	}
	if got, _ := os.ReadFile(mine); string(got) != "mine" {
		t.Errorf("the file is now %q", got)
	}
}
