package hcm

import (
	"maps"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// metadata answers with what the configuration says of the listener, the virtual
// host, the route or the cluster.
func (s *stream) metadata(dst []byte, of, path string) ([]byte, bool) {
	m, ok := s.metadataOf(of)
	if !ok {
		return dst, false
	}
	return AppendMetadata(dst, m, path)
}

// AppendMetadata appends what is at path in m. Without a path it is m, encoded.
func AppendMetadata(dst []byte, m *corev3.Metadata, path string) ([]byte, bool) {
	if path == "" {
		raw, err := proto.Marshal(m)
		return append(dst, raw...), err == nil
	}
	field, path := abi.CutPath(path)
	name, path := abi.CutPath(path)
	data, known := m.GetFilterMetadata()[name]
	if field != "filter_metadata" || !known {
		return dst, false
	}
	return AppendValue(dst, structpb.NewStructValue(data), path)
}

// metadataOf returns the metadata of a thing, and whether there is the thing.
func (s *stream) metadataOf(of string) (*corev3.Metadata, bool) {
	at := s.router.choose()
	switch of {
	case "listener_metadata":
		return s.m.metadata, true
	case "virtual_host_metadata":
		if at.host != nil {
			return at.host.Metadata, true
		}
	case "route_metadata":
		if at.route != nil {
			return at.route.Metadata, true
		}
	case "cluster_metadata":
		if c := s.cluster(); c != nil {
			return c.Config.Message.GetMetadata(), true
		}
	}
	return nil, false
}

// AppendValue appends what is at path below v, in CEL's encoding.
func AppendValue(dst []byte, v *structpb.Value, path string) ([]byte, bool) {
	for path != "" {
		var name string
		name, path = abi.CutPath(path)
		next, ok := v.GetStructValue().GetFields()[name]
		if !ok {
			return dst, false
		}
		v = next
	}
	switch k := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		return append(dst, k.StringValue...), true
	case *structpb.Value_NumberValue:
		return abi.AppendDouble(dst, k.NumberValue), true
	case *structpb.Value_BoolValue:
		return abi.AppendBool(dst, k.BoolValue), true
	case *structpb.Value_StructValue:
		return abi.AppendMap(dst, pairs(k.StructValue.GetFields())), true
	case *structpb.Value_ListValue:
		var items []string
		for _, item := range k.ListValue.GetValues() {
			raw, _ := AppendValue(nil, item, "")
			items = append(items, string(raw))
		}
		return abi.AppendList(dst, items), true
	}
	return dst, true
}

func pairs(fields map[string]*structpb.Value) []abi.Pair {
	var list []abi.Pair
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		raw, _ := AppendValue(nil, fields[k], "")
		list = append(list, abi.Pair{Key: k, Value: string(raw)})
	}
	return list
}
