package envoypatch

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/chandler-proxy/chandler/internal/envoytypes"
	"github.com/chandler-proxy/chandler/internal/nearest"
)

// decode reads v, the JSON form of m's type, into m. Names of fields may be in
// either of protobuf's two spellings. What does not fit is told with its path,
// never with its value: that may be a secret.
func decode(v *structpb.Struct, m proto.Message, path string) []*refusal {
	w := walk{types: envoytypes.Types()}
	w.message(m.ProtoReflect().Descriptor(), structpb.NewStructValue(v), path)
	if len(w.found) > 0 {
		return w.found
	}
	text, err := protojson.Marshal(v)
	if err == nil {
		err = protojson.UnmarshalOptions{Resolver: w.types}.Unmarshal(text, m)
	}
	if err != nil { // the walk finds all that protojson does, as far as we know
		w.refuse(path, "does not fit %s", m.ProtoReflect().Descriptor().FullName())
	}
	return w.found
}

// A walk compares JSON with the type that it is to be, and collects what differs.
type walk struct {
	types *envoytypes.Resolver
	found []*refusal
}

func (w *walk) refuse(path, format string, args ...any) *refusal {
	r := refuse(format, args...)
	r.field = path
	w.found = append(w.found, r)
	return r
}

// message checks that v is an md.
func (w *walk) message(md protoreflect.MessageDescriptor, v *structpb.Value, path string) {
	if md.FullName() == "google.protobuf.Any" {
		w.any(v, path)
		return
	}
	if isSpecial(md.FullName()) {
		w.special(md, v, path)
		return
	}
	fields := w.object(v, path)
	if fields == nil {
		return
	}
	w.fields(md, fields, path)
}

// object is the fields of v, nil and told if v is none.
func (w *walk) object(v *structpb.Value, path string) map[string]*structpb.Value {
	s, ok := v.GetKind().(*structpb.Value_StructValue)
	if !ok {
		w.refuse(path, "is %s, not an object", kindOf(v))
		return nil
	}
	return s.StructValue.GetFields()
}

func (w *walk) fields(md protoreflect.MessageDescriptor, fields map[string]*structpb.Value, path string) {
	seen := map[protoreflect.FullName]string{} // field or oneof, to the key that set it
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		at := path + "." + key
		fd := fieldOf(md, key)
		if fd == nil {
			r := w.refuse(at, "%s has no such field", md.FullName())
			if best := nearest.Name(key, fieldNames(md, key)); best != "" {
				r.or("did you mean %s?", best)
			}
			continue
		}
		if _, null := fields[key].GetKind().(*structpb.Value_NullValue); null && !fd.IsList() && !fd.IsMap() && !takesNull(fd) {
			continue // as not there
		}
		slot := fd.FullName()
		if od := fd.ContainingOneof(); od != nil {
			slot = od.FullName()
		}
		if other, ok := seen[slot]; ok {
			w.refuse(at, "%s is set too, and only one of them may be", other)
			continue
		}
		seen[slot] = key
		w.field(md, fd, fields[key], at)
	}
}

// field checks that v is what fd holds.
func (w *walk) field(md protoreflect.MessageDescriptor, fd protoreflect.FieldDescriptor, v *structpb.Value, path string) {
	switch {
	case isNull(v) && (fd.IsList() || fd.IsMap()): // as not there
	case fd.IsList():
		list, ok := v.GetKind().(*structpb.Value_ListValue)
		if !ok {
			w.refuse(path, "is %s, not a list", kindOf(v)).or("write it as a list of one")
			return
		}
		for i, v := range list.ListValue.GetValues() {
			w.element(md, fd, fd, v, fmt.Sprintf("%s[%d]", path, i), func(v any) any { return []any{v} })
		}
	case fd.IsMap():
		m := w.object(v, path)
		for _, key := range slices.Sorted(maps.Keys(m)) {
			w.element(md, fd, fd.MapValue(), m[key], fmt.Sprintf("%s[%q]", path, key), func(v any) any { return map[string]any{key: v} })
		}
	default:
		w.element(md, fd, fd, v, path, func(v any) any { return v })
	}
}

// element checks one value of field fd: itself, or an element of its list or
// map, of which in makes one that has but this element. holds says what it is.
func (w *walk) element(md protoreflect.MessageDescriptor, fd, holds protoreflect.FieldDescriptor, v *structpb.Value, path string, in func(any) any) {
	if holds.Message() != nil {
		w.message(holds.Message(), v, path)
		return
	}
	if isScalar(v) && w.fits(md, map[string]any{fd.JSONName(): in(v.AsInterface())}) {
		return
	}
	if holds.Enum() == nil {
		w.refuse(path, "is %s, not %s", kindOf(v), kindName(holds))
		return
	}
	w.suggestEnum(w.refuse(path, "is no %s", holds.Enum().FullName()), holds.Enum(), v)
}

func (w *walk) suggestEnum(r *refusal, ed protoreflect.EnumDescriptor, v *structpb.Value) {
	var names []string
	for i := range ed.Values().Len() {
		names = append(names, string(ed.Values().Get(i).Name()))
	}
	if best := nearest.Name(v.GetStringValue(), names); best != "" {
		r.or("did you mean %s?", best)
		return
	}
	r.or("use one of %s", strings.Join(names, ", "))
}

// fits reports whether protojson takes v for an md.
func (w *walk) fits(md protoreflect.MessageDescriptor, v any) bool {
	text, err := json.Marshal(v)
	if err != nil {
		return false
	}
	return protojson.UnmarshalOptions{Resolver: w.types}.Unmarshal(text, dynamicpb.NewMessage(md)) == nil
}

// special checks v against a type that has a JSON form of its own.
func (w *walk) special(md protoreflect.MessageDescriptor, v *structpb.Value, path string) {
	if !w.fits(md, v.AsInterface()) {
		w.refuse(path, "is not %s", specialName(md.FullName()))
	}
}

// any checks an Any: an object with @type and that type's fields, or its value
// if it has a JSON form of its own.
func (w *walk) any(v *structpb.Value, path string) {
	fields := w.object(v, path)
	if len(fields) == 0 {
		return
	}
	url, ok := fields["@type"].GetKind().(*structpb.Value_StringValue)
	if !ok {
		w.refuse(path, "has no @type").or(`write "@type": type.googleapis.com/ and the name of the type`)
		return
	}
	mt, err := w.types.FindMessageByURL(url.StringValue)
	if err != nil || !strings.Contains(url.StringValue, "/") {
		w.unknownType(url.StringValue, path+".@type")
		return
	}
	rest := maps.Clone(fields)
	delete(rest, "@type")
	md := mt.Descriptor()
	if md.FullName() == "google.protobuf.Any" || isSpecial(md.FullName()) {
		inner, ok := rest["value"]
		if !ok || len(rest) > 1 {
			w.refuse(path, "of type %s takes a field named value and no other", md.FullName())
			return
		}
		w.message(md, inner, path+".value")
		return
	}
	before := len(w.found)
	w.fields(md, rest, path)
	if _, ok := mt.New().Interface().(typedStruct); ok && len(w.found) == before {
		w.typedStruct(rest, path)
	}
}

func (w *walk) unknownType(url, path string) {
	r := w.refuse(path, "no type of Envoy's is named so").
		or("give it as xds.type.v3.TypedStruct with type_url and value, if your proxy knows it")
	if !strings.Contains(url, "/") {
		r.or("write type.googleapis.com/ before it")
		return
	}
	var names []string
	for name := range w.types.Names() {
		names = append(names, string(name))
	}
	slices.Sort(names)
	if best := nearest.Name(bare(url), names); best != "" {
		r.or("did you mean type.googleapis.com/%s?", best)
	}
}

// typedStruct checks what a TypedStruct stands for, if its type is known.
// Envoy takes a type_url with or without a slash.
func (w *walk) typedStruct(fields map[string]*structpb.Value, path string) {
	url := fields["type_url"]
	if url == nil {
		url = fields["typeUrl"]
	}
	if url.GetStringValue() == "" {
		w.refuse(path+".type_url", "is missing").or("name the type that value is of")
		return
	}
	mt, err := w.types.FindMessageByURL(url.GetStringValue())
	if err != nil || fields["value"] == nil || isNull(fields["value"]) {
		return
	}
	w.message(mt.Descriptor(), fields["value"], path+".value")
}

func fieldOf(md protoreflect.MessageDescriptor, key string) protoreflect.FieldDescriptor {
	if fd := md.Fields().ByTextName(key); fd != nil {
		return fd
	}
	return md.Fields().ByJSONName(key)
}

// fieldNames lists the names of md's fields in the spelling that like is in.
func fieldNames(md protoreflect.MessageDescriptor, like string) []string {
	var names []string
	camel := strings.ToLower(like) != like
	for i := range md.Fields().Len() {
		if fd := md.Fields().Get(i); camel {
			names = append(names, fd.JSONName())
		} else {
			names = append(names, fd.TextName())
		}
	}
	return names
}

// isSpecial tells the well-known types that have a JSON form of their own, but Any.
func isSpecial(name protoreflect.FullName) bool { return specialName(name) != "" }

func specialName(name protoreflect.FullName) string {
	switch name {
	case "google.protobuf.Duration":
		return "a duration in seconds, such as 1.5s"
	case "google.protobuf.Timestamp":
		return "a time, such as 2006-01-02T15:04:05Z"
	case "google.protobuf.FieldMask":
		return "a field mask"
	case "google.protobuf.Empty", "google.protobuf.Struct":
		return "an object"
	case "google.protobuf.ListValue":
		return "a list"
	case "google.protobuf.Value":
		return "JSON"
	case "google.protobuf.BoolValue":
		return "true or false"
	case "google.protobuf.StringValue":
		return "a string"
	case "google.protobuf.BytesValue":
		return "bytes in base64"
	case "google.protobuf.Int32Value", "google.protobuf.Int64Value", "google.protobuf.UInt32Value", "google.protobuf.UInt64Value":
		return "a whole number in range"
	case "google.protobuf.FloatValue", "google.protobuf.DoubleValue":
		return "a number"
	}
	return ""
}

func kindName(fd protoreflect.FieldDescriptor) string {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return "true or false"
	case protoreflect.StringKind:
		return "a string"
	case protoreflect.BytesKind:
		return "bytes in base64"
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return "a number"
	}
	return "a whole number in range"
}

func kindOf(v *structpb.Value) string {
	switch v.GetKind().(type) {
	case *structpb.Value_StructValue:
		return "an object"
	case *structpb.Value_ListValue:
		return "a list"
	case *structpb.Value_StringValue:
		return "a string"
	case *structpb.Value_NumberValue:
		return "a number"
	case *structpb.Value_BoolValue:
		return "true or false"
	}
	return "null"
}

func isNull(v *structpb.Value) bool {
	_, ok := v.GetKind().(*structpb.Value_NullValue)
	return ok || v.GetKind() == nil
}

func isScalar(v *structpb.Value) bool {
	switch v.GetKind().(type) {
	case *structpb.Value_StringValue, *structpb.Value_NumberValue, *structpb.Value_BoolValue:
		return true
	}
	return false
}

// takesNull tells the fields for which null is a value.
func takesNull(fd protoreflect.FieldDescriptor) bool {
	return fd.Message() != nil && fd.Message().FullName() == "google.protobuf.Value"
}
