package expr

import (
	"encoding/binary"
	"math"
	"strings"
	"time"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"github.com/google/cel-go/interpreter"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// maxIterations is how often an expression may loop, all loops taken together; Envoy's.
const maxIterations = 10_000

// Names that cel-go, and a limited call, ask for. An expression cannot name them.
const (
	interruptedName = "#interrupted" // after each iteration: true ends the loop
	expiredName     = "#expired"     // there is one when the time is up
)

// A source is what there is to see: a [proxywasm.Context].
type source interface {
	AppendProperty(dst []byte, path string) ([]byte, abi.Status)
	State(key string) (proxywasm.Value, bool)
	IsStream() bool
}

// An activation is what an expression sees of a context.
type activation struct {
	c          source
	iterations int
	began      time.Time
	limit      time.Duration // forever if negative
}

// Parent is none.
func (*activation) Parent() interpreter.Activation { return nil }

// ResolveName returns what has the name at the top.
func (a *activation) ResolveName(name string) (any, bool) {
	switch name {
	case interruptedName:
		a.iterations++
		return a.iterations >= maxIterations || a.expired(), true
	case expiredName:
		return nil, a.expired()
	}
	v := a.find(name)
	return v, v != nil
}

func (a *activation) expired() bool { return a.limit >= 0 && time.Since(a.began) > a.limit }

// find returns nil if there is nothing of that name.
func (a *activation) find(name string) ref.Val {
	switch name {
	case "request", "response", "source", "destination", "connection", "upstream", "filter_state":
		if a.c.IsStream() {
			return newAttributes(a.c, name)
		}
		return nil
	case "xds":
		return newAttributes(a.c, name)
	case "upstream_filter_state":
		if _, status := a.c.AppendProperty(nil, name); status == abi.SerializationFailure {
			return newAttributes(a.c, name)
		}
		return nil
	}
	if k := kindOf("", name); k != none {
		return property(a.c, k, name)
	}
	if strings.Contains(name, ".") { // cel-go tries the names of fields for those of variables
		return nil
	}
	if v, ok := a.c.State("wasm." + name); ok {
		return stateValue(v)
	}
	return property(a.c, bytesKind, name)
}

// stateValue is what a plugin has set.
func stateValue(v proxywasm.Value) ref.Val {
	switch v.Type {
	case proxywasm.String:
		return types.String(v.Data)
	case proxywasm.Protobuf:
		return decodeAny(v.Schema, []byte(v.Data))
	}
	return types.Bytes(v.Data)
}

// A kind is a type of attributes: nothing in their bytes tells.
type kind uint8

const (
	none kind = iota
	stringKind
	bytesKind
	intKind
	uintKind
	boolKind
	timeKind
	durationKind
	headersKind
	metadataKind
	nodeKind
	localityKind
)

// kindOf is the kind of an attribute; root is empty for one at the top.
//
// https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/advanced/attributes
func kindOf(root, name string) kind {
	switch root {
	case "":
		switch name {
		case "metadata":
			return metadataKind
		case "connection_id":
			return uintKind
		case "plugin_name", "plugin_root_id", "plugin_vm_id":
			return stringKind
		}
	case "request":
		switch name {
		case "headers":
			return headersKind
		case "time":
			return timeKind
		case "duration":
			return durationKind
		case "size", "total_size":
			return intKind
		}
		return stringKind
	case "response":
		switch name {
		case "headers", "trailers":
			return headersKind
		case "code_details":
			return stringKind
		case "backend_latency":
			return durationKind
		}
		return intKind
	case "source", "destination", "connection", "upstream":
		switch name {
		case "port":
			return intKind
		case "id", "request_attempt_count":
			return uintKind
		case "mtls":
			return boolKind
		case "cx_pool_ready_duration":
			return durationKind
		case "locality":
			return localityKind
		}
		return stringKind
	case "xds":
		switch name {
		case "node":
			return nodeKind
		case "listener_direction":
			return intKind
		}
		if strings.HasSuffix(name, "_metadata") {
			return metadataKind
		}
		return stringKind
	}
	return none
}

// property is the property at a path, nil if there is none.
func property(c source, k kind, path ...string) ref.Val {
	raw, status := c.AppendProperty(nil, abi.JoinPath(path...))
	switch status {
	case abi.OK:
	case abi.SerializationFailure: // there is something, without an encoding
		return types.NullValue
	default:
		return nil
	}
	switch k {
	case bytesKind:
		return types.Bytes(raw)
	case headersKind:
		return newHeaders(raw)
	case metadataKind:
		return decodeMessage("envoy.config.core.v3.Metadata", raw)
	case localityKind:
		return decodeMessage("envoy.config.core.v3.Locality", raw)
	case nodeKind:
		return decodeMessage("envoy.config.core.v3.Node", raw)
	case boolKind:
		return types.Bool(len(raw) == 1 && raw[0] != 0)
	case stringKind:
		return types.String(raw)
	}
	if len(raw) != 8 {
		return types.NewErr("%s has %d bytes", strings.Join(path, "."), len(raw))
	}
	n := binary.LittleEndian.Uint64(raw)
	switch k {
	case uintKind:
		return types.Uint(n)
	case timeKind:
		return types.Timestamp{Time: time.Unix(0, int64(n)).UTC()}
	case durationKind:
		return types.Duration{Duration: time.Duration(n)}
	}
	return types.Int(n)
}

// attributes are the attributes below a name: a map that cannot tell what is in it, and
// so has no size, no keys and no encoding, as in Envoy.
type attributes struct {
	traits.Mapper // an empty one
	c             source
	root          string
}

func newAttributes(c source, root string) ref.Val {
	return &attributes{emptyMap(), c, root}
}

// Find looks an attribute up.
func (a *attributes) Find(key ref.Val) (ref.Val, bool) {
	name, ok := key.(types.String)
	if !ok {
		return nil, false
	}
	var v ref.Val
	if a.root == "filter_state" {
		if s, ok := a.c.State(string(name)); ok {
			v = stateValue(s)
		}
	} else if k := kindOf(a.root, string(name)); k != none && !strings.ContainsRune(string(name), 0) {
		v = property(a.c, k, a.root, string(name))
	}
	return v, v != nil
}

// Get is Find, with an error for what is not there.
func (a *attributes) Get(key ref.Val) ref.Val { return get(a, key) }

// Contains reports whether there is the attribute.
func (a *attributes) Contains(key ref.Val) ref.Val {
	_, ok := a.Find(key)
	return types.Bool(ok)
}

func get(m traits.Mapper, key ref.Val) ref.Val {
	if v, ok := m.Find(key); ok {
		return v
	}
	return types.NewErr("no such key: %v", key)
}

// headers are a header map, whose names may be asked for in any case.
type headers struct{ traits.Mapper }

func newHeaders(raw []byte) ref.Val {
	pairs, _ := abi.DecodePairs(raw) // the proxy made them
	var all []ref.Val
	for _, p := range pairs {
		all = append(all, types.String(p.Key), types.String(p.Value))
	}
	m, ok := newMap(all...).(traits.Mapper)
	if !ok { // a name twice: no proxy does that
		m = emptyMap()
	}
	return &headers{m}
}

// Find looks a header up.
func (h *headers) Find(key ref.Val) (ref.Val, bool) {
	name, ok := key.(types.String)
	if !ok {
		return nil, false
	}
	name = types.String(strings.ToLower(string(name)))
	if v, ok := h.Mapper.Find(name); ok || name != "host" {
		return v, ok
	}
	return h.Mapper.Find(types.String(":authority"))
}

// Get is Find, with an error for what is not there.
func (h *headers) Get(key ref.Val) ref.Val { return get(h, key) }

// Contains reports whether there is the header.
func (h *headers) Contains(key ref.Val) ref.Val {
	_, ok := h.Find(key)
	return types.Bool(ok)
}

// unixNano is that of a time, or the nearest that there is.
func unixNano(t time.Time) int64 {
	switch s := t.Unix(); {
	case s <= math.MinInt64/int64(time.Second):
		return math.MinInt64
	case s >= math.MaxInt64/int64(time.Second):
		return math.MaxInt64
	}
	return t.UnixNano()
}
