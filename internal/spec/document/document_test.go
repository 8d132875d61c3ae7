package document

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// A sample has what documents can have.
type sample struct {
	At       Position
	Name     string            `spec:"name,required" about:"a name"`
	Size     int32             `spec:"size"`
	Count    uint8             `spec:"count"`
	On       bool              `spec:"on"`
	Wait     time.Duration     `spec:"wait"`
	Limit    *int64            `spec:"limit"`
	List     []string          `spec:"list"`
	Env      map[string]string `spec:"env"`
	Children []sample          `spec:"children"`
	One      *sample           `spec:"one"`
	Value    value             `spec:"value"`
	Maybe    map[string]*bool  `spec:"maybe"`
}

// CheckNode refuses one name.
func (s *sample) CheckNode(d *Decoder, path string, n *Node) {
	if s.Name == "bad" {
		d.Fail(path, n, "a bad name")
	}
}

// A value keeps its node as JSON, or the contents of a file.
type value string

func (v *value) UnmarshalNode(d *Decoder, path string, n *Node) {
	if f := n.Field("file"); f != nil {
		*v = value(d.ReadFile(path+".file", f, f.Text))
		return
	}
	text, err := n.JSON()
	if err != nil {
		d.Fail(path, n, "%v", err)
	}
	*v = value(text)
}

func (*value) NodeSchema() map[string]any { return map[string]any{} }

// samePlace compares positions but for their fields.
var samePlace = cmp.Comparer(func(a, b Position) bool { return a.Line == b.Line && a.Path == b.Path })

func decode(t *testing.T, parse func([]byte) (*Node, error), text string) (sample, error) {
	t.Helper()
	var s sample
	n, err := parse([]byte(text))
	if p, ok := errors.AsType[*Problem](err); ok {
		return s, &Error{"f", []Problem{*p}}
	}
	d := Decoder{File: func(name string) ([]byte, error) {
		if name == "there" {
			return []byte("contents"), nil
		}
		return nil, errors.New("no such file")
	}}
	d.Decode("", n, &s)
	return s, d.Err("f")
}

func TestYAML(t *testing.T) {
	got, err := decode(t, ParseYAML, `
name: &n "a b"
size: -3
count: 0x10
on: yes
wait: 1.5s
limit: 9
list: [x, 5, true, 2026-01-01, !!binary "AAE="]
env: {B: b, A: 1}
children:
- name: *n
  limit: null
one:
  name: c
value: {z: 1, a: [1.5, true, null, "x", 2026-01-02T03:04:05Z, 18446744073709551615]}
`)
	if err != nil {
		t.Fatal(err)
	}
	limit := int64(9)
	want := sample{
		At: Position{Line: 2}, Name: "a b", Size: -3, Count: 16, On: true, Wait: 1500 * time.Millisecond, Limit: &limit,
		List: []string{"x", "5", "true", "2026-01-01", "\x00\x01"}, Env: map[string]string{"A": "1", "B": "b"},
		Children: []sample{{At: Position{Line: 11, Path: "children[0]"}, Name: "a b"}},
		One:      &sample{At: Position{Line: 14, Path: "one"}, Name: "c"},
		Value:    `{"z":1,"a":[1.5,true,null,"x","2026-01-02T03:04:05Z",18446744073709551615]}`,
	}
	if diff := cmp.Diff(want, got, samePlace); diff != "" {
		t.Errorf("decoded (-want +got):\n%s", diff)
	}
	if at := got.At.Of("count"); at.Line != 4 || at.Path != "count" || got.One.At.Of("size").Path != "one.size" || got.One.At.Of("size").Line != 14 {
		t.Errorf("Of = %v", at)
	}
	empty, err := decode(t, ParseYAML, "")
	if diff := cmp.Diff("f:1: name: is missing", err.Error()); diff != "" || empty.Name != "" {
		t.Error(diff)
	}
	file, err := decode(t, ParseYAML, "name: a\nvalue: {file: there}")
	if err != nil || file.Value != "contents" {
		t.Errorf("value = %q, %v", file.Value, err)
	}
}

func TestTextproto(t *testing.T) {
	got, err := decode(t, ParseTextproto, `
# a comment
name: "a\tb\n" 'c\x41\101\u00e9\U0001F600\ud83d\ude00'  # and another
size: -3; count: 0x10,
on: true
limit: - 9
list: "x" list: ["y", 'z'] list: []
children { name: "d" children < name: "e" > }
children: { name: "f" }
one { name: "g" }
`)
	if err != nil {
		t.Fatal(err)
	}
	limit := int64(-9)
	want := sample{
		At: Position{Line: 1}, Name: "a\tb\ncAAé😀😀", Size: -3, Count: 16, On: true, Limit: &limit, List: []string{"x", "y", "z"},
		Children: []sample{
			{At: Position{Line: 8, Path: "children[0]"}, Name: "d", Children: []sample{{At: Position{Line: 8, Path: "children[0].children[0]"}, Name: "e"}}},
			{At: Position{Line: 9, Path: "children[1]"}, Name: "f"},
		},
		One: &sample{At: Position{Line: 10, Path: "one"}, Name: "g"},
	}
	if diff := cmp.Diff(want, got, samePlace); diff != "" {
		t.Errorf("decoded (-want +got):\n%s", diff)
	}
}

func TestProblems(t *testing.T) {
	for _, tt := range []struct {
		name  string
		parse func([]byte) (*Node, error)
		text  string
		want  string
	}{
		{"unknown field", ParseYAML, "name: a\n\nnmae: b", "f:3: nmae: unknown field; did you mean name?"},
		{"field like no other", ParseYAML, "name: a\nselector: b", "f:2: selector: unknown field; known here: name, size, count, on, wait, limit, list, env, children, one, value, maybe"},
		{"several", ParseYAML, "name: a\nsize: x\ncount: -1\non: maybe\nwait: 5\nlist: a\nenv: []\none: 5", strings.Join([]string{
			`f:2: size: want a number of at most 32 bits, have "x"`, `f:3: count: want a number from 0 to 255, have "-1"`,
			`f:4: on: want true or false, have "maybe"`, `f:5: wait: want a duration such as 1.5s, have "5"`,
			`f:6: list: want a list, have "a"`, `f:7: env: want a mapping, have a list`, `f:8: one: want a mapping, have "5"`}, "\n")},
		{"too many", ParseYAML, "name: a\nlist: [[],[],[],[],[],[],[],[],[],[],[],[]]", func() string {
			var lines []string
			for i := range 10 {
				lines = append(lines, "f:2: list["+string(rune('0'+i))+"]: want a string, have a list")
			}
			return strings.Join(append(lines, "f: and 2 more"), "\n")
		}()},
		{"check", ParseYAML, "name: a\nchildren:\n- name: bad", "f:3: children[0]: a bad name"},
		{"nothing", ParseYAML, "name:", "f:1: name: want a string, have nothing"},
		{"missing", ParseYAML, "children: [{}]", "f:1: children[0].name: is missing\nf:1: name: is missing"},
		{"twice", ParseYAML, "name: a\nname: b", "f:2: name: comes twice"},
		{"merge", ParseYAML, "one: &a {name: x}\n<<: *a", "f:2: merge keys (<<) are not supported: write the fields out"},
		{"no scalar key", ParseYAML, "? [a]\n: b", "f:1: a key must be a scalar"},
		{"not YAML", ParseYAML, "name: a\n\tb: c", "f:2: not YAML: found a tab character that violates indentation"},
		{"two documents", ParseYAML, "name: a\n---\nname: b", "f:2: a second document: want one a file"},
		{"tag", ParseYAML, "name: !x y", "f:1: tag !x is unknown"},
		{"base64", ParseYAML, "name: !!binary '*'", "f:1: illegal base64 data at input byte 0"},
		{"no JSON", ParseYAML, "name: a\nvalue: .nan", "f:2: value: JSON has no such number"},
		{"no file", ParseYAML, "name: a\nvalue: {file: missing}", "f:2: value.file: no such file"},
		{"no file name", ParseYAML, "name: a\nvalue: {file: ''}", "f:2: value.file: want the name of a file"},
		{"aliases", ParseYAML, bomb(), "f:1: too large, or nested too deeply"},
		{"size", ParseYAML, strings.Repeat("#", MaxSize+1), "f: larger than 4194304 bytes"},

		{"unknown field", ParseTextproto, "name: 'a'\none { naem: 'x' }", "f:2: one.naem: unknown field; did you mean name?\nf:2: one.name: is missing"},
		{"twice", ParseTextproto, "name: 'a'\nname: 'b'", "f:2: name: comes twice"},
		{"word for a string", ParseTextproto, "name: a", "f:1: name: want a string, have a"},
		{"scalar for a message", ParseTextproto, "name: 'a'\none: 5", "f:2: one: want a mapping, have 5"},
		{"no colon", ParseTextproto, "name 'a'", `f:1: want a colon after name, have '\''`},
		{"no colon before a list", ParseTextproto, "list ['a']", "f:1: want a colon after list"},
		{"no value", ParseTextproto, "name:", "f:1: want a value, have the end"},
		{"no name", ParseTextproto, "\n5: 'a'", "f:2: want the name of a field, have '5'"},
		{"zero byte", ParseTextproto, "name: 'a'\n\x00 name: 'b'", `f:2: want the name of a field, have '\x00'`},
		{"open message", ParseTextproto, "one {\nname: 'a'", `f:2: want '}' before the end`},
		{"closed too often", ParseTextproto, "}", `f:1: want the name of a field, have '}'`},
		{"wrong bracket", ParseTextproto, "one { name: 'a' >", `f:1: want the name of a field, have '>'`},
		{"extension", ParseTextproto, "[a.b]: 5", "f:1: extensions and Any are not known here"},
		{"open list", ParseTextproto, "list: ['a' 5", "f:1: want a comma or ] in the list, have '5'"},
		{"open string", ParseTextproto, "name: 'a", `f:1: a string without its closing '\''`},
		{"line in a string", ParseTextproto, "name: 'a\nb'", `f:1: a string ends with its line; write \n for a new line`},
		{"escape", ParseTextproto, `name: 'a\q'`, `f:1: unknown escape \q`},
		{"escape at the end", ParseTextproto, `name: 'a\`, `f:1: a string ends in a backslash`},
		{"hex", ParseTextproto, `name: '\x'`, "f:1: an escape wants 1 digits, has 0"},
		{"octal", ParseTextproto, `name: '\777'`, `f:1: an octal escape above \377`},
		{"unicode", ParseTextproto, `name: '\u12'`, "f:1: an escape wants 4 digits, has 2"},
		{"half a pair", ParseTextproto, `name: '\ud83d'`, "f:1: half of a surrogate pair"},
		{"no pair", ParseTextproto, `name: '\ud83d\u0041'`, "f:1: half of a surrogate pair"},
		{"other half", ParseTextproto, `name: '\udc00'`, "f:1: dc00 is no character"},
		{"no character", ParseTextproto, `name: '\U00110000'`, "f:1: 110000 is no character"},
		{"deep", ParseTextproto, strings.Repeat("one {", 200), "f:1: nested too deeply"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := decode(t, tt.parse, tt.text)
			if err == nil {
				t.Fatal("no error")
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

// bomb is a small document whose aliases make a large one.
func bomb() string {
	text := "{a0: &a0 [x, x, x, x, x, x, x, x, x]"
	for i := range 9 {
		text += strings.NewReplacer("$1", string(rune('1'+i)), "$0", string(rune('0'+i))).Replace(
			", a$1: &a$1 [*a$0, *a$0, *a$0, *a$0, *a$0, *a$0, *a$0, *a$0, *a$0]")
	}
	return text + "}"
}

func TestSchema(t *testing.T) {
	text, err := json.Marshal(Schema(sample{}, "id", "a title"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"$ref":"#/$defs/sample"`, `"required":["name"]`, `"additionalProperties":false`, `"name":{"description":"a name","type":["string","number","boolean"]}`,
		`"children":{"items":{"$ref":"#/$defs/sample"},"type":"array"}`, `"count":{"minimum":0,"type":"integer"}`, `"on":{"type":"boolean"}`,
		`"env":{"additionalProperties":{"type":["string","number","boolean"]},"type":"object"}`, `"title":"a title"`,
		`"maybe":{"additionalProperties":{"anyOf":[{"type":"boolean"},{"type":"null"}]},"type":"object"}`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("schema lacks %s: %s", want, text)
		}
	}
}

func FuzzYAML(f *testing.F) {
	f.Add("name: a\nchildren: [{name: b}]\nvalue: {a: [1, *x]}")
	f.Add("a: &a [*a]")
	f.Add(bomb())
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := decode(t, ParseYAML, text); err == nil && s.Name == "" && !strings.Contains(text, "name") {
			t.Errorf("no name in %q, and no error", text)
		}
	})
}

// What the library takes for bytes, we take for the same.
func FuzzTextproto(f *testing.F) {
	for _, s := range []string{
		`value: "a"`, `value: 'a' "b" # c`, `value: "\x0\777\101\u00e9\ud83d\ude00\U0001F600\?"`, `value: "a";`, `value "a"`, `value: ""`,
		`value: abc`, `value: 5`, `value { }`, `value: "a", value: "b"`, `value: ["a"]`, "value: \"a\n\"", "value: '\xff'", `value: "\xff"`, "", "value: '\x00'",
	} {
		f.Add(s)
	}
	type message struct {
		Value string `spec:"value"`
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := ParseTextproto([]byte(text))
		var got message
		if err == nil {
			d := Decoder{}
			d.Decode("", n, &got)
			err = d.Err("f")
		}
		var want wrapperspb.BytesValue
		wantErr := prototext.Unmarshal([]byte(text), &want)
		if wantErr == nil && err == nil && got.Value != string(want.Value) {
			t.Errorf("%q is %q, want %q", text, got.Value, want.Value)
		}
		if wantErr == nil && err != nil && !strings.Contains(text, "[") {
			t.Errorf("%q is refused: %v", text, err)
		}
	})
}
