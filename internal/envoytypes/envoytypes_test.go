package envoytypes

import (
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
)

const envoyModule = "github.com/envoyproxy/go-control-plane/envoy"

func TestVersionIsGoMods(t *testing.T) {
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for _, module := range []string{envoyModule, "github.com/cncf/xds/go"} {
		want := module + " " + Types().Version(module)
		if !slices.ContainsFunc(strings.Split(string(mod), "\n"), func(line string) bool {
			line, _, _ = strings.Cut(line, "//")
			return strings.TrimSpace(line) == want
		}) {
			t.Errorf("go.mod does not require %s: run go generate ./internal/envoytypes", want)
		}
	}
}

func TestEveryMessageResolves(t *testing.T) {
	r, err := open(archive)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for name := range r.Names() {
		n++
		mt, err := r.FindMessageByName(name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := mt.Descriptor().FullName(); got != name {
			t.Errorf("%s resolves to %s", name, got)
		}
		again, _ := r.FindMessageByURL("type.googleapis.com/" + string(name))
		if again != mt {
			t.Errorf("%s resolves to another type the second time", name)
		}
	}
	if n < 2000 {
		t.Errorf("%d messages: the archive is not whole", n)
	}
}

// The types of an Any within an Any are found too, and a dynamic message's
// bytes are as good as a linked one's.
func TestAnyRoundTrip(t *testing.T) {
	const in = `{
		"@type": "type.googleapis.com/envoy.extensions.filters.http.composite.v3.ExecuteFilterAction",
		"typedConfig": {
			"name": "x",
			"typedConfig": {
				"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
				"delay": {"fixedDelay": "1.500s", "percentage": {"numerator": 7}}
			}
		}
	}`
	a := new(anypb.Any)
	if err := (protojson.UnmarshalOptions{Resolver: Types()}).Unmarshal([]byte(in), a); err != nil {
		t.Fatal(err)
	}
	out, err := protojson.MarshalOptions{Resolver: Types()}.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	b := new(anypb.Any)
	if err := (protojson.UnmarshalOptions{Resolver: Types()}).Unmarshal(out, b); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(a, b) || !strings.Contains(string(out), `"1.500s"`) {
		t.Errorf("came back as %s", out)
	}
}

func TestNotFound(t *testing.T) {
	for _, url := range []string{"", "/", "envoy.None", "type.googleapis.com/envoy.config.core.v3", "a/b/c"} {
		if mt, err := Types().FindMessageByURL(url); !errors.Is(err, protoregistry.NotFound) {
			t.Errorf("FindMessageByURL(%q) = %v, %v", url, mt, err)
		}
	}
}

func TestLinkedTypeWins(t *testing.T) {
	mt, err := Types().FindMessageByURL("type.googleapis.com/google.protobuf.Any")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := mt.New().Interface().(*anypb.Any); !ok {
		t.Errorf("Any is a %T", mt.New().Interface())
	}
}

func TestConcurrentUse(t *testing.T) {
	r, err := open(archive)
	if err != nil {
		t.Fatal(err)
	}
	const name = "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"
	got := make([]protoreflect.MessageType, 8)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() { got[i], _ = r.FindMessageByName(name) })
	}
	wg.Wait()
	for _, mt := range got {
		if mt == nil || mt != got[0] {
			t.Errorf("two types for one name: %v, %v", got[0], mt)
		}
	}
}
