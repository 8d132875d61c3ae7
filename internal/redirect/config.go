package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A Config says which connections are led to the proxy. [Default] is the usual one.
type Config struct {
	OutboundPort uint16 // of the proxy, for what the workload opens
	InboundPort  uint16 // of the proxy, for what is opened to the workload
	User, Group  uint32 // of the proxy; what they open is left alone

	IncludeInbound    Ports          // opened to these, if not excluded
	ExcludeInbound    []uint16       // besides the ports of the agent itself
	IncludeOutbound   []uint16       // wherever they are, besides IncludeNetworks
	ExcludeOutbound   []uint16       // wherever they are
	IncludeNetworks   []netip.Prefix // opened to addresses in these; see [AllNetworks]
	ExcludeNetworks   []netip.Prefix // rather than IncludeNetworks and IncludeOutbound
	ExcludeInterfaces []string       // what leaves or arrives there is left alone

	IPv6 bool // make rules for IPv6 too
}

// Default leads everything to the proxy's usual ports, for the user and group that
// it has when injected. IPv6 is off.
func Default() Config {
	return Config{
		OutboundPort: 15001, InboundPort: 15006,
		User: 1337, Group: 1337,
		IncludeInbound:  Ports{All: true},
		IncludeNetworks: AllNetworks(),
	}
}

// AllNetworks is every address there is.
func AllNetworks() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
}

// Ports are some ports, or all.
type Ports struct {
	All  bool
	List []uint16 // of no meaning if All
}

// ParsePorts reads "*", all ports, or what [ParsePortList] does.
func ParsePorts(text string) (Ports, error) {
	if strings.TrimSpace(text) == "*" {
		return Ports{All: true}, nil
	}
	list, err := ParsePortList(text)
	return Ports{List: list}, err
}

// String is what ParsePorts reads.
func (p Ports) String() string {
	if p.All {
		return "*"
	}
	return FormatPorts(p.List)
}

// ParsePortList reads ports with commas between them. No text is no port.
func ParsePortList(text string) ([]uint16, error) {
	return parseList(text, func(item string) (uint16, error) {
		port, err := strconv.ParseUint(item, 10, 16)
		if err != nil || port == 0 {
			return 0, fmt.Errorf("%q is not a port, a number from 1 to 65535", item)
		}
		return uint16(port), nil
	})
}

// FormatPorts is what [ParsePortList] reads.
func FormatPorts(ports []uint16) string { return formatList(ports) }

// ParseNetworks reads "*", all addresses, or networks such as 10.0.0.0/8 with commas
// between them. No text is no network.
func ParseNetworks(text string) ([]netip.Prefix, error) {
	if strings.TrimSpace(text) == "*" {
		return AllNetworks(), nil
	}
	return parseList(text, func(item string) (netip.Prefix, error) {
		if addr, err := netip.ParseAddr(item); err == nil && addr.Zone() == "" {
			return netip.Prefix{}, fmt.Errorf("%q is an address, not a network; write %s/%d", item, addr, addr.BitLen())
		}
		p, err := netip.ParsePrefix(item)
		if err != nil || p.Addr().Is4In6() {
			return netip.Prefix{}, fmt.Errorf("%q is not a network such as 10.0.0.0/8", item)
		}
		return p.Masked(), nil
	})
}

// FormatNetworks is what [ParseNetworks] reads.
func FormatNetworks(networks []netip.Prefix) string {
	if slices.Equal(networks, AllNetworks()) {
		return "*"
	}
	return formatList(networks)
}

// ParseInterfaces reads names of network interfaces with commas between them.
func ParseInterfaces(text string) ([]string, error) {
	return parseList(text, func(item string) (string, error) {
		return item, checkInterface(item)
	})
}

// FormatInterfaces is what [ParseInterfaces] reads.
func FormatInterfaces(names []string) string { return formatList(names) }

// interfaceNameSize is the kernel's IFNAMSIZ: a name and the zero after it.
const interfaceNameSize = 16

// checkInterface accepts what the kernel accepts (dev_valid_name).
func checkInterface(name string) error {
	if name == "" || name == "." || name == ".." || len(name) >= interfaceNameSize || strings.ContainsFunc(name, notInInterface) {
		return fmt.Errorf("%q is not the name of a network interface", name)
	}
	return nil
}

func notInInterface(r rune) bool {
	return r <= ' ' || r >= 0x7f || strings.ContainsRune(`/:"\`, r)
}

// parseList reads items with commas between them; blanks around one do not matter.
func parseList[T any](text string, parse func(string) (T, error)) ([]T, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var list []T
	for item := range strings.SplitSeq(text, ",") {
		value, err := parse(strings.TrimSpace(item))
		if err != nil {
			return nil, err
		}
		list = append(list, value)
	}
	return list, nil
}

func formatList[T any](list []T) string {
	var b strings.Builder
	for i, item := range list {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprint(&b, item)
	}
	return b.String()
}

// check refuses what would cut the workload off.
func (c Config) check() error {
	switch {
	case c.OutboundPort == 0 || c.InboundPort == 0:
		return errors.New("the proxy's ports for outbound and inbound connections are required")
	case c.OutboundPort == c.InboundPort:
		return fmt.Errorf("port %d cannot be both the proxy's outbound and its inbound one", c.InboundPort)
	case c.User == 0 || c.Group == 0:
		return errors.New("the proxy cannot have user or group 0: connections of the system would pass as its own")
	}
	for _, name := range c.ExcludeInterfaces {
		if err := checkInterface(name); err != nil {
			return err
		}
	}
	return nil
}
