//go:build e2e

package e2e

import (
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A control plane that comes back and cannot read its resources takes nothing
// from proxies that run on them.
func TestResourcesUnreadableAtStart(t *testing.T) {
	m := start(t)
	l := m.load()
	l.more(100)
	before := m.configChanges()
	m.Control.Stop(t)
	away := m.Dir + ".away"
	if err := errors.Join(os.Rename(m.Dir, away), os.Symlink(m.Dir, m.Dir)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(away) })
	m.startControl()
	m.isConnected()
	l.more(3000)
	if all := m.problems(); len(all) != 1 || all[0].File != m.Dir {
		t.Errorf("problems: %+v", all)
	}
	if err := errors.Join(os.Remove(m.Dir), os.Rename(away, m.Dir)); err != nil {
		t.Fatal(err)
	}
	m.write("route.yaml", route("/one", 418))
	m.routes("/one", 418)
	l.only(ok(""))
	after := m.configChanges()
	for _, stats := range []map[string]string{before, after} {
		for name := range stats {
			if name[0] == 'h' { // http.…: the route that was added
				delete(stats, name)
			}
		}
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("Envoy's configuration was changed (-before +after):\n%s", diff)
	}
}
