package admin

import (
	"github.com/cncf/xds/go/udpa/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

const redacted = "[redacted]"

// redact takes out of a message what Envoy's API marks as sensitive, or, if all of it
// is, everything: texts and bytes say that something was there, the rest is cleared.
// What is in an Any that is of no known type is taken out, too.
func redact(m protoreflect.Message, all bool) {
	if a, ok := m.Interface().(*anypb.Any); ok {
		redactAny(a, all)
		return
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		sensitive := all || isSensitive(f)
		switch {
		case f.IsMap():
			redactMap(m, f, v.Map(), sensitive)
		case f.IsList():
			list := v.List()
			for i := range list.Len() {
				if next, ok := redactValue(f, list.Get(i), sensitive); ok {
					list.Set(i, next)
				}
			}
		default:
			if next, ok := redactValue(f, v, sensitive); ok {
				m.Set(f, next)
			} else if sensitive && f.Message() == nil {
				m.Clear(f)
			}
		}
		return true
	})
}

func redactMap(m protoreflect.Message, f protoreflect.FieldDescriptor, v protoreflect.Map, sensitive bool) {
	v.Range(func(k protoreflect.MapKey, item protoreflect.Value) bool {
		if next, ok := redactValue(f.MapValue(), item, sensitive); ok {
			v.Set(k, next)
		} else if sensitive && f.MapValue().Message() == nil {
			v.Clear(k)
		}
		return true
	})
}

// redactValue redacts a message in place, and returns what stands for a text.
func redactValue(f protoreflect.FieldDescriptor, v protoreflect.Value, sensitive bool) (protoreflect.Value, bool) {
	switch {
	case f.Message() != nil:
		redact(v.Message(), sensitive)
	case sensitive && f.Kind() == protoreflect.StringKind:
		return protoreflect.ValueOfString(redacted), true
	case sensitive && f.Kind() == protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(redacted)), true
	}
	return protoreflect.Value{}, false
}

func redactAny(a *anypb.Any, all bool) {
	inner, err := unpack(a)
	if err == nil {
		redact(inner.ProtoReflect(), all)
		err = a.MarshalFrom(inner)
	}
	if err != nil {
		a.Reset()
	}
}

func isSensitive(f protoreflect.FieldDescriptor) bool {
	yes, _ := proto.GetExtension(f.Options(), annotations.E_Sensitive).(bool)
	return yes
}
