//go:build e2e

package e2e

import "github.com/chandler-proxy/chandler/internal/envoy/envoytest"

// gateway is a gateway that passes everything to one backend.
func gateway(listen, backend string) string { return envoytest.Gateway(listen, backend) }

// plugin is a WasmPlugin of the gateway's. config is what its x-wasm header
// says; more are further lines of its spec.
func plugin(name, url, config string, more ...string) string {
	return envoytest.Plugin(name, url, config, more...)
}
