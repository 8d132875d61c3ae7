package translate

import (
	"cmp"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/chandler-proxy/chandler/internal/envoypatch"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// An envoyFilter is one EnvoyFilter, compiled.
type envoyFilter struct {
	object     *networkingv1alpha3.EnvoyFilter
	attachment mesh.Attachment
	compiled   *envoypatch.Filter // nil if it has problems
	problems   []resource.Problem
}

type filtersKey struct{}

// envoyFilters are all EnvoyFilters in the order they apply: priority, root
// namespace first, Older. They are compiled once for a World.
func envoyFilters(w *mesh.World) []envoyFilter {
	return mesh.Derive(w, filtersKey{}, func() []envoyFilter {
		root := w.Options().RootNamespace
		var out []envoyFilter
		for _, o := range w.EnvoyFilters() {
			f := envoyFilter{object: o, attachment: mesh.Attachment{
				Namespace: o.Namespace, Selector: o.Spec.GetWorkloadSelector().GetLabels(), TargetRefs: o.Spec.TargetRefs,
			}}
			f.problems = mesh.RefuseTargets(o, root, o.Spec.TargetRefs)
			compiled, problems := envoypatch.Compile(o)
			f.problems = append(f.problems, problems...)
			if len(f.problems) == 0 {
				f.compiled = compiled
			}
			out = append(out, f)
		}
		inRoot := func(f envoyFilter) int {
			if f.object.Namespace == root {
				return 0
			}
			return 1
		}
		slices.SortStableFunc(out, func(a, b envoyFilter) int {
			return cmp.Or(cmp.Compare(a.object.Spec.Priority, b.object.Spec.Priority), cmp.Compare(inRoot(a), inRoot(b)))
		})
		return out
	})
}

// patch applies the EnvoyFilters that select the proxy, then drops what nothing
// refers to any more.
func (b *builder) patch() {
	var apply []*envoypatch.Filter
	for _, f := range envoyFilters(b.world) {
		if b.world.Attaches(f.attachment, b.proxy) {
			b.tell(f.problems...)
			if f.compiled != nil {
				apply = append(apply, f.compiled)
			}
		}
	}
	if len(apply) == 0 {
		return
	}
	b.tell(envoypatch.Apply(&b.out.Config, b.proxy, apply)...)
	b.prune()
}

// prune drops the routes, extension configs, endpoints and secrets that no
// listener and no cluster names.
func (b *builder) prune() {
	r := references{routes: map[string]bool{}, extensions: map[string]bool{}, endpoints: map[string]bool{}, secrets: map[string]bool{}}
	for _, l := range b.out.Listeners {
		r.gather(l.ProtoReflect())
	}
	for _, c := range b.out.Clusters {
		r.gather(c.ProtoReflect())
	}
	out := &b.out
	out.Extensions = named(out.Extensions, r.extensions, (*corev3.TypedExtensionConfig).GetName)
	out.Routes = named(out.Routes, r.routes, (*routev3.RouteConfiguration).GetName)
	out.Endpoints = named(out.Endpoints, r.endpoints, (*endpointv3.ClusterLoadAssignment).GetClusterName)
	for _, e := range out.Extensions {
		r.gather(e.ProtoReflect())
	}
	out.Secrets = named(out.Secrets, r.secrets, (*tlsv3.Secret).GetName)
}

func named[M any](all []M, names map[string]bool, name func(M) string) []M {
	var out []M
	for _, m := range all {
		if names[name(m)] {
			out = append(out, m)
		}
	}
	return out
}

// references are the names by which messages refer to others.
type references struct{ routes, extensions, endpoints, secrets map[string]bool }

// gather finds the references in m and in all that it holds, packed or not.
func (r *references) gather(m protoreflect.Message) {
	switch m := m.Interface().(type) {
	case *anypb.Any:
		if inner, err := m.UnmarshalNew(); err == nil { // else of a type unknown to us
			r.gather(inner.ProtoReflect())
		}
		return
	case *hcmv3.Rds:
		r.routes[m.RouteConfigName] = true
	case *tlsv3.SdsSecretConfig:
		r.secrets[m.Name] = true
	case *clusterv3.Cluster:
		if m.GetType() == clusterv3.Cluster_EDS {
			r.endpoints[cmp.Or(m.GetEdsClusterConfig().GetServiceName(), m.Name)] = true
		}
	case interface {
		proto.Message
		GetName() string
		GetConfigDiscovery() *corev3.ExtensionConfigSource
	}:
		if m.GetConfigDiscovery() != nil {
			r.extensions[m.GetName()] = true
		}
	}
	inside(m, r.gather)
}

// inside visits the messages that m has in its fields.
func inside(m protoreflect.Message, visit func(protoreflect.Message)) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					visit(v.Message())
					return true
				})
			}
		case f.IsList():
			if f.Message() != nil {
				for i := range v.List().Len() {
					visit(v.List().Get(i).Message())
				}
			}
		case f.Message() != nil:
			visit(v.Message())
		}
		return true
	})
}
