package expr

import (
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"google.golang.org/protobuf/proto"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// appendValue appends a value as Envoy serializes those of properties. It returns false
// for what has no encoding: null, types, and maps and lists with such.
func appendValue(dst []byte, v ref.Val) ([]byte, bool) {
	switch v := v.(type) {
	case types.String:
		return append(dst, v...), true
	case types.Bytes:
		return append(dst, v...), true
	case types.Int:
		return abi.AppendInt(dst, int64(v)), true
	case types.Uint:
		return abi.AppendUint(dst, uint64(v)), true
	case types.Double:
		return abi.AppendDouble(dst, float64(v)), true
	case types.Bool:
		return abi.AppendBool(dst, bool(v)), true
	case types.Duration:
		return abi.AppendDuration(dst, v.Duration), true
	case types.Timestamp:
		return abi.AppendInt(dst, unixNano(v.Time)), true
	case *message:
		raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(v.m.Interface())
		return append(dst, raw...), err == nil
	case *attributes:
		return dst, false
	case traits.Mapper:
		return appendMap(dst, v)
	case traits.Lister:
		return appendList(dst, v)
	}
	return dst, false
}

func appendMap(dst []byte, m traits.Mapper) ([]byte, bool) {
	var pairs []abi.Pair
	for it := m.Iterator(); it.HasNext() == types.True; {
		key := it.Next()
		k, ok := appendValue(nil, key)
		v, ok2 := appendValue(nil, m.Get(key))
		if !ok || !ok2 {
			return dst, false
		}
		pairs = append(pairs, abi.Pair{Key: string(k), Value: string(v)})
	}
	return abi.AppendMap(dst, pairs), true
}

func appendList(dst []byte, l traits.Lister) ([]byte, bool) {
	var items []string
	for it := l.Iterator(); it.HasNext() == types.True; {
		item, ok := appendValue(nil, it.Next())
		if !ok {
			return dst, false
		}
		items = append(items, string(item))
	}
	return abi.AppendList(dst, items), true
}

func emptyMap() traits.Mapper { return types.NewRefValMap(types.DefaultTypeAdapter, nil) }

// ordered is a map whose keys come in an order.
type ordered struct {
	traits.Mapper
	keys []ref.Val
}

// Iterator goes over the keys in their order.
func (o *ordered) Iterator() traits.Iterator {
	return types.NewRefValList(types.DefaultTypeAdapter, o.keys).(traits.Iterable).Iterator()
}

// newMap makes a map of keys and values in turn.
func newMap(args ...ref.Val) ref.Val {
	values := make(map[ref.Val]ref.Val, len(args)/2)
	o := new(ordered)
	for i := 0; i+1 < len(args); i += 2 {
		key := args[i]
		switch key.(type) {
		case types.Bool, types.Int, types.Uint, types.String:
		default:
			return types.NewErr("invalid map key type: %s", key.Type().TypeName())
		}
		if _, ok := values[key]; ok {
			return types.NewErr("duplicate key in map: %v", key)
		}
		values[key] = args[i+1]
		o.keys = append(o.keys, key)
	}
	o.Mapper = types.NewRefValMap(types.DefaultTypeAdapter, values)
	return o
}
