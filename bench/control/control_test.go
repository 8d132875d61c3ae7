// Package control measures the control plane with many connected proxies:
//
//	go test -run '^$' -bench . ./bench/control
//
// The proxies are gRPC clients over loopback TCP in a process of their own, so
// that CPU time and memory are the control plane's. Start at [BenchmarkChange].
package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"
	extensionsapi "istio.io/api/extensions/v1alpha1"
	networkingapi "istio.io/api/networking/v1alpha3"
	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/chandler-proxy/chandler/internal/control"
	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
	"github.com/chandler-proxy/chandler/internal/xds"
)

var (
	proxies = flag.Int("proxies", 1000, "connected proxies")
	plugins = flag.Int("plugins", 50, "extensions")
)

// clientAddress in the environment makes this program the proxies.
const clientAddress = "CHANDLER_BENCH_XDS"

func TestMain(m *testing.M) {
	flag.Parse()
	if address := os.Getenv(clientAddress); address != "" {
		if err := runProxies(address); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// objects is a gateway with plugins, the first of which is in the given version.
func objects(version int) []resource.Object {
	gateway := &networkingv1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "gateway", Namespace: "istio-system"}}
	gateway.TypeMeta = metav1.TypeMeta{APIVersion: "networking.istio.io/v1", Kind: "Gateway"}
	gateway.Spec = networkingapi.Gateway{
		Selector: map[string]string{"istio": "ingressgateway"},
		Servers:  []*networkingapi.Server{{Port: &networkingapi.Port{Number: 8080, Name: "http", Protocol: "HTTP"}, Hosts: []string{"*"}}},
	}
	all := []resource.Object{gateway}
	for i := range *plugins {
		v := 0
		if i == 0 {
			v = version
		}
		all = append(all, plugin(i, v))
	}
	return all
}

func plugin(i, version int) *extensionsv1alpha1.WasmPlugin {
	cfg, err := structpb.NewStruct(map[string]any{"version": version, "text": strings.Repeat("x", 400)})
	if err != nil {
		panic(err)
	}
	p := &extensionsv1alpha1.WasmPlugin{ObjectMeta: metav1.ObjectMeta{
		Name: fmt.Sprintf("plugin-%02d", i), Namespace: "istio-system", ResourceVersion: fmt.Sprint(version),
	}}
	p.TypeMeta = metav1.TypeMeta{APIVersion: "extensions.istio.io/v1alpha1", Kind: "WasmPlugin"}
	p.Spec = extensionsapi.WasmPlugin{Url: fmt.Sprintf("oci://registry.example/plugin-%02d:v1", i), PluginConfig: cfg}
	return p
}

// changes is a source that delivers what is sent to it.
type changes chan source.Snapshot

func (c changes) Run(ctx context.Context, deliver func(source.Snapshot)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case snap := <-c:
			deliver(snap)
		}
	}
}

// A report is what the proxies say when all have what they wait for.
type report struct {
	When      time.Time // the last had it
	Bytes     int64     // received since the report before
	Resources int64
	Problem   string
}

// A fleet is a control plane and the process of its proxies.
type fleet struct {
	b       *testing.B
	changes changes
	out     *bufio.Scanner
	in      interface{ Write([]byte) (int, error) }
}

func newFleet(b *testing.B) *fleet {
	f := &fleet{b: b, changes: make(changes)}
	plane, err := control.Listen(b.Context(), control.Config{Source: f.changes, XDS: "127.0.0.1:0", Monitoring: "127.0.0.1:0"})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := plane.Run(ctx); err != nil {
			b.Error(err)
		}
	})
	f.changes <- source.Snapshot{Objects: objects(0)}

	cmd := exec.Command(os.Args[0], fmt.Sprintf("-proxies=%d", *proxies), fmt.Sprintf("-plugins=%d", *plugins))
	cmd.Env = append(os.Environ(), clientAddress+"="+plane.XDSAddr().String())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	f.in, f.out = in, bufio.NewScanner(out)
	b.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
		cancel()
		wg.Wait()
	})
	return f
}

func (f *fleet) tell(command string) {
	f.b.Helper()
	if _, err := f.in.Write([]byte(command + "\n")); err != nil {
		f.b.Fatal(err)
	}
}

func (f *fleet) report() report {
	f.b.Helper()
	if !f.out.Scan() {
		f.b.Fatalf("the proxies ended: %v", f.out.Err())
	}
	var r report
	if err := json.Unmarshal(f.out.Bytes(), &r); err != nil || r.Problem != "" {
		f.b.Fatalf("%s: %v", f.out.Text(), err)
	}
	return r
}

// cpu is the CPU time of this process.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// resident is the memory of this process in MB, once what is pooled and free has
// been given back.
func resident(b *testing.B) float64 {
	debug.FreeOSMemory() // pools are emptied at the second collection
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var kb float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kb); n == 1 {
			return kb / 1024
		}
	}
	b.Fatal("no VmRSS")
	return 0
}

// between is how long a change waits so that it is a lone one.
const between = 300 * time.Millisecond

// BenchmarkChange changes one of the extensions, once an iteration: what each
// proxy is sent, what it costs, and how long until the last has it.
func BenchmarkChange(b *testing.B) {
	alone := resident(b)
	f := newFleet(b)
	f.tell("connect")
	f.report()
	connected := resident(b)
	var latency, used time.Duration
	var bytes, resources int64
	version := 0
	for b.Loop() {
		time.Sleep(between)
		version++
		start, cpu0 := time.Now(), cpu(b)
		f.changes <- source.Snapshot{Objects: objects(version)}
		r := f.report()
		latency += r.When.Sub(start)
		bytes += r.Bytes
		resources += r.Resources
		time.Sleep(between) // until the acks have been taken
		used += cpu(b) - cpu0
	}
	n := float64(b.N)
	b.ReportMetric(latency.Seconds()*1000/n, "ms-to-last")
	b.ReportMetric(used.Seconds()*1000/n, "cpu-ms")
	b.ReportMetric(float64(bytes)/n, "B-sent")
	b.ReportMetric(float64(resources)/n/float64(*proxies), "resources/proxy")
	b.ReportMetric(alone, "MB-idle")
	b.ReportMetric(connected, "MB-connected")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkConnect has all proxies connect at once, with nothing.
func BenchmarkConnect(b *testing.B) { benchmarkConnect(b, "connect") }

// BenchmarkReconnect has all proxies come back at once, with what they have.
func BenchmarkReconnect(b *testing.B) { benchmarkConnect(b, "reconnect") }

func benchmarkConnect(b *testing.B, command string) {
	f := newFleet(b)
	f.tell("connect")
	f.report()
	var latency, used time.Duration
	var bytes int64
	for b.Loop() {
		f.tell("disconnect")
		f.report()
		time.Sleep(between)
		start, cpu0 := time.Now(), cpu(b)
		f.tell(command)
		r := f.report()
		latency += r.When.Sub(start)
		bytes += r.Bytes
		used += cpu(b) - cpu0
	}
	n := float64(b.N)
	b.ReportMetric(latency.Seconds()*1000/n, "ms-to-last")
	b.ReportMetric(used.Seconds()*1000/n, "cpu-ms")
	b.ReportMetric(float64(bytes)/n, "B-sent")
	b.ReportMetric(0, "ns/op")
}

// runProxies does what it is told on the standard input and reports on the
// standard output. After "connect" and "reconnect" it reports whenever another
// resource has reached every proxy.
func runProxies(address string) error {
	p := &proxyFleet{address: address, versions: make([]map[string]string, *proxies)}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		switch in.Text() {
		case "connect":
			p.versions = make([]map[string]string, *proxies)
			p.start()
		case "reconnect":
			p.start()
		case "disconnect":
			p.stop()
			p.report("")
		}
	}
	p.stop()
	return in.Err()
}

type proxyFleet struct {
	address  string
	versions []map[string]string // that each has, by name, of its extensions

	cancel    context.CancelFunc
	wg        sync.WaitGroup
	bytes     atomic.Int64
	resources atomic.Int64
	waiting   atomic.Int64 // proxies that lack something
	mu        sync.Mutex   // of standard output
}

func (p *proxyFleet) report(problem string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := report{When: time.Now(), Bytes: p.bytes.Swap(0), Resources: p.resources.Swap(0), Problem: problem}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func (p *proxyFleet) start() {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.waiting.Store(int64(*proxies))
	for i := range *proxies {
		p.wg.Go(func() {
			if err := p.proxy(ctx, i); err != nil && ctx.Err() == nil {
				p.report(err.Error())
			}
		})
	}
}

func (p *proxyFleet) stop() {
	if p.cancel != nil {
		p.cancel()
	}
	p.wg.Wait()
}

// has notes that one more proxy has what it waits for. Then the next change is
// waited for.
func (p *proxyFleet) has() {
	if p.waiting.Add(-1) == 0 {
		p.waiting.Store(int64(*proxies))
		p.report("")
	}
}

// proxy connects and reads until ctx ends.
func (p *proxyFleet) proxy(ctx context.Context, i int) error {
	conn, err := grpc.NewClient("passthrough:///"+p.address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(p.dial))
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	initial := p.versions[i]
	p.versions[i] = make(map[string]string)
	for _, r := range subscriptions(i, initial) {
		if err := stream.Send(r); err != nil {
			return err
		}
	}
	return p.read(stream, i, initial)
}

// probe is an extension that there is not: its removal says that all else has been sent.
const probe = "probe"

func subscriptions(i int, initial map[string]string) []*discoveryv3.DeltaDiscoveryRequest {
	node := &corev3.Node{
		Id: fmt.Sprintf("router~127.0.0.1~gateway-%d.istio-system~istio-system.svc.cluster.local", i),
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			"NAMESPACE": structpb.NewStringValue("istio-system"),
			"LABELS": structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
				"istio": structpb.NewStringValue("ingressgateway"),
			}}),
		}},
	}
	names := []string{probe}
	for n := range *plugins {
		names = append(names, fmt.Sprintf("extensions.istio.io/wasmplugin/istio-system.plugin-%02d", n))
	}
	return []*discoveryv3.DeltaDiscoveryRequest{
		{Node: node, TypeUrl: xds.ClusterType},
		{TypeUrl: xds.ListenerType},
		{TypeUrl: xds.ExtensionType, ResourceNamesSubscribe: names, InitialResourceVersions: initial},
	}
}

func (p *proxyFleet) read(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, i int, initial map[string]string) error {
	connected := false
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}); err != nil {
			return err
		}
		if r.GetTypeUrl() != xds.ExtensionType {
			continue
		}
		for _, res := range r.GetResources() {
			p.versions[i][res.GetName()] = res.GetVersion()
			p.resources.Add(1)
			if connected {
				p.has()
			}
		}
		if slices.Contains(r.GetRemovedResources(), probe) {
			for name, version := range initial {
				p.versions[i][name] = version
			}
			if got := len(p.versions[i]); got != *plugins {
				return fmt.Errorf("proxy has %d extensions", got)
			}
			connected = true
			p.has()
		}
	}
}

func (p *proxyFleet) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, errors.Join(errors.New("dial"), err)
	}
	return counted{conn, &p.bytes}, nil
}

// counted counts what is read.
type counted struct {
	net.Conn
	bytes *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.bytes.Add(int64(n))
	return n, err
}
