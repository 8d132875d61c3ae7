package proxywasm

import "github.com/chandler-proxy/chandler/internal/abi"

func streamFunctions() []*hostFunc {
	return []*hostFunc{
		proxy("proxy_continue_stream", continueStream, param{"stream", number}).in(abi.V020, abi.V021),
		proxy("proxy_close_stream", closeStream, param{"stream", number}).in(abi.V020, abi.V021),
		proxy("proxy_continue_request", continueRequest).in(abi.V010, abi.V010),
		proxy("proxy_continue_response", continueResponse).in(abi.V010, abi.V010),
		proxy("proxy_clear_route_cache", clearRouteCache).in(abi.V010, abi.V010),
		proxy("proxy_get_status", getStatus, param{"code", ret32}, param{"message", retData}),
	}
}

// continueStream is proxy_continue_stream. It is done when the callback returns. As in
// Envoy an upstream cannot be continued, and after continuing an HTTP stream either
// way, the guest cannot reach the request any more.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_continue_stream
func continueStream(in *Instance, stack []uint64) abi.Status {
	s := abi.Stream(u32(stack, 0))
	if !s.Valid() {
		return abi.BadArgument
	}
	return in.resume(s)
}

func (in *Instance) resume(s abi.Stream) abi.Status {
	c := in.effective
	switch s {
	case abi.Request, abi.Response:
		if c.http != nil {
			c.http.req.headers, c.http.req.trailers = nil, nil
			in.later(action{kind: actContinue, c: c, stream: s})
		}
	case abi.Downstream:
		if c.tcp != nil {
			in.later(action{kind: actContinue, c: c, stream: s})
		}
	case abi.Upstream:
		return abi.Unimplemented
	}
	return abi.OK
}

// closeStream is proxy_close_stream. It is done when the callback returns.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_close_stream
func closeStream(in *Instance, stack []uint64) abi.Status {
	s := abi.Stream(u32(stack, 0))
	if !s.Valid() {
		return abi.BadArgument
	}
	c := in.effective
	if http := s <= abi.Response; http && c.http != nil || !http && c.tcp != nil {
		in.later(action{kind: actClose, c: c, stream: s})
	}
	return abi.OK
}

// continueRequest is proxy_continue_request, of 0.1.0.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.1.0#proxy_continue_request
func continueRequest(in *Instance, _ []uint64) abi.Status { return in.resume(abi.Request) }

// continueResponse is proxy_continue_response, of 0.1.0.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.1.0#proxy_continue_response
func continueResponse(in *Instance, _ []uint64) abi.Status { return in.resume(abi.Response) }

// clearRouteCache is proxy_clear_route_cache, which Envoy has in 0.1.0 although no
// specification does. Later modules call the foreign function clear_route_cache.
func clearRouteCache(in *Instance, _ []uint64) abi.Status {
	in.effective.ClearRouteCache()
	return abi.OK
}

// getStatus is proxy_get_status: of the HTTP call whose answer is being told, if it
// failed, or of the gRPC call that is closed.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_get_status
func getStatus(in *Instance, stack []uint64) abi.Status {
	var code uint32
	var message string
	if r := in.effective.root; r != nil {
		code, message = r.status, r.statusMessage
	}
	if status := in.put32(u32(stack, 0), code); status != abi.OK {
		return status
	}
	return in.give(stack, 1, message)
}
