package agent

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func lookup(env map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		v, ok := env[name]
		return v, ok
	}
}

func TestConfigFromEnv(t *testing.T) {
	base := Config{Upstream: "c:1", FetchTries: 7, InsecureRegistries: []string{"old"}}
	for _, tt := range []struct {
		name string
		env  map[string]string
		want Config
	}{
		{"nothing", nil, base},
		{"empty and zero", map[string]string{"WASM_INSECURE_REGISTRIES": " ", "WASM_HTTP_REQUEST_MAX_RETRIES": "0", "WASM_MODULE_EXPIRY": "0s"}, base},
		{"all", map[string]string{
			"WASM_INSECURE_REGISTRIES":                         "localhost:5000, *,",
			"WASM_MODULE_EXPIRY":                               "48h",
			"WASM_PURGE_INTERVAL":                              "2m",
			"WASM_HTTP_REQUEST_TIMEOUT":                        "1m30s",
			"WASM_HTTP_REQUEST_MAX_RETRIES":                    "2",
			"ISTIO_WASM_MAX_BINARY_SIZE_BYTES":                 "1024",
			"BLOCKED_CIDRS_IN_WASM_FETCH":                      "10.0.0.7/8,fd00::/8",
			"TERMINATION_DRAIN_DURATION_SECONDS":               "30",
			"MINIMUM_DRAIN_DURATION":                           "3s",
			"ISTIO_AGENT_ENABLE_WASM_REMOTE_LOAD_CONVERSION":   "false",
			"ISTIO_AGENT_ENABLE_WASM_REMOTE_LOAD_CONVERSION_X": "?",
		}, Config{
			Upstream:           "c:1",
			InsecureRegistries: []string{"localhost:5000", "*"},
			ModuleExpiry:       48 * time.Hour,
			PurgeInterval:      2 * time.Minute,
			FetchTimeout:       90 * time.Second,
			FetchTries:         2,
			MaxModule:          1024,
			BlockedCIDRs:       []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")},
			Drain:              30 * time.Second,
			MinDrain:           3 * time.Second,
			PassECDS:           true,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ConfigFromEnv(lookup(tt.env), base)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{})); diff != "" {
				t.Errorf("ConfigFromEnv (-want +got):\n%s", diff)
			}
		})
	}
}

func TestConfigFromEnvRefuses(t *testing.T) {
	env := map[string]string{
		"WASM_INSECURE_REGISTRIES":                       "http://localhost:5000",
		"WASM_MODULE_EXPIRY":                             "forever",
		"WASM_PURGE_INTERVAL":                            "-1h",
		"WASM_HTTP_REQUEST_TIMEOUT":                      "15",
		"WASM_HTTP_REQUEST_MAX_RETRIES":                  "many",
		"ISTIO_WASM_MAX_BINARY_SIZE_BYTES":               "-1",
		"BLOCKED_CIDRS_IN_WASM_FETCH":                    "10.0.0.0/8,10.0.0.1",
		"TERMINATION_DRAIN_DURATION_SECONDS":             "30s",
		"MINIMUM_DRAIN_DURATION":                         "3",
		"ISTIO_AGENT_ENABLE_WASM_REMOTE_LOAD_CONVERSION": "perhaps",
	}
	_, err := ConfigFromEnv(lookup(env), Config{})
	if err == nil {
		t.Fatal("accepted")
	}
	for name := range env {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("error does not name %s: %v", name, err)
		}
	}
}
