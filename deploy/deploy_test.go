package deploy_test

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/chandler-proxy/chandler/deploy"
	"github.com/chandler-proxy/chandler/internal/cli"
	"github.com/chandler-proxy/chandler/internal/inject"
	"github.com/chandler-proxy/chandler/internal/inject/gateway"
)

var update = flag.Bool("update", false, "write testdata anew")

// with returns the default options, changed.
func with(change func(*deploy.Options)) deploy.Options {
	o := deploy.Defaults()
	change(&o)
	return o
}

func objects(t *testing.T, o deploy.Options) []*unstructured.Unstructured {
	t.Helper()
	out, err := deploy.Objects(o)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// typed are the objects of one kind, decoded strictly.
func typed[T any](t *testing.T, all []*unstructured.Unstructured, kind string) []*T {
	t.Helper()
	var out []*T
	for _, o := range all {
		if o.GetKind() != kind {
			continue
		}
		into := new(T)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, into, true); err != nil {
			t.Errorf("%s %s: %v", kind, o.GetName(), err)
		}
		out = append(out, into)
	}
	if len(out) == 0 {
		t.Fatalf("there is no %s", kind)
	}
	return out
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// TestObjects lists what is installed, in order.
func TestObjects(t *testing.T) {
	var out strings.Builder
	for _, tt := range []struct {
		name string
		opts deploy.Options
	}{
		{"all", deploy.Defaults()},
		{"--crds=false", with(func(o *deploy.Options) { o.CRDs = false })},
		{"--gateway-api=false", with(func(o *deploy.Options) { o.GatewayAPI = false })},
		{"the least, in another namespace", with(func(o *deploy.Options) {
			o.Namespace, o.Revision = "mesh", "canary"
			o.CRDs, o.GatewayAPI, o.IngressGateway, o.PullSecrets = false, false, false, false
		})},
	} {
		fmt.Fprintf(&out, "# %s\n", tt.name)
		for _, o := range objects(t, tt.opts) {
			fmt.Fprintln(&out, strings.TrimSpace(fmt.Sprintf("%s %s %s", o.GetKind(), o.GetNamespace(), o.GetName())))
		}
	}
	golden(t, "objects.txt", out.String())
}

// TestDefaultsChangeNothing: what install prints is what kustomize takes.
func TestDefaultsChangeNothing(t *testing.T) {
	var k struct{ Resources []string }
	text, err := os.ReadFile("base/kustomization.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &k); err != nil {
		t.Fatal(err)
	}
	var want []map[string]any
	for _, name := range k.Resources {
		f, err := os.Open(filepath.Join("base", name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		want = append(want, documents(t, f)...)
	}
	var printed bytes.Buffer
	if err := deploy.Write(&printed, objects(t, deploy.Defaults())); err != nil {
		t.Fatal(err)
	}
	got := documents(t, &printed)
	if len(got) != len(want) {
		t.Fatalf("install prints %d objects, base has %d", len(got), len(want))
	}
	for i := range want {
		if diff := cmp.Diff(want[i], got[i]); diff != "" {
			t.Errorf("object %d (-base +install):\n%.2000s", i, diff)
		}
	}
	files, err := filepath.Glob("base/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(k.Resources)+1 {
		t.Errorf("base has %d files, of which kustomization.yaml names %d", len(files), len(k.Resources))
	}
}

func documents(t *testing.T, r io.Reader) (out []map[string]any) {
	t.Helper()
	d := utilyaml.NewYAMLOrJSONDecoder(r, 4096)
	for {
		var o map[string]any
		switch err := d.Decode(&o); {
		case err == io.EOF:
			return out
		case err != nil:
			t.Fatal(err)
		case o != nil:
			out = append(out, o)
		}
	}
}

// TestDefinitions: they are whole, and kubectl apply can note them in an
// annotation, whose limit is 256 KiB.
func TestDefinitions(t *testing.T) {
	all := objects(t, deploy.Defaults())
	for _, crd := range typed[apiextensionsv1.CustomResourceDefinition](t, all, "CustomResourceDefinition") {
		if len(crd.Spec.Versions) == 0 || crd.Spec.Versions[0].Schema == nil {
			t.Errorf("%s has no schema", crd.Name)
		}
		i := slices.IndexFunc(all, func(o *unstructured.Unstructured) bool { return o.GetName() == crd.Name })
		if text, err := all[i].MarshalJSON(); err != nil || len(text) > 256<<10-1024 {
			t.Errorf("%s is %d bytes long (%v): kubectl apply would refuse it", crd.Name, len(text), err)
		}
	}
}

// TestOptions: what an option names is what is used, everywhere.
func TestOptions(t *testing.T) {
	var out bytes.Buffer
	all := objects(t, with(func(o *deploy.Options) {
		o.Namespace, o.Image, o.Proxy, o.ProxyImage, o.Replicas = "mesh", "registry.example/c:1", "envoy", "registry.example/p:2", 5
		o.CRDs = false // which speak of istio-system in their descriptions
	}))
	if err := deploy.Write(&out, all); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "istio-system") {
		t.Errorf("with another namespace there still is istio-system:\n%s", &out)
	}
	for _, d := range typed[appsv1.Deployment](t, all, "Deployment") {
		c := d.Spec.Template.Spec.Containers[0]
		switch d.Name {
		case "chandler":
			if c.Image != "registry.example/c:1" || *d.Spec.Replicas != 5 {
				t.Errorf("control plane has image %s and %d replicas", c.Image, *d.Spec.Replicas)
			}
			for _, arg := range []string{"--root-namespace=mesh", "--inject-image=registry.example/c:1", "--inject-envoy-image=registry.example/p:2", "--inject-proxy=envoy"} {
				if !slices.Contains(c.Args, arg) {
					t.Errorf("control plane has not %s: %q", arg, c.Args)
				}
			}
		case "istio-ingressgateway":
			if c.Image != "registry.example/p:2" || !slices.Contains(c.Args, "--proxy=envoy") || !slices.Contains(c.Args, "--control=chandler.mesh.svc:15012") {
				t.Errorf("ingress gateway has image %s and arguments %q", c.Image, c.Args)
			}
		}
	}
}

// TestArguments: the containers' arguments are flags that the command has.
func TestArguments(t *testing.T) {
	for _, d := range typed[appsv1.Deployment](t, objects(t, deploy.Defaults()), "Deployment") {
		args := d.Spec.Template.Spec.Containers[0].Args
		verb, rest, err := cli.New(cli.Env{Stdout: io.Discard, Stderr: io.Discard}).Find(args)
		if err != nil {
			t.Fatal(err)
		}
		if err := verb.ParseFlags(rest); err != nil || len(verb.Flags().Args()) > 0 || verb.Name() != args[0] {
			t.Errorf("Deployment %s calls chandler with %q: %v", d.Name, args, err)
		}
	}
}

func TestProxyImage(t *testing.T) {
	for _, tt := range []struct{ image, proxy, proxyImage, want string }{
		{"chandler", "engine", "", "chandler"},
		{"registry.example/c:1", "engine", "", "registry.example/c:1"},
		{"registry.example/c:1", "engine", "registry.example/p", "registry.example/p"},
		{"registry.example/c:1", "envoy", "", "chandler-proxy"},
		{"registry.example/c:1", "envoy", "registry.example/p", "registry.example/p"},
	} {
		all := objects(t, with(func(o *deploy.Options) { o.Image, o.Proxy, o.ProxyImage = tt.image, tt.proxy, tt.proxyImage }))
		for _, d := range typed[appsv1.Deployment](t, all, "Deployment") {
			if c := d.Spec.Template.Spec.Containers[0]; d.Name == "istio-ingressgateway" && c.Image != tt.want {
				t.Errorf("image %q, proxy %q, proxy image %q: gateway runs %s, want %s", tt.image, tt.proxy, tt.proxyImage, c.Image, tt.want)
			}
		}
	}
}

func TestOptionErrors(t *testing.T) {
	for option, o := range map[string]deploy.Options{
		"namespace": with(func(o *deploy.Options) { o.Namespace = "Not_A_Name" }),
		"revision":  with(func(o *deploy.Options) { o.Revision = "a/b" }),
		"proxy":     with(func(o *deploy.Options) { o.Proxy = "nginx" }),
		"image":     with(func(o *deploy.Options) { o.Image = "" }),
		"replicas":  with(func(o *deploy.Options) { o.Replicas = 0 }),
	} {
		_, err := deploy.Objects(o)
		if e, ok := err.(*deploy.OptionError); !ok || e.Option != option {
			t.Errorf("Objects with a bad %s: error is %v", option, err)
		}
	}
}

// TestInjector: the file is what package inject would have.
func TestInjector(t *testing.T) {
	for _, revision := range []string{"", "canary"} {
		opts, err := inject.Options{Image: "chandler", Revision: revision}.WithDefaults()
		if err != nil {
			t.Fatal(err)
		}
		got := typed[admissionregistrationv1.MutatingWebhookConfiguration](t,
			objects(t, with(func(o *deploy.Options) { o.Revision = revision })), "MutatingWebhookConfiguration")
		if diff := cmp.Diff(inject.WebhookConfiguration(opts), got[0]); diff != "" {
			t.Errorf("revision %q (-inject +base):\n%s", revision, diff)
		}
	}
}

// TestGatewayPod: the ingress gateway is what Gateway API Gateways get, but for
// names.
func TestGatewayPod(t *testing.T) {
	g := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "istio", Namespace: "istio-system"}}
	g.Spec.Listeners = []gatewayv1.Listener{{Name: "http", Port: 80, Protocol: gatewayv1.HTTPProtocolType}}
	var want appsv1.DeploymentSpec
	for _, o := range gateway.Desired(g, gateway.Options{Image: "chandler", Proxy: "engine", Control: "chandler.istio-system.svc:15012", Domain: "cluster.local"}) {
		if d, ok := o.(*appsv1.Deployment); ok {
			want = d.Spec
		}
	}
	for _, d := range typed[appsv1.Deployment](t, objects(t, deploy.Defaults()), "Deployment") {
		if d.Name != "istio-ingressgateway" {
			continue
		}
		want.Replicas, want.Selector = d.Spec.Replicas, d.Spec.Selector
		want.Template.Labels, want.Template.Spec.ServiceAccountName = d.Spec.Template.Labels, d.Spec.Template.Spec.ServiceAccountName
		if diff := cmp.Diff(want, d.Spec); diff != "" {
			t.Errorf("(-gateway +base):\n%s", diff)
		}
	}
}

// TestPods: no pod has rights on its node, or more than one would expect at the
// API server.
func TestPods(t *testing.T) {
	for _, d := range typed[appsv1.Deployment](t, objects(t, deploy.Defaults()), "Deployment") {
		pod, c := d.Spec.Template.Spec, d.Spec.Template.Spec.Containers[0]
		s, p := c.SecurityContext, pod.SecurityContext
		for what, ok := range map[string]bool{
			"has one container":             len(pod.Containers) == 1 && len(pod.InitContainers) == 0,
			"shares nothing with its node":  !pod.HostNetwork && !pod.HostPID && !pod.HostIPC,
			"mounts nothing of its node":    !slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.HostPath != nil }),
			"is not root":                   *p.RunAsNonRoot && *p.RunAsUser == 1337 && *s.RunAsNonRoot,
			"has the default seccomp":       p.SeccompProfile.Type == corev1.SeccompProfileTypeRuntimeDefault,
			"does not write to its root":    *s.ReadOnlyRootFilesystem,
			"cannot gain rights":            !*s.AllowPrivilegeEscalation && !*s.Privileged,
			"has no capability":             slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) && len(s.Capabilities.Add) == 0,
			"asks for CPU and memory":       !c.Resources.Requests.Cpu().IsZero() && !c.Resources.Requests.Memory().IsZero(),
			"has bounded memory":            !c.Resources.Limits.Memory().IsZero(),
			"says when it is ready":         c.ReadinessProbe != nil,
			"has each variable once":        unique(c.Env),
			"is not injected":               d.Spec.Template.Labels["sidecar.istio.io/inject"] == "false",
			"has a ServiceAccount":          pod.ServiceAccountName != "",
			"asks the API server if it may": d.Name == "chandler" || !*pod.AutomountServiceAccountToken,
		} {
			if !ok {
				t.Errorf("Deployment %s: that it %s is not so", d.Name, what)
			}
		}
	}
}

func unique(env []corev1.EnvVar) bool {
	names := map[string]bool{}
	for _, e := range env {
		names[e.Name] = true
	}
	return len(names) == len(env)
}

// TestRights lists all that the control plane may do, for review. Nothing is
// everything.
func TestRights(t *testing.T) {
	all := objects(t, deploy.Defaults())
	var out strings.Builder
	write := func(role string, rules []rbacv1.PolicyRule) {
		fmt.Fprintf(&out, "# %s\n", role)
		for _, r := range rules {
			for _, group := range r.APIGroups {
				for _, resource := range r.Resources {
					fmt.Fprintf(&out, "%s %s: %s\n", strings.TrimPrefix(group+"/"+resource, "/"), strings.Join(r.ResourceNames, ","), strings.Join(r.Verbs, " "))
				}
			}
			if strings.Contains(fmt.Sprint(r.APIGroups, r.Resources, r.Verbs), "*") {
				t.Errorf("%s has a rule for everything: %v", role, r)
			}
		}
	}
	for _, r := range typed[rbacv1.ClusterRole](t, all, "ClusterRole") {
		write("ClusterRole "+r.Name, r.Rules)
	}
	for _, r := range typed[rbacv1.Role](t, all, "Role") {
		write("Role "+r.Name+" in "+r.Namespace, r.Rules)
	}
	golden(t, "rights.txt", out.String())
}
