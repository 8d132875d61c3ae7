package identity

import "testing"

func TestPlaneText(t *testing.T) {
	for _, p := range []Plane{{}, {"istio-system", "default"}, {"two", "canary"}} {
		if got := ParsePlane(p.String()); got != p {
			t.Errorf("ParsePlane(%q) = %v", p.String(), got)
		}
		if got := PlaneOf(p.Labels()); got != p {
			t.Errorf("PlaneOf(%v) = %v, want %v", p.Labels(), got, p)
		}
	}
	for _, s := range []string{"", "a", "/b", "a/", "/"} {
		if got := ParsePlane(s); got != (Plane{}) {
			t.Errorf("ParsePlane(%q) = %v, want none", s, got)
		}
	}
	if got := PlaneOf(map[string]string{PlaneLabel: "a"}); got != (Plane{"a", DefaultRevision}) {
		t.Errorf("a label without revision: %v", got)
	}
	if got := PlaneOf(map[string]string{RevisionLabel: "a"}); got != (Plane{}) {
		t.Errorf("a revision alone: %v", got)
	}
}

func TestChosenRevision(t *testing.T) {
	for _, tt := range []struct {
		labels map[string]string
		want   string
	}{
		{nil, ""},
		{map[string]string{"istio-injection": "enabled"}, DefaultRevision},
		{map[string]string{"istio-injection": "disabled"}, ""},
		{map[string]string{"istio.io/rev": "canary"}, "canary"},
		{map[string]string{"istio-injection": "enabled", "istio.io/rev": "canary"}, DefaultRevision},
	} {
		if got := ChosenRevision(tt.labels); got != tt.want {
			t.Errorf("ChosenRevision(%v) = %q, want %q", tt.labels, got, tt.want)
		}
	}
}

// TestMay: whoever owns an object and whatever is chosen, at most one of two control
// planes may write it next, and it comes to rest with one.
func TestMay(t *testing.T) {
	planes := []Plane{{"a", "default"}, {"b", "default"}, {"c", "canary"}, {"a", "canary"}}
	for _, chosen := range []string{"", "default", "canary", "unknown"} {
		for _, first := range planes {
			owner, changes := first, 0
			for range 10 {
				for _, p := range planes {
					if p.Namespace != owner.Namespace && p.May(owner, chosen) {
						owner = p
						changes++
					}
				}
			}
			if changes > 1 {
				t.Errorf("%v of a namespace with revision %q changed hands %d times", first, chosen, changes)
			}
			if owner.Revision != chosen && (chosen == "default" || chosen == "canary") {
				t.Errorf("%v of a namespace with revision %q came to %v", first, chosen, owner)
			}
		}
	}
	if a := (Plane{"a", "default"}); !a.May(Plane{}, "canary") || !a.May(Plane{"a", "old"}, "") {
		t.Error("what nobody owns, or a itself under another revision, is not a's")
	}
}
