package spec

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

func TestGoogleForm(t *testing.T) {
	for _, tt := range []struct{ file, plugin, config string }{
		{"basicauth.textpb", "basicauth", ""},
		{"headercounter.yaml", "headercounter", `{"header_1":"some_value_1","header_2":"another_value"}`},
	} {
		t.Run(tt.file, func(t *testing.T) {
			opts := Options{Module: build(t, "../../plugins/"+tt.plugin)}
			if tt.config != "" {
				opts.PluginConfig = []byte(tt.config)
			}
			s := load(t, filepath.Join("testdata/google", tt.file), opts)
			if text, passed := outcome(t, Config{}, s); !passed || strings.Count(text, "pass ") != len(s.Tests) {
				t.Errorf("%d tests:\n%s", len(s.Tests), text)
			}
		})
	}
}

func TestGoogleFormFails(t *testing.T) {
	s := load(t, "testdata/google/fails.textpb", Options{Module: build(t, "../../plugintest/testdata/everything")})
	text, passed := outcome(t, Config{}, s)
	if passed || strings.Count(text, "\nfail ") != len(s.Tests) {
		t.Errorf("%d tests pass: %v", len(s.Tests), passed)
	}
	golden(t, "testdata/google/fails.txt", text)
}

// TestGoogleEnv has where a file's module and log are.
func TestGoogleEnv(t *testing.T) {
	module, err := os.ReadFile(modules + "addheader.wasm")
	if err != nil {
		t.Fatal(err)
	}
	file := write(t, "tests.textpb", `env { wasm_path: "my.wasm" log_path: "/dev/stdout" } test { name: "a b" }`)
	if err := os.WriteFile(filepath.Join(filepath.Dir(file), "my.wasm"), module, 0o644); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if text, passed := outcome(t, Config{}, load(t, file, Options{Stdout: &out})); !passed {
		t.Error(text)
	}
	if want := "--- Starting test: a_b ---\n--- Finished test: a_b ---\n"; out.String() != want {
		t.Errorf("log = %q, want %q", &out, want)
	}

	log := filepath.Join(t.TempDir(), "log")
	file = write(t, "tests.yaml", "env: {log_level: TRACE, log_path: "+log+"}\ntest: [{name: x, request_headers: {input: {header: [{key: ':path', value: /}]}}}]")
	opts := Options{Module: build(t, "../../plugintest/testdata/everything")}
	if text, passed := outcome(t, Config{Count: 2}, load(t, file, opts)); !passed { // a log is added to
		t.Error(text)
	}
	text, err := os.ReadFile(log)
	if want := strings.Repeat("--- Starting test: x ---\nVM configuration \ncolour \n--- Finished test: x ---\n", 2); err != nil || string(text) != want {
		t.Errorf("log = %q, %v, want %q", text, err, want)
	}
}

func TestParseMessage(t *testing.T) {
	type pairs = []abi.Pair
	for _, tt := range []struct {
		name, text string
		request    bool
		want       pairs
	}{
		{"origin form", "GET /a?b=c HTTP/1.1\r\nHost: x\r\nA:  b \r\n\r\nbody: no\r\n", true,
			pairs{{Key: ":method", Value: "GET"}, {Key: ":path", Value: "/a?b=c"}, {Key: ":authority", Value: "x"}, {Key: "a", Value: "b"}}},
		{"no host", "\n\nGET /", true, pairs{{Key: ":method", Value: "GET"}, {Key: ":path", Value: "/"}}},
		{"absolute form", "GET HTTP://X:80/a#f HTTP/1.1\nHost: y\n", true,
			pairs{{Key: ":method", Value: "GET"}, {Key: ":scheme", Value: "http"}, {Key: ":path", Value: "/a"}, {Key: ":authority", Value: "x"}}},
		{"absolute form without a path", "GET https://x:444 HTTP/1.1", true,
			pairs{{Key: ":method", Value: "GET"}, {Key: ":scheme", Value: "https"}, {Key: ":path", Value: "/"}, {Key: ":authority", Value: "x:444"}}},
		{"folded", "GET / HTTP/1.1\nA: b\n\tc\n d\nE:\n", true,
			pairs{{Key: ":method", Value: "GET"}, {Key: ":path", Value: "/"}, {Key: "a", Value: "b c d"}, {Key: "e", Value: ""}}},
		{"response", "HTTP/1.1 200\nHost: x", false, pairs{{Key: ":status", Value: "200"}, {Key: "host", Value: "x"}}},
		{"response with a reason", "HTTP/2 503 Not now\n", false, pairs{{Key: ":status", Value: "503"}}},
	} {
		got, err := parseMessage(tt.text, tt.request)
		if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, diff)
		}
	}
	for _, tt := range []struct {
		text, want string
		request    bool
	}{
		{"", `HTTP message: "" is no request line, as in GET / HTTP/1.1`, true},
		{"GET", `HTTP message: "GET" is no request line, as in GET / HTTP/1.1`, true},
		{"GET / HTTP/1.1 x", `HTTP message: "GET / HTTP/1.1 x" is no request line, as in GET / HTTP/1.1`, true},
		{"GET / x", `HTTP message: "GET / x" is no request line, as in GET / HTTP/1.1`, true},
		{"GET x HTTP/1.1", `HTTP message: "x" is neither a path nor an absolute URI`, true},
		{"GET * HTTP/1.1", `HTTP message: "*" is neither a path nor an absolute URI`, true},
		{"GET /a#b HTTP/1.1", `HTTP message: "/a#b" is neither a path nor an absolute URI`, true},
		{"GET /%zz HTTP/1.1", `HTTP message: "/%zz" is neither a path nor an absolute URI`, true},
		{"GET / HTTP/1.1\nno field", `HTTP message: "no field" is no header field`, true},
		{"GET / HTTP/1.1\na b: c", `HTTP message: "a b: c" is no header field`, true},
		{"GET / HTTP/1.1\n folded", `HTTP message: " folded" is no header field`, true},
		{"GET / HTTP/1.1", `HTTP message: "GET / HTTP/1.1" is no status line, as in HTTP/1.1 200 OK`, false},
		{"HTTP/1.1 20x", `HTTP message: "HTTP/1.1 20x" is no status line, as in HTTP/1.1 200 OK`, false},
		{"HTTP/1.1 99", `HTTP message: "HTTP/1.1 99" is no status line, as in HTTP/1.1 200 OK`, false},
	} {
		if _, err := parseMessage(tt.text, tt.request); err == nil || err.Error() != tt.want {
			t.Errorf("%q: %v, want %s", tt.text, err, tt.want)
		}
	}
}

// A message that is read has its pseudo-headers first, and names in lower case.
func FuzzParseMessage(f *testing.F) {
	f.Add("GET /a?b=c HTTP/1.1\r\nHost: x\r\nA:  b \r\n\r\n", true)
	f.Add("GET https://x:444/?a#b HTTP/1.1\n", true)
	f.Add("HTTP/1.1 200 OK\nA: b\n c\n", false)
	f.Fuzz(func(t *testing.T, text string, request bool) {
		fields, err := parseMessage(text, request)
		if err != nil {
			return
		}
		first := ":status"
		if request {
			first = ":method"
		}
		if len(fields) == 0 || fields[0].Key != first || fields[0].Value == "" {
			t.Fatalf("%q is %q", text, fields)
		}
		for _, p := range fields {
			if p.Key == "" || p.Key != strings.ToLower(p.Key) || strings.ContainsAny(p.Value, "\n") {
				t.Errorf("%q has the field %q", text, p)
			}
		}
	})
}

var _ proxywasm.Headers = (*mergedHeaders)(nil)

func TestMergedHeaders(t *testing.T) {
	h := new(mergedHeaders)
	h.Add("B", "1")
	h.Add("a", "")
	h.Add("A", "2")
	h.Add("b", "3")
	h.Set("c", "4")
	h.Set("C", "5")
	h.Add("d", "6")
	h.Remove("D")
	h.Remove("e")
	copied := h.clone()
	h.Set("a", "changed")
	var got [][2]string
	copied.Each(func(name, value string) bool {
		got = append(got, [2]string{name, value})
		return name != "b"
	})
	if diff := cmp.Diff([][2]string{{"a", "2"}, {"b", "1, 3"}}, got); diff != "" || copied.Len() != 3 {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
	if value, ok := copied.Get("C"); value != "5" || !ok {
		t.Errorf("Get = %q, %v", value, ok)
	}
	if _, ok := copied.Get("d"); ok {
		t.Error("a field that was removed is there")
	}
}
