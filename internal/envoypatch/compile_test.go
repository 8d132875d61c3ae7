package envoypatch

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	"sigs.k8s.io/yaml"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

func TestCompileRefuses(t *testing.T) {
	value := func(v string) string { return `{applyTo: HTTP_FILTER, patch: {operation: ADD, value: ` + v + `}}` }
	typed := func(v string) string { return value(`{name: x, typed_config: ` + v + `}`) }
	cluster := func(v string) string { return `{applyTo: CLUSTER, patch: {operation: MERGE, value: ` + v + `}}` }
	const wasm = `type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm`
	for _, tt := range []struct{ name, patch, want string }{
		// target and operation
		{"nothing", `{}`, `.applyTo: is missing`},
		{"bootstrap", `{applyTo: BOOTSTRAP, patch: {operation: MERGE, value: {}}}`, `.applyTo: BOOTSTRAP cannot be patched; a proxy's bootstrap is the agent's to write: give it one of your own`},
		{"waypoint", `{applyTo: CLUSTER, match: {context: WAYPOINT}, patch: {operation: REMOVE}}`, `.match: there are no waypoints here; use context GATEWAY, SIDECAR_INBOUND or SIDECAR_OUTBOUND`},
		{"no patch", `{applyTo: CLUSTER}`, `.patch.operation: is missing`},
		{"no value", `{applyTo: CLUSTER, patch: {operation: ADD}}`, `.patch.value: is missing`},
		{"replace a cluster", `{applyTo: CLUSTER, patch: {operation: REPLACE, value: {name: x}}}`,
			`.patch.operation: REPLACE does nothing to CLUSTER; use one of ADD, REMOVE, MERGE, MERGE_AND_REPLACE_LIST, INSERT_BEFORE, INSERT_AFTER, INSERT_FIRST`},
		{"add a route configuration", `{applyTo: ROUTE_CONFIGURATION, patch: {operation: ADD, value: {name: x}}}`,
			`.patch.operation: ADD does nothing to ROUTE_CONFIGURATION; use one of MERGE, MERGE_AND_REPLACE_LIST`},

		// match
		{"cluster by listener", `{applyTo: CLUSTER, match: {listener: {}}, patch: {operation: REMOVE}}`, `.match: CLUSTER is matched by cluster only`},
		{"http filter by route", `{applyTo: HTTP_FILTER, match: {routeConfiguration: {}}, patch: {operation: ADD, value: ` + newFilter + `}}`, `.match: HTTP_FILTER is matched by listener only`},
		{"route by cluster", `{applyTo: HTTP_ROUTE, match: {cluster: {}}, patch: {operation: REMOVE}}`, `.match: HTTP_ROUTE is matched by routeConfiguration only`},
		{"extension by listener", `{applyTo: EXTENSION_CONFIG, match: {listener: {}}, patch: {operation: ADD, value: ` + newFilter + `}}`, `.match: EXTENSION_CONFIG is matched by context and proxy only`},
		{"cluster name and more", `{applyTo: CLUSTER, match: {cluster: {name: x, portNumber: 1}}, patch: {operation: REMOVE}}`, `.match.cluster: name goes with no other condition; leave out portNumber, service and subset`},
		{"listener portName", `{applyTo: LISTENER, match: {listener: {portName: http}}, patch: {operation: REMOVE}}`, `.match.listener.portName: cannot be matched, in Istio either; use portNumber`},
		{"sidecar's portName", `{applyTo: VIRTUAL_HOST, match: {context: SIDECAR_INBOUND, routeConfiguration: {portName: http}}, patch: {operation: REMOVE}}`, `.match.routeConfiguration.portName: only a gateway's routes have one; use portNumber`},
		{"sidecar's gateway", `{applyTo: VIRTUAL_HOST, match: {context: SIDECAR_INBOUND, routeConfiguration: {gateway: a/b}}, patch: {operation: REMOVE}}`, `.match.routeConfiguration.gateway: only a gateway's routes have one`},
		{"listener by chain", `{applyTo: LISTENER, match: {listener: {filterChain: {sni: a}}}, patch: {operation: REMOVE}}`, `.match.listener.filterChain: has no effect on LISTENER; match by name or portNumber, or use applyTo FILTER_CHAIN`},
		{"chain by filter", `{applyTo: FILTER_CHAIN, match: {listener: {filterChain: {filter: {name: a}}}}, patch: {operation: REMOVE}}`, `.match.listener.filterChain.filter: has no effect on FILTER_CHAIN; use applyTo NETWORK_FILTER`},
		{"network filter by listener filter", `{applyTo: NETWORK_FILTER, match: {listener: {listenerFilter: a}}, patch: {operation: ADD, value: ` + newFilter + `}}`, `.match.listener.listenerFilter: has no effect on NETWORK_FILTER; use applyTo LISTENER_FILTER`},
		{"filter without a name", `{applyTo: NETWORK_FILTER, match: {listener: {filterChain: {filter: {}}}}, patch: {operation: REMOVE}}`, `.match.listener.filterChain.filter.name: is missing`},
		{"http filter in tcp proxy", `{applyTo: HTTP_FILTER, match: {listener: {filterChain: {filter: {name: envoy.filters.network.tcp_proxy}}}}, patch: {operation: ADD, value: ` + newFilter + `}}`,
			`.match.listener.filterChain.filter.name: no HTTP filters are in "envoy.filters.network.tcp_proxy"; use envoy.filters.network.http_connection_manager`},
		{"network filter by http filter", `{applyTo: NETWORK_FILTER, match: {` + anHCM + `, subFilter: {name: a}}}}}, patch: {operation: REMOVE}}`, `.match.listener.filterChain.filter.subFilter: has no effect on NETWORK_FILTER; use applyTo HTTP_FILTER`},
		{"virtual host by route", `{applyTo: VIRTUAL_HOST, match: {routeConfiguration: {vhost: {route: {name: a}}}}, patch: {operation: REMOVE}}`, `.match.routeConfiguration.vhost.route: has no effect on VIRTUAL_HOST; use applyTo HTTP_ROUTE`},
		{"routes by virtual host", `{applyTo: ROUTE_CONFIGURATION, match: {routeConfiguration: {vhost: {name: a}}}, patch: {operation: MERGE, value: {}}}`, `.match.routeConfiguration.vhost: has no effect on ROUTE_CONFIGURATION; use applyTo VIRTUAL_HOST`},
		{"remove which http filter", `{applyTo: HTTP_FILTER, match: {` + anHCM + `}}}}, patch: {operation: REMOVE}}`, `.match.listener.filterChain.filter.subFilter: is missing: it says which filter to remove`},
		{"remove which network filter", `{applyTo: NETWORK_FILTER, patch: {operation: REMOVE}}`, `.match.listener.filterChain.filter: is missing: it says which filter to remove`},
		{"remove which listener filter", `{applyTo: LISTENER_FILTER, patch: {operation: REMOVE}}`, `.match.listener.listenerFilter: is missing: it says which filter to remove`},
		{"merge which http filter", `{applyTo: HTTP_FILTER, patch: {operation: MERGE, value: {name: x}}}`, `.match: names no filter, and the value has no typed_config that would tell; match the filter by name`},
		{"merge which extension", `{applyTo: EXTENSION_CONFIG, patch: {operation: MERGE, value: {typed_config: {"@type": ` + wasm + `}}}}`, `.patch.value.name: is missing: it says which extension config is meant`},
		{"version", `{applyTo: CLUSTER, match: {proxy: {proxyVersion: "("}}, patch: {operation: REMOVE}}`, ".match.proxy.proxyVersion: is not a regular expression: error parsing regexp: missing closing ): `(`"},
		{"long version", `{applyTo: CLUSTER, match: {proxy: {proxyVersion: "` + strings.Repeat("a", 1025) + `"}}, patch: {operation: REMOVE}}`, ".match.proxy.proxyVersion: is longer than 1024 bytes"},

		// value
		{"field", cluster(`{conect_timeout: 1s}`), `.patch.value.conect_timeout: envoy.config.cluster.v3.Cluster has no such field; did you mean connect_timeout?`},
		{"field in the other spelling", cluster(`{conectTimeout: 1s}`), `.patch.value.conectTimeout: envoy.config.cluster.v3.Cluster has no such field; did you mean connectTimeout?`},
		{"field like no other", cluster(`{zzzzzz: 1s}`), `.patch.value.zzzzzz: envoy.config.cluster.v3.Cluster has no such field`},
		{"field in a list", cluster(`{health_checks: [{}, {timeot: 1s}]}`), `.patch.value.health_checks[1].timeot: envoy.config.core.v3.HealthCheck has no such field; did you mean timeout?`},
		{"field in a map", cluster(`{metadata: {filter_metadata: {a: 1}}}`), `.patch.value.metadata.filter_metadata["a"]: is not an object`},
		{"field in an unlinked type", typed(`{"@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication, providers: {a: {isuer: x}}}`),
			`.patch.value.typed_config.providers["a"].isuer: envoy.extensions.filters.http.jwt_authn.v3.JwtProvider has no such field; did you mean issuer?`},
		{"field in a typed struct", typed(`{"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: ` + wasm + `, value: {config: {vm_config: {runtme: x}}}}`),
			`.patch.value.typed_config.value.config.vm_config.runtme: envoy.extensions.wasm.v3.VmConfig has no such field; did you mean runtime?`},
		{"field in a newer typed struct", typed(`{"@type": type.googleapis.com/xds.type.v3.TypedStruct, typeUrl: envoy.extensions.filters.http.wasm.v3.Wasm, value: {confg: {}}}`),
			`.patch.value.typed_config.value.confg: envoy.extensions.filters.http.wasm.v3.Wasm has no such field; did you mean config?`},
		{"typed struct of nothing", typed(`{"@type": type.googleapis.com/xds.type.v3.TypedStruct, value: {}}`), `.patch.value.typed_config.type_url: is missing; name the type that value is of`},
		{"type", typed(`{"@type": type.googleapis.com/envoy.extensions.filters.http.wsm.v3.Wasm}`),
			`.patch.value.typed_config.@type: no type of Envoy's is named so; did you mean type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm?`},
		{"type of another's", typed(`{"@type": type.googleapis.com/stats.PluginConfig}`),
			`.patch.value.typed_config.@type: no type of Envoy's is named so; give it as xds.type.v3.TypedStruct with type_url and value, if your proxy knows it`},
		{"type without host", typed(`{"@type": envoy.extensions.filters.http.wasm.v3.Wasm}`), `.patch.value.typed_config.@type: no type of Envoy's is named so; write type.googleapis.com/ before it`},
		{"no type", typed(`{config: {}}`), `.patch.value.typed_config: has no @type; write "@type": type.googleapis.com/ and the name of the type`},
		{"value of a value", typed(`{"@type": type.googleapis.com/google.protobuf.StringValue, val: x}`), `.patch.value.typed_config: of type google.protobuf.StringValue takes a field named value and no other`},
		{"duration", cluster(`{connect_timeout: 5}`), `.patch.value.connect_timeout: is not a duration in seconds, such as 1.5s`},
		{"number", cluster(`{load_assignment: {endpoints: [{priority: 1.5}]}}`), `.patch.value.load_assignment.endpoints[0].priority: is a number, not a whole number in range`},
		{"boolean wrapper", cluster(`{respect_dns_ttl: 1, lb_subset_config: {list_as_any: 1}}`), `.patch.value.lb_subset_config.list_as_any: is a number, not true or false
EnvoyFilter ns/f: spec.configPatches[0].patch.value.respect_dns_ttl: is a number, not true or false`},
		{"wrapper", cluster(`{per_connection_buffer_limit_bytes: -1}`), `.patch.value.per_connection_buffer_limit_bytes: is not a whole number in range`},
		{"bool", cluster(`{close_connections_on_host_health_failure: "yes"}`), `.patch.value.close_connections_on_host_health_failure: is a string, not true or false`},
		{"string", cluster(`{name: {}}`), `.patch.value.name: is an object, not a string`},
		{"list", cluster(`{health_checks: {timeout: 1s}}`), `.patch.value.health_checks: is an object, not a list; write it as a list of one`},
		{"object", cluster(`{transport_socket: tls}`), `.patch.value.transport_socket: is a string, not an object`},
		{"enum", cluster(`{lb_policy: ROUND_ROBBIN}`), `.patch.value.lb_policy: is no envoy.config.cluster.v3.Cluster.LbPolicy; did you mean ROUND_ROBIN?`},
		{"enum like no other", cluster(`{dns_lookup_family: zzz}`), `.patch.value.dns_lookup_family: is no envoy.config.cluster.v3.Cluster.DnsLookupFamily; use one of AUTO, V4_ONLY, V6_ONLY, V4_PREFERRED, ALL`},
		{"twice", cluster(`{alt_stat_name: a, altStatName: b}`), `.patch.value.alt_stat_name: altStatName is set too, and only one of them may be`},
		{"two of a oneof", cluster(`{type: STATIC, cluster_type: {name: x}}`), `.patch.value.type: cluster_type is set too, and only one of them may be`},
		{"no filter name", value(`{typed_config: {"@type": ` + wasm + `}}`), `.patch.value.name: value length must be at least 1 runes`},
		{"no filter config", value(`{name: x}`), `.patch.value.typed_config: is missing; give typed_config with an @type, or config_discovery`},
		{"no discovery types", value(`{name: x, config_discovery: {config_source: {ads: {}}}}`), `.patch.value.config_discovery.type_urls: value must contain at least 1 item(s)`},
		{"no domains", `{applyTo: VIRTUAL_HOST, patch: {operation: ADD, value: {name: x}}}`, `.patch.value.domains: value must contain at least 1 item(s)`},
		{"no route action's cluster", `{applyTo: HTTP_ROUTE, patch: {operation: ADD, value: {match: {prefix: /}, route: {}}}}`, `.patch.value.route.cluster_specifier: value is required`},
		{"no listener name", `{applyTo: LISTENER, patch: {operation: ADD, value: {}}}`, `.patch.value.name: is missing`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, problems := Compile(readFilter(t, filterOf(tt.patch)))
			if f != nil || len(problems) == 0 {
				t.Fatal("not refused")
			}
			got := make([]string, len(problems))
			for i, p := range problems {
				got[i] = p.String()
			}
			if diff := cmp.Diff("EnvoyFilter ns/f: spec.configPatches[0]"+tt.want, strings.Join(got, "\n")); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

// A problem is for logs: it does not tell what was written, which may be secret.
func TestProblemsKeepSecrets(t *testing.T) {
	_, problems := Compile(readFilter(t, filterOf(`{applyTo: CLUSTER, patch: {operation: MERGE, value: {connect_timeout: s3cret, name: [s3cret],
		transport_socket: {name: x, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret, tls_certificate: {private_key: s3cret}}}}}}`)))
	if len(problems) != 3 {
		t.Errorf("%d problems: %v", len(problems), problems)
	}
	for _, p := range problems {
		if strings.Contains(p.String(), "s3cret") {
			t.Error(p)
		}
	}
}

// All of a filter's mistakes are told at once, and its good patches do not apply.
func TestCompileIsWhole(t *testing.T) {
	bad := `{applyTo: CLUSTER, match: {cluster: {name: a, subset: b}, proxy: {proxyVersion: "("}}, patch: {operation: MERGE, value: {a: 1, b: 2}}}`
	f, problems := Compile(readFilter(t, filterOf(`{applyTo: CLUSTER, patch: {operation: ADD, value: {name: good}}}, `+bad)))
	if f != nil {
		t.Error("a filter with problems is not nil")
	}
	want := []string{
		"spec.configPatches[1].match.cluster", "spec.configPatches[1].match.proxy.proxyVersion",
		"spec.configPatches[1].patch.value.a", "spec.configPatches[1].patch.value.b",
	}
	var got []string
	for _, p := range problems {
		got = append(got, p.Field)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
}

// A bad patch, and a bad filter, leave the others alone.
func TestApplyGoesOn(t *testing.T) {
	cfg, proxy := readConfig(t, gateway)
	var filters []*Filter
	for _, patches := range []string{
		`{applyTo: CLUSTER, patch: {operation: ADD, value: {name: one}}}, {applyTo: CLUSTER, patch: {operation: ADD, value: {name: plain}}}, {applyTo: CLUSTER, patch: {operation: ADD, value: {name: two}}}`,
		`{applyTo: CLUSTER, patch: {operation: ADD, value: {name: one}}}`,
		`{applyTo: CLUSTER, patch: {operation: ADD, value: {name: three}}}`,
	} {
		f, problems := Compile(readFilter(t, filterOf(patches)))
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		filters = append(filters, f)
	}
	problems := Apply(cfg, proxy, filters)
	if got := names(cfg.Clusters); !strings.HasSuffix(got, "plain one two three") {
		t.Errorf("clusters %s", got)
	}
	want := []resource.Problem{
		{Kind: "EnvoyFilter", Namespace: "ns", Name: "f", Field: "spec.configPatches[1].patch.value.name", Message: `cluster "plain" exists already`, Mend: "give it another name, or use MERGE"},
		{Kind: "EnvoyFilter", Namespace: "ns", Name: "f", Field: "spec.configPatches[0].patch.value.name", Message: `cluster "one" exists already`, Mend: "give it another name, or use MERGE"},
	}
	if diff := cmp.Diff(want, problems); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

// Half of a patch that fails is not applied: the first listener has what the
// second has not.
func TestPatchIsWhole(t *testing.T) {
	cfg, proxy := readConfig(t, gateway)
	before := clone(cfg)
	f, problems := Compile(readFilter(t, filterOf(
		`{applyTo: FILTER_CHAIN, patch: {operation: ADD, value: {name: c2, filter_chain_match: {server_names: [x]}}}}`)))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if problems := Apply(cfg, proxy, []*Filter{f}); len(problems) != 1 {
		t.Fatalf("problems %v", problems)
	}
	if !equal(before, cfg) {
		t.Error("half applied")
	}
}

func FuzzCompile(f *testing.F) {
	for _, patch := range []string{
		`{applyTo: HTTP_FILTER, match: {` + anHCM + `, subFilter: {name: envoy.router}}}}}, patch: {operation: INSERT_BEFORE, value: ` + newFilter + `}}`,
		`{applyTo: LISTENER, match: {context: GATEWAY}, patch: {operation: MERGE_AND_REPLACE_LIST, value: {listener_filters: []}}}`,
		`{applyTo: FILTER_CHAIN, match: {listener: {portNumber: 9000}}, patch: {operation: REMOVE}}`,
		`{applyTo: CLUSTER, patch: {operation: MERGE, value: {connect_timeout: 1s, lb_policy: 1, metadata: {filter_metadata: {a: {b: [1, null, "x"]}}}}}}`,
		`{applyTo: EXTENSION_CONFIG, patch: {operation: MERGE, value: {name: ext, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: envoy.extensions.filters.http.wasm.v3.Wasm, value: {config: {root_id: a}}}}}}`,
		`{applyTo: NETWORK_FILTER, match: {proxy: {proxyVersion: 1}}, patch: {operation: ADD, value: {name: x, typed_config: {"@type": type.googleapis.com/google.protobuf.Any, value: {"@type": type.googleapis.com/google.protobuf.Duration, value: 1s}}}}}`,
		route(`vhost: {route: {name: r3}}`, "INSERT_FIRST"),
		`{applyTo: VIRTUAL_HOST, patch: {operation: REPLACE, value: {name: vh1, domains: [x]}}}`,
	} {
		f.Add(filterOf(patch))
	}
	type base struct {
		cfg   *Config
		proxy mesh.Proxy
	}
	var bases []base
	for _, text := range []string{gateway, sidecar} {
		cfg, proxy := readConfig(f, text)
		bases = append(bases, base{cfg, proxy})
	}
	f.Fuzz(func(t *testing.T, text string) {
		in := new(networkingv1alpha3.EnvoyFilter)
		if yaml.Unmarshal([]byte(text), in) != nil {
			return
		}
		compiled, problems := Compile(in)
		if (compiled == nil) != (len(problems) > 0) {
			t.Fatalf("Compile = %v, %v", compiled, problems)
		}
		for _, p := range problems {
			if !strings.HasPrefix(p.Field, "spec.configPatches[") || p.Message == "" {
				t.Errorf("problem says nothing: %#v", p)
			}
		}
		for _, base := range bases {
			before, once, twice := clone(base.cfg), *base.cfg, *base.cfg
			Apply(&once, base.proxy, []*Filter{compiled})
			if !equal(before, base.cfg) {
				t.Error("Apply changed messages it was given")
			}
			if Apply(&twice, base.proxy, []*Filter{compiled}); !equal(&once, &twice) {
				t.Error("Apply does not do the same twice")
			}
		}
	})
}

func BenchmarkApply(b *testing.B) {
	cfg, proxy := readConfig(b, gateway)
	var filters []*Filter
	for range 20 {
		f, problems := Compile(readFilter(b, filterOf(`{applyTo: HTTP_FILTER, patch: {operation: ADD, value: `+newFilter+`}}`)))
		if len(problems) > 0 {
			b.Fatal(problems)
		}
		filters = append(filters, f)
	}
	l := cfg.Listeners[0]
	for len(cfg.Listeners) < 50 {
		cfg.Listeners = append(cfg.Listeners, l)
	}
	b.ReportAllocs()
	for b.Loop() {
		next := *cfg
		Apply(&next, mesh.Proxy{Role: proxy.Role}, filters)
	}
}
