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

func TestPluginAddsAndCounts(t *testing.T) {
	h := host(t, `{"header_1":"some_value_1","header_2":"another_value"}`)
	if got := h.StartPlugin(); got != types.OnPluginStartStatusOK {
		t.Fatalf("StartPlugin = %v; log: %v", got, h.GetErrorLogs())
	}
	for _, request := range [][][2]string{
		{{":path", "/"}, {"hello", "something"}},
		{{":path", "/"}},
		{{":path", "/"}, {"hello", "again"}},
	} {
		id := h.InitializeHttpContext()
		if got := h.CallOnRequestHeaders(id, request, true); got != types.ActionContinue {
			t.Errorf("request action = %v, want continue", got)
		}
		if got := h.CallOnResponseHeaders(id, [][2]string{{":status", "200"}}, true); got != types.ActionContinue {
			t.Errorf("response action = %v, want continue", got)
		}
		want := [][2]string{{":status", "200"}, {"header_1", "some_value_1"}, {"header_2", "another_value"}}
		if diff := cmp.Diff(want, h.GetCurrentResponseHeaders(id)); diff != "" {
			t.Errorf("response headers (-want +got):\n%s", diff)
		}
	}
	if got, err := h.GetCounterMetric("hello_header_counter"); got != 2 || err != nil {
		t.Errorf("hello_header_counter = %d, %v; want 2", got, err)
	}
}

func TestPluginRefuses(t *testing.T) {
	h := host(t, `{"header_1":1}`)
	if got := h.StartPlugin(); got != types.OnPluginStartStatusFailed {
		t.Errorf("StartPlugin = %v, want failed", got)
	}
	const want = "headercounter: refuse configuration: header_1: want a string, have a number"
	if !slices.Contains(h.GetErrorLogs(), want) {
		t.Errorf("error log = %v, want %s", h.GetErrorLogs(), want)
	}
}
