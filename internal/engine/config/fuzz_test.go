package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"github.com/chandler-proxy/chandler/internal/engine/http1"
	"github.com/chandler-proxy/chandler/internal/envoytypes"
)

func kinds() map[string]func() proto.Message {
	return map[string]func() proto.Message{
		"clusters":   func() proto.Message { return new(clusterv3.Cluster) },
		"endpoints":  func() proto.Message { return new(endpointv3.ClusterLoadAssignment) },
		"secrets":    func() proto.Message { return new(tlsv3.Secret) },
		"extensions": func() proto.Message { return new(corev3.TypedExtensionConfig) },
		"routes":     func() proto.Message { return new(routev3.RouteConfiguration) },
		"listeners":  func() proto.Message { return new(listenerv3.Listener) },
	}
}

// FuzzDecode decodes whatever a control plane may send. Nothing panics, and what
// is taken can be used.
func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob("../../translate/testdata/*.out.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		var sections map[string][]json.RawMessage
		if raw, err = yaml.YAMLToJSON(raw); err != nil || json.Unmarshal(raw, &sections) != nil {
			f.Fatal(file)
		}
		for kind, fresh := range kinds() {
			for _, raw := range sections[kind] {
				m := fresh()
				if err := (protojson.UnmarshalOptions{Resolver: envoytypes.Types()}).Unmarshal(raw, m); err != nil {
					f.Fatal(err)
				}
				wire, err := proto.Marshal(m)
				if err != nil {
					f.Fatal(err)
				}
				f.Add(kind, wire, "/a?b=c", "example.com:80")
			}
		}
	}
	f.Fuzz(func(t *testing.T, kind string, wire []byte, path, host string) {
		fresh := kinds()[kind]
		if fresh == nil {
			return
		}
		m := fresh()
		if proto.Unmarshal(wire, m) != nil {
			return
		}
		switch m := m.(type) {
		case *clusterv3.Cluster:
			_, _ = DecodeCluster(m)
		case *endpointv3.ClusterLoadAssignment:
			_, _ = DecodeEndpoints(m)
		case *tlsv3.Secret:
			_, _ = DecodeSecret(m)
		case *corev3.TypedExtensionConfig:
			if e, err := DecodeExtension(m); err == nil {
				if r, ok := e.(*RBAC); ok {
					r.Allows(&Peer{Headers: new(http1.Fields), Path: path})
				}
			}
		case *routev3.RouteConfiguration:
			if r, err := DecodeRoutes(m); err == nil {
				use(r, path, host)
			}
		case *listenerv3.Listener:
			if l, err := DecodeListener(m); err == nil {
				l.Dependencies()
			}
		}
	})
}

// use routes a request.
func use(r *Routes, path, host string) {
	h := new(http1.Fields)
	h.Add(":path", path)
	v := r.Host(host)
	if v == nil {
		return
	}
	facts := &Facts{Request: h}
	if route := v.Find(h, path, "a=b"); route != nil {
		route.Request.Apply(h, facts)
		if f := route.Forward; f != nil {
			f.Pick(7)
			if f.Replace {
				route.Replace(path, f.Prefix)
			}
		}
		if d := route.Redirect; d != nil && d.ReplacePath {
			route.Replace(path, d.Prefix)
		}
	}
}
