package document

import (
	"reflect"
	"time"
)

// A Schemer says itself what documents may have in its place, as JSON schema.
type Schemer interface {
	NodeSchema() map[string]any
}

// Schema is the JSON schema, draft 2020-12, of the documents that Decode makes values
// of v's type of. Structs are definitions by their type's name, among them the structs
// in more, for a [Schemer] to refer to.
func Schema(v any, id, title string, more ...any) map[string]any {
	s := schemas{defs: map[string]any{}}
	for _, m := range more {
		s.of(reflect.TypeOf(m))
	}
	root := s.of(reflect.TypeOf(v))
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["$id"] = id
	root["title"] = title
	root["$defs"] = s.defs
	return root
}

type object = map[string]any

type schemas struct{ defs object }

func (s *schemas) of(t reflect.Type) object {
	if p, ok := reflect.New(t).Interface().(Schemer); ok {
		return p.NodeSchema()
	}
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return object{"type": "string", "pattern": `^-?([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)`}
	case t.Kind() == reflect.Pointer:
		return s.of(t.Elem())
	case t.Kind() == reflect.Slice:
		return object{"type": "array", "items": s.of(t.Elem())}
	case t.Kind() == reflect.Map:
		values := s.of(t.Elem())
		if t.Elem().Kind() == reflect.Pointer { // a name without a value means something
			values = object{"anyOf": []any{values, object{"type": "null"}}}
		}
		return object{"type": "object", "additionalProperties": values}
	case t.Kind() == reflect.Struct:
		return s.structure(t)
	case t.Kind() == reflect.String:
		return object{"type": []string{"string", "number", "boolean"}}
	case t.Kind() == reflect.Bool:
		return object{"type": "boolean"}
	}
	if t.Kind() >= reflect.Uint && t.Kind() <= reflect.Uint64 {
		return object{"type": "integer", "minimum": 0}
	}
	return object{"type": "integer"}
}

// structure refers to the definition of a struct, which it makes once.
func (s *schemas) structure(t reflect.Type) object {
	ref := object{"$ref": "#/$defs/" + t.Name()}
	if s.defs[t.Name()] != nil {
		return ref
	}
	properties := object{}
	def := object{"type": "object", "properties": properties, "additionalProperties": false}
	s.defs[t.Name()] = def // before its fields, which may have it
	var required []string
	for _, f := range fieldsOf(t) {
		p := s.of(f.typ)
		if f.about != "" {
			p["description"] = f.about
		}
		properties[f.name] = p
		if f.required {
			required = append(required, f.name)
		}
	}
	if required != nil {
		def["required"] = required
	}
	return ref
}
