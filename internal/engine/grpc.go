package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/engine/http1"
	"github.com/chandler-proxy/chandler/internal/engine/upstream"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

const (
	grpcHeader = 5 // bytes before each message: a flag, and the length
	grpcPlain  = 0 // the flag of a message that is not compressed
)

// A grpcTarget is where a plugin's call goes.
type grpcTarget struct {
	cluster   *upstream.Cluster
	authority string
	metadata  []abi.Pair // that the service says to add
}

// grpcTarget reads what a plugin calls: a serialized GrpcService, or the name of a
// cluster. What the engine does not do of a GrpcService is Unimplemented, with the
// reason in the log; an unknown cluster is what Envoy answers.
func (c calls) grpcTarget(to string) (grpcTarget, abi.Status) {
	service := new(corev3.GrpcService)
	if err := proto.Unmarshal([]byte(to), service); err != nil {
		cluster := c.s.cluster(to)
		if cluster == nil {
			return grpcTarget{}, abi.ParseFailure
		}
		return grpcTarget{cluster: cluster, authority: to}, abi.OK
	}
	if err := understoodService(service); err != nil {
		c.s.e.cfg.Log.Warn("refuse a plugin's gRPC service", "error", err)
		return grpcTarget{}, abi.Unimplemented
	}
	name := service.GetEnvoyGrpc().GetClusterName()
	t := grpcTarget{cluster: c.s.cluster(name), authority: name}
	if t.cluster == nil {
		return t, abi.BadArgument
	}
	if a := service.GetEnvoyGrpc().GetAuthority(); a != "" {
		t.authority = a
	}
	for _, h := range service.GetInitialMetadata() {
		t.metadata = append(t.metadata, abi.Pair{Key: strings.ToLower(h.GetKey()), Value: h.GetValue()})
	}
	return t, abi.OK
}

// understoodService tells what of a GrpcService the engine does not do.
func understoodService(s *corev3.GrpcService) error {
	e := s.GetEnvoyGrpc()
	switch {
	case s.GetGoogleGrpc() != nil:
		return errors.New("google_grpc is not supported by the engine")
	case e == nil:
		return errors.New("envoy_grpc is required")
	case s.GetRetryPolicy() != nil, e.GetRetryPolicy() != nil:
		return errors.New("retry_policy is not supported by the engine")
	case e.GetMaxReceiveMessageLength() != nil:
		return errors.New("envoy_grpc.max_receive_message_length is not supported by the engine")
	}
	for _, h := range s.GetInitialMetadata() {
		if strings.Contains(h.GetValue(), "%") || len(h.GetRawValue()) > 0 {
			return fmt.Errorf("initial_metadata: %s: only plain values are supported by the engine", h.GetKey())
		}
	}
	return nil
}

// GRPCCall makes a unary call.
func (c calls) GRPCCall(call proxywasm.GRPCCall, events proxywasm.GRPCEvents) (func(), abi.Status) {
	g, status := c.openGRPC(call, events, true)
	if status != abi.OK {
		return nil, status
	}
	g.Send(call.Message, true)
	return g.Cancel, abi.OK
}

// GRPCStream opens a stream.
func (c calls) GRPCStream(call proxywasm.GRPCCall, events proxywasm.GRPCEvents) (proxywasm.GRPCStream, abi.Status) {
	g, status := c.openGRPC(call, events, false)
	if status != abi.OK {
		return nil, status
	}
	return g, abi.OK
}

// openGRPC starts a call. It goes on until it is answered, fails, is cancelled, or the
// engine ends.
func (c calls) openGRPC(call proxywasm.GRPCCall, events proxywasm.GRPCEvents, unary bool) (*grpcStream, abi.Status) {
	target, status := c.grpcTarget(call.Upstream)
	if status != abi.OK {
		return nil, status
	}
	g := &grpcStream{events: events, unary: unary, target: target, head: grpcHead(call, target)}
	g.ctx, g.cancel = callContext(c.s.ctx, call.Timeout)
	g.moved = sync.NewCond(&g.mu)
	host := target.cluster.Choose(upstream.Wanted{})
	if host == nil { // Envoy fails the call, and yet tells of its end
		target.cluster.Stats.NoneHealthy.Inc()
		g.refused(503, "no healthy upstream", "no_healthy_upstream")
		g.Cancel()
		return nil, abi.InternalFailure
	}
	c.s.workers.Go(func() { g.run(host) })
	return g, abi.OK
}

// grpcHead is the head of the request, in Envoy's order.
func grpcHead(call proxywasm.GRPCCall, t grpcTarget) *http1.Fields {
	f := proxywasm.NewRequestFields(
		abi.Pair{Key: ":method", Value: "POST"},
		abi.Pair{Key: ":path", Value: "/" + call.Service + "/" + call.Method},
		abi.Pair{Key: ":authority", Value: t.authority},
		abi.Pair{Key: ":scheme", Value: "http"},
		abi.Pair{Key: "te", Value: "trailers"},
	)
	if call.Timeout > 0 {
		f.Add("grpc-timeout", grpcTimeout(call.Timeout))
	}
	f.Add("content-type", "application/grpc")
	for _, list := range [][]abi.Pair{t.metadata, call.Metadata} {
		for _, p := range list {
			f.Add(p.Key, p.Value)
		}
	}
	addInternal(f, call.Timeout)
	return f
}

// grpcTimeout writes a timeout as gRPC does, in at most eight digits.
func grpcTimeout(d time.Duration) string {
	const most = 99_999_999
	for _, unit := range []struct {
		size time.Duration
		name string
	}{{time.Millisecond, "m"}, {time.Second, "S"}, {time.Minute, "M"}} {
		if n := d / unit.size; n <= most {
			return strconv.FormatInt(int64(n), 10) + unit.name
		}
	}
	return strconv.FormatInt(int64(min(d/time.Hour, most)), 10) + "H"
}

// A grpcStream is one call of a plugin, unary or not. Its methods do not block: what
// is sent waits until the upstream takes it.
type grpcStream struct {
	events proxywasm.GRPCEvents
	unary  bool
	target grpcTarget
	head   *http1.Fields
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	moved  *sync.Cond
	queue  [][]byte  // messages, framed
	closed bool      // nothing more is sent after them
	over   bool      // nothing more is wanted
	done   time.Time // when all was sent; zero before
	why    string    // what became of the call, in Envoy's words
}

// Send is [proxywasm.GRPCStream]'s, as are the following.
func (g *grpcStream) Send(message string, end bool) {
	frame := make([]byte, grpcHeader, grpcHeader+len(message))
	binary.BigEndian.PutUint32(frame[1:], uint32(len(message)))
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.queue, g.closed = append(g.queue, append(frame, message...)), end
	}
	g.moved.Broadcast()
}

// Close half-closes the stream.
func (g *grpcStream) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.moved.Broadcast()
}

// Cancel resets the stream.
func (g *grpcStream) Cancel() {
	g.cancel()
	g.stop()
}

func (g *grpcStream) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.over = true
	g.moved.Broadcast()
}

// next waits for something to send. more is false if it is the last.
func (g *grpcStream) next() (frames [][]byte, more bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.queue) == 0 && !g.closed && !g.over {
		g.moved.Wait()
	}
	frames, g.queue = g.queue, nil
	return frames, !g.closed
}

// run makes the call and tells the plugin what comes of it.
func (g *grpcStream) run(host *upstream.Host) {
	defer g.cancel()
	x, err := host.Start(g.ctx, upstream.Request{Fields: g.head})
	if err != nil {
		g.failed(err)
		return
	}
	defer x.Finish()
	stop := context.AfterFunc(g.ctx, x.Cancel)
	defer stop()
	var sending sync.WaitGroup
	sending.Go(func() { g.sendAll(x) })
	defer sending.Wait()
	defer x.Cancel() // whoever is sending stops
	defer g.stop()
	resp, err := x.Response()
	if err != nil {
		g.failed(err)
		return
	}
	g.why = "via_upstream"
	g.mu.Lock()
	if !g.done.IsZero() {
		resp.Fields.Add(serviceTime, strconv.FormatInt(time.Since(g.done).Milliseconds(), 10))
	}
	g.mu.Unlock()
	g.receive(resp)
}

// sendAll sends what the plugin does until it ends its side. What goes wrong the
// response tells.
func (g *grpcStream) sendAll(x upstream.Exchange) {
	for more := true; more; {
		var frames [][]byte
		frames, more = g.next()
		for _, f := range frames {
			if x.Send(f, false) != nil {
				return
			}
		}
		g.mu.Lock()
		more = more && !g.over
		cancelled := g.over && !g.closed
		g.mu.Unlock()
		if cancelled {
			return
		}
	}
	g.mu.Lock()
	g.done = time.Now() // before the response can come
	g.mu.Unlock()
	_ = x.SendEnd(nil)
}

// failed ends a call that got no answer, as Envoy words it.
func (g *grpcStream) failed(err error) {
	if errors.Is(g.ctx.Err(), context.DeadlineExceeded) {
		g.target.cluster.Stats.Timeout.Inc()
		g.refused(504, "upstream request timeout", "response_timeout")
		return
	}
	g.target.cluster.Stats.Answered(503)
	g.refused(503, "upstream connect error or disconnect/reset before headers. reset reason: "+err.Error(),
		"upstream_reset_before_response_started{"+upstream.Details(err)+"}")
}

// refused ends a call as if the upstream had answered so: the proxy's own answer.
func (g *grpcStream) refused(status int, message, why string) {
	g.why = why
	f := proxywasm.NewFields(
		abi.Pair{Key: ":status", Value: "200"},
		abi.Pair{Key: "content-type", Value: "application/grpc"},
		abi.Pair{Key: "grpc-status", Value: strconv.Itoa(int(httpToGRPC(status)))},
		abi.Pair{Key: "grpc-message", Value: message},
	)
	g.receive(&upstream.Response{Fields: f, End: true})
}

// httpToGRPC is the status of an answer that has none of gRPC's.
//
// https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md
func httpToGRPC(status int) codes.Code {
	switch status {
	case 400:
		return codes.Internal
	case 401:
		return codes.Unauthenticated
	case 403:
		return codes.PermissionDenied
	case 404:
		return codes.Unimplemented
	case 429, 502, 503, 504:
		return codes.Unavailable
	}
	return codes.Unknown
}

// receive tells of an answer: Envoy's AsyncStreamImpl.
func (g *grpcStream) receive(resp *upstream.Response) {
	code, _ := resp.Fields.Get(":status")
	status, _ := strconv.Atoi(code)
	g.target.cluster.Stats.Answered(status)
	initial := resp.Fields
	if resp.End || status != 200 {
		initial = proxywasm.NewFields()
	}
	g.events.InitialMetadata(initial)
	_, told := resp.Fields.Get("grpc-status")
	switch {
	case resp.End && (told || status == 200):
		g.end(resp.Fields)
	case status != 200:
		g.broken(httpToGRPC(status))
	default:
		g.messages(resp.Body)
	}
}

// messages tells of each message, and of the end.
func (g *grpcStream) messages(body upstream.Body) {
	var last string
	got := false
	for {
		message, err := readMessage(body)
		switch {
		case errors.Is(err, io.EOF) && body.Trailers() == nil:
			g.broken(codes.Unknown)
			return
		case errors.Is(err, io.EOF):
			if g.unary {
				g.endUnary(body.Trailers(), last, got)
			} else {
				g.end(body.Trailers())
			}
			return
		case err != nil:
			g.broken(codes.Internal)
			return
		}
		last, got = message, true
		if !g.unary {
			g.events.Message(message)
		}
	}
}

var errMessage = errors.New("malformed message")

// readMessage reads one message. [io.EOF] is the end, between messages.
func readMessage(r io.Reader) (string, error) {
	var head [grpcHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size > maxAnswer || head[0] != grpcPlain && size > 0 {
		return "", errMessage
	}
	var b bytes.Buffer
	_, err := io.CopyN(&b, r, int64(size))
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return b.String(), err
}

// endUnary ends a unary call: with its message if all is well.
func (g *grpcStream) endUnary(trailers *http1.Fields, message string, got bool) {
	status, text := statusIn(trailers)
	switch {
	case status != codes.OK:
		g.close(status, text)
	case !got:
		g.events.Close(uint32(codes.Internal), "")
	default:
		g.events.Message(message)
	}
}

// end ends a call by what its trailers say.
func (g *grpcStream) end(trailers *http1.Fields) {
	if g.unary {
		g.endUnary(trailers, "", false)
		return
	}
	g.events.TrailingMetadata(trailers)
	status, text := statusIn(trailers)
	g.close(status, text)
}

// broken ends a call that has no trailers.
func (g *grpcStream) broken(status codes.Code) {
	g.events.TrailingMetadata(proxywasm.NewFields())
	g.close(status, "")
}

// close ends a call. As in Envoy the plugin is told also what became of it.
func (g *grpcStream) close(status codes.Code, message string) {
	if message == "" {
		message = g.why
	} else {
		message += "{" + g.why + "}"
	}
	g.events.Close(uint32(status), message)
}

// statusIn reads the status of gRPC. One that is no number is Unknown, as Envoy has
// it, and so is none.
func statusIn(f *http1.Fields) (codes.Code, string) {
	text, _ := f.Get("grpc-status")
	message, _ := f.Get("grpc-message")
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return codes.Unknown, message
	}
	return codes.Code(n), message
}
