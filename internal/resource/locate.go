package resource

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/chandler-proxy/chandler/internal/nearest"
)

// locate follows path, as in spec.match[0].mode or spec.labels[a.b], from n as
// far as n has it. It returns the keys passed, with "[]" for an index, and the
// line of the last of them; and whether that was all of path.
//
// A key may have dots in it, so a path can be read in several ways; the one
// that leads farthest is meant.
func locate(n *yaml.Node, path string) (keys []string, line int, whole bool) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if path == "" {
		return nil, 0, true
	}
	try := func(at, next *yaml.Node, key, rest string) {
		below, lower, all := locate(next, rest)
		if line == 0 || all || len(below)+1 > len(keys) {
			keys, line, whole = append([]string{key}, below...), cmp.Or(lower, at.Line), all
		}
	}
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content) && !whole; i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if name, _ := keyName(key); name != "" {
			if rest, ok := cutKey(path, name); ok {
				try(key, value, name, rest)
			}
		}
	}
	if i, rest, ok := cutIndex(path); ok && n.Kind == yaml.SequenceNode && i < len(n.Content) {
		try(n.Content[i], n.Content[i], "[]", rest)
	}
	return keys, line, whole
}

// cutKey takes key off the beginning of path.
func cutKey(path, key string) (rest string, ok bool) {
	if rest, ok := strings.CutPrefix(path, "["+key+"]"); ok {
		return strings.TrimPrefix(rest, "."), true
	}
	rest, ok = strings.CutPrefix(path, key)
	if !ok || rest != "" && rest[0] != '.' && rest[0] != '[' {
		return "", false
	}
	return strings.TrimPrefix(rest, "."), true
}

// cutIndex takes an index off the beginning of path.
func cutIndex(path string) (i int, rest string, ok bool) {
	inner, found := strings.CutPrefix(path, "[")
	inner, rest, closed := strings.Cut(inner, "]")
	i, err := strconv.Atoi(inner)
	return i, strings.TrimPrefix(rest, "."), found && closed && err == nil && i >= 0
}

// Lines tells where in a file fields are. It keeps the file, and reads it again only
// if it is asked. Safe for concurrent use.
type Lines struct {
	documents func() map[int]*yaml.Node // by the line where each begins
}

func newLines(data []byte) *Lines {
	return &Lines{documents: sync.OnceValue(func() map[int]*yaml.Node {
		nodes, _ := parse(data)
		documents := make(map[int]*yaml.Node, len(nodes))
		for len(nodes) > 0 {
			n := nodes[0]
			nodes = append(nodes[1:], listItems(n)...)
			documents[n.Line] = n
		}
		return documents
	})}
}

// Field is the line of field, or of as much of its path as is there, in the document
// that begins at line document; that line if there is nothing of the field. l may be nil.
func (l *Lines) Field(document int, field string) int {
	if l == nil || field == "" {
		return document
	}
	n := l.documents()[document]
	if n == nil {
		return document
	}
	_, line, _ := locate(n, field)
	return cmp.Or(line, document)
}

// A shape is what fields a resource may have, for finding the one that was meant.
type shape interface {
	// fields are the names of the fields right below.
	fields() []string
	// below is the shape of field name, or of an item if that is "[]"; nil if
	// there is none or nothing is known of it.
	below(name string) shape
}

// suggestField is what to do about the unknown field keys of a resource of shape s.
func suggestField(s shape, keys []string) string {
	if len(keys) == 0 { // a key that is empty names no field
		return ""
	}
	name := keys[len(keys)-1]
	at := s
	for _, key := range keys[:len(keys)-1] {
		if at = at.below(key); at == nil {
			return ""
		}
	}
	if near := nearest.Name(name, at.fields()); near != "" {
		return "did you mean " + strconv.Quote(near) + "?"
	}
	if path := find(s, name); path != "" {
		return "did you mean " + strconv.Quote(path) + "?"
	}
	return ""
}

// find returns the shortest path to a field of exactly that name, if it does
// not lead through a list: a field that was indented wrongly.
func find(s shape, name string) string {
	type place struct {
		shape
		path string
	}
	for places := []place{{s, ""}}; len(places) > 0; places = places[1:] {
		p := places[0]
		if strings.Count(p.path, ".") > 3 {
			return ""
		}
		for _, f := range p.fields() {
			if f == name {
				return join(p.path, f)
			}
			if b := p.below(f); b != nil {
				places = append(places, place{b, join(p.path, f)})
			}
		}
	}
	return ""
}

// A goShape is the shape of a Go type that is decoded from JSON. The type is not
// embedded: with its method MethodByName in reach the linker would keep every method
// of every type, half of the program.
type goShape struct{ of reflect.Type }

func shapeOf(v any) shape { return goShape{reflect.TypeOf(v)} }

func (s goShape) structure() reflect.Type {
	t := s.of
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

func (s goShape) fields() []string {
	t := s.structure()
	if t.Kind() != reflect.Struct {
		return nil
	}
	var names []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			names = append(names, goShape{f.Type}.fields()...)
		case name != "" && name != "-":
			names = append(names, name)
		}
	}
	return names
}

func (s goShape) below(name string) shape {
	t := s.structure()
	switch t.Kind() {
	case reflect.Slice:
		if name == "[]" {
			return goShape{t.Elem()}
		}
	case reflect.Map:
		return goShape{t.Elem()}
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if key == name {
				return goShape{f.Type}
			}
			if f.Anonymous && key == "" {
				if b := (goShape{f.Type}).below(name); b != nil {
					return b
				}
			}
		}
	}
	return nil
}

// A schemaShape is the shape that a CRD's schema gives.
type schemaShape struct {
	*structuralschema.Structural
	root bool // then metadata is not in the schema
}

func (s schemaShape) fields() []string {
	names := slices.Sorted(maps.Keys(s.Properties))
	if s.root {
		names = append(names, "metadata")
	}
	return names
}

func (s schemaShape) below(name string) shape {
	if s.root && name == "metadata" {
		return shapeOf(metav1.ObjectMeta{})
	}
	if name == "[]" {
		if s.Items == nil {
			return nil
		}
		return schemaShape{Structural: s.Items}
	}
	if p, ok := s.Properties[name]; ok {
		return schemaShape{Structural: &p}
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Structural != nil {
		return schemaShape{Structural: s.AdditionalProperties.Structural}
	}
	return nil
}
