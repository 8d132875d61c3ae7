package proxywasm

import (
	"slices"
	"sync"

	"github.com/chandler-proxy/chandler/internal/abi"
)

func bufferFunctions() []*hostFunc {
	return []*hostFunc{
		proxy("proxy_get_buffer_bytes", getBufferBytes, param{"buffer", number}, param{"start", number}, param{"size", number}, param{"value", retData}),
		proxy("proxy_get_buffer_status", getBufferStatus, param{"buffer", number}, param{"size", ret32}, param{"flags", ret32}),
		proxy("proxy_set_buffer_bytes", setBufferBytes, param{"buffer", number}, param{"start", number}, param{"size", number}, param{"value", blob}),
		proxy("proxy_get_configuration", getConfiguration, param{"value", retData}).in(abi.V010, abi.V010),
	}
}

// buffer returns what the effective context can read of the buffer now, and whether it
// is there. As in Envoy the buffers of streams and of gRPC messages are always there,
// at worst empty.
func (in *Instance) buffer(b abi.Buffer) (string, bool) {
	c := in.effective
	switch b {
	case abi.HTTPRequestBody, abi.HTTPResponseBody, abi.DownstreamData, abi.UpstreamData:
		if body := c.body(b); body != nil {
			return abi.View(body.visible), true
		}
		return "", true
	case abi.HTTPCallResponseBody:
		if c.root == nil || !c.root.inCall {
			return "", false
		}
		return c.root.callBody, true
	case abi.GRPCCallMessage:
		if c.root == nil {
			return "", true
		}
		return c.root.grpcMessage, true
	case abi.VMConfiguration:
		return abi.View(in.vm.cfg.Configuration), true
	case abi.PluginConfiguration:
		if c.root == nil || c.root.Context.id != c.id || !c.root.configuring {
			return "", false
		}
		return abi.View(c.root.plugin.cfg.Configuration), true
	case abi.ForeignFunctionArguments:
		return abi.View(in.foreign), true
	}
	return "", false
}

// body returns the body of the stream that the buffer means, nil if the context has no
// such.
func (c *Context) body(b abi.Buffer) *body {
	switch {
	case c.http != nil && b == abi.HTTPRequestBody:
		return &c.http.req.body
	case c.http != nil && b == abi.HTTPResponseBody:
		return &c.http.resp.body
	case c.tcp != nil && b == abi.DownstreamData:
		return &c.tcp.down.body
	case c.tcp != nil && b == abi.UpstreamData:
		return &c.tcp.up.body
	}
	return nil
}

// getBufferBytes is proxy_get_buffer_bytes. What is out of range is cut off.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_get_buffer_bytes
func getBufferBytes(in *Instance, stack []uint64) abi.Status {
	b := abi.Buffer(u32(stack, 0))
	if !b.Valid() {
		return abi.BadArgument
	}
	data, ok := in.buffer(b)
	if !ok {
		return abi.NotFound
	}
	// Addresses are 64 bits wide inside of Envoy, so that start plus size never
	// overflows there either.
	from := min(uint64(u32(stack, 1)), uint64(len(data)))
	to := min(from+uint64(u32(stack, 2)), uint64(len(data)))
	return in.give(stack, 3, data[from:to])
}

// getBufferStatus is proxy_get_buffer_status. There are no flags.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_get_buffer_status
func getBufferStatus(in *Instance, stack []uint64) abi.Status {
	b := abi.Buffer(u32(stack, 0))
	if !b.Valid() {
		return abi.BadArgument
	}
	data, ok := in.buffer(b)
	if !ok {
		return abi.NotFound
	}
	if status := in.put32(u32(stack, 1), uint32(len(data))); status != abi.OK {
		return status
	}
	return in.put32(u32(stack, 2), 0)
}

// setBufferBytes is proxy_set_buffer_bytes. Only the bodies of streams can be changed,
// while the guest can read them. Of what the specification allows Envoy has: with
// start 0 replacing the first size bytes (none: prepending), with start at the end or
// after it appending; anything in between is BAD_ARGUMENT.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_set_buffer_bytes
func setBufferBytes(in *Instance, stack []uint64) abi.Status {
	b := abi.Buffer(u32(stack, 0))
	if !b.Valid() {
		return abi.BadArgument
	}
	if _, ok := in.buffer(b); !ok {
		return abi.NotFound
	}
	value, ok := in.read(stack, 3)
	if !ok {
		return abi.InvalidMemoryAccess
	}
	body := in.effective.body(b)
	if body == nil || !body.open {
		return abi.BadArgument
	}
	return body.set(u32(stack, 1), u32(stack, 2), value)
}

// getConfiguration is proxy_get_configuration, of 0.1.0: the plugin's configuration
// while it is configured, else that of the VM.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.1.0#proxy_get_configuration
func getConfiguration(in *Instance, stack []uint64) abi.Status {
	data, ok := in.buffer(abi.PluginConfiguration)
	if !ok {
		data, _ = in.buffer(abi.VMConfiguration)
	}
	return in.give(stack, 0, data)
}

// A body is what of one direction of a stream is in the guest's hands.
type body struct {
	visible []byte // what the guest sees now
	pending []byte // held back, and out of its sight
	open    bool   // the guest may change visible
	own     bool   // visible is no one else's memory
	keep    bool   // the next chunk adds to visible

	room   *sync.Pool // of *[]byte, to hold bodies in; may be nil
	memory *[]byte    // of room: that of visible if that is the body's own, and of what was taken last
}

// maxKept is the most memory of a body that is kept for others.
const maxKept = 64 << 10

// set is proxy_set_buffer_bytes.
func (b *body) set(start, size uint32, value []byte) abi.Status {
	n := uint64(len(b.visible))
	switch {
	case start == 0 && uint64(size) >= n:
		to := b.visible[:0]
		if !b.own {
			to = b.empty()
		}
		b.visible, b.own = append(to, value...), true
	case start == 0 && b.own && int(size) == len(value):
		copy(b.visible, value)
	case start == 0:
		b.visible, b.own = slices.Concat(value, b.visible[size:]), true
	case uint64(start) >= n:
		b.claim()
		b.visible = append(b.visible, value...)
	default:
		return abi.BadArgument
	}
	return abi.OK
}

// add makes a chunk visible: after what the guest saw before, if it is to see that
// again, else alone.
func (b *body) add(chunk []byte) {
	b.open = true
	if b.keep {
		b.claim()
		b.visible = append(b.visible, chunk...)
		return
	}
	b.visible, b.own = chunk, false
}

// claim copies visible, if it is someone else's memory.
func (b *body) claim() {
	if !b.own {
		b.visible, b.own = append(b.empty(), b.visible...), true
	}
}

// empty is memory for visible, while that is in someone else's.
func (b *body) empty() []byte {
	if b.room == nil {
		return nil
	}
	if b.memory == nil {
		if b.memory, _ = b.room.Get().(*[]byte); b.memory == nil {
			b.memory = new([]byte)
		}
	}
	return (*b.memory)[:0]
}

// take returns all that was held back, and leaves nothing. What it returns is changed
// by what is done with the body next.
func (b *body) take() []byte {
	data := b.visible
	if b.own && b.memory != nil && cap(data) > cap(*b.memory) {
		*b.memory = data[:0]
	}
	if len(b.pending) > 0 {
		data = append(b.pending, data...)
	}
	*b = body{room: b.room, memory: b.memory}
	return data
}

// done lets others have the memory of a body of which nothing is held back.
func (b *body) done() {
	if b.memory != nil && b.size() == 0 && cap(*b.memory) <= maxKept {
		b.room.Put(b.memory)
		b.memory = nil
	}
}

// hold keeps the guest's bytes until it lets them go, as its answer says.
func (b *body) hold(status abi.DataStatus) {
	switch status {
	case abi.DataStopAndBuffer:
		b.claim()
		b.keep = true
	case abi.DataStopAndWatermark:
		b.pending = append(b.pending, b.visible...)
		b.visible, b.own, b.keep, b.open = nil, true, false, false
	default:
		b.visible, b.own, b.keep, b.open = nil, true, false, false
	}
}

// size is how much is held.
func (b *body) size() int { return len(b.visible) + len(b.pending) }
