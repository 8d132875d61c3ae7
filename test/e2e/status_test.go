//go:build e2e

package e2e

import (
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestStatusOfMistake: what is not accepted is told, with the file and the mend, and so is
// that the extension of before runs on.
func TestStatusOfMistake(t *testing.T) {
	s := startShelf(t)
	m := start(t)
	url := s.put("one.wasm", module(t, "one"))
	m.write("plugin.yaml", plugin("header", url, "first", "phase: AUTHN"))
	m.answers(200, "first")
	m.status("header", "AUTHN", "True", "1", "1", "0", "0")
	m.write("plugin.yaml", plugin("header", url, "second", "phase: AUTH"))
	out := m.status("header", "AUTHN", "False", "1", "1", "0", "0")
	for _, want := range []string{"PROBLEMS", "plugin.yaml:", "AUTHN"} {
		if !strings.Contains(out, want) {
			t.Errorf("status does not tell %q:\n%s", want, out)
		}
	}
	m.answers(200, "first")
}

// TestStatusOfFile: the digest is of what runs, not of what ran before, and of a file where
// the proxy runs there is none.
func TestStatusOfFile(t *testing.T) {
	s := startShelf(t)
	m := start(t)
	one, two := module(t, "one"), module(t, "two")
	file := filepath.Join(t.TempDir(), "two.wasm")
	if err := os.WriteFile(file, two, 0o600); err != nil {
		t.Fatal(err)
	}
	fetched := plugin("header", s.put("one.wasm", one), "first", "phase: AUTHN")
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(one))
	m.write("plugin.yaml", fetched)
	m.status("header", "AUTHN", "True", "1", "1", "0", "0", digest)
	m.write("plugin.yaml", plugin("header", "file://"+file, "second", "phase: AUTHN"))
	m.answers(200, "second")
	m.status("header", "AUTHN", "True", "1", "1", "0", "0", "-")
	m.write("plugin.yaml", fetched)
	m.status("header", "AUTHN", "True", "1", "1", "0", "0", digest)
}

// TestStatusOfScript: an extension in Lua runs where its listener does; on the embedded
// engine it is refused, and its resource has a problem.
func TestStatusOfScript(t *testing.T) {
	for proxy, want := range map[string][]string{
		"envoy":  {"AUTHN", "True", "1", "1", "0", "0", "-"},
		"engine": {"AUTHN", "False", "1", "0", "0", "1", "-"},
	} {
		t.Run(proxy, func(t *testing.T) {
			m := start(t, func(m *mesh) { m.Proxy = proxy })
			m.write("lua.yaml", `
apiVersion: extensions.istio.io/v1alpha1
kind: TrafficExtension
metadata: {name: script, namespace: istio-system}
spec:
  phase: AUTHN
  lua: {inlineCode: "function envoy_on_response(handle) handle:headers():add('x-wasm', 'lua') end"}
`)
			out := m.status("script", want...)
			if proxy == "envoy" {
				m.answers(200, "lua")
				return
			}
			m.answers(403, "")
			if !strings.Contains(out, "no Lua") {
				t.Errorf("status does not tell why:\n%s", out)
			}
		})
	}
}

// TestStatusOfTakenPort: an extension is refused, with the reason, where a listener that is
// to have it cannot be bound, until it need not.
func TestStatusOfTakenPort(t *testing.T) {
	statusOfTakenPort(t)
}

// TestWorldStatusOfTakenPort is the same in state of the world, which the engine has not.
func TestWorldStatusOfTakenPort(t *testing.T) {
	statusOfTakenPort(t, "--state-of-the-world")
}

func statusOfTakenPort(t *testing.T, args ...string) {
	t.Helper()
	s := startShelf(t)
	m := start(t, func(m *mesh) { m.AgentArgs = args })
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	m.write("plugin.yaml", plugin("header", s.put("one.wasm", module(t, "one")), "first", "phase: AUTHN"))
	m.status("header", "AUTHN", "True", "1", "1", "0", "0")
	m.write("taken.yaml", fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: taken, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: %d, name: http, protocol: HTTP}
    hosts: ["*"]
`, port))
	out := m.status("header", "AUTHN", "True", "1", "0", "0", "1")
	if listener := fmt.Sprintf("listener 0.0.0.0_%d: ", port); !strings.Contains(out, listener) {
		t.Errorf("status does not tell %q:\n%s", listener, out)
	}
	m.remove("taken.yaml")
	m.status("header", "AUTHN", "True", "1", "1", "0", "0")
}

// status waits until chandler status has a line of an extension with those columns after
// its name, and returns all that it prints.
func (m *mesh) status(extension string, columns ...string) string {
	m.t.Helper()
	var out []byte
	eventually(m.t, "status of "+extension, func() (err error) {
		if out, err = exec.CommandContext(m.t.Context(), tool(m.t, "CHANDLER_BIN"), "status", "--monitoring", m.Monitoring).Output(); err != nil {
			return err
		}
		for line := range strings.Lines(string(out)) {
			fields := strings.Fields(line)
			if len(fields) > len(columns) && strings.HasSuffix(fields[0], "."+extension) && slices.Equal(fields[1:len(columns)+1], columns) {
				return nil
			}
		}
		return fmt.Errorf("it prints\n%s", out)
	})
	return string(out)
}
