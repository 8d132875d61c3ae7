package deploy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Options are what a user can say about an installation. Start from [Defaults].
type Options struct {
	Namespace  string // of everything, and the mesh's root namespace
	Image      string // of the control plane
	Proxy      string // of gateways and sidecars: engine or envoy
	ProxyImage string // of gateways and sidecars; if empty, Image, and for envoy chandler-proxy
	Replicas   int32  // of the control plane
	// ProxyEnv is in the environment of the agents of gateways and sidecars, such as
	// WASM_INSECURE_REGISTRIES.
	ProxyEnv map[string]string

	// Revision, if not empty, makes the injector answer to the label
	// istio.io/rev=Revision only, and leave istio-injection=enabled and
	// sidecar.istio.io/inject=true to another installation.
	Revision string

	CRDs           bool // the definitions of all kinds; without, they are there already
	GatewayAPI     bool // the Gateway API's definitions, and the right to deploy gateways
	IngressGateway bool // istio-ingressgateway
	PullSecrets    bool // the right to read Secrets of all namespaces
}

// Defaults are the Options of which the files of base are made.
func Defaults() Options {
	return Options{
		Namespace: baseNamespace, Image: "chandler", Proxy: "engine", Replicas: 2,
		CRDs: true, GatewayAPI: true, IngressGateway: true, PullSecrets: true,
	}
}

// An OptionError is that an option has a value that cannot be used.
type OptionError struct {
	Option string // its name as a flag, without dashes
	Value  string
	Reason string
}

func (e *OptionError) Error() string {
	return fmt.Sprintf("--%s: %q %s", e.Option, e.Value, e.Reason)
}

func (o Options) validate() error {
	switch {
	case o.Proxy != "engine" && o.Proxy != "envoy":
		return &OptionError{"proxy", o.Proxy, "is neither engine nor envoy"}
	case o.Image == "":
		return &OptionError{"image", o.Image, "is empty"}
	case o.Replicas < 1:
		return &OptionError{"replicas", strconv.Itoa(int(o.Replicas)), "is less than 1"}
	}
	if reasons := validation.IsDNS1123Label(o.Namespace); len(reasons) > 0 {
		return &OptionError{"namespace", o.Namespace, "is no name of a namespace: " + reasons[0]}
	}
	if reasons := validation.IsDNS1123Label(o.Revision); o.Revision != "" && len(reasons) > 0 {
		return &OptionError{"revision", o.Revision, "is no name of a revision: " + reasons[0]}
	}
	return nil
}

// leavesOut says whether a file of base is not wanted.
func (o Options) leavesOut(file string) bool {
	switch file {
	case istioCRDs:
		return !o.CRDs
	case gatewayAPICRDs:
		return !o.CRDs || !o.GatewayAPI
	case gatewaysRBAC:
		return !o.GatewayAPI
	case pullSecretsRBAC:
		return !o.PullSecrets
	case ingressGateway:
		return !o.IngressGateway
	}
	return false
}

// change makes an object of base what o says.
func (o Options) change(object runtime.Object) {
	if m, err := meta.Accessor(object); err == nil && m.GetNamespace() == baseNamespace {
		m.SetNamespace(o.Namespace)
	}
	switch object := object.(type) {
	case *corev1.Namespace:
		object.Name = o.Namespace
	case *rbacv1.ClusterRole:
		object.Name = o.clusterWide(object.Name)
		for i := range object.Rules {
			o.changeInjectorNames(object.Rules[i].ResourceNames)
		}
	case *rbacv1.ClusterRoleBinding:
		object.Name, object.RoleRef.Name = o.clusterWide(object.Name), o.clusterWide(object.RoleRef.Name)
		o.changeSubjects(object.Subjects)
	case *rbacv1.RoleBinding:
		o.changeSubjects(object.Subjects)
	case *admissionregistrationv1.MutatingWebhookConfiguration:
		o.changeInjector(object)
	case *appsv1.Deployment:
		if object.Name == controlName {
			o.changeControl(object)
		} else {
			o.changeGateway(object)
		}
	}
}

// clusterWide is the name of an object in no namespace, of which each installation
// has one of its own.
func (o Options) clusterWide(name string) string {
	if o.Namespace == baseNamespace {
		return name
	}
	return name + "-" + o.Namespace
}

func (o Options) changeSubjects(subjects []rbacv1.Subject) {
	for i := range subjects {
		subjects[i].Namespace = o.Namespace
	}
}

// changeInjectorNames gives the injector of a revision a name of its own.
func (o Options) changeInjectorNames(names []string) {
	for i, name := range names {
		if name == injectorName && o.Revision != "" {
			names[i] = injectorName + "-" + o.Revision
		}
	}
}

// changeInjector leaves, of an installation with a revision, the webhooks that
// ask for it.
func (o Options) changeInjector(c *admissionregistrationv1.MutatingWebhookConfiguration) {
	if o.Revision != "" {
		c.Name += "-" + o.Revision
		c.Labels[revisionLabel] = o.Revision
		c.Webhooks = slices.DeleteFunc(c.Webhooks, func(w admissionregistrationv1.MutatingWebhook) bool {
			return !strings.HasPrefix(w.Name, "rev.")
		})
	}
	for i := range c.Webhooks {
		w := &c.Webhooks[i]
		w.ClientConfig.Service.Namespace = o.Namespace
		for _, s := range []*metav1.LabelSelector{w.NamespaceSelector, w.ObjectSelector} {
			for _, e := range s.MatchExpressions {
				if e.Key == revisionLabel && e.Operator == metav1.LabelSelectorOpIn && o.Revision != "" {
					e.Values[0] = o.Revision
				}
			}
		}
	}
}

func (o Options) changeControl(d *appsv1.Deployment) {
	d.Spec.Replicas = &o.Replicas
	c := &d.Spec.Template.Spec.Containers[0]
	c.Image = o.Image
	setFlag(c, "root-namespace", o.Namespace)
	setFlag(c, "gateways", strconv.FormatBool(o.GatewayAPI))
	setFlag(c, "revision", cmp.Or(o.Revision, baseRevision))
	setFlag(c, "inject-proxy", o.Proxy)
	setFlag(c, "inject-image", o.engineImage())
	setFlag(c, "inject-envoy-image", o.envoyImage())
	for _, name := range slices.Sorted(maps.Keys(o.ProxyEnv)) {
		// Quoted as a field of CSV, as the flag reads it.
		c.Args = append(c.Args, "--inject-env=\""+strings.ReplaceAll(name+"="+o.ProxyEnv[name], "\"", "\"\"")+"\"")
	}
}

func (o Options) changeGateway(d *appsv1.Deployment) {
	c := &d.Spec.Template.Spec.Containers[0]
	c.Image = o.proxyImage()
	setFlag(c, "proxy", o.Proxy)
	setFlag(c, "control", controlName+"."+o.Namespace+".svc:15012")
	for _, name := range slices.Sorted(maps.Keys(o.ProxyEnv)) {
		c.Env = append(c.Env, corev1.EnvVar{Name: name, Value: o.ProxyEnv[name]})
	}
}

// setFlag sets a flag that is among the arguments of c.
func setFlag(c *corev1.Container, name, value string) {
	prefix := "--" + name + "="
	for i, arg := range c.Args {
		if strings.HasPrefix(arg, prefix) {
			c.Args[i] = prefix + value
			return
		}
	}
	panic("no argument " + prefix + " in base")
}

// engineImage is that of proxies that are the engine: a pod can ask for either.
func (o Options) engineImage() string {
	if o.Proxy == "envoy" {
		return o.Image
	}
	return cmp.Or(o.ProxyImage, o.Image)
}

func (o Options) envoyImage() string {
	if o.Proxy == "envoy" {
		return cmp.Or(o.ProxyImage, defaultEnvoyImage)
	}
	return defaultEnvoyImage
}

// proxyImage is that of proxies of which nobody asks for another.
func (o Options) proxyImage() string {
	if o.Proxy == "envoy" {
		return o.envoyImage()
	}
	return o.engineImage()
}
