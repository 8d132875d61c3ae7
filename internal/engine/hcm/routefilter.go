package hcm

import (
	"slices"
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/engine/config"
	"github.com/chandler-proxy/chandler/internal/engine/http1"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// said is what the levels of the request's route say to the filter of that name, the most
// specific one first. A request without a route is told nothing. It asks for no route unless
// some route speaks to filters.
func (s *stream) said(name string) []*config.PerRoute {
	if s.routes == nil || !s.routes.AnyPerFilter {
		return nil
	}
	at := s.router.choose()
	if at.route == nil {
		return nil
	}
	levels := [...]map[string]*config.PerRoute{nil, at.route.PerFilter, at.host.PerFilter, s.routes.PerFilter}
	if at.weighted != nil {
		levels[0] = at.weighted.PerFilter
	}
	var list []*config.PerRoute
	for _, level := range levels {
		if rule := level[name]; rule != nil {
			list = append(list, rule)
		}
	}
	return list
}

// native is what a filter does that is no plugin, when it sees the head of a request.
func (f *filter) native() proxywasm.Action {
	rbac, fault := f.ext.RBAC, f.ext.Fault
	var cors *config.CORS
	for _, rule := range slices.Backward(f.s.said(f.name())) { // what is more specific comes later, and wins
		switch {
		case rbac != nil && rule.RBAC != nil:
			rbac = rule.RBAC
		case fault != nil && rule.Fault != nil:
			fault = rule.Fault
		case rbac == nil && fault == nil && rule.CORS != nil:
			cors = rule.CORS.Under(cors)
		}
	}
	switch {
	case rbac != nil && !rbac.Allows(f.s.peer()):
		f.s.reply(&reply{status: 403, body: "RBAC: access denied", details: "rbac_access_denied"})
		return proxywasm.Stop
	case fault != nil:
		return f.s.fault(fault)
	case cors != nil:
		return f.corsRequest(cors)
	}
	return proxywasm.Continue
}

// fault delays the request, or refuses it, if it falls to it.
func (s *stream) fault(c *config.Fault) proxywasm.Action {
	if c.Delay > 0 && c.DelayShare.Falls() {
		s.flag(delayInjected)
		t := time.NewTimer(c.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-s.ctx.Done():
			return proxywasm.Stop
		}
	}
	if c.Status != 0 && c.AbortShare.Falls() {
		s.reply(&reply{
			status: c.Status, body: "fault filter abort", details: "fault_filter_abort", grpc: c.GRPC, hasGRPC: c.HasGRPC, flag: faultInjected,
		})
		return proxywasm.Stop
	}
	return proxywasm.Continue
}

// corsRequest answers a preflight, and notes who asks. Only requests that go to an upstream
// are looked at.
func (f *filter) corsRequest(c *config.CORS) proxywasm.Action {
	fields := f.s.fields
	origin := fieldOf(fields, "origin")
	if origin == "" || f.s.router.choose().weighted == nil || !c.Share.Falls() {
		return proxywasm.Continue
	}
	allowed := c.Allows(origin)
	if allowed {
		f.cors, f.origin = c, origin
	}
	wanted := fieldOf(fields, "access-control-request-method")
	preflight := fieldOf(fields, ":method") == "OPTIONS" && wanted != ""
	if !preflight || !allowed && isTrue(c.ForwardUnmatched, true) {
		return proxywasm.Continue
	}
	var headers []abi.Pair
	add := func(name, value string) {
		if value != "" {
			headers = append(headers, abi.Pair{Key: name, Value: value})
		}
	}
	if allowed {
		add("access-control-allow-origin", origin)
	}
	if isTrue(c.Credentials, false) {
		add("access-control-allow-credentials", "true")
	}
	add("access-control-allow-methods", orAsked(c.Methods, wanted))
	add("access-control-allow-headers", orAsked(c.Headers, fieldOf(fields, "access-control-request-headers")))
	add("access-control-max-age", c.MaxAge)
	f.s.reply(&reply{status: 200, headers: headers, details: "cors_response"})
	return proxywasm.Stop
}

func isTrue(b *bool, otherwise bool) bool {
	if b == nil {
		return otherwise
	}
	return *b
}

// orAsked is what is allowed; an asterisk allows whatever is asked for.
func orAsked(allowed, asked string) string {
	if allowed == "*" {
		return asked
	}
	return allowed
}

// corsResponse tells the browser that who asked may see the response.
func (f *filter) corsResponse(h *http1.Fields) {
	put(h, "access-control-allow-origin", f.origin)
	if isTrue(f.cors.Credentials, false) {
		put(h, "access-control-allow-credentials", "true")
	}
	if f.cors.Expose != "" {
		put(h, "access-control-expose-headers", f.cors.Expose)
	}
}
