package config

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// plain turns v into what encoding/json would make of it.
func plain(v Value) any {
	switch v.Kind {
	case Null:
		return nil
	case Bool:
		return v.text == "true"
	case Number:
		return json.Number(v.text)
	case String:
		return v.text
	case List:
		list := []any{}
		for _, item := range v.items {
			list = append(list, plain(item))
		}
		return list
	default:
		object := map[string]any{}
		for _, f := range v.fields {
			object[f.Name] = plain(f.Value)
		}
		return object
	}
}

// reference is what encoding/json makes of text.
func reference(text string) (any, error) {
	var v any
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	err := d.Decode(&v)
	return v, err
}

func TestParse(t *testing.T) {
	for _, text := range []string{
		`null`, `true`, `false`, `0`, `-0`, `12`, `-1.5e+10`, `2E-3`, `""`, `[]`, `{}`,
		"\t{ \"a\" : [ 1 , \"b\" ,\r\n null ] } ",
		`"\"\\\/\b\f\n\r\t"`, `"\u00e9\u20ac"`, `"\ud83d\ude00"`, `"\ud83d"`, `"\ud83dx"`, `"\ud83d\u0041"`, `"\ude00\ud83d"`,
		`"日本"`,
		`{"basic_auth_rules":[{"prefix":"/productpage","request_methods":["GET","POST"],"credentials":["ok:test"]}]}`,
	} {
		t.Run(text, func(t *testing.T) {
			got, err := Parse([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			want, err := reference(text)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, plain(got)); diff != "" {
				t.Errorf("Parse differs from encoding/json (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"nothing", "", "configuration: not JSON at byte 0: a value is missing"},
		{"a second value", "{} {}", "configuration: not JSON at byte 3: text after the end"},
		{"a bare word", `{"a":b}`, "a: not JSON at byte 5: want a value"},
		{"no colon", `{"a" 1}`, "a: not JSON at byte 5: want a colon"},
		{"no comma", `{"a":[1 2]}`, "a: not JSON at byte 8: want a comma or the end of the list"},
		{"a comma too many", `{"a":1,}`, "configuration: not JSON at byte 7: want a field name in quotes"},
		{"an open object", `{"a":1`, "configuration: not JSON at byte 6: want a comma or the end of the object"},
		{"an open list", `[1`, "configuration: not JSON at byte 2: want a comma or the end of the list"},
		{"an open string", `{"a":"secret`, "a: not JSON at byte 12: a string does not end"},
		{"an open escape", `"\`, "configuration: not JSON at byte 2: a string does not end"},
		{"an unknown escape", `"\x41"`, "configuration: not JSON at byte 3: an unknown escape sequence in a string"},
		{"a short escape", `"\u12"`, "configuration: not JSON at byte 3: an unknown escape sequence in a string"},
		{"a line break in a string", "\"a\nb\"", "configuration: not JSON at byte 2: a control character in a string"},
		{"a byte that is not UTF-8", "\"\xff\"", "configuration: not JSON at byte 1: a string is not UTF-8"},
		{"a leading zero", `{"a":{"b":[01]}}`, "a.b: not JSON at byte 12: want a comma or the end of the list"},
		{"a lone minus", `-`, "configuration: not JSON at byte 1: want a digit"},
		{"a lone point", `1.`, "configuration: not JSON at byte 2: want a digit"},
		{"a lone exponent", `1e+`, "configuration: not JSON at byte 3: want a digit"},
		{"a field twice", `{"a":{"b":1,"b":2}}`, "a.b: not JSON at byte 16: given twice"},
		{"a deep nest", strings.Repeat("[", 40), strings.Repeat("[0]", 33) + ": not JSON at byte 33: nested too deep"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse([]byte(tt.text))
			var wrong *Error
			if !errors.As(err, &wrong) || err.Error() != tt.want {
				t.Errorf("Parse error = %v, want %s", err, tt.want)
			}
		})
	}
}

func TestAccessors(t *testing.T) {
	v, err := Parse([]byte(`{"list":[1,true],"text":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	fields, err := v.Fields()
	if err != nil || len(fields) != 2 || fields[0].Name != "list" || fields[1].Name != "text" {
		t.Fatalf("Fields = %v, %v", fields, err)
	}
	if text, err := fields[1].Value.Text(); text != "x" || err != nil {
		t.Errorf("Text = %q, %v", text, err)
	}
	items, err := fields[0].Value.Items()
	if err != nil || len(items) != 2 {
		t.Fatalf("Items = %v, %v", items, err)
	}
	for _, tt := range []struct {
		do   func() error
		want string
	}{
		{func() error { _, err := v.Text(); return err }, "configuration: want a string, have an object"},
		{func() error { _, err := items[1].Fields(); return err }, "list[1]: want an object, have a boolean"},
		{func() error { _, err := fields[1].Value.Items(); return err }, "text: want a list, have a string"},
		{func() error { return items[0].Wrong("is odd") }, "list[0]: is odd"},
	} {
		if err := tt.do(); err == nil || err.Error() != tt.want {
			t.Errorf("error = %v, want %s", err, tt.want)
		}
	}
}

// FuzzParse holds Parse against encoding/json: what Parse takes, encoding/json
// takes as the same; what only Parse refuses it refuses for a reason of its own.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		`{"a":[1,-2.5e3,"x\u00e9\ud83d\ude00\n",true,false,null,{}]}`, `[[[]]]`, `"\ud83d"`, `{"a":1,"a":2}`, ` 01`, "\"\xff\"",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		v, err := Parse([]byte(text))
		if err != nil {
			ours := strings.HasSuffix(err.Error(), "given twice") || strings.HasSuffix(err.Error(), "nested too deep")
			if json.Valid([]byte(text)) && utf8.ValidString(text) && !ours {
				t.Fatalf("Parse error = %v for valid JSON", err)
			}
			return
		}
		if !json.Valid([]byte(text)) {
			t.Fatal("Parse took what is not JSON")
		}
		want, err := reference(text)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, plain(v)); diff != "" {
			t.Errorf("Parse differs from encoding/json (-want +got):\n%s", diff)
		}
	})
}
