package document

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chandler-proxy/chandler/internal/nearest"
)

// A Position is where a value stands. A struct that has one, in a field named At, gets
// its own.
type Position struct {
	Line int
	Path string

	lines map[string]int // of fields, by name
}

// Of is the position of one of the struct's fields; its own if the document has no such.
func (p Position) Of(field string) Position {
	at := Position{Line: p.Line, Path: join(p.Path, field)}
	if line, ok := p.lines[field]; ok {
		at.Line = line
	}
	return at
}

// An Unmarshaler decodes itself from a node. It reports what is wrong with it to the
// decoder.
type Unmarshaler interface {
	UnmarshalNode(d *Decoder, path string, n *Node)
}

// A Checker is asked, once it is decoded, what else is wrong with it.
type Checker interface {
	CheckNode(d *Decoder, path string, n *Node)
}

// A Decoder makes values of nodes, and collects what is wrong with them.
type Decoder struct {
	// File returns what is in a file that the document names.
	File func(name string) ([]byte, error)

	Problems []Problem
}

// Fail adds a problem at the node.
func (d *Decoder) Fail(path string, n *Node, format string, a ...any) {
	d.Problems = append(d.Problems, Problem{n.Line, path, fmt.Sprintf(format, a...)})
}

// Err is what was wrong with the document, as an *Error in the order of lines, or nil.
func (d *Decoder) Err(file string) error {
	if len(d.Problems) == 0 {
		return nil
	}
	slices.SortStableFunc(d.Problems, func(a, b Problem) int { return a.Line - b.Line })
	return &Error{file, d.Problems}
}

// ReadFile returns what is in a file that the document names at the node.
func (d *Decoder) ReadFile(path string, n *Node, name string) []byte {
	if name == "" {
		d.Fail(path, n, "want the name of a file")
		return nil
	}
	data, err := d.File(name)
	if err != nil {
		d.Fail(path, n, "%v", err)
	}
	return data
}

// Decode makes of a node what to points to: a struct, whose fields are named by their
// spec tags; a slice, map, string, number, bool or [time.Duration]; a pointer to such, which null
// leaves nil; or an [Unmarshaler]. What is wrong is in Problems.
func (d *Decoder) Decode(path string, n *Node, to any) { d.value(path, n, reflect.ValueOf(to).Elem()) }

func (d *Decoder) value(path string, n *Node, v reflect.Value) {
	if u, ok := v.Addr().Interface().(Unmarshaler); ok {
		u.UnmarshalNode(d, path, n)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if n.Kind == Scalar && n.Value == nil {
			return
		}
		v.Set(reflect.New(v.Type().Elem()))
		d.value(path, n, v.Elem())
	case reflect.Struct:
		d.structure(path, n, v)
	case reflect.Slice:
		d.slice(path, n, v)
	case reflect.Map:
		d.mapping(path, n, v)
	default:
		d.scalar(path, n, v)
	}
	if c, ok := v.Addr().Interface().(Checker); ok {
		c.CheckNode(d, path, n)
	}
}

// A structField is one that a document may have.
type structField struct {
	name     string
	required bool
	about    string
	index    int
	typ      reflect.Type
}

// fieldsOf are the fields that the struct has tags for, in order: spec:"name" or
// spec:"name,required", and about:"what it is".
func fieldsOf(t reflect.Type) []structField {
	var list []structField
	for i := range t.NumField() {
		f := t.Field(i)
		tag, ok := f.Tag.Lookup("spec")
		if !ok {
			continue
		}
		name, rest, _ := strings.Cut(tag, ",")
		list = append(list, structField{name, rest == "required", f.Tag.Get("about"), i, f.Type})
	}
	return list
}

func (d *Decoder) structure(path string, n *Node, v reflect.Value) {
	if at := v.FieldByName("At"); at.IsValid() && at.Type() == reflect.TypeFor[Position]() {
		lines := map[string]int{}
		for _, f := range n.Fields {
			lines[f.Name] = f.Line
		}
		at.Set(reflect.ValueOf(Position{n.Line, path, lines}))
	}
	if n.Kind != Map {
		d.Fail(path, n, "want a mapping, have %s", n.describe())
		return
	}
	known := fieldsOf(v.Type())
	given := map[string]bool{}
	for _, f := range n.Fields {
		i := slices.IndexFunc(known, func(k structField) bool { return k.name == f.Name })
		to := join(path, f.Name)
		if i < 0 {
			d.Problems = append(d.Problems, Problem{f.Line, to, unknown(f.Name, known)})
			continue
		}
		if given[f.Name] && !repeated(known[i].typ) {
			d.Problems = append(d.Problems, Problem{f.Line, to, "comes twice"})
			continue
		}
		given[f.Name] = true
		d.value(to, f.Value, v.Field(known[i].index))
	}
	for _, k := range known {
		if k.required && !given[k.name] {
			d.Fail(join(path, k.name), n, "is missing")
		}
	}
}

// unknown says what a field that is not known may have been meant to be.
func unknown(name string, known []structField) string {
	var list []string
	for _, k := range known {
		list = append(list, k.name)
	}
	if near := nearest.Name(name, list); near != "" {
		return "unknown field; did you mean " + near + "?"
	}
	return "unknown field; known here: " + strings.Join(list, ", ")
}

// repeated reports whether a field of the text form may come more than once.
func repeated(t reflect.Type) bool {
	return t.Kind() == reflect.Slice && !reflect.PointerTo(t).Implements(reflect.TypeFor[Unmarshaler]())
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// slice adds to what there is: in the text form a field may come again for each item.
func (d *Decoder) slice(path string, n *Node, v reflect.Value) {
	items := n.Items
	if n.Kind != List {
		if !n.proto {
			d.Fail(path, n, "want a list, have %s", n.describe())
			return
		}
		items = []*Node{n}
	}
	for _, item := range items {
		e := reflect.New(v.Type().Elem()).Elem()
		d.value(fmt.Sprintf("%s[%d]", path, v.Len()), item, e)
		v.Set(reflect.Append(v, e))
	}
}

func (d *Decoder) mapping(path string, n *Node, v reflect.Value) {
	if n.Kind != Map {
		d.Fail(path, n, "want a mapping, have %s", n.describe())
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for _, f := range n.Fields {
		e := reflect.New(v.Type().Elem()).Elem()
		d.value(join(path, f.Name), f.Value, e)
		v.SetMapIndex(reflect.ValueOf(f.Name), e)
	}
}

// scalar sets a string, number, bool or duration.
func (d *Decoder) scalar(path string, n *Node, v reflect.Value) {
	want := wants(v.Type())
	if n.Kind != Scalar || n.Value == nil {
		d.Fail(path, n, "want %s, have %s", want, n.describe())
		return
	}
	var err error
	switch {
	case v.Type() == reflect.TypeFor[time.Duration]():
		var t time.Duration
		t, err = time.ParseDuration(n.Text)
		v.SetInt(int64(t))
	case v.Kind() == reflect.String:
		if n.word {
			err = errors.New("a word without quotes")
		}
		v.SetString(n.String())
	case v.Kind() == reflect.Bool:
		var b bool
		b, err = parseBool(n.Text)
		v.SetBool(b)
	case v.CanInt():
		var i int64
		i, err = strconv.ParseInt(n.Text, 0, v.Type().Bits())
		v.SetInt(i)
	case v.CanUint():
		var u uint64
		u, err = strconv.ParseUint(n.Text, 0, v.Type().Bits())
		v.SetUint(u)
	default:
		panic("document: cannot decode a " + v.Type().String()) // a bug of the caller's
	}
	if err != nil {
		d.Fail(path, n, "want %s, have %s", want, n.describe())
	}
}

// wants is what a scalar type is called to users.
func wants(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "a duration such as 1.5s"
	case t.Kind() == reflect.String:
		return "a string"
	case t.Kind() == reflect.Bool:
		return "true or false"
	}
	bits := t.Bits()
	if t.Kind() >= reflect.Uint && t.Kind() <= reflect.Uint64 {
		return fmt.Sprintf("a number from 0 to %d", uint64(math.MaxUint64)>>(64-bits))
	}
	return fmt.Sprintf("a number of at most %d bits", bits)
}

// parseBool takes what either notation has for true and false.
func parseBool(text string) (bool, error) {
	switch strings.ToLower(text) {
	case "true", "t", "1", "yes", "y", "on":
		return true, nil
	case "false", "f", "0", "no", "n", "off":
		return false, nil
	}
	return false, strconv.ErrSyntax
}

// String is the bytes or text of a scalar.
func (n *Node) String() string {
	if b, ok := n.Value.([]byte); ok {
		return string(b)
	}
	return n.Text
}

// describe is the node in words.
func (n *Node) describe() string {
	switch {
	case n.Kind != Scalar:
		return n.Kind.String()
	case n.Value == nil:
		return "nothing"
	case len(n.Text) > 40:
		return strconv.Quote(n.Text[:40]) + "…"
	case n.word:
		return n.Text
	}
	return strconv.Quote(n.Text)
}
