package translate

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	apinetworking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// virtualRoutes is the making of a VirtualService's routes for one gateway and
// port.
type virtualRoutes struct {
	*builder
	vs      *networkingv1.VirtualService
	gateway string // NAMESPACE/NAME, or mesh
	port    uint32 // of the gateway's server, or of the service
	tls     bool
}

func (r *virtualRoutes) refuse(field string, err error) { r.refuseValue(r.vs, field, err) }

// routes are those of spec.http in the order written, one for each match. What
// follows a route that matches everything is left out: it is never reached.
func (r *virtualRoutes) routes() []*routev3.Route {
	out := []*routev3.Route{}
	for i, in := range r.vs.Spec.Http {
		field := fmt.Sprintf("spec.http[%d]", i)
		matches := in.Match
		if len(matches) == 0 {
			matches = []*apinetworking.HTTPMatchRequest{nil}
		}
		for j, match := range matches {
			if !r.applies(match) {
				continue
			}
			route := r.route(in, match, field, fmt.Sprintf("%s.match[%d]", field, j))
			if route == nil {
				continue
			}
			if out = append(out, route); catchesAll(route) {
				return out
			}
		}
	}
	return out
}

// applies says whether match is for this gateway, port and workload.
func (r *virtualRoutes) applies(match *apinetworking.HTTPMatchRequest) bool {
	if match == nil {
		return true
	}
	if match.Port != 0 && match.Port != r.port {
		return false
	}
	if len(match.Gateways) > 0 {
		return slices.ContainsFunc(match.Gateways, func(g string) bool {
			return mesh.GatewayName(g, r.vs.Namespace) == r.gateway
		})
	}
	return mesh.SubsetOf(match.SourceLabels, r.proxy.Labels) &&
		(match.SourceNamespace == "" || match.SourceNamespace == r.proxy.Namespace)
}

// route is nil if its match cannot be honoured. If what it does cannot be, it
// answers 500.
func (r *virtualRoutes) route(in *apinetworking.HTTPRoute, match *apinetworking.HTTPMatchRequest, field, matchField string) *routev3.Route {
	out := &routev3.Route{Name: in.Name}
	if match.GetName() != "" {
		out.Name += "." + match.Name
	}
	out.StatPrefix = match.GetStatPrefix()
	var err error
	if out.Match, err = valid(requestMatch(match)); err != nil {
		r.refuse(matchField, err)
		return nil
	}
	if err := r.act(out, in, field); err != nil {
		r.refuse(field, err)
		return &routev3.Route{Name: out.Name, Match: out.Match, Action: answer(500, nil)}
	}
	r.setFilters(out, in, field)
	r.tellUnheard(in, field)
	if out, err = valid(out, nil); err != nil {
		r.refuse(field, err)
		return nil
	}
	return out
}

// tellUnheard tells of what is written for the route and does nothing.
func (r *virtualRoutes) tellUnheard(in *apinetworking.HTTPRoute, field string) {
	if in.Redirect != nil || in.DirectResponse != nil {
		beside := &apinetworking.HTTPRoute{
			Route: in.Route, Rewrite: in.Rewrite, Timeout: in.Timeout, Retries: in.Retries,
			Mirror: in.Mirror, Mirrors: in.Mirrors, MirrorPercentage: in.MirrorPercentage,
			//lint:ignore SA1019 users still write it
			MirrorPercent: in.MirrorPercent,
		}
		if in.Redirect != nil {
			beside.DirectResponse = in.DirectResponse
		}
		for _, name := range written(beside) {
			r.builder.refuse(r.vs, field+"."+name, "means nothing beside a redirect or a directResponse", "remove one of them")
		}
	}
	r.tellPseudo(in.Headers, field+".headers")
	for i, d := range in.Route {
		r.tellPseudo(d.Headers, fmt.Sprintf("%s.route[%d].headers", field, i))
	}
}

// tellPseudo tells of headers that a route cannot change.
func (r *virtualRoutes) tellPseudo(in *apinetworking.Headers, field string) {
	tell := func(field string, names ...string) {
		for _, name := range names {
			if isPseudo(name) {
				r.builder.refuse(r.vs, field, name+" cannot be changed so", "use rewrite: authority for the host, uri for the path")
			}
		}
	}
	for _, from := range []map[string]string{in.GetRequest().GetSet(), in.GetRequest().GetAdd()} {
		for _, name := range sortedKeys(from) {
			if !isAuthority(name) {
				tell(field+".request", name)
			}
		}
	}
	tell(field+".request.remove", in.GetRequest().GetRemove()...)
	tell(field+".response", sortedKeys(in.GetResponse().GetSet())...)
	tell(field+".response", sortedKeys(in.GetResponse().GetAdd())...)
	tell(field+".response.remove", in.GetResponse().GetRemove()...)
}

func isAuthority(name string) bool {
	return strings.EqualFold(name, ":authority") || strings.EqualFold(name, "host")
}

func requestMatch(in *apinetworking.HTTPMatchRequest) (*routev3.RouteMatch, error) {
	out := &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
	if in == nil {
		return out, nil
	}
	if err := matchPath(out, in.Uri); err != nil {
		return nil, err
	}
	if in.IgnoreUriCase {
		out.CaseSensitive = no()
	}
	if err := matchHeaders(out, in); err != nil {
		return nil, err
	}
	for _, name := range sortedKeys(in.QueryParams) {
		m, err := stringMatcher(in.QueryParams[name])
		if err != nil {
			return nil, fmt.Errorf("queryParams.%s: %w", name, err)
		}
		out.QueryParameters = append(out.QueryParameters, queryMatcher(name, m))
	}
	return out, nil
}

func matchPath(out *routev3.RouteMatch, uri *apinetworking.StringMatch) error {
	switch m := uri.GetMatchType().(type) {
	case *apinetworking.StringMatch_Exact:
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: m.Exact}
	case *apinetworking.StringMatch_Prefix:
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: m.Prefix}
	case *apinetworking.StringMatch_Regex:
		re, err := regex(m.Regex)
		if err != nil {
			return fmt.Errorf("uri.regex: %w", err)
		}
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: re}
	}
	return nil
}

func matchHeaders(out *routev3.RouteMatch, in *apinetworking.HTTPMatchRequest) error {
	add := func(field, name string, s *apinetworking.StringMatch, invert bool) error {
		if strings.HasPrefix(name, "@") {
			return &invalidValue{field + ": claims of a token cannot be matched", "remove it"}
		}
		m, err := stringMatcher(s)
		if err != nil {
			return fmt.Errorf("%s: %w", field, err)
		}
		h := headerMatcher(name, m)
		h.InvertMatch = invert
		h.TreatMissingHeaderAsEmpty = invert && m != nil
		out.Headers = append(out.Headers, h)
		return nil
	}
	for _, name := range sortedKeys(in.Headers) {
		if err := add("headers."+name, name, in.Headers[name], false); err != nil {
			return err
		}
	}
	for _, name := range sortedKeys(in.WithoutHeaders) {
		if err := add("withoutHeaders."+name, name, in.WithoutHeaders[name], true); err != nil {
			return err
		}
	}
	sortHeaders(out.Headers)
	for _, p := range []struct {
		field, name string
		match       *apinetworking.StringMatch
	}{{"method", ":method", in.Method}, {"authority", ":authority", in.Authority}, {"scheme", ":scheme", in.Scheme}} {
		if p.match != nil {
			if err := add(p.field, p.name, p.match, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// act sets what the route does with a request.
func (r *virtualRoutes) act(out *routev3.Route, in *apinetworking.HTTPRoute, field string) error {
	authority, err := setHeaders(out, in.Headers)
	switch {
	case err != nil:
		return err
	case in.Delegate != nil:
		return &invalidValue{"delegate is not supported", "write the routes into this VirtualService"}
	case in.Redirect != nil:
		return r.redirect(out, in.Redirect)
	case in.DirectResponse != nil:
		var body *corev3.DataSource
		switch b := in.DirectResponse.GetBody().GetSpecifier().(type) {
		case *apinetworking.HTTPBody_String_:
			body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: b.String_}}
		case *apinetworking.HTTPBody_Bytes:
			body = inlineBytes(b.Bytes)
		}
		out.Action = answer(in.DirectResponse.Status, body)
		return nil
	case len(in.Route) == 0:
		return &invalidValue{"has no destination", "give a route, a redirect or a directResponse"}
	}
	return r.forward(out, in, authority, field)
}

func answer(status uint32, body *corev3.DataSource) *routev3.Route_DirectResponse {
	return &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: status, Body: body}}
}

// headerEdits is what a route, or one destination among several, does to headers.
type headerEdits struct {
	requestAdd, responseAdd       []*corev3.HeaderValueOption
	requestRemove, responseRemove []string
	authority                     string
}

func editsOf(in *apinetworking.Headers) (headerEdits, error) {
	request, response := in.GetRequest(), in.GetResponse()
	out := headerEdits{
		requestRemove:  dropPseudo(request.GetRemove()),
		responseRemove: dropPseudo(response.GetRemove()),
	}
	for _, list := range []struct {
		to     *[]*corev3.HeaderValueOption
		from   map[string]string
		action corev3.HeaderValueOption_HeaderAppendAction
	}{
		{&out.requestAdd, request.GetSet(), corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD},
		{&out.requestAdd, request.GetAdd(), corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD},
		{&out.responseAdd, response.GetSet(), corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD},
		{&out.responseAdd, response.GetAdd(), corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD},
	} {
		options, err := headerOptions(list.from, list.action)
		if err != nil {
			return out, fmt.Errorf("headers: %w", err)
		}
		*list.to = append(*list.to, options...)
	}
	for _, from := range []map[string]string{request.GetAdd(), request.GetSet()} {
		for _, name := range sortedKeys(from) {
			if isAuthority(name) {
				out.authority = from[name]
			}
		}
	}
	return out, nil
}

func dropPseudo(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), isPseudo)
}

// setHeaders sets the route's header edits and returns the host that they ask for.
func setHeaders(out *routev3.Route, in *apinetworking.Headers) (authority string, err error) {
	e, err := editsOf(in)
	out.RequestHeadersToAdd = append(out.RequestHeadersToAdd, e.requestAdd...)
	out.RequestHeadersToRemove = append(out.RequestHeadersToRemove, e.requestRemove...)
	out.ResponseHeadersToAdd = append(out.ResponseHeadersToAdd, e.responseAdd...)
	out.ResponseHeadersToRemove = append(out.ResponseHeadersToRemove, e.responseRemove...)
	return e.authority, err
}

func (r *virtualRoutes) redirect(out *routev3.Route, in *apinetworking.HTTPRedirect) error {
	action := &routev3.RedirectAction{HostRedirect: in.Authority}
	switch {
	case in.PrefixRewrite != "":
		action.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: in.PrefixRewrite}
	case in.Uri != "":
		action.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: in.Uri}
	}
	scheme := "http"
	if r.tls {
		scheme = "https"
	}
	if in.Scheme != "" {
		scheme = in.Scheme
		action.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: scheme}
	}
	switch p := in.RedirectPort.(type) {
	case *apinetworking.HTTPRedirect_Port:
		action.PortRedirect = p.Port
	case *apinetworking.HTTPRedirect_DerivePort:
		if p.DerivePort == apinetworking.HTTPRedirect_FROM_REQUEST_PORT {
			action.PortRedirect = r.port
		}
	}
	if isDefaultPort(scheme, action.PortRedirect) {
		action.PortRedirect = 0
	}
	code, err := redirectCode(int(in.RedirectCode))
	if err != nil {
		return fmt.Errorf("redirect: %w", err)
	}
	action.ResponseCode = code
	out.Action = &routev3.Route_Redirect{Redirect: action}
	return nil
}

func isDefaultPort(scheme string, port uint32) bool {
	return scheme == "http" && port == 80 || scheme == "https" && port == 443
}

// redirectCode is Envoy's word for a status; 0 is 301.
func redirectCode(status int) (routev3.RedirectAction_RedirectResponseCode, error) {
	switch status {
	case 0, 301:
		return routev3.RedirectAction_MOVED_PERMANENTLY, nil
	case 302:
		return routev3.RedirectAction_FOUND, nil
	case 303:
		return routev3.RedirectAction_SEE_OTHER, nil
	case 307:
		return routev3.RedirectAction_TEMPORARY_REDIRECT, nil
	case 308:
		return routev3.RedirectAction_PERMANENT_REDIRECT, nil
	}
	return 0, &invalidValue{strconv.Itoa(status) + " is no status of a redirect", "use 301, 302, 303, 307 or 308"}
}

// forward sends requests to the route's destinations.
func (r *virtualRoutes) forward(out *routev3.Route, in *apinetworking.HTTPRoute, authority, field string) error {
	action := &routev3.RouteAction{Timeout: timeoutOf(in.Timeout)}
	if err := rewrite(action, in.Rewrite); err != nil {
		return err
	}
	if in.Rewrite.GetAuthority() != "" {
		authority = in.Rewrite.Authority
	}
	if err := r.setDestinations(out, action, in.Route, &authority, field); err != nil {
		return err
	}
	if authority != "" {
		action.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: authority}
	}
	action.RetryPolicy = retries(in.Retries, len(in.Route) == 1 && len(action.HashPolicy) > 0)
	r.setMirrors(action, in, field)
	if in.Retries.GetRetryRemoteLocalities() != nil {
		r.builder.refuse(r.vs, field+".retries.retryRemoteLocalities", "is not supported", "remove it")
	}
	out.Action = &routev3.Route_Route{Route: action}
	return nil
}

func rewrite(action *routev3.RouteAction, in *apinetworking.HTTPRewrite) error {
	if re := in.GetUriRegexRewrite(); re != nil {
		pattern, err := regex(re.Match)
		if err != nil {
			return fmt.Errorf("rewrite.uriRegexRewrite: %w", err)
		}
		if err := checkSubstitution(re.Match, re.Rewrite); err != nil {
			return fmt.Errorf("rewrite.uriRegexRewrite: %w", err)
		}
		action.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{Pattern: pattern, Substitution: re.Rewrite}
	} else if in.GetUri() != "" {
		action.PrefixRewrite = in.Uri
	}
	return nil
}

// checkSubstitution finds a \N of a group that pattern does not have: Envoy
// refuses it.
func checkSubstitution(pattern, substitution string) error {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	for i := 0; i < len(substitution); i++ {
		if substitution[i] != '\\' {
			continue
		}
		i++
		if i == len(substitution) || substitution[i] != '\\' && (substitution[i] < '0' || int(substitution[i]-'0') > re.NumSubexp()) {
			return &invalidValue{"the rewrite refers to a group that is not there", `write \1 for the first group, \\ for a backslash`}
		}
	}
	return nil
}

// setDestinations sends to one cluster, or to several by weight; a weight of 0
// among several takes no requests.
func (r *virtualRoutes) setDestinations(out *routev3.Route, action *routev3.RouteAction, to []*apinetworking.HTTPRouteDestination, authority *string, field string) error {
	if len(to) == 1 {
		cluster := r.destination(to[0].Destination, field+".route[0].destination")
		r.hash(action, cluster)
		action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: cluster}
		host, err := setHeaders(out, to[0].Headers)
		if *authority == "" {
			*authority = host
		}
		return err
	}
	weighted := &routev3.WeightedCluster{}
	for i, d := range to {
		if d.Weight == 0 {
			continue
		}
		e, err := editsOf(d.Headers)
		if err != nil {
			return err
		}
		c := &routev3.WeightedCluster_ClusterWeight{
			Name:                    r.destination(d.Destination, fmt.Sprintf("%s.route[%d].destination", field, i)),
			Weight:                  wrapperspb.UInt32(uint32(d.Weight)),
			RequestHeadersToAdd:     e.requestAdd,
			RequestHeadersToRemove:  e.requestRemove,
			ResponseHeadersToAdd:    e.responseAdd,
			ResponseHeadersToRemove: e.responseRemove,
		}
		if e.authority != "" {
			c.HostRewriteSpecifier = &routev3.WeightedCluster_ClusterWeight_HostRewriteLiteral{HostRewriteLiteral: e.authority}
		}
		r.hash(action, c.Name)
		weighted.Clusters = append(weighted.Clusters, c)
	}
	if len(weighted.Clusters) == 0 {
		return &invalidValue{"all weights are 0", "give one destination a weight"}
	}
	action.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: weighted}
	return nil
}

// destination is the cluster of d. One that is not there is told; Envoy answers
// 503, as in Istio.
func (r *virtualRoutes) destination(d *apinetworking.Destination, field string) string {
	return r.builder.destination(r.vs, d, r.port, field)
}

func (b *builder) destination(vs *networkingv1.VirtualService, d *apinetworking.Destination, port uint32, field string) string {
	s := b.view.Service(d.GetHost(), vs.Namespace)
	if s == nil {
		b.refuse(vs, field+".host", "there is no service "+d.GetHost(), "write NAME.NAMESPACE.svc."+b.world.Options().Domain+", or the host of a ServiceEntry")
		return clusterName("outbound", cmp.Or(d.GetPort().GetNumber(), port), d.GetSubset(), b.world.FQDN(d.GetHost(), vs.Namespace))
	}
	switch {
	case d.Port.GetNumber() != 0:
		port = d.Port.Number
	case len(s.Ports) == 1:
		port = s.Ports[0].Number
	}
	name := clusterName("outbound", port, d.Subset, s.Host)
	if b.hasCluster(name) {
		return name
	}
	if _, ok := s.Port(port); !ok {
		b.refuse(vs, field+".port", "service "+s.Host+" has no port "+number(port), "name one that it has")
	} else if b.hasCluster(clusterName("outbound", port, "", s.Host)) {
		b.refuse(vs, field+".subset", "no DestinationRule of "+s.Host+" has a subset "+d.Subset, "create one, or correct the name")
	}
	return name
}

// retries is Istio's policy for a route: two more tries of what surely was not
// served, on other hosts unless a hash chooses them, unless the user says otherwise.
func retries(in *apinetworking.HTTPRetry, hashed bool) *routev3.RetryPolicy {
	out := &routev3.RetryPolicy{
		RetryOn:                       "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
		NumRetries:                    wrapperspb.UInt32(2),
		HostSelectionRetryMaxAttempts: 5,
	}
	if !hashed || in.GetRetryIgnorePreviousHosts().GetValue() {
		out.RetryHostPredicate = avoidPreviousHosts()
	}
	if in == nil {
		return out
	}
	if in.Attempts <= 0 {
		return nil
	}
	out.NumRetries = wrapperspb.UInt32(uint32(in.Attempts))
	if in.RetryOn != "" {
		out.RetryOn, out.RetriableStatusCodes = retryOn(in.RetryOn)
	}
	out.PerTryTimeout = in.PerTryTimeout
	if in.RetryIgnorePreviousHosts != nil && !in.RetryIgnorePreviousHosts.Value {
		out.RetryHostPredicate = nil
	}
	if in.Backoff != nil {
		out.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: in.Backoff}
	}
	return out
}

// retryOn splits Istio's retryOn: numbers in it are status codes.
func retryOn(s string) (conditions string, codes []uint32) {
	var names []string
	for _, part := range strings.Split(s, ",") {
		part = strings.TrimSpace(part)
		if code, err := strconv.ParseUint(part, 10, 16); err == nil {
			codes = append(codes, uint32(code))
		} else if part != "" {
			names = append(names, part)
		}
	}
	if len(codes) > 0 && !slices.Contains(names, "retriable-status-codes") {
		names = append(names, "retriable-status-codes")
	}
	return strings.Join(names, ","), codes
}
