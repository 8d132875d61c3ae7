package proxywasm

import (
	"github.com/chandler-proxy/chandler/internal/abi"
)

func headerFunctions() []*hostFunc {
	return []*hostFunc{
		proxy("proxy_get_header_map_size", getHeaderMapSize, param{"map", number}, param{"size", ret32}),
		proxy("proxy_get_header_map_pairs", getHeaderMapPairs, param{"map", number}, param{"pairs", retData}),
		proxy("proxy_set_header_map_pairs", setHeaderMapPairs, param{"map", number}, param{"pairs", pairs}),
		proxy("proxy_get_header_map_value", getHeaderMapValue, param{"map", number}, param{"key", text}, param{"value", retData}),
		proxy("proxy_add_header_map_value", addHeaderMapValue, param{"map", number}, param{"key", text}, param{"value", text}),
		proxy("proxy_replace_header_map_value", replaceHeaderMapValue, param{"map", number}, param{"key", text}, param{"value", text}),
		proxy("proxy_remove_header_map_value", removeHeaderMapValue, param{"map", number}, param{"key", text}),
	}
}

// readable returns a map that the effective context may read now, nil if it may not.
// Reading follows the specification: from the callback that brings the map until it
// lets it go on, and in proxy_on_log.
func (in *Instance) readable(m abi.Map) Headers {
	c := in.effective
	if s := c.http; s != nil && m <= abi.HTTPResponseTrailers {
		if s.log != nil {
			return s.log[m]
		}
		return s.headersOf(m)
	}
	r := c.root
	if r == nil {
		return nil
	}
	switch m {
	case abi.GRPCCallInitialMetadata:
		return r.grpcInitial
	case abi.GRPCCallTrailingMetadata:
		return r.grpcTrailing
	case abi.HTTPCallResponseHeaders:
		return r.callHeaders
	case abi.HTTPCallResponseTrailers:
		return r.callTrailers
	}
	return nil
}

// writable returns a map that the effective context may change now, nil if it may not.
// Trailers that a message does not have come to be at the end of its body.
func (in *Instance) writable(m abi.Map) Headers {
	s := in.effective.http
	if s == nil || m > abi.HTTPResponseTrailers {
		return nil
	}
	h := s.headersOf(m)
	if h != nil {
		return h
	}
	switch m {
	case abi.HTTPRequestTrailers:
		return s.req.addTrailers(s, abi.Request)
	case abi.HTTPResponseTrailers:
		return s.resp.addTrailers(s, abi.Response)
	}
	return nil
}

// changed is called after a map changed. As in Envoy, for all three versions of the
// ABI, a request whose headers change is routed anew.
func (in *Instance) changed(m abi.Map) abi.Status {
	if m == abi.HTTPRequestHeaders {
		in.effective.http.host.ClearRouteCache()
	}
	return abi.OK
}

// getHeaderMapSize is proxy_get_header_map_size: the bytes of all names and values.
// The specification speaks of the serialized size; Envoy adds nothing for the
// serialization, and has it only for maps that can be changed.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_get_header_map_size
func getHeaderMapSize(in *Instance, stack []uint64) abi.Status {
	m := abi.Map(u32(stack, 0))
	if !m.Valid() {
		return abi.BadArgument
	}
	h := in.writable(m)
	if h == nil {
		return abi.BadArgument
	}
	size := 0
	h.Each(func(name, value string) bool {
		size += len(name) + len(value)
		return true
	})
	return in.put32(u32(stack, 1), uint32(size))
}

// getHeaderMapPairs is proxy_get_header_map_pairs. As in Envoy a map that cannot be
// read now is empty.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_get_header_map_pairs
func getHeaderMapPairs(in *Instance, stack []uint64) abi.Status {
	m := abi.Map(u32(stack, 0))
	if !m.Valid() {
		return abi.BadArgument
	}
	return in.givePairs(stack, 1, in.readable(m))
}

// setHeaderMapPairs is proxy_set_header_map_pairs. As in Envoy a malformed map empties
// the one it is meant for.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_set_header_map_pairs
func setHeaderMapPairs(in *Instance, stack []uint64) abi.Status {
	m := abi.Map(u32(stack, 0))
	if !m.Valid() {
		return abi.BadArgument
	}
	fields, ok := in.pairs(stack, 1)
	if !ok {
		return abi.InvalidMemoryAccess
	}
	h := in.writable(m)
	if h == nil {
		return abi.BadArgument
	}
	var names []string
	h.Each(func(name, _ string) bool {
		names = append(names, name)
		return true
	})
	for _, name := range names {
		h.Remove(name)
	}
	for _, f := range fields {
		h.Add(f.Key, f.Value)
	}
	return in.changed(m)
}

// getHeaderMapValue is proxy_get_header_map_value: the first value, if there are
// several. To a module of ABI 0.1.0 a missing field is an empty one, as in Envoy.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_get_header_map_value
func getHeaderMapValue(in *Instance, stack []uint64) abi.Status {
	m := abi.Map(u32(stack, 0))
	if !m.Valid() {
		return abi.BadArgument
	}
	name, ok := in.name(stack, 1)
	if !ok {
		return abi.InvalidMemoryAccess
	}
	h := in.readable(m)
	if h == nil {
		if s := in.effective.http; s == nil || s.log == nil {
			return abi.BadArgument
		}
		return in.missing(stack)
	}
	value, ok := h.Get(name)
	if !ok {
		return in.missing(stack)
	}
	return in.give(stack, 3, value)
}

func (in *Instance) missing(stack []uint64) abi.Status {
	if in.version == abi.V010 {
		return in.giveAt(stack, 3, 0, 0)
	}
	return abi.NotFound
}

// change reads map, name and value, and returns the map to change.
func (in *Instance) change(stack []uint64, withValue bool) (h Headers, name, value string, status abi.Status) {
	m := abi.Map(u32(stack, 0))
	if !m.Valid() {
		return nil, "", "", abi.BadArgument
	}
	name, ok := in.name(stack, 1)
	if !ok {
		return nil, "", "", abi.InvalidMemoryAccess
	}
	if withValue {
		data, ok := in.read(stack, 3)
		if !ok {
			return nil, "", "", abi.InvalidMemoryAccess
		}
		name, value = cloneTwo(name, data)
	}
	if h = in.writable(m); h == nil {
		return nil, "", "", abi.BadArgument
	}
	return h, name, value, abi.OK
}

// cloneTwo copies two strings with one allocation.
func cloneTwo(a string, b []byte) (string, string) {
	both := make([]byte, len(a)+len(b))
	copy(both, a)
	copy(both[len(a):], b)
	s := abi.View(both)
	return s[:len(a)], s[len(a):]
}

// addHeaderMapValue is proxy_add_header_map_value.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_add_header_map_value
func addHeaderMapValue(in *Instance, stack []uint64) abi.Status {
	h, name, value, status := in.change(stack, true)
	if status != abi.OK {
		return status
	}
	h.Add(name, value)
	return in.changed(abi.Map(u32(stack, 0)))
}

// replaceHeaderMapValue is proxy_replace_header_map_value. As in Envoy it replaces all
// values there are, and the field becomes the last.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_replace_header_map_value
func replaceHeaderMapValue(in *Instance, stack []uint64) abi.Status {
	h, name, value, status := in.change(stack, true)
	if status != abi.OK {
		return status
	}
	h.Set(name, value)
	return in.changed(abi.Map(u32(stack, 0)))
}

// removeHeaderMapValue is proxy_remove_header_map_value.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_remove_header_map_value
func removeHeaderMapValue(in *Instance, stack []uint64) abi.Status {
	h, name, _, status := in.change(stack, false)
	if status != abi.OK {
		return status
	}
	h.Remove(name)
	return in.changed(abi.Map(u32(stack, 0)))
}
