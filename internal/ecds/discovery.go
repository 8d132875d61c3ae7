package ecds

import (
	"bytes"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// ListenerTypeURL is the type of a listener resource.
const ListenerTypeURL = typePrefix + "envoy.config.listener.v3.Listener"

// Discovered adds to types the extension configs that a listener discovers, and
// the type URLs it takes for each. Listeners without Wasm filters cost a scan of
// their bytes; a listener that cannot be decoded adds nothing.
func Discovered(listener *anypb.Any, types map[string][]string) {
	if !bytes.Contains(listener.GetValue(), []byte(".wasm.v3.Wasm")) {
		return
	}
	l := new(listenerv3.Listener)
	if err := listener.UnmarshalTo(l); err != nil {
		return
	}
	for _, chain := range append(l.GetFilterChains(), l.GetDefaultFilterChain()) {
		for _, f := range chain.GetFilters() {
			addDiscovery(f.GetName(), f.GetConfigDiscovery(), types)
			addHTTP(f.GetTypedConfig(), types)
		}
	}
}

func addHTTP(a *anypb.Any, types map[string][]string) {
	hcm := new(hcmv3.HttpConnectionManager)
	if !a.MessageIs(hcm) || a.UnmarshalTo(hcm) != nil {
		return
	}
	for _, f := range hcm.GetHttpFilters() {
		addDiscovery(f.GetName(), f.GetConfigDiscovery(), types)
	}
}

func addDiscovery(name string, d *corev3.ExtensionConfigSource, types map[string][]string) {
	if d != nil {
		types[name] = d.GetTypeUrls()
	}
}
