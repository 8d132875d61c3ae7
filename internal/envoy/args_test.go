package envoy

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestArgument(t *testing.T) {
	args := []string{"-l", "warning", "--config-path=a.yaml", "--concurrency", "2", "--", "-c", "b.yaml"}
	for _, tt := range []struct {
		names []string
		want  string
		ok    bool
	}{
		{[]string{"-l", "--log-level"}, "warning", true},
		{[]string{"-c", "--config-path"}, "a.yaml", true},
		{[]string{"-c"}, "", false}, // after --
		{[]string{"--concurrency"}, "2", true},
		{[]string{"--base-id"}, "", false},
	} {
		if got, ok := argument(args, tt.names...); got != tt.want || ok != tt.ok {
			t.Errorf("argument(%v) = %q, %v; want %q, %v", tt.names, got, ok, tt.want, tt.ok)
		}
	}
}

const ownYAML = `
node: {id: me, cluster: mine}
admin:
  access_log: [{name: x, typed_config: {"@type": type.googleapis.com/no.such.Type}}]
  address: {socket_address: {address: 127.0.0.1, port_value: 9901}}
static_resources:
  clusters:
  - name: up
    load_assignment:
      endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: /data/xds.sock}}}}]}]
`

func TestReadOwn(t *testing.T) {
	files := map[string]string{
		"own.yaml":   ownYAML,
		"own.json":   `{"node":{"id":"j"},"admin":{"address":{"socketAddress":{"address":"::1","portValue":1}}}}`,
		"pipe.yaml":  `admin: {address: {pipe: {path: /run/admin.sock}}}`,
		"none.yaml":  `node: {id: x}`,
		"bad.yaml":   "node: [",
		"wrong.yaml": `node: {id: [1]}`,
	}
	read := func(name string) ([]byte, error) {
		if text, ok := files[name]; ok {
			return []byte(text), nil
		}
		return nil, os.ErrNotExist
	}
	for _, tt := range []struct {
		name string
		args []string
		want Own
		err  string
	}{
		{name: "yaml", args: []string{"-c", "own.yaml"},
			want: Own{NodeID: "me", Cluster: "mine", Admin: "127.0.0.1:9901", Pipes: []string{"/data/xds.sock"}}},
		{name: "json, camel case", args: []string{"--config-path", "own.json"}, want: Own{NodeID: "j", Admin: "[::1]:1"}},
		{name: "merged", args: []string{"-c", "own.yaml", "--config-yaml", "node: {id: other}"},
			want: Own{NodeID: "other", Cluster: "mine", Admin: "127.0.0.1:9901", Pipes: []string{"/data/xds.sock"}}},
		{name: "text alone", args: []string{"--config-yaml", ownYAML},
			want: Own{NodeID: "me", Cluster: "mine", Admin: "127.0.0.1:9901", Pipes: []string{"/data/xds.sock"}}},
		{name: "admin on a socket", args: []string{"-c", "pipe.yaml"},
			want: Own{Admin: "/run/admin.sock", Pipes: []string{"/run/admin.sock"}}},
		{name: "no admin", args: []string{"-c", "none.yaml"}, err: "admin.address is missing"},
		{name: "no file", args: []string{"-c", "gone.yaml"}, err: "file does not exist"},
		{name: "not yaml", args: []string{"-c", "bad.yaml"}, err: "read bootstrap bad.yaml: "},
		{name: "not a bootstrap", args: []string{"-c", "wrong.yaml"}, err: "read bootstrap wrong.yaml: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ReadOwn(tt.args, read)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("ReadOwn error = %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("ReadOwn (-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzReadOwn(f *testing.F) {
	f.Add(ownYAML)
	f.Add(`{"admin":{"address":{"pipe":{"path":"/x"}}}}`)
	f.Add("admin: 3\nnode: {metadata: {a: !!binary aGk=}}")
	f.Fuzz(func(t *testing.T, text string) {
		own, err := ReadOwn([]string{"--config-yaml", text}, nil)
		if err == nil && own.Admin == "" {
			t.Error("accepted without an admin address")
		}
	})
}
