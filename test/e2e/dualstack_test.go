//go:build e2e

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/chandler-proxy/chandler/internal/envoy/envoytest"
)

// The test is run again in processes of their own, which dualStackPart says which they
// are: a pod and another machine each have a network, which ends with its process.
const dualStackPart = "CHANDLER_E2E_DUAL_STACK"

// TestDualStack: the sidecar of a pod with addresses of both families, to which all
// connections are redirected, serves its workload, and its workload's requests, over
// either.
func TestDualStack(t *testing.T) {
	switch part := os.Getenv(dualStackPart); part {
	case "envoy", "engine":
		inDualStackPod(t, part)
	case "other":
		onDualStackOther(t)
	default:
		for _, proxy := range []string{"envoy", "engine"} {
			t.Run(proxy, func(t *testing.T) {
				cmd := inNetwork(proxy)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
			})
		}
	}
}

// inNetwork is this test in a process with a network of its own.
func inNetwork(part string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], "-test.run=^TestDualStack$", "-test.v")
	cmd.Env = append(os.Environ(), dualStackPart+"="+part)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	return cmd
}

// dualStackMesh is the pod's service, of either family, and others on the other machine,
// one of which has addresses of one family alone.
const dualStackMesh = `
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: default}, spec: {selector: {app: web}, clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, "fd96::1"], ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 90, targetPort: 9090}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: six, namespace: default}, spec: {clusterIP: "fd96::2", clusterIPs: ["fd96::2"], ports: [{name: http, port: 80}, {name: tcp, port: 90}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: six, namespace: default, labels: {kubernetes.io/service-name: six}}, addressType: IPv6, ports: [{name: http, port: 8080}, {name: tcp, port: 9090}], endpoints: [{addresses: ["fd09::1"]}]}
---
{apiVersion: v1, kind: Service, metadata: {name: four, namespace: default}, spec: {clusterIP: 10.96.0.3, ports: [{name: http, port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: four, namespace: default, labels: {kubernetes.io/service-name: four}}, addressType: IPv4, ports: [{name: http, port: 8080}], endpoints: [{addresses: [10.9.0.1]}]}
`

// inDualStackPod is the pod: redirection, control plane, sidecar and workload.
func inDualStackPod(t *testing.T, proxy string) {
	other := envoytest.StartPeer(t, inNetwork("other"))
	ip(t, "link set lo up", fmt.Sprintf("link add eth0 type veth peer name eth0 netns %d", other.Cmd.Process.Pid),
		"addr add 10.9.0.2/24 dev eth0", "addr add fd09::2/64 dev eth0 nodad", "link set eth0 up",
		"route add default via 10.9.0.1", "-6 route add default via fd09::1")
	if got := other.Ask("serve"); got != "ok" {
		t.Fatal(got)
	}
	dualStackServers(t, "workload")
	if out, err := exec.Command(tool(t, "CHANDLER_BIN"), "redirect").CombinedOutput(); err != nil {
		t.Fatalf("redirect: %v\n%s", err, out)
	}
	dir, data := t.TempDir(), shortTempDir(t)
	m := &mesh{t: t, Dir: dir, Data: data}
	m.write("mesh.yaml", dualStackMesh)
	t.Cleanup(m.reap)
	const control = "127.0.0.1:15010"
	spawn(t, nil, tool(t, "CHANDLER_BIN"), "control", "--source", "dir:"+dir, "--xds", control, "--monitoring", "127.0.0.1:15014")
	// the group lets the sidecar pass redirection; the user may stay, who can read the files
	spawn(t, []string{"INSTANCE_IPS=10.9.0.2,fd09::2"}, "setpriv", "--regid", "1337", "--clear-groups", tool(t, "CHANDLER_BIN"),
		"agent", "--control", control, "--data", data, "--proxy", proxy, "--envoy", tool(t, "CHANDLER_ENVOY"),
		"--id", "sidecar~10.9.0.2~web-0.default~default.svc.cluster.local", "--labels", "app=web", "--redirected")
	eventually(t, "the sidecar is ready", func() error {
		a, err := get(direct(nil, ""), "http://127.0.0.1:15020/healthz/ready")
		if err == nil && a.status != http.StatusOK {
			err = fmt.Errorf("answer %+v", a)
		}
		return err
	})

	for _, tt := range []struct {
		what, at, host string
		ask            func(what string) string
		want           string
	}{
		{"web", "10.9.0.2:8080", "web", other.Ask, "200 workload 127.0.0.6 by a proxy"},
		{"web", "[fd09::2]:8080", "web", other.Ask, "200 workload ::6 by a proxy"},
		{"web", "[fd09::2]:7070", "web", other.Ask, "200 workload ::6 by a proxy"}, // of no service
		{"web", "10.9.0.2:7070", "web", other.Ask, "200 workload 127.0.0.6 by a proxy"},
		{"line", "10.9.0.2:9090", "", other.Ask, "workload 127.0.0.6"},
		{"line", "[fd09::2]:9090", "", other.Ask, "workload ::6"},

		{"web", "[fd96::2]:80", "six", dualStackAsk, "200 other fd09::2 by a proxy"},
		{"web", "[fd96::2]:80", "[fd96::2]", dualStackAsk, "200 other fd09::2 by a proxy"},
		{"web", "10.96.0.3:80", "four", dualStackAsk, "200 other 10.9.0.2 by a proxy"},
		{"web", "[fd09::1]:80", "four", dualStackAsk, "200 other 10.9.0.2 by a proxy"}, // the host counts
		{"line", "[fd96::2]:90", "", dualStackAsk, "other fd09::2"},
		{"line", "[fd09::1]:9090", "", dualStackAsk, "other fd09::2"}, // of no service
		{"line", "10.9.0.1:9090", "", dualStackAsk, "other 10.9.0.2"},
	} {
		if got := tt.ask(strings.TrimSpace(tt.what + " " + tt.at + " " + tt.host)); got != tt.want {
			t.Errorf("%s of %s for %s: %s, want %s", tt.what, tt.at, tt.host, got, tt.want)
		}
	}
}

func ip(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", line, err, out)
		}
	}
}

// dualStackServers answer with a name and who called, over HTTP at 8080 and 7070, and
// with a line at 9090, over either family.
func dualStackServers(t *testing.T, name string) {
	t.Helper()
	caller := func(addr string) netip.Addr { return netip.MustParseAddrPort(addr).Addr() }
	for _, network := range []string{"tcp4", "tcp6"} {
		for _, port := range []string{":8080", ":7070"} {
			l, err := net.Listen(network, port)
			if err != nil {
				t.Fatal(err)
			}
			s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprint(w, name, " ", caller(r.RemoteAddr))
			})}
			go s.Serve(l) // until the process ends
		}
		l, err := net.Listen(network, ":9090")
		if err != nil {
			t.Fatal(err)
		}
		go func() { // likewise
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintln(c, name, caller(c.RemoteAddr().String()))
				c.Close()
			}
		}()
	}
}

// dualStackAsk asks for "web ADDRESS HOST" or "line ADDRESS" and tells what it heard.
func dualStackAsk(question string) string {
	what, rest, _ := strings.Cut(question, " ")
	at, host, _ := strings.Cut(rest, " ")
	if what == "line" {
		d := net.Dialer{Timeout: patience}
		c, err := d.Dial("tcp", at)
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
	q, err := http.NewRequest(http.MethodGet, "http://"+at+"/", nil)
	if err != nil {
		return err.Error()
	}
	q.Host = host
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	res, err := c.Do(q)
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err.Error()
	}
	by := ""
	if res.Header.Get("Server") != "" {
		by = " by a proxy"
	}
	return fmt.Sprint(res.StatusCode, " ", string(body), by)
}

// onDualStackOther is the process that is another machine.
func onDualStackOther(t *testing.T) {
	envoytest.Answer(func(question string) string {
		if question != "serve" {
			return dualStackAsk(question)
		}
		ip(t, "link set lo up", "addr add 10.9.0.1/24 dev eth0", "addr add fd09::1/64 dev eth0 nodad", "link set eth0 up")
		dualStackServers(t, "other")
		return "ok"
	})
}
