package main

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm/proxytest"
	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm/types"
)

// host runs the plugin natively, in the emulator of the Proxy-Wasm SDK.
func host(t *testing.T, config string) proxytest.HostEmulator {
	t.Helper()
	h, release := proxytest.NewHostEmulator(proxytest.NewEmulatorOption().
		WithPluginContext(func(uint32) types.PluginContext { return &plugin{} }).
		WithPluginConfiguration([]byte(config)))
	t.Cleanup(release)
	return h
}

func TestPluginAnswers(t *testing.T) {
	h := host(t, seed)
	if got := h.StartPlugin(); got != types.OnPluginStartStatusOK {
		t.Fatalf("StartPlugin = %v; log: %v", got, h.GetErrorLogs())
	}

	denied := h.InitializeHttpContext()
	headers := [][2]string{{":method", "GET"}, {":path", "/productpage"}, {":authority", "localhost:8080"}}
	if got := h.CallOnRequestHeaders(denied, headers, true); got != types.ActionPause {
		t.Errorf("action without credentials = %v, want pause", got)
	}
	want := &proxytest.LocalHttpResponse{
		StatusCode: 401,
		Headers:    [][2]string{{"www-authenticate", `Basic realm="istio"`}},
		Data:       []byte("This page asks for a user name and a password.\n"),
		GRPCStatus: -1,
	}
	if diff := cmp.Diff(want, h.GetSentLocalResponse(denied)); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}

	let := h.InitializeHttpContext()
	headers = append(headers, [2]string{"authorization", "Basic YWRtaW4zOmFkbWluMw=="})
	if got := h.CallOnRequestHeaders(let, headers, true); got != types.ActionContinue {
		t.Errorf("action with credentials = %v, want continue", got)
	}
	if got := h.GetSentLocalResponse(let); got != nil {
		t.Errorf("answer with credentials = %+v, want none", got)
	}
}

func TestPluginRefuses(t *testing.T) {
	for _, tt := range []struct{ name, config, want string }{
		{"nothing", "", "basicauth: refuse configuration: configuration: not JSON at byte 0: a value is missing"},
		{"a wrong field", `{"realm":7}`, "basicauth: refuse configuration: realm: want a string, have a number"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := host(t, tt.config)
			if got := h.StartPlugin(); got != types.OnPluginStartStatusFailed {
				t.Errorf("StartPlugin = %v, want failed", got)
			}
			if !slices.Contains(h.GetErrorLogs(), tt.want) {
				t.Errorf("error log = %v, want %s", h.GetErrorLogs(), tt.want)
			}
		})
	}
}
