//go:build e2e

package kube

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/chandler-proxy/chandler/internal/envoy/envoytest"
	"github.com/chandler-proxy/chandler/test/kube"
)

var (
	plugins = flag.Int("plugins", 1000, "WasmPlugins")
	pods    = flag.Int("pods", 5000, "pods")
)

// settle is how long the control plane is left alone before its memory is looked at,
// and for which calls of one that has nothing to do are counted.
const settle = 10 * time.Second

// BenchmarkLoad starts the control plane where there is nothing, and where there are
// many plugins and pods. The columns:
//
//	ms-ready          from its start until it would serve proxies
//	ms-proxy          from then until a sidecar has its listeners and its extension
//	s-told            from the start until every plugin's status is written
//	MB, MB-own        resident, and what of it is not pages of the binary
//	MB-peak           the most that was ever resident
//	calls-ready       requests to the API server until then: lists, watches and others
//	calls-told        the same until every status is written
//	calls-idle        in a minute with nothing to do
//	MB-read           bytes of answers until ready, uncompressed
func BenchmarkLoad(b *testing.B) {
	c, err := kube.Start(b.Context(), kube.Config{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := c.Stop(); err != nil {
			b.Error(err)
		}
	})
	for _, file := range []string{"namespace", "crds-istio", "crds-gateway-api"} {
		c.Kubectl(b, "apply", "--server-side", "-f", "../../deploy/base/"+file+".yaml")
	}
	c.Kubectl(b, "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
	b.Run("nothing", func(b *testing.B) { load(b, c, 0, "") })
	o := fill(b, c, *plugins, *pods)
	b.Run(fmt.Sprintf("%d_plugins_%d_pods", *plugins, *pods), func(b *testing.B) { load(b, c, *plugins, o.sidecar(0)) })
}

// load measures a control plane that finds that many plugins, and the sidecar with
// that node id, if there is one.
func load(b *testing.B, c *kube.Cluster, plugins int, sidecar string) {
	for b.Loop() {
		counter := startCounter(b, c)
		began := time.Now()
		p := startControl(b, c, counter.address)
		p.ready(b)
		b.ReportMetric(milliseconds(time.Since(began)), "ms-ready")
		b.ReportMetric(float64(counter.calls.Load()), "calls-ready")
		b.ReportMetric(float64(counter.bytes.Load())/1e6, "MB-read")
		if sidecar != "" {
			asked := time.Now()
			p.configure(b, c, sidecar)
			b.ReportMetric(milliseconds(time.Since(asked)), "ms-proxy")
			told(b, c, plugins)
			b.ReportMetric(time.Since(began).Seconds(), "s-told")
			b.ReportMetric(float64(counter.calls.Load()), "calls-told")
		}
		time.Sleep(settle) // what came last is still being worked at
		before := counter.calls.Load()
		time.Sleep(settle)
		b.ReportMetric(float64(counter.calls.Load()-before)*float64(time.Minute/settle), "calls-idle")
		b.ReportMetric(p.status(b, "VmRSS"), "MB")
		b.ReportMetric(p.status(b, "RssAnon"), "MB-own")
		b.ReportMetric(p.status(b, "VmHWM"), "MB-peak")
		b.Logf("calls by verb and resource:\n%s", counter.tell())
		p.stop(b)
	}
	b.ReportMetric(0, "ns/op")
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// A process is a control plane.
type process struct {
	pid    int
	client *http.Client
	stop   func(b *testing.B)
}

// startControl runs one as the Deployment does, with its ports on loopback of the
// cluster's network.
func startControl(b *testing.B, c *kube.Cluster, api string) *process {
	binary := os.Getenv("CHANDLER_BIN")
	if binary == "" {
		b.Fatal("CHANDLER_BIN is not set: run make bench")
	}
	config := filepath.Join(b.TempDir(), "kubeconfig")
	text := fmt.Sprintf("{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: \"http://%s\"}}], contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {}}]}", api)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.Context()))
	cmd := c.Command(ctx, binary, "control", "--source=kube", "--kubeconfig="+config, "--root-namespace=istio-system",
		"--secure-xds=127.0.0.1:15012", "--webhook=127.0.0.1:15017", "--gateways=true")
	cmd.Env = append(cmd.Env, "POD_NAME=bench", "POD_IP=127.0.0.1", "GOMEMLIMIT=1GiB") // the Deployment's
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	log, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	p := &process{pid: cmd.Process.Pid, client: &http.Client{Transport: &http.Transport{DialContext: c.Dial, DisableKeepAlives: true}}}
	stopped := false
	p.stop = func(b *testing.B) {
		if stopped {
			return
		}
		stopped = true
		cancel()
		err := cmd.Wait()
		log.Close()
		if b.Failed() || err != nil && cmd.ProcessState.ExitCode() != 0 {
			text, _ := os.ReadFile(log.Name())
			b.Errorf("control plane: %v\n%s", err, text[max(0, len(text)-4000):])
		}
	}
	b.Cleanup(func() { p.stop(b) })
	return p
}

// ready waits until the control plane would serve proxies.
func (p *process) ready(b *testing.B) {
	wait(b, "control plane is ready", func() error {
		resp, err := p.client.Get("http://127.0.0.1:15014/ready")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			text, _ := io.ReadAll(resp.Body)
			return fmt.Errorf("%s: %s", resp.Status, text)
		}
		return nil
	})
}

// configure plays a sidecar: it asks for its listeners, and then for the extension
// that is for it alone.
func (p *process) configure(b *testing.B, c *kube.Cluster, id string) {
	conn, err := grpc.NewClient("passthrough:///127.0.0.1:15010", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return c.Dial(ctx, "tcp", address) }),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	labels, err := structpb.NewStruct(map[string]any{"NAMESPACE": "load-0", "LABELS": map[string]any{"app": "app-0"}})
	if err != nil {
		b.Fatal(err)
	}
	ask := func(kind string, names ...string) {
		b.Helper()
		if err := s.Send(&discoveryv3.DeltaDiscoveryRequest{
			Node: &corev3.Node{Id: id, Metadata: labels}, TypeUrl: "type.googleapis.com/" + kind, ResourceNamesSubscribe: names,
		}); err != nil {
			b.Fatal(err)
		}
		r, err := s.Recv()
		if err != nil {
			b.Fatal(err)
		}
		if len(r.GetResources()) == 0 {
			b.Fatalf("no %s %v for %s", kind, names, id)
		}
		if err := s.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}); err != nil {
			b.Fatal(err)
		}
	}
	ask("envoy.config.listener.v3.Listener")
	ask("envoy.config.core.v3.TypedExtensionConfig", "extensions.istio.io/wasmplugin/load-0.plugin-0")
}

// status is a value of /proc/PID/status in MB.
func (p *process) status(b *testing.B, key string) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		b.Fatal(err)
	}
	s := bufio.NewScanner(strings.NewReader(string(text)))
	for s.Scan() {
		var kb float64
		if n, _ := fmt.Sscanf(s.Text(), key+": %f kB", &kb); n == 1 {
			return kb / 1024
		}
	}
	b.Fatalf("no %s of process %d", key, p.pid)
	return 0
}

// told waits until the status of that many plugins is written.
func told(b *testing.B, c *kube.Cluster, plugins int) {
	wait(b, "status of every plugin", func() error {
		out, err := c.TryKubectl(b.Context(), "", "get", "wasmplugins", "-A", "-o", `jsonpath={range .items[*]}{.status.conditions[?(@.type=="Programmed")].lastTransitionTime}{"\n"}{end}`)
		if err != nil {
			return err
		}
		if n := len(strings.Fields(out)); n < plugins {
			return fmt.Errorf("%d of %d have one", n, plugins)
		}
		return nil
	})
}

// wait calls do until it has no error, but not for ever.
func wait(b *testing.B, what string, do func() error) {
	b.Helper()
	envoytest.Wait{Patience: 3 * time.Minute, Every: 5 * time.Millisecond}.Until(b, what, do)
}
