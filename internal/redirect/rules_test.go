package redirect

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestRules(t *testing.T) {
	with := func(set func(*Config)) Config {
		c := Default()
		set(&c)
		return c
	}
	for name, c := range map[string]Config{
		"default":   Default(),
		"dualstack": with(func(c *Config) { c.IPv6 = true }),
		"excluded": with(func(c *Config) {
			c.IPv6 = true
			c.ExcludeInbound = []uint16{22, 9090}
			c.ExcludeOutbound = []uint16{3306}
			c.ExcludeNetworks = networks(t, "169.254.169.254/32,10.1.0.0/16,fd00::/8")
			c.ExcludeInterfaces = []string{"eth1", "net1"}
		}),
		"included": with(func(c *Config) {
			c.IPv6 = true
			c.IncludeInbound = Ports{List: []uint16{80, 443}}
			c.IncludeOutbound = []uint16{443}
			c.IncludeNetworks = networks(t, "10.96.0.0/12,fd00:10::/108")
		}),
		"nothing": with(func(c *Config) {
			c.IncludeInbound, c.IncludeNetworks = Ports{}, nil
		}),
		"ownports": with(func(c *Config) {
			c.OutboundPort, c.InboundPort, c.User, c.Group = 16001, 16006, 2000, 3000
		}),
	} {
		t.Run(name, func(t *testing.T) {
			tables, err := Rules(c)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			for _, table := range tables {
				b.WriteString(table.String())
			}
			golden(t, name+".nft", b.String())
		})
	}
}

// golden compares with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func networks(t *testing.T, text string) []netip.Prefix {
	t.Helper()
	list, err := ParseNetworks(text)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestRulesRefuse(t *testing.T) {
	for name, tt := range map[string]struct {
		set  func(*Config)
		want string
	}{
		"no port":        {func(c *Config) { c.InboundPort = 0 }, "the proxy's ports for outbound and inbound connections are required"},
		"one port":       {func(c *Config) { c.InboundPort = c.OutboundPort }, "port 15001 cannot be both the proxy's outbound and its inbound one"},
		"user 0":         {func(c *Config) { c.User = 0 }, "the proxy cannot have user or group 0: connections of the system would pass as its own"},
		"group 0":        {func(c *Config) { c.Group = 0 }, "the proxy cannot have user or group 0: connections of the system would pass as its own"},
		"long interface": {func(c *Config) { c.ExcludeInterfaces = []string{"abcdefghijklmnop"} }, `"abcdefghijklmnop" is not the name of a network interface`},
	} {
		t.Run(name, func(t *testing.T) {
			c := Default()
			tt.set(&c)
			if _, err := Rules(c); err == nil || err.Error() != tt.want {
				t.Errorf("error %v, want %s", err, tt.want)
			}
		})
	}
}

func TestParsePorts(t *testing.T) {
	for text, want := range map[string]Ports{
		"*":           {All: true},
		" * ":         {All: true},
		"":            {},
		" ":           {},
		"80":          {List: []uint16{80}},
		"80, 443,1":   {List: []uint16{80, 443, 1}},
		"65535,65535": {List: []uint16{65535, 65535}},
	} {
		got, err := ParsePorts(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
		again, err := ParsePorts(got.String())
		if err != nil || !cmp.Equal(got, again) {
			t.Errorf("%q reads as %v, written and read again as %v, %v", text, got, again, err)
		}
	}
	for _, text := range []string{"0", "65536", "-1", "http", "80,,443", "80,", "80-90", "*,80", "0x50"} {
		if got, err := ParsePorts(text); err == nil {
			t.Errorf("%q reads as %v", text, got)
		}
	}
}

func TestParseNetworks(t *testing.T) {
	for text, want := range map[string]string{
		"*":                      "*",
		"":                       "",
		"10.1.2.3/8":             "10.0.0.0/8",
		"10.0.0.0/8, fd00::1/64": "10.0.0.0/8,fd00::/64",
		"0.0.0.0/0":              "0.0.0.0/0",
	} {
		got, err := ParseNetworks(text)
		if err != nil || FormatNetworks(got) != want {
			t.Errorf("%q reads as %s, %v, want %s", text, FormatNetworks(got), err, want)
		}
	}
	for text, want := range map[string]string{
		"10.0.0.1":          `"10.0.0.1" is an address, not a network; write 10.0.0.1/32`,
		"::1":               `"::1" is an address, not a network; write ::1/128`,
		"10.0.0.0/33":       `"10.0.0.0/33" is not a network such as 10.0.0.0/8`,
		"example.com":       `"example.com" is not a network such as 10.0.0.0/8`,
		"10.0.0.0/8,":       `"" is not a network such as 10.0.0.0/8`,
		"::ffff:1.2.3.4/96": `"::ffff:1.2.3.4/96" is not a network such as 10.0.0.0/8`,
	} {
		if got, err := ParseNetworks(text); err == nil || err.Error() != want {
			t.Errorf("%q reads as %v, %v, want %s", text, got, err, want)
		}
	}
}

func TestParseInterfaces(t *testing.T) {
	got, err := ParseInterfaces("eth1, net-1.5")
	if diff := cmp.Diff([]string{"eth1", "net-1.5"}, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for _, text := range []string{"eth1,", "a b", "../x", "..", "abcdefghijklmnop", "e\x00", `e"`, "é"} {
		if got, err := ParseInterfaces(text); err == nil {
			t.Errorf("%q reads as %q", text, got)
		}
	}
}

// FuzzParse reads what users write into annotations; whatever is accepted, rules can
// be made of, and is read the same when written again.
func FuzzParse(f *testing.F) {
	f.Add("80,443", "10.0.0.0/8,fd00::/8", "eth0")
	f.Add("*", "*", "")
	f.Fuzz(func(t *testing.T, ports, nets, interfaces string) {
		c := Default()
		c.IPv6 = true
		var errPorts, errNets, errInterfaces error
		c.IncludeInbound, errPorts = ParsePorts(ports)
		c.ExcludeNetworks, errNets = ParseNetworks(nets)
		c.ExcludeInterfaces, errInterfaces = ParseInterfaces(interfaces)
		if errPorts != nil || errNets != nil || errInterfaces != nil {
			return
		}
		if _, err := Rules(c); err != nil {
			t.Fatal(err)
		}
		if again, err := ParseNetworks(FormatNetworks(c.ExcludeNetworks)); err != nil || FormatNetworks(again) != FormatNetworks(c.ExcludeNetworks) {
			t.Fatalf("%q reads as %v, then as %v, %v", nets, c.ExcludeNetworks, again, err)
		}
	})
}
