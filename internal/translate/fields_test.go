package translate

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// A fieldTest is a kind each of whose fields has to mean something.
type fieldTest struct {
	kind, node string
	beside     string // resources
	only       string // fields whose names begin so
	// base has, by field, the spec to which what is at or below that field is added;
	// that of the longest name counts.
	base   map[string]string
	sample map[string]string // values of fields that cannot have any, by field
	exempt map[string]string // fields that rightly change nothing, and why

	others []resource.Object // beside, decoded
	bases  map[string]resource.Object
}

const besideFields = `
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: edge}, spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 7}, {name: http-other, port: 8}, {name: tcp, port: 9}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: sample, namespace: edge}, spec: {clusterIP: 10.0.0.2, ports: [{name: http, port: 7}, {name: http-web, port: 80}, {name: http-other, port: 8}, {name: tcp, port: 9}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web, namespace: edge, labels: {kubernetes.io/service-name: web}}, addressType: IPv4, ports: [{name: http, port: 7}], endpoints: [{addresses: [10.0.0.3]}]}
---
{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: to-subset, namespace: edge}, spec: {hosts: [sample], http: [{route: [{destination: {host: web, subset: a, port: {number: 7}}}]}]}}
---
{apiVersion: networking.istio.io/v1, kind: Gateway, metadata: {name: passing, namespace: edge}, spec: {selector: {istio: passing}, servers: [{port: {number: 443, name: tls, protocol: TLS}, hosts: ["*"], tls: {mode: PASSTHROUGH}}]}}
---
{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: at-gateway, namespace: edge}, spec: {hosts: ["*"], gateways: [under-test], http: [{route: [{destination: {host: web, port: {number: 7}}}]}], tcp: [{route: [{destination: {host: web, port: {number: 9}}}]}]}}
`

// TestFields sets every field that a DestinationRule, a VirtualService or a Gateway of
// Istio's can have, one at a time and with every value if it is an enumeration, and
// wants it to change the configuration, or a problem to name it: nothing that a user
// writes is silently left out.
func TestFields(t *testing.T) {
	const client = `{id: sidecar~10.0.0.9~client-0.edge~x, metadata: {LABELS: {app: client}, INTERCEPTION_MODE: REDIRECT}}`
	const gateway = `{id: router~10.0.0.9~gw-0.edge~x, metadata: {LABELS: {istio: gw}}}`
	for _, tt := range []fieldTest{{
		kind: "DestinationRule", node: client, beside: besideFields,
		base: ruleBases(map[string]string{
			"":                                       ``,
			"loadBalancer.consistentHash.ringHash":   `loadBalancer: {consistentHash: {httpHeaderName: a}}`,
			"loadBalancer.consistentHash.maglev":     `loadBalancer: {consistentHash: {httpHeaderName: a}}`,
			"loadBalancer.consistentHash.minimum":    `loadBalancer: {consistentHash: {httpHeaderName: a}}`,
			"loadBalancer.consistentHash.httpCookie": `loadBalancer: {consistentHash: {httpCookie: {name: a}}}`,
			"tls":                                    `tls: {mode: SIMPLE}`,
			"tls.mode":                               `tls: {sni: a}`,
			"port.number":                            `loadBalancer: {simple: RANDOM}`,
		}),
		sample: atPolicies(map[string]string{"port.number": "8"}),
		exempt: atPolicies(map[string]string{
			"loadBalancer.simple=LEAST_REQUEST":                  "is the default",
			"loadBalancer.simple=LEAST_CONN":                     "is the old name of the default",
			"connectionPool.http.h2UpgradePolicy=DO_NOT_UPGRADE": "is the default",
		}),
	}, {
		kind: "VirtualService", node: client, beside: besideFields,
		base: map[string]string{
			"":                             `hosts: [web], http: [{route: [{destination: {host: web, port: {number: 7}}}]}]`,
			"http.route.weight":            `hosts: [web], http: [{route: [{destination: {host: web}}, {destination: {host: sample}, weight: 1}]}]`,
			"http.redirect":                `hosts: [web], http: [{redirect: {uri: /a}}]`,
			"http.directResponse":          `hosts: [web], http: [{directResponse: {status: 200}}]`,
			"http.rewrite.uriRegexRewrite": `hosts: [web], http: [{rewrite: {uriRegexRewrite: {match: a, rewrite: b}}, route: [{destination: {host: web, port: {number: 7}}}]}]`,
			"http.retries":                 `hosts: [web], http: [{retries: {attempts: 3}, route: [{destination: {host: web, port: {number: 7}}}]}]`,
			"http.fault.delay":             `hosts: [web], http: [{fault: {delay: {fixedDelay: 1s}}, route: [{destination: {host: web, port: {number: 7}}}]}]`,
			"http.fault.abort":             `hosts: [web], http: [{fault: {abort: {httpStatus: 503}}, route: [{destination: {host: web, port: {number: 7}}}]}]`,
			"http.mirror":                  `hosts: [web], http: [{mirror: {host: web, port: {number: 7}}, route: [{destination: {host: web, port: {number: 7}}}]}]`,
			"http.mirrors":                 `hosts: [web], http: [{mirrors: [{destination: {host: web, port: {number: 7}}}], route: [{destination: {host: web, port: {number: 7}}}]}]`,
			"tcp":                          `hosts: [web], tcp: [{route: [{destination: {host: sample, port: {number: 9}}}]}]`,
			"tcp.route.weight":             `hosts: [web], tcp: [{route: [{destination: {host: web, port: {number: 9}}}, {destination: {host: sample, port: {number: 9}}, weight: 1}]}]`,
		},
		sample: map[string]string{
			"http.route.destination.port.number": "8", "http.mirror.port.number": "8", "http.mirrors.destination.port.number": "8",
			"http.directResponse.status": "203", "http.fault.abort.httpStatus": "418", "http.retries.retryIgnorePreviousHosts": "false",
			"hosts": "b.example", "tcp.route.destination.host": "web", "http.redirect.redirectCode": "307", "tls.match.port": "444",
		},
		exempt: map[string]string{
			"http.corsPolicy.unmatchedPreflights=FORWARD": "is the default",
		},
	}, {
		kind: "VirtualService", node: `{id: router~10.0.0.9~gw-0.edge~x, metadata: {LABELS: {istio: passing}}}`, beside: besideFields, only: "tls.",
		base: map[string]string{
			"":                   `hosts: [a.example], gateways: [passing], tls: [{match: [{sniHosts: [a.example]}], route: [{destination: {host: web, port: {number: 9}}}]}]`,
			"tls.match.gateways": `hosts: [a.example], gateways: [passing, other], tls: [{match: [{sniHosts: [a.example]}], route: [{destination: {host: web, port: {number: 9}}}]}]`,
			"tls.match.sniHosts": `hosts: ["*.example"], gateways: [passing], tls: [{match: [{sniHosts: [a.example]}], route: [{destination: {host: web, port: {number: 9}}}]}]`,
			"tls.route.weight":   `hosts: [a.example], gateways: [passing], tls: [{match: [{sniHosts: [a.example]}], route: [{destination: {host: web, port: {number: 9}}}, {destination: {host: sample, port: {number: 9}}, weight: 1}]}]`,
		},
		sample: map[string]string{"tls.match.sniHosts": "b.example"},
	}, {
		kind: "Gateway", node: gateway, beside: besideFields,
		base: map[string]string{
			"":                                 `selector: {istio: gw}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [a.example]}]`,
			"servers.name":                     `selector: {istio: gw}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["*"], tls: {mode: SIMPLE, serverCertificate: /a, privateKey: /b}}]`,
			"servers.port.name":                `selector: {istio: gw}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["*"], tls: {mode: SIMPLE, serverCertificate: /a, privateKey: /b}}]`,
			"servers.tls":                      `selector: {istio: gw}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["*"], tls: {mode: MUTUAL, serverCertificate: /a, privateKey: /b, caCertificates: /c}}]`,
			"servers.tls.caCertCredentialName": `selector: {istio: gw}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["*"], tls: {mode: MUTUAL, serverCertificate: /a, privateKey: /b}}]`,
			"servers.tls.mode=SIMPLE":          `selector: {istio: gw}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["*"], tls: {serverCertificate: /a, privateKey: /b}}]`,
			"servers.tls.mode=MUTUAL":          `selector: {istio: gw}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["*"], tls: {mode: SIMPLE, serverCertificate: /a, privateKey: /b, caCertificates: /c}}]`,
			"servers.tls.tlsCertificates":      `selector: {istio: gw}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["*"], tls: {mode: SIMPLE, tlsCertificates: [{serverCertificate: /a, privateKey: /b}]}}]`,
		},
		sample: map[string]string{"servers.hosts": "b.example"},
	}, {
		kind: "Gateway", node: gateway, beside: besideFields, only: "servers.tls.",
		base: map[string]string{
			"":                            `selector: {istio: gw}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["*"], tls: {mode: SIMPLE, serverCertificate: /a, privateKey: /b}}]`,
			"servers.tls.tlsCertificates": `selector: {istio: gw}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["*"], tls: {mode: SIMPLE, tlsCertificates: [{serverCertificate: /a, privateKey: /b}]}}]`,
		},
		exempt: map[string]string{"servers.tls.mode=SIMPLE": "is in what it is added to"},
	}, {
		kind: "Gateway", node: gateway, beside: besideFields, only: "servers.tls.",
		base: map[string]string{"": `selector: {istio: gw}, servers: [{port: {number: 443, name: https, protocol: TLS}, hosts: ["*"], tls: {mode: PASSTHROUGH}}]`},
	}, {
		kind: "Gateway", node: gateway, beside: besideFields, only: "servers.tls.",
		base: map[string]string{"": `selector: {istio: gw}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]`},
	}} {
		t.Run(tt.kind+" "+tt.only, tt.run)
	}
}

// policyPlaces are where in a DestinationRule a traffic policy can be.
func policyPlaces() map[string]string {
	return map[string]string{
		"trafficPolicy.":                           `trafficPolicy: {POLICY}`,
		"trafficPolicy.portLevelSettings.":         `trafficPolicy: {portLevelSettings: [{port: {number: 7}, POLICY}]}`,
		"subsets.trafficPolicy.":                   `subsets: [{name: a, trafficPolicy: {POLICY}}]`,
		"subsets.trafficPolicy.portLevelSettings.": `subsets: [{name: a, trafficPolicy: {portLevelSettings: [{port: {number: 7}, POLICY}]}}]`,
	}
}

// ruleBases are specs of a DestinationRule by field, made of traffic policies by theirs.
func ruleBases(policies map[string]string) map[string]string {
	const random = `host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}}`
	out := map[string]string{"": `host: web`, "host": random, "exportTo": random}
	for place, spec := range policyPlaces() {
		for below, policy := range policies {
			out[place+below] = `host: web, ` + strings.ReplaceAll(strings.Replace(spec, "POLICY", policy, 1), ", }", "}")
		}
	}
	return out
}

// atPolicies are values by fields of a traffic policy, wherever it is.
func atPolicies(values map[string]string) map[string]string {
	out := map[string]string{}
	for place := range policyPlaces() {
		for below, v := range values {
			out[place+below] = v
		}
	}
	return out
}

func (tt *fieldTest) run(t *testing.T) {
	tt.others, tt.bases = decode(t, tt.beside), map[string]resource.Object{}
	for name, spec := range tt.base {
		tt.bases[name] = decode(t, `{apiVersion: networking.istio.io/v1, kind: `+tt.kind+`, metadata: {name: under-test, namespace: edge}, spec: {`+spec+`}}`)[0]
	}
	unused := map[string]bool{}
	for name := range tt.exempt {
		unused[name] = true
	}
	for _, f := range settings(specOf(tt.object("")).Descriptor(), nil) {
		if !strings.HasPrefix(f.name(), tt.only) {
			continue
		}
		t.Run(f.name(), func(t *testing.T) {
			before, _ := tt.build(t, f, false)
			after, problems := tt.build(t, f, true)
			means := before != after || f.isToldOf(problems)
			why, exempt := tt.exempt[f.name()]
			delete(unused, f.name())
			if means == exempt {
				t.Errorf("it means something: %v; exempt: %q; problems: %v", means, why, problems)
			}
		})
	}
	for name := range unused {
		t.Errorf("%s is exempt, and is no field", name)
	}
}

// A setting is a field, below others, and, if it is an enumeration, a value.
type setting struct {
	path  []protoreflect.FieldDescriptor
	value *protoreflect.EnumValueDescriptor // nil if it is none
}

func (s setting) name() string {
	var names []string
	for _, f := range s.path {
		names = append(names, f.JSONName())
	}
	out := strings.Join(names, ".")
	if s.value != nil {
		out += "=" + string((*s.value).Name())
	}
	return out
}

func (s setting) last() protoreflect.FieldDescriptor { return s.path[len(s.path)-1] }

// settings are all there are in a message.
func settings(m protoreflect.MessageDescriptor, above []protoreflect.FieldDescriptor) []setting {
	var out []setting
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		path := append(above[:len(above):len(above)], f)
		switch {
		case f.Enum() != nil:
			for j := range f.Enum().Values().Len() {
				if v := f.Enum().Values().Get(j); v.Number() != 0 {
					out = append(out, setting{path, &v})
				}
			}
		case isMessage(f):
			out = append(out, settings(f.Message(), path)...)
		default:
			out = append(out, setting{path: path})
		}
	}
	return out
}

// isMessage says whether a field has fields of its own.
func isMessage(f protoreflect.FieldDescriptor) bool {
	return f.Message() != nil && !f.IsMap() && f.Message().FullName().Parent() != "google.protobuf"
}

// isToldOf says whether problems name the setting, or refuse something above it as a whole.
func (s setting) isToldOf(problems []resource.Problem) bool {
	for _, p := range problems {
		if strings.Contains(p.Field+" "+p.Message, s.last().JSONName()) {
			return true
		}
		for _, f := range s.path {
			for _, refusal := range []string{"is not supported", "means nothing", "is set, but HTTP is plain text"} {
				if strings.Contains("."+p.Field+": "+p.Message, "."+f.JSONName()+": "+refusal) || strings.HasPrefix(p.Message, f.JSONName()+" "+refusal) {
					return true
				}
			}
		}
	}
	return false
}

func specOf(o resource.Object) protoreflect.Message {
	switch o := o.(type) {
	case *networkingv1.DestinationRule:
		return o.Spec.ProtoReflect()
	case *networkingv1.VirtualService:
		return o.Spec.ProtoReflect()
	case *networkingv1.Gateway:
		return o.Spec.ProtoReflect()
	}
	panic("it has no spec")
}

// object is a resource to which the setting of that name can be added.
func (tt *fieldTest) object(name string) resource.Object {
	best := ""
	for prefix := range tt.bases {
		if strings.HasPrefix(name, prefix) && len(prefix) > len(best) {
			best = prefix
		}
	}
	return tt.bases[best].DeepCopyObject().(resource.Object)
}

// build is what comes of the resource with what is above the setting, and, if set,
// with the setting too.
func (tt *fieldTest) build(t *testing.T, s setting, set bool) (text string, problems []resource.Problem) {
	t.Helper()
	o := tt.object(s.name())
	m := specOf(o)
	for _, f := range s.path[:len(s.path)-1] {
		m = below(m, f)
	}
	if set {
		tt.set(t, m, s)
	}
	w, problems := mesh.New(append(slices.Clone(tt.others), o), mesh.Options{})
	r, more := Build(w, readNode(t, tt.node))
	problems = slices.DeleteFunc(append(problems, more...), func(p resource.Problem) bool { return p.Name != o.GetName() })
	return encode(t, r, nil), problems
}

// below is the message of a field, the first one if there are many; it is made if there is none.
func below(m protoreflect.Message, f protoreflect.FieldDescriptor) protoreflect.Message {
	if !f.IsList() {
		return m.Mutable(f).Message()
	}
	list := m.Mutable(f).List()
	if list.Len() == 0 {
		return list.AppendMutable().Message()
	}
	return list.Get(0).Message()
}

func (tt *fieldTest) set(t *testing.T, m protoreflect.Message, s setting) {
	t.Helper()
	text := "sample"
	if v, ok := tt.sample[s.name()]; ok {
		text = v
	}
	f := s.last()
	switch {
	case s.value != nil:
		m.Set(f, protoreflect.ValueOfEnum((*s.value).Number()))
	case f.IsMap():
		v := protoreflect.ValueOfString(text)
		if f.MapValue().Message() != nil {
			v = m.Mutable(f).Map().NewValue()
			v.Message().Set(f.MapValue().Message().Fields().ByName("exact"), protoreflect.ValueOfString(text))
		} else if f.MapValue().Kind() != protoreflect.StringKind {
			v = scalar(t, f.MapValue(), text)
		}
		m.Mutable(f).Map().Set(protoreflect.ValueOfString("x-sample").MapKey(), v)
	case f.IsList():
		m.Mutable(f).List().Append(scalar(t, f, text))
	case f.Message() != nil: // google.protobuf's
		v := m.NewField(f)
		fields := v.Message().Descriptor().Fields()
		v.Message().Set(fields.Get(0), scalar(t, fields.Get(0), text))
		m.Set(f, v)
	default:
		m.Set(f, scalar(t, f, text))
	}
}

// scalar is text as the kind of a field; where text is no number it is 7.
func scalar(t *testing.T, f protoreflect.FieldDescriptor, text string) protoreflect.Value {
	t.Helper()
	n := int64(7)
	if v, err := strconv.ParseInt(text, 10, 64); err == nil {
		n = v
	}
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(text)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(text))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(text != "false")
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(n)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(n))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(n))
	}
	t.Fatalf("%s is of a kind that has no sample", f.FullName())
	return protoreflect.Value{}
}
