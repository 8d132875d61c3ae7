package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/chandler-proxy/chandler/internal/cli"
)

// TestExamples runs the examples that --help shows of the commands for plugins, one
// after the other as they build on each other, with a registry of their own and any port.
func TestExamples(t *testing.T) {
	examples := map[string][]string{}
	root := cli.New(cli.Env{Stdout: io.Discard, Stderr: io.Discard, Lookup: func(string) (string, bool) { return "", false }})
	plugin, _, err := root.Find([]string{"plugin"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commands(plugin) {
		if c.Example == "" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		for line := range strings.Lines(c.Example) {
			line = strings.TrimSpace(line)
			if !strings.Contains(line, c.CommandPath()) {
				t.Errorf("an example of %s is %q", c.CommandPath(), line)
			}
			examples[c.Name()] = append(examples[c.Name()], line)
		}
	}

	var script strings.Builder
	for _, verb := range []string{"init", "build", "test", "dev", "push", "inspect", "pull"} {
		for i, line := range examples[verb] {
			writeExample(&script, verb, i, line)
		}
	}
	for _, line := range examples["plugin"] { // which are of all these
		verb := strings.Fields(line)[2]
		if len(examples[verb]) == 0 || strings.TrimSpace(line) != examples[verb][0] {
			t.Errorf("chandler plugin has the example %q, which is not the first of its command", line)
		}
	}
	file := filepath.Join(t.TempDir(), "examples.txtar")
	if err := os.WriteFile(file, []byte(script.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	host, files := serve(t, newRegistry()), serve(t, fileServer("."))
	goEnv := goEnvironment(t)
	testscript.Run(t, testscript.Params{
		Files:               []string{file},
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("REGISTRY", host)
			e.Setenv("UPSTREAM", files)
			e.Setenv("HOME", e.WorkDir)
			e.Vars = append(e.Vars, goEnv...)
			return nil
		},
	})
}

// writeExample writes a part of a script that runs an example. What serves is waited for,
// and ended.
func writeExample(w io.Writer, verb string, i int, line string) {
	line = strings.NewReplacer("localhost:5055", "$REGISTRY", "localhost:3000", "$UPSTREAM", "127.0.0.1:8090", "127.0.0.1:0", "127.0.0.1:15001", "127.0.0.1:0").Replace(line)
	if verb != "dev" {
		fmt.Fprintf(w, "exec sh -c '%s'\n", strings.ReplaceAll(line, "'", "''"))
		return
	}
	if !strings.Contains(line, "--listen") {
		line += " --listen 127.0.0.1:0"
	}
	fmt.Fprintf(w, "exec sh -c 'exec %s >dev%d.log 2>&1' &dev%d&\n", strings.ReplaceAll(line, "'", "''"), i, i)
	fmt.Fprintf(w, "exec sh -c 'for i in $(seq 1 300); do grep -q ''dev: serving'' dev%d.log && exit; sleep 0.2; done; cat dev%d.log; exit 1'\n", i, i)
	fmt.Fprintf(w, "kill -INT dev%d\nwait dev%d\n", i, i)
}
