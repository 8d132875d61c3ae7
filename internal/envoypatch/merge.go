package envoypatch

import (
	"fmt"
	"strings"

	udpatypev1 "github.com/cncf/xds/go/udpa/type/v1"
	xdstypev3 "github.com/cncf/xds/go/xds/type/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/chandler-proxy/chandler/internal/envoytypes"
)

// merge puts src into dst, which are of one type: fields that src has are set,
// messages merged, maps merged by key, lists appended or, if so told, replaced.
// Messages that stand for one value, such as durations, are replaced.
func merge(dst, src protoreflect.Message, replaceLists bool) {
	src.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsList():
			list := dst.Mutable(fd).List()
			if replaceLists {
				list.Truncate(0)
			}
			for i := range v.List().Len() {
				list.Append(cloned(fd, v.List().Get(i)))
			}
		case fd.IsMap():
			m := dst.Mutable(fd).Map()
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				m.Set(k, cloned(fd.MapValue(), v))
				return true
			})
		case fd.Message() != nil && !isValue(fd.Message().FullName()):
			merge(dst.Mutable(fd).Message(), v.Message(), replaceLists)
		default:
			dst.Set(fd, cloned(fd, v))
		}
		return true
	})
	if unknown := src.GetUnknown(); len(unknown) > 0 {
		dst.SetUnknown(append(dst.GetUnknown(), unknown...))
	}
}

func cloned(fd protoreflect.FieldDescriptor, v protoreflect.Value) protoreflect.Value {
	switch {
	case fd.Message() != nil:
		return protoreflect.ValueOfMessage(proto.Clone(v.Message().Interface()).ProtoReflect())
	case fd.Kind() == protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(append([]byte{}, v.Bytes()...))
	}
	return v
}

// isValue tells the messages whose fields mean nothing apart from each other: a
// BoolValue of false has no field at all, and merging it would do nothing.
func isValue(name protoreflect.FullName) bool {
	switch name {
	case "google.protobuf.Any", "google.protobuf.Duration", "google.protobuf.Timestamp", "google.protobuf.Value":
		return true
	}
	return name.Parent() == "google.protobuf" && strings.HasSuffix(string(name), "Value") // the wrappers
}

// mergeNamed merges src into dst, both a filter, a transport socket or an
// extension config: something with a name and a typed_config. Unlike any other
// Any, the typed_configs are merged too.
func mergeNamed(dst, src proto.Message) error {
	d, s := dst.ProtoReflect(), proto.Clone(src).ProtoReflect()
	fd := s.Descriptor().Fields().ByName("typed_config")
	if s.Has(fd) {
		if discovery := d.Descriptor().Fields().ByName("config_discovery"); discovery != nil && d.Has(discovery) {
			return refuse("%s has its configuration from discovery, not in typed_config", describe(dst)).
				or("patch its EXTENSION_CONFIG")
		}
		if d.Has(fd) {
			merged, err := mergeAny(anyOf(d, fd), anyOf(s, fd))
			if err != nil {
				return fmt.Errorf("merge into %s: %w", describe(dst), err)
			}
			s.Set(fd, protoreflect.ValueOfMessage(merged.ProtoReflect()))
		}
	}
	merge(d, s, false)
	return nil
}

func anyOf(m protoreflect.Message, fd protoreflect.FieldDescriptor) *anypb.Any {
	a, _ := m.Get(fd).Message().Interface().(*anypb.Any)
	return a
}

// mergeAny returns a with b merged in. They must be of one type, either of them
// possibly as a TypedStruct.
func mergeAny(a, b *anypb.Any) (*anypb.Any, error) {
	am, err := expand(a)
	if err != nil {
		return nil, err
	}
	bm, err := expand(b)
	if err != nil {
		return nil, err
	}
	if at, bt := typeName(am), typeName(bm); at != bt {
		return nil, refuse("it is a %s, the patch a %s", at, bt).or("use REPLACE")
	}
	if am.ProtoReflect().Descriptor() != bm.ProtoReflect().Descriptor() {
		return nil, refuse("one is a udpa.type.v1.TypedStruct, the other an xds.type.v3.TypedStruct, of a type not known here").
			or("use REPLACE")
	}
	merge(am.ProtoReflect(), bm.ProtoReflect(), false)
	out := new(anypb.Any)
	err = anypb.MarshalFrom(out, am, proto.MarshalOptions{Deterministic: true})
	return out, err
}

// A typedStruct is either version of TypedStruct: any type's JSON.
type typedStruct interface {
	proto.Message
	GetTypeUrl() string
	GetValue() *structpb.Struct
}

var (
	_ typedStruct = (*udpatypev1.TypedStruct)(nil)
	_ typedStruct = (*xdstypev3.TypedStruct)(nil)
)

// expand returns the message in a; that of a TypedStruct if its type is known.
func expand(a *anypb.Any) (proto.Message, error) {
	types := envoytypes.Types()
	m, err := anypb.UnmarshalNew(a, proto.UnmarshalOptions{Resolver: types})
	if err != nil {
		return nil, fmt.Errorf("decode %s: %w", a.GetTypeUrl(), err)
	}
	ts, ok := m.(typedStruct)
	if !ok {
		return m, nil
	}
	mt, err := types.FindMessageByURL(ts.GetTypeUrl())
	if err != nil {
		return m, nil
	}
	text, err := protojson.Marshal(ts.GetValue())
	if err != nil {
		return nil, fmt.Errorf("encode value of TypedStruct: %w", err)
	}
	inner := mt.New().Interface()
	if err := (protojson.UnmarshalOptions{Resolver: types}).Unmarshal(text, inner); err != nil {
		return nil, refuse("its TypedStruct does not fit %s", mt.Descriptor().FullName())
	}
	return inner, nil
}

// typeName is the type of what m configures.
func typeName(m proto.Message) string {
	if ts, ok := m.(typedStruct); ok {
		return bare(ts.GetTypeUrl())
	}
	return string(m.ProtoReflect().Descriptor().FullName())
}

// configType is the type of what a configures: for a TypedStruct that within.
func configType(a *anypb.Any) string {
	name := bare(a.GetTypeUrl())
	if name == "udpa.type.v1.TypedStruct" || name == "xds.type.v3.TypedStruct" {
		if m, err := a.UnmarshalNew(); err == nil {
			return typeName(m)
		}
	}
	return name
}

// bare is a type URL without what comes before its last slash.
func bare(url string) string { return url[strings.LastIndexByte(url, '/')+1:] }
