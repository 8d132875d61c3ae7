package config

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// understood has, for every message, the fields that this package reads, or that
// make no difference to a proxy such as the engine. It is never changed.
var understood = map[protoreflect.FullName]string{
	// What many messages have.
	"envoy.config.core.v3.Address":                  "socket_address pipe",
	"envoy.config.core.v3.SocketAddress":            "protocol address port_value",
	"envoy.config.core.v3.Pipe":                     "path",
	"envoy.config.core.v3.AggregatedConfigSource":   "",
	"envoy.config.core.v3.ConfigSource":             "ads initial_fetch_timeout resource_api_version",
	"envoy.config.core.v3.DataSource":               "filename inline_bytes inline_string",
	"envoy.config.core.v3.TransportSocket":          "name typed_config",
	"envoy.config.core.v3.TypedExtensionConfig":     "name typed_config",
	"envoy.config.core.v3.ExtensionConfigSource":    "config_source type_urls",
	"envoy.config.core.v3.HeaderValue":              "key value",
	"envoy.config.core.v3.HeaderValueOption":        "header append_action keep_empty_value",
	"envoy.config.core.v3.CidrRange":                "address_prefix prefix_len",
	"envoy.type.v3.Int32Range":                      "start end",
	"envoy.type.v3.Int64Range":                      "start end",
	"envoy.type.matcher.v3.StringMatcher":           "exact prefix suffix contains safe_regex ignore_case",
	"envoy.type.matcher.v3.PathMatcher":             "path",
	"envoy.type.matcher.v3.RegexMatcher":            "regex google_re2",
	"envoy.type.matcher.v3.RegexMatcher.GoogleRE2":  "",
	"envoy.type.matcher.v3.RegexMatchAndSubstitute": "pattern substitution",

	// Listeners.
	"envoy.config.listener.v3.Listener": "name address filter_chains default_filter_chain use_original_dst " +
		"per_connection_buffer_limit_bytes metadata bind_to_port listener_filters listener_filters_timeout " +
		"continue_on_listener_filters_timeout traffic_direction access_log",
	"envoy.config.listener.v3.Listener.DeprecatedV1":                                       "bind_to_port",
	"envoy.config.listener.v3.ListenerFilter":                                              "name typed_config filter_disabled",
	"envoy.config.listener.v3.ListenerFilterChainMatchPredicate":                           "or_match and_match not_match any_match destination_port_range",
	"envoy.config.listener.v3.ListenerFilterChainMatchPredicate.MatchSet":                  "rules",
	"envoy.config.listener.v3.FilterChain":                                                 "name filter_chain_match filters transport_socket metadata",
	"envoy.config.listener.v3.FilterChainMatch":                                            "destination_port prefix_ranges server_names transport_protocol application_protocols",
	"envoy.config.listener.v3.Filter":                                                      "name typed_config config_discovery",
	"envoy.extensions.filters.listener.original_dst.v3.OriginalDst":                        "",
	"envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector":                      "",
	"envoy.extensions.filters.listener.http_inspector.v3.HttpInspector":                    "",
	"envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy":                               "stat_prefix cluster weighted_clusters idle_timeout hash_policy access_log",
	"envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster":               "clusters",
	"envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight": "name weight",
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager": "codec_type stat_prefix rds route_config http_filters " +
		"use_remote_address xff_num_trusted_hops skip_xff_append server_name normalize_path merge_slashes " +
		"forward_client_cert_details set_current_client_cert_details stream_idle_timeout upgrade_configs " +
		"generate_request_id preserve_external_request_id always_set_request_id_in_response access_log",
	"envoy.config.accesslog.v3.AccessLog":                                                                           "name filter typed_config",
	"envoy.config.accesslog.v3.AccessLogFilter":                                                                     "status_code_filter duration_filter not_health_check_filter and_filter or_filter header_filter response_flag_filter",
	"envoy.config.accesslog.v3.StatusCodeFilter":                                                                    "comparison",
	"envoy.config.accesslog.v3.DurationFilter":                                                                      "comparison",
	"envoy.config.accesslog.v3.ComparisonFilter":                                                                    "op value",
	"envoy.config.core.v3.RuntimeUInt32":                                                                            "default_value runtime_key",
	"envoy.config.accesslog.v3.NotHealthCheckFilter":                                                                "",
	"envoy.config.accesslog.v3.AndFilter":                                                                           "filters",
	"envoy.config.accesslog.v3.OrFilter":                                                                            "filters",
	"envoy.config.accesslog.v3.HeaderFilter":                                                                        "header",
	"envoy.config.accesslog.v3.ResponseFlagFilter":                                                                  "flags",
	"envoy.extensions.access_loggers.file.v3.FileAccessLog":                                                         "path format log_format",
	"envoy.extensions.access_loggers.stream.v3.StdoutAccessLog":                                                     "log_format",
	"envoy.extensions.access_loggers.stream.v3.StderrAccessLog":                                                     "log_format",
	"envoy.config.core.v3.SubstitutionFormatString":                                                                 "text_format_source json_format omit_empty_values",
	"envoy.extensions.filters.network.http_connection_manager.v3.Rds":                                               "config_source route_config_name",
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter":                                        "name typed_config config_discovery",
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig":               "upgrade_type enabled",
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.SetCurrentClientCertDetails": "subject cert chain dns uri",

	// TLS.
	"envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext": "common_tls_context require_client_certificate",
	"envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext":   "common_tls_context sni",
	"envoy.extensions.transport_sockets.tls.v3.CommonTlsContext": "tls_params tls_certificates tls_certificate_sds_secret_configs " +
		"validation_context validation_context_sds_secret_config combined_validation_context alpn_protocols",
	"envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CombinedCertificateValidationContext": "default_validation_context validation_context_sds_secret_config",
	"envoy.extensions.transport_sockets.tls.v3.TlsParameters":                                         "tls_minimum_protocol_version tls_maximum_protocol_version",
	"envoy.extensions.transport_sockets.tls.v3.TlsCertificate":                                        "certificate_chain private_key",
	"envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext":                          "trusted_ca match_typed_subject_alt_names trust_chain_verification",
	"envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher":                                 "san_type matcher",
	"envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig":                                       "name sds_config",
	"envoy.extensions.transport_sockets.tls.v3.Secret":                                                "name tls_certificate validation_context",

	// Routes.
	"envoy.config.route.v3.RouteConfiguration": "name virtual_hosts response_headers_to_add response_headers_to_remove request_headers_to_add " +
		"request_headers_to_remove most_specific_header_mutations_wins validate_clusters max_direct_response_body_size_bytes ignore_port_in_host_matching " +
		"typed_per_filter_config",
	"envoy.config.route.v3.VirtualHost": "name domains routes require_tls request_headers_to_add request_headers_to_remove " +
		"response_headers_to_add response_headers_to_remove include_request_attempt_count metadata typed_per_filter_config",
	"envoy.config.route.v3.Route": "name match route redirect direct_response metadata typed_per_filter_config request_headers_to_add request_headers_to_remove " +
		"response_headers_to_add response_headers_to_remove",
	"envoy.config.route.v3.RouteMatch":            "prefix path safe_regex path_separated_prefix case_sensitive headers query_parameters",
	"envoy.config.route.v3.HeaderMatcher":         "name string_match range_match present_match invert_match treat_missing_header_as_empty",
	"envoy.config.route.v3.QueryParameterMatcher": "name string_match present_match",
	"envoy.config.route.v3.RouteAction": "cluster weighted_clusters cluster_not_found_response_code prefix_rewrite regex_rewrite " +
		"host_rewrite_literal timeout retry_policy request_mirror_policies hash_policy",
	"envoy.config.route.v3.RouteAction.HashPolicy":                      "header cookie connection_properties query_parameter terminal",
	"envoy.config.route.v3.RouteAction.HashPolicy.Header":               "header_name regex_rewrite",
	"envoy.config.route.v3.RouteAction.HashPolicy.Cookie":               "name ttl path attributes",
	"envoy.config.route.v3.RouteAction.HashPolicy.CookieAttribute":      "name value",
	"envoy.config.route.v3.RouteAction.HashPolicy.ConnectionProperties": "source_ip",
	"envoy.config.route.v3.RouteAction.HashPolicy.QueryParameter":       "name",
	"envoy.type.v3.HashPolicy":                                          "source_ip",
	"envoy.type.v3.HashPolicy.SourceIp":                                 "",
	"envoy.config.route.v3.RouteAction.RequestMirrorPolicy":             "cluster runtime_fraction trace_sampled disable_shadow_host_suffix_append",
	"envoy.config.route.v3.FilterConfig":                                "config disabled is_optional",
	"envoy.config.core.v3.RuntimeFractionalPercent":                     "default_value",
	"envoy.type.v3.FractionalPercent":                                   "numerator denominator",
	"envoy.config.route.v3.WeightedCluster":                             "clusters total_weight",
	"envoy.config.route.v3.WeightedCluster.ClusterWeight": "name weight request_headers_to_add request_headers_to_remove " +
		"response_headers_to_add response_headers_to_remove host_rewrite_literal typed_per_filter_config",
	"envoy.config.route.v3.RetryPolicy":                                    "retry_on num_retries per_try_timeout retry_host_predicate host_selection_retry_max_attempts retriable_status_codes retry_back_off",
	"envoy.config.route.v3.RetryPolicy.RetryHostPredicate":                 "name typed_config",
	"envoy.config.route.v3.RetryPolicy.RetryBackOff":                       "base_interval max_interval",
	"envoy.config.route.v3.RedirectAction":                                 "https_redirect scheme_redirect host_redirect port_redirect path_redirect prefix_rewrite regex_rewrite response_code strip_query",
	"envoy.config.route.v3.DirectResponseAction":                           "status body",
	"envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate": "",

	// Clusters.
	"envoy.config.cluster.v3.Cluster": "name alt_stat_name type eds_cluster_config connect_timeout per_connection_buffer_limit_bytes lb_policy load_assignment " +
		"ring_hash_lb_config maglev_lb_config circuit_breakers outlier_detection common_lb_config typed_extension_protocol_options dns_refresh_rate respect_dns_ttl dns_lookup_family upstream_bind_config transport_socket metadata",
	"envoy.config.cluster.v3.Cluster.RingHashLbConfig":   "minimum_ring_size hash_function maximum_ring_size",
	"envoy.config.cluster.v3.Cluster.MaglevLbConfig":     "table_size",
	"envoy.config.cluster.v3.Cluster.EdsClusterConfig":   "eds_config service_name",
	"envoy.config.cluster.v3.CircuitBreakers":            "thresholds",
	"envoy.config.cluster.v3.CircuitBreakers.Thresholds": "priority max_connections max_pending_requests max_requests max_retries track_remaining",
	"envoy.config.cluster.v3.OutlierDetection": "consecutive_5xx interval base_ejection_time max_ejection_percent enforcing_consecutive_5xx " +
		"enforcing_success_rate success_rate_minimum_hosts success_rate_request_volume success_rate_stdev_factor consecutive_gateway_failure " +
		"enforcing_consecutive_gateway_failure max_ejection_time always_eject_one_host",
	"envoy.config.cluster.v3.Cluster.CommonLbConfig":                            "healthy_panic_threshold",
	"envoy.type.v3.Percent":                                                     "value",
	"envoy.config.core.v3.BindConfig":                                           "source_address",
	"envoy.config.endpoint.v3.ClusterLoadAssignment":                            "cluster_name endpoints",
	"envoy.config.endpoint.v3.LocalityLbEndpoints":                              "locality lb_endpoints load_balancing_weight metadata",
	"envoy.config.core.v3.Locality":                                             "region zone sub_zone",
	"envoy.config.endpoint.v3.LbEndpoint":                                       "endpoint health_status metadata load_balancing_weight",
	"envoy.config.endpoint.v3.Endpoint":                                         "address hostname",
	"envoy.extensions.upstreams.http.v3.HttpProtocolOptions":                    "common_http_protocol_options upstream_http_protocol_options explicit_http_config",
	"envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig": "http_protocol_options http2_protocol_options",
	"envoy.config.core.v3.HttpProtocolOptions":                                  "idle_timeout max_requests_per_connection",
	"envoy.config.core.v3.UpstreamHttpProtocolOptions":                          "auto_sni auto_san_validation",
	"envoy.config.core.v3.Http1ProtocolOptions":                                 "",
	"envoy.config.core.v3.Http2ProtocolOptions":                                 "",

	// Filters.
	"envoy.extensions.filters.http.router.v3.Router":      "",
	"envoy.extensions.filters.http.fault.v3.HTTPFault":    "delay abort",
	"envoy.extensions.filters.http.fault.v3.FaultAbort":   "http_status grpc_status percentage",
	"envoy.extensions.filters.common.fault.v3.FaultDelay": "fixed_delay percentage",
	"envoy.extensions.filters.http.cors.v3.CorsPolicy":    "allow_origin_string_match allow_methods allow_headers expose_headers max_age allow_credentials filter_enabled forward_not_matching_preflights",
	"envoy.extensions.filters.http.rbac.v3.RBACPerRoute":  "rbac",
	"envoy.extensions.filters.http.cors.v3.Cors":          "",
	"envoy.extensions.filters.http.wasm.v3.Wasm":          "config",
	"envoy.extensions.filters.network.wasm.v3.Wasm":       "config",
	"envoy.extensions.wasm.v3.PluginConfig":               "name root_id vm_config configuration fail_open failure_policy reload_config",
	"envoy.extensions.wasm.v3.ReloadConfig":               "backoff",
	"envoy.config.core.v3.BackoffStrategy":                "base_interval",
	"envoy.extensions.wasm.v3.VmConfig":                   "vm_id runtime code configuration allow_precompiled environment_variables",
	"envoy.extensions.wasm.v3.EnvironmentVariables":       "host_env_keys key_values",
	"envoy.config.core.v3.AsyncDataSource":                "local remote",
	"envoy.extensions.filters.http.rbac.v3.RBAC":          "rules",
	"envoy.extensions.filters.network.rbac.v3.RBAC":       "rules stat_prefix",
	"envoy.config.rbac.v3.RBAC":                           "action policies",
	"envoy.config.rbac.v3.Policy":                         "permissions principals",
	"envoy.config.rbac.v3.Permission":                     "and_rules or_rules any header url_path destination_port not_rule",
	"envoy.config.rbac.v3.Permission.Set":                 "rules",
	"envoy.config.rbac.v3.Principal":                      "and_ids or_ids any direct_remote_ip remote_ip header url_path not_id",
	"envoy.config.rbac.v3.Principal.Set":                  "ids",
}

// hints says for some fields what there is instead, or why there is nothing.
var hints = map[protoreflect.FullName]string{
	"envoy.config.cluster.v3.Cluster.health_checks": "the engine does not check endpoints' health",
}

// check fails if a field of m is set that is not understood. It looks into
// messages, lists and maps, but not into google.protobuf's own types: what is in
// an Any is checked when it is unpacked.
func (d *decoder) check(path string, m protoreflect.Message) {
	name := m.Descriptor().FullName()
	fields, ok := understood[name]
	if !ok {
		d.fail(path, "%s is not supported by the engine", name)
		return
	}
	if len(m.GetUnknown()) > 0 {
		d.fail(path, "%s has a field that is unknown here", name)
		return
	}
	known := strings.Fields(fields)
	var set []protoreflect.FieldDescriptor
	m.Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		set = append(set, f)
		return true
	})
	slices.SortFunc(set, func(a, b protoreflect.FieldDescriptor) int { return a.Index() - b.Index() })
	for _, f := range set {
		p := in(path, string(f.Name()))
		if !slices.Contains(known, string(f.Name())) {
			if hint, ok := hints[f.FullName()]; ok {
				d.fail(p, "not supported: %s", hint)
			} else {
				d.fail(p, "not supported by the engine")
			}
			return
		}
		if f.Kind() == protoreflect.MessageKind && !opaque(f.Message()) {
			d.checkField(p, f, m.Get(f))
		}
	}
}

func (d *decoder) checkField(path string, f protoreflect.FieldDescriptor, v protoreflect.Value) {
	switch {
	case f.IsMap():
		if f.MapValue().Kind() != protoreflect.MessageKind || opaque(f.MapValue().Message()) {
			return
		}
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			d.check(path+"["+k.String()+"]", v.Message())
			return d.err == nil
		})
	case f.IsList():
		for i := range v.List().Len() {
			d.check(at(path, i), v.List().Get(i).Message())
		}
	default:
		d.check(path, v.Message())
	}
}

// opaque reports whether a message is checked elsewhere, or is for information.
func opaque(m protoreflect.MessageDescriptor) bool {
	name := m.FullName()
	return name.Parent() == "google.protobuf" || name == "envoy.config.core.v3.Metadata" ||
		name == "envoy.config.core.v3.RemoteDataSource" // refused with a reason of its own
}
