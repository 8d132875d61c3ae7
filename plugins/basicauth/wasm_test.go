package main

import (
	"testing"

	"github.com/chandler-proxy/chandler/plugintest"
)

// TestModule has the plugin as a proxy has it: compiled, in a Proxy-Wasm host.
func TestModule(t *testing.T) {
	m := plugintest.BuildGo(t, ".")

	t.Run("guards what it is told to", func(t *testing.T) {
		p := m.Start(t, plugintest.Config{Plugin: seed})
		for _, tt := range []struct {
			name, path, authorization string
			status                    int
			challenge                 string
		}{
			{"no credentials", "/productpage", "", 401, `Basic realm="istio"`},
			{"wrong credentials", "/productpage", "Basic b2s6d3Jvbmc=", 401, `Basic realm="istio"`},
			{"credentials", "/productpage?u=normal", "Basic YWRtaW4zOmFkbWluMw==", 200, ""},
			{"elsewhere", "/other", "", 200, ""},
		} {
			t.Run(tt.name, func(t *testing.T) {
				r := plugintest.Request{Path: tt.path}
				if tt.authorization != "" {
					r.Headers = plugintest.Headers{{"authorization", tt.authorization}}
				}
				res := p.Do(r)
				if got := res.Headers.Get("www-authenticate"); res.Status != tt.status || got != tt.challenge {
					t.Errorf("answer = %d, www-authenticate %q, want %d, %q", res.Status, got, tt.status, tt.challenge)
				}
				if reached := res.Upstream != nil; reached != (tt.status == 200) {
					t.Errorf("request reached the backend: %v", reached)
				}
			})
		}
	})

	t.Run("refuses what it cannot read", func(t *testing.T) {
		p, err := m.TryStart(t, plugintest.Config{Plugin: `{"realm":7}`})
		if err == nil || !p.Logged("basicauth: refuse configuration: realm: want a string, have a number") {
			t.Errorf("start = %v, log %v", err, p.Logs())
		}
	})
}
