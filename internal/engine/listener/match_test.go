package listener

import (
	"net/netip"
	"testing"

	"github.com/chandler-proxy/chandler/internal/engine/config"
)

func TestMatch(t *testing.T) {
	chain := func(name string, m config.Match) *Chain {
		return &Chain{cfg: &config.FilterChain{Name: name, Match: m}}
	}
	http := []string{"http/1.1", "h2c"}
	l := &Listener{
		chains: []*Chain{
			chain("blackhole", config.Match{Port: 15006}),
			chain("80", config.Match{Port: 80}),
			chain("9101-http", config.Match{Port: 9101, Applications: http}),
			chain("9101", config.Match{Port: 9101}),
			chain("http", config.Match{Applications: http}),
			chain("net", config.Match{Port: 7, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}),
			chain("host", config.Match{Port: 7, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}),
			chain("name", config.Match{Port: 443, ServerNames: []string{"a.example.com"}}),
			chain("wild", config.Match{Port: 443, ServerNames: []string{"*.example.com"}}),
			chain("wilder", config.Match{Port: 443, ServerNames: []string{"*.com"}}),
			chain("tls", config.Match{Port: 443, Transport: "tls"}),
		},
		rest: chain("rest", config.Match{}),
	}
	plain, grpc := hello{applications: []string{"http/1.1"}}, hello{applications: []string{"h2c"}}
	for _, tt := range []struct {
		dst  string
		said hello
		want string
	}{
		{"10.0.0.1:15006", plain, "blackhole"},
		{"10.0.0.1:80", hello{}, "80"},
		{"10.0.0.1:80", plain, "80"}, // the port decides before the protocol
		{"10.0.0.1:9101", grpc, "9101-http"},
		{"10.0.0.1:9101", hello{}, "9101"},
		{"10.0.0.1:1", plain, "http"},
		{"10.0.0.1:1", hello{}, "rest"},
		{"10.2.0.1:7", hello{}, "net"},
		{"10.1.0.1:7", hello{}, "host"},
		{"11.1.0.1:7", hello{}, "rest"},
		{"10.0.0.1:443", hello{tls: true, name: "a.example.com"}, "name"},
		{"10.0.0.1:443", hello{tls: true, name: "b.example.com"}, "wild"},
		{"10.0.0.1:443", hello{tls: true, name: "example.com"}, "wilder"},
		{"10.0.0.1:443", hello{tls: true, name: "a.org"}, "tls"},
		{"10.0.0.1:443", hello{}, "rest"},
	} {
		if got := l.match(netip.MustParseAddrPort(tt.dst), tt.said); got == nil || got.cfg.Name != tt.want {
			t.Errorf("match(%s, %+v) = %v, want %s", tt.dst, tt.said, got, tt.want)
		}
	}
}

func TestFirstLine(t *testing.T) {
	for _, tt := range []struct {
		in, protocol string
		known        bool
	}{
		{"", "", false},
		{"G", "", false},
		{"GET /", "", false},
		{"GET / HTTP/1.1\r\n", "http/1.1", true},
		{"GET / HTTP/1.0\r\n", "http/1.0", true},
		{"GET / HTTP/9.9\r\n", "", true},
		{"GETS", "", true},
		{"\x16\x03\x01", "", true},
		{"PRI * HTTP/2.0\r\n", "h2c", false},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "h2c", true},
		{"SSH-2.0-x\r\n", "", true},
	} {
		if protocol, known := firstLine([]byte(tt.in)); known != tt.known || known && protocol != tt.protocol {
			t.Errorf("firstLine(%q) = %q, %t, want %q, %t", tt.in, protocol, known, tt.protocol, tt.known)
		}
	}
}
