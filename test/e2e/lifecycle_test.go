//go:build e2e

package e2e

import (
	"testing"
)

// A plugin is created, changed, given another module, rolled back and deleted
// while requests go on: each is answered, with one version of it or without.
func TestLifecycleUnderLoad(t *testing.T) {
	for _, proxy := range []string{"envoy", "engine"} {
		t.Run(proxy, func(t *testing.T) { testLifecycle(t, proxy) })
	}
}

func testLifecycle(t *testing.T, proxy string) {
	r := startRegistry(t)
	v1 := r.push(t, "header:1", module(t, "one"), "docker")
	v2 := r.push(t, "header:2", module(t, "two"), "oci")
	m := start(t, func(m *mesh) { m.Proxy = proxy })
	m.answers(200, "")
	l := m.load()
	l.more(200)

	for range 3 {
		m.write("plugin.yaml", plugin("header", v1, "first"))
		m.answers(200, "first")
		l.more(200)
		m.write("plugin.yaml", plugin("header", v1, "second"))
		m.answers(200, "second")
		l.more(200)
		m.write("plugin.yaml", plugin("header", v2, "third"))
		m.answers(200, "third")
		l.more(200)
		m.write("plugin.yaml", plugin("header", v1, "first"))
		m.answers(200, "first")
		l.more(200)
		m.remove("plugin.yaml")
		m.answers(200, "")
		l.more(200)
	}
	l.only(ok(""), ok("first"), ok("second"), ok("third"))

	series := `istio_agent_wasm_remote_fetch_count{result="success"}`
	if got := m.metric(m.AgentHTTP, series); got != 2 {
		t.Errorf("%s = %v, want one fetch for each module", series, got)
	}
}
