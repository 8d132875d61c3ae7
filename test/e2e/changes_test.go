//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// untried has the agent pass modules on to Envoy that it could know to be broken,
// for tests of what comes of that.
const untried = "--preflight=false"

// Both variants of xDS: a plugin is created, changed, changed to one that cannot
// be had, and deleted, and one that cannot be had is created, while requests go on.
func TestLifecycleOfVariants(t *testing.T) {
	eachVariant(t, func(t *testing.T, args []string) {
		s := startShelf(t)
		one, two := s.put("one.wasm", module(t, "one")), s.put("two.wasm", module(t, "two"))
		refuse := s.put("refuse.wasm", testModule(t, "refuse-config"))
		m := start(t, func(m *mesh) { m.AgentArgs = args })
		l := m.load()
		for range 2 {
			m.write("plugin.yaml", plugin("header", one, "first"))
			m.answers(200, "first")
			l.more(100)
			m.write("plugin.yaml", plugin("header", two, "second"))
			m.answers(200, "second")
			l.more(100)

			m.write("plugin.yaml", plugin("header", s.url("missing.wasm"), "third"))
			m.refusal("header", "missing.wasm", "404")
			l.more(100)
			m.answers(200, "second")
			m.write("plugin.yaml", plugin("header", refuse, "fourth"))
			m.refusal("header", "the proxy refused it")
			l.more(100)
			m.answers(200, "second")
			m.write("plugin.yaml", plugin("header", one, "first"))
			m.answers(200, "first")
			m.write("plugin.yaml", plugin("header", refuse, "fourth"))
			m.refusal("header", "the proxy refused it")
			m.write("more.yaml", plugin("more", two, "more")) // what Envoy refused keeps nothing else from it
			m.answers(200, "more,first")
			m.remove("more.yaml")
			m.answers(200, "first")
			m.remove("plugin.yaml")
			m.answers(200, "")
			l.more(100)
			m.write("other.yaml", plugin("other", s.url("missing.wasm"), "fifth"))
			m.refusal("other", "404")
			m.answers(200, "")
			m.write("other.yaml", plugin("other", refuse, "fifth"))
			m.refusal("other", "the proxy refused it")
			m.answers(200, "")
			l.more(100)
			m.remove("other.yaml")
		}
		l.only(ok(""), ok("first"), ok("second"), ok("more,first"))
		if got := m.fetches(); got != 3 {
			t.Errorf("%v fetches, want one for each module", got)
		}
	})
}

// eachVariant runs a test with agents that speak either variant of xDS, and try nothing.
func eachVariant(t *testing.T, run func(t *testing.T, args []string)) {
	for name, args := range map[string][]string{
		"incremental":        {untried},
		"state of the world": {untried, "--state-of-the-world"},
	} {
		t.Run(name, func(t *testing.T) { run(t, args) })
	}
}

// While a new plugin's module is on its way, another plugin is refused by Envoy,
// and the control plane and the agent are killed: the listener that is to have
// the new plugin gets no occasion to serve without either of them.
func TestTroubleWhileFetching(t *testing.T) {
	s := startShelf(t)
	url := s.put("header.wasm", module(t, "trouble"))
	refuse := s.put("refuse.wasm", testModule(t, "refuse-config"))
	m := start(t, func(m *mesh) { m.AgentArgs = []string{untried} })
	m.write("plugin.yaml", plugin("a", url, "a"))
	m.answers(200, "a")
	for name, trouble := range map[string]func(){
		"refusal": func() {
			m.write("plugin.yaml", plugin("a", refuse, "bad"))
			m.refusal("a", "the proxy refused it")
		},
		"control plane": func() {
			m.Control.Kill()
			m.startControl()
			m.isConnected()
		},
		"agent": func() {
			m.Agent.Kill()
			m.startAgent()
			m.ready()
			m.isConnected()
		},
	} {
		t.Run(name, func(t *testing.T) {
			file := strings.ReplaceAll(name, " ", "-") + ".wasm"
			slow := s.put(file, module(t, name))
			release := s.hold(file)
			defer release()
			l := m.load()
			m.write("slow.yaml", plugin("b-"+strings.ReplaceAll(name, " ", "-"), slow, name))
			eventually(t, "module is asked for", func() error {
				if asked, _ := s.count(file); asked == 0 {
					return errors.New("not asked for")
				}
				return nil
			})
			l.more(100)
			trouble()
			l.more(300)
			release()
			m.answers(200, name+",a")
			l.only(ok("a"), ok(name+",a"))
			m.write("plugin.yaml", plugin("a", url, "a"))
			m.remove("slow.yaml")
			m.answers(200, "a")
		})
	}
}

// Many changes at once, and changes of what is under way.
func TestManyChanges(t *testing.T) {
	s := startShelf(t)
	url := s.put("header.wasm", module(t, "many"))
	m := start(t)

	t.Run("hundred edits", func(t *testing.T) {
		l := m.load()
		l.more(50)
		const edits = 100
		allowed := []answer{ok("")}
		for i := range edits {
			name := fmt.Sprint("edit-", i)
			allowed = append(allowed, ok(name))
			m.write("plugin.yaml", plugin("header", url, name))
			l.more(1) // some 1 ms
		}
		m.answers(200, fmt.Sprint("edit-", edits-1))
		l.more(200)
		m.answers(200, fmt.Sprint("edit-", edits-1)) // and it stays
		l.only(allowed...)
		m.remove("plugin.yaml")
		m.answers(200, "")
	})

	t.Run("ten plugins", func(t *testing.T) {
		l := m.load()
		const plugins = 10
		all := ""
		for i := range plugins {
			all += "---" + plugin(fmt.Sprint("plugin-", i), url, fmt.Sprint(i))
		}
		for range 3 {
			m.write("plugin.yaml", all)
			eventually(t, "all plugins add their header", func() error {
				if got := headers("http://" + m.Gateway + "/"); len(got) != plugins {
					return fmt.Errorf("x-wasm: %q", got)
				}
				return nil
			})
			l.more(100)
			m.remove("plugin.yaml")
			m.answers(200, "")
			l.more(100)
		}
		// Any of them may be there before the others, but each in its place: the
		// first of a request is the last of its answer.
		descending := regexp.MustCompile(`^9?,?8?,?7?,?6?,?5?,?4?,?3?,?2?,?1?,?0?$`)
		l.check(func(a answer) bool { return a == ok(a.wasm) && descending.MatchString(a.wasm) })
	})

	t.Run("deleted while it is fetched", func(t *testing.T) {
		slow := s.put("slow.wasm", module(t, "slow"))
		release := s.hold("slow.wasm")
		defer release()
		l := m.load()
		m.write("plugin.yaml", plugin("slow", slow, "slow"))
		eventually(t, "module is asked for", func() error {
			if asked, _ := s.count("slow.wasm"); asked == 0 {
				return errors.New("not asked for")
			}
			return nil
		})
		l.more(100)
		m.remove("plugin.yaml")
		l.more(300)
		release() // to no avail
		l.more(300)
		l.only(ok(""))
		m.write("plugin.yaml", plugin("slow", slow, "slow"))
		m.answers(200, "slow")
		m.remove("plugin.yaml")
		m.answers(200, "")
	})

	t.Run("changed while it is fetched", func(t *testing.T) {
		old := s.put("old.wasm", module(t, "old"))
		release := s.hold("old.wasm")
		defer release()
		l := m.load()
		m.write("plugin.yaml", plugin("swap", old, "old"))
		eventually(t, "module is asked for", func() error {
			if asked, _ := s.count("old.wasm"); asked == 0 {
				return errors.New("not asked for")
			}
			return nil
		})
		m.write("plugin.yaml", plugin("swap", url, "new"))
		m.answers(200, "new") // although the older one is still held
		eventually(t, "fetch is given up", func() error {
			if asked, gone := s.count("old.wasm"); asked != gone {
				return fmt.Errorf("%d requests, %d given up", asked, gone)
			}
			return nil
		})
		l.more(100)
		l.only(ok(""), ok("new"))
		m.remove("plugin.yaml")
		m.answers(200, "")
	})
}

// headers are the values of x-wasm in one answer, in their order.
func headers(url string) []string {
	return strings.FieldsFunc(page(url).wasm, func(r rune) bool { return r == ',' })
}

// Files with mistakes are told of, with file, line, field and mend, and what was
// running runs on. Files are changed as editors and Kubernetes do it.
func TestFiles(t *testing.T) {
	s := startShelf(t)
	url := s.put("header.wasm", module(t, "files"))
	m := start(t)
	good := plugin("header", url, "good")
	for _, c := range []struct {
		name, file, text string
		want             problem // Message and Mend are a part of what is said
	}{
		{
			name: "invalid YAML", file: "plugin.yaml",
			text: "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nspec: {url: [\n",
			want: problem{Line: 3, Message: "not YAML"},
		},
		{
			name: "unknown field", file: "plugin.yaml",
			text: strings.Replace(good, "  pluginConfig:", "  pluginConfg:", 1),
			want: problem{Line: 8, Kind: "WasmPlugin", Namespace: "istio-system", Name: "header", Field: "spec.pluginConfg", Message: "unknown field", Mend: "pluginConfig"},
		},
		{
			name: "invalid value", file: "plugin.yaml",
			text: good + "  phase: AUTHNN\n",
			want: problem{Line: 9, Kind: "WasmPlugin", Namespace: "istio-system", Name: "header", Field: "spec.phase", Message: "AUTHNN", Mend: "AUTHN"},
		},
		{
			name: "unsupported", file: "filter.yaml",
			text: `
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: boot, namespace: istio-system}
spec:
  configPatches:
  - applyTo: BOOTSTRAP
    patch: {operation: MERGE, value: {stats_flush_interval: 1s}}
`,
			want: problem{Line: 7, Kind: "EnvoyFilter", Namespace: "istio-system", Name: "boot", Field: "spec.configPatches[0].applyTo", Message: "BOOTSTRAP", Mend: " "},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.write("plugin.yaml", good)
			m.answers(200, "good")
			l := m.load()
			m.write(c.file, c.text)
			at := ""
			if c.want.Line > 0 { // else it is valid, and only found when it is put to use
				c.want.File = filepath.Join(m.Dir, c.file)
				at = fmt.Sprintf("%s:%d", c.want.File, c.want.Line)
			}
			var got problem
			eventually(t, "problem is told", func() error {
				all := m.problems()
				if len(all) != 1 {
					return fmt.Errorf("problems: %+v", all)
				}
				got = all[0]
				return nil
			})
			if !strings.Contains(got.Message, c.want.Message) || !strings.Contains(got.Mend, c.want.Mend) {
				t.Errorf("problem %+v, want a message with %q and a mend with %q", got, c.want.Message, c.want.Mend)
			}
			rest := got
			rest.Message, rest.Mend = c.want.Message, c.want.Mend
			if rest != c.want {
				t.Errorf("problem %+v, want %+v", got, c.want)
			}
			if log := m.Control.Output(t); !strings.Contains(log, at) || !strings.Contains(log, c.want.Field) {
				t.Errorf("log does not tell %+v:\n%s", c.want, log)
			}
			l.more(200)
			if c.file != "plugin.yaml" {
				m.remove(c.file)
			}
			m.write("plugin.yaml", good)
			eventually(t, "problem is gone", func() error {
				if all := m.problems(); len(all) > 0 {
					return fmt.Errorf("problems: %+v", all)
				}
				return nil
			})
			l.only(ok("good"))
		})
	}

	t.Run("editor", func(t *testing.T) {
		l := m.load()
		file := filepath.Join(m.Dir, "plugin.yaml")
		for i, save := range []func(text []byte) error{
			func(text []byte) error { // in place
				return os.WriteFile(file, text, 0o600)
			},
			func(text []byte) error { // with a backup, as vim does
				return errors.Join(os.Rename(file, file+"~"), os.WriteFile(file, text, 0o600), os.Remove(file+"~"))
			},
			func(text []byte) error { // by another name in the same folder
				return errors.Join(os.WriteFile(file+".tmp", text, 0o600), os.Rename(file+".tmp", file))
			},
		} {
			name := fmt.Sprint("save-", i)
			if err := save([]byte(plugin("header", url, name))); err != nil {
				t.Fatal(err)
			}
			m.answers(200, name)
			l.more(100)
		}
		l.only(ok("good"), ok("save-0"), ok("save-1"), ok("save-2"))
		m.remove("plugin.yaml")
		m.answers(200, "")
	})

	t.Run("ConfigMap", func(t *testing.T) {
		// As the kubelet does: a folder a version, ..data leads to the newest.
		volume := filepath.Join(m.Dir, "volume")
		version := func(n int) {
			dir := fmt.Sprint("..version_", n)
			text := plugin("header", url, fmt.Sprint("map-", n))
			err := errors.Join(
				os.MkdirAll(filepath.Join(volume, dir), 0o755),
				os.WriteFile(filepath.Join(volume, dir, "plugin.yaml"), []byte(text), 0o600),
				os.Symlink(dir, filepath.Join(volume, "..data_tmp")),
				os.Rename(filepath.Join(volume, "..data_tmp"), filepath.Join(volume, "..data")),
				os.RemoveAll(filepath.Join(volume, fmt.Sprint("..version_", n-1))),
			)
			if err != nil {
				t.Fatal(err)
			}
		}
		version(0)
		if err := os.Symlink("..data/plugin.yaml", filepath.Join(volume, "plugin.yaml")); err != nil {
			t.Fatal(err)
		}
		m.answers(200, "map-0")
		l := m.load()
		for n := 1; n < 4; n++ {
			version(n)
			m.answers(200, fmt.Sprint("map-", n))
			l.more(100)
		}
		l.only(ok("map-0"), ok("map-1"), ok("map-2"), ok("map-3"))
	})
}
