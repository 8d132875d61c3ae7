// Package ecds works on one extension config as it passes between a control
// plane and a proxy: what module it wants ([Decode]), the same config with the
// module at a local file ([Extension.Localize]), and what stands in for it
// while there is no module ([Extension.Fallback]).
//
// It is pure: fetching happens between Decode and Localize, elsewhere. Inputs
// are never changed. Whatever leaves it is free of the ISTIO_META_ variables
// through which the control plane speaks to the agent, so that no secret
// reaches the proxy.
//
// The conventions are Istio's (pkg/wasm): remote.http_uri carries the module's
// URL, VM environment variables carry pull secret, policy and resource version.
package ecds

import (
	"errors"
	"fmt"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	netwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	udpav1 "github.com/cncf/xds/go/udpa/type/v1"
	xdsv3 "github.com/cncf/xds/go/xds/type/v3"

	"github.com/chandler-proxy/chandler/internal/module"
)

// TypeURL is the type of an extension config resource.
const TypeURL = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"

// The environment variables of a Wasm VM through which Istio's control plane
// speaks to the agent, which strips them. A user may set none of that prefix.
const (
	MetaPrefix         = "ISTIO_META_"
	PullSecretEnv      = MetaPrefix + "WASM_IMAGE_PULL_SECRET"
	PullPolicyEnv      = MetaPrefix + "WASM_IMAGE_PULL_POLICY"
	ResourceVersionEnv = MetaPrefix + "WASM_PLUGIN_RESOURCE_VERSION"
)

const (
	typePrefix  = "type.googleapis.com/"
	httpWasmURL = typePrefix + "envoy.extensions.filters.http.wasm.v3.Wasm"
	netWasmURL  = typePrefix + "envoy.extensions.filters.network.wasm.v3.Wasm"
	udpaStruct  = typePrefix + "udpa.type.v1.TypedStruct"
	xdsStruct   = typePrefix + "xds.type.v3.TypedStruct"
)

var (
	// ErrNotRemote says that an extension config names no remote module.
	ErrNotRemote = errors.New("no remote module")
	// ErrNoURI says that an extension config wants a remote module and does not say where it is.
	ErrNoURI = errors.New("the remote module has no http_uri")
)

// A filter is what Envoy's HTTP and network Wasm filters have in common.
type filter interface {
	proto.Message
	GetConfig() *wasmv3.PluginConfig
}

// An Extension is one decoded extension config.
type Extension struct {
	Name    string
	Network bool // a network filter, not an HTTP filter

	res        *anypb.Any // as received
	wasmFilter bool       // even if it could not be decoded
	filter     filter     // nil if the extension is not a Wasm filter, or could not be decoded
}

// Decode reads one extension config resource. On an error the Extension is not
// nil if at least its name and kind of filter could be read, so that Fallback
// can stand in for it.
func Decode(res *anypb.Any) (*Extension, error) {
	ec := new(corev3.TypedExtensionConfig)
	if err := res.UnmarshalTo(ec); err != nil {
		return nil, fmt.Errorf("decode extension config: %w", err)
	}
	e := &Extension{Name: ec.GetName(), res: res}
	f, err := decodeFilter(ec.GetTypedConfig())
	if f != nil {
		_, e.Network = f.(*netwasmv3.Wasm)
		e.wasmFilter = true
	}
	if err != nil {
		return e, fmt.Errorf("decode extension config %s: %w", e.Name, err)
	}
	e.filter = f
	return e, nil
}

// Name is the name of an extension config resource, empty if res is none.
func Name(res *anypb.Any) string {
	ec := new(corev3.TypedExtensionConfig)
	if res.UnmarshalTo(ec) != nil {
		return ""
	}
	return ec.GetName()
}

// decodeFilter returns the Wasm filter in a, given as the type itself or as a
// TypedStruct, or nil if a is another kind of filter. On an error the filter is
// only good to tell its type.
func decodeFilter(a *anypb.Any) (filter, error) {
	switch a.GetTypeUrl() {
	case udpaStruct:
		s := new(udpav1.TypedStruct)
		if err := a.UnmarshalTo(s); err != nil {
			return nil, err
		}
		return filterFromStruct(s.GetTypeUrl(), s.GetValue())
	case xdsStruct:
		s := new(xdsv3.TypedStruct)
		if err := a.UnmarshalTo(s); err != nil {
			return nil, err
		}
		return filterFromStruct(s.GetTypeUrl(), s.GetValue())
	}
	f := newFilter(a.GetTypeUrl())
	if f == nil {
		return nil, nil
	}
	return f, a.UnmarshalTo(f)
}

func newFilter(typeURL string) filter {
	switch typePrefix + typeURL[strings.LastIndexByte(typeURL, '/')+1:] {
	case httpWasmURL:
		return new(httpwasmv3.Wasm)
	case netWasmURL:
		return new(netwasmv3.Wasm)
	}
	return nil
}

func filterFromStruct(typeURL string, s *structpb.Struct) (filter, error) {
	f := newFilter(typeURL)
	if f == nil {
		return nil, nil
	}
	text, err := s.MarshalJSON()
	if err != nil {
		return f, err
	}
	return f, protojson.Unmarshal(text, f)
}

// Want is the remote module that e needs. It is ErrNotRemote if e needs none,
// ErrNoURI if e does not say where it is, and another error if what e says of
// it cannot be understood.
func (e *Extension) Want() (module.Want, error) {
	remote := e.vm().GetCode().GetRemote()
	if remote == nil {
		return module.Want{}, ErrNotRemote
	}
	uri := remote.GetHttpUri()
	if uri.GetUri() == "" {
		return module.Want{}, ErrNoURI
	}
	ref, err := module.ParseRef(uri.GetUri(), remote.GetSha256())
	if err != nil {
		return module.Want{}, err
	}
	env := e.vm().GetEnvironmentVariables().GetKeyValues()
	policy, err := pullPolicy(env[PullPolicyEnv])
	return module.Want{
		Ref:     ref,
		Policy:  policy,
		Version: env[ResourceVersionEnv],
		Secret:  []byte(env[PullSecretEnv]),
		Timeout: uri.GetTimeout().AsDuration(),
	}, err
}

func pullPolicy(s string) (module.PullPolicy, error) {
	switch s {
	case "", "UNSPECIFIED_POLICY":
		return module.PullDefault, nil
	case "IfNotPresent":
		return module.PullIfNotPresent, nil
	case "Always":
		return module.PullAlways, nil
	}
	return 0, fmt.Errorf("%s: %q is no pull policy; want IfNotPresent or Always", PullPolicyEnv, s)
}

func (e *Extension) vm() *wasmv3.VmConfig {
	if e.filter == nil {
		return nil
	}
	return e.filter.GetConfig().GetVmConfig()
}

// Localize returns e's resource with its module at the file path. It returns
// ErrNotRemote unless e wants a remote module.
func (e *Extension) Localize(path string) (*anypb.Any, error) {
	if e.vm().GetCode().GetRemote() == nil {
		return nil, ErrNotRemote
	}
	return e.encode(&corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{
		Local: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}},
	}})
}

// Pass returns e's resource as it was received, only without ISTIO_META_
// variables. It is for what wants no remote module.
func (e *Extension) Pass() (*anypb.Any, error) {
	if !hasMeta(e.vm().GetEnvironmentVariables().GetKeyValues()) {
		return e.res, nil
	}
	return e.encode(e.vm().GetCode())
}

func hasMeta(env map[string]string) bool {
	for k := range env {
		if strings.HasPrefix(k, MetaPrefix) {
			return true
		}
	}
	return false
}

// Plugin is the plugin's configuration, without ISTIO_META_ variables; nil if e
// is not a Wasm filter.
func (e *Extension) Plugin() *wasmv3.PluginConfig {
	if e.filter == nil {
		return nil
	}
	return e.withoutMeta().GetConfig()
}

// withoutMeta returns a copy of e's filter without ISTIO_META_ variables.
func (e *Extension) withoutMeta() filter {
	f := proto.Clone(e.filter).(filter)
	vm := f.GetConfig().GetVmConfig()
	env := vm.GetEnvironmentVariables()
	if env == nil {
		return f
	}
	for k := range env.GetKeyValues() {
		if strings.HasPrefix(k, MetaPrefix) {
			delete(env.GetKeyValues(), k)
		}
	}
	if len(env.GetKeyValues())+len(env.GetHostEnvKeys()) == 0 {
		vm.EnvironmentVariables = nil
	}
	return f
}

// encode returns e's resource with other code and without ISTIO_META_ variables.
func (e *Extension) encode(code *corev3.AsyncDataSource) (*anypb.Any, error) {
	f := e.withoutMeta()
	f.GetConfig().GetVmConfig().Code = code
	return resource(e.Name, f)
}

func resource(name string, f proto.Message) (*anypb.Any, error) {
	typed, err := anypb.New(f)
	if err != nil {
		return nil, fmt.Errorf("encode extension config %s: %w", name, err)
	}
	res, err := anypb.New(&corev3.TypedExtensionConfig{Name: name, TypedConfig: typed})
	if err != nil {
		return nil, fmt.Errorf("encode extension config %s: %w", name, err)
	}
	return res, nil
}
