package proxywasm

import (
	"slices"
	"testing"

	"github.com/chandler-proxy/chandler/internal/module"
)

func TestMissing(t *testing.T) {
	imports := []module.Import{
		{Module: "env", Name: "proxy_log"},
		{Module: "env", Name: "proxy_set_tick_period_milliseconds"},
		{Module: "env", Name: "proxy_no_such_thing"},
		{Module: "env", Name: "proxy_get_configuration"}, // of 0.1.0 only
		{Module: "wasi_snapshot_preview1", Name: "fd_write"},
		{Module: "wasi_unstable", Name: "fd_write"},
		{Module: "wasi_snapshot_preview1", Name: "sock_open"},
		{Module: "wasi_snapshot_preview1", Name: "path_link"}, // Envoy's is another
		{Module: "wasi:http/types@0.2.0", Name: "fields"},
		{Module: interruptModule, Name: interruptFunction().name}, // ours, not Envoy's
		{Module: "env", Name: "memory", Kind: module.Memory},
	}
	for _, tt := range []struct {
		abi  string
		want []string
	}{
		{"0.2.1", []string{"proxy_no_such_thing", "proxy_get_configuration", "sock_open", "path_link", "fields", interruptFunction().name}},
		{"0.1.0", []string{"proxy_no_such_thing", "sock_open", "path_link", "fields", interruptFunction().name}},
		{"", []string{"proxy_no_such_thing", "proxy_get_configuration", "sock_open", "path_link", "fields", interruptFunction().name}},
	} {
		var got []string
		for _, e := range Missing(module.Info{ABI: tt.abi, Imports: imports}) {
			got = append(got, e.Name)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("Missing for ABI %q = %q, want %q", tt.abi, got, tt.want)
		}
	}
}
