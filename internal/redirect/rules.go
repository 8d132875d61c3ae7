package redirect

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is that of our table in either family.
const tableName = "chandler"

// priority is where among the chains of a hook ours are: where addresses are
// translated. nft has a name for it, dstnat, that it refuses to read at the hook output.
const priority = -100

// A Family is an address family, as nft calls it.
type Family string

// The families that there are tables for.
const (
	IPv4 Family = "ip"
	IPv6 Family = "ip6"
)

// A Table is all of the rules of one family.
type Table struct {
	Family Family
	Chains []Chain
}

// A Chain is the rules for new connections at one place of their way.
type Chain struct {
	Name  string // prerouting: what arrives; output: what is opened here
	Rules []Rule
}

// A Rule decides of the connections that match all of Matches.
type Rule struct {
	Matches  []Match
	Redirect uint16 // to this port of the machine; 0 lets the connection pass
}

// A Match is one condition on a connection.
type Match struct {
	Text  string // as nft writes it
	exprs []expr.Any
}

// Rules returns the tables that c asks for: IPv4's, and IPv6's if it asks for that.
// An error says what of c makes no sense.
func Rules(c Config) ([]Table, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	families := []family{{name: IPv4, addrBytes: 4, saddr: 12, daddr: 16,
		loopback: netip.MustParseAddr("127.0.0.1"), own: netip.MustParseAddr(OwnAddress4)}}
	if c.IPv6 {
		families = append(families, family{name: IPv6, addrBytes: 16, saddr: 8, daddr: 24,
			loopback: netip.IPv6Loopback(), own: netip.MustParseAddr(OwnAddress6)})
	}
	var tables []Table
	for _, f := range families {
		tables = append(tables, Table{Family: f.name, Chains: []Chain{
			{Name: "prerouting", Rules: f.prerouting(c)},
			{Name: "output", Rules: f.output(c)},
		}})
	}
	return tables, nil
}

// What the proxy sends on to the workload comes from one of these addresses of the
// loopback interface, lest it come back to the proxy. They are Istio's.
const (
	OwnAddress4 = "127.0.0.6"
	OwnAddress6 = "::6"
)

// tunnelPort is where Istio's ambient mesh ends its tunnels: what arrives there is for
// no workload.
const tunnelPort = 15008

// agentPorts are never redirected, as Istio has it: the agent's metrics, health and
// probes at 15020, and the ports of health and metrics that Istio's users name.
func agentPorts() []uint16 { return []uint16{tunnelPort, 15090, 15021, 15020} }

// prerouting has the rules for what others open to the workload.
func (f family) prerouting(c Config) []Rule {
	var rules []Rule
	for _, name := range c.ExcludeInterfaces {
		rules = append(rules, pass(incoming(name)))
	}
	for _, p := range append(agentPorts(), c.ExcludeInbound...) {
		rules = append(rules, pass(port(p)))
	}
	if c.IncludeInbound.All {
		return append(rules, redirect(c.InboundPort, tcp()))
	}
	for _, p := range c.IncludeInbound.List {
		rules = append(rules, redirect(c.InboundPort, port(p)))
	}
	return rules
}

// output has the rules for what is opened here, by the workload or the proxy. A
// workload that calls a service that leads back to itself passes its proxy twice:
// on its way out, and, because the proxy opened a connection to an address of its
// own pod, on its way in. One that calls itself by its address, or by localhost,
// passes no proxy.
func (f family) output(c Config) []Rule {
	rules := []Rule{pass(f.source(f.own), outgoing("lo"))}
	for _, name := range c.ExcludeInterfaces {
		rules = append(rules, pass(outgoing(name)))
	}
	for _, p := range c.ExcludeOutbound {
		rules = append(rules, pass(port(p)))
	}
	rules = append(rules,
		redirect(c.InboundPort, outgoing("lo"), not(f.destination(single(f.loopback))), not(port(tunnelPort)), user(c.User)),
		pass(outgoing("lo"), not(user(c.User))),
		pass(user(c.User)),
		pass(group(c.Group)),
		pass(f.destination(single(f.loopback))),
	)
	for _, n := range f.of(c.ExcludeNetworks) {
		rules = append(rules, pass(f.to(n)...))
	}
	for _, p := range c.IncludeOutbound {
		rules = append(rules, redirect(c.OutboundPort, port(p)))
	}
	for _, n := range f.of(c.IncludeNetworks) {
		rules = append(rules, redirect(c.OutboundPort, f.to(n)...))
	}
	return rules
}

func pass(matches ...Match) Rule {
	return Rule{Matches: matches}
}

func redirect(to uint16, matches ...Match) Rule {
	return Rule{Matches: matches, Redirect: to}
}

func single(addr netip.Addr) netip.Prefix {
	return netip.PrefixFrom(addr, addr.BitLen())
}

// A family is what the rules of one differ by.
type family struct {
	name          Family
	addrBytes     uint32
	saddr, daddr  uint32 // where a packet's header has the addresses
	loopback, own netip.Addr
}

// of picks the networks of the family.
func (f family) of(all []netip.Prefix) (own []netip.Prefix) {
	for _, n := range all {
		if n.Addr().Is4() == (f.name == IPv4) {
			own = append(own, n)
		}
	}
	return own
}

// to matches TCP connections to a network; all addresses need no match of their own.
func (f family) to(n netip.Prefix) []Match {
	if n.Bits() == 0 {
		return []Match{tcp()}
	}
	return []Match{f.destination(n), tcp()}
}

func (f family) destination(n netip.Prefix) Match {
	text := n.String()
	if n.IsSingleIP() {
		text = n.Addr().String()
	}
	return Match{fmt.Sprintf("%s daddr %s", f.name, text), []expr.Any{
		&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: f.daddr, Len: f.addrBytes, DestRegister: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: f.addrBytes, Mask: mask(n), Xor: make([]byte, f.addrBytes)},
		equal(n.Masked().Addr().AsSlice()),
	}}
}

// mask has the bits of a network's addresses that are the same.
func mask(n netip.Prefix) []byte {
	m := make([]byte, n.Addr().BitLen()/8)
	for i := range n.Bits() {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}

func (f family) source(addr netip.Addr) Match {
	return Match{fmt.Sprintf("%s saddr %s", f.name, addr), []expr.Any{
		&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: f.saddr, Len: f.addrBytes, DestRegister: 1},
		equal(addr.AsSlice()),
	}}
}

func tcp() Match {
	return meta("meta l4proto tcp", expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_TCP})
}

// port matches TCP connections by the port that is called.
func port(n uint16) Match {
	return Match{fmt.Sprintf("tcp dport %d", n), append(tcp().exprs,
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2, DestRegister: 1},
		equal(binaryutil.BigEndian.PutUint16(n)),
	)}
}

func user(id uint32) Match {
	return meta(fmt.Sprintf("meta skuid %d", id), expr.MetaKeySKUID, binaryutil.NativeEndian.PutUint32(id))
}

func group(id uint32) Match {
	return meta(fmt.Sprintf("meta skgid %d", id), expr.MetaKeySKGID, binaryutil.NativeEndian.PutUint32(id))
}

func outgoing(name string) Match {
	return meta(fmt.Sprintf("oifname %q", name), expr.MetaKeyOIFNAME, interfaceName(name))
}

func incoming(name string) Match {
	return meta(fmt.Sprintf("iifname %q", name), expr.MetaKeyIIFNAME, interfaceName(name))
}

func interfaceName(name string) []byte {
	b := make([]byte, interfaceNameSize)
	copy(b, name)
	return b
}

func meta(text string, key expr.MetaKey, value []byte) Match {
	return Match{text, []expr.Any{&expr.Meta{Key: key, Register: 1}, equal(value)}}
}

func equal(value []byte) *expr.Cmp {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value}
}

// not turns a match, which ends with its comparison, around.
func not(m Match) Match {
	at := strings.LastIndexByte(m.Text, ' ') + 1
	m.Text = m.Text[:at] + "!= " + m.Text[at:]
	last := len(m.exprs) - 1
	turned := *m.exprs[last].(*expr.Cmp)
	turned.Op = expr.CmpOpNeq
	m.exprs[last] = &turned
	return m
}

// expressions are the rule as the kernel takes it.
func (r Rule) expressions() []expr.Any {
	var list []expr.Any
	for _, m := range r.Matches {
		list = append(list, m.exprs...)
	}
	if r.Redirect == 0 {
		return append(list, &expr.Verdict{Kind: expr.VerdictReturn})
	}
	return append(list,
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(r.Redirect)},
		&expr.Redir{RegisterProtoMin: 1},
	)
}

// String is the rule as nft writes it.
func (r Rule) String() string {
	var b strings.Builder
	for _, m := range r.Matches {
		b.WriteString(m.Text + " ")
	}
	if r.Redirect == 0 {
		b.WriteString("return")
	} else {
		fmt.Fprintf(&b, "redirect to :%d", r.Redirect)
	}
	return b.String()
}

// String is the table as nft writes it.
func (t Table) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table %s %s {\n", t.Family, tableName)
	for i, c := range t.Chains {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "\tchain %s {\n\t\ttype nat hook %[1]s priority %d; policy accept;\n", c.Name, priority)
		for _, r := range c.Rules {
			fmt.Fprintf(&b, "\t\t%s\n", r)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}
