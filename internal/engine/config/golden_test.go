package config

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"

	"github.com/chandler-proxy/chandler/internal/ecds"
	"github.com/chandler-proxy/chandler/internal/envoytypes"
)

var update = flag.Bool("update", false, "write the verdicts into testdata")

// TestTranslated takes everything that our control plane writes for its own golden
// inputs, and compares what is refused, and why.
func TestTranslated(t *testing.T) {
	files, err := filepath.Glob("../../translate/testdata/*.out.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden outputs of translate: %v", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".out.yaml")
		t.Run(name, func(t *testing.T) {
			got := verdicts(t, file)
			golden := filepath.Join("testdata", name+".verdicts")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", golden, diff)
			}
		})
	}
}

// verdicts has a line for each resource in the file.
func verdicts(t *testing.T, file string) string {
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var sections map[string][]json.RawMessage
	if raw, err = yaml.YAMLToJSON(raw); err == nil {
		err = json.Unmarshal(raw, &sections)
	}
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, section := range []string{"clusters", "endpoints", "secrets", "extensions", "routes", "listeners"} {
		for _, raw := range sections[section] {
			name, err := decodeAny(t, section, raw)
			b.WriteString(section + " " + name + ": ")
			if err != nil {
				b.WriteString("refused: " + err.Error() + "\n")
			} else {
				b.WriteString("taken\n")
			}
		}
	}
	return b.String()
}

func decodeAny(t *testing.T, section string, raw []byte) (string, error) {
	read := func(m proto.Message) {
		t.Helper()
		if err := (protojson.UnmarshalOptions{Resolver: envoytypes.Types()}).Unmarshal(raw, m); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	switch section {
	case "clusters":
		m := new(clusterv3.Cluster)
		read(m)
		_, err = DecodeCluster(m)
		return m.GetName(), err
	case "endpoints":
		m := new(endpointv3.ClusterLoadAssignment)
		read(m)
		_, err = DecodeEndpoints(m)
		return m.GetClusterName(), err
	case "secrets":
		m := new(tlsv3.Secret)
		read(m)
		_, err = DecodeSecret(m)
		return m.GetName(), err
	case "extensions":
		m := new(corev3.TypedExtensionConfig)
		read(m)
		_, err = DecodeExtension(localized(t, m))
		return m.GetName(), err
	case "routes":
		m := new(routev3.RouteConfiguration)
		read(m)
		_, err = DecodeRoutes(m)
		return m.GetName(), err
	}
	m := new(listenerv3.Listener)
	read(m)
	_, err = DecodeListener(m)
	return m.GetName(), err
}

// localized is m as the agent's relay hands it on.
func localized(t *testing.T, m *corev3.TypedExtensionConfig) *corev3.TypedExtensionConfig {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	e, err := ecds.Decode(a)
	if err == nil {
		a, err = e.Localize("/store/module.wasm")
	}
	if err != nil {
		return m // it is local already
	}
	out := new(corev3.TypedExtensionConfig)
	if err := a.UnmarshalTo(out); err != nil {
		t.Fatal(err)
	}
	return out
}
