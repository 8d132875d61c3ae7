package envoy

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

var update = flag.Bool("update", false, "write the golden files anew")

// bootstraps are the golden files' inputs, by name of the file.
func bootstraps() map[string]Bootstrap {
	return map[string]Bootstrap{
		"least": {
			Proxy:  mesh.Proxy{Role: mesh.Router, Name: "gateway", Namespace: "default"},
			Socket: "/data/xds.sock",
		},
		"sidecar": {
			Proxy: mesh.Proxy{
				Role: mesh.Sidecar, Name: "httpbin-1", Namespace: "web", Domain: "web.svc.example.com",
				Cluster: "east", Workload: "httpbin", Version: "1.31.0", Redirected: true,
				IPs:      []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7")},
				Labels:   map[string]string{"app": "httpbin", "version": "v1"},
				Metadata: map[string]string{"MESH_ID": "m", "NAMESPACE": "not this one"},
			},
			Service:         "httpbin.web",
			Socket:          "/data/xds.sock",
			StateOfTheWorld: true,
			Admin:           netip.MustParseAddrPort("[::1]:0"),
			MaxConnections:  10,
		},
	}
}

func TestBootstrapGolden(t *testing.T) {
	for name, b := range bootstraps() {
		t.Run(name, func(t *testing.T) {
			got, err := b.Encode()
			if err != nil {
				t.Fatal(err)
			}
			again, err := b.Encode()
			if err != nil || !bytes.Equal(got, again) {
				t.Errorf("encoded twice, bytes differ (error %v)", err)
			}
			golden := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("bootstrap (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBootstrapRefuses(t *testing.T) {
	ok := bootstraps()["least"]
	for _, tt := range []struct {
		name, want string
		change     func(*Bootstrap)
	}{
		{"relative socket", "not an absolute path", func(b *Bootstrap) { b.Socket = "xds.sock" }},
		{"long socket", "choose a shorter data directory", func(b *Bootstrap) { b.Socket = "/" + strings.Repeat("x", 99) }},
		{"connections", "negative", func(b *Bootstrap) { b.MaxConnections = -1 }},
		{"no name", "name and namespace", func(b *Bootstrap) { b.Proxy.Name = "" }},
		{"role", "neither router nor sidecar", func(b *Bootstrap) { b.Proxy.Role = "waypoint" }},
		{"separator", "separates", func(b *Bootstrap) { b.Proxy.Name = "a~b" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := ok
			tt.change(&b)
			_, err := b.Encode()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Encode error = %v, want one with %q", err, tt.want)
			}
		})
	}
}

// What Node writes, ParseNode reads.
func TestNodeRoundTrip(t *testing.T) {
	want := bootstraps()["sidecar"].Proxy
	node, err := Node(want, "")
	if err != nil {
		t.Fatal(err)
	}
	got, err := mesh.ParseNode(node)
	if err != nil {
		t.Fatal(err)
	}
	// NAME is not a field that ParseNode knows; the rest must survive.
	want.Metadata = map[string]string{"MESH_ID": "m"}
	for k := range got.Metadata {
		if k != "MESH_ID" {
			delete(got.Metadata, k)
		}
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("ParseNode(Node(p)) (-want +got):\n%s", diff)
	}
}
