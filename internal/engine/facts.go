package engine

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/engine/hcm"
	"github.com/chandler-proxy/chandler/internal/mesh"
)

// node is n as Envoy tells of itself: with who it is.
func node(n *corev3.Node) *corev3.Node {
	n = proto.Clone(n).(*corev3.Node)
	n.UserAgentName = "envoy"
	n.UserAgentVersionType = &corev3.Node_UserAgentBuildVersion{UserAgentBuildVersion: &corev3.BuildVersion{
		Version:  &typev3.SemanticVersion{MajorNumber: 1, MinorNumber: 40},
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{mesh.Implementation: structpb.NewStringValue(mesh.Engine)}},
	}}
	return n
}

// facts are the properties of the node, encoded.
type facts struct {
	node    *corev3.Node
	encoded []byte
}

func newFacts(n *corev3.Node) *facts {
	raw, _ := proto.Marshal(n) // what was decoded can be encoded
	return &facts{node: n, encoded: raw}
}

// property answers xds.node and what is below it. Envoy 1.40 has it under no other name.
func (f *facts) property(dst []byte, path string) ([]byte, bool) {
	rest, ok := strings.CutPrefix(path, "xds\x00node")
	if !ok || rest != "" && rest[0] != 0 {
		return dst, false
	}
	name, rest := abi.CutPath(strings.TrimPrefix(rest, "\x00"))
	switch name {
	case "":
		return append(dst, f.encoded...), true
	case "id":
		return append(dst, f.node.GetId()...), true
	case "cluster":
		return append(dst, f.node.GetCluster()...), true
	case "metadata":
		return hcm.AppendValue(dst, structpb.NewStructValue(f.node.GetMetadata()), rest)
	}
	return dst, false
}

// rootProperties are what a plugin can know outside of streams.
type rootProperties struct{ s *state }

// AppendProperty answers with what is known of the node.
func (r rootProperties) AppendProperty(dst []byte, path string) ([]byte, abi.Status) {
	if out, ok := r.s.env.HTTP.Facts(dst, path); ok {
		return out, abi.OK
	}
	return dst, abi.NotFound
}

// SetProperty has nothing to set a property on.
func (rootProperties) SetProperty(string, string) abi.Status { return abi.NotFound }

// mustAny packs what was unpacked before.
func mustAny(m proto.Message) *anypb.Any {
	a, err := anypb.New(m)
	if err != nil {
		panic(err) // a message that was decoded can be encoded
	}
	return a
}
