package internal_test

import (
	"bytes"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestPackageDocs wants of every package that it says what it is for.
func TestPackageDocs(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) == 0 { // tests only
			continue
		}
		lines := 0
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			lines = max(lines, strings.Count(f.Doc.Text(), "\n"))
		}
		if lines < 3 {
			t.Errorf("%s has a package comment of %d lines, want 3 or more: its job, what it refuses, where to start",
				strings.TrimPrefix(p.ImportPath, root), lines)
		}
	}
}

// TestNoMachinePaths keeps paths that exist on one machine only out of every
// file that git would take.
func TestNoMachinePaths(t *testing.T) {
	// put together here, or this file would not pass
	machine := regexp.MustCompile("(^|[^A-Za-z0-9_.-])/(" + "wo" + "rk|ro" + "ot|ho" + "me/[a-z]+)/")
	cmd := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	files := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	if len(files) < 10 {
		t.Fatalf("git ls-files tells of %q only", files)
	}
	for _, name := range files {
		content, err := os.ReadFile(filepath.Join("..", name))
		if os.IsNotExist(err) { // removed, and git not told yet
			continue
		}
		if err != nil {
			t.Error(err)
			continue
		}
		if bytes.IndexByte(content, 0) >= 0 { // not text
			continue
		}
		for i, line := range strings.Split(string(content), "\n") {
			if found := machine.FindString(line); found != "" {
				t.Errorf("%s:%d has a path of one machine: %s", name, i+1, strings.TrimSpace(line))
			}
		}
	}
}
