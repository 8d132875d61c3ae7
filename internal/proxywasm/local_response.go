package proxywasm

import (
	"strings"

	"github.com/chandler-proxy/chandler/internal/abi"
)

func localResponseFunctions() []*hostFunc {
	return []*hostFunc{
		proxy("proxy_send_local_response", sendLocalResponse, param{"status", number}, param{"details", text},
			param{"body", blob}, param{"headers", pairs}, param{"grpc_status", number}),
	}
}

// sendLocalResponse is proxy_send_local_response. It is done when the callback
// returns; whatever that returns, nothing goes on. Outside of an HTTP stream it does
// nothing, yet is OK, as in Envoy.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_send_local_response
func sendLocalResponse(in *Instance, stack []uint64) abi.Status {
	details, ok := in.read(stack, 1)
	body, ok2 := in.read(stack, 3)
	headers, ok3 := in.pairs(stack, 5)
	if !ok || !ok2 || !ok3 {
		return abi.InvalidMemoryAccess
	}
	in.stop = true
	c := in.effective
	if c.http == nil {
		return abi.OK
	}
	grpc := int32(u32(stack, 7))
	if grpc < 0 || grpc > 16 {
		grpc = -1
	}
	in.later(action{kind: actLocal, c: c, local: &LocalResponse{
		Status:     u32(stack, 0),
		Details:    underscores(string(details)),
		Body:       string(body),
		Headers:    headers,
		GRPCStatus: grpc,
	}})
	return abi.OK
}

// underscores replaces white space, as Envoy does: details are one word in an access log.
func underscores(s string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(" \t\n\v\f\r", r) {
			return '_'
		}
		return r
	}, s)
}

// failure is the answer of a plugin that failed and fails closed: Envoy's.
func failure() LocalResponse {
	return LocalResponse{Status: 503, Details: "wasm_fail_stream", GRPCStatus: 14, Failure: true}
}
