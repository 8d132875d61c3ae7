package proxywasm

import (
	"bytes"
	"compress/zlib"
	"io"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// maxUncompressed bounds what a guest has uncompressed; Envoy bounds nothing.
const maxUncompressed = 64 << 20

// EnvoyForeign returns those of Envoy's foreign functions that need nothing but what
// is here: compress and uncompress (zlib), and clear_route_cache. Those for
// signatures, filter state, expressions and declared properties are not among them: a
// guest that calls one is told NOT_FOUND.
func EnvoyForeign() map[string]ForeignFunc {
	return map[string]ForeignFunc{
		"compress":          compress,
		"uncompress":        uncompress,
		"clear_route_cache": clearRoute,
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
