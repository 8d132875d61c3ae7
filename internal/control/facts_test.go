package control

import (
	"errors"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
	"github.com/chandler-proxy/chandler/internal/status"
	"github.com/chandler-proxy/chandler/internal/xds"
)

// TestFacts: two classes are to run an extension, of which one proxy runs it, one
// refuses it, one has not answered and one runs what was before.
func TestFacts(t *testing.T) {
	plugin := &extensionsv1alpha1.WasmPlugin{
		TypeMeta:   metav1.TypeMeta{APIVersion: "extensions.istio.io/v1alpha1", Kind: "WasmPlugin"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "auth", UID: "u", Generation: 3},
	}
	plugin.Spec.Url = "registry.test/auth:1"
	broken := plugin.DeepCopy()
	broken.Name, broken.Spec.Url = "broken", "ftp://there"
	meta := metav1.ObjectMeta{Namespace: "default", Name: "gw"}
	changed := plugin.DeepCopy()
	changed.Name = "changed"
	refused := func(name string) resource.Problem {
		return resource.Problem{Kind: "WasmPlugin", Namespace: "default", Name: name, Message: "spec.phase: no such phase"}
	}
	namespace := &corev1.Namespace{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: "default", Labels: map[string]string{"istio.io/rev": "canary"}},
	}
	written := []resource.Object{plugin, broken, changed,
		&networkingv1.Gateway{TypeMeta: metav1.TypeMeta{APIVersion: "networking.istio.io/v1", Kind: "Gateway"}, ObjectMeta: meta},
		&gatewayv1.Gateway{TypeMeta: metav1.TypeMeta{APIVersion: "gateway.networking.k8s.io/v1", Kind: "Gateway"}, ObjectMeta: meta},
		namespace,
	}
	world, problems := mesh.New(written, mesh.Options{})
	problems = append(problems, resource.Problem{Kind: "Gateway", Namespace: "default", Name: "gw", Message: "of which of the two?"},
		refused("changed"), refused("never"))
	extension := world.AllExtensions()[0]
	never := source.Refused{Key: resource.Key{Group: "extensions.istio.io", Kind: "WasmPlugin", Namespace: "default", Name: "never"}, UID: "n", Generation: 1}
	since := source.Refused{Key: resource.KeyOf(changed), UID: "u", Generation: 4}

	if extension.Object.GetName() != "auth" {
		t.Fatalf("the first extension is %s", extension.Resource)
	}
	encoder := xds.NewEncoder()
	res, err := encoder.Encode(&corev3.TypedExtensionConfig{Name: extension.Resource})
	if err != nil {
		t.Fatal(err)
	}
	before, err := encoder.Encode(&corev3.TypedExtensionConfig{Name: world.AllExtensions()[1].Resource})
	if err != nil {
		t.Fatal(err)
	}
	snap, err := xds.NewSnapshot(nil, []*xds.Resource{res})
	if err != nil {
		t.Fatal(err)
	}
	snapBefore, err := xds.NewSnapshot(nil, []*xds.Resource{before})
	if err != nil {
		t.Fatal(err)
	}
	proxy := func(id, class string, held ...xds.Held) xds.Proxy {
		return xds.Proxy{ID: id, Class: class, Types: map[string]xds.Type{xds.ExtensionType: {Extensions: held}}}
	}
	held := xds.Held{Name: extension.Resource, State: xds.Acked, Version: res.Version, Running: res.Version, Module: "sha256:aa"}
	older := held
	older.Version, older.Running, older.Module = "v0", "v0", "sha256:bb"
	nacked := held
	nacked.State, nacked.Reason, nacked.Code = xds.Nacked, "no such image", codes.NotFound
	heldBefore := xds.Held{Name: before.Name, State: xds.Acked, Version: before.Version, Module: "sha256:cc"}
	classes := []xds.Class{{Key: "a", Snapshot: snap}, {Key: "b", Snapshot: snap}, {Key: "c", Snapshot: snapBefore}, {Key: "none"}}
	got := facts(&generation{written: written, refused: []source.Refused{never, since}, revisions: revisions(written)}, problems, world.AllExtensions(), deliveries(classes, []xds.Proxy{
		proxy("runs", "a", held), proxy("refuses", "a", nacked), proxy("asked", "b"), proxy("behind", "b", older), proxy("stranger", "none", held),
		proxy("keeps", "c", heldBefore),
	}, world.AllExtensions(), new(listeners)))
	want := []status.Fact{
		{
			Key: resource.KeyOf(plugin), UID: "u", Generation: 3, Revision: "canary",
			Reference: "oci://registry.test/auth:1", Digest: "sha256:aa", Want: res.Version,
			ResolveError: &fetch.Error{Kind: fetch.NotFound, Err: errors.New("no such image")},
			Proxies: []status.Proxy{
				{ID: "runs", State: status.Running, Version: res.Version},
				{ID: "refuses", State: status.Refused, Version: res.Version, Reason: "no such image"},
				{ID: "asked"},
				{ID: "behind", State: status.Running, Version: "v0"},
			},
		},
		{Key: resource.KeyOf(broken), UID: "u", Generation: 3, Revision: "canary", Problems: problems[:1]},
		{ // as it is now nothing was made of it
			Key: since.Key, UID: "u", Generation: 4, Revision: "canary", Problems: []resource.Problem{refused("changed")}, Reference: "oci://registry.test/auth:1",
			Proxies: []status.Proxy{{ID: "keeps", State: status.Running, Version: before.Version}},
		},
		{Key: resource.KeyOf(written[3]), Revision: "canary"},
		{Key: resource.KeyOf(written[4]), Revision: "canary"},
		{Key: resource.KeyOf(namespace)},
		{Key: never.Key, UID: "n", Generation: 1, Revision: "canary", Problems: []resource.Problem{refused("never")}},
	}
	sameError := cmp.Comparer(func(a, b error) bool {
		x, y := new(fetch.Error), new(fetch.Error)
		return a == nil && b == nil || errors.As(a, &x) && errors.As(b, &y) && x.Kind == y.Kind && x.Error() == y.Error()
	})
	if diff := cmp.Diff(want, got, sameError); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
}

// TestFactsOfPatched: an EnvoyFilter gave one of two classes another form of the
// extension; each runs the newest when it runs its own.
func TestFactsOfPatched(t *testing.T) {
	acked := func(version string) xds.Held {
		return xds.Held{Name: "e", State: xds.Acked, Version: version, Module: "sha256:aa"}
	}
	d := delivered{versions: []string{"v1", "v2"}, proxies: []member{
		{id: "plain", want: "v1", held: acked("v1")},
		{id: "patched", want: "v2", held: acked("v2")},
		{id: "patched since", want: "v2", held: acked("v1")},
		{id: "of a replica that is behind", want: "v0", held: acked("v0")},
	}}
	var f status.Fact
	d.tell(&f)
	var got []string
	for _, p := range f.Proxies {
		if p.State == status.Running && p.Version == f.Want {
			got = append(got, p.ID)
		}
	}
	if diff := cmp.Diff([]string{"plain", "patched"}, got); diff != "" {
		t.Errorf("who runs the newest (-want +got):\n%s", diff)
	}
}
