package preflight

import (
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func anyOf(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func lookup(name string) (string, bool) {
	value, ok := map[string]string{"HOME": "/home", "EMPTY": ""}[name]
	return value, ok
}

func TestFromPlugin(t *testing.T) {
	vm := func(e *wasmv3.EnvironmentVariables) *wasmv3.PluginConfig_VmConfig {
		return &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{EnvironmentVariables: e}}
	}
	structure, err := structpb.NewStruct(map[string]any{"a": "b"})
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := proto.Marshal(structure)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		in   *wasmv3.PluginConfig
		want Trial
		err  string
	}{
		{name: "nothing", in: &wasmv3.PluginConfig{}},
		{
			name: "all",
			in: &wasmv3.PluginConfig{
				Name: "ns.plugin", RootId: "root", Configuration: anyOf(t, wrapperspb.String(`{"a":1}`)),
				Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{
					VmId: "vm", Configuration: anyOf(t, wrapperspb.Bytes([]byte("\xff"))),
					Code: &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{
						Local: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: "/a.wasm"}}}},
					EnvironmentVariables: &wasmv3.EnvironmentVariables{
						KeyValues: map[string]string{"A": "1"}, HostEnvKeys: []string{"HOME", "EMPTY", "NONE"}},
				}},
			},
			want: Trial{
				Path: "/a.wasm", Name: "ns.plugin", RootID: "root", Configuration: []byte(`{"a":1}`),
				VMID: "vm", VMConfiguration: []byte("\xff"), Env: map[string]string{"A": "1", "HOME": "/home", "EMPTY": ""},
			},
		},
		{
			name: "another type", in: &wasmv3.PluginConfig{Configuration: anyOf(t, structure)},
			want: Trial{Configuration: encoded},
		},
		{
			name: "a variable twice", in: &wasmv3.PluginConfig{Name: "p", Vm: vm(&wasmv3.EnvironmentVariables{
				KeyValues: map[string]string{"A": "1"}, HostEnvKeys: []string{"A"}})},
			err: "read environment of plugin p: variable A is given twice",
		},
		{
			name: "a variable of the host twice", in: &wasmv3.PluginConfig{Name: "p", Vm: vm(&wasmv3.EnvironmentVariables{
				HostEnvKeys: []string{"B", "B"}})},
			err: "read environment of plugin p: variable B is given twice",
		},
		{
			name: "malformed", in: &wasmv3.PluginConfig{Name: "p", Configuration: &anypb.Any{
				TypeUrl: "type.googleapis.com/google.protobuf.StringValue", Value: []byte{0xff}}},
			err: "read configuration of plugin p: ",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := proto.Clone(tt.in)
			got, err := FromPlugin(tt.in, lookup)
			switch {
			case tt.err != "":
				if err == nil || !strings.HasPrefix(err.Error(), tt.err) {
					t.Fatalf("FromPlugin error = %v, want %s", err, tt.err)
				}
				return
			case err != nil:
				t.Fatal(err)
			}
			if tt.want.Env == nil {
				tt.want.Env = map[string]string{}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("FromPlugin (-want +got):\n%s", diff)
			}
			if !proto.Equal(before, tt.in) {
				t.Error("FromPlugin changed its input")
			}
		})
	}
}

// FuzzFromPlugin reads what a control plane may send.
func FuzzFromPlugin(f *testing.F) {
	seed, err := proto.Marshal(&wasmv3.PluginConfig{Name: "p", Configuration: anyOf(f, wrapperspb.String("x"))})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		c := new(wasmv3.PluginConfig)
		if proto.Unmarshal(data, c) != nil {
			return
		}
		trial, err := FromPlugin(c, lookup)
		if err == nil && trial.Name != c.GetName() {
			t.Errorf("name %q, want %q", trial.Name, c.GetName())
		}
	})
}
