package expr

import (
	"cmp"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/envoytypes"
)

// lookup appends what is at path in an encoded message, for proxy_get_property.
func lookup(dst []byte, typeURL, data, path string) ([]byte, abi.Status) {
	v := decodeAny(typeURL, []byte(data))
	for path != "" {
		var name string
		name, path = abi.CutPath(path)
		if v = field(v, name); v == nil {
			return dst, abi.NotFound
		}
	}
	switch out, ok := appendValue(dst, v); {
	case ok:
		return out, abi.OK
	default:
		return dst, abi.SerializationFailure
	}
}

// field is what has the name, or the number, in a value; nil if nothing has.
func field(of ref.Val, name string) ref.Val {
	switch of := of.(type) {
	case *message:
		if v := of.Get(types.String(name)); !types.IsError(v) {
			return v
		}
	case traits.Mapper:
		if v, ok := of.Find(types.String(name)); ok {
			return v
		}
	case traits.Lister:
		if i, err := strconv.ParseInt(name, 10, 32); err == nil && i >= 0 && types.Int(i) < of.Size().(types.Int) {
			return of.Get(types.Int(i))
		}
	}
	return nil
}

// decodeAny decodes a message of a type URL, an error for one that is not known.
func decodeAny(typeURL string, data []byte) ref.Val {
	if !strings.Contains(typeURL, "/") {
		return types.NewErr("malformed type URL %q", typeURL)
	}
	return decodeMessage(protoreflect.FullName(typeURL[strings.LastIndexByte(typeURL, '/')+1:]), data)
}

func decodeMessage(name protoreflect.FullName, data []byte) ref.Val {
	t, err := envoytypes.Types().FindMessageByName(name)
	if err != nil {
		return types.WrapErr(err)
	}
	m := t.New()
	if err := (proto.UnmarshalOptions{Resolver: envoytypes.Types()}).Unmarshal(data, m.Interface()); err != nil {
		return types.WrapErr(err)
	}
	return fromMessage(m)
}

// A message is a protobuf message as a value: of one that stands for a value of CEL's
// own, such as a Struct, there is that value instead.
type message struct{ m protoreflect.Message }

// Type is the message's.
func (v *message) Type() ref.Type {
	return types.NewObjectType(string(v.m.Descriptor().FullName()), traits.IndexerType, traits.FieldTesterType)
}

// Value is the message.
func (v *message) Value() any { return v.m.Interface() }

// Equal compares messages of the same type.
func (v *message) Equal(other ref.Val) ref.Val {
	o, ok := other.(*message)
	return types.Bool(ok && proto.Equal(v.m.Interface(), o.m.Interface()))
}

// ConvertToType knows the message's own type, and type.
func (v *message) ConvertToType(t ref.Type) ref.Val {
	switch {
	case t == types.TypeType:
		return v.Type().(ref.Val)
	case t.TypeName() == v.Type().TypeName():
		return v
	}
	return types.NewErr("type conversion error from '%s' to '%s'", v.Type().TypeName(), t.TypeName())
}

// ConvertToNative returns the message, for fields of others.
func (v *message) ConvertToNative(reflect.Type) (any, error) { return v.m.Interface(), nil }

// Get returns a field's value.
func (v *message) Get(name ref.Val) ref.Val {
	f, err := v.field(name)
	if err != nil {
		return err
	}
	return fromField(v.m, f)
}

// IsSet is has().
func (v *message) IsSet(name ref.Val) ref.Val {
	f, err := v.field(name)
	if err != nil {
		return err
	}
	return types.Bool(v.m.Has(f))
}

func (v *message) field(name ref.Val) (protoreflect.FieldDescriptor, ref.Val) {
	s, _ := name.(types.String)
	f := v.m.Descriptor().Fields().ByName(protoreflect.Name(s))
	if f == nil {
		return nil, types.NewErr("no such field '%v'", name)
	}
	return f, nil
}

// fromField is a field's value, or what it has when it is not set.
func fromField(m protoreflect.Message, f protoreflect.FieldDescriptor) ref.Val {
	switch {
	case f.IsList():
		return fromList(m.Get(f).List(), f)
	case f.IsMap():
		return fromMap(m.Get(f).Map(), f)
	case f.Message() != nil && !m.Has(f) && isWrapper(f.Message()):
		return types.NullValue
	}
	return fromScalar(m.Get(f), f)
}

func fromList(list protoreflect.List, f protoreflect.FieldDescriptor) ref.Val {
	items := make([]ref.Val, list.Len())
	for i := range items {
		items[i] = fromScalar(list.Get(i), f)
	}
	return types.NewRefValList(types.DefaultTypeAdapter, items)
}

// fromMap sorts by key: protobuf has no order.
func fromMap(m protoreflect.Map, f protoreflect.FieldDescriptor) ref.Val {
	var keys []protoreflect.MapKey
	m.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
		keys = append(keys, k)
		return true
	})
	slices.SortFunc(keys, func(a, b protoreflect.MapKey) int { return cmp.Compare(a.String(), b.String()) })
	var all []ref.Val
	for _, k := range keys {
		all = append(all, fromScalar(k.Value(), f.MapKey()), fromScalar(m.Get(k), f.MapValue()))
	}
	return newMap(all...)
}

func fromScalar(v protoreflect.Value, f protoreflect.FieldDescriptor) ref.Val {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return types.Bool(v.Bool())
	case protoreflect.EnumKind:
		return types.Int(v.Enum())
	case protoreflect.StringKind:
		return types.String(v.String())
	case protoreflect.BytesKind:
		return types.Bytes(v.Bytes())
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return types.Double(v.Float())
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return types.Uint(v.Uint())
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return fromMessage(v.Message())
	}
	return types.Int(v.Int())
}

func isWrapper(d protoreflect.MessageDescriptor) bool {
	return strings.HasPrefix(string(d.FullName()), "google.protobuf.") && strings.HasSuffix(string(d.Name()), "Value") &&
		d.Fields().Len() == 1 && d.Fields().Get(0).Name() == "value"
}

// fromMessage is the value that a message stands for.
func fromMessage(m protoreflect.Message) ref.Val {
	d := m.Descriptor()
	one := func(name protoreflect.Name) ref.Val { return fromField(m, d.Fields().ByName(name)) }
	number := func(name protoreflect.Name) int64 { return m.Get(d.Fields().ByName(name)).Int() }
	switch d.FullName() {
	case "google.protobuf.Struct":
		return one("fields")
	case "google.protobuf.ListValue":
		return one("values")
	case "google.protobuf.Value":
		set := m.WhichOneof(d.Oneofs().Get(0))
		if set == nil || set.Name() == "null_value" {
			return types.NullValue
		}
		return fromField(m, set)
	case "google.protobuf.Timestamp":
		return types.Timestamp{Time: (&timestamppb.Timestamp{Seconds: number("seconds"), Nanos: int32(number("nanos"))}).AsTime()}
	case "google.protobuf.Duration":
		return types.Duration{Duration: (&durationpb.Duration{Seconds: number("seconds"), Nanos: int32(number("nanos"))}).AsDuration()}
	case "google.protobuf.Any":
		return decodeAny(m.Get(d.Fields().ByName("type_url")).String(), m.Get(d.Fields().ByName("value")).Bytes())
	}
	if isWrapper(d) {
		return one("value")
	}
	return &message{m}
}

// A provider knows the types that an expression can make: all of Envoy's messages.
type provider struct{ *types.Registry }

// FindIdent knows the names of CEL's own types, and the only value of an enumeration
// that Envoy's library knows.
func (p provider) FindIdent(name string) (ref.Val, bool) {
	if name == "google.protobuf.NullValue.NULL_VALUE" {
		return types.IntZero, true
	}
	if strings.Contains(name, ".") {
		return nil, false
	}
	return p.Registry.FindIdent(name)
}

// FindStructType knows all messages.
func (p provider) FindStructType(name string) (*types.Type, bool) {
	if _, err := envoytypes.Types().FindMessageByName(protoreflect.FullName(name)); err != nil {
		return nil, false
	}
	return types.NewTypeTypeWithParam(types.NewObjectType(name)), true
}

// NewValue makes a message, with a registry that has but its type: most expressions
// make none.
func (p provider) NewValue(name string, fields map[string]ref.Val) ref.Val {
	t, err := envoytypes.Types().FindMessageByName(protoreflect.FullName(name))
	if err != nil {
		return types.WrapErr(err)
	}
	registry, err := types.NewRegistry(t.New().Interface())
	if err != nil {
		return types.WrapErr(err)
	}
	v := registry.NewValue(name, fields)
	if m, ok := v.Value().(proto.Message); ok && !types.IsError(v) {
		return fromMessage(m.ProtoReflect())
	}
	return v
}
