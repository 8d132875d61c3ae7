package spec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"github.com/chandler-proxy/chandler/internal/spec/document"
)

// A matcher is what a text must be.
type matcher struct {
	at     document.Position
	absent bool                    // there must be none
	wrong  func(got string) string // why the text is not as wanted, empty if it is
}

// matchers are the ways to say what a text must be: the fields of a mapping.
type matchers struct {
	Exact    *string       `spec:"exact" about:"the text itself"`
	Contains *string       `spec:"contains" about:"a part of the text"`
	Matches  *expression   `spec:"matches" about:"a regular expression (RE2) that matches some of the text; for all of it, begin with ^ and end with $"`
	JSON     *anything     `spec:"json" about:"what the text means as JSON, whatever the order of its fields"`
	File     *fileContents `spec:"file" about:"a file that has the text, relative to this one"`
	Absent   bool          `spec:"absent" about:"there is none"`
	Not      *matcher      `spec:"not" about:"what the text must not be"`
}

// UnmarshalNode reads a text, which is an exact one, or a mapping.
func (m *matcher) UnmarshalNode(d *document.Decoder, path string, n *document.Node) {
	m.at = document.Position{Line: n.Line, Path: path}
	if n.Kind == document.Scalar && n.Value != nil {
		m.wrong = exactly(n.String())
		return
	}
	var ways matchers
	before := len(d.Problems)
	d.Decode(path, n, &ways)
	if len(d.Problems) > before {
		return
	}
	if len(n.Fields) != 1 {
		d.Fail(path, n, "want one of exact, contains, matches, json, file, absent, not; have %d", len(n.Fields))
		return
	}
	m.absent, m.wrong = ways.Absent, ways.matcher()
	if n.Field("absent") != nil && !ways.Absent {
		d.Fail(path, n, "absent can only be true; for what is there, use matches: ''")
	}
}

// NodeSchema is a text or a mapping.
func (*matcher) NodeSchema() map[string]any {
	return map[string]any{"oneOf": []any{
		scalarSchema(),
		map[string]any{"$ref": "#/$defs/matchers"},
	}}
}

func scalarSchema() map[string]any {
	return map[string]any{"type": []string{"string", "number", "boolean"}}
}

// matcher is the one way that was said.
func (w matchers) matcher() func(string) string {
	switch {
	case w.Exact != nil:
		return exactly(*w.Exact)
	case w.File != nil:
		return exactly(string(*w.File))
	case w.Contains != nil:
		return func(got string) string {
			return unless(strings.Contains(got, *w.Contains), "want it to contain %q\nhave %q", *w.Contains, got)
		}
	case w.Matches != nil:
		return func(got string) string {
			return unless(w.Matches.MatchString(got), "want a match of %s\nhave %q", w.Matches, got)
		}
	case w.JSON != nil:
		return w.JSON.wrong
	case w.Not != nil:
		return func(got string) string {
			if w.Not.absent { // there is one
				return ""
			}
			return unless(w.Not.wrong(got) != "", "want anything else\nhave %q", got)
		}
	}
	return func(got string) string { return fmt.Sprintf("want none\nhave %q", got) }
}

func unless(ok bool, format string, a ...any) string {
	if ok {
		return ""
	}
	return fmt.Sprintf(format, a...)
}

func exactly(want string) func(string) string {
	return func(got string) string { return diff(want, got) }
}

// check fails the test if the text, of which there is none if !ok, is not as wanted.
func (m *matcher) check(t *run, got string, ok bool) {
	if m == nil {
		return
	}
	why := "want one\nhave none"
	if ok {
		why = m.wrong(got)
	} else if m.absent {
		why = ""
	}
	if why != "" {
		t.failAt(m.at.Line, "%s: %s", m.at.Path, why)
	}
}

// An expression is a regular expression.
type expression struct{ *regexp.Regexp }

// UnmarshalNode reads it.
func (e *expression) UnmarshalNode(d *document.Decoder, path string, n *document.Node) {
	var text string
	d.Decode(path, n, &text)
	var err error
	if e.Regexp, err = regexp.Compile(text); err != nil {
		d.Fail(path, n, "%v", err)
	}
}

// NodeSchema is a string.
func (*expression) NodeSchema() map[string]any { return map[string]any{"type": "string"} }

// anything is a value as JSON.
type anything struct{ text []byte }

// UnmarshalNode reads it.
func (a *anything) UnmarshalNode(d *document.Decoder, path string, n *document.Node) {
	var err error
	if a.text, err = n.JSON(); err != nil {
		d.Fail(path, n, "%v", err)
	}
}

// NodeSchema is anything.
func (*anything) NodeSchema() map[string]any { return map[string]any{} }

func (a *anything) wrong(got string) string {
	var want, have any
	if err := unmarshal(a.text, &want); err != nil {
		return err.Error() // cannot be: it was made as JSON
	}
	if err := unmarshal([]byte(got), &have); err != nil {
		return fmt.Sprintf("want JSON: %v\nhave %q", err, got)
	}
	if reflect.DeepEqual(want, have) {
		return ""
	}
	return diff(indented(want), indented(have))
}

// unmarshal keeps numbers as they are written.
func unmarshal(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return fmt.Errorf("more than one value")
	}
	return nil
}

func indented(v any) string {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err.Error() // cannot be: it was JSON
	}
	return string(text)
}

// fileContents is what is in a file.
type fileContents string

// UnmarshalNode reads it.
func (f *fileContents) UnmarshalNode(d *document.Decoder, path string, n *document.Node) {
	var name string
	before := len(d.Problems)
	if d.Decode(path, n, &name); len(d.Problems) == before {
		*f = fileContents(d.ReadFile(path, n, name))
	}
}

// NodeSchema is the file's name.
func (*fileContents) NodeSchema() map[string]any { return map[string]any{"type": "string"} }

// maxLines is the most lines that are compared one by one.
const maxLines = 1000

// diff is how two texts differ, empty if they do not.
func diff(want, have string) string {
	if want == have {
		return ""
	}
	a, b := strings.Split(want, "\n"), strings.Split(have, "\n")
	if len(a) == 1 && len(b) == 1 {
		return fmt.Sprintf("want %q\nhave %q", want, have)
	}
	if len(a) > maxLines || len(b) > maxLines {
		return fmt.Sprintf("want %d bytes in %d lines, have %d bytes in %d lines; they differ from byte %d on",
			len(want), len(a), len(have), len(b), common(want, have))
	}
	return "(-want +have)\n" + strings.Join(lineDiff(a, b), "\n")
}

// common is how many bytes the texts begin with alike.
func common(a, b string) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// contextLines is how many equal lines are shown before and after different ones.
const contextLines = 3

// lineDiff marks the lines of a that are not in b with -, those of b that are not in a
// with +, by their longest common subsequence.
func lineDiff(a, b []string) []string {
	longest := make([][]int, len(a)+1)
	for i := range longest {
		longest[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			longest[i][j] = max(longest[i+1][j], longest[i][j+1])
			if a[i] == b[j] {
				longest[i][j] = longest[i+1][j+1] + 1
			}
		}
	}
	var out []string
	var changed []bool
	add := func(mark, line string) {
		quoted := strconv.Quote(line)
		out = append(out, mark+quoted[1:len(quoted)-1])
		changed = append(changed, mark != "  ")
	}
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			add("  ", a[i])
			i++
			j++
		case j == len(b) || i < len(a) && longest[i+1][j] >= longest[i][j+1]:
			add("- ", a[i])
			i++
		default:
			add("+ ", b[j])
			j++
		}
	}
	return near(out, changed)
}

// near leaves out lines that are far from any change.
func near(lines []string, changed []bool) []string {
	var out []string
	for i, line := range lines {
		keep := false
		for j := max(0, i-contextLines); j < min(len(lines), i+contextLines+1); j++ {
			keep = keep || changed[j]
		}
		switch {
		case keep:
			out = append(out, line)
		case len(out) == 0 || out[len(out)-1] != "  …":
			out = append(out, "  …")
		}
	}
	return out
}
