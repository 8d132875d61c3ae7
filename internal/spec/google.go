package spec

import (
	"cmp"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/spec/document"
)

// What follows is the test suite of Google's Service Extensions, whose fields are those of
// its message service_extensions_samples.pb.TestSuite, with the rules of its runner. In
// YAML it has the same fields.
//
// https://github.com/GoogleCloudPlatform/service-extensions/blob/main/plugins/test/runner.proto

type googleSuite struct {
	Env  googleEnv    `spec:"env"`
	Test []googleTest `spec:"test"`
}

type googleEnv struct {
	TestPath                    string   `spec:"test_path"`
	WasmPath                    string   `spec:"wasm_path"`
	ConfigPath                  string   `spec:"config_path"`
	LogLevel                    logLevel `spec:"log_level"`
	LogPath                     string   `spec:"log_path"`
	TimeSecs                    int64    `spec:"time_secs"`
	NumAdditionalStreams        uint64   `spec:"num_additional_streams"`
	AdditionalStreamAdvanceRate uint64   `spec:"additional_stream_advance_rate"`

	config []byte
}

// maxStreams bounds the streams that a benchmark has besides its own.
const maxStreams = 100_000

// CheckNode reads the file with the configuration.
func (e *googleEnv) CheckNode(d *document.Decoder, path string, n *document.Node) {
	if f := n.Field("config_path"); f != nil && e.ConfigPath != "" {
		var err error
		if e.config, err = readFile(e.ConfigPath, maxFile); err != nil {
			e.config = d.ReadFile(path+".config_path", f, e.ConfigPath)
		}
	}
	if f := n.Field("time_secs"); f != nil && e.TimeSecs < 0 {
		d.Fail(path+".time_secs", f, "want seconds since 1970")
	}
	if f := n.Field("num_additional_streams"); f != nil && e.NumAdditionalStreams > maxStreams {
		d.Fail(path+".num_additional_streams", f, "want at most %d", maxStreams)
	}
}

// A logLevel is one of the enumeration's.
type logLevel int

var googleLevels = []string{"UNDEFINED", "TRACE", "DEBUG", "INFO", "WARN", "ERROR", "CRITICAL"}

// UnmarshalNode reads its name or number.
func (l *logLevel) UnmarshalNode(d *document.Decoder, path string, n *document.Node) {
	i := slices.Index(googleLevels, n.Text)
	if number, err := strconv.Atoi(n.Text); err == nil && number >= 0 && number < len(googleLevels) {
		i = number
	}
	if i < 0 {
		d.Fail(path, n, "want one of %s", strings.Join(googleLevels, ", "))
	}
	*l = logLevel(i)
}

// abi is the level; undefined is INFO.
func (l logLevel) abi() abi.LogLevel {
	if l <= 0 {
		return abi.Info
	}
	return abi.LogLevel(l - 1)
}

type googleTest struct {
	At              document.Position
	Name            string             `spec:"name"`
	Benchmark       bool               `spec:"benchmark"`
	NumChunks       *int32             `spec:"num_chunks"`
	ChunkSize       *int64             `spec:"chunk_size"`
	Properties      []googleProperty   `spec:"properties"`
	RequestHeaders  *googleInvocation  `spec:"request_headers"`
	RequestBody     []googleInvocation `spec:"request_body"`
	ResponseHeaders *googleInvocation  `spec:"response_headers"`
	ResponseBody    []googleInvocation `spec:"response_body"`
	PluginInit      googleResult       `spec:"plugin_init"`
	StreamInit      googleResult       `spec:"stream_init"`
	StreamDestroy   googleResult       `spec:"stream_destroy"`
}

// CheckNode checks what the types do not, and parses the headers.
func (t *googleTest) CheckNode(d *document.Decoder, path string, n *document.Node) {
	plan := cmp.Or(n.Field("num_chunks"), n.Field("chunk_size"))
	switch {
	case t.NumChunks != nil && t.ChunkSize != nil:
		d.Fail(path, n, "num_chunks and chunk_size exclude each other")
	case t.NumChunks != nil && *t.NumChunks < 1, t.ChunkSize != nil && *t.ChunkSize < 1:
		d.Fail(path, plan, "want one chunk, or byte, at least")
	}
	for _, phase := range []struct {
		name string
		all  []googleInvocation
	}{{"request_body", t.RequestBody}, {"response_body", t.ResponseBody}} {
		if plan != nil && len(phase.all) > 1 {
			d.Fail(path+"."+phase.name, n.Field(phase.name), "num_chunks and chunk_size want the whole body in one %s", phase.name)
		}
		for i := range phase.all {
			t.chunk(d, &phase.all[i])
		}
	}
	if t.RequestHeaders != nil {
		t.RequestHeaders.Input.parse(d, true)
	}
	if t.ResponseHeaders != nil {
		t.ResponseHeaders.Input.parse(d, false)
	}
}

// chunk cuts a body as the test says.
func (t *googleTest) chunk(d *document.Decoder, in *googleInvocation) {
	body := in.Input.text()
	size := len(body)
	switch {
	case t.ChunkSize != nil && *t.ChunkSize > 0:
		size = int(min(*t.ChunkSize, int64(max(1, len(body)))))
	case t.NumChunks != nil && *t.NumChunks > 0:
		size = len(body) / int(*t.NumChunks)
		if size == 0 {
			d.Problems = append(d.Problems, document.Problem{Line: in.At.Line, Path: in.At.Path,
				Message: fmt.Sprintf("%d bytes make no %d chunks", len(body), *t.NumChunks)})
			return
		}
	}
	for len(body) > size && (t.NumChunks == nil || len(in.chunks) < int(*t.NumChunks)-1) {
		in.chunks = append(in.chunks, body[:size])
		body = body[size:]
	}
	in.chunks = append(in.chunks, body)
}

type googleProperty struct {
	Path  string `spec:"path"`
	Value string `spec:"value"`
}

type googleInvocation struct {
	At     document.Position
	Input  googleInput  `spec:"input"`
	Result googleResult `spec:"result"`

	chunks []string // of a body
}

// CheckNode gives a result that is not written out a place.
func (i *googleInvocation) CheckNode(_ *document.Decoder, path string, n *document.Node) {
	if i.Result.At.Line == 0 {
		i.Result.At = document.Position{Line: n.Line, Path: path + ".result"}
	}
	if i.Input.At.Line == 0 {
		i.Input.At = document.Position{Line: n.Line, Path: path + ".input"}
	}
}

type googleHeader struct {
	At    document.Position
	Key   string `spec:"key"`
	Value string `spec:"value"`
}

// An input is headers or a body. As in Google's runner a file goes before content, and
// content before single headers.
type googleInput struct {
	At      document.Position
	Header  []googleHeader `spec:"header"`
	Content string         `spec:"content"`
	File    *fileContents  `spec:"file"`

	headers *mergedHeaders
}

// CheckNode wants one kind of input.
func (i *googleInput) CheckNode(d *document.Decoder, path string, n *document.Node) {
	if n.Kind == document.Map && len(i.Header) > 0 && (i.Content != "" || i.File != nil) || i.Content != "" && i.File != nil {
		d.Fail(path, n, "header, content and file exclude each other")
	}
}

// text is the input as one text.
func (i *googleInput) text() string {
	if i.File != nil {
		return string(*i.File)
	}
	return i.Content
}

// parse makes headers of the input.
func (i *googleInput) parse(d *document.Decoder, request bool) {
	i.headers = new(mergedHeaders)
	text := i.text()
	if text == "" && i.File == nil {
		for _, h := range i.Header {
			i.headers.Add(h.Key, h.Value)
		}
		return
	}
	fields, err := parseMessage(text, request)
	if err != nil {
		d.Problems = append(d.Problems, document.Problem{Line: i.At.Line, Path: i.At.Path, Message: err.Error()})
		return
	}
	for _, f := range fields {
		i.headers.Add(f.Key, f.Value)
	}
}

// A googleResult is what a phase must come to.
type googleResult struct {
	At        document.Position
	HasHeader []googleHeader   `spec:"has_header"`
	NoHeader  []googleHeader   `spec:"no_header"`
	Headers   []googleMatcher  `spec:"headers"`
	Body      []googleMatcher  `spec:"body"`
	Immediate *googleImmediate `spec:"immediate"`
	Log       []googleMatcher  `spec:"log"`
}

// CheckNode wants headers to have names.
func (r *googleResult) CheckNode(d *document.Decoder, path string, _ *document.Node) {
	for _, h := range slices.Concat(r.HasHeader, r.NoHeader) {
		if h.Key == "" {
			d.Problems = append(d.Problems, document.Problem{Line: h.At.Line, Path: h.At.Path, Message: "want a key"})
		}
	}
}

type googleImmediate struct {
	At         document.Position
	HTTPStatus *uint32 `spec:"http_status"`
	GRPCStatus *uint32 `spec:"grpc_status"`
	Details    *string `spec:"details"`
}

// A googleMatcher holds if one of some texts is as it says, or, inverted, none.
type googleMatcher struct {
	At     document.Position
	Invert bool          `spec:"invert"`
	Exact  *string       `spec:"exact"`
	Regex  *wholeMatch   `spec:"regex"`
	File   *fileContents `spec:"file"`
}

// CheckNode wants one way to match.
func (m *googleMatcher) CheckNode(d *document.Decoder, path string, n *document.Node) {
	ways := 0
	for _, given := range []bool{m.Exact != nil, m.Regex != nil, m.File != nil} {
		if given {
			ways++
		}
	}
	if n.Kind == document.Map && ways != 1 {
		d.Fail(path, n, "want one of exact, regex, file; have %d", ways)
	}
	if m.File != nil {
		m.Exact = (*string)(m.File)
	}
}

// A wholeMatch is a regular expression that must match all of a text.
type wholeMatch struct {
	text   string
	re     *regexp.Regexp
	prefix string // that all it matches begins with
}

// UnmarshalNode reads it.
func (w *wholeMatch) UnmarshalNode(d *document.Decoder, path string, n *document.Node) {
	d.Decode(path, n, &w.text)
	part, err := regexp.Compile(w.text)
	if err != nil {
		d.Fail(path, n, "%v", err)
		return
	}
	w.prefix, _ = part.LiteralPrefix()
	if w.re, err = regexp.Compile(`\A(?:` + w.text + `)\z`); err != nil {
		d.Fail(path, n, "%v", err)
	}
}

// A candidate is what a matcher is tried on: a text, or a header field as a line.
type candidate struct {
	name  string // of a field; else empty
	value string
}

func (c candidate) String() string {
	if c.name == "" {
		return c.value
	}
	return c.name + ": " + c.value
}

// check fails the test unless the matcher holds for one of the texts, or, inverted, none.
func (m *googleMatcher) check(t *run, what string, texts []candidate) {
	if slices.ContainsFunc(texts, m.matches) != m.Invert {
		return
	}
	if m.Exact != nil && !m.Invert && len(texts) == 1 {
		t.failAt(m.At.Line, "%s: %s: %s", m.At.Path, what, diff(*m.Exact, texts[0].String()))
		return
	}
	want := "want"
	if m.Invert {
		want = "want no"
	}
	pattern := ""
	if m.Regex != nil {
		pattern = "match of " + m.Regex.text
	} else {
		pattern = strconv.Quote(*m.Exact)
	}
	have := []string{"nothing"}
	for i, text := range texts {
		have = append(have[:i], strconv.Quote(text.String()))
	}
	t.failAt(m.At.Line, "%s: %s %s %s\nhave %s", m.At.Path, want, what, pattern, strings.Join(have, "\n     "))
}

// matches tries a text. A field's name is tried as the matcher writes it, too: plugins
// write names as they like, proxies make them lower case.
func (m *googleMatcher) matches(c candidate) bool {
	if c.name != "" {
		if name := m.name(); strings.EqualFold(name, c.name) && m.holds(candidate{name, c.value}.String()) {
			return true
		}
	}
	return m.holds(c.String())
}

// name is the field that a matcher for lines of headers begins with, as it writes it.
func (m *googleMatcher) name() string {
	text := ""
	if m.Regex != nil {
		text = m.Regex.prefix
	} else {
		text = *m.Exact
	}
	if i := strings.IndexByte(text[min(1, len(text)):], ':'); i >= 0 { // not that of a pseudo-header
		return text[:i+1]
	}
	return ""
}

func (m *googleMatcher) holds(text string) bool {
	if m.Regex != nil {
		return m.Regex.re.MatchString(text)
	}
	return text == *m.Exact
}

// googleForm reports whether YAML is of Google's form.
func googleForm(n *document.Node) bool {
	return n.Field("tests") == nil && (n.Field("test") != nil || n.Field("env") != nil)
}

// googleTests reads tests of that form.
func googleTests(d *document.Decoder, file string, n *document.Node, opts Options) []*Test {
	var s googleSuite
	d.Decode("", n, &s)
	if opts.PluginConfig != nil {
		s.Env.config = opts.PluginConfig
	}
	module := opts.Module
	switch {
	case module != "":
	case s.Env.WasmPath != "":
		// As Google's runner: from where the command runs; else from the file on.
		if module = s.Env.WasmPath; !exists(module) && exists(beside(file, module)) {
			module = beside(file, module)
		}
	default:
		module = beside(project(file)+"/.", defaultModule)
	}
	g := googleFile{env: s.Env, module: module, stdout: opts.Stdout, stderr: opts.Stderr}
	var all []*Test
	for i, t := range s.Test {
		one := &Test{Name: cmp.Or(t.Name, fmt.Sprintf("test[%d]", i)), Line: t.At.Line, module: module}
		one.run = func(r *run) { g.test(r, one.Name, t) }
		if t.Benchmark {
			// What it costs to start and end a plugin and a stream is the same for all.
			first := !slices.ContainsFunc(s.Test[:i], func(t googleTest) bool { return t.Benchmark })
			one.bench = func(r *run, b benchmark) { g.bench(r, t, b, first) }
		}
		all = append(all, one)
	}
	if len(all) == 0 && len(d.Problems) == 0 {
		d.Fail("test", n, "there is none")
	}
	return all
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
