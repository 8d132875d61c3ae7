// Package envoypatch applies EnvoyFilter resources to Envoy configuration.
//
// [Compile] decodes a filter's patches and refuses what cannot be honoured:
// BOOTSTRAP, waypoints, unknown fields and types, matches and operations that
// would have no effect. [Apply] then changes one proxy's configuration. A patch
// takes effect wholly or not at all, what it would leave in a state that Envoy
// rejects is refused, and no message that was given to Apply is changed: it is
// copied first, because proxies share them.
//
// Source: the EnvoyFilter reference of istio.io/api, and Istio's behaviour where
// that is silent. We differ from Istio on purpose in these:
//   - Patches apply one after the other in the order written, as the reference
//     says; Istio sorts them by applyTo and does merges last.
//   - What is added behind a terminal filter (the router, the HTTP connection
//     manager, the TCP proxy) goes right before it, where Istio has the listener
//     rejected. That also places the filters of every filterClass, since we
//     generate no authentication, authorization or stats filters of our own.
//   - MERGE replaces wrapped scalars (BoolValue …) and Any values, as it does
//     durations; Istio cannot set a wrapped true to false. Where it merges a
//     transport socket, or a filter's typed_config, the rest of the patch counts too.
//   - MERGE of a filter that matches by no name takes the filters of the same
//     type, REPLACE that of the same name, as an example of the reference has it.
//   - EXTENSION_CONFIG can be merged, replaced and removed, by its name.
//   - A filter's name from before Envoy 1.14 (envoy.router) means today's.
//
// Start at [Compile] and [Apply].
package envoypatch

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	api "istio.io/api/networking/v1alpha3"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// A Config is what EnvoyFilter can patch of one proxy's configuration. Its
// objects have Istio's names: listeners virtualInbound and 0.0.0.0_8080,
// clusters DIRECTION|PORT|SUBSET|HOST, routes http.8080, 9080 and
// inbound|9080||. A sidecar's listener has a traffic_direction.
type Config struct {
	Listeners  []*listenerv3.Listener
	Routes     []*routev3.RouteConfiguration
	Clusters   []*clusterv3.Cluster
	Extensions []*corev3.TypedExtensionConfig
}

// A Filter is an EnvoyFilter, compiled: decoded patches, checked for what we
// support. It is not changed once made and safe for concurrent use.
type Filter struct {
	namespace, name string
	patches         []*patch
}

// A patch is one of spec.configPatches.
type patch struct {
	field   string // spec.configPatches[i]
	applyTo api.EnvoyFilter_ApplyTo
	op      api.EnvoyFilter_Patch_Operation
	match   *api.EnvoyFilter_EnvoyConfigObjectMatch // may be nil, as its getters allow
	version *regexp.Regexp                          // of the proxy; nil for any
	value   proto.Message                           // of applyTo's type; nil if REMOVE needs none
}

// A refusal says why a patch, or what it makes, cannot be.
type refusal struct {
	field   string // below the patch's own, with its dot; may be empty
	message string
	mend    string
}

func (r *refusal) Error() string { return r.message }

func refuse(format string, args ...any) *refusal {
	return &refusal{message: fmt.Sprintf(format, args...)}
}

// or returns r with what to do about it.
func (r *refusal) or(format string, args ...any) *refusal {
	r.mend = fmt.Sprintf(format, args...)
	return r
}

func (f *Filter) problem(p *patch, err error) resource.Problem {
	var r *refusal
	if !errors.As(err, &r) {
		r = refuse("%v", err)
	}
	return resource.Problem{
		Kind: "EnvoyFilter", Namespace: f.namespace, Name: f.name,
		Field: p.field + r.field, Message: err.Error(), Mend: r.mend,
	}
}

// Compile decodes f's patches and refuses, as problems, what cannot be honoured.
// A filter with problems is not applied at all: the Filter is then nil. Which
// workloads f selects, and its priority among filters, are the caller's to see to.
func Compile(f *networkingv1alpha3.EnvoyFilter) (*Filter, []resource.Problem) {
	out := &Filter{namespace: f.Namespace, name: f.Name}
	var problems []resource.Problem
	for i, cp := range f.Spec.GetConfigPatches() {
		p := &patch{field: fmt.Sprintf("spec.configPatches[%d]", i)}
		for _, r := range p.compile(cp) {
			problems = append(problems, out.problem(p, r))
		}
		out.patches = append(out.patches, p)
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return out, nil
}

// Apply patches cfg in place: its lists are replaced, their messages are not
// changed. Filters come in the order they apply: by priority, then root
// namespace first, creation time, name; nil ones are skipped. A patch that would
// make something that Envoy rejects, or that exists already, is told as a
// problem and leaves cfg as it was. One that matches nothing is no problem.
func Apply(cfg *Config, proxy mesh.Proxy, filters []*Filter) []resource.Problem {
	var problems []resource.Problem
	for _, f := range filters {
		if f == nil {
			continue
		}
		for _, p := range f.patches {
			if !p.matchesProxy(proxy) {
				continue
			}
			next := *cfg
			if err := p.apply(&next, proxy.Role); err != nil {
				problems = append(problems, f.problem(p, err))
				continue
			}
			*cfg = next
		}
	}
	return problems
}

// apply replaces the lists of cfg that p changes. On error cfg is of no use.
func (p *patch) apply(cfg *Config, role mesh.Role) (err error) {
	switch p.applyTo {
	case api.EnvoyFilter_CLUSTER:
		cfg.Clusters, err = p.clusters(cfg.Clusters, role)
	case api.EnvoyFilter_EXTENSION_CONFIG:
		cfg.Extensions, err = p.extensions(cfg.Extensions)
	case api.EnvoyFilter_ROUTE_CONFIGURATION, api.EnvoyFilter_VIRTUAL_HOST, api.EnvoyFilter_HTTP_ROUTE:
		if cfg.Routes, err = p.routes(cfg.Routes, role); err == nil {
			cfg.Listeners, err = p.listeners(cfg.Listeners, role) // which may hold route configurations
		}
	default:
		cfg.Listeners, err = p.listeners(cfg.Listeners, role)
	}
	return err
}

// each returns list with edit applied to a copy of every element that it is to
// change; edit returns nil for one to be dropped, and its argument if nothing
// is to be done.
func each[M proto.Message](list []M, edit func(M) (M, error)) ([]M, error) {
	out := make([]M, 0, len(list))
	for _, m := range list {
		next, err := edit(m)
		if err != nil {
			return nil, err
		}
		if next.ProtoReflect().IsValid() {
			out = append(out, next)
		}
	}
	return out, nil
}

// changed returns a copy of m with edit applied, or m itself if edit reports
// that it changed nothing. A copy that Envoy would reject is refused, unless m
// was no better.
func changed[M proto.Message](m M, edit func(M) (bool, error)) (M, error) {
	next := proto.Clone(m).(M)
	ok, err := edit(next)
	if err != nil || !ok {
		return m, err
	}
	if r := invalid(next); r != nil && invalid(m) == nil {
		r.message = fmt.Sprintf("%s would be invalid at %s: %s", describe(m), strings.TrimPrefix(r.field, "."), r.message)
		r.field = ".patch.value"
		return m, r
	}
	return next, nil
}

// appended returns list and a copy of the patch's value, which may not bear the
// name of one in list.
func appended[M interface {
	proto.Message
	GetName() string
}](list []M, p *patch) ([]M, error) {
	value := proto.Clone(p.value).(M)
	if slices.ContainsFunc(list, func(m M) bool { return m.GetName() == value.GetName() }) {
		r := refuse("%s exists already", describe(value)).or("give it another name, or use MERGE")
		r.field = ".patch.value.name"
		return nil, r
	}
	return append(slices.Clip(list), value), nil
}
