package inject

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/chandler-proxy/chandler/internal/probe"
)

func parsePod(t testing.TB, text string) *corev1.Pod {
	t.Helper()
	var pod corev1.Pod
	if err := yaml.UnmarshalStrict([]byte(text), &pod); err != nil {
		t.Fatal(err)
	}
	return &pod
}

func TestRefused(t *testing.T) {
	annotation := func(name, value string) string {
		text, _ := json.Marshal(map[string]string{name: value})
		return `{metadata: {annotations: ` + string(text) + `}, spec: {containers: [{name: a, image: a}]}}`
	}
	for name, tt := range map[string]struct{ pod, want string }{
		"memory":     {annotation("sidecar.istio.io/proxyMemory", "-1"), `metadata.annotations[sidecar.istio.io/proxyMemory]: "-1" is not an amount of memory; write one such as 128Mi`},
		"mode":       {annotation("sidecar.istio.io/interceptionMode", "TPROXY"), `metadata.annotations[sidecar.istio.io/interceptionMode]: "TPROXY" is neither REDIRECT nor NONE; leave it out to have connections redirected`},
		"ports":      {annotation("traffic.sidecar.istio.io/excludeInboundPorts", "80-90"), `metadata.annotations[traffic.sidecar.istio.io/excludeInboundPorts]: "80-90" is not a port, a number from 1 to 65535; separate ports by commas, as in 80,443`},
		"all ports":  {annotation("traffic.sidecar.istio.io/includeInboundPorts", "all"), `metadata.annotations[traffic.sidecar.istio.io/includeInboundPorts]: "all" is not a port, a number from 1 to 65535; separate ports by commas, as in 80,443, or write * for all`},
		"address":    {annotation("traffic.sidecar.istio.io/excludeOutboundIPRanges", "10.0.0.1"), `metadata.annotations[traffic.sidecar.istio.io/excludeOutboundIPRanges]: "10.0.0.1" is an address, not a network; write 10.0.0.1/32`},
		"networks":   {annotation("traffic.sidecar.istio.io/includeOutboundIPRanges", "lan"), `metadata.annotations[traffic.sidecar.istio.io/includeOutboundIPRanges]: "lan" is not a network such as 10.0.0.0/8; separate networks by commas, as in 10.0.0.0/8,fd00::/8, or write *`},
		"interfaces": {annotation("traffic.sidecar.istio.io/excludeInterfaces", "eth0/1"), `metadata.annotations[traffic.sidecar.istio.io/excludeInterfaces]: "eth0/1" is not the name of a network interface; separate names by commas, as in eth1,net1`},
		"log level":  {annotation("sidecar.istio.io/logLevel", "loud"), `metadata.annotations[sidecar.istio.io/logLevel]: "loud" is unknown; write one of trace, debug, info, warning, error, critical, off`},
		"boolean":    {annotation("sidecar.istio.io/rewriteAppHTTPProbers", "no"), `metadata.annotations[sidecar.istio.io/rewriteAppHTTPProbers]: "no" is neither true nor false`},
		"number":     {annotation("readiness.status.sidecar.istio.io/periodSeconds", "0"), `metadata.annotations[readiness.status.sidecar.istio.io/periodSeconds]: "0" is not a whole number of at least 1`},
		"volumes":    {annotation("sidecar.istio.io/userVolume", "modules"), `metadata.annotations[sidecar.istio.io/userVolume]: not the JSON of a list: invalid character 'm' looking for beginning of value; write as in [{"name": "data", ...}]`},
		"template":   {annotation("inject.istio.io/templates", "gateway"), `metadata.annotations[inject.istio.io/templates]: template "gateway" is unknown; the only one is sidecar, and gateways are made from Gateway resources`},
		"no Envoy":   {annotation("sidecar.chandler.io/proxy", "envoy"), "metadata.annotations[sidecar.chandler.io/proxy]: the control plane knows no image with an Envoy; name one in metadata.annotations[sidecar.istio.io/proxyImage]"},
		"volume": {`{spec: {containers: [{name: a, image: a}], volumes: [{name: chandler-tmp, emptyDir: {}}]}}`,
			"spec.volumes[chandler-tmp]: the sidecar has a volume of this name; rename it"},
		"pod's user": {`{spec: {securityContext: {runAsUser: 1337}, containers: [{name: a, image: a}]}}`,
			"spec.securityContext.runAsUser: 1337 is the sidecar's user: what the container opens would pass the sidecar by; choose another"},
		"container's user": {`{spec: {containers: [{name: a, image: a, securityContext: {runAsUser: 1337}}]}}`,
			"spec.containers[a].securityContext.runAsUser: 1337 is the sidecar's user: what the container opens would pass the sidecar by; choose another"},
		"sidecar's user": {`{spec: {containers: [{name: a, image: a}, {name: istio-proxy, securityContext: {runAsUser: 1000}}]}}`,
			"spec.containers[istio-proxy].securityContext: user and group of the sidecar must be 1337: redirection knows its connections by them; leave runAsUser and runAsGroup out"},
	} {
		t.Run(name, func(t *testing.T) {
			out, _, err := Pod(parsePod(t, tt.pod), options(t, image))
			if _, ok := errors.AsType[*Refusal](err); !ok || err.Error() != tt.want {
				t.Errorf("error %v, want %s", err, tt.want)
			}
			if out != nil {
				t.Error("there is a pod with the error")
			}
		})
	}
}

// TestNotRefused: without redirection, nothing depends on users.
func TestNotRefused(t *testing.T) {
	for name, text := range map[string]string{
		"user":           `{spec: {securityContext: {runAsUser: 1337}, containers: [{name: a, image: a}]}}`,
		"sidecar's user": `{spec: {containers: [{name: a, image: a}, {name: istio-proxy, securityContext: {runAsUser: 1000}}]}}`,
	} {
		t.Run(name, func(t *testing.T) {
			pod := parsePod(t, text)
			pod.Annotations = map[string]string{"sidecar.istio.io/interceptionMode": "NONE"}
			if _, _, err := Pod(pod, options(t, image)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestProbes: the agent can read what it is given.
func TestProbes(t *testing.T) {
	pod := parsePod(t, `{spec: {containers: [
{name: a, image: a, ports: [{name: web, containerPort: 80}], livenessProbe: {httpGet: {port: web, path: /}}, readinessProbe: {grpc: {port: 70000}}},
{name: b, image: b, lifecycle: {preStop: {httpGet: {port: 81}}}}]}}`)
	out, _, err := Pod(pod, options(t, image))
	if err != nil {
		t.Fatal(err)
	}
	var set probe.Set
	for _, e := range out.Spec.InitContainers[1].Env {
		if e.Name == probe.Variable {
			if set, err = probe.ParseSet(e.Value); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(set) != 2 || set["/app-health/a/livez"].HTTPGet.Port.IntVal != 80 || set["/app-lifecycle/b/prestopz"].HTTPGet.Port.IntVal != 81 {
		t.Errorf("the agent has %v", set)
	}
	// a port that cannot be is for the API server to refuse
	if p := out.Spec.Containers[0].ReadinessProbe; p.GRPC == nil || p.GRPC.Port != 70000 {
		t.Errorf("a probe that cannot be became %v", p)
	}
}

// TestPullPolicy: what the API server makes of the image auto before it asks, which is
// none, does not count; what a user says does.
func TestPullPolicy(t *testing.T) {
	for proxy, want := range map[string]corev1.PullPolicy{
		`{name: istio-proxy, image: auto, imagePullPolicy: Always}`:   corev1.PullIfNotPresent,
		`{name: istio-proxy, image: auto, imagePullPolicy: Never}`:    corev1.PullNever,
		`{name: istio-proxy, image: own:v1, imagePullPolicy: Always}`: corev1.PullAlways,
	} {
		out, _, err := Pod(parsePod(t, `{spec: {containers: [{name: a, image: a}, `+proxy+`]}}`), options(t, image))
		if err != nil {
			t.Fatal(err)
		}
		if got := out.Spec.InitContainers[1]; got.Name != proxyName || got.ImagePullPolicy != want {
			t.Errorf("%s: %s has policy %s, want %s", proxy, got.Name, got.ImagePullPolicy, want)
		}
	}
}

func TestWorkload(t *testing.T) {
	owned := func(kind, name string, labels map[string]string) *corev1.Pod {
		yes := true
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: name + "-", Labels: labels,
			OwnerReferences: []metav1.OwnerReference{{Kind: kind, Name: name, Controller: &yes}}}}
	}
	for _, tt := range []struct {
		pod  *corev1.Pod
		want string
	}{
		{&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "curl"}}, "curl"},
		{&corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "debug-"}}, "debug"},
		{owned("ReplicaSet", "httpbin-66cdbdb6c5", map[string]string{"pod-template-hash": "66cdbdb6c5"}), "httpbin"},
		{owned("ReplicaSet", "own", nil), "own"},
		{owned("StatefulSet", "db", nil), "db"},
		{owned("Job", "report-29012345", nil), "report"},
		{owned("Job", "migrate-1", nil), "migrate-1"},
	} {
		if got := Workload(tt.pod); got != tt.want {
			t.Errorf("the workload of %v is %s, want %s", tt.pod.OwnerReferences, got, tt.want)
		}
	}
}

func TestOptions(t *testing.T) {
	for text, want := range map[string]string{
		`{}`:                                     "image is required",
		`{"image": "i", "proxy": "nginx"}`:       `proxy "nginx" is neither engine nor envoy`,
		`{"image": "i", "proxy": "envoy"}`:       "envoyImage is required for the proxy envoy",
		`{"image": "i", "pullPolicy": "Often"}`:  `pullPolicy "Often" is none of Always, IfNotPresent, Never`,
		`{"image": "i", "control": "localhost"}`: "control: address localhost: missing port in address",
	} {
		o, err := ReadOptions([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.WithDefaults(); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
	if _, err := ReadOptions([]byte("imge: i")); err == nil || !strings.Contains(err.Error(), `unknown field "imge"`) {
		t.Errorf("a field that does not exist: %v", err)
	}
}

// FuzzPod: whatever a pod and its annotations are, Pod panics not, leaves its input
// alone, is as good twice as once, and its patch makes what it returns.
func FuzzPod(f *testing.F) {
	pod := `{"metadata": {}, "spec": {"containers": [{"name": "a", "image": "a", "livenessProbe": {"httpGet": {"port": 80}}}, {"name": "istio-proxy", "image": "auto"}]}}`
	for name, value := range map[string]string{
		"sidecar.istio.io/proxyCPU": "100m", "sidecar.istio.io/interceptionMode": "NONE", "traffic.sidecar.istio.io/includeInboundPorts": "*",
		"traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.0.0.0/8", "sidecar.istio.io/userVolume": `{"a": {}}`,
		"sidecar.istio.io/userVolumeMount": `[{"name": "a", "mountPath": "/a"}]`, "sidecar.chandler.io/proxy": "envoy",
		"readiness.status.sidecar.istio.io/periodSeconds": "3", "sidecar.istio.io/status": "{}", "prometheus.io/scrape": "true",
	} {
		f.Add([]byte(pod), name, value)
	}
	o := options(f, `{"image": "i", "envoyImage": "e", "pullSecrets": ["s"]}`)
	f.Fuzz(func(t *testing.T, text []byte, name, value string) {
		var pod corev1.Pod
		if json.Unmarshal(text, &pod) != nil {
			return
		}
		metav1.SetMetaDataAnnotation(&pod.ObjectMeta, name, value)
		before := pod.DeepCopy()
		once, _, err := Pod(&pod, o)
		if diff := cmp.Diff(before, &pod); diff != "" {
			t.Fatalf("the input changed (-before +after):\n%s", diff)
		}
		if err != nil {
			return
		}
		twice, _, err := Pod(once, o)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(once, twice); diff != "" {
			t.Fatalf("again (-once +twice):\n%s", diff)
		}
		checkPatch(t, &pod, once)
	})
}

// checkPatch wants the difference of a and b to make b of a.
func checkPatch(t *testing.T, a, b any) {
	t.Helper()
	ops, err := difference(a, b)
	if err != nil {
		t.Fatal(err)
	}
	from, err := generic(a)
	if err != nil {
		t.Fatal(err)
	}
	want, err := generic(b)
	if err != nil {
		t.Fatal(err)
	}
	got, err := patch(from, ops)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("patched (-want +got):\n%s", diff)
	}
}
