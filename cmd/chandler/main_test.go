package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
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
	testscript.Main(m, map[string]func(){"chandler": main, "curl": main})
}

// TestScripts runs the command as users do. REGISTRY is a registry in this
// process that has one module, as REGISTRY/header:1; PRIVATE is one for ada
// alone, whose password is secret; SECURE is one with a certificate that nobody knows; FILES is a web server of modules, and MODULES
// the folder with them.
func TestScripts(t *testing.T) {
	modules, err := filepath.Abs(filepath.Join("..", "..", "plugins", "testdata"))
	if err != nil {
		t.Fatal(err)
	}
	host := serve(t, newRegistry())
	private, files := serve(t, forAda(newRegistry())), serve(t, fileServer(modules))
	secure := httptest.NewUnstartedServer(newRegistry())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // who does not trust it
	secure.StartTLS()
	t.Cleanup(secure.Close)
	push(t, host+"/header:1")
	goEnv := goEnvironment(t)
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			for name, value := range map[string]string{
				"REGISTRY": host, "PRIVATE": private, "SECURE": strings.TrimPrefix(secure.URL, "https://"), "FILES": files, "MODULES": modules, "HOME": e.WorkDir,
			} {
				e.Setenv(name, value)
			}
			e.Vars = append(e.Vars, goEnv...)
			path, err := lookIn(e.Getenv("PATH"), "chandler")
			e.Setenv("CHANDLER", path)
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"expand": expand, "junit": junit, "testevents": testEvents},
	})
}

// serve serves until the test and its scripts, which run in parallel, are over.
func serve(t *testing.T, h http.Handler) (host string) {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func newRegistry() http.Handler {
	return registry.New(registry.Logger(log.New(io.Discard, "", 0)))
}

// forAda lets one user in.
func forAda(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "ada" || password != "secret" {
			w.Header().Set("Www-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// fileServer serves a folder, and /text, which is no module.
func fileServer(dir string) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", http.FileServer(http.Dir(dir)))
	mux.HandleFunc("/text", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "text") })
	return mux
}

// goEnvironment is where the Go command keeps what it needs, for scripts whose
// HOME is another: what builds need not download or compile again.
func goEnvironment(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOCACHE", "GOMODCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return []string{"GOCACHE=" + lines[0], "GOMODCACHE=" + lines[1], "GOFLAGS=", "GOTOOLCHAIN=local"}
}

// lookIn finds a file in a list of folders.
func lookIn(list, name string) (string, error) {
	for _, dir := range filepath.SplitList(list) {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no %s in %s", name, list)
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

// commands are a command and those below it that users see.
func commands(c *cobra.Command) []*cobra.Command {
	if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
		return nil
	}
	list := []*cobra.Command{c}
	for _, below := range c.Commands() {
		list = append(list, commands(below)...)
	}
	return list
}

// TestUsage keeps USAGE.md what --help prints.
func TestUsage(t *testing.T) {
	t.Setenv("HOME", "/home/user")
	t.Setenv("XDG_CACHE_HOME", "")
	var b strings.Builder
	b.WriteString("# Usage\n\nThis is what `--help` prints of each command; a test keeps it so.\n")
	root := cli.New(cli.Env{Stdout: &b, Stderr: &b, Lookup: func(string) (string, bool) { return "", false }})
	for _, c := range commands(root) {
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
