package gateway

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/translate"
)

var update = flag.Bool("update", false, "write testdata/*.out.* anew")

var options = Options{Image: "chandler", Proxy: "engine", Control: "chandler.istio-system.svc:15012", Domain: "cluster.local"}

// TestGolden takes the resources of testdata/NAME.in.yaml and compares with what is
// beside it: NAME.out.yaml, the objects that the Gateways are to have, if NAME
// begins so, else NAME.out.txt, the status that translate and what is deployed
// come to. A Gateway's Service
// is the input's; its pods are ready, unless an annotation says something else.
func TestGolden(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no inputs: %v", err)
	}
	for _, input := range inputs {
		name := strings.TrimSuffix(filepath.Base(input), ".in.yaml")
		t.Run(name, func(t *testing.T) {
			objects := readObjects(t, input)
			got, output := statuses(t, objects), filepath.Join("testdata", name+".out.txt")
			if strings.HasPrefix(name, "objects") {
				got, output = desired(t, objects), filepath.Join("testdata", name+".out.yaml")
			}
			if *update {
				if err := os.WriteFile(output, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(output)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", output, diff)
			}
		})
	}
}

func readObjects(t *testing.T, file string) []resource.Object {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	objects, problems := resource.NewDecoder().Decode(file, data)
	if len(problems) > 0 {
		t.Fatalf("input has problems: %v", problems)
	}
	for _, o := range objects { // as an API server would
		o.SetUID(types.UID("uid-of-" + o.GetName()))
		o.SetGeneration(3)
	}
	return objects
}

func document(t *testing.T, out *bytes.Buffer, about string, v any) {
	t.Helper()
	text, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	out.WriteString("--- # " + about + "\n")
	out.Write(text)
}

func desired(t *testing.T, objects []resource.Object) []byte {
	var out bytes.Buffer
	for _, o := range objects {
		g, ok := o.(*gatewayv1.Gateway)
		if !ok {
			continue
		}
		if r := refuse(g); r != nil {
			document(t, &out, "Gateway "+g.Name, map[string]string{"reason": string(r.reason), "message": r.message})
		}
		made := Desired(g, options)
		if len(made) == 0 {
			document(t, &out, "Gateway "+g.Name, "nothing")
		}
		for _, o := range made {
			document(t, &out, "Gateway "+g.Name, o)
		}
	}
	return out.Bytes()
}

func statuses(t *testing.T, objects []resource.Object) []byte {
	objects = append(objects, certificate(t))
	world, problems := mesh.New(objects, mesh.Options{})
	problems = append(problems, translate.Problems(world)...)
	gateways, services := map[types.NamespacedName]*gatewayv1.Gateway{}, map[types.NamespacedName]*corev1.Service{}
	var routes []*gatewayv1.HTTPRoute
	for _, o := range objects {
		switch o := o.(type) {
		case *gatewayv1.Gateway:
			gateways[nameOf(o)] = o
			_, more := translate.Build(world, mesh.Proxy{
				Role: mesh.Router, Namespace: o.Namespace, Labels: map[string]string{mesh.GatewayNameLabel: o.Name},
			})
			problems = append(problems, more...)
		case *gatewayv1.HTTPRoute:
			routes = append(routes, o)
		case *corev1.Service:
			services[nameOf(o)] = o
		}
	}
	known := Known{World: world, Problems: problems, Now: time.Date(2026, 8, 1, 12, 0, 0, 5, time.UTC)}
	var out bytes.Buffer
	for _, o := range objects {
		switch o := o.(type) {
		case *gatewayv1.Gateway:
			d := Deployment{
				Service:   services[types.NamespacedName{Namespace: o.Namespace, Name: objectName(o)}],
				Available: 1, Failure: o.Annotations["test/failure"],
			}
			if o.Annotations["test/available"] == "0" {
				d.Available = 0
			}
			writeGateway(&out, o, GatewayStatus(o, d, routes, known))
		case *gatewayv1.HTTPRoute:
			writeRoute(&out, o, RouteStatus(o, gateways, known))
		}
	}
	return out.Bytes()
}

// writeGateway writes a status short enough to be read.
func writeGateway(out *bytes.Buffer, g *gatewayv1.Gateway, s gatewayv1.GatewayStatus) {
	fmt.Fprintf(out, "Gateway %s:\n", g.Name)
	for _, a := range s.Addresses {
		fmt.Fprintf(out, "- %s %s\n", *a.Type, a.Value)
	}
	writeConditions(out, "", s.Conditions)
	for _, l := range s.Listeners {
		var kinds []string
		for _, k := range l.SupportedKinds {
			kinds = append(kinds, string(k.Kind))
		}
		fmt.Fprintf(out, "- listener %s: %d of %v\n", l.Name, l.AttachedRoutes, kinds)
		writeConditions(out, "  ", l.Conditions)
	}
}

func writeRoute(out *bytes.Buffer, r *gatewayv1.HTTPRoute, s gatewayv1.RouteStatus) {
	fmt.Fprintf(out, "HTTPRoute %s:\n", r.Name)
	for _, p := range s.Parents {
		fmt.Fprintf(out, "- at %s, section %q, port %d, by %s:\n", p.ParentRef.Name, value(p.ParentRef.SectionName), value(p.ParentRef.Port), p.ControllerName)
		writeConditions(out, "  ", p.Conditions)
	}
}

func writeConditions(out *bytes.Buffer, indent string, list []metav1.Condition) {
	for _, c := range list {
		fmt.Fprintf(out, "%s- %s: %s, %s", indent, c.Type, c.Status, c.Reason)
		if c.Message != "" {
			fmt.Fprintf(out, " (%s)", c.Message)
		}
		out.WriteString("\n")
	}
}

// certificate is the Secret good of namespace shop.
func certificate(t *testing.T) *corev1.Secret {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	chain, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyBytes, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &corev1.Secret{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{Name: "good", Namespace: "shop"},
		Data: map[string][]byte{
			corev1.TLSCertKey:       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain}),
			corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyBytes}),
		},
	}
}
