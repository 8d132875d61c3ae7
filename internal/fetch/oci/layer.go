package oci

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/module"
)

// Media types of layers that are a module, not an archive with one.
const (
	// https://github.com/solo-io/wasm/blob/master/spec/spec.md
	soloLayer = "application/vnd.module.wasm.content.layer.v1+wasm"
	// https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/
	cncfLayer = "application/wasm"
	// Any other type of this kind is one as well, as wasm-to-oci's.
	wasmSuffix = "+wasm"
)

// pluginFile is the base name of the module in an image's file system.
//
// https://github.com/solo-io/wasm/blob/master/spec/spec-compat.md
const pluginFile = "plugin.wasm"

// A layer is where in an image the module is.
type layer struct {
	digest module.Digest
	size   int64 // bytes, as the manifest has it
	raw    bool  // the layer is the module, not an archive with it
}

// chooseLayer finds the layer with the module: the only one of a Wasm type
// wherever it is, else the last one if it is an archive. That takes all forms
// Istio takes (Docker, OCI compat, artifact), an artifact's layer alone, and
// the CNCF's.
func chooseLayer(m *v1.Manifest) (layer, error) {
	isWasm := func(d v1.Descriptor) bool {
		t := string(d.MediaType)
		return t == cncfLayer || strings.HasSuffix(t, wasmSuffix)
	}
	first := slices.IndexFunc(m.Layers, isWasm)
	if first >= 0 && !slices.ContainsFunc(m.Layers[first+1:], isWasm) {
		return toLayer(m.Layers[first], true)
	}
	if n := len(m.Layers); first < 0 && n > 0 && isArchive(m.Layers[n-1].MediaType) {
		return toLayer(m.Layers[n-1], false)
	}
	return layer{}, &fetch.Error{Kind: fetch.NotModule, Err: fmt.Errorf(
		"image has no Wasm module: want one layer of type %s or %s, or a file %s in a last layer of type %s or %s; it has %s",
		soloLayer, cncfLayer, pluginFile, types.OCILayer, types.DockerLayer, listLayers(m))}
}

func isArchive(t types.MediaType) bool {
	switch t {
	case types.DockerLayer, types.DockerUncompressedLayer,
		types.OCILayer, types.OCIUncompressedLayer, types.OCILayerZStd:
		return true
	}
	return false
}

func toLayer(d v1.Descriptor, raw bool) (layer, error) {
	digest, err := toDigest(d.Digest)
	return layer{digest, d.Size, raw}, err
}

func toDigest(h v1.Hash) (module.Digest, error) {
	d, err := module.ParseDigest(h.String())
	if err != nil {
		return d, &fetch.Error{Err: err}
	}
	return d, nil
}

func listLayers(m *v1.Manifest) string {
	list := make([]string, 0, len(m.Layers))
	for _, l := range m.Layers {
		list = append(list, string(l.MediaType))
	}
	return listed("layers", list)
}

// listed is a list for an error message, of bounded length.
func listed(what string, list []string) string {
	const most = 8
	n := len(list)
	if n == 0 {
		return "no " + what
	}
	for i := range list[:min(n, most)] {
		list[i] = list[i][:min(len(list[i]), 100)]
	}
	if n > most {
		list = append(list[:most], fmt.Sprintf("%d more", n-most))
	}
	return fmt.Sprintf("%s %q", what, list)
}

// attestation marks an entry of an index that is about another, not an image.
const attestation = "vnd.docker.reference.type"

// chooseManifest finds the image with the module in an index: the one for Wasm,
// else the only one.
func chooseManifest(index *v1.IndexManifest) (v1.Descriptor, error) {
	var images, wasm []v1.Descriptor
	for _, d := range index.Manifests {
		if d.Annotations[attestation] != "" {
			continue
		}
		images = append(images, d)
		if forWasm(d.Platform) {
			wasm = append(wasm, d)
		}
	}
	switch {
	case len(wasm) > 0:
		return wasm[0], nil
	case len(images) == 1:
		return images[0], nil
	}
	return v1.Descriptor{}, &fetch.Error{Kind: fetch.NotModule, Err: errors.New(
		"image index has no Wasm module: want one image, or one for architecture wasm or os wasip1; it has " + listImages(images))}
}

func forWasm(p *v1.Platform) bool {
	return p != nil && (strings.HasPrefix(p.Architecture, "wasm") || strings.HasPrefix(p.OS, "wasi"))
}

func listImages(images []v1.Descriptor) string {
	list := make([]string, 0, len(images))
	for _, d := range images {
		platform := "any platform"
		if d.Platform != nil {
			platform = d.Platform.OS + "/" + d.Platform.Architecture
		}
		list = append(list, platform)
	}
	return listed("images for", list)
}
