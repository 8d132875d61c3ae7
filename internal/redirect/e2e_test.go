//go:build e2e

package redirect

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/chandler-proxy/chandler/internal/envoy/envoytest"
)

// The test is run again in processes of their own, which part says which they are: a
// pod and another machine each have a network, which ends with its process.
const (
	part   = "CHANDLER_REDIRECT_PART"
	pod    = "pod"
	other  = "other"
	nobody = "nobody"
)

func TestRedirected(t *testing.T) {
	switch os.Getenv(part) {
	case pod:
		inPod(t)
	case other:
		onOther(t)
	default:
		again(t, pod, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET})
	}
}

func TestNoCapability(t *testing.T) {
	if os.Getenv(part) != nobody {
		again(t, nobody, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Credential: &syscall.Credential{Uid: 65534, Gid: 65534}})
		return
	}
	tables, err := Rules(Default())
	if err != nil {
		t.Fatal(err)
	}
	if err := Apply(tables); !errors.Is(err, ErrCapability) {
		t.Errorf("Apply without the capability: %v, want %v", err, ErrCapability)
	}
}

func again(t *testing.T, name string, attr *syscall.SysProcAttr) {
	t.Helper()
	cmd := command(t, name, attr)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// command is this test in another process. The binary is read from where it is open
// already: not everyone may enter its folder.
func command(t *testing.T, name string, attr *syscall.SysProcAttr) *exec.Cmd {
	t.Helper()
	binary, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { binary.Close() })
	cmd := exec.Command("/proc/self/fd/3", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.ExtraFiles = []*os.File{binary}
	cmd.Env = append(os.Environ(), part+"="+name)
	cmd.Dir = "/"
	cmd.SysProcAttr = attr
	return cmd
}

func run(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		args := strings.Fields(line)
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
}

// A network is the addresses of the test in one family.
type network struct {
	tcp, podIP, otherIP, far, localhost, own string
}

var networks46 = []network{
	{"tcp4", "10.9.0.2", "10.9.0.1", "203.0.113.5", "127.0.0.1", OwnAddress4},
	{"tcp6", "fd09::2", "fd09::1", "2001:db8::5", "::1", OwnAddress6},
}

// inPod applies rules in the network of its own and opens connections from there and
// from the other machine.
func inPod(t *testing.T) {
	run(t, "ip link set lo up")
	machine := startOther(t)
	dialThere := func(address string) string { return machine.Ask("dial " + address) }
	run(t, fmt.Sprintf("ip link add eth0 type veth peer name eth0 netns %d", machine.Cmd.Process.Pid),
		"ip addr add 10.9.0.2/24 dev eth0", "ip addr add fd09::2/64 dev eth0 nodad", "ip link set eth0 up",
		"ip route add default via 10.9.0.1", "ip -6 route add default via fd09::1")
	if got := machine.Ask("serve"); got != "ok" {
		t.Fatal(got)
	}
	for _, n := range networks46 {
		for _, port := range []string{"15001", "15006"} {
			serve(t, n.tcp, port, func(c *net.TCPConn) string { return port + " for " + originalDestination(c) })
		}
		for _, port := range []string{"8080", "9090", "15020"} {
			serve(t, n.tcp, port, func(*net.TCPConn) string { return "workload" })
		}
	}
	if !HasIPv6() {
		t.Fatal("HasIPv6 knows nothing of IPv6")
	}

	all := Default()
	all.IPv6 = true
	apply(t, all)
	apply(t, all) // changes nothing
	t.Run("all", func(t *testing.T) {
		for _, n := range networks46 {
			workload, proxy, proxyGroup := as(n, 1000, 1000, ""), as(n, 1337, 1337, ""), as(n, 1000, 1337, "")
			for _, tt := range []struct {
				who, ip, port string
				dial          func(address string) string
				want          string
			}{
				{"workload to elsewhere", n.far, "443", workload, "15001 for " + net.JoinHostPort(n.far, "443")},
				{"workload to the other machine", n.otherIP, "8080", workload, "15001 for " + net.JoinHostPort(n.otherIP, "8080")},
				{"workload to localhost", n.localhost, "8080", workload, "workload"},
				{"workload to itself", n.podIP, "8080", workload, "workload"},
				{"proxy to the other machine", n.otherIP, "8080", proxy, "other"},
				{"proxy's group to the other machine", n.otherIP, "8080", proxyGroup, "other"},
				{"proxy to localhost", n.localhost, "8080", proxy, "workload"},
				{"proxy to its own pod, for a service", n.podIP, "8080", proxy, "15006 for " + net.JoinHostPort(n.podIP, "8080")},
				{"proxy to the workload", n.podIP, "8080", as(n, 1337, 1337, n.own), "workload"},
				{"other machine to the workload", n.podIP, "8080", dialThere, "15006 for " + net.JoinHostPort(n.podIP, "8080")},
				{"other machine to the agent", n.podIP, "15020", dialThere, "workload"},
			} {
				if got := tt.dial(net.JoinHostPort(tt.ip, tt.port)); got != tt.want {
					t.Errorf("%s: %s at %s: %s, want %s", n.tcp, tt.who, tt.ip, got, tt.want)
				}
			}
		}
	})

	some := all
	some.ExcludeInbound, some.ExcludeOutbound = []uint16{9090}, []uint16{8080}
	some.ExcludeNetworks = networks(t, "10.9.0.0/24,fd09::/64")
	apply(t, some)
	t.Run("excluded", func(t *testing.T) {
		for _, n := range networks46 {
			workload := as(n, 1000, 1000, "")
			for _, tt := range []struct {
				who, ip, port string
				dial          func(address string) string
				want          string
			}{
				{"workload to another port", n.far, "443", workload, "15001 for " + net.JoinHostPort(n.far, "443")},
				{"workload to an excluded network", n.otherIP, "9090", workload, "other"},
				{"other machine to an excluded port", n.podIP, "9090", dialThere, "workload"},
				{"other machine to another port", n.podIP, "8080", dialThere, "15006 for " + net.JoinHostPort(n.podIP, "8080")},
			} {
				if got := tt.dial(net.JoinHostPort(tt.ip, tt.port)); got != tt.want {
					t.Errorf("%s: %s at %s: %s, want %s", n.tcp, tt.who, tt.ip, got, tt.want)
				}
			}
		}
	})

	few := all
	few.ExcludeNetworks = nil
	few.IncludeInbound, few.IncludeOutbound = Ports{List: []uint16{9090}}, []uint16{443}
	few.IncludeNetworks = networks(t, "203.0.113.0/29,2001:db8::/126")
	few.ExcludeOutbound = []uint16{8443}
	apply(t, few)
	t.Run("included", func(t *testing.T) {
		for _, n := range networks46 {
			workload := as(n, 1000, 1000, "")
			for _, tt := range []struct {
				who, ip, port string
				dial          func(address string) string
				want          string
			}{
				{"workload to an included port", n.far, "443", workload, "15001 for " + net.JoinHostPort(n.far, "443")},
				{"workload to none", n.otherIP, "8080", workload, "other"},
				{"other machine to an included port", n.podIP, "9090", dialThere, "15006 for " + net.JoinHostPort(n.podIP, "9090")},
				{"other machine to another port", n.podIP, "8080", dialThere, "workload"},
			} {
				if got := tt.dial(net.JoinHostPort(tt.ip, tt.port)); got != tt.want {
					t.Errorf("%s: %s at %s: %s, want %s", n.tcp, tt.who, tt.ip, got, tt.want)
				}
			}
		}
		if got, want := as(networks46[0], 1000, 1000, "")("203.0.113.5:80"), "15001 for 203.0.113.5:80"; got != want {
			t.Errorf("workload to an included network: %s, want %s", got, want)
		}
	})

	aside := all
	aside.ExcludeInterfaces = []string{"eth0"}
	aside.IPv6 = false
	apply(t, aside)
	t.Run("interface", func(t *testing.T) {
		for _, n := range networks46 { // IPv6's table is gone
			if got := as(n, 1000, 1000, "")(net.JoinHostPort(n.otherIP, "8080")); got != "other" {
				t.Errorf("%s: workload to the other machine: %s, want other", n.tcp, got)
			}
			if got := dialThere(net.JoinHostPort(n.podIP, "8080")); got != "workload" {
				t.Errorf("%s: other machine to the workload: %s, want workload", n.tcp, got)
			}
		}
	})
}

// apply applies rules and looks that the kernel has as many.
func apply(t *testing.T, c Config) {
	t.Helper()
	tables, err := Rules(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := Apply(tables); err != nil {
		t.Fatal(err)
	}
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	have, err := conn.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	if len(have) != len(tables) {
		t.Fatalf("there are %d tables, want %d", len(have), len(tables))
	}
	for i, table := range tables {
		for _, chain := range table.Chains {
			rules, err := conn.GetRules(have[i], &nftables.Chain{Name: chain.Name})
			if err != nil {
				t.Fatal(err)
			}
			if len(rules) != len(chain.Rules) {
				t.Errorf("%s %s has %d rules, want %d", table.Family, chain.Name, len(rules), len(chain.Rules))
			}
		}
	}
}

// as opens connections in the name of a user and group, from an address if there is
// one, and returns what it is told there.
func as(n network, user, group int, from string) func(address string) string {
	return func(address string) string {
		told := make(chan string)
		go func() {
			// the kernel takes a socket for that of the thread's file system user; the
			// thread ends with the goroutine, because it is locked to it
			runtime.LockOSThread()
			if _, err := unix.SetfsgidRetGid(group); err != nil {
				told <- err.Error()
				return
			}
			if _, err := unix.SetfsuidRetUid(user); err != nil {
				told <- err.Error()
				return
			}
			var d net.Dialer
			if from != "" {
				d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))
			}
			told <- dial(d, address)
		}()
		return <-told
	}
}

// dial returns the line that whoever takes the connection writes.
func dial(d net.Dialer, address string) string {
	d.Timeout = 10 * time.Second
	c, err := d.Dial("tcp", address)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

// serve answers every connection with one line, until the process ends.
func serve(t *testing.T, tcp, port string, answer func(*net.TCPConn) string) {
	t.Helper()
	l, err := net.Listen(tcp, net.JoinHostPort("", port))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	t.Cleanup(func() {
		l.Close()
		<-served
	})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, answer(c.(*net.TCPConn)))
			c.Close()
		}
	}()
}

// originalDestination is where the client wanted to.
func originalDestination(c *net.TCPConn) string {
	raw, err := c.SyscallConn()
	if err != nil {
		return err.Error()
	}
	var to string
	if e := raw.Control(func(fd uintptr) {
		if c.LocalAddr().(*net.TCPAddr).IP.To4() != nil {
			var m *unix.IPv6Mreq // no more than room for a struct sockaddr_in
			if m, err = unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, unix.SO_ORIGINAL_DST); err == nil {
				to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(m.Multiaddr[4:8])), binary.BigEndian.Uint16(m.Multiaddr[2:])).String()
			}
			return
		}
		var m *unix.IPv6MTUInfo // begins with a struct sockaddr_in6
		if m, err = unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, unix.SO_ORIGINAL_DST); err == nil {
			port := binary.NativeEndian.AppendUint16(nil, m.Addr.Port)
			to = netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr), binary.BigEndian.Uint16(port)).String()
		}
	}); e != nil {
		return e.Error()
	}
	if err != nil {
		return err.Error()
	}
	return to
}

func startOther(t *testing.T) envoytest.Peer {
	t.Helper()
	return envoytest.StartPeer(t, command(t, other, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}))
}

// onOther is the process that is another machine.
func onOther(t *testing.T) {
	envoytest.Answer(func(question string) string {
		what, address, _ := strings.Cut(question, " ")
		switch what {
		case "serve":
			run(t, "ip link set lo up", "ip addr add 10.9.0.1/24 dev eth0", "ip addr add fd09::1/64 dev eth0 nodad", "ip link set eth0 up")
			for _, n := range networks46 {
				for _, port := range []int{8080, 9090} {
					serve(t, n.tcp, strconv.Itoa(port), func(*net.TCPConn) string { return "other" })
				}
			}
		case "dial":
			return dial(net.Dialer{}, address)
		}
		return "ok"
	})
}
