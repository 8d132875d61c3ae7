package ecds

import (
	_ "embed"
	"errors"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	netwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	httpRBACURL = typePrefix + "envoy.extensions.filters.http.rbac.v3.RBAC"
	netRBACURL  = typePrefix + "envoy.extensions.filters.network.rbac.v3.RBAC"
)

// A Situation is what a proxy is doing while an extension's module is missing.
type Situation int

const (
	// Starting: the proxy has taken no traffic yet, and nothing may slip past
	// the extension unless its author allows that.
	Starting Situation = iota
	// Serving: the proxy serves without the extension, which must not disturb it.
	Serving
)

// A Verdict is what stands in for a missing extension does with traffic.
type Verdict string

const (
	Allow Verdict = "allow"
	Deny  Verdict = "deny"
)

// Verdict decides what stands in for e. An extension that is new to a serving
// proxy is a no-op; on a starting proxy its failure policy decides, and what
// says nothing, or cannot be read, denies.
func (e *Extension) Verdict(s Situation) Verdict {
	if s == Serving {
		return Allow
	}
	if e.filter == nil {
		return Deny
	}
	switch c := e.filter.GetConfig(); c.GetFailurePolicy() {
	case wasmv3.FailurePolicy_FAIL_OPEN:
		return Allow
	case wasmv3.FailurePolicy_UNSPECIFIED:
		//lint:ignore SA1019 deprecated, and what control planes still send
		if c.GetFailOpen() {
			return Allow
		}
	}
	return Deny
}

//go:generate wat2wasm allow.wat -o allow.wasm
//go:generate wat2wasm deny.wat -o deny.wasm

//go:embed allow.wasm
var allowModule []byte

//go:embed deny.wasm
var denyModule []byte

// ErrNoFallback says that nothing can stand in for an extension: it is no Wasm
// filter, so the listener need not take one.
var ErrNoFallback = errors.New("nothing stands in for a filter that is not Wasm")

// Fallback returns a resource that stands in for e. It is an RBAC filter where
// the listener takes one (types, the type URLs of its config_discovery), else a
// minimal Wasm module on the runtime that e names, which a listener that takes
// e takes as well. It returns ErrNoFallback if e is not a Wasm filter.
func (e *Extension) Fallback(v Verdict, types []string) (*anypb.Any, error) {
	if !e.wasmFilter {
		return nil, ErrNoFallback
	}
	for _, t := range types {
		if t == httpRBACURL && !e.Network || t == netRBACURL && e.Network {
			return resource(e.Name, e.rbac(v))
		}
	}
	return resource(e.Name, e.wasm(v))
}

// rbac allows everything without rules, and denies everything with rules that
// have no policy (Envoy's config.rbac.v3.RBAC).
func (e *Extension) rbac(v Verdict) proto.Message {
	var rules *rbacv3.RBAC
	if v == Deny {
		rules = new(rbacv3.RBAC)
	}
	if e.Network {
		return &netrbacv3.RBAC{StatPrefix: "chandler_", Rules: rules}
	}
	return &httprbacv3.RBAC{Rules: rules}
}

func (e *Extension) wasm(v Verdict) proto.Message {
	code := allowModule
	if v == Deny {
		code = denyModule
	}
	runtime := e.vm().GetRuntime()
	if runtime == "" {
		runtime = "envoy.wasm.runtime.v8"
	}
	c := &wasmv3.PluginConfig{
		Name: e.Name,
		Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{
			VmId:    "chandler-" + string(v),
			Runtime: runtime,
			Code: &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{
				Local: &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: code}},
			}},
		}},
	}
	if e.Network {
		return &netwasmv3.Wasm{Config: c}
	}
	return &httpwasmv3.Wasm{Config: c}
}
