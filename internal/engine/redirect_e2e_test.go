//go:build e2e

package engine

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// ownNetwork says in the environment that the process has a network of its own, and
// which proxy is to run in it.
const ownNetwork = "CHANDLER_OWN_NETWORK"

// The marks that a client gives its connections: the rules of the network redirect
// those, and not what the proxy sends.
const (
	inbound  = 1
	outbound = 2
)

// TestRedirected is a sidecar whose connections are redirected, in a network of its
// own: the engine's, and Envoy's with the same configuration.
func TestRedirected(t *testing.T) {
	if proxy := os.Getenv(ownNetwork); proxy != "" {
		redirected(t, proxy)
		return
	}
	for _, proxy := range []string{"engine", "envoy"} {
		t.Run(proxy, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestRedirected$", "-test.v")
			cmd.Env = append(os.Environ(), ownNetwork+"="+proxy)
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		})
	}
}

// sidecarListeners are what our control plane and istiod give a sidecar: the two that
// take what is redirected, and those of services, which have no socket.
func sidecarListeners(t *testing.T, wildcard string) []proto.Message {
	in := parse(t, fmt.Sprintf(`
name: virtualInbound
address: {socket_address: {address: %q, port_value: 15006}}
traffic_direction: INBOUND
listener_filters_timeout: 0s
listener_filters:
- name: dst
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}
- name: tls
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}
  filter_disabled: {or_match: {rules: [{destination_port_range: {start: 9085, end: 9086}}, {destination_port_range: {start: 9086, end: 9087}}]}}
- name: http
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}
  filter_disabled: {destination_port_range: {start: 9085, end: 9086}}
filter_chains:
- name: own
  filter_chain_match: {destination_port: 15006}
  filters: [%[2]s]
- name: tls
  filter_chain_match: {destination_port: 9084, transport_protocol: tls, server_names: [app.example]}
  filters: [%[3]s]
- name: refused
  filter_chain_match: {destination_port: 9084, transport_protocol: tls}
  filters: [%[2]s]
- name: late
  filter_chain_match: {destination_port: 9085}
  filters: [%[3]s]
- name: rest
  filters: [%[3]s]`, wildcard, tcpTo("none"), tcpTo("inbound")), new(listenerv3.Listener))
	web := httpListener(t, "web", 1, "", "server_name: inbound").FilterChains[0]
	web.Name, web.FilterChainMatch = "web", &listenerv3.FilterChainMatch{ApplicationProtocols: []string{"http/1.1", "h2c"}}
	in.FilterChains = append(in.FilterChains, web)
	out := parse(t, fmt.Sprintf(`
name: virtualOutbound
address: {socket_address: {address: %q, port_value: 15001}}
traffic_direction: OUTBOUND
use_original_dst: true
filter_chains:
- name: own
  filter_chain_match: {destination_port: 15001}
  filters: [%s]
- name: rest
  filters: [%s]`, wildcard, tcpTo("none"), tcpTo("passthrough")), new(listenerv3.Listener))
	unbound := func(name, ip string, port int) *listenerv3.Listener {
		l := httpListener(t, name, port, "", "server_name: "+name)
		l.Address = socketAddress(ip, uint32(port))
		l.BindToPort = parse(t, "bind_to_port: false", new(listenerv3.Listener)).BindToPort
		return l
	}
	return []proto.Message{
		in, out, unbound("any", wildcard, 8000), unbound("one", "127.0.0.9", 8000), routeConfig(t, `
- match: {prefix: /outbound}
  route: {cluster: passthrough, timeout: 0s}
- match: {prefix: /}
  route: {cluster: inbound, timeout: 0s}`), staticCluster(t, "none"), parse(t, `
name: inbound
type: ORIGINAL_DST
lb_policy: CLUSTER_PROVIDED
upstream_bind_config: {source_address: {address: 127.0.0.6, port_value: 0}}`, new(clusterv3.Cluster)), parse(t, `
name: passthrough
type: ORIGINAL_DST
lb_policy: CLUSTER_PROVIDED`, new(clusterv3.Cluster)),
	}
}

func tcpTo(cluster string) string {
	return fmt.Sprintf(`{name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, cluster: %[1]s, stat_prefix: %[1]s}}`, cluster)
}

// redirected runs in the network of its own.
func redirected(t *testing.T, proxy string) {
	for _, line := range []string{
		"ip link set lo up",
		fmt.Sprintf("iptables -t nat -A OUTPUT -p tcp -m mark --mark %d -j REDIRECT --to-ports 15006", inbound),
		fmt.Sprintf("iptables -t nat -A OUTPUT -p tcp -m mark --mark %d -j REDIRECT --to-ports 15001", outbound),
	} {
		if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
	c := newControlPlane(t)
	c.set(sidecarListeners(t, "0.0.0.0")...)
	if proxy == "engine" {
		<-run(t, c).engine.Ready()
	} else {
		p := &pair{envoy: c, envoyLog: new(lockedBuffer)}
		p.startEnvoy(t, os.Getenv("CHANDLER_ENVOY"), mesh.Proxy{
			Role: mesh.Sidecar, Name: "a", Namespace: "b", Workload: "a", IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	}
	chain, key := certificate(t, "app.example")
	cert, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	ca := x509.NewCertPool()
	ca.AppendCertsFromPEM(chain)
	serveOnce(t, "127.0.0.1:9080", appliesHTTP)
	serveOnce(t, "127.0.0.1:9082", speaksFirst)
	serveOnce(t, "127.0.0.1:9083", echoes)
	serveOnce(t, "127.0.0.1:9084", secure(cert))
	serveOnce(t, "127.0.0.1:9085", speaksFirst)
	serveOnce(t, "127.0.0.1:9086", appliesHTTP)
	serveOnce(t, "127.0.0.1:8000", appliesHTTP)
	serveOnce(t, "127.0.0.9:8000", appliesHTTP)
	for name, tt := range map[string]struct {
		mark int
		to   string
		do   func(*testing.T, net.Conn) string
		want string
	}{
		"HTTP to the workload":                       {inbound, "127.0.0.1:9080", web("/"), "inbound: 127.0.0.6 HTTP/1.1"},
		"HTTP to a port without TLS inspection":      {inbound, "127.0.0.1:9086", web("/"), "inbound: 127.0.0.6 HTTP/1.1"},
		"bytes to the workload":                      {inbound, "127.0.0.1:9083", say("hello, you\n"), "hello, you\n"},
		"TLS to the workload":                        {inbound, "127.0.0.1:9084", sayTLS(ca, "app.example"), "hello\n"},
		"TLS with another server name":               {inbound, "127.0.0.1:9084", sayTLS(ca, "other.example"), "closed"},
		"a server that speaks first":                 {inbound, "127.0.0.1:9085", hear, "220 127.0.0.6\n"},
		"nobody listens":                             {inbound, "127.0.0.1:9099", say("hello\n"), "closed"},
		"to the proxy's own port":                    {0, "127.0.0.1:15006", say("hello\n"), "closed"},
		"HTTP to a service's port":                   {outbound, "127.0.0.1:8000", web("/outbound"), "any: 127.0.0.1 HTTP/1.1"},
		"HTTP to a service's address":                {outbound, "127.0.0.9:8000", web("/outbound"), "one: 127.0.0.1 HTTP/1.1"},
		"HTTP to what is not known":                  {outbound, "127.0.0.1:9080", web("/outbound"), ": 127.0.0.1 HTTP/1.1"},
		"bytes to what is not known":                 {outbound, "127.0.0.1:9083", say("hello, you\n"), "hello, you\n"},
		"a server that is not known speaks first":    {outbound, "127.0.0.1:9082", hear, "220 127.0.0.1\n"},
		"TLS to what is not known":                   {outbound, "127.0.0.1:9084", sayTLS(ca, "app.example"), "hello\n"},
		"nobody listens at what is not known":        {outbound, "127.0.0.1:9099", say("hello\n"), "closed"},
		"to the proxy's own port, from the workload": {0, "127.0.0.1:15001", say("hello\n"), "closed"},
	} {
		t.Run(name, func(t *testing.T) {
			d := net.Dialer{Timeout: 5 * time.Second, Control: func(_, _ string, c syscall.RawConn) error {
				return c.Control(func(fd uintptr) {
					if err := syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_MARK, tt.mark); err != nil {
						t.Error(err)
					}
				})
			}}
			conn, err := d.Dial("tcp", tt.to)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			if got := tt.do(t, conn); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// web asks for a path and returns who answered, from where it was asked, and how.
func web(path string) func(*testing.T, net.Conn) string {
	return func(t *testing.T, c net.Conn) string {
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n", path)
		all, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		head, body, _ := strings.Cut(string(all), "\r\n\r\n")
		server := ""
		for line := range strings.Lines(head) {
			if name, value, _ := strings.Cut(line, ":"); strings.EqualFold(name, "server") {
				server = strings.TrimSpace(value)
			}
		}
		return server + ": " + body
	}
}

func say(text string) func(*testing.T, net.Conn) string {
	return func(t *testing.T, c net.Conn) string {
		_, _ = io.WriteString(c, text)
		return hear(t, c)
	}
}

func hear(_ *testing.T, c net.Conn) string {
	line, err := bufio.NewReader(c).ReadString('\n')
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "silence"
	case err != nil:
		return "closed"
	}
	return line
}

func sayTLS(ca *x509.CertPool, name string) func(*testing.T, net.Conn) string {
	return func(t *testing.T, c net.Conn) string {
		return say("hello\n")(t, tls.Client(c, &tls.Config{RootCAs: ca, ServerName: name, NextProtos: []string{"http/1.1"}}))
	}
}

// appliesHTTP answers with the address that it was called from, and the protocol.
func appliesHTTP(c net.Conn) {
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return
	}
	fields := strings.Fields(line)
	text := fmt.Sprintf("%s %s", caller(c), fields[len(fields)-1])
	fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(text), text)
}

func caller(c net.Conn) netip.Addr { return netip.MustParseAddrPort(c.RemoteAddr().String()).Addr() }

func speaksFirst(c net.Conn) {
	fmt.Fprintf(c, "220 %s\n", caller(c))
	_, _ = io.Copy(io.Discard, c)
}

func echoes(c net.Conn) { _, _ = io.Copy(c, c) }

func secure(cert tls.Certificate) func(net.Conn) {
	return func(c net.Conn) { echoes(tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})) }
}

// serveOnce gives each connection to an address to serve, until the test ends.
func serveOnce(t *testing.T, addr string, serve func(net.Conn)) {
	l, err := net.Listen("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				defer c.Close()
				serve(c)
			}()
		}
	}()
}
