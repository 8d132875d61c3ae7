package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/chandler-proxy/chandler/plugintest"
)

// TestModule has the plugin as a proxy has it: compiled, in a Proxy-Wasm host.
func TestModule(t *testing.T) {
	m := plugintest.BuildGo(t, ".")

	t.Run("adds and counts", func(t *testing.T) {
		p := m.Start(t, plugintest.Config{
			Plugin: `{"header_1":"some_value_1","header_2":"another_value"}`,
			Backend: func(plugintest.Request) plugintest.Response {
				return plugintest.Response{Headers: plugintest.Headers{{"server", "gunicorn"}}, Body: "hi"}
			},
		})
		for _, headers := range []plugintest.Headers{{{"Hello", "something"}}, nil, {{"hello", ""}}} {
			res := p.Do(plugintest.Request{Path: "/headers", Headers: headers})
			want := plugintest.Response{Status: 200, Body: "hi", Headers: plugintest.Headers{
				{"server", "gunicorn"}, {"header_1", "some_value_1"}, {"header_2", "another_value"}}}
			if diff := cmp.Diff(want, res.Response); diff != "" {
				t.Errorf("response (-want +got):\n%s", diff)
			}
		}
		if got := p.Metric(counterName); got != 2 {
			t.Errorf("%s = %d, want 2", counterName, got)
		}
	})

	t.Run("refuses what it cannot read", func(t *testing.T) {
		p, err := m.TryStart(t, plugintest.Config{Plugin: `{"header_1":1}`})
		if err == nil || !p.Logged("header_1: want a string, have a number") {
			t.Errorf("start = %v, log %v", err, p.Logs())
		}
	})
}
