package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// A candidate is one match of an HTTPRoute at one listener and host, with what
// the Gateway API orders such matches by.
type candidate struct {
	server *server
	host   string
	route  *routev3.Route
	source *gatewayv1.HTTPRoute
	match  gatewayv1.HTTPRouteMatch
	order  int // in source
}

// addHTTPRoutes adds the routes of the HTTPRoutes that are attached to those of
// servers that are listeners. At each host are the routes of all patterns that
// cover it, most specific pattern first: where an HTTPRoute for the very host has
// no match, one for a wildcard may have.
func (b *builder) addHTTPRoutes(hosts *virtualHosts, servers []*server) {
	candidates := b.candidates(servers)
	byHost := map[string]*server{}
	for _, c := range candidates {
		byHost[c.host] = c.server
	}
	for host, s := range byHost {
		var here []candidate
		for _, c := range candidates {
			if mesh.HostMatches(c.host, host) && isClosest(c.server, servers, host) {
				here = append(here, c)
			}
		}
		slices.SortStableFunc(here, before)
		vh := hosts.at(host, s.port)
		vh.Routes = append(vh.Routes, reachable(here)...)
	}
}

// reachable are the routes of candidates, each once, up to the first that
// matches every request.
func reachable(candidates []candidate) []*routev3.Route {
	var out []*routev3.Route
	seen := map[*routev3.Route]bool{} // one may cover a host by several patterns
	for _, c := range candidates {
		if seen[c.route] {
			continue
		}
		seen[c.route] = true
		if out = append(out, c.route); catchesAll(c.route) {
			break
		}
	}
	return out
}

// isClosest says whether, of the listeners, s has the most specific host name
// that covers host: only that one serves it.
func isClosest(s *server, servers []*server, host string) bool {
	own := s.hosts[0].host
	return !slices.ContainsFunc(servers, func(o *server) bool {
		return o.api != nil && mesh.HostMatches(o.hosts[0].host, host) && mesh.CompareHosts(o.hosts[0].host, own) < 0
	})
}

func (b *builder) candidates(servers []*server) []candidate {
	var out []candidate
	for _, s := range servers {
		if s.api == nil {
			continue
		}
		for _, route := range b.world.HTTPRoutes(s.api) {
			if !b.attaches(route, s) {
				continue
			}
			hosts := s.hostsOf(route)
			if len(hosts) == 0 {
				continue
			}
			k := kubernetesRoutes{builder: b, source: route, port: s.port, tls: s.tls != nil}
			for i, c := range k.routes() {
				c.server, c.source, c.order = s, route, i
				for _, host := range hosts {
					c.host = host
					out = append(out, c)
				}
			}
		}
	}
	return out
}

// hostsOf is the hosts that the listener and the route have in common.
func (s *server) hostsOf(route *gatewayv1.HTTPRoute) []string {
	if len(route.Spec.Hostnames) == 0 {
		return []string{s.hosts[0].host}
	}
	var out []string
	for _, h := range route.Spec.Hostnames {
		both, ok := mesh.HostIntersection(s.hosts[0].host, strings.ToLower(string(h)))
		if ok && mesh.ValidHost(both) && !slices.Contains(out, both) {
			out = append(out, both)
		}
	}
	return out
}

// before is the Gateway API's precedence: host, path, method, number of
// headers, number of query parameters, age, name, place in the HTTPRoute.
// Between exact and prefix paths stand regular expressions.
// https://gateway-api.sigs.k8s.io/reference/spec/#httproutematch
func before(a, b candidate) int {
	if c := mesh.CompareHosts(a.host, b.host); c != 0 {
		return c
	}
	if c := comparePaths(a.match.Path, b.match.Path); c != 0 {
		return c
	}
	hasMethod := func(c candidate) int {
		if c.match.Method != nil {
			return 1
		}
		return 0
	}
	return cmp.Or(
		cmp.Compare(hasMethod(b), hasMethod(a)),
		cmp.Compare(len(b.match.Headers), len(a.match.Headers)),
		cmp.Compare(len(b.match.QueryParams), len(a.match.QueryParams)),
		a.source.CreationTimestamp.Compare(b.source.CreationTimestamp.Time),
		cmp.Compare(a.source.Namespace+"/"+a.source.Name, b.source.Namespace+"/"+b.source.Name),
		cmp.Compare(a.order, b.order),
	)
}

func comparePaths(a, b *gatewayv1.HTTPPathMatch) int {
	rank := func(p *gatewayv1.HTTPPathMatch) (kind, length int) {
		kind, value := pathOf(p)
		return kind, len(value)
	}
	aKind, aLength := rank(a)
	bKind, bLength := rank(b)
	return cmp.Or(cmp.Compare(bKind, aKind), cmp.Compare(bLength, aLength))
}

// Kinds of path, in order of precedence.
const (
	pathPrefix = iota
	pathRegex
	pathExact
)

// pathOf is a path's kind and value; by default the prefix "/". A slash at the
// end of a prefix means nothing.
func pathOf(p *gatewayv1.HTTPPathMatch) (kind int, value string) {
	if p == nil {
		return pathPrefix, "/"
	}
	value = "/"
	if p.Value != nil {
		value = *p.Value
	}
	if p.Type != nil {
		switch *p.Type {
		case gatewayv1.PathMatchExact:
			return pathExact, value
		case gatewayv1.PathMatchRegularExpression:
			return pathRegex, value
		}
	}
	return pathPrefix, cmp.Or(strings.TrimRight(value, "/"), "/")
}

// kubernetesRoutes is the making of an HTTPRoute's routes for one listener.
type kubernetesRoutes struct {
	*builder
	source *gatewayv1.HTTPRoute
	port   uint32
	tls    bool
}

func (k *kubernetesRoutes) routes() []candidate {
	var out []candidate
	for i, rule := range k.source.Spec.Rules {
		field := fmt.Sprintf("spec.rules[%d]", i)
		matches := rule.Matches
		if len(matches) == 0 {
			matches = []gatewayv1.HTTPRouteMatch{{}}
		}
		for j, match := range matches {
			if route := k.route(rule, match, i, field, fmt.Sprintf("%s.matches[%d]", field, j)); route != nil {
				out = append(out, candidate{route: route, match: match})
			}
		}
	}
	return out
}

// route is nil if its match cannot be honoured. If what it does cannot be, it
// answers 500, as the Gateway API has it.
func (k *kubernetesRoutes) route(rule gatewayv1.HTTPRouteRule, match gatewayv1.HTTPRouteMatch, index int, field, matchField string) *routev3.Route {
	out := &routev3.Route{Name: fmt.Sprintf("%s.%s.%d", k.source.Namespace, k.source.Name, index)}
	var err error
	if out.Match, err = valid(kubernetesMatch(match)); err != nil {
		k.refuseValue(k.source, matchField, err)
		return nil
	}
	if err := k.act(out, rule, match, field); err != nil {
		k.refuseValue(k.source, field, err)
		return &routev3.Route{Name: out.Name, Match: out.Match, Action: answer(internalServerError, nil)}
	}
	if out, err = valid(out, nil); err != nil {
		k.refuseValue(k.source, field, err)
		return nil
	}
	return out
}

func kubernetesMatch(in gatewayv1.HTTPRouteMatch) (*routev3.RouteMatch, error) {
	out := &routev3.RouteMatch{}
	switch kind, value := pathOf(in.Path); kind {
	case pathExact:
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: value}
	case pathRegex:
		re, err := regex(value)
		if err != nil {
			return nil, fmt.Errorf("path: %w", err)
		}
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: re}
	default:
		pathBelow(out, value)
	}
	if in.Method != nil {
		out.Headers = append(out.Headers, headerMatcher(":method", exact(string(*in.Method))))
	}
	for _, h := range in.Headers {
		m, err := valueMatcher(h.Type != nil && *h.Type == gatewayv1.HeaderMatchRegularExpression, h.Value)
		if err != nil {
			return nil, fmt.Errorf("headers.%s: %w", h.Name, err)
		}
		out.Headers = append(out.Headers, headerMatcher(string(h.Name), m))
	}
	for _, q := range in.QueryParams {
		m, err := valueMatcher(q.Type != nil && *q.Type == gatewayv1.QueryParamMatchRegularExpression, q.Value)
		if err != nil {
			return nil, fmt.Errorf("queryParams.%s: %w", q.Name, err)
		}
		out.QueryParameters = append(out.QueryParameters, queryMatcher(string(q.Name), m))
	}
	return out, nil
}

func valueMatcher(isRegex bool, value string) (*matcherv3.StringMatcher, error) {
	if isRegex {
		return regexMatcher(value)
	}
	return exact(value), nil
}

// act sets what the route does with a request.
func (k *kubernetesRoutes) act(out *routev3.Route, rule gatewayv1.HTTPRouteRule, match gatewayv1.HTTPRouteMatch, field string) error {
	if rule.SessionPersistence != nil {
		return &invalidValue{"sessionPersistence is not supported", "remove it"}
	}
	action := &routev3.RouteAction{
		RetryPolicy:                 retries(nil, false),
		ClusterNotFoundResponseCode: routev3.RouteAction_INTERNAL_SERVER_ERROR,
	}
	if err := k.setFilters(out, action, rule.Filters, match); err != nil {
		return err
	}
	if out.Action != nil { // a redirect
		return nil
	}
	if err := setLimits(action, rule); err != nil {
		return err
	}
	if err := k.setBackends(action, rule.BackendRefs, field); err != nil {
		return err
	}
	out.Action = &routev3.Route_Route{Route: action}
	return nil
}

func (k *kubernetesRoutes) setFilters(out *routev3.Route, action *routev3.RouteAction, filters []gatewayv1.HTTPRouteFilter, match gatewayv1.HTTPRouteMatch) (err error) {
	for _, f := range filters {
		switch {
		case f.Type == gatewayv1.HTTPRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
			out.RequestHeadersToAdd, out.RequestHeadersToRemove, err = modifyHeaders(f.RequestHeaderModifier)
		case f.Type == gatewayv1.HTTPRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
			out.ResponseHeadersToAdd, out.ResponseHeadersToRemove, err = modifyHeaders(f.ResponseHeaderModifier)
		case f.Type == gatewayv1.HTTPRouteFilterRequestRedirect && f.RequestRedirect != nil:
			err = k.redirect(out, f.RequestRedirect, match)
		case f.Type == gatewayv1.HTTPRouteFilterURLRewrite && f.URLRewrite != nil:
			err = rewriteURL(action, f.URLRewrite, match)
		default:
			err = &invalidValue{fmt.Sprintf("filter %s is not supported", f.Type), "remove it; a VirtualService can do mirrors and CORS"}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// modifyHeaders reads a header modifier. Its values are plain text, where Envoy
// would take a per cent sign for the beginning of a command.
func modifyHeaders(in *gatewayv1.HTTPHeaderFilter) (add []*corev3.HeaderValueOption, remove []string, err error) {
	for _, list := range []struct {
		headers []gatewayv1.HTTPHeader
		action  corev3.HeaderValueOption_HeaderAppendAction
	}{
		{in.Set, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD},
		{in.Add, corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD},
	} {
		for _, h := range list.headers {
			if isPseudo(string(h.Name)) {
				return nil, nil, &invalidValue{"header " + string(h.Name) + " cannot be set", "use URLRewrite for the host name"}
			}
			o, err := headerOption(string(h.Name), strings.ReplaceAll(h.Value, "%", "%%"), list.action)
			if err != nil {
				return nil, nil, err
			}
			add = append(add, o)
		}
	}
	return add, dropPseudo(in.Remove), nil
}

func (k *kubernetesRoutes) redirect(out *routev3.Route, in *gatewayv1.HTTPRequestRedirectFilter, match gatewayv1.HTTPRouteMatch) error {
	action := &routev3.RedirectAction{ResponseCode: routev3.RedirectAction_FOUND}
	if in.StatusCode != nil {
		code, err := redirectCode(*in.StatusCode)
		if err != nil {
			return err
		}
		action.ResponseCode = code
	}
	if in.Hostname != nil {
		action.HostRedirect = string(*in.Hostname)
	}
	scheme := "http"
	if k.tls {
		scheme = "https"
	}
	action.PortRedirect = k.port
	if in.Scheme != nil {
		scheme = *in.Scheme
		action.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: scheme}
		action.PortRedirect = 0 // the scheme's own
	}
	if in.Port != nil {
		action.PortRedirect = uint32(*in.Port)
	}
	if isDefaultPort(scheme, action.PortRedirect) {
		action.PortRedirect = 0
	}
	out.Action = &routev3.Route_Redirect{Redirect: action}
	return redirectPath(action, in.Path, match)
}

func redirectPath(action *routev3.RedirectAction, in *gatewayv1.HTTPPathModifier, match gatewayv1.HTTPRouteMatch) error {
	if in == nil {
		return nil
	}
	switch pathModifier(in) {
	case gatewayv1.FullPathHTTPPathModifier:
		action.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: *in.ReplaceFullPath}
	case gatewayv1.PrefixMatchHTTPPathModifier:
		prefix, regex := replacePrefix(in, match)
		if regex != nil {
			action.PathRewriteSpecifier = &routev3.RedirectAction_RegexRewrite{RegexRewrite: regex}
			return nil
		}
		action.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: prefix}
	default:
		return unknownModifier(in)
	}
	return nil
}

// pathModifier is the type of in, if it has what that type needs. A newer CRD
// may let through what we do not know.
func pathModifier(in *gatewayv1.HTTPPathModifier) gatewayv1.HTTPPathModifierType {
	switch {
	case in.Type == gatewayv1.FullPathHTTPPathModifier && in.ReplaceFullPath != nil,
		in.Type == gatewayv1.PrefixMatchHTTPPathModifier && in.ReplacePrefixMatch != nil:
		return in.Type
	}
	return ""
}

func unknownModifier(in *gatewayv1.HTTPPathModifier) error {
	return &invalidValue{"path: " + string(in.Type) + " is not known, or lacks its value", "use ReplaceFullPath or ReplacePrefixMatch"}
}

// replacePrefix is how the matched prefix is replaced: by a plain prefix, or by
// a regular expression if a plain one would get the slashes wrong.
func replacePrefix(in *gatewayv1.HTTPPathModifier, match gatewayv1.HTTPRouteMatch) (string, *matcherv3.RegexMatchAndSubstitute) {
	_, matched := pathOf(match.Path)
	matched = strings.TrimRight(matched, "/")
	to := strings.TrimRight(*in.ReplacePrefixMatch, "/")
	switch {
	case matched == "" && to == "":
		return "/", nil
	case matched == "": // "/" matches the slash itself, which has to stay
		return to + "/", nil
	case to == "":
		return "", withoutPrefix(matched)
	}
	return to, nil
}

func rewriteURL(action *routev3.RouteAction, in *gatewayv1.HTTPURLRewriteFilter, match gatewayv1.HTTPRouteMatch) error {
	if in.Hostname != nil {
		action.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: string(*in.Hostname)}
	}
	if in.Path == nil {
		return nil
	}
	switch pathModifier(in.Path) {
	case gatewayv1.FullPathHTTPPathModifier:
		action.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{
			Pattern: &matcherv3.RegexMatcher{Regex: "/.*"}, Substitution: literal(*in.Path.ReplaceFullPath),
		}
	case gatewayv1.PrefixMatchHTTPPathModifier:
		action.PrefixRewrite, action.RegexRewrite = replacePrefix(in.Path, match)
	default:
		return unknownModifier(in.Path)
	}
	return nil
}

// setLimits sets timeouts and retries. There is no timeout unless one is written.
func setLimits(action *routev3.RouteAction, rule gatewayv1.HTTPRouteRule) error {
	request, try := (*durationpb.Duration)(nil), (*durationpb.Duration)(nil)
	if t := rule.Timeouts; t != nil {
		var err error
		if request, err = durationOf("timeouts.request", t.Request); err != nil {
			return err
		}
		if try, err = durationOf("timeouts.backendRequest", t.BackendRequest); err != nil {
			return err
		}
	}
	if r := rule.Retry; r != nil {
		if err := setRetry(action, r); err != nil {
			return err
		}
	}
	action.Timeout = timeoutOf(request)
	if action.RetryPolicy != nil && try.AsDuration() > 0 {
		action.RetryPolicy.PerTryTimeout = try
	} else if request == nil {
		action.Timeout = timeoutOf(try)
	}
	return nil
}

func setRetry(action *routev3.RouteAction, in *gatewayv1.HTTPRouteRetry) error {
	backoff, err := durationOf("retry.backoff", in.Backoff)
	if err != nil {
		return err
	}
	if in.Attempts != nil && *in.Attempts <= 0 {
		action.RetryPolicy = nil
		return nil
	}
	p := action.RetryPolicy
	if in.Attempts != nil {
		p.NumRetries = wrapperspb.UInt32(uint32(*in.Attempts))
	}
	for _, code := range in.Codes {
		p.RetriableStatusCodes = append(p.RetriableStatusCodes, uint32(code))
	}
	if backoff.AsDuration() > 0 {
		p.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: backoff}
	}
	return nil
}

// durationOf reads a duration of GEP-2257; nil is none.
func durationOf(field string, d *gatewayv1.Duration) (*durationpb.Duration, error) {
	if d == nil {
		return nil, nil
	}
	v, err := time.ParseDuration(string(*d))
	if err != nil || v < 0 {
		return nil, &invalidValue{field + ": " + string(*d) + " is not a duration", "write 10s, 500ms or 1m30s"}
	}
	return durationpb.New(v), nil
}

// setBackends sends requests to backends by weight. The share of one that cannot
// be found is answered 500.
func (k *kubernetesRoutes) setBackends(action *routev3.RouteAction, refs []gatewayv1.HTTPBackendRef, field string) error {
	weighted := &routev3.WeightedCluster{}
	for i, ref := range refs {
		field := fmt.Sprintf("%s.backendRefs[%d]", field, i)
		weight := uint32(1)
		if ref.Weight != nil {
			weight = uint32(*ref.Weight)
		}
		if weight == 0 {
			continue
		}
		if len(ref.Filters) > 0 {
			k.refuse(k.source, field+".filters", "filters of a backend are not supported; its share is answered 500", "move them to the rule")
			weighted.Clusters = append(weighted.Clusters, clusterWeight(unknownCluster, weight))
			continue
		}
		weighted.Clusters = append(weighted.Clusters, clusterWeight(k.backend(ref.BackendObjectReference, field), weight))
	}
	hashed := false
	for _, c := range weighted.Clusters {
		hashed = k.hash(action, c.Name) || hashed
	}
	switch len(weighted.Clusters) {
	case 0:
		return &invalidValue{"there is no backend to send to; requests are answered 500", "give a backendRef with a weight"}
	case 1:
		action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: weighted.Clusters[0].Name}
		if hashed && action.RetryPolicy != nil { // another host would be the wrong one
			action.RetryPolicy.RetryHostPredicate = nil
		}
	default:
		action.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: weighted}
	}
	return nil
}

func clusterWeight(name string, weight uint32) *routev3.WeightedCluster_ClusterWeight {
	return &routev3.WeightedCluster_ClusterWeight{Name: name, Weight: wrapperspb.UInt32(weight)}
}

// backend is the cluster of a Service of the route's own namespace.
func (k *kubernetesRoutes) backend(ref gatewayv1.BackendObjectReference, field string) string {
	switch {
	case ref.Kind != nil && *ref.Kind != "Service" || ref.Group != nil && *ref.Group != "":
		k.refuse(k.source, field, "only a Service can be a backend; requests to it are answered 500", "name a Service")
	case ref.Namespace != nil && string(*ref.Namespace) != k.source.Namespace:
		k.refuse(k.source, field+".namespace", "a Service of another namespace needs a ReferenceGrant, which is not supported; requests to it are answered 500",
			"move the route to namespace "+string(*ref.Namespace))
	case ref.Port == nil:
		k.refuse(k.source, field+".port", "is missing; requests to it are answered 500", "give the Service's port")
	default:
		s := k.view.Service(string(ref.Name), k.source.Namespace)
		if s == nil || s.External {
			k.refuse(k.source, field+".name", "there is no Service "+string(ref.Name)+"; requests to it are answered 500", "create it, or correct the name")
			break
		}
		name := clusterName("outbound", uint32(*ref.Port), "", s.Host)
		if !k.hasCluster(name) {
			k.refuse(k.source, field+".port", "Service "+string(ref.Name)+" has no such port, or a DestinationRule makes it unreachable; requests to it are answered 500",
				"name one that it has")
			break
		}
		return name
	}
	return unknownCluster
}
