package translate

import (
	"fmt"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonfaultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	previousv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	apinetworking "istio.io/api/networking/v1alpha3"
)

func avoidPreviousHosts() []*routev3.RetryPolicy_RetryHostPredicate {
	return []*routev3.RetryPolicy_RetryHostPredicate{{
		Name: previousHosts,
		ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{
			TypedConfig: anyOf(&previousv3.PreviousHostsPredicate{}),
		},
	}}
}

// all is every request.
func all() *typev3.FractionalPercent { return &typev3.FractionalPercent{Numerator: 100} }

// percent is p for Envoy; nil means none.
func percent(p *apinetworking.Percent) *typev3.FractionalPercent {
	if p == nil {
		return &typev3.FractionalPercent{}
	}
	return &typev3.FractionalPercent{Numerator: uint32(p.Value * 10_000), Denominator: typev3.FractionalPercent_MILLION}
}

// setMirrors sends copies of requests to more destinations.
func (r *virtualRoutes) setMirrors(action *routev3.RouteAction, in *apinetworking.HTTPRoute, field string) {
	//lint:ignore SA1019 users still write it
	share, whole := in.MirrorPercentage, in.MirrorPercent
	switch {
	case in.Mirror == nil && (share != nil || whole != nil):
		r.builder.refuse(r.vs, field, "mirrorPercentage and mirrorPercent mean nothing without mirror", "give each of mirrors a percentage, or remove them")
	case share != nil && whole != nil:
		r.builder.refuse(r.vs, field+".mirrorPercent", "is not heard beside mirrorPercentage", "remove it")
	case share == nil && whole != nil:
		share = &apinetworking.Percent{Value: float64(whole.Value)}
	}
	add := func(to *apinetworking.Destination, share *apinetworking.Percent, field string) {
		part := all()
		if share != nil {
			part = percent(share)
		}
		if part.Numerator == 0 {
			return
		}
		action.RequestMirrorPolicies = append(action.RequestMirrorPolicies, &routev3.RouteAction_RequestMirrorPolicy{
			Cluster:         r.destination(to, field),
			RuntimeFraction: &corev3.RuntimeFractionalPercent{DefaultValue: part},
			TraceSampled:    no(),
		})
	}
	if in.Mirror != nil {
		add(in.Mirror, share, field+".mirror")
	}
	for i, m := range in.Mirrors {
		add(m.Destination, m.Percentage, fmt.Sprintf("%s.mirrors[%d].destination", field, i))
	}
}

// setFilters gives the route its fault and its CORS policy. One that cannot be
// honoured is told, and the route goes without.
func (r *virtualRoutes) setFilters(out *routev3.Route, in *apinetworking.HTTPRoute, field string) {
	set := func(name string, config *anypb.Any, err error) {
		switch {
		case err != nil:
			r.refuse(field, err)
		case config != nil:
			if out.TypedPerFilterConfig == nil {
				out.TypedPerFilterConfig = map[string]*anypb.Any{}
			}
			out.TypedPerFilterConfig[name] = config
		}
	}
	if in.Fault != nil {
		config, err := fault(in.Fault)
		set(faultFilter, config, err)
	}
	if in.CorsPolicy != nil {
		//lint:ignore SA1019 users still write it
		if len(in.CorsPolicy.AllowOrigin) > 0 && len(in.CorsPolicy.AllowOrigins) > 0 {
			r.builder.refuse(r.vs, field+".corsPolicy.allowOrigin", "is not heard beside allowOrigins", "move its origins there, as exact")
		}
		config, err := cors(in.CorsPolicy)
		set(corsFilter, config, err)
	}
}

// fault is for no request unless a percentage is written.
func fault(in *apinetworking.HTTPFaultInjection) (*anypb.Any, error) {
	out := &faultv3.HTTPFault{}
	if d := in.Delay; d != nil {
		fixed, ok := d.HttpDelayType.(*apinetworking.HTTPFaultInjection_Delay_FixedDelay)
		if !ok {
			return nil, &invalidValue{"fault.delay.exponentialDelay is not supported; there is no fault", "use fixedDelay"}
		}
		share := percent(d.Percentage)
		//lint:ignore SA1019 users still write it
		if whole := d.Percent; d.Percentage == nil && whole > 0 {
			share = percent(&apinetworking.Percent{Value: float64(whole)})
		}
		out.Delay = &commonfaultv3.FaultDelay{
			FaultDelaySecifier: &commonfaultv3.FaultDelay_FixedDelay{FixedDelay: fixed.FixedDelay}, Percentage: share,
		}
	}
	if a := in.Abort; a != nil {
		out.Abort = &faultv3.FaultAbort{Percentage: percent(a.Percentage)}
		switch e := a.ErrorType.(type) {
		case *apinetworking.HTTPFaultInjection_Abort_HttpStatus:
			out.Abort.ErrorType = &faultv3.FaultAbort_HttpStatus{HttpStatus: uint32(e.HttpStatus)}
		case *apinetworking.HTTPFaultInjection_Abort_GrpcStatus:
			var code codes.Code
			if err := code.UnmarshalJSON([]byte(`"` + e.GrpcStatus + `"`)); err != nil {
				return nil, &invalidValue{fmt.Sprintf("fault.abort.grpcStatus: %q is no status; there is no fault", e.GrpcStatus), "write UNAVAILABLE, NOT_FOUND …"}
			}
			out.Abort.ErrorType = &faultv3.FaultAbort_GrpcStatus{GrpcStatus: uint32(code)}
		default:
			return nil, &invalidValue{"fault.abort.http2Error is not supported; there is no fault", "use httpStatus"}
		}
	}
	if err := out.ValidateAll(); err != nil {
		return nil, &invalidValue{"fault: Envoy would refuse it: " + err.Error(), ""}
	}
	return anyOf(out), nil
}

func cors(in *apinetworking.CorsPolicy) (*anypb.Any, error) {
	out := &corsv3.CorsPolicy{
		FilterEnabled:                &corev3.RuntimeFractionalPercent{DefaultValue: all()},
		AllowMethods:                 strings.Join(in.AllowMethods, ","),
		AllowHeaders:                 strings.Join(in.AllowHeaders, ","),
		ExposeHeaders:                strings.Join(in.ExposeHeaders, ","),
		AllowCredentials:             in.AllowCredentials,
		ForwardNotMatchingPreflights: yes(),
	}
	if in.UnmatchedPreflights == apinetworking.CorsPolicy_IGNORE {
		out.ForwardNotMatchingPreflights = no()
	}
	if in.MaxAge != nil {
		out.MaxAge = fmt.Sprint(in.MaxAge.Seconds)
	}
	if len(in.AllowOrigins) == 0 {
		//lint:ignore SA1019 users still write it
		for _, origin := range in.AllowOrigin {
			out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, exact(origin))
		}
	}
	for i, origin := range in.AllowOrigins {
		m, err := stringMatcher(origin)
		if err == nil && m == nil {
			m, err = regexMatcher(".*")
		}
		if err != nil {
			return nil, fmt.Errorf("corsPolicy.allowOrigins[%d]: %w", i, err)
		}
		out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, m)
	}
	return anyOf(out), nil
}

// timeoutOf is d, where 0 means none.
func timeoutOf(d *durationpb.Duration) *durationpb.Duration {
	if d == nil {
		return durationpb.New(0)
	}
	return d
}
