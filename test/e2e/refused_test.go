//go:build e2e

package e2e

import (
	"fmt"
	"testing"
)

// One change brings an update that Envoy refuses and a plugin that is new: as many times
// as it is made, no request fails. (Envoy tells all extensions that wait for their
// configuration of any that it refuses, and opens a listener without them, which answers
// 500: 12 of 12 runs of this test failed before the agent saw to that. A name that was
// there before does not show it, while a listener drains.)
func TestRefusedUpdateWithNewPlugin(t *testing.T) {
	eachVariant(t, func(t *testing.T, args []string) {
		s := startShelf(t)
		one, two := s.put("one.wasm", module(t, "one")), s.put("two.wasm", module(t, "two"))
		refuse := s.put("refuse.wasm", testModule(t, "refuse-config"))
		m := start(t, func(m *mesh) { m.AgentArgs = args })
		good := plugin("a", one, "first")
		m.write("plugin.yaml", good)
		m.answers(200, "first")
		l := m.load()
		allowed := []answer{ok("first")}
		for i := range 20 {
			name := fmt.Sprint("new-", i)
			allowed = append(allowed, ok(name+",first"))
			m.write("plugin.yaml", plugin("a", refuse, name)+"---"+plugin("b"+name, two, name))
			m.answers(200, name+",first")
			m.refusal("a", "the proxy refused it")
			l.more(20)
			m.write("plugin.yaml", good)
			m.answers(200, "first")
		}
		l.only(allowed...)
	})
}
