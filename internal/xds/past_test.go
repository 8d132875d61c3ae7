package xds

import (
	"fmt"
	"testing"
)

func TestPast(t *testing.T) {
	p := newPast()
	key := func(version string) pastKey { return pastKey{"class", version} }
	for i := range maxPast {
		p.note(key(fmt.Sprint(i)), []*Resource{{Name: fmt.Sprint(i)}})
	}
	p.note(key("0"), nil) // is known, and now the last used
	if got := p.clusters(key("1")); len(got) != 1 || got[0].Name != "1" {
		t.Errorf("clusters = %v", got)
	}
	if got := p.clusters(pastKey{"other", "1"}); got != nil {
		t.Errorf("another class has %v", got)
	}
	p.note(key("more"), nil)
	for version, want := range map[string]int{"0": 1, "1": 1, "2": 0, "3": 1, "unknown": 0} {
		if got := len(p.clusters(key(version))); got != want {
			t.Errorf("version %s: %d clusters, want %d", version, got, want)
		}
	}
	var none *past
	none.note(key("1"), nil)
	if got := none.clusters(key("1")); got != nil {
		t.Errorf("clusters = %v", got)
	}
}
