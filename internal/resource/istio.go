package resource

import (
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	apiextensionsv1alpha1 "istio.io/api/extensions/v1alpha1"
	apinetworking "istio.io/api/networking/v1alpha3"
	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// What Istio's admission webhook checks beyond the schemas, as far as a resource
// that breaks it has no meaning.
//
// https://istio.io/latest/docs/reference/config/analysis/ist0106/

func checkWasmPlugin(o Object) field.ErrorList {
	spec := &o.(*extensionsv1alpha1.WasmPlugin).Spec
	errs := checkModuleURL(field.NewPath("spec", "url"), spec.Url)
	return append(errs, checkEnv(field.NewPath("spec", "vmConfig", "env"), spec.VmConfig)...)
}

func checkTrafficExtension(o Object) field.ErrorList {
	spec := &o.(*extensionsv1alpha1.TrafficExtension).Spec
	wasm := spec.GetWasm()
	if wasm == nil {
		return nil
	}
	errs := checkModuleURL(field.NewPath("spec", "wasm", "url"), wasm.Url)
	return append(errs, checkEnv(field.NewPath("spec", "wasm", "vmConfig", "env"), wasm.VmConfig)...)
}

// checkModuleURL wants what can be fetched: a host, or for file:// a path. The
// schema has seen to the scheme.
func checkModuleURL(path *field.Path, written string) field.ErrorList {
	whole := written
	if !strings.Contains(written, "://") {
		whole = "oci://" + written
	}
	u, err := url.Parse(whole)
	switch {
	case err != nil:
		return field.ErrorList{field.Invalid(path, written, "must be a URL")}
	case u.Scheme == "file" && u.Path == "":
		return field.ErrorList{field.Invalid(path, written, "must have a path, as in file:///opt/plugin.wasm")}
	case u.Scheme != "file" && u.Host == "":
		return field.ErrorList{field.Invalid(path, written, "must have a host")}
	}
	return nil
}

// checkEnv wants names that an environment can have. The schema has seen to the values.
func checkEnv(path *field.Path, vm *apiextensionsv1alpha1.VmConfig) field.ErrorList {
	var errs field.ErrorList
	for i, env := range vm.GetEnv() {
		if strings.ContainsAny(env.Name, "=\x00") {
			errs = append(errs, field.Invalid(path.Index(i).Child("name"), env.Name, "must not contain '=' or NUL"))
		}
	}
	return errs
}

func checkEnvoyFilter(o Object) field.ErrorList {
	var errs field.ErrorList
	for i, patch := range o.(*networkingv1alpha3.EnvoyFilter).Spec.ConfigPatches {
		errs = append(errs, checkConfigPatch(field.NewPath("spec", "configPatches").Index(i), patch)...)
	}
	return errs
}

func checkConfigPatch(path *field.Path, p *apinetworking.EnvoyFilter_EnvoyConfigObjectPatch) field.ErrorList {
	var errs field.ErrorList
	if p.ApplyTo == apinetworking.EnvoyFilter_INVALID {
		errs = append(errs, field.Required(path.Child("applyTo"), "missing applyTo"))
	}
	errs = append(errs, checkPatch(path.Child("patch"), p.Patch)...)
	if version := p.Match.GetProxy().GetProxyVersion(); version != "" {
		errs = append(errs, checkRegex(path.Child("match", "proxy", "proxyVersion"), version)...)
	}
	if object, want := matchedObject(p.Match), matchable(p.ApplyTo); object != "" && want != nil && !slices.Contains(want, object) {
		errs = append(errs, field.Invalid(path.Child("match", object), p.ApplyTo.String(),
			"a patch applied to this is matched by "+strings.Join(want, " or ")))
	}
	return errs
}

func checkPatch(path *field.Path, p *apinetworking.EnvoyFilter_Patch) field.ErrorList {
	var errs field.ErrorList
	if p.GetOperation() == apinetworking.EnvoyFilter_Patch_INVALID {
		errs = append(errs, field.Required(path.Child("operation"), "missing patch operation"))
	}
	if p.GetOperation() != apinetworking.EnvoyFilter_Patch_REMOVE && p.GetValue() == nil {
		errs = append(errs, field.Required(path.Child("value"), "missing patch value for non-remove operation"))
	}
	return errs
}

// matchedObject is the field of match that says what object is meant.
func matchedObject(match *apinetworking.EnvoyFilter_EnvoyConfigObjectMatch) string {
	switch match.GetObjectTypes().(type) {
	case *apinetworking.EnvoyFilter_EnvoyConfigObjectMatch_Listener:
		return "listener"
	case *apinetworking.EnvoyFilter_EnvoyConfigObjectMatch_RouteConfiguration:
		return "routeConfiguration"
	case *apinetworking.EnvoyFilter_EnvoyConfigObjectMatch_Cluster:
		return "cluster"
	case *apinetworking.EnvoyFilter_EnvoyConfigObjectMatch_Waypoint:
		return "waypoint"
	}
	return ""
}

// matchable are the objects that a patch applied to something can be matched
// by; nil means any.
func matchable(applyTo apinetworking.EnvoyFilter_ApplyTo) []string {
	switch applyTo {
	case apinetworking.EnvoyFilter_LISTENER, apinetworking.EnvoyFilter_FILTER_CHAIN, apinetworking.EnvoyFilter_LISTENER_FILTER:
		return []string{"listener"}
	case apinetworking.EnvoyFilter_NETWORK_FILTER, apinetworking.EnvoyFilter_HTTP_FILTER:
		return []string{"listener", "waypoint"}
	case apinetworking.EnvoyFilter_ROUTE_CONFIGURATION, apinetworking.EnvoyFilter_VIRTUAL_HOST, apinetworking.EnvoyFilter_HTTP_ROUTE:
		return []string{"routeConfiguration", "waypoint"}
	case apinetworking.EnvoyFilter_CLUSTER:
		return []string{"cluster"}
	}
	return nil
}

func checkGateway(o Object) field.ErrorList {
	spec := &o.(*networkingv1.Gateway).Spec
	path := field.NewPath("spec", "servers")
	if len(spec.Servers) == 0 {
		return field.ErrorList{field.Required(path, "gateway must have at least one server")}
	}
	var errs field.ErrorList
	for i, server := range spec.Servers {
		errs = append(errs, checkServer(path.Index(i), server)...)
	}
	return errs
}

func checkServer(path *field.Path, s *apinetworking.Server) field.ErrorList {
	var errs field.ErrorList
	if len(s.Hosts) == 0 {
		errs = append(errs, field.Required(path.Child("hosts"), "server config must contain at least one host"))
	}
	for i, host := range s.Hosts {
		if namespace, name, ok := strings.Cut(host, "/"); ok {
			if namespace != "*" && namespace != "." && len(validation.IsDNS1123Label(namespace)) > 0 {
				errs = append(errs, field.Invalid(path.Child("hosts").Index(i), host, "the part before '/' must be a namespace, '.' or '*'"))
			}
			host = name
		}
		errs = append(errs, checkHost(path.Child("hosts").Index(i), host)...)
	}
	port := path.Child("port")
	errs = append(errs, checkPort(port.Child("number"), s.GetPort().GetNumber())...)
	protocols := []string{"HTTP", "HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "MONGO", "TCP", "TLS", "UDP"}
	if protocol := s.GetPort().GetProtocol(); !slices.Contains(protocols, strings.ToUpper(protocol)) {
		errs = append(errs, field.NotSupported(port.Child("protocol"), protocol, protocols))
	}
	return append(errs, checkServerTLS(path.Child("tls"), s)...)
}

func checkServerTLS(path *field.Path, s *apinetworking.Server) field.ErrorList {
	protocol := strings.ToUpper(s.GetPort().GetProtocol())
	tls := s.Tls
	if tls == nil {
		if protocol == "HTTPS" || protocol == "TLS" {
			return field.ErrorList{field.Required(path, "server must have TLS settings for HTTPS/TLS protocols")}
		}
		return nil
	}
	var errs field.ErrorList
	if tls.HttpsRedirect && protocol != "HTTP" {
		errs = append(errs, field.Invalid(path.Child("httpsRedirect"), true, "only for a server of protocol HTTP"))
	}
	terminates := tls.Mode == apinetworking.ServerTLSSettings_SIMPLE || tls.Mode == apinetworking.ServerTLSSettings_MUTUAL || tls.Mode == apinetworking.ServerTLSSettings_OPTIONAL_MUTUAL
	if (protocol == "HTTPS" || protocol == "TLS") && terminates && !hasCertificate(tls) {
		errs = append(errs, field.Required(path.Child("credentialName"), tls.Mode.String()+" TLS requires a certificate: credentialName, or serverCertificate and privateKey"))
	}
	return errs
}

func hasCertificate(tls *apinetworking.ServerTLSSettings) bool {
	return tls.CredentialName != "" || len(tls.CredentialNames) > 0 || len(tls.TlsCertificates) > 0 ||
		tls.ServerCertificate != "" && tls.PrivateKey != ""
}

func checkVirtualService(o Object) field.ErrorList {
	spec := &o.(*networkingv1.VirtualService).Spec
	var errs field.ErrorList
	// One with neither is a delegate, which another one names.
	if len(spec.Hosts) == 0 && len(spec.Gateways) > 0 {
		errs = append(errs, field.Required(field.NewPath("spec", "hosts"), "virtual service must have at least one host"))
	}
	for i, host := range spec.Hosts {
		errs = append(errs, checkHost(field.NewPath("spec", "hosts").Index(i), host)...)
	}
	if len(spec.Http)+len(spec.Tls)+len(spec.Tcp) == 0 {
		errs = append(errs, field.Required(field.NewPath("spec", "http"), "http, tcp or tls must be provided in virtual service"))
	}
	for i, route := range spec.Http {
		errs = append(errs, checkHTTPRoute(field.NewPath("spec", "http").Index(i), route)...)
	}
	return errs
}

func checkHTTPRoute(path *field.Path, r *apinetworking.HTTPRoute) field.ErrorList {
	var errs field.ErrorList
	does := 0
	for _, set := range []bool{len(r.Route) > 0, r.Redirect != nil, r.DirectResponse != nil, r.Delegate != nil} {
		if set {
			does++
		}
	}
	switch {
	case does == 0:
		errs = append(errs, field.Required(path.Child("route"), "HTTP route, redirect, direct_response or delegate is required"))
	case does > 1 && (r.Redirect != nil || r.DirectResponse != nil):
		errs = append(errs, field.Invalid(path, r.Name, "HTTP route cannot contain more than one of route, redirect and direct_response"))
	}
	if r.Redirect != nil && r.Rewrite != nil {
		errs = append(errs, field.Forbidden(path.Child("rewrite"), "HTTP route rule cannot contain both rewrite and redirect"))
	}
	if status := r.GetDirectResponse().GetStatus(); r.DirectResponse != nil && (status < 200 || status > 599) {
		errs = append(errs, field.Invalid(path.Child("directResponse", "status"), int64(status), "must be in the range 200 to 599"))
	}
	errs = append(errs, checkDestinations(path.Child("route"), r.Route)...)
	for i, match := range r.Match {
		errs = append(errs, checkMatch(path.Child("match").Index(i), match)...)
	}
	if rewrite := r.GetRewrite().GetUriRegexRewrite(); rewrite != nil {
		errs = append(errs, checkRegex(path.Child("rewrite", "uriRegexRewrite", "match"), rewrite.Match)...)
	}
	return errs
}

func checkDestinations(path *field.Path, routes []*apinetworking.HTTPRouteDestination) field.ErrorList {
	var errs field.ErrorList
	total := int32(0)
	for i, route := range routes {
		at := path.Index(i)
		if route.GetDestination().GetHost() == "" {
			errs = append(errs, field.Required(at.Child("destination", "host"), ""))
		}
		if port := route.GetDestination().GetPort(); port != nil {
			errs = append(errs, checkPort(at.Child("destination", "port", "number"), port.GetNumber())...)
		}
		if route.GetWeight() < 0 || route.GetWeight() > 1<<20 {
			errs = append(errs, field.Invalid(at.Child("weight"), route.GetWeight(), "must be between 0 and 1048576"))
			continue
		}
		total += min(route.GetWeight(), 1<<20)
	}
	if len(routes) > 1 && total == 0 && len(errs) == 0 {
		errs = append(errs, field.Invalid(path, int64(0), "total destination weight = 0"))
	}
	return errs
}

func checkMatch(path *field.Path, m *apinetworking.HTTPMatchRequest) field.ErrorList {
	var errs field.ErrorList
	for name, match := range map[string]*apinetworking.StringMatch{
		"uri": m.Uri, "scheme": m.Scheme, "method": m.Method, "authority": m.Authority,
	} {
		errs = append(errs, checkStringMatch(path.Child(name), match)...)
	}
	for name, matches := range map[string]map[string]*apinetworking.StringMatch{
		"headers": m.Headers, "withoutHeaders": m.WithoutHeaders, "queryParams": m.QueryParams,
	} {
		for key, match := range matches {
			if key == "" {
				errs = append(errs, field.Required(path.Child(name), "a name must not be empty"))
			}
			errs = append(errs, checkStringMatch(path.Child(name).Key(key), match)...)
		}
	}
	return errs
}

func checkStringMatch(path *field.Path, m *apinetworking.StringMatch) field.ErrorList {
	switch match := m.GetMatchType().(type) {
	case *apinetworking.StringMatch_Prefix:
		if match.Prefix == "" {
			return field.ErrorList{field.Required(path.Child("prefix"), "must not be empty")}
		}
	case *apinetworking.StringMatch_Regex:
		return checkRegex(path.Child("regex"), match.Regex)
	}
	return nil
}

func checkServiceEntry(o Object) field.ErrorList {
	spec := &o.(*networkingv1.ServiceEntry).Spec
	var errs field.ErrorList
	for i, host := range spec.Hosts {
		errs = append(errs, checkHost(field.NewPath("spec", "hosts").Index(i), host)...)
	}
	names := map[string]bool{}
	for _, port := range spec.Ports {
		names[port.Name] = true
	}
	for i, endpoint := range spec.Endpoints {
		at := field.NewPath("spec", "endpoints").Index(i)
		for name := range endpoint.Ports {
			if !names[name] {
				errs = append(errs, field.Invalid(at.Child("ports").Key(name), name, "endpoint port is not defined by the service entry"))
			}
		}
		needsIP := spec.Resolution == apinetworking.ServiceEntry_STATIC && endpoint.Address != "" && !strings.HasPrefix(endpoint.Address, "unix://")
		if needsIP && len(validation.IsValidIP(nil, endpoint.Address)) > 0 {
			errs = append(errs, field.Invalid(at.Child("address"), endpoint.Address, "must be an IP address with resolution STATIC"))
		}
	}
	return errs
}

func checkDestinationRule(o Object) field.ErrorList {
	spec := &o.(*networkingv1.DestinationRule).Spec
	var errs field.ErrorList
	if spec.Host == "" {
		errs = append(errs, field.Required(field.NewPath("spec", "host"), ""))
	}
	names := map[string]bool{}
	for i, subset := range spec.Subsets {
		at := field.NewPath("spec", "subsets").Index(i).Child("name")
		if names[subset.Name] {
			errs = append(errs, field.Duplicate(at, subset.Name))
		}
		names[subset.Name] = true
		if len(validation.IsDNS1123Label(strings.ToLower(subset.Name))) > 0 {
			errs = append(errs, field.Invalid(at, subset.Name, "subset name is invalid"))
		}
	}
	return errs
}

// checkHost wants a DNS name, which may begin with a wildcard or be one, or an IP address.
func checkHost(path *field.Path, host string) field.ErrorList {
	if host == "*" || len(validation.IsValidIP(nil, host)) == 0 {
		return nil
	}
	name := strings.ToLower(strings.TrimPrefix(host, "*."))
	if msgs := validation.IsDNS1123Subdomain(strings.TrimSuffix(name, ".")); len(msgs) > 0 {
		return field.ErrorList{field.Invalid(path, host, "must be a DNS name, optionally with a wildcard in front")}
	}
	return nil
}

func checkPort(path *field.Path, number uint32) field.ErrorList {
	if number < 1 || number > 65535 {
		return field.ErrorList{field.Invalid(path, strconv.Itoa(int(number)), "port number must be in the range 1..65535")}
	}
	return nil
}

// checkRegex wants the RE2 syntax, which Go's is.
func checkRegex(path *field.Path, expression string) field.ErrorList {
	if _, err := regexp.Compile(expression); err != nil {
		return field.ErrorList{field.Invalid(path, expression, "must be a regular expression in RE2 syntax")}
	}
	return nil
}
