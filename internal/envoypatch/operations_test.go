package envoypatch

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const hcmHead = `"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: x`

const httpFilters = `http_filters:
        - {name: cors, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}}
        - {name: fault, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault}}
        - {name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}`

const gateway = `
proxy: {role: router, version: 1.30.2, metadata: {TEAM: a}}
listeners:
- name: 0.0.0.0_8080
  address: {socket_address: {address: 0.0.0.0, port_value: 8080}}
  listener_filters:
  - {name: envoy.filters.listener.tls_inspector, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}
  filter_chains:
  - name: c1
    filter_chain_match: {server_names: [a.example], transport_protocol: tls, application_protocols: [h2, http/1.1]}
    filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        ` + hcmHead + `
        rds: {config_source: {ads: {}}, route_config_name: http.8080}
        ` + httpFilters + `
- name: 0.0.0.0_9000
  address: {socket_address: {address: 0.0.0.0, port_value: 9000}}
  filter_chains:
  - name: c2
    filters:
    - {name: stats, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.sni_cluster.v3.SniCluster}}
    - {name: envoy.filters.network.tcp_proxy, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, cluster: a}}
routes:
- name: http.8080
  virtual_hosts:
  - name: vh1
    domains: [a.example]
    routes:
    - {name: r1, match: {prefix: /1}, route: {cluster: a}}
    - {name: r2, match: {prefix: /2}, redirect: {path_redirect: /}}
    - {name: r3, match: {prefix: /3}, direct_response: {status: 200}}
  - {name: vh2, domains: ["*"]}
- name: https.8443.https.gw.ns
clusters:
- {name: outbound|80|v1|a.ns.svc.cluster.local}
- {name: outbound|81||b.ns.svc.cluster.local}
- {name: plain}
extensions:
- {name: ext, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm, config: {root_id: one}}}
`

const sidecar = `
proxy: {role: sidecar}
listeners:
- name: 0.0.0.0_9080
  traffic_direction: OUTBOUND
  address: {socket_address: {address: 0.0.0.0, port_value: 9080}}
  filter_chains:
  - name: out
    filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        ` + hcmHead + `
        rds: {config_source: {ads: {}}, route_config_name: "9080"}
        ` + httpFilters + `
- name: virtualInbound
  traffic_direction: INBOUND
  address: {socket_address: {address: 0.0.0.0, port_value: 15006}}
  filter_chains:
  - name: in80
    filter_chain_match: {destination_port: 80}
    filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        ` + hcmHead + `
        route_config:
          name: inbound|80||
          virtual_hosts: [{name: inbound|http|80, domains: ["*"], routes: [{name: default, match: {prefix: /}, route: {cluster: inbound|80||}}]}]
        ` + httpFilters + `
  default_filter_chain:
    name: rest
    filters:
    - {name: envoy.filters.network.tcp_proxy, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, cluster: a}}
routes:
- {name: "9080", virtual_hosts: [{name: "b:9080", domains: [b]}]}
clusters:
- {name: outbound|9080||b.ns.svc.cluster.local}
- {name: inbound|80||}
`

// The value of most patches: a filter of any kind, named new.
const newFilter = `{name: new, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer, max_request_bytes: 1}}`

const anHCM = `listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager`

func filterOf(patches string) string {
	return "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: f, namespace: ns}\nspec: {configPatches: [" + patches + "]}"
}

func TestOperations(t *testing.T) {
	for _, tt := range []struct {
		name, in, patch string
		want            string // lines of the sketch that change
		problem         string
	}{
		// LISTENER
		{"listener add", gateway, `{applyTo: LISTENER, patch: {operation: ADD, value: {name: new, address: {socket_address: {address: 0.0.0.0, port_value: 1}}}}}`,
			"+ listener new: ", ""},
		{"listener insert is add", gateway, `{applyTo: LISTENER, patch: {operation: INSERT_FIRST, value: {name: new, address: {socket_address: {address: 0.0.0.0, port_value: 1}}}}}`,
			"+ listener new: ", ""},
		{"listener add twice", gateway, `{applyTo: LISTENER, patch: {operation: ADD, value: {name: 0.0.0.0_8080, address: {socket_address: {address: 0.0.0.0, port_value: 1}}}}}`,
			"", `spec.configPatches[0].patch.value.name: listener "0.0.0.0_8080" exists already`},
		{"listener add at the same address", gateway, `{applyTo: LISTENER, patch: {operation: ADD, value: {name: new, address: {socket_address: {address: 0.0.0.0, port_value: 8080}}}}}`,
			"", `listener "0.0.0.0_8080" has that address already`},
		{"listener add for others", gateway, `{applyTo: LISTENER, match: {context: SIDECAR_INBOUND}, patch: {operation: ADD, value: {name: new}}}`, "", ""},
		{"listener remove", gateway, `{applyTo: LISTENER, match: {listener: {portNumber: 9000}}, patch: {operation: REMOVE}}`,
			"- listener 0.0.0.0_9000: \n- 0.0.0.0_9000 chain c2: stats envoy.filters.network.tcp_proxy", ""},
		{"listener merge", gateway, `{applyTo: LISTENER, match: {listener: {name: 0.0.0.0_9000}}, patch: {operation: MERGE, value: {listener_filters: [` + newFilter + `]}}}`,
			"- listener 0.0.0.0_9000: \n+ listener 0.0.0.0_9000: new", ""},
		{"listener merge appends to lists", gateway, `{applyTo: LISTENER, match: {listener: {name: 0.0.0.0_8080}}, patch: {operation: MERGE, value: {listener_filters: [` + newFilter + `]}}}`,
			"- listener 0.0.0.0_8080: envoy.filters.listener.tls_inspector\n+ listener 0.0.0.0_8080: envoy.filters.listener.tls_inspector new", ""},
		{"listener merge replaces lists", gateway, `{applyTo: LISTENER, match: {listener: {name: 0.0.0.0_8080}}, patch: {operation: MERGE_AND_REPLACE_LIST, value: {listener_filters: [` + newFilter + `]}}}`,
			"- listener 0.0.0.0_8080: envoy.filters.listener.tls_inspector\n+ listener 0.0.0.0_8080: new", ""},

		// LISTENER_FILTER
		{"listener filter add", gateway, `{applyTo: LISTENER_FILTER, match: {listener: {portNumber: 8080}}, patch: {operation: ADD, value: ` + newFilter + `}}`,
			"- listener 0.0.0.0_8080: envoy.filters.listener.tls_inspector\n+ listener 0.0.0.0_8080: envoy.filters.listener.tls_inspector new", ""},
		{"listener filter before, by its old name", gateway, `{applyTo: LISTENER_FILTER, match: {listener: {listenerFilter: envoy.listener.tls_inspector}}, patch: {operation: INSERT_BEFORE, value: ` + newFilter + `}}`,
			"- listener 0.0.0.0_8080: envoy.filters.listener.tls_inspector\n+ listener 0.0.0.0_8080: new envoy.filters.listener.tls_inspector", ""},
		{"listener filter remove", gateway, `{applyTo: LISTENER_FILTER, match: {listener: {listenerFilter: envoy.filters.listener.tls_inspector}}, patch: {operation: REMOVE}}`,
			"- listener 0.0.0.0_8080: envoy.filters.listener.tls_inspector\n+ listener 0.0.0.0_8080: ", ""},

		// FILTER_CHAIN
		{"chain add", gateway, `{applyTo: FILTER_CHAIN, match: {listener: {portNumber: 9000}}, patch: {operation: ADD, value: {name: new, filter_chain_match: {server_names: [b]}}}}`,
			"+ 0.0.0.0_9000 chain new: ", ""},
		{"chain add of a name", gateway, `{applyTo: FILTER_CHAIN, match: {listener: {portNumber: 9000}}, patch: {operation: ADD, value: {name: c2, filter_chain_match: {server_names: [b]}}}}`,
			"", `listener "0.0.0.0_9000" has filter chain "c2" already`},
		{"chain add of a match", gateway, `{applyTo: FILTER_CHAIN, match: {listener: {portNumber: 9000}}, patch: {operation: ADD, value: {name: new}}}`,
			"", `has a filter chain with that filter_chain_match already`},
		{"chain remove", sidecar, `{applyTo: FILTER_CHAIN, match: {listener: {filterChain: {name: rest}}}, patch: {operation: REMOVE}}`,
			"- virtualInbound chain rest: envoy.filters.network.tcp_proxy", ""},
		{"chain remove all", gateway, `{applyTo: FILTER_CHAIN, match: {listener: {portNumber: 9000}}, patch: {operation: REMOVE}}`,
			"", `listener "0.0.0.0_9000" would be left without a filter chain`},
		{"chain merge", gateway, `{applyTo: FILTER_CHAIN, match: {listener: {filterChain: {sni: a.example}}}, patch: {operation: MERGE, value: {name: renamed}}}`,
			"- 0.0.0.0_8080 chain c1: envoy.filters.network.http_connection_manager\n- 0.0.0.0_8080 c1 http: cors fault envoy.filters.http.router\n" +
				"+ 0.0.0.0_8080 chain renamed: envoy.filters.network.http_connection_manager\n+ 0.0.0.0_8080 renamed http: cors fault envoy.filters.http.router", ""},

		// NETWORK_FILTER
		{"network filter add goes before what ends the chain", gateway, `{applyTo: NETWORK_FILTER, match: {listener: {portNumber: 9000}}, patch: {operation: ADD, value: ` + newFilter + `}}`,
			"- 0.0.0.0_9000 chain c2: stats envoy.filters.network.tcp_proxy\n+ 0.0.0.0_9000 chain c2: stats new envoy.filters.network.tcp_proxy", ""},
		{"network filter first", gateway, `{applyTo: NETWORK_FILTER, match: {listener: {portNumber: 9000}}, patch: {operation: INSERT_FIRST, value: ` + newFilter + `}}`,
			"- 0.0.0.0_9000 chain c2: stats envoy.filters.network.tcp_proxy\n+ 0.0.0.0_9000 chain c2: new stats envoy.filters.network.tcp_proxy", ""},
		{"network filter before", gateway, `{applyTo: NETWORK_FILTER, match: {listener: {filterChain: {filter: {name: envoy.tcp_proxy}}}}, patch: {operation: INSERT_BEFORE, value: ` + newFilter + `}}`,
			"- 0.0.0.0_9000 chain c2: stats envoy.filters.network.tcp_proxy\n+ 0.0.0.0_9000 chain c2: stats new envoy.filters.network.tcp_proxy", ""},
		{"network filter after", gateway, `{applyTo: NETWORK_FILTER, match: {listener: {filterChain: {filter: {name: stats}}}}, patch: {operation: INSERT_AFTER, value: ` + newFilter + `}}`,
			"- 0.0.0.0_9000 chain c2: stats envoy.filters.network.tcp_proxy\n+ 0.0.0.0_9000 chain c2: stats new envoy.filters.network.tcp_proxy", ""},
		{"network filter replace", gateway, `{applyTo: NETWORK_FILTER, match: {listener: {filterChain: {filter: {name: stats}}}}, patch: {operation: REPLACE, value: ` + newFilter + `}}`,
			"- 0.0.0.0_9000 chain c2: stats envoy.filters.network.tcp_proxy\n+ 0.0.0.0_9000 chain c2: new envoy.filters.network.tcp_proxy", ""},
		{"network filter remove", gateway, `{applyTo: NETWORK_FILTER, match: {listener: {filterChain: {filter: {name: stats}}}}, patch: {operation: REMOVE}}`,
			"- 0.0.0.0_9000 chain c2: stats envoy.filters.network.tcp_proxy\n+ 0.0.0.0_9000 chain c2: envoy.filters.network.tcp_proxy", ""},
		{"network filter merge of another type", gateway, `{applyTo: NETWORK_FILTER, match: {listener: {filterChain: {filter: {name: stats}}}}, patch: {operation: MERGE, value: ` + newFilter + `}}`,
			"", `merge into network filter "stats": it is a envoy.extensions.filters.network.sni_cluster.v3.SniCluster, the patch a envoy.extensions.filters.http.buffer.v3.Buffer`},
		{"network filter second tcp proxy", gateway, `{applyTo: NETWORK_FILTER, match: {listener: {portNumber: 9000}}, patch: {operation: INSERT_FIRST, value: {name: t, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, cluster: a}}}}`,
			"", `network filter "t" ends the filter chain, which has network filter "envoy.filters.network.tcp_proxy" for that already`},

		// HTTP_FILTER
		{"http filter add goes before the router", gateway, `{applyTo: HTTP_FILTER, patch: {operation: ADD, filterClass: AUTHZ, value: ` + newFilter + `}}`,
			"- 0.0.0.0_8080 c1 http: cors fault envoy.filters.http.router\n+ 0.0.0.0_8080 c1 http: cors fault new envoy.filters.http.router", ""},
		{"http filter before none", gateway, `{applyTo: HTTP_FILTER, match: {` + anHCM + `}}}}, patch: {operation: INSERT_BEFORE, value: ` + newFilter + `}}`,
			"- 0.0.0.0_8080 c1 http: cors fault envoy.filters.http.router\n+ 0.0.0.0_8080 c1 http: new cors fault envoy.filters.http.router", ""},
		{"http filter after none", gateway, `{applyTo: HTTP_FILTER, match: {` + anHCM + `}}}}, patch: {operation: INSERT_AFTER, value: ` + newFilter + `}}`,
			"- 0.0.0.0_8080 c1 http: cors fault envoy.filters.http.router\n+ 0.0.0.0_8080 c1 http: cors fault new envoy.filters.http.router", ""},
		{"http filter before the router, by its old name", gateway, `{applyTo: HTTP_FILTER, match: {` + anHCM + `, subFilter: {name: envoy.router}}}}}, patch: {operation: INSERT_BEFORE, value: ` + newFilter + `}}`,
			"- 0.0.0.0_8080 c1 http: cors fault envoy.filters.http.router\n+ 0.0.0.0_8080 c1 http: cors fault new envoy.filters.http.router", ""},
		{"http filter after", gateway, `{applyTo: HTTP_FILTER, match: {` + anHCM + `, subFilter: {name: cors}}}}}, patch: {operation: INSERT_AFTER, value: ` + newFilter + `}}`,
			"- 0.0.0.0_8080 c1 http: cors fault envoy.filters.http.router\n+ 0.0.0.0_8080 c1 http: cors new fault envoy.filters.http.router", ""},
		{"http filter after one that is not there", gateway, `{applyTo: HTTP_FILTER, match: {` + anHCM + `, subFilter: {name: none}}}}}, patch: {operation: INSERT_AFTER, value: ` + newFilter + `}}`, "", ""},
		{"http filter first", gateway, `{applyTo: HTTP_FILTER, match: {` + anHCM + `, subFilter: {name: fault}}}}}, patch: {operation: INSERT_FIRST, value: ` + newFilter + `}}`,
			"- 0.0.0.0_8080 c1 http: cors fault envoy.filters.http.router\n+ 0.0.0.0_8080 c1 http: new cors fault envoy.filters.http.router", ""},
		{"http filter replace", gateway, `{applyTo: HTTP_FILTER, match: {` + anHCM + `, subFilter: {name: fault}}}}}, patch: {operation: REPLACE, value: ` + newFilter + `}}`,
			"- 0.0.0.0_8080 c1 http: cors fault envoy.filters.http.router\n+ 0.0.0.0_8080 c1 http: cors new envoy.filters.http.router", ""},
		{"http filter replace, by its own name", gateway, `{applyTo: HTTP_FILTER, patch: {operation: REPLACE, value: {name: fault, config_discovery: {config_source: {ads: {}}, type_urls: [x/y]}}}}`,
			"- 0.0.0.0_8080 c1 http: cors fault envoy.filters.http.router\n+ 0.0.0.0_8080 c1 http: cors fault* envoy.filters.http.router", ""},
		{"http filter replace of none", gateway, `{applyTo: HTTP_FILTER, patch: {operation: REPLACE, value: ` + newFilter + `}}`, "", ""},
		{"http filter remove", gateway, `{applyTo: HTTP_FILTER, match: {` + anHCM + `, subFilter: {name: fault}}}}}, patch: {operation: REMOVE}}`,
			"- 0.0.0.0_8080 c1 http: cors fault envoy.filters.http.router\n+ 0.0.0.0_8080 c1 http: cors envoy.filters.http.router", ""},
		{"http filter merge renames", gateway, `{applyTo: HTTP_FILTER, match: {` + anHCM + `, subFilter: {name: fault}}}}}, patch: {operation: MERGE, value: {name: renamed}}}`,
			"- 0.0.0.0_8080 c1 http: cors fault envoy.filters.http.router\n+ 0.0.0.0_8080 c1 http: cors renamed envoy.filters.http.router", ""},
		{"http filter merge by type", gateway, `{applyTo: HTTP_FILTER, patch: {operation: MERGE, value: {name: renamed, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}}}}`,
			"- 0.0.0.0_8080 c1 http: cors fault envoy.filters.http.router\n+ 0.0.0.0_8080 c1 http: renamed fault envoy.filters.http.router", ""},
		{"http filter second router", gateway, `{applyTo: HTTP_FILTER, patch: {operation: ADD, value: {name: again, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}`,
			"", `HTTP filter "again" ends the filter chain`},
		{"http filter second router, as a typed struct", gateway, `{applyTo: HTTP_FILTER, patch: {operation: INSERT_FIRST, value: {name: again, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}`,
			"", `HTTP filter "again" ends the filter chain`},
		{"http filter inbound", sidecar, `{applyTo: HTTP_FILTER, match: {context: SIDECAR_INBOUND}, patch: {operation: INSERT_FIRST, value: ` + newFilter + `}}`,
			"- virtualInbound in80 http: cors fault envoy.filters.http.router\n+ virtualInbound in80 http: new cors fault envoy.filters.http.router", ""},

		// ROUTE_CONFIGURATION, VIRTUAL_HOST, HTTP_ROUTE
		{"route configuration merge", gateway, `{applyTo: ROUTE_CONFIGURATION, match: {routeConfiguration: {portNumber: 8080}}, patch: {operation: MERGE, value: {virtual_hosts: [{name: new, domains: [b]}]}}}`,
			"- routes http.8080: vh1 vh2\n+ routes http.8080: vh1 vh2 new\n+ http.8080 new: ", ""},
		{"virtual host add", gateway, `{applyTo: VIRTUAL_HOST, match: {routeConfiguration: {name: http.8080}}, patch: {operation: ADD, value: {name: new, domains: [b]}}}`,
			"- routes http.8080: vh1 vh2\n+ routes http.8080: vh1 vh2 new\n+ http.8080 new: ", ""},
		{"virtual host add of a name", gateway, `{applyTo: VIRTUAL_HOST, match: {routeConfiguration: {name: http.8080}}, patch: {operation: ADD, value: {name: vh1, domains: [b]}}}`,
			"", `route configuration "http.8080" would have virtual host "vh1" twice`},
		{"virtual host add of a domain", gateway, `{applyTo: VIRTUAL_HOST, match: {routeConfiguration: {name: http.8080}}, patch: {operation: ADD, value: {name: new, domains: ["*"]}}}`,
			"", `route configuration "http.8080" would have domain "*" twice`},
		{"virtual host remove", gateway, `{applyTo: VIRTUAL_HOST, match: {routeConfiguration: {vhost: {name: vh2}}}, patch: {operation: REMOVE}}`,
			"- routes http.8080: vh1 vh2\n- http.8080 vh2: \n+ routes http.8080: vh1", ""},
		{"virtual host replace", gateway, `{applyTo: VIRTUAL_HOST, match: {routeConfiguration: {vhost: {domainName: a.example}}}, patch: {operation: REPLACE, value: {name: new, domains: [b]}}}`,
			"- routes http.8080: vh1 vh2\n- http.8080 vh1: r1 r2 r3\n+ routes http.8080: new vh2\n+ http.8080 new: ", ""},
		{"virtual host merge", gateway, `{applyTo: VIRTUAL_HOST, match: {routeConfiguration: {vhost: {name: vh1}}}, patch: {operation: MERGE, value: {routes: [{name: new, match: {prefix: /}, route: {cluster: a}}]}}}`,
			"- http.8080 vh1: r1 r2 r3\n+ http.8080 vh1: r1 r2 r3 new", ""},
		{"virtual host inbound", sidecar, `{applyTo: VIRTUAL_HOST, match: {context: SIDECAR_INBOUND, routeConfiguration: {portNumber: 80}}, patch: {operation: ADD, value: {name: new, domains: [b]}}}`,
			"- routes inbound|80||: inbound|http|80\n+ routes inbound|80||: inbound|http|80 new\n+ inbound|80|| new: ", ""},
		{"route add", gateway, route(`vhost: {name: vh1}`, "ADD"),
			"- http.8080 vh1: r1 r2 r3\n+ http.8080 vh1: r1 r2 r3 new", ""},
		{"route before", gateway, route(`vhost: {route: {name: r2}}`, "INSERT_BEFORE"),
			"- http.8080 vh1: r1 r2 r3\n+ http.8080 vh1: r1 new r2 r3", ""},
		{"route before none", gateway, route(`vhost: {name: vh1}`, "INSERT_BEFORE"),
			"- http.8080 vh1: r1 r2 r3\n+ http.8080 vh1: new r1 r2 r3", ""},
		{"route after, by action", gateway, route(`vhost: {route: {action: REDIRECT}}`, "INSERT_AFTER"),
			"- http.8080 vh1: r1 r2 r3\n+ http.8080 vh1: r1 r2 new r3", ""},
		{"route after none", gateway, route(`vhost: {name: vh1}`, "INSERT_AFTER"),
			"- http.8080 vh1: r1 r2 r3\n+ http.8080 vh1: r1 r2 r3 new", ""},
		{"route first, if another is there", gateway, route(`vhost: {route: {name: r3}}`, "INSERT_FIRST"),
			"- http.8080 vh1: r1 r2 r3\n+ http.8080 vh1: new r1 r2 r3", ""},
		{"route first, but no other", gateway, route(`vhost: {route: {name: r4}}`, "INSERT_FIRST"), "", ""},
		{"route remove", gateway, route(`vhost: {route: {action: ROUTE}}`, "REMOVE"),
			"- http.8080 vh1: r1 r2 r3\n+ http.8080 vh1: r2 r3", ""},
		{"route merge", gateway, `{applyTo: HTTP_ROUTE, match: {routeConfiguration: {vhost: {route: {action: DIRECT_RESPONSE}}}}, patch: {operation: MERGE, value: {name: renamed}}}`,
			"- http.8080 vh1: r1 r2 r3\n+ http.8080 vh1: r1 r2 renamed", ""},
		{"route in a listener", sidecar, route(`vhost: {route: {name: default}}`, "INSERT_BEFORE"),
			"- inbound|80|| inbound|http|80: default\n+ inbound|80|| inbound|http|80: new default", ""},

		// CLUSTER
		{"cluster add", gateway, `{applyTo: CLUSTER, match: {cluster: {service: any}}, patch: {operation: ADD, value: {name: new}}}`,
			"- clusters: outbound|80|v1|a.ns.svc.cluster.local outbound|81||b.ns.svc.cluster.local plain\n+ clusters: outbound|80|v1|a.ns.svc.cluster.local outbound|81||b.ns.svc.cluster.local plain new", ""},
		{"cluster add once in a sidecar", sidecar, `{applyTo: CLUSTER, patch: {operation: ADD, value: {name: new}}}`,
			"- clusters: outbound|9080||b.ns.svc.cluster.local inbound|80||\n+ clusters: outbound|9080||b.ns.svc.cluster.local inbound|80|| new", ""},
		{"cluster add for others", gateway, `{applyTo: CLUSTER, match: {context: SIDECAR_OUTBOUND}, patch: {operation: ADD, value: {name: new}}}`, "", ""},
		{"cluster add twice", gateway, `{applyTo: CLUSTER, patch: {operation: ADD, value: {name: plain}}}`, "", `patch.value.name: cluster "plain" exists already`},
		{"cluster remove", gateway, `{applyTo: CLUSTER, match: {cluster: {subset: v1}}, patch: {operation: REMOVE}}`,
			"- clusters: outbound|80|v1|a.ns.svc.cluster.local outbound|81||b.ns.svc.cluster.local plain\n+ clusters: outbound|81||b.ns.svc.cluster.local plain", ""},
		{"cluster merge", gateway, `{applyTo: CLUSTER, match: {cluster: {name: plain}}, patch: {operation: MERGE, value: {name: renamed}}}`,
			"- clusters: outbound|80|v1|a.ns.svc.cluster.local outbound|81||b.ns.svc.cluster.local plain\n+ clusters: outbound|80|v1|a.ns.svc.cluster.local outbound|81||b.ns.svc.cluster.local renamed", ""},
		{"cluster made invalid", gateway, `{applyTo: CLUSTER, match: {cluster: {name: plain}}, patch: {operation: MERGE, value: {max_requests_per_connection: 1, connect_timeout: -1s}}}`,
			"", `patch.value: cluster "plain" would be invalid at connect_timeout: `},

		// EXTENSION_CONFIG
		{"extension add", gateway, `{applyTo: EXTENSION_CONFIG, match: {context: SIDECAR_INBOUND}, patch: {operation: ADD, value: ` + newFilter + `}}`,
			"- extensions: ext\n+ extensions: ext new", ""},
		{"extension add twice", gateway, `{applyTo: EXTENSION_CONFIG, patch: {operation: ADD, value: {name: ext, typed_config: {"@type": type.googleapis.com/google.protobuf.Empty, value: {}}}}}`,
			"", `extension config "ext" exists already`},
		{"extension remove", gateway, `{applyTo: EXTENSION_CONFIG, patch: {operation: REMOVE, value: {name: ext}}}`, "- extensions: ext\n+ extensions: ", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, proxy := readConfig(t, tt.in)
			before, kept, sketched := clone(cfg), *cfg, sketch(t, cfg)
			f, problems := Compile(readFilter(t, filterOf(tt.patch)))
			if len(problems) > 0 {
				t.Fatalf("Compile: %v", problems)
			}
			problems = Apply(cfg, proxy, []*Filter{nil, f})
			if diff := cmp.Diff(tt.want, strings.Join(changes(sketched, sketch(t, cfg)), "\n")); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
			switch {
			case tt.problem == "" && len(problems) > 0:
				t.Errorf("problems: %v", problems)
			case tt.problem != "" && (len(problems) != 1 || !strings.Contains(problems[0].String(), tt.problem)):
				t.Errorf("problems = %v, want one with %q", problems, tt.problem)
			case tt.problem != "" && !equal(before, cfg):
				t.Error("a refused patch changed something")
			}
			if !equal(before, &kept) {
				t.Error("Apply changed messages it was given")
			}
		})
	}
}

func route(match, op string) string {
	return `{applyTo: HTTP_ROUTE, match: {routeConfiguration: {` + match + `}}, patch: {operation: ` + op + `, value: {name: new, match: {prefix: /new}, route: {cluster: a}}}}`
}

// A patch is matched by the network filter it adds, first, so that what it
// changes tells whether it matched.
func TestMatch(t *testing.T) {
	const base = `patch: {operation: INSERT_FIRST, value: ` + newFilter + `}`
	for _, tt := range []struct {
		name, in, match string
		want            string // chains that got the filter
	}{
		{"none", gateway, `{}`, "c1 c2"},
		{"any", gateway, `{context: ANY}`, "c1 c2"},
		{"gateway", gateway, `{context: GATEWAY}`, "c1 c2"},
		{"inbound at a gateway", gateway, `{context: SIDECAR_INBOUND}`, ""},
		{"outbound at a gateway", gateway, `{context: SIDECAR_OUTBOUND}`, ""},
		{"gateway at a sidecar", sidecar, `{context: GATEWAY}`, ""},
		{"inbound", sidecar, `{context: SIDECAR_INBOUND}`, "in80 rest"},
		{"outbound", sidecar, `{context: SIDECAR_OUTBOUND}`, "out"},
		{"name", gateway, `{listener: {name: 0.0.0.0_9000}}`, "c2"},
		{"another name", gateway, `{listener: {name: 0.0.0.0_9001}}`, ""},
		{"port", gateway, `{listener: {portNumber: 8080}}`, "c1"},
		{"port of a chain of virtualInbound", sidecar, `{listener: {portNumber: 80}}`, "in80"},
		{"port of virtualInbound is not its chains'", sidecar, `{listener: {portNumber: 15006}}`, ""},
		{"chain", gateway, `{listener: {filterChain: {name: c2}}}`, "c2"},
		{"sni", gateway, `{listener: {filterChain: {sni: a.example}}}`, "c1"},
		{"another sni", gateway, `{listener: {filterChain: {sni: b.example}}}`, ""},
		{"transport protocol", gateway, `{listener: {filterChain: {transportProtocol: tls}}}`, "c1"},
		{"transport protocol, not the default", gateway, `{listener: {filterChain: {transportProtocol: raw_buffer}}}`, ""},
		{"application protocols", gateway, `{listener: {filterChain: {applicationProtocols: "http/1.1,h2"}}}`, "c1"},
		{"one application protocol too many", gateway, `{listener: {filterChain: {applicationProtocols: "http/1.1,h3"}}}`, ""},
		{"destination port", sidecar, `{listener: {filterChain: {destinationPort: 80}}}`, "in80"},
		{"destination port that none has", gateway, `{listener: {filterChain: {destinationPort: 80}}}`, ""},
		{"version", gateway, `{proxy: {proxyVersion: "^1\\.3.*"}}`, "c1 c2"},
		{"another version", gateway, `{proxy: {proxyVersion: "^1\\.2.*"}}`, ""},
		{"version not told", sidecar, `{proxy: {proxyVersion: ".*"}}`, ""},
		{"metadata", gateway, `{proxy: {metadata: {TEAM: a, ISTIO_VERSION: 1.30.2}}}`, "c1 c2"},
		{"other metadata", gateway, `{proxy: {metadata: {TEAM: b}}}`, ""},
		{"metadata that is not there", sidecar, `{proxy: {metadata: {TEAM: ""}}}`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, proxy := readConfig(t, tt.in)
			f, problems := Compile(readFilter(t, filterOf(`{applyTo: NETWORK_FILTER, match: `+tt.match+`, `+base+`}`)))
			if problems = append(problems, Apply(cfg, proxy, []*Filter{f})...); len(problems) > 0 {
				t.Fatal(problems)
			}
			var got []string
			for _, l := range cfg.Listeners {
				for c := range chains(l) {
					if c.GetFilters()[0].GetName() == "new" {
						got = append(got, c.GetName())
					}
				}
			}
			if diff := cmp.Diff(tt.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("chains (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMatchRoutesAndClusters(t *testing.T) {
	for _, tt := range []struct {
		name, in, applyTo, match string
		want                     string // what is renamed
	}{
		{"route port", gateway, "ROUTE_CONFIGURATION", `routeConfiguration: {portNumber: 8080}`, "http.8080"},
		{"route gateway", gateway, "ROUTE_CONFIGURATION", `routeConfiguration: {gateway: ns/gw, portName: https, portNumber: 8443}`, "https.8443.https.gw.ns"},
		{"route of another gateway", gateway, "ROUTE_CONFIGURATION", `routeConfiguration: {gateway: ns/other}`, ""},
		{"route name", gateway, "ROUTE_CONFIGURATION", `routeConfiguration: {name: http.8080}`, "http.8080"},
		{"sidecar's route port", sidecar, "ROUTE_CONFIGURATION", `routeConfiguration: {portNumber: 9080}`, "9080"},
		{"sidecar's inbound", sidecar, "ROUTE_CONFIGURATION", `context: SIDECAR_INBOUND`, "inbound|80||"},
		{"sidecar's outbound", sidecar, "ROUTE_CONFIGURATION", `context: SIDECAR_OUTBOUND`, "9080"},
		{"cluster port", gateway, "CLUSTER", `cluster: {portNumber: 80}`, "outbound|80|v1|a.ns.svc.cluster.local"},
		{"cluster service", gateway, "CLUSTER", `cluster: {service: b.ns.svc.cluster.local}`, "outbound|81||b.ns.svc.cluster.local"},
		{"cluster name", gateway, "CLUSTER", `cluster: {name: plain}`, "plain"},
		{"cluster of no such", gateway, "CLUSTER", `cluster: {service: b.ns.svc.cluster.local, portNumber: 80}`, ""},
		{"inbound cluster has no service", sidecar, "CLUSTER", `cluster: {service: x, portNumber: 80}`, "inbound|80||"},
		{"inbound cluster", sidecar, "CLUSTER", `context: SIDECAR_INBOUND`, "inbound|80||"},
		{"outbound cluster", sidecar, "CLUSTER", `context: SIDECAR_OUTBOUND`, "outbound|9080||b.ns.svc.cluster.local"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, proxy := readConfig(t, tt.in)
			before := routesAndClusters(t, cfg)
			f, problems := Compile(readFilter(t, filterOf(`{applyTo: `+tt.applyTo+`, match: {`+tt.match+`}, patch: {operation: MERGE, value: {name: RENAMED}}}`)))
			if problems = append(problems, Apply(cfg, proxy, []*Filter{f})...); len(problems) > 0 {
				t.Fatal(problems)
			}
			var got []string
			for i, name := range routesAndClusters(t, cfg) {
				if name != before[i] {
					got = append(got, before[i])
				}
			}
			want := map[string]string{"ROUTE_CONFIGURATION": "routes ", "CLUSTER": "cluster "}[tt.applyTo] + tt.want
			if tt.want == "" {
				want = ""
			}
			if diff := cmp.Diff(want, strings.Join(got, "\n")); diff != "" {
				t.Errorf("renamed (-want +got):\n%s", diff)
			}
		})
	}
}

// routesAndClusters are their names, also of the routes that are in listeners.
func routesAndClusters(t *testing.T, cfg *Config) (out []string) {
	for _, line := range sketch(t, cfg) {
		if name, _, ok := strings.Cut(line, ": "); ok && strings.HasPrefix(name, "routes ") {
			out = append(out, name)
		}
	}
	for _, c := range cfg.Clusters {
		out = append(out, "cluster "+c.GetName())
	}
	return out
}
