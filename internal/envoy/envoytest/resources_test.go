package envoytest

import (
	"strings"
	"testing"
)

func TestTexts(t *testing.T) {
	if got := Plugin("a", "oci://r/a:1", "v1", "phase: AUTHN"); !strings.HasSuffix(got, "\n  phase: AUTHN\n") {
		t.Errorf("Plugin = %s", got)
	}
	got := Gateway("127.0.0.1:8080", "127.0.0.2:9090")
	for _, want := range []string{"{number: 8080, name: http, protocol: HTTP}", "gateways: [istio-system/gateway]\n", "targetPort: 9090}", "[{addresses: [127.0.0.2]}]"} {
		if !strings.Contains(got, want) {
			t.Errorf("Gateway has no %q:\n%s", want, got)
		}
	}
	if got := Backend("h:1", "a", "b"); !strings.Contains(got, "gateways: [istio-system/a, istio-system/b]\n") {
		t.Errorf("Backend = %s", got)
	}
}
