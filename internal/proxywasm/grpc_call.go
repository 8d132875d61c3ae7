package proxywasm

import (
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// A GRPCCall is a gRPC call or stream of a plugin.
type GRPCCall struct {
	Upstream string // the name of a cluster or, in Envoy, a serialized GrpcService
	Service  string
	Method   string
	Metadata []abi.Pair
	Message  string        // of a unary call
	Timeout  time.Duration // of a unary call; 0 for none
}

// A GRPCStream is an open stream. Its methods must not block.
type GRPCStream interface {
	// Send sends a message, and half-closes the stream after it if end is set.
	Send(message string, end bool)
	// Close half-closes the stream.
	Close()
	// Cancel resets the stream.
	Cancel()
}

// GRPCEvents is how a Caller tells what comes of a call or stream: in this order, from
// any goroutine. After the call has ended they do nothing.
type GRPCEvents struct {
	r    *root
	id   uint32
	call *call
}

func grpcFunctions() []*hostFunc {
	call := []param{{"upstream", text}, {"service", text}, {"method", text}, {"metadata", pairs}}
	return []*hostFunc{
		proxy("proxy_grpc_call", makeGRPCCall, append(call[:4:4], param{"message", blob}, param{"timeout", number}, param{"call", ret32})...),
		proxy("proxy_grpc_stream", openGRPCStream, append(call[:4:4], param{"call", ret32})...),
		proxy("proxy_grpc_send", grpcSend, param{"call", number}, param{"message", blob}, param{"end", number}),
		proxy("proxy_grpc_cancel", grpcCancel, param{"call", number}),
		proxy("proxy_grpc_close", grpcClose, param{"call", number}),
	}
}

// readGRPCCall reads the parameters that calls and streams have in common.
func (in *Instance) readGRPCCall(stack []uint64) (GRPCCall, bool) {
	upstream, ok := in.read(stack, 0)
	service, ok2 := in.read(stack, 2)
	method, ok3 := in.read(stack, 4)
	metadata, ok4 := in.pairs(stack, 6)
	return GRPCCall{Upstream: string(upstream), Service: string(service), Method: string(method), Metadata: metadata},
		ok && ok2 && ok3 && ok4
}

// makeGRPCCall is proxy_grpc_call.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_grpc_call
func makeGRPCCall(in *Instance, stack []uint64) abi.Status {
	c, ok := in.readGRPCCall(stack)
	message, ok2 := in.read(stack, 8)
	if !ok || !ok2 {
		return abi.InvalidMemoryAccess
	}
	c.Message, c.Timeout = string(message), time.Duration(u32(stack, 10))*time.Millisecond
	return in.openGRPC(grpcCall, u32(stack, 11), func(e GRPCEvents) (status abi.Status) {
		e.call.cancel, status = in.vm.cfg.Calls.GRPCCall(c, e)
		return status
	})
}

// openGRPCStream is proxy_grpc_stream.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_grpc_stream
func openGRPCStream(in *Instance, stack []uint64) abi.Status {
	c, ok := in.readGRPCCall(stack)
	if !ok {
		return abi.InvalidMemoryAccess
	}
	return in.openGRPC(grpcStream, u32(stack, 8), func(e GRPCEvents) (status abi.Status) {
		e.call.stream, status = in.vm.cfg.Calls.GRPCStream(c, e)
		return status
	})
}

func (in *Instance) openGRPC(kind, addr uint32, open func(GRPCEvents) abi.Status) abi.Status {
	if status := in.put32(addr, 0); status != abi.OK {
		return status
	}
	r := in.effective.root
	if r == nil {
		return abi.BadArgument
	}
	e := GRPCEvents{r: r, id: in.nextCallID(kind), call: &call{}}
	r.calls[e.id] = e.call
	switch status := open(e); status {
	case abi.OK:
		return in.put32(addr, e.id)
	case abi.InternalFailure: // Envoy tells of the end of a call all the same that failed at once
		e.call.localClosed = true
		return status
	default:
		delete(r.calls, e.id)
		return status
	}
}

// grpcCallOf returns the plugin's call. An id of no gRPC call at all is BadArgument.
func (in *Instance) grpcCallOf(id uint32) (*root, *call, abi.Status) {
	if kind := id & 3; kind != grpcCall && kind != grpcStream {
		return nil, nil, abi.BadArgument
	}
	r := in.effective.root
	if r == nil || r.calls[id] == nil {
		return nil, nil, abi.NotFound
	}
	return r, r.calls[id], abi.OK
}

// grpcSend is proxy_grpc_send.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_grpc_send
func grpcSend(in *Instance, stack []uint64) abi.Status {
	message, ok := in.read(stack, 1)
	if !ok {
		return abi.InvalidMemoryAccess
	}
	if u32(stack, 0)&3 != grpcStream {
		return abi.BadArgument
	}
	_, w, status := in.grpcCallOf(u32(stack, 0))
	if status != abi.OK {
		return status
	}
	w.stream.Send(string(message), u32(stack, 3) != 0)
	return abi.OK
}

// grpcCancel is proxy_grpc_cancel: nothing more comes of the call.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_grpc_cancel
func grpcCancel(in *Instance, stack []uint64) abi.Status {
	r, w, status := in.grpcCallOf(u32(stack, 0))
	if status != abi.OK {
		return status
	}
	w.giveUp()
	delete(r.calls, u32(stack, 0))
	return abi.OK
}

// grpcClose is proxy_grpc_close: it cancels a call, but only half-closes a stream,
// which goes on to receive.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_grpc_close
func grpcClose(in *Instance, stack []uint64) abi.Status {
	r, w, status := in.grpcCallOf(u32(stack, 0))
	switch {
	case status != abi.OK:
		return status
	case w.stream == nil:
		return grpcCancel(in, stack)
	}
	w.stream.Close()
	if w.localClosed = true; w.remoteClosed {
		delete(r.calls, u32(stack, 0))
	}
	return abi.OK
}

// post calls f in the instance, unless the call has ended.
func (e GRPCEvents) post(f func(r *root)) {
	e.r.in.post(func() {
		if e.r.calls[e.id] == e.call {
			f(e.r)
		}
	})
}

func (e GRPCEvents) unary() bool { return e.id&3 == grpcCall }

// InitialMetadata is proxy_on_grpc_receive_initial_metadata. Envoy tells it of streams
// only.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_on_grpc_receive_initial_metadata
func (e GRPCEvents) InitialMetadata(h Headers) {
	e.post(func(r *root) {
		if e.unary() {
			return
		}
		r.grpcInitial = h
		r.in.call(&r.Context, onGRPCReceiveInitialMetadata, r.id, e.id, size(h))
		r.grpcInitial = nil
	})
}

// Message is proxy_on_grpc_receive. It ends a unary call.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_on_grpc_receive
func (e GRPCEvents) Message(message string) {
	e.post(func(r *root) {
		r.grpcMessage = message
		r.in.call(&r.Context, onGRPCReceive, r.id, e.id, uint32(len(message)))
		r.grpcMessage = ""
		if e.unary() {
			delete(r.calls, e.id)
		}
	})
}

// TrailingMetadata is proxy_on_grpc_receive_trailing_metadata. Envoy tells it of
// streams only.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_on_grpc_receive_trailing_metadata
func (e GRPCEvents) TrailingMetadata(h Headers) {
	e.post(func(r *root) {
		if e.unary() {
			return
		}
		r.grpcTrailing = h
		r.in.call(&r.Context, onGRPCReceiveTrailingMetadata, r.id, e.id, size(h))
		r.grpcTrailing = nil
	})
}

// Close is proxy_on_grpc_close: of a stream that the other side closed, or of a unary
// call that failed.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_on_grpc_close
func (e GRPCEvents) Close(status uint32, message string) {
	e.post(func(r *root) {
		e.call.remoteClosed = true
		r.status, r.statusMessage = status, message
		r.in.call(&r.Context, onGRPCClose, r.id, e.id, status)
		r.statusMessage = ""
		if e.unary() || e.call.localClosed {
			delete(r.calls, e.id)
		}
	})
}
