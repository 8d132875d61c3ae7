package proxywasm

import (
	"strconv"
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// A Caller makes the calls that plugins ask for. It is used by many goroutines, while
// a guest runs, and must not block. What it returns besides OK reaches the guest; then
// it calls nothing back. Cancel functions may be called at any time, more than once.
type Caller interface {
	// HTTPCall sends a request and has answer called once with what comes of it, from
	// any goroutine. An unknown upstream is BadArgument, as in Envoy.
	HTTPCall(call HTTPCall, answer func(HTTPAnswer)) (cancel func(), status abi.Status)
	// GRPCCall makes a unary call. Its message, or its closing, ends it. An unknown
	// upstream is ParseFailure, as in Envoy; InternalFailure is a call that fails at
	// once, and is closed all the same.
	GRPCCall(call GRPCCall, events GRPCEvents) (cancel func(), status abi.Status)
	// GRPCStream opens a stream.
	GRPCStream(call GRPCCall, events GRPCEvents) (stream GRPCStream, status abi.Status)
}

// An HTTPCall is a request of a plugin. It has the pseudo-headers :method, :path and
// :authority, and a content-length if it has a body.
type HTTPCall struct {
	Upstream string
	Headers  []abi.Pair // names in lower case
	Body     string
	Trailers []abi.Pair
	Timeout  time.Duration // 0 for none; Envoy answers 504 when it is over
}

// An HTTPAnswer is what came of an HTTPCall. Headers are nil if nothing came.
type HTTPAnswer struct {
	Headers  Headers
	Body     string
	Trailers Headers // may be nil
}

// A call is one that a plugin waits for.
type call struct {
	cancel                    func()
	stream                    GRPCStream // nil unless it is a gRPC stream
	localClosed, remoteClosed bool
}

// The kinds of calls; an id has its in the two lowest bits, as in Envoy.
const (
	httpCall = iota
	grpcCall
	grpcStream
)

func httpCallFunctions() []*hostFunc {
	return []*hostFunc{
		proxy("proxy_http_call", makeHTTPCall, param{"upstream", text}, param{"headers", pairs}, param{"body", blob},
			param{"trailers", pairs}, param{"timeout", number}, param{"call", ret32}),
	}
}

// makeHTTPCall is proxy_http_call.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_http_call
func makeHTTPCall(in *Instance, stack []uint64) abi.Status {
	upstream, ok := in.read(stack, 0)
	headers, ok2 := in.pairs(stack, 2)
	body, ok3 := in.read(stack, 4)
	trailers, ok4 := in.pairs(stack, 6)
	if !ok || !ok2 || !ok3 || !ok4 {
		return abi.InvalidMemoryAccess
	}
	timeout := int32(u32(stack, 8))
	// The address is tried before anything is sent.
	if status := in.put32(u32(stack, 9), 0); status != abi.OK {
		return status
	}
	r := in.effective.root
	if r == nil || timeout < 0 {
		return abi.BadArgument
	}
	c := HTTPCall{
		Upstream: string(upstream), Headers: headers, Body: string(body), Trailers: trailers,
		Timeout: time.Duration(timeout) * time.Millisecond,
	}
	if !c.complete() {
		return abi.BadArgument
	}
	id := in.nextCallID(httpCall)
	w := &call{}
	r.calls[id] = w
	cancel, status := in.vm.cfg.Calls.HTTPCall(c, func(a HTTPAnswer) {
		in.post(func() { r.httpAnswer(id, w, a) })
	})
	if status != abi.OK {
		delete(r.calls, id)
		return status
	}
	w.cancel = cancel
	return in.put32(u32(stack, 9), id)
}

// complete reports whether the request can be sent, and adds what follows from the rest.
func (c *HTTPCall) complete() bool {
	var method, path, authority bool
	f := NewFields(c.Headers...)
	for i, h := range f.pairs {
		switch h.Key {
		case ":method":
			method = true
		case ":path":
			path = true
		case "host":
			f.pairs[i].Key = ":authority" // Envoy knows no host
			authority = true
		case ":authority":
			authority = true
		}
	}
	if c.Body != "" {
		f.Set("content-length", strconv.Itoa(len(c.Body)))
	}
	c.Headers = f.pairs
	return method && path && authority
}

func (in *Instance) nextCallID(kind uint32) uint32 {
	in.nextCall[kind] += 4
	return in.nextCall[kind]
}

// httpAnswer is proxy_on_http_call_response. A call that failed has no headers.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_on_http_call_response
func (r *root) httpAnswer(id uint32, w *call, a HTTPAnswer) {
	if r.calls[id] != w {
		return
	}
	if a.Headers == nil {
		r.status, r.statusMessage = uint32(abi.BrokenConnection), "reset"
		r.in.call(&r.Context, onHTTPCallResponse, r.id, id, 0, 0, 0)
		r.statusMessage = ""
	} else {
		r.callHeaders, r.callBody, r.callTrailers, r.inCall = a.Headers, a.Body, a.Trailers, true
		r.in.call(&r.Context, onHTTPCallResponse, r.id, id, size(a.Headers), uint32(len(a.Body)), size(a.Trailers))
		r.callHeaders, r.callBody, r.callTrailers, r.inCall = nil, "", nil, false
	}
	delete(r.calls, id)
}

func size(h Headers) uint32 {
	if h == nil {
		return 0
	}
	return uint32(h.Len())
}

// cancelCalls gives up all calls.
func (r *root) cancelCalls() {
	for id, w := range r.calls {
		w.giveUp()
		delete(r.calls, id)
	}
}

func (w *call) giveUp() {
	switch {
	case w.stream != nil:
		w.stream.Cancel()
	case w.cancel != nil:
		w.cancel()
	}
}

// noCalls knows no upstream.
type noCalls struct{}

func (noCalls) HTTPCall(HTTPCall, func(HTTPAnswer)) (func(), abi.Status) {
	return nil, abi.BadArgument
}

func (noCalls) GRPCCall(GRPCCall, GRPCEvents) (func(), abi.Status) { return nil, abi.ParseFailure }

func (noCalls) GRPCStream(GRPCCall, GRPCEvents) (GRPCStream, abi.Status) {
	return nil, abi.ParseFailure
}
