package hcm

import (
	"strconv"
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/engine/config"
	"github.com/chandler-proxy/chandler/internal/engine/http1"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// rule is what the request's route says to the filter of that name, or else its
// virtual host; nil if neither says anything. It asks for no route unless some route
// speaks to filters.
func (s *stream) rule(name string) *config.PerRoute {
	routes := s.m.routes()
	if routes == nil || !routes.PerFilter {
		return nil
	}
	host, route := s.route()
	if route != nil {
		if rule := route.PerFilter[name]; rule != nil {
			return rule
		}
	}
	if host != nil {
		return host.PerFilter[name]
	}
	return nil
}

// native is what a filter does that is no plugin, when it sees the head of a request.
func (f *filter) native() proxywasm.Action {
	rbac, fault := f.ext.RBAC, f.ext.Fault
	switch rule := f.rule; {
	case rule == nil:
	case rbac != nil && rule.RBAC != nil:
		rbac = rule.RBAC
	case fault != nil && rule.Fault != nil:
		fault = rule.Fault
	case rbac == nil && fault == nil && rule.CORS != nil:
		return f.corsRequest(rule.CORS)
	}
	switch {
	case rbac != nil && !rbac.Allows(f.s.peer()):
		f.s.reply(&reply{status: 403, body: "RBAC: access denied", details: "rbac_access_denied"})
		return proxywasm.Stop
	case fault != nil:
		return f.s.fault(fault)
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

// corsRequest answers a preflight, and notes who asks.
func (f *filter) corsRequest(c *config.CORS) proxywasm.Action {
	fields := f.s.fields
	origin := fieldOf(fields, "origin")
	if origin == "" || !c.Share.Falls() {
		return proxywasm.Continue
	}
	preflight := fieldOf(fields, ":method") == "OPTIONS" && fieldOf(fields, "access-control-request-method") != ""
	if !c.Allows(origin) {
		if preflight && !c.ForwardUnmatched {
			f.s.reply(&reply{status: 200, details: "cors_response"})
			return proxywasm.Stop
		}
		return proxywasm.Continue
	}
	f.cors, f.origin = c, origin
	if !preflight {
		return proxywasm.Continue
	}
	var headers []abi.Pair
	for _, h := range []abi.Pair{
		{Key: "access-control-allow-origin", Value: origin}, {Key: "access-control-allow-credentials", Value: truth(c.Credentials)},
		{Key: "access-control-allow-methods", Value: c.Methods}, {Key: "access-control-allow-headers", Value: c.Headers},
		{Key: "access-control-max-age", Value: c.MaxAge},
	} {
		if h.Value != "" {
			headers = append(headers, h)
		}
	}
	f.s.reply(&reply{status: 200, headers: headers, details: "cors_response"})
	return proxywasm.Stop
}

func truth(b bool) string {
	if b {
		return strconv.FormatBool(b)
	}
	return ""
}

// corsResponse tells the browser that who asked may see the response.
func (f *filter) corsResponse(h *http1.Fields) {
	put(h, "access-control-allow-origin", f.origin)
	if f.cors.Credentials {
		put(h, "access-control-allow-credentials", "true")
	}
	if f.cors.Expose != "" {
		put(h, "access-control-expose-headers", f.cors.Expose)
	}
}
