package xds

import (
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

// TestEncode compares what is encoded by hand with what it must decode to.
func TestEncode(t *testing.T) {
	snap := world(t, nil, "cds a=1 b=2; lds l=1")
	for _, r := range []response{
		{typeURL: ClusterType, version: "v", nonce: "n"},
		{typeURL: ClusterType, version: "v", nonce: "n", resources: snap.Resources(ClusterType)},
		{typeURL: ListenerType, version: "v", nonce: "n", resources: snap.Resources(ListenerType), removed: []string{"x", "y"}},
		{typeURL: ListenerType, version: "v", nonce: "n", removed: []string{"x"}},
	} {
		from := &corev3.ControlPlane{Identifier: "chandler"}
		delta := &discoveryv3.DeltaDiscoveryResponse{SystemVersionInfo: r.version, TypeUrl: r.typeURL, Nonce: r.nonce, ControlPlane: from, RemovedResources: r.removed}
		world := &discoveryv3.DiscoveryResponse{VersionInfo: r.version, TypeUrl: r.typeURL, Nonce: r.nonce, ControlPlane: from}
		for _, res := range r.resources {
			delta.Resources = append(delta.Resources, &discoveryv3.Resource{Name: res.Name, Version: res.Version, Resource: res.Body})
			world.Resources = append(world.Resources, res.Body)
		}
		decodes(t, r.encode(true), delta)
		if len(delta.RemovedResources) == 0 {
			decodes(t, r.encode(false), world)
		}
	}
}

func decodes(t *testing.T, m message, want proto.Message) {
	t.Helper()
	buffers, err := newCodec().Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	got := want.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(mem.BufferSlice(buffers).Materialize(), got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("response (-want +got):\n%s", diff)
	}
}
