// Package translate turns a World and one class of proxies into Envoy
// configuration: listeners, routes, clusters, endpoints, secrets, and the
// extensions in their order among the filters.
//
// It is pure: no I/O, no clock; equal input gives equal output, byte for byte.
// What it cannot build it refuses as a problem that names the field and a mend,
// and it leaves out no more than that: a route that cannot be honoured answers
// 500 or is not there, its listener stays. Names (0.0.0.0_8080, http.8080,
// outbound|80||HOST, virtualInbound) and defaults follow Istio, whose users and
// EnvoyFilters know them; the Gateway API's precedence rules follow its
// specification. Clusters, endpoints and extension configs are shared by pointer
// between the Resources of many classes: none of it may be changed.
//
// Nothing is in Resources that nothing there refers to: an ADS server that waits
// until all of a snapshot is asked for would wait for ever.
//
// Start at [Build]: gateway.go is for gateways, inbound.go and outbound.go for
// sidecars, filters.go is where extensions go in.
package translate

import (
	"encoding/json"
	"maps"
	"slices"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/chandler-proxy/chandler/internal/envoypatch"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// Resources is the whole configuration of one class of proxies. To be encoded
// equal, encode it deterministically: some messages hold maps.
type Resources struct {
	envoypatch.Config // listeners, routes, clusters, extension configs
	Endpoints         []*endpointv3.ClusterLoadAssignment
	Secrets           []*tlsv3.Secret
}

// Class is the key of the proxies that get the same configuration as p: what of
// p matters to Build, and nothing else.
func Class(p mesh.Proxy) string {
	key := struct {
		Role       mesh.Role
		Namespace  string
		Cluster    string
		Workload   string
		Labels     map[string]string
		Version    string
		Metadata   map[string]string
		Redirected bool
		Engine     bool
		Families   families
		IPs        []string
	}{p.Role, p.Namespace, p.Cluster, p.Workload, nonEmpty(p.Labels), p.Version, nonEmpty(p.Metadata), p.Redirected, p.Engine, familiesOf(p), nil}
	if p.ByAddress() {
		for _, ip := range p.IPs {
			key.IPs = append(key.IPs, ip.String())
		}
	}
	b, err := json.Marshal(key)
	if err != nil {
		panic(err) // strings and booleans only
	}
	return string(b)
}

func nonEmpty(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return m
}

// Extensions are the extensions that apply to p, in the order of their filters.
// Their match may still keep them out of some, or all, of its listeners.
func Extensions(w *mesh.World, p mesh.Proxy) []*mesh.Extension { return w.Extensions(p) }

// Build turns the world into the configuration of p and of every proxy of its
// class. Problems are of what concerns p and cannot be honoured; each is told
// once, in a stable order.
func Build(w *mesh.World, p mesh.Proxy) (*Resources, []resource.Problem) {
	b := &builder{
		world:      w,
		view:       w.View(p.Namespace),
		proxy:      p,
		extensions: w.Extensions(p),
		used:       map[*mesh.Extension]bool{},
		secrets:    map[string]*tlsv3.Secret{},
		listeners:  map[string]bool{},
		told:       map[resource.Problem]bool{},
	}
	b.addClusters()
	switch p.Role {
	case mesh.Router:
		b.buildGateways()
	case mesh.Sidecar:
		b.buildInbound()
		b.buildOutbound()
	}
	b.addExtensions()
	b.addSecrets()
	b.patch()
	b.addIPv6()
	return &b.out, b.problems
}

// A builder is the making of one Resources.
type builder struct {
	world      *mesh.World
	view       *mesh.View
	proxy      mesh.Proxy
	extensions []*mesh.Extension        // that apply to proxy, in order
	used       map[*mesh.Extension]bool // those that are in some filter chain
	secrets    map[string]*tlsv3.Secret // by SDS name
	listeners  map[string]bool          // names of out.Listeners
	ports      []inboundPort            // of a sidecar's workload
	forMesh    meshRoutes
	out        Resources
	problems   []resource.Problem
	told       map[resource.Problem]bool
}

func (b *builder) refuse(o resource.Object, field, message, mend string) {
	b.tell(mesh.Refuse(o, field, message, mend))
}

func (b *builder) tell(problems ...resource.Problem) {
	for _, p := range problems {
		if !b.told[p] {
			b.told[p] = true
			b.problems = append(b.problems, p)
		}
	}
}

// wildcard is the address that stands for all addresses of the proxy.
func (b *builder) wildcard() string {
	if b.proxy.IPv6Only() {
		return "::"
	}
	return "0.0.0.0"
}

func (b *builder) addListener(l *listenerv3.Listener) {
	b.listeners[l.Name] = true
	b.out.Listeners = append(b.out.Listeners, l)
}

func (b *builder) addExtensions() {
	for _, e := range b.extensions {
		if e.Config != nil && b.used[e] {
			b.out.Extensions = append(b.out.Extensions, e.Config)
		}
	}
}

func (b *builder) addSecrets() {
	for _, name := range sortedKeys(b.secrets) {
		b.out.Secrets = append(b.out.Secrets, b.secrets[name])
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
