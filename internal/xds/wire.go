package xds

import (
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/chandler-proxy/chandler/internal/ecds"
)

// Fields of the messages of envoy.service.discovery.v3 and google.protobuf.Any.
const (
	responseVersion   protowire.Number = 1 // of both variants
	responseResources protowire.Number = 2 // of both variants
	responseType      protowire.Number = 4 // of both variants
	responseNonce     protowire.Number = 5 // of both variants
	responseRemoved   protowire.Number = 6 // of delta
	responseFromDelta protowire.Number = 7 // its control plane
	responseFromWorld protowire.Number = 6

	identifier protowire.Number = 1 // of a control plane

	resourceVersion protowire.Number = 1
	resourceBody    protowire.Number = 2
	resourceName    protowire.Number = 3

	anyType  protowire.Number = 1
	anyValue protowire.Number = 2
)

// A message is an encoded response. The bytes of its resources are those of all
// other streams: were they copied, a thousand clients that are slow to read
// would each hold a whole configuration.
type message mem.BufferSlice

// encodeHead sets what goes before r's body in a response of either variant.
func (r *Resource) encodeHead() {
	value := r.Body.GetValue()
	body := appendString(nil, anyType, r.Type)
	body = protowire.AppendTag(body, anyValue, protowire.BytesType)
	body = protowire.AppendVarint(body, uint64(len(value)))

	world := protowire.AppendTag(nil, responseResources, protowire.BytesType)
	world = protowire.AppendVarint(world, uint64(len(body)+len(value)))
	world = append(world, body...)

	delta := appendString(nil, resourceVersion, r.Version)
	delta = appendString(delta, resourceName, r.Name)
	delta = protowire.AppendTag(delta, resourceBody, protowire.BytesType)
	delta = protowire.AppendVarint(delta, uint64(len(body)+len(value)))
	delta = append(delta, body...)
	head := protowire.AppendTag(nil, responseResources, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(delta)+len(value)))

	r.value, r.world, r.delta = mem.SliceBuffer(value), mem.SliceBuffer(world), mem.SliceBuffer(append(head, delta...))
}

// encode is r as a DeltaDiscoveryResponse or a DiscoveryResponse.
func (r *response) encode(delta bool) message {
	head := appendString(nil, responseVersion, r.version)
	head = appendString(head, responseType, r.typeURL)
	head = appendString(head, responseNonce, r.nonce)
	from := responseFromWorld
	if delta {
		from = responseFromDelta
	}
	head = appendString(head, from, string(appendString(nil, identifier, ecds.ControlPlane)))
	for _, name := range r.removed {
		head = appendString(head, responseRemoved, name)
	}
	m := make(message, 0, 1+2*len(r.resources))
	m = append(m, mem.SliceBuffer(head))
	for _, res := range r.resources {
		if delta {
			m = append(m, res.delta, res.value)
		} else {
			m = append(m, res.world, res.value)
		}
	}
	return m
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

// A codec is gRPC's for protobuf, that takes messages too.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(grpcproto.Name)} }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(message); ok {
		return mem.BufferSlice(m), nil
	}
	return c.CodecV2.Marshal(v)
}
