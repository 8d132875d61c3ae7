package inject

import (
	"cmp"
	"errors"
	"fmt"
	"net"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/chandler-proxy/chandler/internal/inject/agentpod"
)

// The two kinds of proxy that a sidecar may have.
const (
	Engine = "engine" // the embedded one
	Envoy  = "envoy"
)

// Options say what a sidecar is like, where annotations of the pod do not. Only Image
// is required, and EnvoyImage for pods with an Envoy. The JSON form is what the
// control plane's ConfigMap has.
type Options struct {
	Image      string `json:"image"`                // of chandler alone
	EnvoyImage string `json:"envoyImage,omitempty"` // of chandler with an Envoy
	Proxy      string `json:"proxy,omitempty"`      // Engine or Envoy; default Engine

	PullPolicy  corev1.PullPolicy            `json:"pullPolicy,omitempty"`  // default IfNotPresent
	PullSecrets []string                     `json:"pullSecrets,omitempty"` // names, added to the pod
	Env         map[string]string            `json:"env,omitempty"`         // of the agent, such as WASM_INSECURE_REGISTRIES
	Resources   *corev1.ResourceRequirements `json:"resources,omitempty"`   // default Istio's: requests 100m, 128Mi, limits 2, 1Gi

	Revision      string `json:"revision,omitempty"`      // default "default"
	RootNamespace string `json:"rootNamespace,omitempty"` // default istio-system
	Control       string `json:"control,omitempty"`       // host:port of the control plane; default chandler.ROOTNAMESPACE.svc:15012
	Domain        string `json:"domain,omitempty"`        // of the cluster; default cluster.local
}

// DefaultRevision is the one that namespaces labelled istio-injection=enabled, which
// name none, belong to.
const DefaultRevision = "default"

// ReadOptions reads options written in YAML or JSON, for [Options.WithDefaults] to
// fill in. A field that does not exist is an error.
func ReadOptions(text []byte) (Options, error) {
	var o Options
	if err := yaml.UnmarshalStrict(text, &o); err != nil {
		return o, fmt.Errorf("read injection options: %w", err)
	}
	return o, nil
}

// WithDefaults fills in what o leaves out, and refuses what cannot be.
func (o Options) WithDefaults() (Options, error) {
	o.Proxy = cmp.Or(o.Proxy, Engine)
	o.PullPolicy = cmp.Or(o.PullPolicy, corev1.PullIfNotPresent)
	o.Revision = cmp.Or(o.Revision, DefaultRevision)
	o.RootNamespace = cmp.Or(o.RootNamespace, "istio-system")
	o.Control = cmp.Or(o.Control, "chandler."+o.RootNamespace+".svc:15012")
	o.Domain = cmp.Or(o.Domain, "cluster.local")
	if o.Resources == nil {
		o.Resources = new(agentpod.Resources())
	}
	switch {
	case o.Image == "":
		return o, errors.New("image is required")
	case o.Proxy != Engine && o.Proxy != Envoy:
		return o, fmt.Errorf("proxy %q is neither %s nor %s", o.Proxy, Engine, Envoy)
	case o.Proxy == Envoy && o.EnvoyImage == "":
		return o, errors.New("envoyImage is required for the proxy envoy")
	}
	switch o.PullPolicy {
	case "", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever:
	default:
		return o, fmt.Errorf("pullPolicy %q is none of Always, IfNotPresent, Never", o.PullPolicy)
	}
	if _, _, err := net.SplitHostPort(o.Control); err != nil {
		return o, fmt.Errorf("control: %w", err)
	}
	return o, nil
}

// ImageOf is the image for a kind of proxy; empty if there is none.
func (o Options) ImageOf(proxy string) string {
	if proxy == Envoy {
		return o.EnvoyImage
	}
	return o.Image
}
