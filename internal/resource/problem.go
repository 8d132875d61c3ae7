package resource

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/chandler-proxy/chandler/internal/nearest"
)

// A finding is a problem before it is known where in the file it is.
type finding struct {
	field   string
	line    int // 0: that of the field
	message string
	mend    string
}

func problem(file string, key Key, f finding) Problem {
	return Problem{
		File: file, Line: f.line,
		Kind: key.Kind, Namespace: key.Namespace, Name: key.Name,
		Field: f.field, Message: f.message, Mend: f.mend,
	}
}

// settle gives findings their lines and puts them in the order of the file, not
// more than a person would read.
func settle(n *yaml.Node, findings []finding) []finding {
	if len(findings) > 10*maxProblems {
		findings = findings[:10*maxProblems]
	}
	for i, f := range findings {
		if f.line == 0 {
			_, line, _ := locate(n, f.field)
			findings[i].line = cmp.Or(line, n.Line)
		}
	}
	slices.SortFunc(findings, func(a, b finding) int {
		return cmp.Or(cmp.Compare(a.line, b.line), strings.Compare(a.field, b.field), strings.Compare(a.message, b.message))
	})
	findings = slices.Compact(findings)
	if len(findings) > maxProblems {
		findings = append(findings[:maxProblems], finding{line: findings[maxProblems].line, message: "has more problems than these"})
	}
	return findings
}

// unknownKind says so as kubectl does, and names the nearest known one.
func (d *Decoder) unknownKind(group, version, name string) finding {
	f := finding{
		field:   "kind",
		message: fmt.Sprintf("no matches for kind %q in version %q", name, joinVersion(group, version)),
	}
	var names, versions []string
	for _, k := range d.kinds {
		names = append(names, k.name)
		if k.name == name {
			versions = append(versions, strconv.Quote(k.apiVersion()))
		}
	}
	if len(versions) > 0 {
		f.field = "apiVersion"
		f.mend = "did you mean apiVersion " + strings.Join(versions, " or ") + "?"
		return f
	}
	if near := nearest.Name(name, names); near != "" {
		f.mend = "did you mean " + strconv.Quote(near) + "?"
		return f
	}
	slices.Sort(names)
	f.mend = "known are " + strings.Join(slices.Compact(names), ", ")
	return f
}

// unknownFields tells of fields that a resource of shape s does not have.
func unknownFields(n *yaml.Node, s shape, paths []string) []finding {
	if len(paths) > 10*maxProblems {
		paths = paths[:10*maxProblems]
	}
	var findings []finding
	for _, path := range paths {
		f := finding{field: path, message: fmt.Sprintf("unknown field %q", path)}
		if keys, _, whole := locate(n, path); whole {
			f.mend = suggestField(s, keys)
		}
		findings = append(findings, f)
	}
	return findings
}

// fieldFindings tells errs in the words of the API server, and names the nearest
// value where there is a choice.
func fieldFindings(errs field.ErrorList) []finding {
	var findings []finding
	for _, err := range errs {
		f := finding{field: fieldOf(err), message: err.ErrorBody()}
		switch {
		case err.Type == field.ErrorTypeNotSupported:
			f.mend = suggestValue(err)
		case err.Type == field.ErrorTypeTypeInvalid && strings.Contains(err.Detail, "must be of type string: ") && err.BadValue != "object" && err.BadValue != "array":
			f.mend = quote
		}
		findings = append(findings, f)
	}
	return findings
}

// fieldOf is the path of the field that err is about. That of a number which is too
// large for its type, and that of a oneOf, are in its detail only: must be of type
// integer with format int32 in spec.priority; "spec" must validate one and only one schema.
func fieldOf(err *field.Error) string {
	if err.Field != "" && err.Field != "<nil>" {
		return err.Field
	}
	if _, path, ok := strings.Cut(err.Detail, " in "); ok && strings.Contains(err.Detail, " must be of type ") {
		return path
	}
	quoted, _, _ := strings.Cut(err.Detail, " must validate ")
	path, _ := strconv.Unquote(quoted)
	return path
}

// suggestValue reads the choice from the error's detail, which has it nowhere else.
func suggestValue(err *field.Error) string {
	bad := fmt.Sprint(err.BadValue)
	list, ok := strings.CutPrefix(err.Detail, "supported values: ")
	if !ok {
		return ""
	}
	var values []string
	for _, quoted := range strings.Split(list, ", ") {
		if v, err := strconv.Unquote(quoted); err == nil {
			values = append(values, v)
		}
	}
	if near := nearest.Name(bad, values); near != "" {
		return "did you mean " + strconv.Quote(near) + "?"
	}
	return ""
}

// typeFinding tells err, that value could not be decoded into a Go type, with
// the field where that happened if it can be found. value stands at prefix.
func typeFinding(err error, value any, into any, prefix string) finding {
	data, marshalErr := json.Marshal(value)
	if marshalErr != nil {
		return finding{field: prefix, message: err.Error()}
	}
	var mismatch *json.UnmarshalTypeError
	if !errors.As(json.Unmarshal(data, into), &mismatch) {
		return finding{field: prefix, message: err.Error()}
	}
	f := finding{
		field:   strings.TrimSuffix(join(prefix, pathAt(data, mismatch.Offset)), "."),
		message: fmt.Sprintf("must be %s, not %s", typeName(mismatch.Type), valueName(mismatch.Value)),
	}
	if mismatch.Type.Kind() == reflect.String && mismatch.Value != "object" && mismatch.Value != "array" {
		f.mend = quote
	}
	return f
}

// quote is what to do about a scalar that YAML does not take for a string, such
// as 1.10 and, as in kubectl, y and off.
const quote = "put it in quotes"

// typeName is what a user calls the values of t.
func typeName(t reflect.Type) string {
	switch t = (goShape{t}).structure(); t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "a boolean"
	case reflect.Struct, reflect.Map:
		return "a mapping"
	case reflect.Slice:
		return "a list"
	default:
		return "a number of type " + t.Kind().String()
	}
}

// valueName is what a user calls a JSON value, without the value itself.
func valueName(value string) string {
	value, _, _ = strings.Cut(value, " ")
	return map[string]string{
		"array": "a list", "bool": "a boolean", "number": "this number", "object": "a mapping", "string": "a string",
	}[value]
}

// pathAt is the path of the value in data that ends at or holds offset.
func pathAt(data []byte, offset int64) string {
	p := pathFinder{decoder: json.NewDecoder(strings.NewReader(string(data))), offset: offset}
	p.value("")
	return p.found
}

type pathFinder struct {
	decoder *json.Decoder
	offset  int64
	found   string
}

// value reads the next value, which stands at path, and reports whether the
// offset is passed.
func (p *pathFinder) value(path string) (done bool) {
	p.found = path
	token, err := p.decoder.Token()
	if err != nil || p.decoder.InputOffset() >= p.offset {
		return true
	}
	open, ok := token.(json.Delim)
	if !ok {
		return false
	}
	for i := 0; p.decoder.More(); i++ {
		below := fmt.Sprintf("%s[%d]", path, i)
		if open == '{' {
			key, _ := p.decoder.Token()
			name, _ := key.(string)
			below = join(path, name)
		}
		if p.value(below) {
			return true
		}
	}
	p.found = path
	_, err = p.decoder.Token()
	return err != nil || p.decoder.InputOffset() >= p.offset
}
