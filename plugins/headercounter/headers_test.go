package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name, config string
		want         []header
	}{
		{"none", ``, nil},
		{"no headers", `{}`, []header{}},
		{"the lab's", `{"header_1":"some_value_1","header_2":"another_value"}`, []header{{"header_1", "some_value_1"}, {"header_2", "another_value"}}},
		{"in the order written", `{"z":"1","a":"2"}`, []header{{"z", "1"}, {"a", "2"}}},
		{"capital letters", `{"X-Powered-By":"Wasm"}`, []header{{"x-powered-by", "Wasm"}}},
		{"an empty value", `{"a":""}`, []header{{"a", ""}}},
		{"a tab inside", `{"a":"b\tc"}`, []header{{"a", "b\tc"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parse([]byte(tt.config))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(header{})); diff != "" {
				t.Errorf("parse (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	const noName = ": the field's name is no header name"
	const noValue = ": want printable characters, without space at the ends"
	for _, tt := range []struct{ name, config, want string }{
		{"not JSON", `header_1: some_value_1`, "configuration: not JSON at byte 0: want a value"},
		{"a list", `["header_1"]`, "configuration: want an object, have a list"},
		{"a value of another type", `{"header_1":1}`, "header_1: want a string, have a number"},
		{"a name twice", `{"a":"1","a":"2"}`, "a: not JSON at byte 13: given twice"},
		{"an empty name", `{"":"1"}`, "configuration" + noName},
		{"a pseudo-header", `{":status":"200"}`, ":status" + noName},
		{"a space in a name", `{"a b":"1"}`, "a b" + noName},
		{"a letter beyond ASCII in a name", `{"é":"1"}`, "é" + noName},
		{"a line break in a value", `{"a":"b\r\nset-cookie: c"}`, "a" + noValue},
		{"a space at the end of a value", `{"a":"b "}`, "a" + noValue},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := parse([]byte(tt.config)); err == nil || err.Error() != tt.want {
				t.Errorf("parse error = %v, want %s", err, tt.want)
			}
		})
	}
}

// FuzzParse looks for a configuration that crashes the plugin or smuggles in
// a second header.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"header_1":"some_value_1","header_2":"another_value"}`))
	f.Add([]byte(`{"a":"b\r\nc: d"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		headers, _ := parse(text)
		for _, h := range headers {
			if h.name == "" || strings.ContainsAny(h.name, ":\r\n ") || strings.ContainsAny(h.value, "\r\n\x00") {
				t.Errorf("parse took header %+q", h)
			}
		}
	})
}
