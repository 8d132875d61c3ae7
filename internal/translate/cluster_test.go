package translate

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// TestFamilies: a proxy is sent to endpoints that it reaches, and proxies that reach
// others are another class.
func TestFamilies(t *testing.T) {
	both := []mesh.Endpoint{{Address: "10.0.0.1"}, {Address: "fd00::1"}, {Address: "web.example"}}
	four, six := both[:1], both[1:2]
	classes := map[string]string{}
	for name, tt := range map[string]struct {
		ips                []string
		of, ofFour, ofSix  []mesh.Endpoint
		dual, only4, only6 bool
	}{
		"none said":        {nil, both, four, six, false, false, false},
		"IPv4":             {[]string{"10.0.0.9"}, []mesh.Endpoint{both[0], both[2]}, four, six, false, true, false},
		"IPv6":             {[]string{"fd00::9"}, both[1:], four, six, false, false, true},
		"both":             {[]string{"10.0.0.9", "fd00::9"}, both, four, six, true, false, false},
		"both, IPv6 first": {[]string{"fd00::9", "::ffff:10.0.0.9"}, both, four, six, true, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := mesh.Proxy{Role: mesh.Sidecar, Labels: map[string]string{"app": "a"}, Redirected: true}
			for _, ip := range tt.ips {
				p.IPs = append(p.IPs, netip.MustParseAddr(ip))
			}
			if p.DualStack() != tt.dual || p.IPv4Only() != tt.only4 || p.IPv6Only() != tt.only6 {
				t.Errorf("DualStack %v, IPv4Only %v, IPv6Only %v", p.DualStack(), p.IPv4Only(), p.IPv6Only())
			}
			f := familiesOf(p)
			for _, r := range []struct{ of, want []mesh.Endpoint }{{both, tt.of}, {four, tt.ofFour}, {six, tt.ofSix}, {nil, nil}} {
				if diff := cmp.Diff(r.want, f.reach(r.of)); diff != "" {
					t.Errorf("of %v (-want +got):\n%s", r.of, diff)
				}
			}
			kind, _, _ := strings.Cut(name, ",")
			if other, ok := classes[Class(p)]; ok && other != kind {
				t.Errorf("%s is of the class of %s", kind, other)
			}
			classes[Class(p)] = kind
		})
	}
}
