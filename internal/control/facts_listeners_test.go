package control

import (
	"slices"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/chandler-proxy/chandler/internal/ecds"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/status"
	"github.com/chandler-proxy/chandler/internal/xds"
)

func anyOf(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// listener has HTTP filters that are found by name, and one of a kind of its own.
func listener(t *testing.T, name string, more *hcmv3.HttpFilter, discovered ...string) *listenerv3.Listener {
	t.Helper()
	hcm := &hcmv3.HttpConnectionManager{StatPrefix: name, RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{Name: name}}}
	for _, d := range discovered {
		hcm.HttpFilters = append(hcm.HttpFilters, &hcmv3.HttpFilter{Name: d, ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{}})
	}
	if more != nil {
		hcm.HttpFilters = append(hcm.HttpFilters, more)
	}
	return &listenerv3.Listener{Name: name, DefaultFilterChain: &listenerv3.FilterChain{Filters: []*listenerv3.Filter{
		{Name: name + "-network", ConfigType: &listenerv3.Filter_ConfigDiscovery{}},
		{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: anyOf(t, hcm)}},
	}}}
}

func snapshotOf(t *testing.T, all ...proto.Message) *xds.Snapshot {
	t.Helper()
	encoder := xds.NewEncoder()
	var resources []*xds.Resource
	for _, m := range all {
		r, err := encoder.Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		resources = append(resources, r)
	}
	snap, err := xds.NewSnapshot(nil, resources)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

// TestRefusedListeners: an extension is refused where a listener that has it is, whether
// the proxy took the extension itself or never came to ask for it.
func TestRefusedListeners(t *testing.T) {
	extension := func(name string) *corev3.TypedExtensionConfig { return &corev3.TypedExtensionConfig{Name: name} }
	snap := snapshotOf(t, extension("shared"), extension("a"), extension("b"), extension("0.0.0.0_80-network"),
		listener(t, "0.0.0.0_80", nil, "shared", "a"), listener(t, "0.0.0.0_8080", nil, "shared", "b"))
	versions := make(map[string]string)
	for _, r := range snap.Resources(xds.ExtensionType) {
		versions[r.Name] = r.Version
	}
	open := func(state xds.State, reason string, names ...string) (all []xds.Held) {
		for _, name := range names {
			all = append(all, xds.Held{Name: name, State: state, Version: "v", Reason: reason})
		}
		return all
	}
	both := []string{"0.0.0.0_80", "0.0.0.0_8080"}
	for _, tt := range []struct {
		name string
		open []xds.Held
		want map[string]string // reasons, by extension; the others run
	}{
		{"none", nil, nil},
		{"not answered", open(xds.Pending, "", both...), nil},
		{"one of two", open(xds.Nacked, "cannot bind", both[1]),
			map[string]string{"shared": "listener 0.0.0.0_8080: cannot bind", "b": "listener 0.0.0.0_8080: cannot bind"}},
		{"both", open(xds.Nacked, "out of memory", both...),
			map[string]string{
				"shared": "listener 0.0.0.0_80: out of memory", "a": "listener 0.0.0.0_80: out of memory",
				"b": "listener 0.0.0.0_8080: out of memory", "0.0.0.0_80-network": "listener 0.0.0.0_80: out of memory",
			}},
		{"one that is no more", open(xds.Nacked, "taken", "0.0.0.0_9"), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := xds.Proxy{ID: "p", Class: "c", Types: map[string]xds.Type{xds.ListenerType: {Open: tt.open}}}
			var held []xds.Held
			for _, r := range snap.Resources(xds.ExtensionType) {
				held = append(held, xds.Held{Name: r.Name, State: xds.Acked, Version: r.Version, Running: r.Version})
			}
			for _, asked := range []bool{true, false} {
				var last xds.State = xds.Pending
				if asked {
					p.Types[xds.ExtensionType], last = xds.Type{Extensions: held}, xds.Acked
				} else {
					delete(p.Types, xds.ExtensionType)
				}
				for name, d := range deliveries([]xds.Class{{Key: "c", Snapshot: snap}}, []xds.Proxy{p}, nil, new(listeners)) {
					want := xds.Held{Name: name, State: xds.Nacked, Version: versions[name], Reason: tt.want[name]}
					if asked {
						want.Code = ecds.Fetched
					}
					if tt.want[name] == "" {
						want = xds.Held{Name: name, State: last}
						if asked {
							want.Version, want.Running = versions[name], versions[name]
						}
					}
					if diff := cmp.Diff([]member{{id: "p", want: versions[name], held: want}}, d.proxies, cmp.AllowUnexported(member{})); diff != "" {
						t.Errorf("%s, asked for: %v (-want +got):\n%s", name, asked, diff)
					}
				}
			}
		})
	}
}

// TestScripts: an extension in Lua is where its listener is, and does what becomes of it.
func TestScripts(t *testing.T) {
	const name, code = "extensions.istio.io/trafficextension/default.lua", "return"
	lua := &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: anyOf(t, &luav3.Lua{
		DefaultSourceCode: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: code}},
	})}}
	deny := &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: anyOf(t, new(httprbacv3.RBAC))}}
	snap := snapshotOf(t, listener(t, "l", lua), listener(t, "other", nil))
	node := func(id, metadata string) *corev3.Node {
		n := &corev3.Node{Id: id}
		if metadata != "" {
			n.UserAgentVersionType = &corev3.Node_UserAgentBuildVersion{UserAgentBuildVersion: &corev3.BuildVersion{
				Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{mesh.Implementation: structpb.NewStringValue(metadata)}},
			}}
		}
		return n
	}
	classes := []xds.Class{
		{Key: "envoy", Snapshot: snap, Node: node("sidecar~10.0.0.1~a.default~default.svc.cluster.local", "")},
		{Key: "engine", Snapshot: snapshotOf(t, listener(t, "l", deny)), Node: node("sidecar~10.0.0.2~b.default~default.svc.cluster.local", mesh.Engine)},
		{Key: "not selected", Snapshot: snapshotOf(t, listener(t, "l", nil)), Node: node("sidecar~10.0.0.3~c.default~default.svc.cluster.local", "")},
	}
	at := snap.Version(xds.ListenerType)
	proxy := func(id, class, settled string, open ...xds.Held) xds.Proxy {
		return xds.Proxy{ID: id, Class: class, Types: map[string]xds.Type{xds.ListenerType: {Settled: settled, Open: open}}}
	}
	proxies := []xds.Proxy{
		proxy("runs", "envoy", at),
		proxy("another is open", "envoy", at, xds.Held{Name: "other", State: xds.Pending}),
		proxy("not answered", "envoy", at, xds.Held{Name: "l", State: xds.Pending}),
		proxy("not sent", "envoy", ""),
		proxy("refuses", "envoy", at, xds.Held{Name: "l", State: xds.Nacked, Reason: "script load error"}),
		proxy("engine", "engine", "any"),
		proxy("not selected", "not selected", at),
	}
	e := &mesh.Extension{Resource: name, Lua: code}
	known := new(listeners)
	to := deliveries(classes, proxies, []*mesh.Extension{e, {Resource: "wasm", Config: new(corev3.TypedExtensionConfig)}}, known)
	var f status.Fact
	to[name].tell(&f)
	version := codeVersion(code)
	want := []status.Proxy{
		{ID: "runs", State: status.Running, Version: version},
		{ID: "another is open", State: status.Running, Version: version},
		{ID: "not answered"},
		{ID: "not sent"},
		{ID: "refuses", State: status.Refused, Version: version, Reason: "listener l: script load error"},
		{ID: "engine", State: status.Refused, Version: version, Reason: noLua},
	}
	if diff := cmp.Diff(want, f.Proxies); diff != "" || f.Want != version || len(to) != 1 {
		t.Errorf("of %d extensions, version %s (-want +got):\n%s", len(to), f.Want, diff)
	}

	// each listener is decoded once, and forgotten when it is no more
	for r := range known.known {
		known.known[r] = filters{name: "remembered"}
	}
	if got := deliveries(classes[:1], proxies, []*mesh.Extension{e}, known)[name].versions; !slices.Equal(got, []string{"remembered"}) {
		t.Errorf("versions %q: the listeners were decoded again", got)
	}
	if len(known.known) != 2 {
		t.Errorf("%d listeners are remembered, want those of the one class", len(known.known))
	}
	deliveries(classes[2:], nil, []*mesh.Extension{e}, known)
	if len(known.known) != 0 {
		t.Errorf("%d listeners are remembered without a use", len(known.known))
	}
}

// TestFetched: a module whose configuration is refused was fetched.
func TestFetched(t *testing.T) {
	for state, want := range map[xds.State]bool{xds.Nacked: true, xds.Pending: false} {
		d := delivered{versions: []string{"v"}, proxies: []member{{id: "p", want: "v", held: xds.Held{Name: "e", State: state, Version: "v", Code: ecds.Fetched}}}}
		var f status.Fact
		if d.tell(&f); f.Fetched != want || f.ResolveError != nil {
			t.Errorf("%s: fetched %v, %v; want %v", state, f.Fetched, f.ResolveError, want)
		}
	}
}
