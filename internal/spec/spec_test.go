package spec

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write what is expected anew")

const modules = "../../plugins/testdata/"

// builds are the Go plugins that tests need, built once.
var builds sync.Map

// build builds the Go plugin in a folder and returns its module's file.
func build(t *testing.T, folder string) string {
	t.Helper()
	once, _ := builds.LoadOrStore(folder, sync.OnceValues(func() (string, error) {
		dir, err := os.MkdirTemp(temporary, "plugin")
		if err != nil {
			return "", err
		}
		file := filepath.Join(dir, "plugin.wasm")
		cmd := exec.Command("go", "build", "-buildmode=c-shared", "-buildvcs=false", "-ldflags=-s -w", "-o", file, ".")
		cmd.Dir = folder
		cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "GOFLAGS=", "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", errors.New(string(out))
		}
		return file, nil
	}))
	file, err := once.(func() (string, error))()
	if err != nil {
		t.Fatalf("build %s: %v", folder, err)
	}
	return file
}

// temporary is gone when the tests are over.
var temporary string

func TestMain(m *testing.M) {
	flag.Parse()
	var err error
	if temporary, err = os.MkdirTemp("", "spec-*"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(temporary)
	os.Exit(code)
}

// outcome runs suites and returns what is told of them: a line an event, without times
// and traces.
func outcome(t *testing.T, cfg Config, suites ...*Suite) (text string, passed bool) {
	t.Helper()
	var b strings.Builder
	passed, err := RunAll(t.Context(), suites, cfg, func(e Event) {
		if e.Test == "" {
			return
		}
		switch e.Action {
		case Output:
			b.WriteString(tidy(e.Text) + "\n")
		case Pass:
			b.WriteString("pass " + e.Test + "\n")
		case Fail:
			b.WriteString("fail " + e.Test + "\n\n")
		case Bench:
			b.WriteString(regexp.MustCompile(`-\d+\t *\d+\t *\d+ ns/op`).ReplaceAllString(e.Text, " measured") + "\n")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String(), passed
}

// tidy leaves out of a failure where in a Go module it happened.
func tidy(text string) string {
	text, _, _ = strings.Cut(text, "\n    wasm stack trace:")
	return regexp.MustCompile(`(?m)^    it logged (error|info): (goroutine|\t|main\.|github|created by|runtime|$|\[).*\n?`).ReplaceAllString(text, "")
}

func load(t *testing.T, file string, opts Options) *Suite {
	t.Helper()
	s, err := Load(file, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// write makes a file of tests.
func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// golden compares text with a file.
func golden(t *testing.T, file, text string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("not %s, -update writes it (-want +got):\n%s", file, diff)
	}
}

// TestEverything has what the form has: what is so passes, what is not fails.
func TestEverything(t *testing.T) {
	opts := Options{Module: build(t, "../../plugintest/testdata/everything")}
	good, bad := load(t, "testdata/everything/tests.yaml", opts), load(t, "testdata/everything/fails.yaml", opts)
	text, passed := outcome(t, Config{}, good, bad) // together, as the module takes a while to compile
	last := "pass " + good.Tests[len(good.Tests)-1].Name + "\n"
	passes, fails, _ := strings.Cut(text, last)
	if passed || strings.Count(passes+last, "pass ") != len(good.Tests) || strings.Count(fails, "\nfail ") != len(bad.Tests) {
		t.Errorf("of %d tests not all pass, or of %d not all fail:\n%s", len(good.Tests), len(bad.Tests), passes)
	}
	golden(t, "testdata/everything/fails.txt", fails)
}

// TestTrace has what helps those who look for why a test failed.
func TestTrace(t *testing.T) {
	for _, tt := range []struct{ file, text string }{
		{"tests.yaml", "tests: [{name: traps, steps: [{request: {}}]}]"},
		{"tests.textpb", "test { name: 'traps' request_headers { } }"},
	} {
		s := load(t, write(t, tt.file, tt.text), Options{Module: modules + "trap-on-request.wasm"})
		var all []string
		passed, err := RunAll(t.Context(), []*Suite{s}, Config{}, func(e Event) {
			if e.Action == Output || e.Action == Trace {
				all = append(all, e.Text)
			}
		})
		text := strings.Join(all, "\n")
		if passed || err != nil || !strings.Contains(text, "proxy_on_request_headers: wasm error: unreachable") || !strings.Contains(text, "--> proxy_on_request_headers(context=2") {
			t.Errorf("%s: passed %v, %v:\n%s", tt.file, passed, err, text)
		}
	}
}

const three = `
plugin: {module: ` + "MODULE" + `}
tests:
- {name: one, steps: [{request: {}, expect: {response: {headers: {x-wasm: wasm}}}}]}
- {name: two  two, plugin: {config: '{"a":"b"}'}, steps: [{request: {}, expect: {response: {headers: {x-wasm: wasm}}}}]}
- {name: one, plugin: {config: '{"a":"b"}'}, steps: [{request: {}, expect: {response: {headers: {x-wasm: b}}}}]}
`

func TestRun(t *testing.T) {
	module, err := filepath.Abs(modules + "addheader.wasm")
	if err != nil {
		t.Fatal(err)
	}
	s := load(t, write(t, "tests.yaml", strings.ReplaceAll(three, "MODULE", module)), Options{})
	for _, tt := range []struct {
		name   string
		cfg    Config
		want   []string
		passed bool
	}{
		{"all", Config{}, []string{"pass one", "fail two_two", "pass one#01"}, false},
		{"some", Config{Match: regexp.MustCompile("^one")}, []string{"pass one", "pass one#01"}, true},
		{"none", Config{Match: regexp.MustCompile("three")}, nil, true},
		{"twice", Config{Match: regexp.MustCompile("^one$"), Count: 2}, []string{"pass one", "pass one"}, true},
		{"until one fails", Config{FailFast: true, Count: 3}, []string{"pass one", "fail two_two"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text, passed := outcome(t, tt.cfg, s)
			var got []string
			for line := range strings.Lines(text) {
				if strings.HasPrefix(line, "pass ") || strings.HasPrefix(line, "fail ") {
					got = append(got, strings.TrimSpace(line))
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || passed != tt.passed {
				t.Errorf("passed = %v (-want +got):\n%s", passed, diff)
			}
		})
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	ran := 0
	passed, err := RunAll(ctx, []*Suite{s}, Config{}, func(e Event) {
		if e.Action == Run {
			ran++
			cancel(why)
		}
	})
	if passed || !errors.Is(err, why) || ran != 1 {
		t.Errorf("RunAll whose context ends = %v, %v after %d tests", passed, err, ran)
	}
}

// A module that cannot be loaded fails its tests, in either form.
func TestModule(t *testing.T) {
	for _, tt := range []struct{ file, text string }{
		{"tests.yaml", "tests: [{name: a, steps: [{request: {}}]}, {name: b, steps: [{request: {}}]}]"},
		{"tests.textpb", "test { name: 'a' } test { name: 'b' }"},
	} {
		s := load(t, write(t, tt.file, tt.text), Options{Module: modules + "missing-import.wasm"})
		text, passed := outcome(t, Config{}, s)
		if passed || strings.Count(text, "import env.proxy_no_such_function") != 2 {
			t.Errorf("%s: %s", tt.file, text)
		}
	}
}

func TestLoad(t *testing.T) {
	for _, tt := range []struct{ name, file, text, want string }{
		{"no module", "tests.yaml", "tests: [{name: a, steps: [{request: {}}]}]", "FILE:1: no such module: DIR/build/plugin.wasm; build it (chandler plugin build) or say where it is (--module)"},
		{"no module beside tests", "tests/a.yaml", "tests: [{name: a, steps: [{request: {}}]}]", "FILE:1: no such module: PARENT/build/plugin.wasm; build it (chandler plugin build) or say where it is (--module)"},
		{"its own module", "tests.yaml", "plugin: {module: a.wasm}\ntests:\n- {name: a, plugin: {module: b.wasm}, steps: [{request: {}}]}", "FILE:3: no such module: DIR/b.wasm; build it (chandler plugin build) or say where it is (--module)"},
		{"no module, Google", "tests.textpb", "test {}", "FILE:1: no such module: DIR/build/plugin.wasm; build it (chandler plugin build) or say where it is (--module)"},
		{"no tests", "tests.yaml", "", "FILE:1: tests: is missing"},
		{"none in the list", "tests.yaml", "tests: []", "FILE:1: tests: there are none"},
		{"no tests, Google", "tests.textpb", "env {}", "FILE:1: test: there is none"},
		{"not YAML", "tests.yaml", "a: [", "FILE:2: not YAML: did not find expected node content"},
		{"unknown field", "tests.yaml", "tests:\n- name: a\n  step: []", "FILE:2: tests[0]: has neither steps, start nor startFails\nFILE:3: tests[0].step: unknown field; did you mean steps?"},
		{"what is wrong with a plugin", "tests.yaml", "plugin:\n  logLevel: loud\n  failPolicy: shut\n  config: a\n  configFile: none\n  now: today\n  env: {A: [1]}\ntests: [{name: a, steps: [{tick: 1}]}]",
			"FILE:2: plugin.logLevel: \"loud\" is none of [\"trace\" \"debug\" \"info\" \"warn\" \"error\" \"critical\"]\nFILE:3: plugin.failPolicy: \"shut\" is none of [\"closed\" \"open\" \"reload\"]\n" +
				"FILE:5: plugin.configFile: open DIR/none: no such file or directory\nFILE:5: plugin: config and configFile exclude each other\nFILE:6: plugin.now: want a time such as 2026-01-31T12:00:00Z\nFILE:7: plugin.env.A: want a string, have a list"},
		{"what is wrong with functions", "tests.yaml", "plugin:\n  functions:\n    a: {fails: maybe}\n    b: null\n    c: {fail: true}\n    d: {fails: true, json: 1}\ntests: [{name: a, steps: [{callFunction: {function: -1}}]}]",
			"FILE:3: plugin.functions.a.fails: want true or false, have \"maybe\"\nFILE:4: plugin.functions.b: want a mapping, have nothing\n" +
				"FILE:5: plugin.functions.c.fail: unknown field; did you mean fails?\nFILE:6: plugin.functions.d: want a text, or one of file, json, fails\n" +
				"FILE:7: tests[0].steps[0].callFunction.function: want a number from 0 to 4294967295, have \"-1\""},
		{"what is wrong with a test", "tests.yaml", "tests:\n- name: ' '\n  start: {}\n- name: a\n  startFails: x\n  steps: []\n", "FILE:2: tests[0].name: is empty\nFILE:3: tests[0].start: expects nothing"},
		{"steps of what does not start", "tests.yaml", "tests:\n- name: a\n  startFails: x\n  steps: [{tick: 1}]", "FILE:4: tests[0].steps: a plugin that does not start takes no steps"},
		{"what is wrong with steps", "tests.yaml", "tests:\n- name: a\n  steps:\n  - {tick: 0}\n  - {advance: -1s}\n  - {tick: 1, cancel: true}\n  - {}\n  - {close: me}\n  - {request: {backend: {status: 7}}}\n  - {answer: {upstream: a, fails: true, status: 200}}\n  - {answer: {}}\n  - {enqueue: {}}\n",
			"FILE:4: tests[0].steps[0].tick: want 1 to 1000\nFILE:5: tests[0].steps[1].advance: time goes forward only\nFILE:6: tests[0].steps[2]: one thing happens in a step, here 2\n" +
				"FILE:7: tests[0].steps[3]: nothing happens, and nothing is expected\nFILE:8: tests[0].steps[4].close: \"me\" is none of [\"client\" \"server\" \"half\"]\n" +
				"FILE:9: tests[0].steps[5].request.backend.status: 7 is no HTTP status\nFILE:10: tests[0].steps[6].answer: a call that fails has no answer\n" +
				"FILE:11: tests[0].steps[7].answer.upstream: is missing\nFILE:12: tests[0].steps[8].enqueue.queue: is missing\nFILE:12: tests[0].steps[8].enqueue.item: is missing"},
		{"what is wrong with pieces", "tests.yaml", "tests:\n- name: a\n  steps:\n  - request:\n      open: true\n      backend: {status: 200}\n      more: true\n      trailers: {a: b}\n  - respond: {more: true, trailers: {a: b}}\n  - sendTrailers: a\n  - {send: a, sendLast: b}\n",
			"FILE:6: tests[0].steps[0].request.backend: an open request is answered in a step, with respond\nFILE:7: tests[0].steps[0].request.more: nothing comes after trailers\n" +
				"FILE:9: tests[0].steps[1].respond.more: nothing comes after trailers\nFILE:10: tests[0].steps[2].sendTrailers: want a mapping of names to values\n" +
				"FILE:11: tests[0].steps[3]: one thing happens in a step, here 2"},
		{"what is wrong with a request", "tests.yaml", "tests:\n- name: a\n  steps:\n  - request:\n      headers: {':path': /}\n      trailers: a\n      body: {file: x, json: 1}\n      chunks: [{file: none}, null]\n      properties: {a: null}\n",
			"FILE:5: tests[0].steps[0].request.headers.:path: pseudo-headers are fields of their own: method, scheme, host, path, status\nFILE:6: tests[0].steps[0].request.trailers: want a mapping of names to values\n" +
				"FILE:7: tests[0].steps[0].request.body.file: open DIR/x: no such file or directory\nFILE:7: tests[0].steps[0].request.body: want a text, or one of file, json\n" +
				"FILE:8: tests[0].steps[0].request.chunks[0].file: open DIR/none: no such file or directory\nFILE:8: tests[0].steps[0].request.chunks[1]: want a mapping, have nothing\nFILE:9: tests[0].steps[0].request.properties.a: want a value"},
		{"what is wrong with expectations", "tests.yaml", "tests:\n- name: a\n  steps:\n  - expect:\n      held: me\n      upstream: {body: {exact: a, contains: b}}\n      response: {body: {matches: '('}}\n      returns: {requestBody: [stop]}\n" +
			"      logs: [{absent: true}, {level: info, exact: a, contains: b}, {level: loud}]\n      metrics: {a: -1}\n      toServer: {absent: false}\n      toClient: [a]\n",
			"FILE:5: tests[0].steps[0].expect.held: \"me\" is none of [\"request\" \"response\" \"nothing\"]\n" +
				"FILE:6: tests[0].steps[0].expect.upstream.body: want one of exact, contains, matches, json, file, absent, not; have 2\nFILE:7: tests[0].steps[0].expect.response.body.matches: error parsing regexp: missing closing ): `(`\n" +
				"FILE:8: tests[0].steps[0].expect.returns.requestBody: \"stop\" is neither continue nor pause\nFILE:9: tests[0].steps[0].expect.logs[0]: want one of exact, contains, matches; or a level alone\n" +
				"FILE:9: tests[0].steps[0].expect.logs[1]: want one of exact, contains, matches; or a level alone\nFILE:9: tests[0].steps[0].expect.logs[2].level: \"loud\" is none of [\"trace\" \"debug\" \"info\" \"warn\" \"error\" \"critical\"]\n" +
				"FILE:10: tests[0].steps[0].expect.metrics.a: want a number from 0 to 18446744073709551615, have \"-1\"\nFILE:11: tests[0].steps[0].expect.toServer: absent can only be true; for what is there, use matches: ''\n" +
				"FILE:12: tests[0].steps[0].expect.toClient: want a mapping, have a list"},
		{"what is wrong with Google's", "tests.textpb", "env {\n  log_level: LOUD\n  time_secs: -1\n  config_path: 'none'\n  num_additional_streams: 1000000\n}\n" +
			"test {\n  num_chunks: 0\n}\ntest {\n  num_chunks: 1 chunk_size: 1\n}\ntest {\n  num_chunks: 3\n  request_body { input { content: 'ab' } }\n}\n" +
			"test {\n  chunk_size: 3\n  request_body { }\n  request_body { }\n}\n",
			"FILE:2: env.log_level: want one of UNDEFINED, TRACE, DEBUG, INFO, WARN, ERROR, CRITICAL\nFILE:3: env.time_secs: want seconds since 1970\nFILE:4: env.config_path: open DIR/none: no such file or directory\nFILE:5: env.num_additional_streams: want at most 100000\n" +
				"FILE:8: test[0]: want one chunk, or byte, at least\nFILE:10: test[1]: num_chunks and chunk_size exclude each other\nFILE:15: test[2].request_body[0]: 2 bytes make no 3 chunks\nFILE:19: test[3].request_body: num_chunks and chunk_size want the whole body in one request_body"},
		{"what else is wrong with Google's", "tests.yaml", "test:\n- request_headers:\n    input: {content: 'GET', header: [{key: a}]}\n    result:\n      has_header: [{value: a}]\n      body: [{}]\n      headers: [{exact: a, regex: b}]\n      log: [{regex: '('}]\n  benchmark: perhaps\n- response_headers: {input: {content: HTTP}}\n",
			"FILE:3: test[0].request_headers.input: header, content and file exclude each other\nFILE:3: test[0].request_headers.input: HTTP message: \"GET\" is no request line, as in GET / HTTP/1.1\nFILE:5: test[0].request_headers.result.has_header[0]: want a key\nFILE:6: test[0].request_headers.result.body[0]: want one of exact, regex, file; have 0\nFILE:7: test[0].request_headers.result.headers[0]: want one of exact, regex, file; have 2\n" +
				"FILE:8: test[0].request_headers.result.log[0].regex: error parsing regexp: missing closing ): `(`\nFILE:9: test[0].benchmark: want true or false, have \"perhaps\"\n" +
				"FILE:10: test[1].response_headers.input: HTTP message: \"HTTP\" is no status line, as in HTTP/1.1 200 OK"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := write(t, tt.file, tt.text)
			_, err := Load(file, Options{})
			if err == nil {
				t.Fatal("no error")
			}
			dir := filepath.Dir(file)
			got := strings.NewReplacer(file, "FILE", dir, "DIR", filepath.Dir(dir), "PARENT").Replace(err.Error())
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := Load(write(t, "tests.yaml", "tests: [{name: a, steps: [{tick: 1}]}]"), Options{}); !errors.Is(err, ErrNoModule) {
		t.Errorf("Load = %v, want ErrNoModule", err)
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none"), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Load = %v, want os.ErrNotExist", err)
	}
}

func TestFind(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a[b]*")
	for _, name := range []string{"tests.yaml", "tests_more.textpb", "tests/b.yml", "tests/a.yaml", "tests/c.textpb", "tests/c.txt", "tests/deep/d.yaml", "other.yaml"} {
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Find(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i, file := range got {
		rel, err := filepath.Rel(dir, file)
		if err != nil {
			t.Fatal(err)
		}
		got[i] = filepath.ToSlash(rel)
	}
	if diff := cmp.Diff([]string{"tests.yaml", "tests/a.yaml", "tests/b.yml", "tests/c.textpb", "tests_more.textpb"}, got); diff != "" {
		t.Errorf("Find (-want +got):\n%s", diff)
	}
	if got, err := Find(filepath.Join(dir, "other.yaml")); err != nil || len(got) != 1 {
		t.Errorf("Find of a file = %q, %v", got, err)
	}
	if _, err := Find(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Find of nothing = %v", err)
	}
}

// TestSchemaIsCommitted keeps docs/plugin-tests.schema.json what the types say.
func TestSchemaIsCommitted(t *testing.T) {
	schema, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "../../docs/plugin-tests.schema.json", string(schema))
	var doc struct {
		Defs map[string]any `json:"$defs"`
	}
	if err := json.Unmarshal(schema, &doc); err != nil {
		t.Fatal(err)
	}
	for _, ref := range regexp.MustCompile(`"#/\$defs/(\w+)"`).FindAllStringSubmatch(string(schema), -1) {
		if doc.Defs[ref[1]] == nil {
			t.Errorf("schema refers to %s, which it has not", ref[1])
		}
	}
}

// TestDocs keeps docs/plugin-tests.md complete: it has every field that there is, and its examples
// are tests.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../../docs/plugin-tests.md")
	if err != nil {
		t.Fatal(err)
	}
	schema, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Defs map[string]struct{ Properties map[string]any } `json:"$defs"`
	}
	if err := json.Unmarshal(schema, &doc); err != nil {
		t.Fatal(err)
	}
	for name, def := range doc.Defs {
		for field := range def.Properties {
			if !regexp.MustCompile("`(.*[^a-zA-Z])?" + field + "[^a-zA-Z].*?`|`" + field + "`|\\b" + field + ":").Match(text) {
				t.Errorf("docs/plugin-tests.md does not have %s of %s", field, name)
			}
		}
	}
	examples := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```").FindAllSubmatch(text, -1)
	if len(examples) < 1 {
		t.Fatalf("%d examples", len(examples))
	}
	for _, e := range examples {
		load(t, write(t, "tests.yaml", string(e[1])), Options{Module: modules + "noop.wasm"})
	}
	for _, e := range regexp.MustCompile("(?ms)^```textproto\n(.*?)^```").FindAllSubmatch(text, -1) {
		load(t, write(t, "tests.textpb", string(e[1])), Options{Module: modules + "noop.wasm"})
	}
}

func TestDiff(t *testing.T) {
	many := func(line string) string {
		lines := slices.Repeat([]string{"x"}, 1200)
		lines[1000] = line
		return strings.Join(lines, "\n")
	}
	for _, tt := range []struct{ name, want, have, diff string }{
		{"same", "a\nb", "a\nb", ""},
		{"one line", "a", "b\x00", "want \"a\"\nhave \"b\\x00\""},
		{"lines", "a\nb\nc", "a\nB\nc\nd\"", "(-want +have)\n  a\n- b\n+ B\n  c\n+ d\\\""},
		{"far lines", "1\n2\n3\n4\n5\n6\n7\n8\n9", "1\n2\n3\n4\nx\n6\n7\n8\n9", "(-want +have)\n  …\n  2\n  3\n  4\n- 5\n+ x\n  6\n  7\n  8\n  …"},
		{"many lines", many("a"), many("b"), "want 2399 bytes in 1200 lines, have 2399 bytes in 1200 lines; they differ from byte 2000 on"},
	} {
		if diff := cmp.Diff(tt.diff, diff(tt.want, tt.have)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestBenchmark(t *testing.T) {
	s := load(t, write(t, "tests.textpb", `
env { num_additional_streams: 5 additional_stream_advance_rate: 2 }
test { name: "plain" request_headers { } }
test { name: "measured" benchmark: true num_chunks: 2 request_headers { } response_headers { } request_body { input { content: "abcd" } result { body { exact: "abcd" } } } response_body { input { content: "ab" } } }
test { name: "too" benchmark: true response_headers { } }
test { name: "fails" benchmark: true response_headers { result { has_header { key: "x-wasm" value: "none" } } } }
`), Options{Module: modules + "addheader.wasm"})
	text, _ := outcome(t, Config{BenchTime: time.Nanosecond}, s)
	var lines []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "Benchmark") || strings.HasPrefix(line, "pass") || strings.HasPrefix(line, "fail") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	want := []string{
		"pass plain", "BenchmarkPluginLifecycle measured", "BenchmarkStreamLifecycle measured", "Benchmarkmeasured measured", "pass measured",
		"Benchmarktoo measured", "pass too", "fail fails",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	trap := load(t, write(t, "tests.textpb", `test { name: "traps" benchmark: true response_headers { } }`), Options{Module: modules + "trap-on-request.wasm"})
	if text, passed := outcome(t, Config{}, trap); !passed || strings.Contains(text, "Benchmark") {
		t.Errorf("without benchmarks: %s", text)
	}
}

// Whatever a file has, it is a suite or an error that names it.
func FuzzLoad(f *testing.F) {
	for _, file := range []string{"testdata/everything/tests.yaml", "testdata/everything/fails.yaml", "testdata/google/basicauth.textpb", "testdata/google/headercounter.yaml"} {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text), strings.HasSuffix(file, ".textpb"))
	}
	f.Fuzz(func(t *testing.T, text string, textproto bool) {
		file := "nowhere/tests.yaml"
		if textproto {
			file = "nowhere/tests.textpb"
		}
		tests, err := parse(file, []byte(text), Options{})
		if err == nil && len(tests) == 0 || err != nil && !strings.HasPrefix(err.Error(), file) {
			t.Errorf("%d tests, %v", len(tests), err)
		}
	})
}
