//go:build e2e

package e2e

import "testing"

func TestDeletedPluginStaysDeleted(t *testing.T) {
	s := startShelf(t)
	m := start(t)
	m.write("plugin.yaml", plugin("header", s.put("one.wasm", module(t, "one")), "first"))
	m.answers(200, "first")
	m.remove("plugin.yaml")
	m.answers(200, "")
	l := m.load()
	m.write("plugin.yaml", plugin("header", s.url("missing.wasm"), "second"))
	m.refusal("header", "404")
	l.more(300)
	l.only(ok(""))
}
