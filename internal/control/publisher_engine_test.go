package control

import (
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"github.com/chandler-proxy/chandler/internal/xds"
)

// TestTrials: what the embedded engine cannot do is told with the listener, again as long
// as the listener stays, and each listener is tried once.
func TestTrials(t *testing.T) {
	lua := &hcmv3.HttpFilter{Name: "lua", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: anyOf(t, new(luav3.Lua))}}
	bad := listener(t, "bad", lua)
	bad.Address = &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 8080},
	}}}
	bad.DefaultFilterChain.Filters = bad.DefaultFilterChain.Filters[1:]
	snap := snapshotOf(t, bad)
	built := []*listenerv3.Listener{bad}
	var tried trials
	for range 2 {
		got := tried.try("class", snap, built)
		if len(got) != 1 || !strings.HasPrefix(got[0].Message, "listener bad: the embedded engine cannot do this: ") || !strings.Contains(got[0].Message, "lua") {
			t.Fatalf("problems: %v", got)
		}
		built = []*listenerv3.Listener{new(listenerv3.Listener)} // not looked at again
	}
	tried.keep([]xds.Class{{Key: "class"}})
	if len(tried.classes) != 1 {
		t.Errorf("%d classes are remembered, want the one that is there", len(tried.classes))
	}
	tried.keep(nil)
	if len(tried.classes) != 0 {
		t.Errorf("%d classes are remembered after they went", len(tried.classes))
	}
}
