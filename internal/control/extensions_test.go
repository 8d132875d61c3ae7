package control

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	extensionsapi "istio.io/api/extensions/v1alpha1"
	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/xds"
)

func TestExtensions(t *testing.T) {
	plugin := &extensionsv1alpha1.WasmPlugin{
		TypeMeta:   metav1.TypeMeta{APIVersion: "extensions.istio.io/v1alpha1", Kind: "WasmPlugin"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "auth"},
	}
	plugin.Spec.Url, plugin.Spec.Phase = "oci://registry.test/auth:1", extensionsapi.PluginPhase_AUTHZ
	idle := plugin.DeepCopy()
	idle.Name, idle.Spec.Phase = "idle", extensionsapi.PluginPhase_UNSPECIFIED_PHASE
	world, problems := mesh.New([]resource.Object{plugin, idle}, mesh.Options{})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	written := world.AllExtensions()
	held := func(version string, state xds.State) xds.Held {
		return xds.Held{State: state, Version: version, Running: version, Module: "sha256:aa"}
	}
	refuses := xds.Held{State: xds.Nacked, Version: "v", Running: "v0", Reason: "listener l: taken"}
	to := map[string]delivered{
		written[0].Resource: {versions: []string{"v"}, proxies: []member{
			{id: "d", want: "v", held: refuses}, {id: "a", want: "v", held: held("v", xds.Acked)}, {id: "b", want: "v", held: held("v", xds.Acked)},
			{id: "behind", want: "v", held: held("v0", xds.Acked)}, {id: "asks", want: "v", held: xds.Held{State: xds.Missing}}, {id: "c", want: "v", held: refuses},
		}},
		"patched": {versions: []string{"w"}, proxies: []member{{id: "a", want: "w", held: xds.Held{State: xds.Pending}}}},
	}
	running := xds.Extension{
		Name: written[0].Resource, Wanted: 6, Running: map[string]int{"v": 2, "v0": 3}, Modules: map[string]int{"sha256:aa": 3}, Pending: 2,
		Refused: []xds.Refusal{
			{Proxy: "c", Version: "v", Running: "v0", Reason: "listener l: taken"},
			{Proxy: "d", Version: "v", Running: "v0", Reason: "listener l: taken"},
		},
	}
	foreign := xds.Extension{Name: "filter", Wanted: 1, Running: map[string]int{}, Missing: 1}
	patched := xds.Extension{Name: "patched", Wanted: 1, Running: map[string]int{}, Pending: 1}
	got := extensions(written, to, []xds.Extension{foreign, {Name: "patched", Wanted: 7}})
	text, err := json.MarshalIndent(got, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	want := []Extension{
		{Extension: running, Kind: "WasmPlugin", Namespace: "default", Resource: "auth", Phase: "AUTHZ"},
		{Extension: xds.Extension{Name: written[1].Resource, Running: map[string]int{}}, Kind: "WasmPlugin", Namespace: "default", Resource: "idle", Phase: "UNSPECIFIED_PHASE"},
		{Extension: foreign},
		{Extension: patched},
	}
	var back []Extension
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, back); diff != "" {
		t.Errorf("extensions, as JSON (-want +got):\n%s", diff)
	}
}
