package oci

import (
	"errors"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/chandler-proxy/chandler/internal/fetch"
)

// hash is a digest that tells the i-th part from the others.
func hash(i int) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: strings.Repeat(string(rune('a'+i)), 64)}
}

func TestChooseLayer(t *testing.T) {
	const config = "application/vnd.module.wasm.config.v1+json"
	for _, tt := range []struct {
		name   string
		layers []string
		want   int // index of the layer, -1 for an error
		raw    bool
	}{
		{"docker", []string{string(types.DockerLayer)}, 0, false},
		{"docker, last", []string{string(types.DockerLayer), string(types.DockerLayer)}, 1, false},
		{"oci", []string{string(types.OCILayer)}, 0, false},
		{"oci zstd", []string{string(types.OCILayerZStd)}, 0, false},
		{"oci tar", []string{string(types.OCIUncompressedLayer)}, 0, false},
		{"artifact", []string{soloLayer, config}, 0, true},
		{"artifact, other order", []string{config, soloLayer}, 1, true},
		{"artifact layer alone", []string{soloLayer}, 0, true},
		{"artifact with archive last", []string{soloLayer, string(types.OCILayer)}, 0, true},
		{"cncf", []string{cncfLayer}, 0, true},
		{"wasm-to-oci", []string{"application/vnd.wasm.content.layer.v1+wasm"}, 0, true},
		{"none", nil, -1, false},
		{"two modules", []string{cncfLayer, soloLayer}, -1, false},
		{"archive not last", []string{string(types.OCILayer), "text/plain"}, -1, false},
		{"foreign", []string{string(types.DockerForeignLayer)}, -1, false},
		{"unknown", []string{"application/octet-stream"}, -1, false},
		{"many", slices.Repeat([]string{"text/plain"}, 1000), -1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var m v1.Manifest
			for i, l := range tt.layers {
				m.Layers = append(m.Layers, v1.Descriptor{MediaType: types.MediaType(l), Digest: hash(i % 6), Size: int64(i + 10)})
			}
			got, err := chooseLayer(&m)
			if tt.want >= 0 {
				if err != nil || got.raw != tt.raw || got.digest.Hex() != hash(tt.want).Hex || got.size != int64(tt.want+10) {
					t.Errorf("chooseLayer = %+v, %v", got, err)
				}
				return
			}
			e, ok := errors.AsType[*fetch.Error](err)
			if !ok || e.Kind != fetch.NotModule || len(err.Error()) > 1500 {
				t.Fatalf("error is %v", err)
			}
			for _, l := range append(tt.layers[:min(len(tt.layers), 8)], soloLayer, cncfLayer, pluginFile) {
				if !strings.Contains(err.Error(), l) {
					t.Errorf("error %q does not name %s", err, l)
				}
			}
		})
	}
}

func TestChooseLayerRefusesOtherDigests(t *testing.T) {
	m := v1.Manifest{Layers: []v1.Descriptor{{MediaType: cncfLayer, Digest: v1.Hash{Algorithm: "sha512", Hex: strings.Repeat("a", 128)}}}}
	if _, err := chooseLayer(&m); err == nil || !strings.Contains(err.Error(), "only sha256") {
		t.Errorf("error is %v", err)
	}
}

func TestChooseManifest(t *testing.T) {
	on := func(os, arch string) v1.Descriptor {
		return v1.Descriptor{Platform: &v1.Platform{OS: os, Architecture: arch}}
	}
	note := v1.Descriptor{Annotations: map[string]string{attestation: "attestation-manifest"}, Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}
	for _, tt := range []struct {
		name string
		in   []v1.Descriptor
		want int
	}{
		{"wasip1", []v1.Descriptor{on("linux", "amd64"), on("wasip1", "wasm")}, 1},
		{"wasi/wasm32", []v1.Descriptor{on("linux", "amd64"), on("wasi", "wasm32")}, 1},
		{"linux/wasm", []v1.Descriptor{on("linux", "amd64"), on("linux", "wasm")}, 1},
		{"two for wasm", []v1.Descriptor{on("wasip1", "wasm"), on("wasip2", "wasm")}, 0},
		{"the only one", []v1.Descriptor{on("linux", "arm64")}, 0},
		{"the only one but for its attestation", []v1.Descriptor{note, on("linux", "arm64")}, 1},
		{"no platform", []v1.Descriptor{{}}, 0},
		{"none", nil, -1},
		{"two for others", []v1.Descriptor{on("linux", "amd64"), on("linux", "arm64"), {}}, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for i := range tt.in {
				tt.in[i].Digest = hash(i)
			}
			got, err := chooseManifest(&v1.IndexManifest{Manifests: tt.in})
			if tt.want >= 0 {
				if err != nil || got.Digest != hash(tt.want) {
					t.Errorf("chooseManifest = %v, %v", got.Digest, err)
				}
				return
			}
			e, ok := errors.AsType[*fetch.Error](err)
			if !ok || e.Kind != fetch.NotModule || len(tt.in) > 1 && !strings.Contains(err.Error(), `"linux/amd64" "linux/arm64" "any platform"`) {
				t.Errorf("error is %v", err)
			}
		})
	}
}
