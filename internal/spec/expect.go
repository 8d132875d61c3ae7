package spec

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chandler-proxy/chandler/internal/spec/document"
	"github.com/chandler-proxy/chandler/plugintest"
)

// expect is what a step must have come to.
type expect struct {
	At         document.Position
	Held       string                `spec:"held" about:"what the plugin holds back now of the last request: request, response or nothing"`
	Reached    *bool                 `spec:"reached" about:"whether the last request reached the backend"`
	Upstream   *wantRequest          `spec:"upstream" about:"the last request as the backend got it"`
	Response   *wantResponse         `spec:"response" about:"the response as the client got it, whoever made it"`
	Local      *wantLocal            `spec:"localResponse" about:"the response that the plugin gave itself, as the client got it"`
	Reset      *bool                 `spec:"reset" about:"whether the stream was closed without a whole response"`
	Done       *bool                 `spec:"done" about:"whether the last request is over"`
	Returns    *wantReturns          `spec:"returns" about:"what the plugin's callbacks returned in this step: continue or pause, for each time"`
	Logs       []wantLog             `spec:"logs" about:"lines that the plugin logged in this step, in any order"`
	Metrics    map[string]wantMetric `spec:"metrics" about:"values of counters and gauges, and all values of histograms, by name"`
	Shared     map[string]matcher    `spec:"shared" about:"data that the plugin shares, by key"`
	Queues     map[string]wantItems  `spec:"queues" about:"what is in shared queues, by name; it is taken out"`
	Properties map[string]matcher    `spec:"properties" about:"properties that the plugin set on the last request or connection"`
	Calls      *[]wantCall           `spec:"calls" about:"all HTTP calls that the plugin made in this step"`
	GRPCCalls  *[]wantGRPCCall       `spec:"grpcCalls" about:"all gRPC calls and streams that the plugin began in this step"`
	GRPCSent   map[string][]matcher  `spec:"grpcSent" about:"all messages that the plugin sent on its latest gRPC call or stream, by upstream"`
	Functions  *[]wantFunctionCall   `spec:"functionCalls" about:"all calls that the plugin made in this step to the functions of plugin.functions"`
	TickPeriod *time.Duration        `spec:"tickPeriod" about:"how often the plugin wants its tick, 0s for never"`
	ToServer   *matcher              `spec:"toServer" about:"all that the server of the connection got so far"`
	ToClient   *matcher              `spec:"toClient" about:"all that the client of the connection got so far"`
	Closed     *bool                 `spec:"closed" about:"whether the connection is closed"`
	Failure    *matcher              `spec:"failure" about:"how the plugin failed in this step; needs mayFail"`
}

// held is what a request can be.
var held = []string{"request", "response", "nothing"}

// CheckNode checks what the types do not.
func (e *expect) CheckNode(d *document.Decoder, path string, n *document.Node) {
	oneOf(d, path, n, "held", e.Held, held)
	if len(n.Fields) == 0 {
		d.Fail(path, n, "expects nothing")
	}
}

type wantRequest struct {
	At       document.Position
	Method   *matcher    `spec:"method" about:"the method"`
	Scheme   *matcher    `spec:"scheme" about:"the scheme"`
	Host     *matcher    `spec:"host" about:"the host"`
	Path     *matcher    `spec:"path" about:"with the query"`
	Headers  wantHeaders `spec:"headers" about:"by name: a value, several in a list, or none (absent: true)"`
	Body     *matcher    `spec:"body" about:"the body"`
	Trailers wantHeaders `spec:"trailers" about:"as headers"`
}

func (w *wantRequest) check(t *run, r plugintest.Request) {
	w.Method.check(t, r.Method, true)
	w.Scheme.check(t, r.Scheme, true)
	w.Host.check(t, r.Host, true)
	w.Path.check(t, r.Path, true)
	w.Headers.check(t, r.Headers)
	w.Body.check(t, r.Body, true)
	w.Trailers.check(t, r.Trailers)
}

type wantResponse struct {
	At       document.Position
	Status   number      `spec:"status" about:"the HTTP status"`
	Headers  wantHeaders `spec:"headers" about:"by name: a value, several in a list, or none (absent: true)"`
	Body     *matcher    `spec:"body" about:"the body"`
	Trailers wantHeaders `spec:"trailers" about:"as headers"`
}

func (w *wantResponse) check(t *run, r plugintest.Response) {
	w.Status.check(t, int64(r.Status))
	w.Headers.check(t, r.Headers)
	w.Body.check(t, r.Body, true)
	w.Trailers.check(t, r.Trailers)
}

type wantLocal struct {
	At         document.Position
	Status     number      `spec:"status" about:"the HTTP status"`
	Headers    wantHeaders `spec:"headers" about:"by name: a value, several in a list, or none (absent: true)"`
	Body       *matcher    `spec:"body" about:"the body"`
	Details    *matcher    `spec:"details" about:"the details for access logs, with underscores for spaces"`
	GRPCStatus number      `spec:"grpcStatus" about:"the gRPC status, -1 for none"`
}

func (w *wantLocal) check(t *run, r plugintest.Result) {
	w.Status.check(t, int64(r.Status))
	w.Headers.check(t, r.Headers)
	w.Body.check(t, r.Body, true)
	w.Details.check(t, r.Details, true)
	w.GRPCStatus.check(t, int64(r.GRPCStatus))
}

// A number is one that is wanted, or none.
type number struct {
	at    document.Position
	value *int64
}

// UnmarshalNode reads it.
func (w *number) UnmarshalNode(d *document.Decoder, path string, n *document.Node) {
	w.at = document.Position{Line: n.Line, Path: path}
	w.value = new(int64)
	d.Decode(path, n, w.value)
}

// NodeSchema is an integer.
func (*number) NodeSchema() map[string]any { return map[string]any{"type": "integer"} }

func (w number) check(t *run, got int64) {
	if w.value != nil && *w.value != got {
		t.failAt(w.at.Line, "%s: want %d\nhave %d", w.at.Path, *w.value, got)
	}
}

// wantHeaders are what fields must be.
type wantHeaders []wantField

type wantField struct {
	at   document.Position
	name string
	all  []matcher // for every value there is
	list bool
}

// UnmarshalNode reads a mapping from names to a matcher, or a list of them.
func (w *wantHeaders) UnmarshalNode(d *document.Decoder, path string, n *document.Node) {
	eachField(d, path, n, func(path, name string, n *document.Node) {
		f := wantField{at: document.Position{Line: n.Line, Path: path}, name: name, list: n.Kind == document.List}
		if f.list {
			d.Decode(path, n, &f.all)
		} else {
			f.all = make([]matcher, 1)
			d.Decode(path, n, &f.all[0])
		}
		*w = append(*w, f)
	})
}

// NodeSchema is a mapping.
func (*wantHeaders) NodeSchema() map[string]any {
	one := (*matcher)(nil).NodeSchema()
	return map[string]any{"type": "object", "additionalProperties": map[string]any{"anyOf": []any{
		one, map[string]any{"type": "array", "items": one},
	}}}
}

func (w wantHeaders) check(t *run, h plugintest.Headers) {
	for _, f := range w {
		values := h.Values(f.name)
		switch {
		case !f.list && len(values) < 2:
			f.all[0].check(t, strings.Join(values, ""), len(values) == 1)
		case len(values) != len(f.all):
			t.failAt(f.at.Line, "%s: want so many: %d\nhave %q", f.at.Path, len(f.all), values)
		default:
			for i := range f.all {
				f.all[i].check(t, values[i], true)
			}
		}
	}
}

// wantReturns are what callbacks returned, as their functions are called.
type wantReturns struct {
	RequestHeaders   *verdicts `spec:"requestHeaders" about:"proxy_on_request_headers"`
	RequestBody      *verdicts `spec:"requestBody" about:"proxy_on_request_body"`
	RequestTrailers  *verdicts `spec:"requestTrailers" about:"proxy_on_request_trailers"`
	ResponseHeaders  *verdicts `spec:"responseHeaders" about:"proxy_on_response_headers"`
	ResponseBody     *verdicts `spec:"responseBody" about:"proxy_on_response_body"`
	ResponseTrailers *verdicts `spec:"responseTrailers" about:"proxy_on_response_trailers"`
	NewConnection    *verdicts `spec:"newConnection" about:"proxy_on_new_connection"`
	DownstreamData   *verdicts `spec:"downstreamData" about:"proxy_on_downstream_data"`
	UpstreamData     *verdicts `spec:"upstreamData" about:"proxy_on_upstream_data"`
}

func (w *wantReturns) check(t *run, trace []string) {
	if w == nil {
		return
	}
	got := returned(trace)
	w.RequestHeaders.check(t, got["proxy_on_request_headers"])
	w.RequestBody.check(t, got["proxy_on_request_body"])
	w.RequestTrailers.check(t, got["proxy_on_request_trailers"])
	w.ResponseHeaders.check(t, got["proxy_on_response_headers"])
	w.ResponseBody.check(t, got["proxy_on_response_body"])
	w.ResponseTrailers.check(t, got["proxy_on_response_trailers"])
	w.NewConnection.check(t, got["proxy_on_new_connection"])
	w.DownstreamData.check(t, got["proxy_on_downstream_data"])
	w.UpstreamData.check(t, got["proxy_on_upstream_data"])
}

// returned is what callbacks returned, by their names, as a trace tells it.
func returned(trace []string) map[string][]string {
	all := map[string][]string{}
	for i, line := range trace {
		call, ok := strings.CutPrefix(line, "--> ")
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(call, "(")
		for _, result := range trace[i+1:] {
			if value, ok := strings.CutPrefix(result, "<-- "); ok {
				all[name] = append(all[name], word(value))
				break
			}
		}
	}
	return all
}

// word is a callback's result as tests have it.
func word(result string) string {
	switch result {
	case "(0)":
		return "continue"
	case "(1)", "(2)", "(3)", "(4)":
		return "pause"
	}
	return result
}

// verdicts are continue or pause, one for each time.
type verdicts struct {
	at   document.Position
	want []string
}

// UnmarshalNode reads one or a list.
func (v *verdicts) UnmarshalNode(d *document.Decoder, path string, n *document.Node) {
	v.at = document.Position{Line: n.Line, Path: path}
	if n.Kind == document.List {
		d.Decode(path, n, &v.want)
	} else {
		v.want = make([]string, 1)
		d.Decode(path, n, &v.want[0])
	}
	for _, w := range v.want {
		if w != "continue" && w != "pause" {
			d.Fail(path, n, "%q is neither continue nor pause", w)
		}
	}
}

// NodeSchema is one or a list.
func (*verdicts) NodeSchema() map[string]any {
	one := map[string]any{"enum": []string{"continue", "pause"}}
	return map[string]any{"oneOf": []any{one, map[string]any{"type": "array", "items": one}}}
}

func (v *verdicts) check(t *run, got []string) {
	if v != nil && !slices.Equal(v.want, got) {
		t.failAt(v.at.Line, "%s: want %q\nhave %q", v.at.Path, v.want, got)
	}
}

// wantLog is a line that must have been logged, or not.
type wantLog struct {
	at    document.Position
	level string
	line  matcher
	none  bool
}

type logWords struct {
	Level    string      `spec:"level" about:"trace, debug, info, warn, error or critical; default: any"`
	Exact    *string     `spec:"exact" about:"the line itself"`
	Contains *string     `spec:"contains" about:"a part of the line"`
	Matches  *expression `spec:"matches" about:"a regular expression that matches some of the line"`
	Absent   bool        `spec:"absent" about:"there is no such line"`
}

// UnmarshalNode reads a text, which the line must contain, or a mapping.
func (w *wantLog) UnmarshalNode(d *document.Decoder, path string, n *document.Node) {
	w.at = document.Position{Line: n.Line, Path: path}
	var words logWords
	if n.Kind == document.Scalar {
		words.Contains = new(string)
		d.Decode(path, n, words.Contains)
	} else {
		d.Decode(path, n, &words)
		oneOf(d, path, n, "level", words.Level, levels)
	}
	ways := matchers{Exact: words.Exact, Contains: words.Contains, Matches: words.Matches}
	given := 0
	for _, is := range []bool{ways.Exact != nil, ways.Contains != nil, ways.Matches != nil} {
		if is {
			given++
		}
	}
	switch {
	case given == 1:
		w.line = matcher{wrong: ways.matcher()}
	case given > 1 || words.Level == "":
		d.Fail(path, n, "want one of exact, contains, matches; or a level alone")
	default: // anything of the level
		w.line = matcher{wrong: func(string) string { return "" }}
	}
	w.level, w.none = words.Level, words.Absent
}

// NodeSchema is a text or a mapping.
func (*wantLog) NodeSchema() map[string]any {
	return map[string]any{"oneOf": []any{scalarSchema(), map[string]any{"$ref": "#/$defs/logWords"}}}
}

func (w wantLog) check(t *run, lines []plugintest.Line) {
	for _, l := range lines {
		if (w.level == "" || levels[l.Level] == w.level) && w.line.wrong(l.Message) == "" {
			if w.none {
				t.failAt(w.at.Line, "%s: want no such line\nhave %q", w.at.Path, l)
			}
			return
		}
	}
	if w.none {
		return
	}
	have := []string{"nothing"}
	for i, l := range lines {
		have = append(have[:i], strconv.Quote(l.String()))
	}
	t.failAt(w.at.Line, "%s: want such a line\nhave %s", w.at.Path, strings.Join(have, "\n     "))
}

// wantMetric is a value, or all of a histogram's.
type wantMetric struct {
	at     document.Position
	values []uint64
	list   bool
}

// UnmarshalNode reads a number or a list of them.
func (w *wantMetric) UnmarshalNode(d *document.Decoder, path string, n *document.Node) {
	w.at = document.Position{Line: n.Line, Path: path}
	if w.list = n.Kind == document.List; w.list {
		d.Decode(path, n, &w.values)
		return
	}
	w.values = make([]uint64, 1)
	d.Decode(path, n, &w.values[0])
}

// NodeSchema is a number or a list of them.
func (*wantMetric) NodeSchema() map[string]any {
	one := map[string]any{"type": "integer", "minimum": 0}
	return map[string]any{"oneOf": []any{one, map[string]any{"type": "array", "items": one}}}
}

func (w wantMetric) check(t *run, p *plugintest.Plugin, name string) {
	defer t.at(w.at)()
	t.do(func() {
		if w.list {
			if got := p.Histogram(name); !slices.Equal(got, w.values) {
				t.Errorf("want %v\nhave %v", w.values, got)
			}
		} else if got := p.Metric(name); got != w.values[0] {
			t.Errorf("want %d\nhave %d", w.values[0], got)
		}
	})
}

// wantItems are all items of a queue, in order.
type wantItems struct {
	at  document.Position
	all []matcher
}

// UnmarshalNode reads a list.
func (w *wantItems) UnmarshalNode(d *document.Decoder, path string, n *document.Node) {
	w.at = document.Position{Line: n.Line, Path: path}
	d.Decode(path, n, &w.all)
}

// NodeSchema is a list.
func (*wantItems) NodeSchema() map[string]any {
	return map[string]any{"type": "array", "items": (*matcher)(nil).NodeSchema()}
}

func (w wantItems) check(t *run, p *plugintest.Plugin, name string) {
	var got []string
	defer t.at(w.at)()
	t.do(func() {
		for {
			item, ok := p.Dequeue(name)
			if !ok {
				break
			}
			got = append(got, item)
		}
		checkAll(t, w.at, w.all, got)
	})
}

// checkAll checks a list of texts.
func checkAll(t *run, at document.Position, want []matcher, got []string) {
	if len(got) != len(want) {
		t.failAt(at.Line, "%s: want %d\nhave %d: %q", at.Path, len(want), len(got), got)
		return
	}
	for i := range want {
		want[i].check(t, got[i], true)
	}
}

// wantCall is an HTTP call of the plugin's.
type wantCall struct {
	At       document.Position
	Upstream *matcher       `spec:"upstream" about:"whom it calls"`
	Timeout  *time.Duration `spec:"timeout" about:"how long it waits"`
	Method   *matcher       `spec:"method" about:"the method"`
	Scheme   *matcher       `spec:"scheme" about:"the scheme"`
	Host     *matcher       `spec:"host" about:"the host"`
	Path     *matcher       `spec:"path" about:"with the query"`
	Headers  wantHeaders    `spec:"headers" about:"by name: a value, several in a list, or none (absent: true)"`
	Body     *matcher       `spec:"body" about:"the body"`
	Trailers wantHeaders    `spec:"trailers" about:"as headers"`
}

func (w wantCall) check(t *run, c *plugintest.Call) {
	w.Upstream.check(t, c.Upstream, true)
	checkDuration(t, w.At, "timeout", w.Timeout, c.Timeout)
	(&wantRequest{w.At, w.Method, w.Scheme, w.Host, w.Path, w.Headers, w.Body, w.Trailers}).check(t, c.Request)
}

func checkDuration(t *run, at document.Position, field string, want *time.Duration, got time.Duration) {
	if at := at.Of(field); want != nil && *want != got {
		t.failAt(at.Line, "%s: want %s\nhave %s", at.Path, *want, got)
	}
}

// wantGRPCCall is a gRPC call of the plugin's.
type wantGRPCCall struct {
	At       document.Position
	Upstream *matcher       `spec:"upstream" about:"whom it calls"`
	Service  *matcher       `spec:"service" about:"the service"`
	Method   *matcher       `spec:"method" about:"the method"`
	Metadata wantHeaders    `spec:"metadata" about:"by name: a value, several in a list, or none (absent: true)"`
	Timeout  *time.Duration `spec:"timeout" about:"how long a unary call waits"`
	Stream   *bool          `spec:"stream" about:"whether it is a stream"`
	Messages *[]matcher     `spec:"messages" about:"all messages that it sent so far, encoded"`
}

func (w wantGRPCCall) check(t *run, c *plugintest.GRPCCall) {
	w.Upstream.check(t, c.Upstream, true)
	w.Service.check(t, c.Service, true)
	w.Method.check(t, c.Method, true)
	w.Metadata.check(t, c.Metadata)
	checkDuration(t, w.At, "timeout", w.Timeout, c.Timeout)
	checkBool(t, w.At, "stream", w.Stream, c.Stream)
	if w.Messages != nil {
		checkAll(t, w.At.Of("messages"), *w.Messages, c.Messages)
	}
}

// A madeCall is a call of a foreign function.
type madeCall struct{ name, arguments string }

// wantFunctionCall is one that is wanted.
type wantFunctionCall struct {
	At        document.Position
	Name      *matcher `spec:"name" about:"the function's name"`
	Arguments *matcher `spec:"arguments" about:"what it was called with"`
}

func (w wantFunctionCall) check(t *run, c madeCall) {
	w.Name.check(t, c.name, true)
	w.Arguments.check(t, c.arguments, true)
}

func checkBool(t *run, at document.Position, field string, want *bool, got bool) {
	if at := at.Of(field); want != nil && *want != got {
		t.failAt(at.Line, "%s: want %v\nhave %v", at.Path, *want, got)
	}
}

// checkEach checks what is wanted of lists of things that happened.
func checkEach[W, T any](t *run, at document.Position, field string, want *[]W, got []T, check func(W, T)) {
	switch {
	case want == nil:
	case len(*want) != len(got):
		t.failAt(at.Of(field).Line, "%s: want %d\nhave %d", at.Of(field).Path, len(*want), len(got))
	default:
		for i, w := range *want {
			check(w, got[i])
		}
	}
}

// sorted goes through a map in the order of its keys.
func sorted[V any](m map[string]V, f func(key string, value V)) {
	for _, key := range slices.Sorted(maps.Keys(m)) {
		f(key, m[key])
	}
}
