package config

import (
	"regexp"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

const (
	defaultTimeout    = 15 * time.Second
	defaultBodyLimit  = 4096
	defaultRetries    = 1
	defaultBackoff    = 25 * time.Millisecond
	defaultHostTries  = 1
	unknownCluster503 = 503
)

// Headers is a header map: names are in lower case.
type Headers interface {
	Get(name string) (value string, ok bool)
	Add(name, value string)
	Set(name, value string)
	Remove(name string)
	Each(yield func(name, value string) bool)
}

// Routes is a route configuration.
type Routes struct {
	Name              string
	Hosts             []*VirtualHost
	Request, Response Mutations
	PerFilter         map[string]*PerRoute // by name of the filter
	AnyPerFilter      bool                 // this, a virtual host, a route or a weighted cluster says something to a filter
	SpecificWins      bool                 // the mutations of the route come after those of the virtual host
	IgnorePort        bool
	Message           *routev3.RouteConfiguration

	exact    map[string]*VirtualHost
	suffixes []wildcard // of *.example.com, longest first
	prefixes []wildcard // of www.*, longest first
	any      *VirtualHost
}

type wildcard struct {
	text string
	host *VirtualHost
}

// A VirtualHost is the routes of some domains.
type VirtualHost struct {
	Name              string
	Routes            []*Route
	RequireTLS        routev3.VirtualHost_TlsRequirementType
	Request, Response Mutations
	Metadata          *corev3.Metadata
	PerFilter         map[string]*PerRoute // by name of the filter
	CountAttempts     bool                 // tell the upstream which attempt it is
}

// A Route says what becomes of the requests that it matches: one of Forward,
// Redirect and Direct is set.
type Route struct {
	Name              string
	Metadata          *corev3.Metadata
	PerFilter         map[string]*PerRoute // by name of the filter
	Request, Response Mutations
	Forward           *Forward
	Redirect          *Redirect
	Direct            *Direct

	path    pathMatch
	headers []headerMatch
	query   []queryMatch
}

// A Forward sends a request to a cluster.
type Forward struct {
	Clusters    []Weighted // one, or several with weights
	Total       uint64     // of the weights
	NotFound    int        // status if the cluster is unknown
	Prefix      string     // replaces what the match's prefix or path matched, if Replace
	Replace     bool
	Regex       *Rewrite // rewrites the path
	HostRewrite string
	Timeout     time.Duration // 0 for none
	Retry       Retry
	Mirrors     []Mirror
	Hash        HashRules
}

// A Retry says which attempts are made again.
type Retry struct {
	On          RetryOn
	StatusCodes []uint32
	Max         int
	PerTry      time.Duration // 0 for no limit
	OtherHosts  bool          // prefer endpoints that were not tried yet
	HostTries   int           // how often to look for one
	Base, Most  time.Duration // of the backoff
}

// RetryOn is a set of conditions, by Envoy's names.
type RetryOn uint32

// The conditions that retry_on can have.
const (
	On5xx RetryOn = 1 << iota
	OnGatewayError
	OnReset
	OnResetBeforeRequest
	OnConnectFailure
	OnRefusedStream
	OnRetriable4xx
	OnRetriableStatusCodes
	OnEnvoyRateLimited
	OnCancelled
	OnDeadlineExceeded
	OnInternal
	OnResourceExhausted
	OnUnavailable
)

// A Redirect is an answer that sends the client elsewhere.
type Redirect struct {
	Status      int
	HTTPS       bool
	Scheme      string
	Host        string
	Port        uint32
	Path        string
	Prefix      string
	ReplacePath bool // Prefix replaces what was matched
	Regex       *Rewrite
	StripQuery  bool
}

// A Direct is an answer of the proxy's own.
type Direct struct {
	Status int
	Body   []byte
}

// DecodeRoutes decodes a route configuration.
func DecodeRoutes(m *routev3.RouteConfiguration) (*Routes, error) {
	d := new(decoder)
	var r *Routes
	if d.start("", m) {
		r = d.routes("", m)
	}
	if d.err != nil {
		return nil, d.err
	}
	return r, nil
}

func (d *decoder) routes(path string, m *routev3.RouteConfiguration) *Routes {
	r := &Routes{
		Name: m.GetName(), Message: m, IgnorePort: m.GetIgnorePortInHostMatching(),
		SpecificWins: m.GetMostSpecificHeaderMutationsWins(),
		PerFilter:    d.perRoute(in(path, "typed_per_filter_config"), m.GetTypedPerFilterConfig()),
		Request:      d.mutations(path, "request", m.GetRequestHeadersToAdd(), m.GetRequestHeadersToRemove()),
		Response:     d.mutations(path, "response", m.GetResponseHeadersToAdd(), m.GetResponseHeadersToRemove()),
		exact:        map[string]*VirtualHost{},
	}
	limit := defaultBodyLimit
	if m.GetMaxDirectResponseBodySizeBytes() != nil {
		limit = int(m.GetMaxDirectResponseBodySizeBytes().GetValue())
	}
	r.AnyPerFilter = len(r.PerFilter) > 0
	names := map[string]bool{}
	for i, v := range m.GetVirtualHosts() {
		p := at(in(path, "virtual_hosts"), i)
		if names[v.GetName()] {
			d.fail(in(p, "name"), "another virtual host has the name %s", v.GetName())
		}
		names[v.GetName()] = true
		host := d.virtualHost(p, v, limit)
		r.Hosts = append(r.Hosts, host)
		r.AnyPerFilter = r.AnyPerFilter || len(host.PerFilter) > 0 || slices.ContainsFunc(host.Routes, (*Route).speaks)
		for j, domain := range v.GetDomains() {
			d.domain(at(in(p, "domains"), j), strings.ToLower(domain), host, r)
		}
	}
	longest := func(a, b wildcard) int { return len(b.text) - len(a.text) }
	slices.SortStableFunc(r.suffixes, longest)
	slices.SortStableFunc(r.prefixes, longest)
	if m.GetValidateClusters().GetValue() {
		d.fail(in(path, "validate_clusters"), "not supported by the engine: clusters may come later")
	}
	return r
}

func (d *decoder) domain(path, domain string, host *VirtualHost, r *Routes) {
	taken := false
	add := func(list *[]wildcard, text string) {
		taken = slices.ContainsFunc(*list, func(w wildcard) bool { return w.text == text })
		*list = append(*list, wildcard{text, host})
	}
	switch {
	case domain == "*":
		taken = r.any != nil
		r.any = host
	case strings.HasPrefix(domain, "*"):
		add(&r.suffixes, domain[1:])
	case strings.HasSuffix(domain, "*"):
		add(&r.prefixes, domain[:len(domain)-1])
	default:
		taken = r.exact[domain] != nil
		r.exact[domain] = host
	}
	if taken {
		d.fail(path, "another virtual host has the domain %s", domain)
	}
}

// Host returns the virtual host for an authority, nil if there is none: that with
// the very name, else with the longest *.suffix, else with the longest prefix.*, else *.
func (r *Routes) Host(authority string) *VirtualHost {
	host := strings.ToLower(authority)
	if r.IgnorePort {
		host = withoutPort(host)
	}
	if v := r.exact[host]; v != nil {
		return v
	}
	for _, w := range r.suffixes {
		if len(host) > len(w.text) && strings.HasSuffix(host, w.text) {
			return w.host
		}
	}
	for _, w := range r.prefixes {
		if len(host) > len(w.text) && strings.HasPrefix(host, w.text) {
			return w.host
		}
	}
	return r.any
}

func withoutPort(host string) string {
	i := strings.LastIndexByte(host, ':')
	if i < 0 || strings.HasSuffix(host, "]") || i+1 == len(host) {
		return host
	}
	for _, c := range host[i+1:] {
		if c < '0' || c > '9' {
			return host
		}
	}
	return host[:i]
}

func (d *decoder) virtualHost(path string, m *routev3.VirtualHost, limit int) *VirtualHost {
	v := &VirtualHost{
		Name: m.GetName(), RequireTLS: m.GetRequireTls(), CountAttempts: m.GetIncludeRequestAttemptCount(),
		Metadata: m.GetMetadata(), PerFilter: d.perRoute(in(path, "typed_per_filter_config"), m.GetTypedPerFilterConfig()),
		Request:  d.mutations(path, "request", m.GetRequestHeadersToAdd(), m.GetRequestHeadersToRemove()),
		Response: d.mutations(path, "response", m.GetResponseHeadersToAdd(), m.GetResponseHeadersToRemove()),
	}
	for i, r := range m.GetRoutes() {
		v.Routes = append(v.Routes, d.route(at(in(path, "routes"), i), r, limit))
	}
	return v
}

// speaks reports whether the route says something to a filter.
func (r *Route) speaks() bool {
	return len(r.PerFilter) > 0 || r.Forward != nil &&
		slices.ContainsFunc(r.Forward.Clusters, func(w Weighted) bool { return len(w.PerFilter) > 0 })
}

// Find returns the first route that matches, nil if none does. path is without
// its query.
func (v *VirtualHost) Find(h Headers, path, query string) *Route {
	for _, r := range v.Routes {
		if r.matches(h, path, query) {
			return r
		}
	}
	return nil
}

func (r *Route) matches(h Headers, path, query string) bool {
	if !r.path.match(path) {
		return false
	}
	for i := range r.headers {
		if !r.headers[i].match(h) {
			return false
		}
	}
	for i := range r.query {
		if !r.query[i].match(query) {
			return false
		}
	}
	return true
}

// A pathMatch is one of: a prefix, a whole path, a prefix of whole segments, an
// expression.
type pathMatch struct {
	text      string
	exact     bool
	separated bool
	fold      bool
	re        *regexp.Regexp
}

func (m *pathMatch) match(path string) bool {
	if m.re != nil {
		return m.re.MatchString(path)
	}
	if len(path) < len(m.text) {
		return false
	}
	head, rest := path[:len(m.text)], path[len(m.text):]
	if head != m.text && (!m.fold || !strings.EqualFold(head, m.text)) {
		return false
	}
	return rest == "" || !m.exact && (!m.separated || rest[0] == '/')
}

// Replace returns path with what the route's prefix or path matched replaced.
func (r *Route) Replace(path, with string) string {
	if r.path.re != nil {
		return path
	}
	return with + path[len(r.path.text):]
}

func (d *decoder) route(path string, m *routev3.Route, limit int) *Route {
	r := &Route{
		Name:     m.GetName(),
		Metadata: m.GetMetadata(), PerFilter: d.perRoute(in(path, "typed_per_filter_config"), m.GetTypedPerFilterConfig()),
		Request:  d.mutations(path, "request", m.GetRequestHeadersToAdd(), m.GetRequestHeadersToRemove()),
		Response: d.mutations(path, "response", m.GetResponseHeadersToAdd(), m.GetResponseHeadersToRemove()),
	}
	d.routeMatch(in(path, "match"), m.GetMatch(), r)
	switch a := m.GetAction().(type) {
	case *routev3.Route_Route:
		r.Forward = d.forward(in(path, "route"), a.Route)
		if r.Forward.Replace && r.path.re != nil {
			d.fail(in(path, "route.prefix_rewrite"), "a route that matches an expression has no prefix")
		}
	case *routev3.Route_Redirect:
		r.Redirect = d.redirect(in(path, "redirect"), a.Redirect)
		if r.Redirect.ReplacePath && r.path.re != nil {
			d.fail(in(path, "redirect.prefix_rewrite"), "a route that matches an expression has no prefix")
		}
	case *routev3.Route_DirectResponse:
		r.Direct = &Direct{Status: int(a.DirectResponse.GetStatus())}
		if b := a.DirectResponse.GetBody(); b != nil {
			data := d.data(in(path, "direct_response.body"), b)
			if data.File != "" {
				d.fail(in(path, "direct_response.body.filename"), "not supported by the engine: give the body inline")
			}
			r.Direct.Body = data.Bytes
		}
		if len(r.Direct.Body) > limit {
			d.fail(in(path, "direct_response.body"), "%d bytes, at most %d are allowed", len(r.Direct.Body), limit)
		}
	default:
		d.fail(path, "only route, redirect and direct_response are supported")
	}
	return r
}

func (d *decoder) routeMatch(path string, m *routev3.RouteMatch, r *Route) {
	fold := m.GetCaseSensitive() != nil && !m.GetCaseSensitive().GetValue()
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		r.path = pathMatch{text: p.Prefix, fold: fold}
	case *routev3.RouteMatch_Path:
		r.path = pathMatch{text: p.Path, exact: true, fold: fold}
	case *routev3.RouteMatch_PathSeparatedPrefix:
		r.path = pathMatch{text: p.PathSeparatedPrefix, separated: true, fold: fold}
	case *routev3.RouteMatch_SafeRegex:
		r.path = pathMatch{re: d.regex(in(path, "safe_regex"), p.SafeRegex)}
	default:
		d.fail(path, "only prefix, path, path_separated_prefix and safe_regex are supported")
	}
	for i, h := range m.GetHeaders() {
		r.headers = append(r.headers, d.headerMatch(at(in(path, "headers"), i), h))
	}
	for i, q := range m.GetQueryParameters() {
		r.query = append(r.query, d.queryMatch(at(in(path, "query_parameters"), i), q))
	}
}

func (d *decoder) forward(path string, m *routev3.RouteAction) *Forward {
	f := &Forward{
		NotFound:    unknownCluster503,
		Prefix:      m.GetPrefixRewrite(),
		Replace:     m.GetPrefixRewrite() != "",
		Regex:       d.rewrite(in(path, "regex_rewrite"), m.GetRegexRewrite()),
		HostRewrite: m.GetHostRewriteLiteral(),
		Timeout:     duration(m.GetTimeout(), defaultTimeout),
		Retry:       d.retry(in(path, "retry_policy"), m.GetRetryPolicy()),
		Mirrors:     d.mirrors(path, m.GetRequestMirrorPolicies()),
		Hash:        d.hashRules(in(path, "hash_policy"), m.GetHashPolicy()),
	}
	switch m.GetClusterNotFoundResponseCode() {
	case routev3.RouteAction_NOT_FOUND:
		f.NotFound = 404
	case routev3.RouteAction_INTERNAL_SERVER_ERROR:
		f.NotFound = 500
	}
	switch c := m.GetClusterSpecifier().(type) {
	case *routev3.RouteAction_Cluster:
		f.Clusters = []Weighted{{Cluster: c.Cluster, Weight: 1}}
	case *routev3.RouteAction_WeightedClusters:
		for i, w := range c.WeightedClusters.GetClusters() {
			f.Clusters = append(f.Clusters, d.weighted(at(in(path, "weighted_clusters.clusters"), i), w))
		}
	default:
		d.fail(path, "only cluster and weighted_clusters are supported")
	}
	for _, w := range f.Clusters {
		f.Total += uint64(w.Weight)
	}
	if f.Total == 0 {
		d.fail(in(path, "weighted_clusters"), "the sum of the weights is 0")
	}
	if f.Replace && f.Regex != nil {
		d.fail(path, "only one of prefix_rewrite and regex_rewrite can be given")
	}
	return f
}

func (d *decoder) weighted(path string, m *routev3.WeightedCluster_ClusterWeight) Weighted {
	if m.GetName() == "" {
		d.fail(in(path, "name"), "required")
	}
	return Weighted{
		Cluster: m.GetName(), Weight: m.GetWeight().GetValue(), HostRewrite: m.GetHostRewriteLiteral(),
		PerFilter: d.perRoute(in(path, "typed_per_filter_config"), m.GetTypedPerFilterConfig()),
		Request:   d.mutations(path, "request", m.GetRequestHeadersToAdd(), m.GetRequestHeadersToRemove()),
		Response:  d.mutations(path, "response", m.GetResponseHeadersToAdd(), m.GetResponseHeadersToRemove()),
	}
}

// Pick returns one of the clusters, as n, which is any number, falls.
func (f *Forward) Pick(n uint64) *Weighted {
	n %= f.Total
	for i := range f.Clusters {
		w := uint64(f.Clusters[i].Weight)
		if n < w {
			return &f.Clusters[i]
		}
		n -= w
	}
	return &f.Clusters[len(f.Clusters)-1]
}

func (d *decoder) retry(path string, m *routev3.RetryPolicy) Retry {
	if m == nil {
		return Retry{}
	}
	r := Retry{
		StatusCodes: m.GetRetriableStatusCodes(),
		Max:         defaultRetries,
		PerTry:      duration(m.GetPerTryTimeout(), 0),
		HostTries:   max(defaultHostTries, int(m.GetHostSelectionRetryMaxAttempts())),
		Base:        duration(m.GetRetryBackOff().GetBaseInterval(), defaultBackoff),
	}
	r.Most = duration(m.GetRetryBackOff().GetMaxInterval(), 10*r.Base)
	if m.GetNumRetries() != nil {
		r.Max = int(m.GetNumRetries().GetValue())
	}
	for word := range strings.SplitSeq(m.GetRetryOn(), ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		on, ok := retryOn(word)
		if !ok {
			d.fail(in(path, "retry_on"), "%s is not supported by the engine", word)
		}
		r.On |= on
	}
	for i, p := range m.GetRetryHostPredicate() {
		if typeOf(p.GetTypedConfig()) != "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate" {
			d.fail(at(in(path, "retry_host_predicate"), i), "%s is not supported by the engine", p.GetName())
		}
		r.OtherHosts = true
	}
	return r
}

func retryOn(word string) (RetryOn, bool) {
	words := [...]string{
		"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "refused-stream", "retriable-4xx",
		"retriable-status-codes", "envoy-ratelimited", "cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
	}
	i := slices.Index(words[:], word)
	if i < 0 {
		return 0, false
	}
	return 1 << i, true
}

func (d *decoder) redirect(path string, m *routev3.RedirectAction) *Redirect {
	r := &Redirect{
		HTTPS: m.GetHttpsRedirect(), Scheme: m.GetSchemeRedirect(), Host: m.GetHostRedirect(), Port: m.GetPortRedirect(),
		Path: m.GetPathRedirect(), Prefix: m.GetPrefixRewrite(), StripQuery: m.GetStripQuery(),
		Regex: d.rewrite(in(path, "regex_rewrite"), m.GetRegexRewrite()),
	}
	_, r.ReplacePath = m.GetPathRewriteSpecifier().(*routev3.RedirectAction_PrefixRewrite)
	switch m.GetResponseCode() {
	case routev3.RedirectAction_MOVED_PERMANENTLY:
		r.Status = 301
	case routev3.RedirectAction_FOUND:
		r.Status = 302
	case routev3.RedirectAction_SEE_OTHER:
		r.Status = 303
	case routev3.RedirectAction_TEMPORARY_REDIRECT:
		r.Status = 307
	case routev3.RedirectAction_PERMANENT_REDIRECT:
		r.Status = 308
	default:
		d.fail(in(path, "response_code"), "%s is not supported", m.GetResponseCode())
	}
	return r
}

// A headerMatch matches one header.
type headerMatch struct {
	name     string
	text     *StringMatch
	low, top int64 // of a range, whose end is not in it
	ranged   bool
	present  bool // or, without text and range: whether it is there
	invert   bool
	asEmpty  bool
}

func (d *decoder) headerMatch(path string, m *routev3.HeaderMatcher) headerMatch {
	h := headerMatch{
		name: strings.ToLower(m.GetName()), invert: m.GetInvertMatch(), present: true,
		asEmpty: m.GetTreatMissingHeaderAsEmpty(),
	}
	switch s := m.GetHeaderMatchSpecifier().(type) {
	case *routev3.HeaderMatcher_StringMatch:
		text := d.stringMatch(in(path, "string_match"), s.StringMatch)
		h.text = &text
	case *routev3.HeaderMatcher_RangeMatch:
		h.ranged, h.low, h.top = true, s.RangeMatch.GetStart(), s.RangeMatch.GetEnd()
	case *routev3.HeaderMatcher_PresentMatch:
		h.present = s.PresentMatch
	}
	return h
}

func (m *headerMatch) match(h Headers) bool {
	value, ok := joined(h, m.name)
	switch {
	case m.text == nil && !m.ranged:
		return (ok == m.present) != m.invert
	case !ok && !m.asEmpty:
		return false // whether inverted or not, as in Envoy
	case m.ranged:
		n, isNumber := parseInt(value)
		return (isNumber && n >= m.low && n < m.top) != m.invert
	}
	return m.text.Match(value) != m.invert
}

func parseInt(s string) (int64, bool) {
	var n int64
	digits := strings.TrimPrefix(s, "-")
	if digits == "" || len(digits) > 18 {
		return 0, false
	}
	for _, c := range []byte(digits) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	if digits != s {
		n = -n
	}
	return n, true
}

// joined returns all values of a header, with commas between them.
func joined(h Headers, name string) (string, bool) {
	value, ok := h.Get(name)
	if !ok {
		return "", false
	}
	first := true
	h.Each(func(n, v string) bool {
		switch {
		case n != name:
		case first:
			first = false
		default:
			value += "," + v
		}
		return true
	})
	return value, true
}

// A queryMatch matches one parameter of the query.
type queryMatch struct {
	name string
	text *StringMatch // nil if it is enough that it is there
}

func (d *decoder) queryMatch(path string, m *routev3.QueryParameterMatcher) queryMatch {
	q := queryMatch{name: m.GetName()}
	if s := m.GetStringMatch(); s != nil {
		text := d.stringMatch(in(path, "string_match"), s)
		q.text = &text
	} else if p, ok := m.GetQueryParameterMatchSpecifier().(*routev3.QueryParameterMatcher_PresentMatch); ok && !p.PresentMatch {
		d.fail(in(path, "present_match"), "false is not supported by the engine")
	}
	return q
}

func (m *queryMatch) match(query string) bool {
	value, ok := parameter(query, m.name)
	return ok && (m.text == nil || m.text.Match(value))
}

// parameter is the first parameter of the name, as it is, encoded.
func parameter(query, name string) (string, bool) {
	for part := range strings.SplitSeq(query, "&") {
		if k, v, _ := strings.Cut(part, "="); k == name && part != "" {
			return v, true
		}
	}
	return "", false
}

// A Mutation adds a header.
type Mutation struct {
	Name   string
	Value  Format
	Action corev3.HeaderValueOption_HeaderAppendAction
	Empty  bool // add it also if the value is empty
}

// Mutations change headers: first those of Remove, then those of Add.
type Mutations struct {
	Add    []Mutation
	Remove []string
}

func (d *decoder) mutations(path, direction string, add []*corev3.HeaderValueOption, remove []string) Mutations {
	var m Mutations
	for i, o := range add {
		p := at(in(path, direction+"_headers_to_add"), i)
		name := strings.ToLower(o.GetHeader().GetKey())
		if strings.HasPrefix(name, ":") || name == "host" {
			d.fail(in(p, "header.key"), "%s cannot be changed so", name)
		}
		m.Add = append(m.Add, Mutation{
			Name: name, Value: d.format(in(p, "header.value"), o.GetHeader().GetValue()),
			Action: o.GetAppendAction(), Empty: o.GetKeepEmptyValue(),
		})
	}
	for i, name := range remove {
		name = strings.ToLower(name)
		if strings.HasPrefix(name, ":") || name == "host" {
			d.fail(at(in(path, direction+"_headers_to_remove"), i), "%s cannot be removed", name)
		}
		m.Remove = append(m.Remove, name)
	}
	return m
}

// Apply changes h. The values are those of facts before any change.
func (m *Mutations) Apply(h Headers, facts *Facts) {
	for _, name := range m.Remove {
		h.Remove(name)
	}
	for i := range m.Add {
		m.Add[i].apply(h, facts)
	}
}

func (a *Mutation) apply(h Headers, facts *Facts) {
	value := a.Value.expand(facts)
	if value == "" && !a.Empty {
		return
	}
	_, exists := h.Get(a.Name)
	switch a.Action {
	case corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
		h.Add(a.Name, value)
	case corev3.HeaderValueOption_ADD_IF_ABSENT:
		if !exists {
			h.Add(a.Name, value)
		}
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
		h.Set(a.Name, value)
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
		if exists {
			h.Set(a.Name, value)
		}
	}
}
