package plugintest

import (
	"fmt"
	"strconv"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// A Result is what came of a request.
type Result struct {
	// Response is what the client gets, the zero value if Reset.
	Response
	// Upstream is what the backend got, nil if the request did not reach it.
	Upstream *Request
	// Local says that the response is the plugin's own, or stands for its failure.
	Local bool
	// Details are those of a local response, for access logs.
	Details string
	// GRPCStatus is that of a local response, -1 if it has none.
	GRPCStatus int
	// Reset says that the stream was closed before its response was complete: by the
	// plugin, which may also have answered too late, by the client or by the backend.
	Reset bool
}

// A Stream is a request on its way through the plugin, and its response on its way back.
//
// One that was opened with [Plugin.Open] goes step by step. The client's are Request,
// Send, SendLast, SendTrailers and Cancel; the backend's are Respond, Reply, ReplyLast,
// ReplyTrailers and Fail. After each RequestPaused and ResponsePaused tell what the
// plugin holds back, ToServer and ToClient what it let go on so far, changed as it did.
// Calls are answered, and time passes, between steps. It ends with its response, when
// the plugin has let all of it go on; what the client sends after that, or after the
// plugin answered, is dropped, as in Envoy. A step that no client or backend could take,
// such as one more piece of a body that has ended, fails the test.
type Stream struct {
	p          *Plugin
	http       *proxywasm.HTTP
	properties propertySource // of Open
	sent       Request
	backend    func(Request) Response // nil: the test
	set        propertySource         // by the plugin
	request    half
	response   half
	upstream   *Request
	local      *proxywasm.LocalResponse // that the client gets
	asked      *proxywasm.LocalResponse // that the plugin wants to give now
	reset      bool
	done       bool
	result     Result
}

// A half is one direction of a stream: what of it has passed the plugin.
type half struct {
	dir      abi.Stream
	ended    bool              // whoever sends it has sent all of it
	headers  *proxywasm.Fields // nil before there are any
	begun    bool              // the headers are past the plugin
	body     []byte
	trailers *proxywasm.Fields
	paused   bool
	stopped  bool // nothing of it goes on any more
	resumed  bool // the plugin said that it goes on
	over     bool // all of it has been shown to the plugin
}

// passed reports whether all of the message is past the plugin.
func (d *half) passed() bool { return d.over && !d.held() && !d.stopped }

// held reports whether the plugin holds some of it back.
func (d *half) held() bool { return d.paused && !d.stopped }

// name is what the message is called.
func (d *half) name() string {
	if d.dir == abi.Response {
		return "response"
	}
	return "request"
}

// Do sends a request through the plugin to the backend, and the answer back. If the
// plugin holds either back for longer than the request takes, the test fails: use
// Begin.
func (p *Plugin) Do(r Request) Result {
	p.t.Helper()
	return p.Begin(r).Result()
}

// Begin is Do for requests that the plugin holds back. The stream goes on whenever the
// test does what the plugin waits for.
func (p *Plugin) Begin(r Request) *Stream {
	p.t.Helper()
	s := p.Open(nil)
	if s.backend = p.cfg.Backend; s.backend == nil {
		s.backend = func(Request) Response { return Response{} }
	}
	s.Request(r)
	return s
}

// Open begins a stream of which the plugin is told nothing yet, with properties besides
// those of the Config. The test is its client and its backend, step by step: see
// [Stream].
func (p *Plugin) Open(properties map[string]any) *Stream {
	p.t.Helper()
	p.started()
	for path, value := range properties {
		p.encode(path, value)
	}
	s := &Stream{p: p, properties: properties, set: propertySource{}, request: half{dir: abi.Request}, response: half{dir: abi.Response}}
	s.http = p.plugin.NewHTTP(streamHost{s})
	p.streams = append(p.streams, s)
	return s
}

// Request is the client sending the request, or what it begins with if that has More.
// A Backend of its own answers it when all of it is there.
func (s *Stream) Request(r Request) {
	s.p.t.Helper()
	if s.request.headers != nil || s.response.headers != nil || s.done {
		s.p.t.Fatal("the stream has its request, or is past it")
	}
	for path, value := range r.Properties {
		s.p.encode(path, value)
	}
	s.sent = r
	if r.Backend != nil {
		s.backend = r.Backend
	}
	s.feed(&s.request, r.fields(), chunks(r.Body, r.Chunks), r.Trailers, r.More)
	s.p.settle()
}

// Send is the client sending a piece of the request's body, which is not the last of it.
func (s *Stream) Send(chunk string) {
	s.p.t.Helper()
	s.next(&s.request, func() { s.showBody(&s.request, chunk, false) })
}

// SendLast is the client sending the last piece of the request's body, which may be
// empty. The request ends with it.
func (s *Stream) SendLast(chunk string) {
	s.p.t.Helper()
	s.next(&s.request, func() { s.showBody(&s.request, chunk, true) })
}

// SendTrailers is the client sending trailers. The request ends with them.
func (s *Stream) SendTrailers(h Headers) {
	s.p.t.Helper()
	s.next(&s.request, func() { s.showTrailers(&s.request, h) })
}

// Cancel is the client going away.
func (s *Stream) Cancel() {
	s.p.t.Helper()
	if !s.done {
		s.reset = true
		s.p.settle()
	}
}

// Respond is the backend sending the response, or what it begins with if that has More.
// It may do so before the request has ended, but not before the plugin let the request's
// headers go on. In a stream without a request it is the answer of another filter, which
// never showed the plugin the request.
func (s *Stream) Respond(r Response) {
	s.p.t.Helper()
	switch {
	case s.response.headers != nil || s.done:
		s.p.t.Fatalf("there is a response already, or none to be: %s", s.state())
	case s.request.headers != nil && !s.request.begun:
		s.p.t.Fatalf("the backend has nothing to respond to: %s", s.state())
	}
	s.feed(&s.response, r.fields(), chunks(r.Body, r.Chunks), r.Trailers, r.More)
	s.p.settle()
}

// Reply is the backend sending a piece of the response's body, which is not the last of
// it.
func (s *Stream) Reply(chunk string) {
	s.p.t.Helper()
	s.next(&s.response, func() { s.showBody(&s.response, chunk, false) })
}

// ReplyLast is the backend sending the last piece of the response's body, which may be
// empty. The response ends with it.
func (s *Stream) ReplyLast(chunk string) {
	s.p.t.Helper()
	s.next(&s.response, func() { s.showBody(&s.response, chunk, true) })
}

// ReplyTrailers is the backend sending trailers. The response ends with them.
func (s *Stream) ReplyTrailers(h Headers) {
	s.p.t.Helper()
	s.next(&s.response, func() { s.showTrailers(&s.response, h) })
}

// Fail is the connection to the backend breaking. The client then gets Envoy's 503, which
// the plugin sees as any response; or, if there is a response already, no more of that.
func (s *Stream) Fail() {
	s.p.t.Helper()
	switch {
	case s.done:
		return
	case s.request.headers != nil && !s.request.begun:
		s.p.t.Fatalf("there is no connection to the backend: %s", s.state())
	case s.response.headers != nil:
		s.reset = true
	default:
		s.request.stopped = true
		const body = "upstream connect error or disconnect/reset before headers. reset reason: connection termination"
		s.feed(&s.response, localFields(&proxywasm.LocalResponse{Status: 503, Body: body}), []string{body}, nil, false)
	}
	s.p.settle()
}

// Paused reports whether the plugin holds the request or the response back.
func (s *Stream) Paused() bool { return s.RequestPaused() || s.ResponsePaused() }

// RequestPaused reports whether the plugin holds some of the request back.
func (s *Stream) RequestPaused() bool { return !s.done && s.request.held() }

// ResponsePaused reports whether the plugin holds some of the response back.
func (s *Stream) ResponsePaused() bool { return !s.done && s.response.held() }

// ToServer is what of the request went on to the backend so far, with More if that is
// not all; nil if nothing did.
func (s *Stream) ToServer() *Request {
	if !s.request.begun {
		return nil
	}
	r := requestOf(s.request.headers, string(s.request.body), nil)
	if r.More = !s.request.passed(); !r.More {
		r.Trailers = headersOf(s.request.trailers)
	}
	return &r
}

// ToClient is what of the response, whoever gave it, went on to the client so far, with
// More if that is not all; nil if nothing did.
func (s *Stream) ToClient() *Response {
	if !s.response.begun {
		return nil
	}
	r := responseOf(s.response.headers, string(s.response.body), nil)
	if r.More = !s.response.passed(); !r.More {
		r.Trailers = headersOf(s.response.trailers)
	}
	return &r
}

// Done reports whether the stream is over.
func (s *Stream) Done() bool { return s.done }

// Result returns what came of the request. If the stream is not over, as when the plugin
// holds it back still, the test fails.
func (s *Stream) Result() Result {
	s.p.t.Helper()
	if !s.done {
		s.p.t.Fatal(s.state())
	}
	return s.result
}

// state says how far the stream is, for those who expected something else.
func (s *Stream) state() string {
	path := ""
	if s.request.headers != nil {
		path, _ = s.request.headers.Get(":path")
		path = " for " + path
	}
	switch {
	case s.done && s.result.Reset:
		return "the stream" + path + " was reset"
	case s.done:
		return fmt.Sprintf("the stream%s is over, with status %d", path, s.result.Status)
	case s.response.held():
		return "the plugin holds back the response" + path + s.p.waitsFor()
	case s.request.held():
		return "the plugin holds back the request" + path + s.p.waitsFor()
	case s.response.headers != nil:
		return "the response" + path + " has not ended: ReplyLast, or ReplyTrailers"
	case s.backend != nil && !s.request.ended:
		return "the request" + path + " has not ended: SendLast, or SendTrailers"
	}
	return "there is no response" + path + ": Respond"
}

// Property returns what the plugin set as a property of the stream, at a path such as
// "my.property".
func (s *Stream) Property(path string) (value string, ok bool) {
	value, ok = s.set[path].(string)
	return value, ok
}

// next shows the plugin the next piece of a message that has begun.
func (s *Stream) next(d *half, show func()) {
	s.p.t.Helper()
	switch {
	case d.ended:
		s.p.t.Fatalf("the %s has ended", d.name())
	case s.done:
		return
	case d.headers == nil:
		s.p.t.Fatalf("the %s has not begun", d.name())
	}
	show()
	d.ended = d.over
	s.p.settle()
}

// feed shows a message to the plugin, piece by piece.
func (s *Stream) feed(d *half, headers *proxywasm.Fields, body []string, trailers Headers, more bool) {
	s.p.t.Helper()
	if more && len(trailers) > 0 {
		s.p.t.Fatalf("the %s has More after its trailers, with which it ends", d.name())
	}
	last := !more && len(trailers) == 0 // what comes last has no trailers after it
	s.showHeaders(d, headers, last && len(body) == 0)
	for i, chunk := range body {
		s.showBody(d, chunk, last && i == len(body)-1)
	}
	if len(trailers) > 0 {
		s.showTrailers(d, trailers)
	}
	d.ended = d.over
}

func (s *Stream) showHeaders(d *half, headers *proxywasm.Fields, end bool) {
	d.headers = headers
	show := s.http.OnRequestHeaders
	if d.dir == abi.Response {
		show = s.http.OnResponseHeaders
	}
	act := show(headers, end)
	d.over = end
	s.took(d, nil, act)
}

func (s *Stream) showBody(d *half, chunk string, end bool) {
	show := s.http.OnRequestBody
	if d.dir == abi.Response {
		show = s.http.OnResponseBody
	}
	if !d.stopped && !s.reset {
		out, act := show([]byte(chunk), end)
		s.took(d, out, act)
	}
	d.over = end
}

func (s *Stream) showTrailers(d *half, trailers Headers) {
	show := s.http.OnRequestTrailers
	if d.dir == abi.Response {
		show = s.http.OnResponseTrailers
	}
	if !d.stopped && !s.reset {
		d.trailers = proxywasm.NewFields(trailers.pairs()...)
		out, act := show(d.trailers)
		s.took(d, out, act)
	}
	d.over = true
}

// took is what the plugin did with what it was shown.
func (s *Stream) took(d *half, out []byte, act proxywasm.Action) {
	d.body = append(d.body, out...)
	d.paused = act == proxywasm.Pause || act == proxywasm.PauseHeaders
	switch act {
	case proxywasm.Continue:
		d.begun = true
	case proxywasm.Stop:
		d.stopped = true
	case proxywasm.Overflow:
		d.stopped = true
		s.overflow(d)
	}
}

// overflow is Envoy's answer when more is held back than may be.
func (s *Stream) overflow(d *half) {
	r := &proxywasm.LocalResponse{Status: 413, Details: "request_payload_too_large", Body: "Payload Too Large", GRPCStatus: -1}
	if d.dir == abi.Response {
		r = &proxywasm.LocalResponse{Status: 500, Details: "response_payload_too_large", Body: "Internal Server Error", GRPCStatus: -1}
	}
	s.asked = r
}

// advance does the next thing that is due in the stream, and reports whether there was
// one.
func (s *Stream) advance() bool {
	switch {
	case s.done:
		return false
	case s.reset:
		s.finish(Result{Reset: true, GRPCStatus: -1})
	case s.asked != nil:
		r := s.asked
		s.asked = nil
		s.answer(r)
	case s.request.resumed:
		s.resume(&s.request)
	case s.response.resumed:
		s.resume(&s.response)
	case s.request.passed() && s.upstream == nil && s.response.headers == nil && s.backend != nil:
		s.callBackend()
	case s.response.passed():
		s.finish(s.answered())
	default:
		return false
	}
	return true
}

// resume has go on what was held back: headers, if they were, go before the plugin is
// shown what waited behind them.
func (s *Stream) resume(d *half) {
	d.resumed, d.begun = false, true
	out, act := s.http.Resume(d.dir)
	s.took(d, out, act)
}

func (s *Stream) callBackend() {
	s.upstream = s.ToServer()
	answer := s.backend(*s.upstream)
	s.feed(&s.response, answer.fields(), chunks(answer.Body, answer.Chunks), answer.Trailers, answer.More)
}

// answer gives a local response. As in Envoy the plugin sees it as any response, unless
// it is in the midst of one, or has failed; and when the client has the headers of
// another, the stream is reset.
func (s *Stream) answer(r *proxywasm.LocalResponse) {
	if s.response.begun {
		s.finish(Result{Reset: true, GRPCStatus: -1})
		return
	}
	s.local = r
	s.request.stopped = true
	headers, body := localFields(r), []string(nil)
	if r.Body != "" {
		body = []string{r.Body}
	}
	if s.response.headers == nil && !r.Failure {
		s.feed(&s.response, headers, body, nil, false)
		return
	}
	s.response = half{dir: abi.Response, ended: s.response.ended, headers: headers, begun: true, body: []byte(r.Body), over: true}
	s.finish(s.answered())
}

// localFields are the headers of a local response, with those that Envoy adds.
func localFields(r *proxywasm.LocalResponse) *proxywasm.Fields {
	f := proxywasm.NewResponseFields(abi.Pair{Key: ":status", Value: strconv.Itoa(int(r.Status))})
	for _, p := range r.Headers {
		f.Add(p.Key, p.Value)
	}
	if r.Body == "" {
		return f
	}
	f.Set("content-length", strconv.Itoa(len(r.Body)))
	if _, ok := f.Get("content-type"); !ok {
		f.Add("content-type", "text/plain")
	}
	return f
}

func (s *Stream) answered() Result {
	r := Result{Response: *s.ToClient(), GRPCStatus: -1}
	if s.local != nil {
		r.Local, r.Details, r.GRPCStatus = true, s.local.Details, int(s.local.GRPCStatus)
	}
	return r
}

// finish is the stream's end.
func (s *Stream) finish(r Result) {
	s.done, s.result = true, r
	s.result.Upstream = s.reached()
	s.http.OnLog(orNil(s.request.headers), orNil(s.response.headers), orNil(s.response.trailers))
	s.http.Close()
}

// reached is what the backend got: with a Backend, nothing before it got all.
func (s *Stream) reached() *Request {
	if s.backend != nil {
		return s.upstream
	}
	return s.ToServer()
}

// orNil is nil for a nil pointer, which as Headers would not be.
func orNil(f *proxywasm.Fields) proxywasm.Headers {
	if f == nil {
		return nil
	}
	return f
}

// A streamHost is what the plugin asks of a stream. It only writes down what is to be
// done: the plugin is not to be called while it runs.
type streamHost struct{ s *Stream }

func (h streamHost) Continue(dir abi.Stream) {
	if dir == abi.Response {
		h.s.response.resumed = true
	} else {
		h.s.request.resumed = true
	}
}

func (h streamHost) SendLocalResponse(r proxywasm.LocalResponse) {
	if h.s.local == nil && h.s.asked == nil {
		h.s.asked = &r
	}
}

func (h streamHost) Close(abi.Stream) { h.s.reset = true }

func (streamHost) ClearRouteCache() {} // there are no routes

func (h streamHost) AddTrailers(dir abi.Stream) proxywasm.Headers {
	d := &h.s.request
	if dir == abi.Response {
		d = &h.s.response
	}
	d.trailers = new(proxywasm.Fields)
	return d.trailers
}
