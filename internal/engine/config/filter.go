package config

import (
	"time"

	udpav1 "github.com/cncf/xds/go/udpa/type/v1"
	xdsv3 "github.com/cncf/xds/go/xds/type/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	netwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// A Kind is where a filter works.
type Kind uint8

const (
	HTTPStream Kind = iota
	Network
)

// A Filter is one of a chain.
type Filter struct {
	Name      string
	Extension Extension     // nil if it is discovered
	Types     []string      // type URLs that may be discovered
	Timeout   time.Duration // how long to wait at first; 0 is forever
}

// An Extension is a filter's configuration: [*Wasm], [*RBAC], [*Fault], [Cors] or [Router].
type Extension interface{ extension() }

// Router sends a request to its route. It is the last HTTP filter.
type Router struct{}

// Cors is a filter that does what routes say.
type Cors struct{}

// Wasm is a Proxy-Wasm plugin.
type Wasm struct {
	Kind          Kind
	Name          string
	RootID        string
	Configuration []byte
	Policy        wasmv3.FailurePolicy // never UNSPECIFIED
	FailOpen      bool                 // the old field of that name: FAIL_OPEN also for streams that the guest had
	Backoff       time.Duration        // of FAIL_RELOAD; 0 is the default

	VMID            string
	Code            Data
	VMConfiguration []byte
	Env             map[string]string
	HostEnv         []string // names of variables to take from the process
}

func (*Wasm) extension()  {}
func (*RBAC) extension()  {}
func (*Fault) extension() {}
func (Cors) extension()   {}
func (Router) extension() {}

// DecodeExtension decodes an extension config. It is one of either kind.
func DecodeExtension(m *corev3.TypedExtensionConfig) (Extension, error) {
	d := new(decoder)
	if !d.start("", m) {
		return nil, d.err
	}
	e := d.extension("typed_config", m.GetName(), m.GetTypedConfig())
	if d.err != nil {
		return nil, d.err
	}
	return e, nil
}

func (d *decoder) filter(path, name string, a *anypb.Any, discovery *corev3.ExtensionConfigSource, kind Kind) Filter {
	f := Filter{Name: name}
	switch {
	case d.err != nil:
	case discovery != nil:
		f.Types = discovery.GetTypeUrls()
		f.Timeout = d.ads(in(path, "config_discovery.config_source"), discovery.GetConfigSource())
	case a == nil:
		d.fail(path, "filter %s has no configuration", name)
	default:
		f.Extension = d.extension(in(path, "typed_config"), name, a)
		if !Fits(f.Extension, kind) {
			d.fail(in(path, "typed_config"), "%s cannot be used here", typeOf(a))
		}
	}
	return f
}

// Fits reports whether e can be used in chains of that kind.
func Fits(e Extension, kind Kind) bool {
	switch e := e.(type) {
	case *Wasm:
		return e.Kind == kind
	case *RBAC:
		return e.Kind == kind
	}
	return kind == HTTPStream
}

func (d *decoder) extension(path, name string, a *anypb.Any) Extension {
	if d.err != nil {
		return nil
	}
	a = d.fromStruct(path, a)
	switch typeOf(a) {
	case "envoy.extensions.filters.http.router.v3.Router":
		d.unpack(path, a, new(routerv3.Router))
		return Router{}
	case "envoy.extensions.filters.http.fault.v3.HTTPFault":
		m := new(faultv3.HTTPFault)
		d.unpack(path, a, m)
		return d.fault(path, m)
	case "envoy.extensions.filters.http.cors.v3.Cors":
		d.unpack(path, a, new(corsv3.Cors))
		return Cors{}
	case "envoy.extensions.filters.http.wasm.v3.Wasm":
		m := new(httpwasmv3.Wasm)
		d.unpack(path, a, m)
		return d.wasm(in(path, "config"), m.GetConfig(), HTTPStream)
	case "envoy.extensions.filters.network.wasm.v3.Wasm":
		m := new(netwasmv3.Wasm)
		d.unpack(path, a, m)
		return d.wasm(in(path, "config"), m.GetConfig(), Network)
	case "envoy.extensions.filters.http.rbac.v3.RBAC":
		m := new(httprbacv3.RBAC)
		d.unpack(path, a, m)
		return d.rbac(in(path, "rules"), m.GetRules(), HTTPStream)
	case "envoy.extensions.filters.network.rbac.v3.RBAC":
		m := new(netrbacv3.RBAC)
		d.unpack(path, a, m)
		return d.rbac(in(path, "rules"), m.GetRules(), Network)
	}
	d.fail(path, "filter %s is not supported by the engine", orName(typeOf(a), name))
	return nil
}

// fromStruct turns a TypedStruct of a type that is known here into that type.
func (d *decoder) fromStruct(path string, a *anypb.Any) *anypb.Any {
	var typed interface {
		proto.Message
		GetTypeUrl() string
		GetValue() *structpb.Struct
	}
	switch typeOf(a) {
	case "udpa.type.v1.TypedStruct":
		typed = new(udpav1.TypedStruct)
	case "xds.type.v3.TypedStruct":
		typed = new(xdsv3.TypedStruct)
	default:
		return a
	}
	if err := a.UnmarshalTo(typed); err != nil {
		d.fail(path, "decode %s: %v", typeOf(a), err)
		return nil
	}
	var m proto.Message
	switch name := typeOf(&anypb.Any{TypeUrl: typed.GetTypeUrl()}); name {
	case "envoy.extensions.filters.http.wasm.v3.Wasm":
		m = new(httpwasmv3.Wasm)
	case "envoy.extensions.filters.network.wasm.v3.Wasm":
		m = new(netwasmv3.Wasm)
	case "envoy.extensions.filters.http.rbac.v3.RBAC":
		m = new(httprbacv3.RBAC)
	case "envoy.extensions.filters.network.rbac.v3.RBAC":
		m = new(netrbacv3.RBAC)
	default:
		d.fail(path, "filter %s is not supported by the engine", name)
		return nil
	}
	raw, err := protojson.Marshal(typed.GetValue())
	if err == nil {
		err = protojson.Unmarshal(raw, m)
	}
	var out *anypb.Any
	if err == nil {
		out, err = anypb.New(m)
	}
	if err != nil {
		d.fail(in(path, "value"), "%v", err)
	}
	return out
}

func (d *decoder) wasm(path string, m *wasmv3.PluginConfig, kind Kind) *Wasm {
	if d.err != nil {
		return nil
	}
	vm := m.GetVmConfig()
	w := &Wasm{
		Kind:            kind,
		Name:            m.GetName(),
		RootID:          m.GetRootId(),
		Configuration:   d.anyBytes(in(path, "configuration"), m.GetConfiguration()),
		Policy:          m.GetFailurePolicy(),
		Backoff:         duration(m.GetReloadConfig().GetBackoff().GetBaseInterval(), 0),
		VMID:            vm.GetVmId(),
		VMConfiguration: d.anyBytes(in(path, "vm_config.configuration"), vm.GetConfiguration()),
		Env:             vm.GetEnvironmentVariables().GetKeyValues(),
		HostEnv:         vm.GetEnvironmentVariables().GetHostEnvKeys(),
	}
	//lint:ignore SA1019 Envoy reads it still
	open := m.GetFailOpen()
	switch {
	case open && w.Policy != wasmv3.FailurePolicy_UNSPECIFIED:
		d.fail(in(path, "fail_open"), "cannot be given together with failure_policy")
	case open:
		w.Policy, w.FailOpen = wasmv3.FailurePolicy_FAIL_OPEN, true
	case w.Policy == wasmv3.FailurePolicy_UNSPECIFIED:
		w.Policy = wasmv3.FailurePolicy_FAIL_CLOSED
	}
	switch vm.GetRuntime() {
	case "envoy.wasm.runtime.v8", "envoy.wasm.runtime.wasmtime", "envoy.wasm.runtime.wamr":
		// Which virtual machine it is makes no difference to a plugin.
	default:
		d.fail(in(path, "vm_config.runtime"), "%q is not supported: the engine runs WebAssembly only", vm.GetRuntime())
	}
	code := in(path, "vm_config.code")
	switch {
	case vm.GetCode().GetRemote() != nil:
		d.fail(in(code, "remote"), "the engine fetches nothing: the agent makes modules local")
	case vm.GetCode().GetLocal() == nil:
		d.fail(code, "required")
	default:
		w.Code = d.data(in(code, "local"), vm.GetCode().GetLocal())
	}
	for _, key := range w.HostEnv {
		if _, ok := w.Env[key]; ok {
			d.fail(in(path, "vm_config.environment_variables"), "%s is in host_env_keys and in key_values", key)
		}
	}
	return w
}

// anyBytes is what of a configuration reaches a plugin: a string or bytes without
// their wrapper, a struct as JSON, anything else as it is encoded.
func (d *decoder) anyBytes(path string, a *anypb.Any) []byte {
	switch typeOf(a) {
	case "":
		return nil
	case "google.protobuf.StringValue":
		m := new(wrapperspb.StringValue)
		d.plain(path, a, m)
		return []byte(m.GetValue())
	case "google.protobuf.BytesValue":
		m := new(wrapperspb.BytesValue)
		d.plain(path, a, m)
		return m.GetValue()
	case "google.protobuf.Struct":
		m := new(structpb.Struct)
		d.plain(path, a, m)
		raw, err := m.MarshalJSON()
		if err != nil {
			d.fail(path, "%v", err)
		}
		return compact(raw)
	}
	return a.GetValue()
}

func (d *decoder) plain(path string, a *anypb.Any, m proto.Message) {
	if err := a.UnmarshalTo(m); err != nil {
		d.fail(path, "decode %s: %v", a.GetTypeUrl(), err)
	}
}
