package mesh

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	netwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	extensions "istio.io/api/extensions/v1alpha1"
	typev1beta1 "istio.io/api/type/v1beta1"
	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/chandler-proxy/chandler/internal/ecds"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// maxLua is the longest Lua script that is accepted, as in Istio's API, bytes.
const maxLua = 64 << 10

// A Phase is where in a chain of filters an extension stands. Phases are in
// the order of their numbers.
type Phase int

const (
	AuthN Phase = iota
	AuthZ
	Stats
	Unspecified // right before the terminal filter
)

// String is the phase as a WasmPlugin writes it.
func (p Phase) String() string {
	return [...]string{AuthN: "AUTHN", AuthZ: "AUTHZ", Stats: "STATS", Unspecified: "UNSPECIFIED_PHASE"}[p]
}

// A Mode says on which side of a connection a workload is.
type Mode int

const (
	Client Mode = iota // outbound of a sidecar, and gateways
	Server             // inbound of a sidecar
)

// An Extension is a WasmPlugin or a TrafficExtension.
type Extension struct {
	Object   resource.Object
	Resource string // name of its filter, and of its ECDS resource
	Phase    Phase
	Priority int32
	Network  bool // a network filter, else an HTTP filter

	// Config is its ECDS resource, made once and shared by pointer. It is nil if
	// the extension is Lua.
	Config *corev3.TypedExtensionConfig
	Lua    string // script

	Reference string // where its module is, with scheme; empty if it is Lua

	attachment Attachment
	matches    []*extensions.TrafficSelector
}

// An Attachment says which proxies a policy of namespace Namespace is for: those
// that TargetRefs name or, if there are none, those of the namespace whose labels
// Selector chooses. A policy of the root namespace is for proxies of all.
type Attachment struct {
	Namespace  string
	Selector   map[string]string
	TargetRefs []*typev1beta1.PolicyTargetReference
}

// Attaches says whether a policy attached so applies to p. TargetRefs can name
// a Gateway of p's namespace that p serves, or, from the root namespace, the
// GatewayClass of that Gateway.
func (w *World) Attaches(a Attachment, p Proxy) bool {
	if a.Namespace != p.Namespace && a.Namespace != w.opts.RootNamespace {
		return false
	}
	if len(a.TargetRefs) == 0 {
		return SubsetOf(a.Selector, p.Labels)
	}
	return slices.ContainsFunc(a.TargetRefs, func(ref *typev1beta1.PolicyTargetReference) bool {
		if ref.Group != gatewayv1.GroupName || p.Labels[GatewayNameLabel] == "" {
			return false
		}
		switch ref.Kind {
		case "Gateway":
			sameNamespace := a.Namespace == p.Namespace && (ref.Namespace == "" || ref.Namespace == p.Namespace)
			return sameNamespace && ref.Name == p.Labels[GatewayNameLabel]
		case "GatewayClass":
			g := w.KubernetesGateway(p)
			return g != nil && a.Namespace == w.opts.RootNamespace && string(g.Spec.GatewayClassName) == ref.Name
		}
		return false
	})
}

// RefuseTargets are the problems of o's targetRefs that no proxy of ours could
// ever meet.
func RefuseTargets(o resource.Object, root string, refs []*typev1beta1.PolicyTargetReference) []resource.Problem {
	var out []resource.Problem
	for i, ref := range refs {
		field := fmt.Sprintf("spec.targetRefs[%d]", i)
		switch {
		case ref.Kind == "Service" || ref.Kind == "ServiceEntry":
			out = append(out, Refuse(o, field, "a "+ref.Kind+" is a target for waypoint proxies only, and there are none",
				"select the workloads behind it: spec.selector.matchLabels"))
		case ref.Group != gatewayv1.GroupName || ref.Kind != "Gateway" && ref.Kind != "GatewayClass":
			out = append(out, Refuse(o, field, fmt.Sprintf("%s of group %q cannot be a target", ref.Kind, ref.Group),
				"name a Gateway or a GatewayClass of "+gatewayv1.GroupName))
		case ref.Kind == "GatewayClass" && o.GetNamespace() != root:
			out = append(out, Refuse(o, field, "a GatewayClass is a target for resources of the root namespace only",
				"move the resource to namespace "+root))
		case ref.Namespace != "" && ref.Namespace != o.GetNamespace():
			out = append(out, Refuse(o, field+".namespace", "a target must be in the resource's own namespace", "remove it"))
		}
	}
	return out
}

// Matches says whether the extension wants traffic of a listener at port where
// its proxy is on the side mode.
func (e *Extension) Matches(mode Mode, port uint32) bool {
	return len(e.matches) == 0 || slices.ContainsFunc(e.matches, func(m *extensions.TrafficSelector) bool {
		return matchesMode(m.Mode, mode) && matchesPort(m.Ports, port)
	})
}

func matchesMode(want typev1beta1.WorkloadMode, mode Mode) bool {
	switch want {
	case typev1beta1.WorkloadMode_CLIENT:
		return mode == Client
	case typev1beta1.WorkloadMode_SERVER:
		return mode == Server
	}
	return true
}

func matchesPort(ports []*typev1beta1.PortSelector, port uint32) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(p *typev1beta1.PortSelector) bool {
		return p.Number == port
	})
}

// Extensions are those that apply to p, in the order of their filters: phase,
// priority descending, Older.
func (w *World) Extensions(p Proxy) []*Extension {
	candidates := w.extensions[w.opts.RootNamespace]
	if p.Namespace != w.opts.RootNamespace {
		candidates = slices.Concat(candidates, w.extensions[p.Namespace])
	}
	var out []*Extension
	for _, e := range candidates {
		if w.Attaches(e.attachment, p) {
			out = append(out, e)
		}
	}
	slices.SortStableFunc(out, inOrder)
	return out
}

// AllExtensions are the extensions of every namespace, ordered as
// [World.Extensions] orders them.
func (w *World) AllExtensions() []*Extension {
	var out []*Extension
	for _, es := range w.extensions {
		out = append(out, es...)
	}
	slices.SortFunc(out, inOrder)
	return out
}

func inOrder(a, b *Extension) int {
	return cmp.Or(cmp.Compare(a.Phase, b.Phase), cmp.Compare(b.Priority, a.Priority), Older(a.Object, b.Object))
}

func (b *indexing) indexExtensions() {
	for _, o := range b.plugins {
		e, problems := b.newExtension(o)
		b.problems = append(b.problems, problems...)
		if e != nil {
			b.extensions[o.GetNamespace()] = append(b.extensions[o.GetNamespace()], e)
		}
	}
	for _, es := range b.extensions {
		slices.SortStableFunc(es, inOrder)
	}
}

// newExtension reads a WasmPlugin or a TrafficExtension. A nil Extension is
// one that cannot be honoured; there can be problems with one that can.
func (b *indexing) newExtension(o resource.Object) (*Extension, []resource.Problem) {
	spec, kind, field := unify(o)
	e := &Extension{
		Object:   o,
		Resource: "extensions.istio.io/" + kind + "/" + o.GetNamespace() + "." + o.GetName(),
		Phase:    phaseOf(spec.Phase),
		Priority: spec.Priority.GetValue(),
		Network:  spec.GetWasm().GetType() == extensions.PluginType_NETWORK,
		attachment: Attachment{
			Namespace: o.GetNamespace(), Selector: spec.GetSelector().GetMatchLabels(), TargetRefs: spec.TargetRefs,
		},
		matches: spec.Match,
	}
	problems := RefuseTargets(o, b.opts.RootNamespace, spec.TargetRefs)
	if len(problems) > 0 {
		return nil, problems
	}
	switch c := spec.FilterConfig.(type) {
	case *extensions.TrafficExtension_Lua:
		if e.Lua = c.Lua.GetInlineCode(); len(e.Lua) == 0 || len(e.Lua) > maxLua {
			return nil, []resource.Problem{Refuse(o, "spec.lua.inlineCode",
				fmt.Sprintf("is %d bytes long", len(e.Lua)), "give between 1 and 65536 bytes")}
		}
	case *extensions.TrafficExtension_Wasm:
		m := wasmModule{World: b.World, object: o, spec: c.Wasm, field: field, name: o.GetNamespace() + "." + o.GetName()}
		e.Config = m.config(e.Resource)
		e.Reference, problems = m.reference, m.problems
		if m.refused {
			return nil, problems
		}
	default:
		return nil, []resource.Problem{Refuse(o, "spec", "has neither wasm nor lua", "give one of them")}
	}
	return e, problems
}

// unify tells a WasmPlugin as the TrafficExtension it is; field is where in o
// the module's settings are.
func unify(o resource.Object) (spec *extensions.TrafficExtension, kind, field string) {
	if te, ok := o.(*extensionsv1alpha1.TrafficExtension); ok {
		return &te.Spec, "trafficextension", "spec.wasm."
	}
	in := &o.(*extensionsv1alpha1.WasmPlugin).Spec
	spec = &extensions.TrafficExtension{
		Selector:   in.Selector,
		TargetRefs: in.TargetRefs,
		Phase:      extensions.TrafficExtension_ExecutionPhase(in.Phase), // same numbers
		Priority:   in.Priority,
		FilterConfig: &extensions.TrafficExtension_Wasm{Wasm: &extensions.WasmConfig{
			Url: in.Url, Sha256: in.Sha256, ImagePullPolicy: in.ImagePullPolicy, ImagePullSecret: in.ImagePullSecret,
			VerificationKey: in.VerificationKey, PluginConfig: in.PluginConfig, PluginName: in.PluginName,
			FailStrategy: in.FailStrategy, VmConfig: in.VmConfig, Type: in.Type,
		}},
	}
	if len(spec.TargetRefs) == 0 && in.TargetRef != nil {
		spec.TargetRefs = []*typev1beta1.PolicyTargetReference{in.TargetRef}
	}
	for _, m := range in.Match {
		spec.Match = append(spec.Match, &extensions.TrafficSelector{Mode: m.Mode, Ports: m.Ports})
	}
	return spec, "wasmplugin", "spec."
}

func phaseOf(p extensions.TrafficExtension_ExecutionPhase) Phase {
	switch p {
	case extensions.TrafficExtension_AUTHN:
		return AuthN
	case extensions.TrafficExtension_AUTHZ:
		return AuthZ
	case extensions.TrafficExtension_STATS:
		return Stats
	}
	return Unspecified
}

// A wasmModule is the making of one ECDS resource.
type wasmModule struct {
	*World
	object   resource.Object
	spec     *extensions.WasmConfig
	field    string // prefix of problems' fields
	name     string // NAMESPACE.NAME
	problems []resource.Problem
	refused  bool

	reference string
}

func (m *wasmModule) refuse(field, message, mend string) {
	m.problems = append(m.problems, Refuse(m.object, m.field+field, message, mend))
	m.refused = true
}

// config is the ECDS resource; it means nothing if m is refused.
func (m *wasmModule) config(resourceName string) *corev3.TypedExtensionConfig {
	if m.spec.VerificationKey != "" {
		m.refuse("verificationKey", "signatures cannot be verified yet", "remove it, and pin the module by sha256")
	}
	plugin := &wasmv3.PluginConfig{
		Name:          m.name,
		RootId:        m.spec.PluginName,
		Configuration: m.configuration(),
		Vm:            &wasmv3.PluginConfig_VmConfig{VmConfig: m.vm()},
		FailurePolicy: failurePolicy(m.spec.FailStrategy),
	}
	var filter proto.Message = &httpwasmv3.Wasm{Config: plugin}
	if m.spec.Type == extensions.PluginType_NETWORK {
		filter = &netwasmv3.Wasm{Config: plugin}
	}
	return &corev3.TypedExtensionConfig{Name: resourceName, TypedConfig: m.any("", filter)}
}

// failurePolicy is Envoy's word for a failStrategy. The older fail_open is not
// set beside it: Envoy refuses a configuration that has both.
func failurePolicy(s extensions.FailStrategy) wasmv3.FailurePolicy {
	switch s {
	case extensions.FailStrategy_FAIL_OPEN:
		return wasmv3.FailurePolicy_FAIL_OPEN
	case extensions.FailStrategy_FAIL_RELOAD:
		return wasmv3.FailurePolicy_FAIL_RELOAD
	}
	return wasmv3.FailurePolicy_FAIL_CLOSED
}

// any encodes deterministically, so that equal resources have equal versions.
func (m *wasmModule) any(field string, msg proto.Message) *anypb.Any {
	out := new(anypb.Any)
	if err := anypb.MarshalFrom(out, msg, proto.MarshalOptions{Deterministic: true}); err != nil {
		m.refuse(field, "cannot be encoded: "+err.Error(), "write valid UTF-8")
	}
	return out
}

// configuration is pluginConfig as JSON, as the module receives it. protojson is
// of no use here: it varies its spaces on purpose.
func (m *wasmModule) configuration() *anypb.Any {
	if len(m.spec.PluginConfig.GetFields()) == 0 {
		return nil
	}
	text, err := compactJSON(m.spec.PluginConfig)
	if err != nil {
		m.refuse("pluginConfig", "cannot be written as JSON: "+err.Error(), "")
	}
	return m.any("pluginConfig", wrapperspb.String(text))
}

func compactJSON(s *structpb.Struct) (string, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(s.AsMap())
	return strings.TrimSuffix(b.String(), "\n"), err
}

func (m *wasmModule) vm() *wasmv3.VmConfig {
	env := m.environment()
	code := m.code()
	vm := &wasmv3.VmConfig{
		VmId:                 vmID(code, env),
		Runtime:              "envoy.wasm.runtime.v8",
		Code:                 code,
		EnvironmentVariables: env,
	}
	if s := m.spec.ImagePullSecret; s != "" {
		env.KeyValues[ecds.PullSecretEnv] = m.pullSecret(s)
	}
	if p := m.spec.ImagePullPolicy; p != extensions.PullPolicy_UNSPECIFIED_POLICY {
		env.KeyValues[ecds.PullPolicyEnv] = p.String()
	}
	env.KeyValues[ecds.ResourceVersionEnv] = m.version()
	return vm
}

// vmID makes plugins of one module and one environment share a VM: Envoy keys
// VMs by vm_id and code. What only the agent reads is not part of it.
func vmID(code *corev3.AsyncDataSource, env *wasmv3.EnvironmentVariables) string {
	h := sha256.New()
	for _, m := range []proto.Message{code, env} {
		// Marshalling fails for invalid UTF-8 only, and the whole resource then does.
		b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		fmt.Fprintf(h, "%d %s", len(b), b)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

func (m *wasmModule) environment() *wasmv3.EnvironmentVariables {
	env := &wasmv3.EnvironmentVariables{KeyValues: map[string]string{}}
	seen := map[string]bool{}
	for i, v := range m.spec.VmConfig.GetEnv() {
		field := fmt.Sprintf("vmConfig.env[%d]", i)
		switch {
		case strings.HasPrefix(v.Name, ecds.MetaPrefix):
			m.refuse(field+".name", v.Name+": the prefix "+ecds.MetaPrefix+" is reserved", "choose another name")
		case seen[v.Name]:
			m.refuse(field+".name", v.Name+" is there twice", "remove one")
		case v.ValueFrom == extensions.EnvValueSource_HOST:
			env.HostEnvKeys = append(env.HostEnvKeys, v.Name)
		default:
			env.KeyValues[v.Name] = v.Value
		}
		seen[v.Name] = true
	}
	slices.Sort(env.HostEnvKeys)
	return env
}

// code says where the module is. The cluster of a remote module is never used:
// the agent fetches.
func (m *wasmModule) code() *corev3.AsyncDataSource {
	address := m.spec.Url
	if !strings.Contains(address, "://") {
		address = "oci://" + address
	}
	m.reference = address
	u, err := url.Parse(address)
	if err != nil {
		m.refuse("url", "is not a URL: "+strings.TrimPrefix(err.Error(), "parse "), "write oci://, https://, http:// or file://")
		return nil
	}
	switch u.Scheme {
	case "file":
		path := strings.TrimPrefix(address, "file://")
		return &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{Local: &corev3.DataSource{
			Specifier: &corev3.DataSource_Filename{Filename: path}}}}
	case "oci", "http", "https":
		return &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Remote{Remote: &corev3.RemoteDataSource{
			HttpUri: &corev3.HttpUri{
				Uri:              address,
				HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: "_"},
				Timeout:          durationpb.New(30 * time.Second),
			},
			Sha256: m.spec.Sha256,
		}}}
	}
	m.refuse("url", "scheme "+u.Scheme+" is not known", "write oci://, https://, http:// or file://")
	return nil
}

// pullSecret is the dockerconfigjson of the Secret in the extension's own
// namespace. Without it the module is pulled without credentials, as in Istio.
func (m *wasmModule) pullSecret(name string) string {
	name = strings.TrimPrefix(name, "kubernetes://")
	namespace := m.object.GetNamespace()
	s := m.Secret(namespace, name)
	if s == nil || len(s.Data[corev1.DockerConfigJsonKey]) == 0 {
		m.problems = append(m.problems, Refuse(m.object, m.field+"imagePullSecret",
			fmt.Sprintf("there is no Secret %s/%s with %s", namespace, name, corev1.DockerConfigJsonKey),
			"create it with kubectl create secret docker-registry"))
		return ""
	}
	return string(s.Data[corev1.DockerConfigJsonKey])
}

// version changes when the user changes the resource: pull policy Always then
// pulls again. It is not resourceVersion, which Istio takes: that also changes
// when status is written, and a file has none.
func (m *wasmModule) version() string {
	h := sha256.New()
	fmt.Fprintln(h, m.object.GetUID())
	enc := json.NewEncoder(h)
	annotations := m.object.GetAnnotations()
	for _, k := range slices.Sorted(maps.Keys(annotations)) {
		if k != corev1.LastAppliedConfigAnnotation {
			_ = enc.Encode([]string{k, annotations[k]}) // a hash takes every write
		}
	}
	_ = enc.Encode(m.object.GetLabels())
	// Marshalling fails for invalid UTF-8 only, and the whole resource then does.
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m.spec)
	h.Write(b)
	return hex.EncodeToString(h.Sum(nil)[:8])
}
