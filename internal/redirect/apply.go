package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

var (
	// ErrCapability is why Apply does nothing if the process may not change the
	// network of its namespace.
	ErrCapability = errors.New("the process lacks the capability NET_ADMIN")
	// ErrKernel is why Apply does nothing if the kernel cannot redirect.
	ErrKernel = errors.New("the kernel has no nf_tables with nat chains and redirect (CONFIG_NF_TABLES, CONFIG_NFT_NAT, CONFIG_NFT_REDIR)")
)

// Apply makes tables the ones of the process's network namespace that bear our
// name; one of a family that tables has none for is removed. It happens at once
// for all tables, or not at all. With IPv6 among them, [OwnAddress6] is added to
// the loopback interface. An error is [ErrCapability] or [ErrKernel] if that is why.
func Apply(tables []Table) error {
	conn, err := nftables.New()
	if err != nil {
		return because("open nf_tables", err)
	}
	for _, family := range []Family{IPv4, IPv6} {
		i := slices.IndexFunc(tables, func(t Table) bool { return t.Family == family })
		if i < 0 {
			// what is not there need not be removed, and a kernel without the family
			// would refuse even that
			old, err := conn.ListTablesOfFamily(number(family))
			if err != nil || !slices.ContainsFunc(old, func(t *nftables.Table) bool { return t.Name == tableName }) {
				continue
			}
			conn.DelTable(&nftables.Table{Name: tableName, Family: number(family)})
			continue
		}
		if family == IPv6 {
			if err := addLoopback(netip.MustParseAddr(OwnAddress6)); err != nil {
				return because("add "+OwnAddress6+" to the loopback interface", err)
			}
		}
		replace(conn, tables[i])
	}
	if err := conn.Flush(); err != nil {
		return because("replace table "+tableName, err)
	}
	return nil
}

// replace adds to the batch of conn what makes t the table of its name. Adding it
// first lets the removal succeed where there is none.
func replace(conn *nftables.Conn, t Table) {
	table := &nftables.Table{Name: tableName, Family: number(t.Family)}
	conn.AddTable(table)
	conn.DelTable(table)
	conn.AddTable(table)
	for _, c := range t.Chains {
		chain := conn.AddChain(&nftables.Chain{
			Name: c.Name, Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: hook(c.Name), Priority: nftables.ChainPriorityRef(priority),
		})
		for _, r := range c.Rules {
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: r.expressions()})
		}
	}
}

func number(f Family) nftables.TableFamily {
	if f == IPv6 {
		return nftables.TableFamilyIPv6
	}
	return nftables.TableFamilyIPv4
}

func hook(chain string) *nftables.ChainHook {
	if chain == "output" {
		return nftables.ChainHookOutput
	}
	return nftables.ChainHookPrerouting
}

// because says what an error of the kernel means.
func because(doing string, err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s: %w: %w", doing, ErrCapability, err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("%s: %w: %w", doing, ErrKernel, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// HasIPv6 says whether the network namespace of the process has any IPv6 address, be
// it that of the loopback interface.
func HasIPv6() bool {
	// the kernel's list, one address a line; there is none without IPv6
	list, err := os.ReadFile("/proc/self/net/if_inet6")
	return err == nil && len(list) > 0
}

// addLoopback adds an address to the loopback interface, unless it is there.
func addLoopback(addr netip.Addr) error {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	local := addr.AsSlice()
	attributes, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.IFA_LOCAL, Data: local},
		{Type: unix.IFA_ADDRESS, Data: local},
	})
	if err != nil {
		return err
	}
	// struct ifaddrmsg: family, length of the prefix, flags, scope, then the index of
	// the interface; the loopback interface has index 1 in every network namespace
	header := []byte{unix.AF_INET6, byte(addr.BitLen()), unix.IFA_F_NODAD, unix.RT_SCOPE_HOST, 0, 0, 0, 0}
	binary.NativeEndian.PutUint32(header[4:], 1)
	_, err = conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_NEWADDR, Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Replace},
		Data:   append(header, attributes...),
	})
	return err
}
