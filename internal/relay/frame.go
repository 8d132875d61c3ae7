package relay

import (
	"fmt"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// A frame is one xDS message as it is on the wire.
type frame []byte

// codec is a gRPC codec that leaves messages alone.
type codec struct{}

// Name is that of the codec it stands in for, which is what peers ask for.
func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(frame)
	if !ok {
		return nil, fmt.Errorf("encode %T: not a frame", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(f)}, nil
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*frame)
	if !ok {
		return fmt.Errorf("decode into %T: not a frame", v)
	}
	*f = data.Materialize()
	return nil
}

// stringField returns the last value of a string field of the message in f, as
// protobuf has it; empty if there is none or the message is malformed.
func (f frame) stringField(field protowire.Number) string {
	value := ""
	for b := []byte(f); len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return ""
		}
		b = b[n:]
		if num == field && typ == protowire.BytesType {
			s, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return ""
			}
			value, b = string(s), b[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return ""
		}
		b = b[n:]
	}
	return value
}
