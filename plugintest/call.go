package plugintest

import (
	"fmt"
	"slices"
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// A Call is an HTTP request that the plugin makes itself.
type Call struct {
	Upstream string        // the name of whom it calls
	Request  Request       // what it sends
	Timeout  time.Duration // how long it waits, 0 for ever; Envoy answers 504 when it is over

	p        *Plugin
	answer   func(proxywasm.HTTPAnswer)
	answered bool
	canceled bool
}

// Answer is the answer to the call. The plugin's callback has returned when it does.
func (c *Call) Answer(r Response) {
	c.p.t.Helper()
	body := ""
	for _, chunk := range chunks(r.Body, r.Chunks) {
		body += chunk
	}
	c.end(proxywasm.HTTPAnswer{Headers: r.fields(), Body: body, Trailers: orNil(trailersOf(r.Trailers))})
}

// Fail is no answer to the call: the connection broke.
func (c *Call) Fail() {
	c.p.t.Helper()
	c.end(proxywasm.HTTPAnswer{})
}

func (c *Call) end(a proxywasm.HTTPAnswer) {
	c.p.t.Helper()
	if c.answered {
		c.p.t.Fatalf("the call to %s is answered already", c.Upstream)
	}
	c.answered = true
	c.answer(a)
	c.p.settle()
}

// Waiting reports whether the plugin waits for the answer.
func (c *Call) Waiting() bool { return !c.answered && !c.canceled }

// Calls returns all HTTP calls that the plugin made so far, the first one first.
func (p *Plugin) Calls() []*Call { return slices.Clone(p.calls) }

// Call returns the first HTTP call to the upstream whose answer the plugin waits for.
// If there is none the test fails.
func (p *Plugin) Call(upstream string) *Call {
	p.t.Helper()
	for _, c := range p.calls {
		if c.Upstream == upstream && c.Waiting() {
			return c
		}
	}
	p.t.Fatalf("the plugin waits for no HTTP call to %s%s", upstream, p.waitsFor())
	return nil
}

// pending are those whose answers the plugin waits for.
func (p *Plugin) pending() []string {
	var all []string
	for _, c := range p.calls {
		if c.Waiting() {
			all = append(all, c.Upstream)
		}
	}
	for _, c := range p.grpcCalls {
		if c.Waiting() {
			all = append(all, c.Upstream)
		}
	}
	return all
}

// waitsFor says so.
func (p *Plugin) waitsFor() string {
	if all := p.pending(); len(all) > 0 {
		return fmt.Sprintf("; it waits for calls to %q", all)
	}
	return ""
}

// A GRPCCall is a gRPC call that the plugin makes, or a stream that it opens.
type GRPCCall struct {
	Upstream        string // the name of whom it calls, or Envoy's GrpcService, encoded
	Service, Method string
	Metadata        Headers
	Stream          bool          // a stream, not a unary call
	Timeout         time.Duration // of a unary call: how long it waits, 0 for ever

	// Messages are what the plugin sent so far: one, for a unary call.
	Messages []string
	// HalfClosed says that the plugin sends no more.
	HalfClosed bool

	p        *Plugin
	events   proxywasm.GRPCEvents
	over     bool
	canceled bool
}

// InitialMetadata is what the server sends first. Plugins learn of it in streams only.
func (c *GRPCCall) InitialMetadata(h Headers) {
	c.p.t.Helper()
	c.tell(func() { c.events.InitialMetadata(proxywasm.NewFields(h.pairs()...)) })
}

// Send is a message of the server's. It ends a unary call.
func (c *GRPCCall) Send(message string) {
	c.p.t.Helper()
	c.tell(func() {
		c.over = !c.Stream
		c.events.Message(message)
	})
}

// TrailingMetadata is what the server sends last. Plugins learn of it in streams only.
func (c *GRPCCall) TrailingMetadata(h Headers) {
	c.p.t.Helper()
	c.tell(func() { c.events.TrailingMetadata(proxywasm.NewFields(h.pairs()...)) })
}

// Close is the end of a stream, or of a unary call that failed.
func (c *GRPCCall) Close(status int, message string) {
	c.p.t.Helper()
	c.tell(func() {
		c.over = true
		c.events.Close(uint32(status), message)
	})
}

func (c *GRPCCall) tell(event func()) {
	c.p.t.Helper()
	if c.over {
		c.p.t.Fatalf("the gRPC call to %s is over", c.Upstream)
	}
	event()
	c.p.settle()
}

// Waiting reports whether the plugin waits for more.
func (c *GRPCCall) Waiting() bool { return !c.over && !c.canceled }

// GRPCCalls returns all gRPC calls and streams of the plugin so far, the first one first.
func (p *Plugin) GRPCCalls() []*GRPCCall { return slices.Clone(p.grpcCalls) }

// GRPCCall returns the first gRPC call or stream to the upstream that is not over. If
// there is none the test fails.
func (p *Plugin) GRPCCall(upstream string) *GRPCCall {
	p.t.Helper()
	for _, c := range p.grpcCalls {
		if c.Upstream == upstream && c.Waiting() {
			return c
		}
	}
	p.t.Fatalf("the plugin waits for no gRPC call to %s%s", upstream, p.waitsFor())
	return nil
}

// caller takes the plugin's calls down.
type caller struct{ p *Plugin }

func (c caller) HTTPCall(call proxywasm.HTTPCall, answer func(proxywasm.HTTPAnswer)) (func(), abi.Status) {
	respond, known := c.p.cfg.Upstreams[call.Upstream]
	if !known && c.p.cfg.Upstreams != nil {
		return nil, abi.BadArgument
	}
	made := &Call{
		Upstream: call.Upstream, Timeout: call.Timeout, p: c.p, answer: answer,
		Request: requestOf(proxywasm.NewRequestFields(call.Headers...), call.Body, proxywasm.NewFields(call.Trailers...)),
	}
	c.p.calls = append(c.p.calls, made)
	if respond != nil {
		c.p.queue = append(c.p.queue, func() {
			if made.Waiting() {
				made.Answer(respond(made.Request))
			}
		})
	}
	return func() { made.canceled = true }, abi.OK
}

func (c caller) GRPCCall(call proxywasm.GRPCCall, events proxywasm.GRPCEvents) (func(), abi.Status) {
	made := c.grpc(call, events)
	made.Messages, made.HalfClosed, made.Timeout = []string{call.Message}, true, call.Timeout
	return func() { made.canceled = true }, abi.OK
}

func (c caller) GRPCStream(call proxywasm.GRPCCall, events proxywasm.GRPCEvents) (proxywasm.GRPCStream, abi.Status) {
	made := c.grpc(call, events)
	made.Stream = true
	return grpcStream{made}, abi.OK
}

func (c caller) grpc(call proxywasm.GRPCCall, events proxywasm.GRPCEvents) *GRPCCall {
	made := &GRPCCall{
		Upstream: call.Upstream, Service: call.Service, Method: call.Method,
		Metadata: headersOf(proxywasm.NewFields(call.Metadata...)), p: c.p, events: events,
	}
	c.p.grpcCalls = append(c.p.grpcCalls, made)
	return made
}

// grpcStream is the plugin's side of a stream.
type grpcStream struct{ c *GRPCCall }

func (s grpcStream) Send(message string, end bool) {
	s.c.Messages = append(s.c.Messages, message)
	s.c.HalfClosed = s.c.HalfClosed || end
}

func (s grpcStream) Close()  { s.c.HalfClosed = true }
func (s grpcStream) Cancel() { s.c.canceled = true }
