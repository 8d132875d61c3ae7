package config

import (
	"cmp"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonfaultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// PerRoute is what one level of a route says to one filter, which has its name: a weighted
// cluster, the route, its virtual host, or the route configuration. What is nil leaves the
// filter as it is.
type PerRoute struct {
	Disabled bool
	Fault    *Fault
	CORS     *CORS
	RBAC     *RBAC
}

// A Fault delays or refuses requests, on purpose.
//
// https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_filters/fault_filter
type Fault struct {
	Delay      time.Duration
	DelayShare Share
	Status     int   // 0 for no refusal
	GRPC       int32 // if HasGRPC: the status of the refusal
	HasGRPC    bool
	AbortShare Share
}

// A CORS is what browsers are told of who may ask.
//
// https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_filters/cors_filter
type CORS struct {
	Origins          []StringMatch
	Methods, Headers string
	Expose, MaxAge   string
	Credentials      *bool // nil if it is not said: then they are not allowed
	ForwardUnmatched *bool // preflights of other origins go to the upstream; nil for yes
	Share            Share
}

// Under is c, with what it does not say taken from the policy of a wider level, which may
// be nil. The share of the requests that it is for is its own.
func (c *CORS) Under(wider *CORS) *CORS {
	if wider == nil {
		return c
	}
	all := *c
	if len(all.Origins) == 0 {
		all.Origins = wider.Origins
	}
	all.Methods, all.Headers = cmp.Or(all.Methods, wider.Methods), cmp.Or(all.Headers, wider.Headers)
	all.Expose, all.MaxAge = cmp.Or(all.Expose, wider.Expose), cmp.Or(all.MaxAge, wider.MaxAge)
	all.Credentials = cmp.Or(all.Credentials, wider.Credentials)
	all.ForwardUnmatched = cmp.Or(all.ForwardUnmatched, wider.ForwardUnmatched)
	return &all
}

// A Share is a part of all requests.
type Share struct{ n, of uint64 }

// Falls reports, at random, whether a request is in the share.
func (s Share) Falls() bool { return s.n >= s.of || s.n > 0 && rand.Uint64N(s.of) < s.n }

func (d *decoder) share(path string, p *typev3.FractionalPercent) Share {
	switch p.GetDenominator() {
	case typev3.FractionalPercent_HUNDRED:
		return Share{uint64(p.GetNumerator()), 100}
	case typev3.FractionalPercent_TEN_THOUSAND:
		return Share{uint64(p.GetNumerator()), 10_000}
	case typev3.FractionalPercent_MILLION:
		return Share{uint64(p.GetNumerator()), 1_000_000}
	}
	d.fail(in(path, "denominator"), "%s is not known", p.GetDenominator())
	return Share{0, 1}
}

// perRoute decodes typed_per_filter_config.
func (d *decoder) perRoute(path string, m map[string]*anypb.Any) map[string]*PerRoute {
	var out map[string]*PerRoute
	for name, a := range m {
		if out == nil {
			out = map[string]*PerRoute{}
		}
		out[name] = d.perFilter(path+"["+name+"]", a)
	}
	return out
}

func (d *decoder) perFilter(path string, a *anypb.Any) *PerRoute {
	switch typeOf(a) {
	case "envoy.config.route.v3.FilterConfig":
		m := new(routev3.FilterConfig)
		d.unpack(path, a, m)
		switch {
		case m.GetDisabled():
			return &PerRoute{Disabled: true}
		case m.GetConfig() == nil:
			d.fail(path, "neither disabled nor config is set")
			return nil
		case m.GetConfig().GetTypeUrl() == "": // enabled here, though it may be disabled on a wider level
			return &PerRoute{}
		}
		return d.perFilter(in(path, "config"), m.GetConfig())
	case "envoy.extensions.filters.http.fault.v3.HTTPFault":
		m := new(faultv3.HTTPFault)
		d.unpack(path, a, m)
		return &PerRoute{Fault: d.fault(path, m)}
	case "envoy.extensions.filters.http.cors.v3.CorsPolicy":
		m := new(corsv3.CorsPolicy)
		d.unpack(path, a, m)
		return &PerRoute{CORS: d.cors(path, m)}
	case "envoy.extensions.filters.http.rbac.v3.RBACPerRoute":
		m := new(httprbacv3.RBACPerRoute)
		d.unpack(path, a, m)
		return &PerRoute{RBAC: d.rbac(in(path, "rbac.rules"), m.GetRbac().GetRules(), HTTPStream)}
	}
	d.fail(path, "%s is not supported by the engine for a route", typeOf(a))
	return nil
}

func (d *decoder) fault(path string, m *faultv3.HTTPFault) *Fault {
	f := new(Fault)
	if delay := m.GetDelay(); delay != nil {
		fixed, ok := delay.GetFaultDelaySecifier().(*commonfaultv3.FaultDelay_FixedDelay)
		if !ok {
			d.fail(in(path, "delay"), "only fixed_delay is supported")
			return f
		}
		f.Delay, f.DelayShare = fixed.FixedDelay.AsDuration(), d.share(in(path, "delay.percentage"), delay.GetPercentage())
	}
	if abort := m.GetAbort(); abort != nil {
		f.AbortShare = d.share(in(path, "abort.percentage"), abort.GetPercentage())
		switch e := abort.GetErrorType().(type) {
		case *faultv3.FaultAbort_HttpStatus:
			f.Status = int(e.HttpStatus)
		case *faultv3.FaultAbort_GrpcStatus:
			f.Status, f.GRPC, f.HasGRPC = http.StatusOK, int32(e.GrpcStatus), true
		default:
			d.fail(in(path, "abort"), "only http_status and grpc_status are supported")
		}
	}
	return f
}

func (d *decoder) cors(path string, m *corsv3.CorsPolicy) *CORS {
	c := &CORS{
		Methods: m.GetAllowMethods(), Headers: m.GetAllowHeaders(), Expose: m.GetExposeHeaders(), MaxAge: m.GetMaxAge(),
		Credentials: optional(m.GetAllowCredentials()), ForwardUnmatched: optional(m.GetForwardNotMatchingPreflights()),
		Share: d.fraction(in(path, "filter_enabled"), m.GetFilterEnabled()),
	}
	for i, o := range m.GetAllowOriginStringMatch() {
		c.Origins = append(c.Origins, d.stringMatch(at(in(path, "allow_origin_string_match"), i), o))
	}
	return c
}

func optional(v *wrapperspb.BoolValue) *bool {
	if v == nil {
		return nil
	}
	return new(v.GetValue())
}

// fraction is a share that may be changed at runtime, which the engine's never is.
func (d *decoder) fraction(path string, m *corev3.RuntimeFractionalPercent) Share {
	if m == nil {
		return Share{1, 1}
	}
	return d.share(in(path, "default_value"), m.GetDefaultValue())
}

// Allows reports whether an origin may ask.
func (c *CORS) Allows(origin string) bool {
	for i := range c.Origins {
		if o := &c.Origins[i]; o.Match(origin) || o.Match("*") {
			return true
		}
	}
	return false
}

// A Mirror sends copies of some requests to a cluster.
type Mirror struct {
	Cluster  string
	Share    Share
	SameHost bool // do not append -shadow to the authority
}

func (d *decoder) mirrors(path string, list []*routev3.RouteAction_RequestMirrorPolicy) []Mirror {
	var out []Mirror
	for i, m := range list {
		p := at(in(path, "request_mirror_policies"), i)
		if m.GetCluster() == "" {
			d.fail(in(p, "cluster"), "required")
		}
		out = append(out, Mirror{
			Cluster: m.GetCluster(), Share: d.fraction(in(p, "runtime_fraction"), m.GetRuntimeFraction()),
			SameHost: m.GetDisableShadowHostSuffixAppend(),
		})
	}
	return out
}

// ShadowHost is the authority of a copy: the name with -shadow after it, before the port.
func ShadowHost(authority string) string {
	name := withoutPort(authority)
	return name + "-shadow" + strings.TrimPrefix(authority, name)
}
