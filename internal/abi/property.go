package abi

import (
	"encoding/binary"
	"math"
	"strings"
	"time"
)

// Property values as Envoy serializes them for proxy_get_property. The reader must
// know the type: nothing in the bytes tells. Strings, bytes and whole protobuf
// messages (in wire format) are themselves; the rest is below.

// AppendInt appends a CEL int: eight bytes, little-endian.
func AppendInt(dst []byte, v int64) []byte {
	return binary.LittleEndian.AppendUint64(dst, uint64(v))
}

// AppendUint appends a CEL uint: eight bytes, little-endian.
func AppendUint(dst []byte, v uint64) []byte {
	return binary.LittleEndian.AppendUint64(dst, v)
}

// AppendDouble appends a CEL double: eight bytes, IEEE 754, little-endian.
func AppendDouble(dst []byte, v float64) []byte {
	return binary.LittleEndian.AppendUint64(dst, math.Float64bits(v))
}

// AppendBool appends a CEL bool: one byte, 0 or 1.
func AppendBool(dst []byte, v bool) []byte {
	if v {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// AppendDuration appends a duration: nanoseconds, as AppendInt.
func AppendDuration(dst []byte, v time.Duration) []byte { return AppendInt(dst, int64(v)) }

// AppendTime appends a timestamp: nanoseconds since 1970, as AppendInt.
func AppendTime(dst []byte, v time.Time) []byte { return AppendInt(dst, v.UnixNano()) }

// AppendMap appends a map whose keys and values are already encoded. Unlike an empty
// header map, which is no bytes, an empty property map is a count of zero.
func AppendMap(dst []byte, pairs []Pair) []byte {
	if len(pairs) == 0 {
		return append(dst, 0, 0, 0, 0)
	}
	return AppendPairs(dst, pairs)
}

// AppendList appends a list whose items are already encoded: to a guest it is a map
// from each item to the empty string.
func AppendList(dst []byte, items []string) []byte {
	pairs := make([]Pair, len(items))
	for i, item := range items {
		pairs[i].Key = item
	}
	return AppendMap(dst, pairs)
}

// CutPath cuts the first segment off a property path, whose segments are separated by
// zero bytes. A zero byte at the very end means nothing.
func CutPath(path string) (segment, rest string) {
	segment, rest, _ = strings.Cut(path, "\x00")
	return segment, rest
}

// JoinPath joins segments to a property path.
func JoinPath(segments ...string) string { return strings.Join(segments, "\x00") }
