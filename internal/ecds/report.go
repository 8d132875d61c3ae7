package ecds

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/chandler-proxy/chandler/internal/module"
)

// ControlPlane identifies Chandler's control plane in its responses. It never
// waits for an answer, and it reads [Report].
const ControlPlane = "chandler"

// reportKey is the node metadata under which an agent tells Chandler's control
// plane what its proxy runs.
const reportKey = "CHANDLER_MODULES"

// Fetched is the code of a refusal of what has a module that was fetched: the proxy, or
// what tries modules for it, did not take it or its configuration.
const Fetched = codes.Aborted

// Report is a node that tells which modules run, by the names of their
// extensions; zero of one that runs without a module that was fetched. It has no id: it goes with requests that are not the first of
// their stream, and only to a control plane that reads it.
func Report(modules map[string]module.Digest) *corev3.Node {
	told := make(map[string]*structpb.Value, len(modules))
	for name, digest := range modules {
		if told[name] = structpb.NewStringValue(""); !digest.IsZero() {
			told[name] = structpb.NewStringValue(digest.String())
		}
	}
	return &corev3.Node{Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
		reportKey: structpb.NewStructValue(&structpb.Struct{Fields: told}),
	}}}
}

// Reported is what [Report] has told in n. What is no digest is left out.
func Reported(n *corev3.Node) map[string]module.Digest {
	told := n.GetMetadata().GetFields()[reportKey].GetStructValue().GetFields()
	modules := make(map[string]module.Digest, len(told))
	for name, v := range told {
		if text, ok := v.GetKind().(*structpb.Value_StringValue); ok && text.StringValue == "" {
			modules[name] = module.Digest{}
		} else if digest, err := module.ParseDigest(v.GetStringValue()); err == nil {
			modules[name] = digest
		}
	}
	return modules
}
