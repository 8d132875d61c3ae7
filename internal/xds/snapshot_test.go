package xds

import (
	"errors"
	"slices"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestSnapshotSharesWhatIsUnchanged(t *testing.T) {
	one := world(t, nil, "cds a=1 b=1; lds l=1; rds r=1")
	two := world(t, one, "cds a=1 b=2 c=1; lds l=1")
	if one.set(ListenerType) != two.set(ListenerType) {
		t.Error("the unchanged listeners are not shared")
	}
	if one.set(ClusterType).resources["a"] != two.set(ClusterType).resources["a"] {
		t.Error("the unchanged cluster is not shared")
	}
	for typeURL, want := range map[string][]string{ClusterType: {"b", "c"}, RouteType: {"r"}} {
		got := two.set(typeURL).changed
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("changed %s = %v, want %v", typeURL, got, want)
		}
		if base := two.set(typeURL).base; base != one.set(typeURL).version {
			t.Errorf("base of %s = %s, want the version before", typeURL, base)
		}
	}
	again := world(t, nil, "rds r=1; lds l=1; cds b=1 a=1")
	for _, typeURL := range Types() {
		if again.Version(typeURL) != one.Version(typeURL) {
			t.Errorf("version of %s depends on more than its content", typeURL)
		}
	}
}

func TestNewSnapshotRefusesDuplicates(t *testing.T) {
	r, err := NewEncoder().Encode(envoyMessage(t, "cds", "a", "1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewSnapshot(nil, []*Resource{r, r}); !errors.Is(err, ErrDuplicate) {
		t.Errorf("error = %v, want %v", err, ErrDuplicate)
	}
}

func TestEncoder(t *testing.T) {
	enc := NewEncoder()
	ext := envoyMessage(t, "ecds", "x", "1").(*corev3.TypedExtensionConfig)
	a, err := enc.Encode(ext)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := enc.Encode(ext); a != b {
		t.Error("the same extension config was encoded twice")
	}
	if b, _ := enc.Encode(envoyMessage(t, "ecds", "x", "1")); a != b {
		t.Error("equal extension configs are not shared")
	}
	if b, _ := enc.Encode(envoyMessage(t, "ecds", "x", "2")); a.Version == b.Version {
		t.Error("different extension configs have the same version")
	}
	for _, name := range []string{"", "*"} {
		if _, err := enc.Encode(envoyMessage(t, "cds", name, "")); err == nil {
			t.Errorf("a cluster named %q was taken", name)
		}
	}
	if _, err := enc.Encode(wrapperspb.String("x")); err == nil {
		t.Error("a string was taken for a resource")
	}
}
