package spec

import (
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/chandler-proxy/chandler/internal/spec/document"
	"github.com/chandler-proxy/chandler/plugintest"
)

// What follows is our own form, docs/plugin-tests.md, as Go types. The schema is made of
// them.

// A suite is one file.
type suite struct {
	Plugin     plugin              `spec:"plugin" about:"the plugin, and what it is started with"`
	Properties map[string]property `spec:"properties" about:"what the plugin can read with proxy_get_property, by path, such as source.address"`
	Backend    *response           `spec:"backend" about:"the answer to requests that say nothing else; default: 200 without a body"`
	Tests      []test              `spec:"tests,required" about:"the tests, each with a plugin of its own"`
}

type plugin struct {
	Module           string               `spec:"module" about:"the module, relative to this file; default: build/plugin.wasm in the plugin's folder"`
	Config           *config              `spec:"config" about:"the plugin's configuration: a text, or anything else, which becomes JSON"`
	ConfigFile       *fileContents        `spec:"configFile" about:"a file with the plugin's configuration, relative to this one"`
	VMConfig         *config              `spec:"vmConfig" about:"the VM's configuration, likewise"`
	VMConfigFile     *fileContents        `spec:"vmConfigFile" about:"a file with the VM's configuration"`
	Name             string               `spec:"name" about:"the plugin's name"`
	RootID           string               `spec:"rootID" about:"which of the module's root contexts it is"`
	VMID             string               `spec:"vmID" about:"what it shares data and queues by"`
	Env              map[string]string    `spec:"env" about:"environment variables"`
	Upstreams        map[string]*response `spec:"upstreams" about:"whom the plugin can call over HTTP, with their answers; null leaves the answer to a step; default: anyone, all left to steps"`
	Queues           []string             `spec:"queues" about:"shared queues that others registered"`
	Functions        map[string]function  `spec:"functions" about:"foreign functions that the plugin can call, besides Envoy's own, with what they return"`
	LogLevel         string               `spec:"logLevel" about:"the lowest level that is not discarded: trace (default), debug, info, warn, error or critical"`
	FailPolicy       string               `spec:"failPolicy" about:"what becomes of requests after the plugin failed: closed (default), open or reload"`
	MayFail          *bool                `spec:"mayFail" about:"a plugin that traps does not fail the test"`
	AllowHeadersStop *bool                `spec:"allowHeadersStop" about:"Envoy's allow_on_headers_stop_iteration"`
	BufferLimit      int                  `spec:"bufferLimit" about:"how many bytes of a body are held back; default 1 MiB"`
	Now              timestamp            `spec:"now" about:"when the plugin is started, by its own clock, such as 2026-01-31T12:00:00Z"`
	StopClock        *bool                `spec:"stopClock" about:"that clock stands still, but for steps with advance"`
}

// levels and policies are the words for them.
var (
	levels   = []string{"trace", "debug", "info", "warn", "error", "critical"}
	policies = []string{"closed", "open", "reload"}
)

// CheckNode checks what the types do not.
func (p *plugin) CheckNode(d *document.Decoder, path string, n *document.Node) {
	oneOf(d, path, n, "logLevel", p.LogLevel, levels)
	oneOf(d, path, n, "failPolicy", p.FailPolicy, policies)
	both := func(a, b string) {
		if n.Field(a) != nil && n.Field(b) != nil {
			d.Fail(path, n.Field(b), "%s and %s exclude each other", a, b)
		}
	}
	both("config", "configFile")
	both("vmConfig", "vmConfigFile")
}

// oneOf wants a field, if it is there, to be one of some words.
func oneOf(d *document.Decoder, path string, n *document.Node, field, value string, words []string) {
	if f := n.Field(field); f != nil && !slices.Contains(words, value) {
		d.Fail(path+"."+field, f, "%q is none of %q", value, words)
	}
}

// over is the plugin with what the other says instead.
func (p plugin) over(base plugin) plugin {
	or(&p.Module, base.Module)
	if p.Config == nil && p.ConfigFile == nil {
		p.Config, p.ConfigFile = base.Config, base.ConfigFile
	}
	if p.VMConfig == nil && p.VMConfigFile == nil {
		p.VMConfig, p.VMConfigFile = base.VMConfig, base.VMConfigFile
	}
	or(&p.Name, base.Name)
	or(&p.RootID, base.RootID)
	or(&p.VMID, base.VMID)
	if p.Env == nil {
		p.Env = base.Env
	}
	if p.Upstreams == nil {
		p.Upstreams = base.Upstreams
	}
	if p.Queues == nil {
		p.Queues = base.Queues
	}
	if p.Functions == nil {
		p.Functions = base.Functions
	}
	or(&p.LogLevel, base.LogLevel)
	or(&p.FailPolicy, base.FailPolicy)
	or(&p.MayFail, base.MayFail)
	or(&p.AllowHeadersStop, base.AllowHeadersStop)
	or(&p.BufferLimit, base.BufferLimit)
	or(&p.Now, base.Now)
	or(&p.StopClock, base.StopClock)
	return p
}

// or sets what has no value.
func or[T comparable](v *T, value T) {
	if *v == *new(T) {
		*v = value
	}
}

// config is what plugintest starts such a plugin with.
func (p plugin) config(properties map[string]property) plugintest.Config {
	c := plugintest.Config{
		Plugin: configOf(p.Config, p.ConfigFile), VM: configOf(p.VMConfig, p.VMConfigFile),
		Name: p.Name, RootID: p.RootID, VMID: p.VMID, Env: p.Env, Properties: values(properties), Queues: p.Queues,
		LogLevel: plugintest.Level(max(0, slices.Index(levels, p.LogLevel))),
		Policy:   plugintest.FailPolicy(max(0, slices.Index(policies, p.FailPolicy))),
		MayFail:  isTrue(p.MayFail), AllowHeadersStop: isTrue(p.AllowHeadersStop),
		BufferLimit: p.BufferLimit, Now: p.Now.Time, StopClock: isTrue(p.StopClock),
	}
	if p.Upstreams != nil {
		c.Upstreams = map[string]func(plugintest.Request) plugintest.Response{}
	}
	for name, r := range p.Upstreams {
		c.Upstreams[name] = r.answerer()
	}
	return c
}

func isTrue(b *bool) bool { return b != nil && *b }

func configOf(c *config, file *fileContents) string {
	switch {
	case c != nil:
		return string(*c)
	case file != nil:
		return string(*file)
	}
	return ""
}

// A config is a text, or anything else as JSON.
type config string

// UnmarshalNode reads either.
func (c *config) UnmarshalNode(d *document.Decoder, path string, n *document.Node) {
	if _, isText := n.Value.(string); n.Kind == document.Scalar && isText {
		*c = config(n.Text)
		return
	}
	text, err := n.JSON()
	if err != nil {
		d.Fail(path, n, "%v", err)
	}
	*c = config(text)
}

// NodeSchema is anything.
func (*config) NodeSchema() map[string]any { return map[string]any{} }

// A timestamp is a time.
type timestamp struct{ time.Time }

// UnmarshalNode reads it as RFC 3339 has it.
func (t *timestamp) UnmarshalNode(d *document.Decoder, path string, n *document.Node) {
	switch v := n.Value.(type) {
	case time.Time:
		t.Time = v
		return
	case string:
		var err error
		if t.Time, err = time.Parse(time.RFC3339, v); err == nil {
			return
		}
	}
	d.Fail(path, n, "want a time such as 2026-01-31T12:00:00Z")
}

// NodeSchema is a time.
func (*timestamp) NodeSchema() map[string]any {
	return map[string]any{"type": "string", "format": "date-time"}
}

// A property is a value that a plugin reads: a string, bytes, bool, integer, float, time,
// list of strings, or map of strings.
type property struct{ value any }

// UnmarshalNode takes what the document has.
func (p *property) UnmarshalNode(d *document.Decoder, path string, n *document.Node) {
	switch n.Kind {
	case document.List:
		list := []string{}
		d.Decode(path, n, &list)
		p.value = list
	case document.Map:
		m := map[string]string{}
		d.Decode(path, n, &m)
		p.value = m
	default:
		if p.value = n.Value; n.Value == nil {
			d.Fail(path, n, "want a value")
		}
	}
}

// NodeSchema is what a property may be.
func (*property) NodeSchema() map[string]any {
	strings := map[string]any{"type": "string"}
	return map[string]any{
		"type":  []string{"string", "number", "boolean", "array", "object"},
		"items": strings, "additionalProperties": strings,
	}
}

func values(properties map[string]property) map[string]any {
	all := map[string]any{}
	for path, p := range properties {
		all[path] = p.value
	}
	return all
}

// merged is both, of the same path the second.
func merged(a, b map[string]property) map[string]property {
	all := map[string]property{}
	maps.Copy(all, a)
	maps.Copy(all, b)
	return all
}

// A test is one plugin, and what happens to it.
type test struct {
	At         document.Position
	Name       string              `spec:"name,required" about:"what it shows"`
	Plugin     plugin              `spec:"plugin" about:"what of the plugin is other than above"`
	Properties map[string]property `spec:"properties" about:"properties, besides those above"`
	StartFails *matcher            `spec:"startFails" about:"the plugin does not start, for example because it refuses its configuration; this is why"`
	Start      *expect             `spec:"start" about:"what to expect once it is started, or was not"`
	Steps      []step              `spec:"steps" about:"what happens, in order"`
}

// CheckNode checks what the types do not.
func (t *test) CheckNode(d *document.Decoder, path string, n *document.Node) {
	switch {
	case n.Field("name") != nil && Name(t.Name) == "":
		d.Fail(path+".name", n, "is empty")
	case t.StartFails != nil && t.Steps != nil:
		d.Fail(path+".steps", n.Field("steps"), "a plugin that does not start takes no steps")
	case t.StartFails == nil && t.Start == nil && t.Steps == nil:
		d.Fail(path, n, "has neither steps, start nor startFails")
	}
}

// A step is one thing that happens, and what to expect then.
type step struct {
	At        document.Position
	Request   *request        `spec:"request" about:"a request comes; what becomes of it is awaited, unless the plugin holds it back, or more of it comes in other steps"`
	Last      *text           `spec:"sendLast" about:"the client of the last request sends the last piece of its body"`
	Trailers  *headers        `spec:"sendTrailers" about:"the client of the last request sends trailers, with which it ends"`
	Respond   *response       `spec:"respond" about:"the backend answers the last request, which is open"`
	ReplyLast *text           `spec:"replyLast" about:"the backend sends the last piece of the answer's body"`
	ReplyEnd  *headers        `spec:"replyTrailers" about:"the backend sends trailers, with which the answer ends"`
	Broken    bool            `spec:"backendFails" about:"the connection to the backend of the last request breaks"`
	Cancel    bool            `spec:"cancel" about:"the client of the last request goes away"`
	Answer    *answer         `spec:"answer" about:"an HTTP call of the plugin's is answered"`
	GRPC      *grpcAnswer     `spec:"grpc" about:"a gRPC call or stream of the plugin's is answered"`
	Connect   *connect        `spec:"connect" about:"a TCP connection is opened"`
	Send      *text           `spec:"send" about:"the client of the connection sends data, or that of the last request a piece of its body"`
	Reply     *text           `spec:"reply" about:"the server of the connection sends data, or the backend a piece of the answer's body"`
	Close     string          `spec:"close" about:"who closes the connection: client, server, or half: the client its side alone"`
	Tick      int             `spec:"tick" about:"the plugin's tick is called so many times"`
	Advance   time.Duration   `spec:"advance" about:"time passes, and ticks with it"`
	SetShared map[string]text `spec:"setShared" about:"others change the data that the plugin shares with them"`
	Enqueue   *item           `spec:"enqueue" about:"others add to a shared queue"`
	Function  *functionCall   `spec:"callFunction" about:"the plugin's proxy_on_foreign_function is called"`
	Expect    *expect         `spec:"expect" about:"what to expect of all that happened in this step"`
}

// CheckNode wants at most one thing to happen.
func (s *step) CheckNode(d *document.Decoder, path string, n *document.Node) {
	happens := 0
	for _, f := range n.Fields {
		if f.Name != "expect" {
			happens++
		}
	}
	switch {
	case happens > 1:
		d.Fail(path, n, "one thing happens in a step, here %d", happens)
	case len(n.Fields) == 0:
		d.Fail(path, n, "nothing happens, and nothing is expected")
	}
	oneOf(d, path, n, "close", s.Close, []string{"client", "server", "half"})
	if f := n.Field("tick"); f != nil && (s.Tick < 1 || s.Tick > 1000) {
		d.Fail(path+".tick", f, "want 1 to 1000")
	}
	if f := n.Field("advance"); f != nil && s.Advance <= 0 {
		d.Fail(path+".advance", f, "time goes forward only")
	}
}

type request struct {
	Method     string              `spec:"method" about:"default GET"`
	Scheme     string              `spec:"scheme" about:"default http"`
	Host       string              `spec:"host" about:"default example.com"`
	Path       string              `spec:"path" about:"with the query; default /"`
	Headers    headers             `spec:"headers" about:"names and values; several values are a list"`
	Body       *text               `spec:"body" about:"the body"`
	Chunks     []text              `spec:"chunks" about:"more pieces of the body; the plugin sees each by itself"`
	Trailers   headers             `spec:"trailers" about:"as headers"`
	Properties map[string]property `spec:"properties" about:"properties of this request, besides those of the test"`
	Backend    *response           `spec:"backend" about:"the answer to this request, if it comes so far"`
	More       bool                `spec:"more" about:"more of the request comes, in steps with send, sendLast and sendTrailers"`
	Open       bool                `spec:"open" about:"the backend answers in steps of its own, with respond, reply, replyLast and replyTrailers"`
}

// CheckNode checks what the types do not.
func (r *request) CheckNode(d *document.Decoder, path string, n *document.Node) {
	if r.Open && r.Backend != nil {
		d.Fail(path+".backend", n.Field("backend"), "an open request is answered in a step, with respond")
	}
	checkMore(d, path, n, r.More)
}

// checkMore wants nothing to come after trailers.
func checkMore(d *document.Decoder, path string, n *document.Node, more bool) {
	if more && n.Field("trailers") != nil {
		d.Fail(path+".more", n.Field("more"), "nothing comes after trailers")
	}
}

type response struct {
	Status   int     `spec:"status" about:"default 200"`
	Headers  headers `spec:"headers" about:"names and values; several values are a list"`
	Body     *text   `spec:"body" about:"the body"`
	Chunks   []text  `spec:"chunks" about:"more pieces of the body; the plugin sees each by itself"`
	Trailers headers `spec:"trailers" about:"as headers"`
	More     bool    `spec:"more" about:"more of it comes, in steps with reply, replyLast and replyTrailers"`
}

// CheckNode checks what the types do not.
func (r *response) CheckNode(d *document.Decoder, path string, n *document.Node) {
	checkStatus(d, path, n, r.Status)
	checkMore(d, path, n, r.More)
}

func checkStatus(d *document.Decoder, path string, n *document.Node, status int) {
	if f := n.Field("status"); f != nil && (status < 100 || status > 599) {
		d.Fail(path+".status", f, "%d is no HTTP status", status)
	}
}

// answerer answers so, whatever is asked; nil for no response.
func (r *response) answerer() func(plugintest.Request) plugintest.Response {
	if r == nil {
		return nil
	}
	return func(plugintest.Request) plugintest.Response { return r.response() }
}

func (r *response) response() plugintest.Response {
	return plugintest.Response{Status: r.Status, Headers: plugintest.Headers(r.Headers), Body: r.Body.String(), Chunks: stringsOf(r.Chunks), Trailers: plugintest.Headers(r.Trailers), More: r.More}
}

// A text is bytes: written out, from a file, or a value as JSON.
type text string

// String is the text, empty for nil.
func (s *text) String() string {
	if s == nil {
		return ""
	}
	return string(*s)
}

func stringsOf(list []text) []string {
	var all []string
	for _, s := range list {
		all = append(all, string(s))
	}
	return all
}

// sources are where a text comes from that is not written out.
type sources struct {
	File *fileContents `spec:"file" about:"a file that has the text, relative to this one"`
	JSON *anything     `spec:"json" about:"a value, which becomes JSON"`
}

// UnmarshalNode reads a scalar, or a mapping.
func (s *text) UnmarshalNode(d *document.Decoder, path string, n *document.Node) {
	if n.Kind == document.Scalar && n.Value != nil {
		*s = text(n.String())
		return
	}
	var from sources
	d.Decode(path, n, &from)
	switch {
	case n.Kind != document.Map:
	case len(n.Fields) != 1:
		d.Fail(path, n, "want a text, or one of file, json")
	case from.File != nil:
		*s = text(*from.File)
	case from.JSON != nil:
		*s = text(from.JSON.text)
	}
}

// NodeSchema is a scalar or a mapping.
func (*text) NodeSchema() map[string]any {
	return map[string]any{"oneOf": []any{scalarSchema(), map[string]any{"$ref": "#/$defs/sources"}}}
}

// headers are fields in order.
type headers plugintest.Headers

// UnmarshalNode reads a mapping from names to a value, or a list of them.
func (h *headers) UnmarshalNode(d *document.Decoder, path string, n *document.Node) {
	eachField(d, path, n, func(path, name string, n *document.Node) {
		list := []string{}
		if n.Kind == document.List {
			d.Decode(path, n, &list)
		} else {
			list = append(list, "")
			d.Decode(path, n, &list[0])
		}
		for _, value := range list {
			*h = append(*h, [2]string{name, value})
		}
	})
}

// NodeSchema is a mapping.
func (*headers) NodeSchema() map[string]any {
	return map[string]any{"type": "object", "additionalProperties": map[string]any{"oneOf": []any{
		scalarSchema(), map[string]any{"type": "array", "items": scalarSchema()},
	}}}
}

// eachField calls f for each field of a mapping that has names of headers.
func eachField(d *document.Decoder, path string, n *document.Node, f func(path, name string, n *document.Node)) {
	if n.Kind != document.Map {
		d.Fail(path, n, "want a mapping of names to values")
		return
	}
	for _, field := range n.Fields {
		switch path := path + "." + field.Name; {
		case field.Name == "":
			d.Fail(path, field.Value, "a header without a name")
		case field.Name[0] == ':':
			d.Fail(path, field.Value, "pseudo-headers are fields of their own: method, scheme, host, path, status")
		default:
			f(path, field.Name, field.Value)
		}
	}
}

type connect struct {
	Properties map[string]property `spec:"properties" about:"properties of this connection, besides those of the test"`
}

type item struct {
	Queue string `spec:"queue,required" about:"the queue's name"`
	Item  text   `spec:"item,required" about:"what is added"`
}

// A function is what a foreign function returns: a text, or that it failed.
type function struct {
	result text
	fails  bool
}

// functionWords are what a function does that returns no text written out.
type functionWords struct {
	File  *fileContents `spec:"file" about:"a file that has what is returned, relative to this one"`
	JSON  *anything     `spec:"json" about:"a value, which is returned as JSON"`
	Fails *bool         `spec:"fails" about:"the plugin sees INTERNAL_FAILURE"`
}

// UnmarshalNode reads a scalar, or a mapping.
func (f *function) UnmarshalNode(d *document.Decoder, path string, n *document.Node) {
	if n.Kind == document.Scalar && n.Value != nil {
		f.result = text(n.String())
		return
	}
	var words functionWords
	d.Decode(path, n, &words)
	switch {
	case n.Kind != document.Map:
	case len(n.Fields) != 1:
		d.Fail(path, n, "want a text, or one of file, json, fails")
	case words.File != nil:
		f.result = text(*words.File)
	case words.JSON != nil:
		f.result = text(words.JSON.text)
	}
	f.fails = isTrue(words.Fails)
}

// NodeSchema is a scalar or a mapping.
func (*function) NodeSchema() map[string]any {
	return map[string]any{"oneOf": []any{scalarSchema(), map[string]any{"$ref": "#/$defs/functionWords"}}}
}

type functionCall struct {
	Function  uint32 `spec:"function" about:"its number"`
	Arguments *text  `spec:"arguments" about:"what it is called with"`
}

type answer struct {
	Upstream string  `spec:"upstream,required" about:"whom the plugin called; the first call that waits is answered"`
	Fails    bool    `spec:"fails" about:"there is no answer: the connection broke"`
	Status   int     `spec:"status" about:"default 200"`
	Headers  headers `spec:"headers" about:"names and values; several values are a list"`
	Body     *text   `spec:"body" about:"the body"`
	Trailers headers `spec:"trailers" about:"as headers"`
}

// CheckNode checks what the types do not.
func (a *answer) CheckNode(d *document.Decoder, path string, n *document.Node) {
	checkStatus(d, path, n, a.Status)
	if a.Fails && len(n.Fields) > 2 {
		d.Fail(path, n, "a call that fails has no answer")
	}
}

type grpcAnswer struct {
	Upstream         string     `spec:"upstream,required" about:"whom the plugin called; the first call or stream that is not over is answered"`
	InitialMetadata  headers    `spec:"initialMetadata" about:"what the server sends first, on a stream"`
	Messages         []text     `spec:"messages" about:"messages, encoded; one ends a unary call"`
	TrailingMetadata headers    `spec:"trailingMetadata" about:"what the server sends last, on a stream"`
	Close            *grpcClose `spec:"close" about:"the end of a stream, or of a unary call that failed"`
}

type grpcClose struct {
	Status  int    `spec:"status" about:"the gRPC status, 0 for OK"`
	Message string `spec:"message" about:"the message with it"`
}

// suiteTests reads tests of our own form.
func suiteTests(d *document.Decoder, file string, n *document.Node, opts Options) []*Test {
	var s suite
	d.Decode("", n, &s)
	var all []*Test
	for _, t := range s.Tests {
		t.Plugin = t.Plugin.over(s.Plugin)
		t.Properties = merged(s.Properties, t.Properties)
		module := opts.Module
		switch {
		case module != "":
		case t.Plugin.Module != "":
			module = beside(file, t.Plugin.Module)
		default:
			module = beside(project(file)+"/.", defaultModule)
		}
		all = append(all, &Test{Name: t.Name, Line: t.At.Line, module: module, run: func(r *run) {
			(&suiteRun{run: r, test: t, backend: s.Backend}).all(module)
		}})
	}
	if len(all) == 0 && len(d.Problems) == 0 {
		d.Fail("tests", n, "there are none")
	}
	return all
}

// SchemaID is where the schema of our own form is found.
const SchemaID = "https://chandler-proxy.github.io/chandler/plugin-tests.schema.json"

// Schema is the JSON schema of our own form.
func Schema() ([]byte, error) {
	schema := document.Schema(suite{}, SchemaID, "Tests of a Proxy-Wasm plugin, for chandler plugin test", matchers{}, sources{}, logWords{}, functionWords{})
	text, err := json.MarshalIndent(schema, "", "  ")
	return append(text, '\n'), err
}
