package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/chandler-proxy/chandler/internal/cli"
)

var update = flag.Bool("update", false, "write USAGE.md and the scripts' expectations anew")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"chandler": main})
}

// TestScripts runs the command as users do. REGISTRY is a registry in this
// process that has one module, as REGISTRY/header:1.
func TestScripts(t *testing.T) {
	r := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(r.Close) // after the scripts, which run in parallel
	host := strings.TrimPrefix(r.URL, "http://")
	push(t, host+"/header:1")
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("REGISTRY", host)
			e.Setenv("HOME", e.WorkDir)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"expand": expand},
	})
}

// push puts a small module into a registry.
func push(t *testing.T, ref string) {
	t.Helper()
	module, err := os.ReadFile(filepath.Join("..", "..", "plugins", "testdata", "addheader.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1),
		static.NewLayer(module, "application/vnd.module.wasm.content.layer.v1+wasm"))
	if err != nil {
		t.Fatal(err)
	}
	to, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(to, img); err != nil {
		t.Fatal(err)
	}
}

// expand replaces $VARIABLES in files.
func expand(ts *testscript.TestScript, neg bool, files []string) {
	if neg || len(files) == 0 {
		ts.Fatalf("usage: expand file...")
	}
	for _, f := range files {
		ts.Check(os.WriteFile(ts.MkAbs(f), []byte(os.Expand(ts.ReadFile(f), ts.Getenv)), 0o600))
	}
}

// TestUsage keeps USAGE.md what --help prints.
func TestUsage(t *testing.T) {
	t.Setenv("HOME", "/home/user")
	t.Setenv("XDG_CACHE_HOME", "")
	var b strings.Builder
	b.WriteString("# Usage\n\nThis is what `--help` prints of each command; a test keeps it so.\n")
	root := cli.New(cli.Env{Stdout: &b, Stderr: &b, Lookup: func(string) (string, bool) { return "", false }})
	for _, c := range append([]*cobra.Command{root}, root.Commands()...) {
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n\n```\n", c.CommandPath())
		root.SetArgs(append(strings.Fields(c.CommandPath())[1:], "--help"))
		if err := root.ExecuteContext(context.Background()); err != nil {
			t.Fatal(err)
		}
		b.WriteString("```\n")
	}
	path := filepath.Join("..", "..", "USAGE.md")
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != b.String() {
		t.Error("USAGE.md is not what --help prints; run go test ./cmd/chandler -update")
	}
}
