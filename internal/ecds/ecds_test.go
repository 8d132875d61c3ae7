package ecds_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	udpav1 "github.com/cncf/xds/go/udpa/type/v1"
	xdsv3 "github.com/cncf/xds/go/xds/type/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	netwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chandler-proxy/chandler/internal/ecds"
	"github.com/chandler-proxy/chandler/internal/module"
)

const (
	url  = "https://modules.test/basic-auth.wasm"
	path = "/var/lib/chandler/0f.wasm"
	sum  = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

// remote is a plugin whose module is at url, as Istio's control plane sends it.
func remote(env map[string]string) *wasmv3.PluginConfig {
	return plugin(env, &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Remote{
		Remote: &corev3.RemoteDataSource{
			HttpUri: &corev3.HttpUri{
				Uri:              url,
				Timeout:          durationpb.New(30 * time.Second),
				HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: "_"},
			},
			Sha256: sum,
		},
	}})
}

func local(env map[string]string) *wasmv3.PluginConfig {
	return plugin(env, &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{
		Local: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}},
	}})
}

func plugin(env map[string]string, code *corev3.AsyncDataSource) *wasmv3.PluginConfig {
	vm := &wasmv3.VmConfig{Runtime: "envoy.wasm.runtime.v8", Code: code}
	if env != nil {
		vm.EnvironmentVariables = &wasmv3.EnvironmentVariables{KeyValues: env}
	}
	configuration, err := anypb.New(wrapperspb.String(`{"realm":"istio"}`))
	if err != nil {
		panic(err)
	}
	return &wasmv3.PluginConfig{
		Name:          "default.basic-auth",
		Configuration: configuration,
		Vm:            &wasmv3.PluginConfig_VmConfig{VmConfig: vm},
	}
}

func httpFilter(c *wasmv3.PluginConfig) proto.Message { return &httpwasmv3.Wasm{Config: c} }
func netFilter(c *wasmv3.PluginConfig) proto.Message  { return &netwasmv3.Wasm{Config: c} }

// typedStruct is m as an EnvoyFilter has it, in either form of TypedStruct.
func typedStruct(t testing.TB, m proto.Message, old bool) proto.Message {
	t.Helper()
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	value := new(structpb.Struct)
	if err := value.UnmarshalJSON(text); err != nil {
		t.Fatal(err)
	}
	typeURL := "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName())
	if old {
		return &udpav1.TypedStruct{TypeUrl: typeURL, Value: value}
	}
	return &xdsv3.TypedStruct{TypeUrl: typeURL, Value: value}
}

func ext(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	typed, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	res, err := anypb.New(&corev3.TypedExtensionConfig{Name: "a", TypedConfig: typed})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func decode(t testing.TB, res *anypb.Any) *ecds.Extension {
	t.Helper()
	e, err := ecds.Decode(res)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestLocalize(t *testing.T) {
	meta := func() map[string]string {
		return map[string]string{ecds.PullSecretEnv: "hush", ecds.ResourceVersionEnv: "7", "ISTIO_META_NEW": "x"}
	}
	mixed := meta()
	mixed["COLOUR"] = "blue"
	for _, tt := range []struct {
		name     string
		in, want proto.Message
		err      error
	}{
		{name: "http", in: httpFilter(remote(nil)), want: httpFilter(local(nil))},
		{name: "network", in: netFilter(remote(nil)), want: netFilter(local(nil))},
		{name: "variables of the agent's", in: httpFilter(remote(meta())), want: httpFilter(local(nil))},
		{name: "variables of both", in: httpFilter(remote(mixed)), want: httpFilter(local(map[string]string{"COLOUR": "blue"}))},
		{name: "typed struct", in: typedStruct(t, httpFilter(remote(meta())), false), want: httpFilter(local(nil))},
		{name: "typed struct, old", in: typedStruct(t, httpFilter(remote(meta())), true), want: httpFilter(local(nil))},
		{name: "typed struct, network", in: typedStruct(t, netFilter(remote(nil)), false), want: netFilter(local(nil))},
		{name: "already local", in: httpFilter(local(nil)), err: ecds.ErrNotRemote},
		{name: "not wasm", in: new(httprbacv3.RBAC), err: ecds.ErrNotRemote},
		{name: "not wasm, typed struct", in: typedStruct(t, new(httprbacv3.RBAC), false), err: ecds.ErrNotRemote},
		{name: "empty", in: new(httpwasmv3.Wasm), err: ecds.ErrNotRemote},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := ext(t, tt.in)
			before := proto.Clone(in)
			e := decode(t, in)
			for range 2 { // a second time gives the same
				got, err := e.Localize(path)
				if err != tt.err {
					t.Fatalf("Localize error = %v, want %v", err, tt.err)
				}
				if err == nil {
					if diff := cmp.Diff(ext(t, tt.want), got, protocmp.Transform()); diff != "" {
						t.Errorf("Localize (-want +got):\n%s", diff)
					}
				}
			}
			if !proto.Equal(before, in) {
				t.Error("Localize modified its input")
			}
		})
	}
}

func TestWant(t *testing.T) {
	e := decode(t, ext(t, httpFilter(remote(map[string]string{
		ecds.PullSecretEnv: "hush", ecds.PullPolicyEnv: "Always", ecds.ResourceVersionEnv: "7",
	}))))
	ref, err := module.ParseRef(url, sum)
	if err != nil {
		t.Fatal(err)
	}
	got, err := e.Want()
	want := module.Want{Ref: ref, Policy: module.PullAlways, Version: "7", Secret: []byte("hush"), Timeout: 30 * time.Second}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(module.Ref{})); err != nil || diff != "" {
		t.Errorf("Want error = %v, (-want +got):\n%s", err, diff)
	}

	noURI := remote(nil)
	noURI.GetVmConfig().GetCode().GetRemote().HttpUri = nil
	badSum := remote(nil)
	badSum.GetVmConfig().GetCode().GetRemote().Sha256 = "xyz"
	for _, tt := range []struct {
		name string
		in   proto.Message
		err  string
	}{
		{"local", httpFilter(local(nil)), ecds.ErrNotRemote.Error()},
		{"no URI", httpFilter(noURI), ecds.ErrNoURI.Error()},
		{"bad policy", httpFilter(remote(map[string]string{ecds.PullPolicyEnv: "Sometimes"})), `"Sometimes" is no pull policy`},
		{"bad checksum", httpFilter(badSum), "sha256"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := decode(t, ext(t, tt.in)).Want(); err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("Want error = %v, want one with %q", err, tt.err)
			}
		})
	}
}

func TestPass(t *testing.T) {
	in := ext(t, httpFilter(local(map[string]string{ecds.ResourceVersionEnv: "7", "COLOUR": "blue"})))
	got, err := decode(t, in).Pass()
	if err != nil {
		t.Fatal(err)
	}
	want := ext(t, httpFilter(local(map[string]string{"COLOUR": "blue"})))
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("Pass (-want +got):\n%s", diff)
	}
	other := ext(t, new(httprbacv3.RBAC))
	if got, err := decode(t, other).Pass(); err != nil || got != other {
		t.Errorf("Pass of what is not ours = %v, %v; want the very same", got, err)
	}
}

func TestVerdict(t *testing.T) {
	for _, tt := range []struct {
		policy   wasmv3.FailurePolicy
		failOpen bool
		s        ecds.Situation
		want     ecds.Verdict
	}{
		{wasmv3.FailurePolicy_UNSPECIFIED, false, ecds.Starting, ecds.Deny},
		{wasmv3.FailurePolicy_UNSPECIFIED, true, ecds.Starting, ecds.Allow},
		{wasmv3.FailurePolicy_FAIL_OPEN, false, ecds.Starting, ecds.Allow},
		{wasmv3.FailurePolicy_FAIL_CLOSED, true, ecds.Starting, ecds.Deny},
		{wasmv3.FailurePolicy_FAIL_RELOAD, false, ecds.Starting, ecds.Deny},
		{wasmv3.FailurePolicy(99), false, ecds.Starting, ecds.Deny},
		{wasmv3.FailurePolicy_FAIL_CLOSED, false, ecds.Serving, ecds.Allow},
	} {
		c := remote(nil)
		c.FailurePolicy = tt.policy
		//lint:ignore SA1019 deprecated, and what control planes still send
		c.FailOpen = tt.failOpen
		if got := decode(t, ext(t, httpFilter(c))).Verdict(tt.s); got != tt.want {
			t.Errorf("Verdict(%v, fail_open %v, situation %v) = %s, want %s", tt.policy, tt.failOpen, tt.s, got, tt.want)
		}
	}
}

func TestFallback(t *testing.T) {
	const (
		wasmURL    = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"
		rbacURL    = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
		netRBACURL = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC"
	)
	http, network := decode(t, ext(t, httpFilter(remote(nil)))), decode(t, ext(t, netFilter(remote(nil))))
	for _, tt := range []struct {
		name  string
		e     *ecds.Extension
		v     ecds.Verdict
		types []string
		want  proto.Message // nil: Wasm
	}{
		{"http allow", http, ecds.Allow, []string{wasmURL, rbacURL}, new(httprbacv3.RBAC)},
		{"http deny", http, ecds.Deny, []string{wasmURL, rbacURL}, &httprbacv3.RBAC{Rules: new(rbacv3.RBAC)}},
		{"network allow", network, ecds.Allow, []string{netRBACURL}, &netrbacv3.RBAC{StatPrefix: "chandler_"}},
		{"network deny", network, ecds.Deny, []string{netRBACURL}, &netrbacv3.RBAC{StatPrefix: "chandler_", Rules: new(rbacv3.RBAC)}},
		{"http, only wasm", http, ecds.Allow, []string{wasmURL}, nil},
		{"network, only http's", network, ecds.Deny, []string{rbacURL}, nil},
		{"unknown", http, ecds.Deny, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.e.Fallback(tt.v, tt.types)
			if err != nil {
				t.Fatal(err)
			}
			if tt.want != nil {
				if diff := cmp.Diff(ext(t, tt.want), got, protocmp.Transform()); diff != "" {
					t.Errorf("Fallback (-want +got):\n%s", diff)
				}
				return
			}
			ec := new(corev3.TypedExtensionConfig)
			if err := got.UnmarshalTo(ec); err != nil {
				t.Fatal(err)
			}
			f, err := ec.GetTypedConfig().UnmarshalNew()
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := f.(*netwasmv3.Wasm); ok != tt.e.Network {
				t.Errorf("fallback is a %T", f)
			}
			vm := f.(interface{ GetConfig() *wasmv3.PluginConfig }).GetConfig().GetVmConfig()
			if got := vm.GetCode().GetLocal().GetInlineBytes(); !strings.HasPrefix(string(got), "\x00asm") {
				t.Errorf("fallback's code is %q", got)
			}
		})
	}
	if _, err := decode(t, ext(t, new(httprbacv3.RBAC))).Fallback(ecds.Deny, nil); !errors.Is(err, ecds.ErrNoFallback) {
		t.Errorf("Fallback for what is not Wasm: error = %v", err)
	}
}

func TestDiscovered(t *testing.T) {
	discovery := func(types ...string) *corev3.ExtensionConfigSource {
		return &corev3.ExtensionConfigSource{TypeUrls: types}
	}
	const netWasm, httpWasm = "t/envoy.extensions.filters.network.wasm.v3.Wasm", "t/envoy.extensions.filters.http.wasm.v3.Wasm"
	manager, err := anypb.New(&hcmv3.HttpConnectionManager{HttpFilters: []*hcmv3.HttpFilter{
		{Name: "auth", ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: discovery(httpWasm, "t/rbac")}},
		{Name: "router"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := anypb.New(&listenerv3.Listener{
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{
			{Name: "l4", ConfigType: &listenerv3.Filter_ConfigDiscovery{ConfigDiscovery: discovery(netWasm)}},
		}}},
		DefaultFilterChain: &listenerv3.FilterChain{Filters: []*listenerv3.Filter{
			{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: manager}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string][]string)
	ecds.Discovered(listener, got)
	ecds.Discovered(&anypb.Any{TypeUrl: ecds.ListenerTypeURL, Value: []byte("\xff.wasm.v3.Wasm")}, got)
	ecds.Discovered(&anypb.Any{TypeUrl: ecds.ListenerTypeURL}, got)
	want := map[string][]string{"auth": {httpWasm, "t/rbac"}, "l4": {netWasm}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Discovered (-want +got):\n%s", diff)
	}
}

// FuzzDecode feeds arbitrary resources through everything that a relay does with
// them. Whatever comes out must be free of the agent's variables.
func FuzzDecode(f *testing.F) {
	for _, m := range []proto.Message{
		httpFilter(remote(map[string]string{ecds.PullSecretEnv: "hush"})),
		netFilter(local(map[string]string{ecds.ResourceVersionEnv: "1"})),
		typedStruct(f, httpFilter(remote(nil)), true),
		typedStruct(f, netFilter(remote(nil)), false),
		new(httprbacv3.RBAC),
	} {
		f.Add(ext(f, m).GetValue())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ecds.Decode(&anypb.Any{TypeUrl: ecds.TypeURL, Value: b})
		if e == nil {
			return
		}
		var out []*anypb.Any
		keep := func(res *anypb.Any, err error) {
			if err == nil {
				out = append(out, res)
			}
		}
		if err == nil {
			_, _ = e.Want()
			keep(e.Localize(path))
			keep(e.Pass())
		}
		keep(e.Fallback(e.Verdict(ecds.Starting), nil))
		for _, res := range out {
			again, err := ecds.Decode(res)
			if err != nil {
				t.Fatalf("output cannot be decoded: %v", err)
			}
			if want, err := again.Want(); err == nil && len(want.Secret) > 0 {
				t.Error("a secret got through")
			}
		}
	})
}
