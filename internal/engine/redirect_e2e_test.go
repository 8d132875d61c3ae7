//go:build e2e

package engine

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
)

// TestRedirected is a sidecar whose connections iptables redirects, in a network
// of its own.
func TestRedirected(t *testing.T) {
	if os.Getenv("CHANDLER_OWN_NETWORK") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestRedirected$", "-test.v")
		cmd.Env = append(os.Environ(), "CHANDLER_OWN_NETWORK=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	for _, line := range []string{
		"ip link set lo up",
		"iptables -t nat -A OUTPUT -p tcp -s 127.0.0.6 -j ACCEPT", // what the proxy sends to the application
		"iptables -t nat -A OUTPUT -p tcp --dport 9080:9081 -j REDIRECT --to-ports 15006",
		"iptables -t nat -A OUTPUT -p tcp --dport 8000 -j REDIRECT --to-ports 15001",
	} {
		if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
	c := newControlPlane(t)
	inbound := httpListener(t, "virtualInbound", 15006, "", "")
	inbound.ListenerFilters = parse(t, `
listener_filters:
- name: dst
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}
- name: http
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}`, new(listenerv3.Listener)).ListenerFilters
	inbound.FilterChains[0].FilterChainMatch = &listenerv3.FilterChainMatch{ApplicationProtocols: []string{"http/1.1", "h2c"}}
	outbound := parse(t, `
name: virtualOutbound
address: {socket_address: {address: 0.0.0.0, port_value: 15001}}
use_original_dst: true
filter_chains:
- filters:
  - name: tcp
    typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, cluster: none, stat_prefix: none}`, new(listenerv3.Listener))
	service := httpListener(t, "service", 8000, "", "server_name: outbound")
	service.Address = socketAddress("0.0.0.0", 8000)
	service.BindToPort = parse(t, "bind_to_port: false", new(listenerv3.Listener)).BindToPort
	backendCluster := parse(t, `
name: backend
type: ORIGINAL_DST
lb_policy: CLUSTER_PROVIDED
upstream_bind_config: {source_address: {address: 127.0.0.6, port_value: 0}}`, new(clusterv3.Cluster))
	serveAt(t, "127.0.0.1:9080", "first")
	serveAt(t, "127.0.0.1:9081", "second")
	serveAt(t, "127.0.0.1:8000", "third")
	c.set(backendCluster, staticCluster(t, "none"), inbound, outbound, service, routeConfig(t, toBackend))
	h := run(t, c)
	<-h.engine.Ready()
	for port, want := range map[int]string{9080: "first envoy", 9081: "second envoy", 8000: "third outbound"} {
		resp, body := exchange(t, port, get("/"))
		if got := body + " " + resp.Header.Get("Server"); got != want {
			t.Errorf("port %d: got %q, want %q", port, got, want)
		}
	}
}

func serveAt(t *testing.T, addr, text string) {
	l, err := net.Listen("tcp", addr)
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
			if from := netip.MustParseAddrPort(c.RemoteAddr().String()); from.Addr().String() != "127.0.0.6" {
				t.Errorf("the application was called from %s", from)
			}
			buf := make([]byte, 4096)
			n, _ := c.Read(buf)
			if !strings.HasPrefix(string(buf[:n]), "GET / ") {
				t.Errorf("the application got %q", buf[:n])
			}
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(text), text)
			c.Close()
		}
	}()
}
