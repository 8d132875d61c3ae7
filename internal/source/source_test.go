package source_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
)

func TestLocate(t *testing.T) {
	snap := source.Snapshot{Places: map[resource.Key]source.Place{
		{Group: "extensions.istio.io", Kind: "WasmPlugin", Namespace: "a", Name: "x"}:        {File: "plugins.yaml", Line: 7},
		{Group: "networking.istio.io", Kind: "Gateway", Namespace: "a", Name: "x"}:           {File: "istio.yaml", Line: 1},
		{Group: "gateway.networking.k8s.io", Kind: "Gateway", Namespace: "a", Name: "x"}:     {File: "api.yaml", Line: 1},
		{Group: "gateway.networking.k8s.io", Kind: "GatewayClass", Namespace: "", Name: "x"}: {File: "api.yaml", Line: 9},
	}}
	problems := []resource.Problem{
		{Kind: "WasmPlugin", Namespace: "a", Name: "x", Message: "m"},
		{Kind: "WasmPlugin", Namespace: "b", Name: "x", Message: "elsewhere"},
		{Kind: "WasmPlugin", Namespace: "a", Name: "x", File: "known.yaml", Line: 3},
		{Kind: "Gateway", Namespace: "a", Name: "x", Message: "which?"},
		{Kind: "GatewayClass", Name: "x"},
	}
	want := []resource.Problem{
		{Kind: "WasmPlugin", Namespace: "a", Name: "x", Message: "m", File: "plugins.yaml", Line: 7},
		{Kind: "WasmPlugin", Namespace: "b", Name: "x", Message: "elsewhere"},
		{Kind: "WasmPlugin", Namespace: "a", Name: "x", File: "known.yaml", Line: 3},
		{Kind: "Gateway", Namespace: "a", Name: "x", Message: "which?"},
		{Kind: "GatewayClass", Name: "x", File: "api.yaml", Line: 9},
	}
	if diff := cmp.Diff(want, snap.Locate(problems)); diff != "" {
		t.Errorf("Locate (-want +got):\n%s", diff)
	}
	if problems[0].File != "" {
		t.Error("Locate changed its argument")
	}
	if got := (source.Snapshot{}).Locate(problems); len(got) != len(problems) {
		t.Errorf("Locate without places = %v", got)
	}
}
