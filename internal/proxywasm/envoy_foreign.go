package proxywasm

import (
	"bytes"
	"compress/zlib"
	"io"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// maxUncompressed bounds what a guest has uncompressed; Envoy bounds nothing.
const maxUncompressed = 64 << 20

// EnvoyForeign returns Envoy 1.40's foreign functions, but those of expressions
// (expr_create, expr_evaluate, expr_delete), which package expr has: they bring a
// parser along that not every embedder wants. A guest that calls one that is not
// there is told NOT_FOUND.
//
//   - compress, uncompress: zlib. What compress makes has not the very bytes of Envoy's.
//   - clear_route_cache.
//   - sign, verify_signature: see signature.go for the keys that are refused.
//   - declare_property, set_envoy_filter_state: see filter_state.go for the types and
//     the keys that are refused.
//
// https://github.com/envoyproxy/envoy/blob/v1.40.0/source/extensions/common/wasm/foreign.cc
func EnvoyForeign() map[string]ForeignFunc {
	return map[string]ForeignFunc{
		"compress":               compress,
		"uncompress":             uncompress,
		"clear_route_cache":      clearRoute,
		"sign":                   sign,
		"verify_signature":       verifySignature,
		"declare_property":       declareProperty,
		"set_envoy_filter_state": setEnvoyFilterState,
	}
}

func clearRoute(c *Context, _ []byte) ([]byte, abi.Status) {
	c.ClearRouteCache()
	return nil, abi.OK
}

func compress(_ *Context, arguments []byte) ([]byte, abi.Status) {
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	if _, err := w.Write(arguments); err != nil {
		return nil, abi.SerializationFailure
	}
	if err := w.Close(); err != nil {
		return nil, abi.SerializationFailure
	}
	return b.Bytes(), abi.OK
}

func uncompress(_ *Context, arguments []byte) ([]byte, abi.Status) {
	r, err := zlib.NewReader(bytes.NewReader(arguments))
	if err != nil {
		return nil, abi.SerializationFailure
	}
	data, err := io.ReadAll(io.LimitReader(r, maxUncompressed+1))
	if err != nil || len(data) > maxUncompressed {
		return nil, abi.SerializationFailure
	}
	return data, abi.OK
}
