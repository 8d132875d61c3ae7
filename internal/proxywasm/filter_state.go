package proxywasm

import (
	"net/netip"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// A LifeSpan is how long something in a [FilterState] lives. The numbers are those of
// the guest's arguments.
type LifeSpan uint8

const (
	FilterChain          LifeSpan = iota // the stream
	DownstreamRequest                    // the request, across Envoy's internal redirects
	DownstreamConnection                 // the connection
)

// A ValueType is what is told of a property when it is declared. The numbers are those
// of the guest's arguments.
type ValueType uint8

const (
	Bytes    ValueType = 0
	String   ValueType = 1
	Protobuf ValueType = 3
)

// A Value is one entry of a [FilterState].
type Value struct {
	Type   ValueType
	Schema string // of Protobuf: the type URL
	Data   string

	readonly bool
	span     LifeSpan
}

// A FilterState is what plugins have set on a stream, or on a connection: Envoy's
// filter state. What is to live as long as the connection is kept in the connection's,
// and seen in those of all its streams. The zero value is that of a connection, and
// empty. It is safe for concurrent use.
type FilterState struct {
	connection *FilterState // nil for that of a connection itself

	mu     sync.Mutex
	values map[string]Value
}

// NewFilterState returns that of a stream. connection may be nil: then what is to live
// as long as the connection ends with the stream.
func NewFilterState(connection *FilterState) *FilterState {
	return &FilterState{connection: connection}
}

// A Stateful host is an [HTTPHost] or [TCPHost] that keeps what plugins set, where the
// other plugins of the stream find it, too. Its SetProperty is not called. Of any other
// host SetProperty is called with what a plugin has set, and what was declared of a
// property holds for the plugin alone that declared it.
type Stateful interface {
	FilterState() *FilterState
}

// propertyKey is where properties that plugins set are among what else there is.
const propertyKey = "wasm."

// find returns an entry of the stream or its connection.
func (f *FilterState) find(key string) (Value, bool) {
	f.mu.Lock()
	v, ok := f.values[key]
	f.mu.Unlock()
	if !ok && f.connection != nil {
		return f.connection.find(key)
	}
	return v, ok
}

// update changes an entry where it is: for one that is not there, change is given the
// zero Value and false, and what it returns goes where its span says.
func (f *FilterState) update(key string, change func(v Value, ok bool) (Value, abi.Status)) abi.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, ok := f.values[key]
	if !ok && f.connection != nil {
		if _, there := f.connection.find(key); there {
			return f.connection.update(key, change)
		}
	}
	v, status := change(v, ok)
	switch {
	case status != abi.OK:
	case !ok && f.connection != nil && v.span == DownstreamConnection:
		// Another stream may have set it meanwhile: then the last one holds.
		return f.connection.update(key, func(Value, bool) (Value, abi.Status) { return v, abi.OK })
	default:
		if f.values == nil {
			f.values = map[string]Value{}
		}
		f.values[key] = v
	}
	return status
}

// setProperty is proxy_set_property. What is declared of the property counts when it is
// first set; from then on it is what it is.
func (f *FilterState) setProperty(path, value string, declared Value) abi.Status {
	return f.update(propertyKey+path, func(v Value, ok bool) (Value, abi.Status) {
		switch {
		case !ok:
			v = declared
		case v.readonly:
			return v, abi.BadArgument
		}
		v.Data = value
		return v, abi.OK
	})
}

// setObject sets what has another life span already as Envoy does: not at all, yet all
// is well.
func (f *FilterState) setObject(key, value string, span LifeSpan) {
	f.update(key, func(v Value, ok bool) (Value, abi.Status) {
		if ok && v.span != span {
			return v, abi.OK
		}
		return Value{Type: String, Data: value, span: span}, abi.OK
	})
}

// State returns what is at a key of the stream's filter state: what plugins set with
// proxy_set_property has "wasm." before its path.
func (c *Context) State(key string) (Value, bool) {
	f := c.filterState()
	if f == nil {
		return Value{}, false
	}
	return f.find(key)
}

// filterState is nil for a root context.
func (c *Context) filterState() *FilterState {
	p := c.stream()
	if p == nil {
		return nil
	}
	if s, ok := p.(Stateful); ok {
		return s.FilterState()
	}
	if c.state == nil {
		c.state = new(FilterState)
	}
	return c.state
}

// setProperty is proxy_set_property in the context.
func (c *Context) setProperty(path, value string) abi.Status {
	f := c.filterState()
	if f == nil {
		return abi.NotFound
	}
	if status := f.setProperty(path, value, c.root.declared[path]); status != abi.OK {
		return status
	}
	p := c.stream()
	if _, ok := p.(Stateful); ok {
		return abi.OK
	}
	return p.SetProperty(path, value)
}

// appendState looks a property up that a plugin has set, or filter_state.
func (c *Context) appendState(dst []byte, path string) ([]byte, abi.Status) {
	key, rest := abi.CutPath(path)
	all := key == "filter_state"
	switch {
	case !all:
		key = propertyKey + key
	case rest == "" && c.stream() != nil:
		return dst, abi.SerializationFailure
	default:
		key, rest = abi.CutPath(rest)
	}
	v, ok := c.State(key)
	switch {
	case !ok:
		return dst, abi.NotFound
	case rest == "" && !(all && v.Type == Protobuf): // there Envoy shows the message that it is
		return append(dst, v.Data...), abi.OK
	case v.Type == Protobuf && c.in.vm.cfg.Messages != nil:
		return c.in.vm.cfg.Messages(dst, v.Schema, v.Data, rest)
	}
	return dst, abi.NotFound
}

// maxDeclared is how many properties a plugin may declare in one instance.
const maxDeclared = 4096

// declareProperty is the foreign function declare_property: what properties of that
// name are, when they are set from then on in streams of this plugin. Declared twice it
// is refused; declared in a stream it is of no consequence, both as in Envoy.
//
// A property of type FlatBuffers is answered as a function that is not there, with
// NOT_FOUND: its fields could not be looked up. So is more than maxDeclared.
func declareProperty(c *Context, arguments []byte) ([]byte, abi.Status) {
	const (
		name protowire.Number = 1 + iota
		readonly
		kind
		schema
		span
	)
	const flatBuffers = 2
	m, ok := decodeMessage(arguments, name)
	if !ok {
		return nil, abi.BadArgument
	}
	c = c.Current()
	if m.enum(kind) == flatBuffers || len(c.declared) == maxDeclared {
		return nil, abi.NotFound
	}
	if _, ok := c.declared[m.text(name)]; ok {
		return nil, abi.BadArgument
	}
	v := Value{Schema: m.text(schema), readonly: m.bool(readonly), span: lifeSpan(m.enum(span))}
	switch t := m.enum(kind); t {
	case int32(String), int32(Protobuf):
		v.Type = ValueType(t)
	}
	if c.declared == nil {
		c.declared = map[string]Value{}
	}
	c.declared[m.text(name)] = v
	return nil, abi.OK
}

// lifeSpan is FilterChain for a number that there is not.
func lifeSpan(n int32) LifeSpan {
	if n == int32(DownstreamRequest) || n == int32(DownstreamConnection) {
		return LifeSpan(n)
	}
	return FilterChain
}

// setEnvoyFilterState is the foreign function set_envoy_filter_state, for the keys of
// Envoy's whose objects can only be looked up, unless the proxy has a filter or a cluster
// of a kind that the engine refuses: envoy.string, envoy.hashable_string,
// envoy.network.ip, envoy.ratelimit.hits_addend, envoy.upstream.dynamic_host and
// envoy.upstream.dynamic_port. Any other is told NOT_FOUND, as Envoy tells of one that
// it does not know: among them those that change where and how an upstream is connected
// to (envoy.tcp_proxy.cluster, envoy.network.upstream_server_name and the like).
//
// https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/advanced/well_known_filter_state
func setEnvoyFilterState(c *Context, arguments []byte) ([]byte, abi.Status) {
	const (
		path protowire.Number = 1 + iota
		value
		span
	)
	m, ok := decodeMessage(arguments, path, value)
	if !ok {
		return nil, abi.BadArgument
	}
	object, status := filterObject(m.text(path), m.text(value))
	if status != abi.OK {
		return nil, status
	}
	f := c.filterState()
	if f == nil {
		return nil, abi.NotFound
	}
	f.setObject(m.text(path), object, lifeSpan(m.enum(span)))
	return nil, abi.OK
}

// filterObject is the text that the object of a key shows.
func filterObject(key, text string) (string, abi.Status) {
	switch key {
	case "envoy.string", "envoy.hashable_string", "envoy.upstream.dynamic_host":
		return text, abi.OK
	case "envoy.network.ip":
		ip, err := netip.ParseAddr(text)
		if err != nil || ip.Zone() != "" { // Envoy looks for an interface of that name
			return "", abi.BadArgument
		}
		return netip.AddrPortFrom(ip, 0).String(), abi.OK
	case "envoy.upstream.dynamic_port", "envoy.ratelimit.hits_addend":
		return number32(text)
	}
	return "", abi.NotFound
}

// number32 writes a number anew, which may have spaces around it, and a plus.
func number32(text string) (string, abi.Status) {
	n, err := strconv.ParseUint(strings.TrimPrefix(strings.Trim(text, " \t\n\v\f\r"), "+"), 10, 32)
	if err != nil {
		return "", abi.BadArgument
	}
	return strconv.FormatUint(n, 10), abi.OK
}
