//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestTemplatesOnEngine goes an author's way with a plugin of every language, by the
// command alone: begun, built, tested, pushed, and run by the engine behind the agent,
// each in place of the one before, under load.
func TestTemplatesOnEngine(t *testing.T) {
	chandler := tool(t, "CHANDLER_BIN")
	r := startRegistry(t)
	m := start(t, func(m *mesh) { m.Proxy = "engine" })
	m.answers(200, "")
	serves := ""
	for _, lang := range []string{"go", "rust", "cpp", "assemblyscript"} {
		t.Run(lang, func(t *testing.T) {
			m := m.in(t)
			dir := t.TempDir()
			in := func(name string, args ...string) string {
				t.Helper()
				cmd := exec.Command(name, args...)
				cmd.Dir = dir
				cmd.Env = append(os.Environ(), "WASM_INSECURE_REGISTRIES="+r.Addr)
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
				}
				return string(out)
			}
			in(chandler, "plugin", "init", "--lang", lang, "wasm")
			dir = filepath.Join(dir, "wasm")
			if lang == "assemblyscript" {
				in("npm", "install", "--silent")
			}
			in(chandler, "plugin", "build")
			in(chandler, "plugin", "test")
			in(chandler, "plugin", "push", r.Addr+"/"+lang+":v1")

			resource, err := os.ReadFile(filepath.Join(dir, "wasmplugin.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			l := m.load()
			m.write("plugin.yaml", strings.NewReplacer("localhost:5055/wasm:v1", r.Addr+"/"+lang+":v1", ": hello", ": "+lang).Replace(string(resource)))
			m.answers(200, lang)
			m.accepted("wasm")
			l.more(200)
			l.only(ok(serves), ok(lang))
			serves = lang
		})
	}
}
