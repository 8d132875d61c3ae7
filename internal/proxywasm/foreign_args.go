package proxywasm

import (
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// decoded is a protobuf message as foreign functions take them: of scalar fields, none
// of which is repeated. A field that is not there has its zero value; of one that is
// there twice the last holds.
type decoded struct {
	bytes   map[protowire.Number][]byte
	varints map[protowire.Number]uint64
}

// decodeMessage decodes b, which it goes on using. It fails as protobuf's decoder for
// C++ does: for what is malformed, and if one of the fields that are text is not UTF-8.
// Fields that it does not know, and those of another wire type, are passed over by
// whoever asks for the ones it knows.
//
// The messages are Envoy's, which it keeps to itself:
// https://github.com/envoyproxy/envoy/tree/v1.40.0/source/extensions/common/wasm/ext
func decodeMessage(b []byte, text ...protowire.Number) (decoded, bool) {
	m := decoded{map[protowire.Number][]byte{}, map[protowire.Number]uint64{}}
	for len(b) > 0 {
		field, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return m, false
		}
		b = b[n:]
		switch wire {
		case protowire.BytesType:
			m.bytes[field], n = protowire.ConsumeBytes(b)
		case protowire.VarintType:
			m.varints[field], n = protowire.ConsumeVarint(b)
		default:
			n = protowire.ConsumeFieldValue(field, wire, b)
		}
		if n < 0 {
			return m, false
		}
		b = b[n:]
	}
	for _, field := range text {
		if !utf8.Valid(m.bytes[field]) {
			return m, false
		}
	}
	return m, true
}

func (m decoded) text(field protowire.Number) string { return string(m.bytes[field]) }

// enum is a value of an enumeration, whatever bits there are above the 32nd.
func (m decoded) enum(field protowire.Number) int32 { return int32(m.varints[field]) }

func (m decoded) bool(field protowire.Number) bool { return m.varints[field] != 0 }

// appendBool appends a field of a result, as appendBytes does, unless it is zero.
func appendBool(dst []byte, field protowire.Number, v bool) []byte {
	if !v {
		return dst
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, field, protowire.VarintType), 1)
}

func appendBytes[T string | []byte](dst []byte, field protowire.Number, v T) []byte {
	if len(v) == 0 {
		return dst
	}
	return protowire.AppendString(protowire.AppendTag(dst, field, protowire.BytesType), string(v))
}
