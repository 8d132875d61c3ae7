// Package deploy holds the manifests that install Chandler on Kubernetes, and
// changes them as a user asks.
//
// The manifests are the files of base, a kustomize base: "kubectl apply -k
// deploy/base" and "chandler install" make the same objects. Here they are decoded
// into the Go types of their kinds, strictly, and changed as values; nothing is
// pasted into text, and what [Options] do not mention stays as it is written there.
// The package talks to no cluster. Definitions come from crdgen.
//
// Beside base are the Dockerfiles, a Grafana dashboard and Prometheus rules, which
// are for users to take as they are. Start at [Objects].
package deploy

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"slices"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

//go:generate go run ./crdgen

//go:embed base
var base embed.FS

// The files of base that matter here by name.
const (
	kustomization   = "kustomization.yaml"
	istioCRDs       = "crds-istio.yaml"
	gatewayAPICRDs  = "crds-gateway-api.yaml"
	gatewaysRBAC    = "rbac-gateways.yaml"
	pullSecretsRBAC = "rbac-pull-secrets.yaml"
	ingressGateway  = "ingress-gateway.yaml"
)

// What is written in them.
const (
	baseNamespace = "istio-system"
	baseRevision  = "default"
	injectorName  = "chandler-sidecar-injector"
	revisionLabel = "istio.io/rev"

	defaultEnvoyImage = "chandler-proxy"
	controlName       = "chandler" // Deployment and Service
)

// Objects returns what is to be applied, in an order in which it can be: the
// namespace, the definitions, then the rest. None is an instance of a definition
// among them, so that one apply does. Errors are about opts.
func Objects(opts Options) ([]*unstructured.Unstructured, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	files, err := resources()
	if err != nil {
		return nil, err
	}
	decoder := newDecoder()
	var out []*unstructured.Unstructured
	for _, name := range files {
		if opts.leavesOut(name) {
			continue
		}
		documents, err := read(name)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		for _, d := range documents {
			o, err := opts.object(decoder, d)
			if err != nil {
				return nil, fmt.Errorf("decode %s: %w", name, err)
			}
			out = append(out, o)
		}
	}
	return out, nil
}

// Write writes objects as one stream of YAML documents.
func Write(w io.Writer, objects []*unstructured.Unstructured) error {
	for i, o := range objects {
		text, err := yaml.Marshal(o.Object)
		if err != nil {
			return err
		}
		if i > 0 {
			text = slices.Concat([]byte("---\n"), text)
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
	}
	return nil
}

// resources are the files of base, in the order in which kustomize is told to
// take them.
func resources() ([]string, error) {
	text, err := base.ReadFile("base/" + kustomization)
	if err != nil {
		return nil, err
	}
	var k struct {
		Resources []string `json:"resources"`
	}
	return k.Resources, yaml.Unmarshal(text, &k)
}

// read returns the documents of a file of base, as JSON.
func read(name string) ([][]byte, error) {
	text, err := base.ReadFile("base/" + name)
	if err != nil {
		return nil, err
	}
	var out [][]byte
	documents := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		var d runtime.RawExtension
		err := documents.Decode(&d)
		switch {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return nil, err
		case len(d.Raw) > 0 && !bytes.Equal(d.Raw, []byte("null")): // not comments alone
			out = append(out, d.Raw)
		}
	}
}

// newDecoder decodes the kinds that Options change, and refuses unknown fields.
func newDecoder() runtime.Decoder {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		admissionregistrationv1.AddToScheme, appsv1.AddToScheme, corev1.AddToScheme, policyv1.AddToScheme, rbacv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			panic(err) // two types for one kind
		}
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
}

// object decodes a document and changes it. A definition stays what it is.
func (o Options) object(decoder runtime.Decoder, document []byte) (*unstructured.Unstructured, error) {
	var meta metav1.TypeMeta
	if err := yaml.Unmarshal(document, &meta); err != nil {
		return nil, err
	}
	out := new(unstructured.Unstructured)
	if meta.Kind == "CustomResourceDefinition" {
		return out, out.UnmarshalJSON(document)
	}
	typed, _, err := decoder.Decode(document, nil, nil)
	if err != nil {
		return nil, err
	}
	o.change(typed)
	if out.Object, err = runtime.DefaultUnstructuredConverter.ToUnstructured(typed); err != nil {
		return nil, err
	}
	// Go types have what manifests do not.
	delete(out.Object, "status")
	if spec, ok := out.Object["spec"].(map[string]any); ok && len(spec) == 0 {
		delete(out.Object, "spec")
	}
	return out, nil
}
