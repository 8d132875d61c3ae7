package spec

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/chandler-proxy/chandler/internal/spec/document"
	"github.com/chandler-proxy/chandler/plugintest"
)

// A suiteRun is one run of a test of our own form.
type suiteRun struct {
	*run
	test    test
	backend *response

	plugin  *plugintest.Plugin
	stream  *plugintest.Stream // of the last request
	steps   bool               // that request, or its response, comes in more than one
	conn    *plugintest.Conn   // the last one
	reached *plugintest.Request
	called  []madeCall // foreign functions, in this step

	logs, calls, grpc, trace, traps int // how many there were before the step
}

func (r *suiteRun) all(module string) {
	cfg := r.test.Plugin.config(r.test.Properties)
	cfg.Backend = func(got plugintest.Request) plugintest.Response {
		r.reached = &got
		if r.backend == nil {
			return plugintest.Response{}
		}
		return r.backend.response()
	}
	cfg.Functions = r.functions()
	m := r.module(module)
	r.mark()
	var err error
	r.plugin, err = m.TryStart(r.run, cfg)
	if !r.started(err) {
		return
	}
	for _, s := range r.test.Steps {
		r.mark()
		r.line, r.path = s.At.Line, s.At.Path
		r.take(s)
		if r.trapped() {
			return
		}
		if s.Expect != nil {
			r.check(s.Expect)
		}
	}
}

// functions are those of the test, which take down that they are called.
func (r *suiteRun) functions() map[string]func([]byte) ([]byte, error) {
	all := map[string]func([]byte) ([]byte, error){}
	for name, f := range r.test.Plugin.Functions {
		all[name] = func(arguments []byte) ([]byte, error) {
			r.called = append(r.called, madeCall{name, string(arguments)})
			if f.fails {
				return nil, errors.New("the test wants it so")
			}
			return []byte(f.result), nil
		}
	}
	return all
}

// started checks how the plugin started, and reports whether it can go on.
func (r *suiteRun) started(err error) bool {
	want := r.test.StartFails
	switch {
	case want != nil && err == nil:
		r.failAt(want.at.Line, "%s: the plugin starts", want.at.Path)
	case want != nil:
		want.check(r.run, err.Error(), true)
	case err != nil:
		r.Errorf("the plugin does not start: %v%s", err, told(r.plugin.Logs()))
	}
	if r.test.Start != nil {
		r.check(r.test.Start)
	}
	return err == nil && want == nil
}

// trapped reports whether the test failed because the plugin did. What it logged then,
// such as where it panicked, becomes part of that failure.
func (r *suiteRun) trapped() bool {
	if isTrue(r.test.Plugin.MayFail) || len(r.plugin.Failures()) == 0 {
		return false
	}
	r.failures[len(r.failures)-1].text += told(after(r.plugin.Logs(), r.logs))
	return true
}

// maxTold is how many log lines explain a failure.
const maxTold = 50

// told are log lines, for a failure that they may explain.
func told(lines []plugintest.Line) string {
	var b strings.Builder
	for _, l := range lines[max(0, len(lines)-maxTold):] {
		fmt.Fprintf(&b, "\nit logged %s", l)
	}
	return b.String()
}

// mark remembers what happened before a step.
func (r *suiteRun) mark() {
	r.called = nil
	if p := r.plugin; p != nil {
		r.logs, r.calls, r.grpc = len(p.Logs()), len(p.Calls()), len(p.GRPCCalls())
		r.trace, r.traps = len(p.Trace()), len(p.Failures())
	}
}

// after is what of a list came after a mark. A trace is cut at times; then it is all.
func after[T any](list []T, mark int) []T {
	if mark > len(list) {
		return list
	}
	return list[mark:]
}

// take has the step happen.
func (r *suiteRun) take(s step) {
	p := r.plugin
	switch {
	case s.Request != nil:
		r.begin(*s.Request)
	case s.Last != nil, s.Trailers != nil, s.Respond != nil, s.ReplyLast != nil, s.ReplyEnd != nil, s.Broken, s.Cancel:
		r.proceed(s)
	case s.Answer != nil:
		r.answer(*s.Answer)
	case s.GRPC != nil:
		r.answerGRPC(*s.GRPC)
	case s.Connect != nil:
		r.conn = p.Connect(values(s.Connect.Properties))
		r.stream = nil
	case s.Send != nil && r.stream != nil:
		r.stream.Send(s.Send.String())
	case s.Send != nil:
		r.needConn().Send(s.Send.String())
	case s.Reply != nil && r.stream != nil:
		r.stream.Reply(s.Reply.String())
	case s.Reply != nil:
		r.needConn().Reply(s.Reply.String())
	case s.Close != "":
		r.close(r.needConn(), s.Close)
	case s.Tick > 0:
		for range s.Tick {
			p.Tick()
		}
	case s.Advance > 0:
		p.Advance(s.Advance)
	case s.Enqueue != nil:
		p.Enqueue(s.Enqueue.Queue, string(s.Enqueue.Item))
	case s.Function != nil:
		p.CallFunction(s.Function.Function, []byte(s.Function.Arguments.String()))
	}
	sorted(s.SetShared, func(key string, value text) { p.SetShared(key, string(value)) })
}

// proceed has a request go on that comes in steps.
func (r *suiteRun) proceed(s step) {
	stream := r.needStream()
	switch {
	case s.Last != nil:
		stream.SendLast(s.Last.String())
	case s.Trailers != nil:
		stream.SendTrailers(plugintest.Headers(*s.Trailers))
	case s.Respond != nil:
		stream.Respond(s.Respond.response())
	case s.ReplyLast != nil:
		stream.ReplyLast(s.ReplyLast.String())
	case s.ReplyEnd != nil:
		stream.ReplyTrailers(plugintest.Headers(*s.ReplyEnd))
	case s.Broken:
		stream.Fail()
	case s.Cancel:
		stream.Cancel()
	}
}

func (r *suiteRun) close(c *plugintest.Conn, who string) {
	switch who {
	case "client":
		c.CloseClient()
	case "server":
		c.CloseServer()
	case "half":
		c.CloseWrite()
	}
}

func (r *suiteRun) needStream() *plugintest.Stream {
	if r.stream == nil {
		r.Fatalf("there was no request yet, in a step before")
	}
	return r.stream
}

func (r *suiteRun) needConn() *plugintest.Conn {
	if r.conn == nil {
		r.Fatalf("there is no connection yet: connect in a step before")
	}
	return r.conn
}

// begin sends a request.
func (r *suiteRun) begin(q request) {
	r.reached, r.conn = nil, nil
	sent := plugintest.Request{
		Method: q.Method, Scheme: q.Scheme, Host: q.Host, Path: q.Path,
		Headers: plugintest.Headers(q.Headers), Body: q.Body.String(), Chunks: stringsOf(q.Chunks), Trailers: plugintest.Headers(q.Trailers),
		Properties: values(q.Properties), More: q.More,
	}
	r.steps = q.More || q.Open || q.Backend != nil && q.Backend.More
	if q.Open {
		r.stream = r.plugin.Open(nil)
		r.stream.Request(sent)
		return
	}
	if q.Backend != nil {
		sent.Backend = func(got plugintest.Request) plugintest.Response {
			r.reached = &got
			return q.Backend.response()
		}
	}
	r.stream = r.plugin.Begin(sent)
}

func (r *suiteRun) answer(a answer) {
	call := r.plugin.Call(a.Upstream)
	if a.Fails {
		call.Fail()
		return
	}
	call.Answer((&response{Status: a.Status, Headers: a.Headers, Body: a.Body, Trailers: a.Trailers}).response())
}

func (r *suiteRun) answerGRPC(a grpcAnswer) {
	call := r.plugin.GRPCCall(a.Upstream)
	if a.InitialMetadata != nil {
		call.InitialMetadata(plugintest.Headers(a.InitialMetadata))
	}
	for _, m := range a.Messages {
		call.Send(string(m))
	}
	if a.TrailingMetadata != nil {
		call.TrailingMetadata(plugintest.Headers(a.TrailingMetadata))
	}
	if a.Close != nil {
		call.Close(a.Close.Status, a.Close.Message)
	}
}

// check compares what happened in a step with what was to be expected.
func (r *suiteRun) check(e *expect) {
	before := len(r.failures)
	defer func() {
		slices.SortStableFunc(r.failures[before:], func(a, b failure) int { return a.line - b.line })
	}()
	p := r.plugin
	r.checkStream(e)
	r.checkConn(e)
	sorted(e.Properties, func(path string, w matcher) {
		got, ok := r.property(path)
		w.check(r.run, got, ok)
	})
	e.Returns.check(r.run, after(p.Trace(), r.trace))
	for _, w := range e.Logs {
		w.check(r.run, after(p.Logs(), r.logs))
	}
	sorted(e.Metrics, func(name string, w wantMetric) { w.check(r.run, p, name) })
	sorted(e.Shared, func(key string, w matcher) {
		got, ok := p.Shared(key)
		w.check(r.run, got, ok)
	})
	sorted(e.Queues, func(name string, w wantItems) { w.check(r.run, p, name) })
	r.checkCalls(e)
	if e.TickPeriod != nil {
		checkDuration(r.run, e.At, "tickPeriod", e.TickPeriod, p.TickPeriod())
	}
	traps := after(p.Failures(), r.traps)
	e.Failure.check(r.run, strings.Join(traps, "\n"), len(traps) > 0)
}

func (r *suiteRun) checkCalls(e *expect) {
	p := r.plugin
	checkEach(r.run, e.At, "calls", e.Calls, after(p.Calls(), r.calls), func(w wantCall, c *plugintest.Call) { w.check(r.run, c) })
	checkEach(r.run, e.At, "grpcCalls", e.GRPCCalls, after(p.GRPCCalls(), r.grpc), func(w wantGRPCCall, c *plugintest.GRPCCall) { w.check(r.run, c) })
	checkEach(r.run, e.At, "functionCalls", e.Functions, r.called, func(w wantFunctionCall, c madeCall) { w.check(r.run, c) })
	sorted(e.GRPCSent, func(upstream string, want []matcher) {
		var sent []string
		for _, c := range p.GRPCCalls() {
			if c.Upstream == upstream {
				sent = c.Messages
			}
		}
		checkAll(r.run, document.Position{Line: e.At.Of("grpcSent").Line, Path: e.At.Path + ".grpcSent." + upstream}, want, sent)
	})
}

// checkStream checks what became of the last request.
func (r *suiteRun) checkStream(e *expect) {
	if e.Held == "" && e.Reached == nil && e.Upstream == nil && e.Response == nil && e.Local == nil && e.Reset == nil && e.Done == nil {
		return
	}
	now, reached := r.heldNow(), r.atBackend()
	if e.Held != "" && e.Held != now {
		r.failAt(e.At.Of("held").Line, "%s.held: want %s\nhave %s", e.At.Path, e.Held, now)
	}
	checkBool(r.run, e.At, "reached", e.Reached, reached != nil)
	checkBool(r.run, e.At, "done", e.Done, r.stream.Done())
	switch {
	case e.Upstream == nil:
	case reached == nil:
		r.failAt(e.Upstream.At.Line, "%s: the request did not reach the backend", e.Upstream.At.Path)
	default:
		e.Upstream.check(r.run, *reached)
	}
	r.checkResult(e)
}

// heldNow says what the plugin holds back of the last request.
func (r *suiteRun) heldNow() string {
	switch s := r.needStream(); {
	case s.ResponsePaused():
		return "response"
	case s.RequestPaused():
		return "request"
	}
	return "nothing"
}

// atBackend is what of the last request is there: so far, if it comes in steps.
func (r *suiteRun) atBackend() *plugintest.Request {
	if r.reached != nil || !r.steps {
		return r.reached
	}
	return r.needStream().ToServer()
}

// checkResult checks what the client got.
func (r *suiteRun) checkResult(e *expect) {
	if e.Response == nil && e.Local == nil && e.Reset == nil {
		return
	}
	if e.Local == nil && e.Reset == nil && r.steps && !r.stream.Done() && r.stream.ToClient() != nil {
		e.Response.check(r.run, *r.stream.ToClient())
		return
	}
	if r.steps && !r.stream.Done() && !r.stream.Paused() {
		r.failAt(e.At.Line, "%s: the last request is not over", e.At.Path)
		return
	}
	if r.stream.Paused() {
		r.failAt(e.At.Line, "%s: the plugin holds back the %s%s", e.At.Path, r.heldNow(), r.waiting())
		return
	}
	res := r.stream.Result()
	checkBool(r.run, e.At, "reset", e.Reset, res.Reset)
	switch {
	case e.Response == nil:
	case res.Reset:
		r.failAt(e.Response.At.Line, "%s: the stream was reset", e.Response.At.Path)
	default:
		e.Response.check(r.run, res.Response)
	}
	switch {
	case e.Local == nil:
	case !res.Local:
		r.failAt(e.Local.At.Line, "%s: the plugin gave none", e.Local.At.Path)
	default:
		e.Local.check(r.run, res)
	}
}

// waiting says for whom the plugin waits.
func (r *suiteRun) waiting() string {
	var names []string
	for _, c := range r.plugin.Calls() {
		if c.Waiting() {
			names = append(names, c.Upstream)
		}
	}
	for _, c := range r.plugin.GRPCCalls() {
		if c.Waiting() {
			names = append(names, c.Upstream)
		}
	}
	if names == nil {
		return ""
	}
	return fmt.Sprintf("; it waits for calls to %q", names)
}

// property is what the plugin set on the last request or connection.
func (r *suiteRun) property(path string) (string, bool) {
	if r.conn != nil {
		return r.conn.Property(path)
	}
	return r.needStream().Property(path)
}

// checkConn checks what became of the last connection.
func (r *suiteRun) checkConn(e *expect) {
	if e.ToServer == nil && e.ToClient == nil && e.Closed == nil {
		return
	}
	c := r.needConn()
	e.ToServer.check(r.run, c.ToServer(), true)
	e.ToClient.check(r.run, c.ToClient(), true)
	checkBool(r.run, e.At, "closed", e.Closed, c.Closed())
}
