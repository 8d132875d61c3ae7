package plugintest

import (
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
	// Reset says that the plugin closed the stream.
	Reset bool
}

// A Stream is a request on its way through the plugin, and its response on its way back.
type Stream struct {
	p        *Plugin
	http     *proxywasm.HTTP
	sent     Request
	set      propertySource // by the plugin
	request  half
	response half
	upstream *Request
	local    *proxywasm.LocalResponse // that the client gets
	asked    *proxywasm.LocalResponse // that the plugin wants to give now
	reset    bool
	done     bool
	result   Result
}

// A half is one direction of a stream: what of it has passed the plugin.
type half struct {
	dir      abi.Stream
	headers  *proxywasm.Fields // nil before there are any
	body     []byte
	trailers *proxywasm.Fields
	paused   bool
	stopped  bool // nothing of it goes on any more
	resumed  bool // the plugin said that it goes on
	over     bool // all of it has been shown to the plugin
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
	p.started()
	s := &Stream{p: p, sent: r, set: propertySource{}, request: half{dir: abi.Request}, response: half{dir: abi.Response}}
	for path, value := range r.Properties {
		p.encode(path, value)
	}
	s.http = p.plugin.NewHTTP(streamHost{s})
	p.streams = append(p.streams, s)
	s.feed(&s.request, r.fields(), chunks(r.Body, r.Chunks), trailersOf(r.Trailers))
	p.settle()
	return s
}

// Paused reports whether the plugin holds the request or the response back.
func (s *Stream) Paused() bool { return !s.done }

// Result returns what came of the request. If the plugin holds it back still, the test
// fails.
func (s *Stream) Result() Result {
	s.p.t.Helper()
	if !s.done {
		what := "request"
		if s.response.headers != nil {
			what = "response"
		}
		path, _ := s.request.headers.Get(":path")
		s.p.t.Fatalf("the plugin holds back the %s for %s; it waits for %d calls", what, path, s.p.pending())
	}
	return s.result
}

// Property returns what the plugin set as a property of the stream, at a path such as
// "my.property".
func (s *Stream) Property(path string) (value string, ok bool) {
	value, ok = s.set[path].(string)
	return value, ok
}

// Cancel is the client going away.
func (s *Stream) Cancel() {
	s.p.t.Helper()
	if !s.done {
		s.reset = true
		s.p.settle()
	}
}

// feed shows a message to the plugin, piece by piece.
func (s *Stream) feed(d *half, headers *proxywasm.Fields, body []string, trailers *proxywasm.Fields) {
	d.headers = headers
	onHeaders, onBody, onTrailers := s.http.OnRequestHeaders, s.http.OnRequestBody, s.http.OnRequestTrailers
	if d.dir == abi.Response {
		onHeaders, onBody, onTrailers = s.http.OnResponseHeaders, s.http.OnResponseBody, s.http.OnResponseTrailers
	}
	s.took(d, nil, onHeaders(headers, len(body) == 0 && trailers == nil))
	for i, chunk := range body {
		if !d.stopped {
			out, act := onBody([]byte(chunk), i == len(body)-1 && trailers == nil)
			s.took(d, out, act)
		}
	}
	if trailers != nil && !d.stopped {
		d.trailers = trailers
		out, act := onTrailers(trailers)
		s.took(d, out, act)
	}
	d.over = true
}

// took is what the plugin did with what it was shown.
func (s *Stream) took(d *half, out []byte, act proxywasm.Action) {
	d.body = append(d.body, out...)
	d.paused = act == proxywasm.Pause || act == proxywasm.PauseHeaders
	switch act {
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
	case s.passed(&s.request) && s.response.headers == nil:
		s.callBackend()
	case s.passed(&s.response):
		s.finish(s.answered())
	default:
		return false
	}
	return true
}

// passed reports whether all of the message is past the plugin.
func (s *Stream) passed(d *half) bool { return d.over && !d.paused && !d.stopped }

func (s *Stream) resume(d *half) {
	d.resumed = false
	out, act := s.http.Resume(d.dir)
	s.took(d, out, act)
}

func (s *Stream) callBackend() {
	r := requestOf(s.request.headers, string(s.request.body), s.request.trailers)
	s.upstream = &r
	backend := s.sent.Backend
	if backend == nil {
		backend = s.p.cfg.Backend
	}
	var answer Response
	if backend != nil {
		answer = backend(r)
	}
	s.feed(&s.response, answer.fields(), chunks(answer.Body, answer.Chunks), trailersOf(answer.Trailers))
}

// answer gives a local response. As in Envoy the plugin sees it as any response, unless
// it is in the midst of one, or has failed.
func (s *Stream) answer(r *proxywasm.LocalResponse) {
	s.local = r
	s.request.stopped = true
	headers, body := localFields(r), []string(nil)
	if r.Body != "" {
		body = []string{r.Body}
	}
	if s.response.headers == nil && !r.Failure {
		s.feed(&s.response, headers, body, nil)
		return
	}
	s.response.headers, s.response.body, s.response.trailers = headers, []byte(r.Body), nil
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
	r := Result{
		Response: responseOf(s.response.headers, string(s.response.body), s.response.trailers),
		Upstream: s.upstream, GRPCStatus: -1,
	}
	if s.local != nil {
		r.Local, r.Details, r.GRPCStatus = true, s.local.Details, int(s.local.GRPCStatus)
	}
	return r
}

// finish is the stream's end.
func (s *Stream) finish(r Result) {
	s.done, s.result = true, r
	s.result.Upstream = s.upstream
	s.http.OnLog(orNil(s.request.headers), orNil(s.response.headers), orNil(s.response.trailers))
	s.http.Close()
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
