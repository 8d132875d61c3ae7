// Package artifact makes images of Wasm modules, pushes and pulls them, and says
// what is in them.
//
// An image is made in one of four [Form]s, which proxies' agents take; the same
// module makes the same image, byte for byte. What Envoy could not load is told
// by [Check] before anything leaves the machine. Registries are reached as
// fetch/oci reaches them: same credentials, same rules for plain HTTP and blocked
// addresses. It neither compiles plugins (toolchain does) nor runs them, and a
// file it writes is whole or not there.
//
// Sources: the OCI image specification, Solo's Wasm image specification with its
// compat variant, the CNCF's Wasm artifact layout. Start at [Build] and [Client].
package artifact

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/chandler-proxy/chandler/internal/module"
)

// A Form is how an image holds its module.
type Form string

// The forms that images are made in.
const (
	// Docker is what docker build makes of FROM scratch and COPY plugin.wasm: a
	// Docker manifest, plugin.wasm in a compressed archive. Every registry and
	// proxy takes it.
	Docker Form = "docker"
	// OCI is the same with an OCI manifest, the compat variant of Solo's
	// specification.
	OCI Form = "oci"
	// Artifact is the other variant, two layers: a runtime configuration and the
	// module itself. Istio wants both.
	Artifact Form = "artifact"
	// CNCF is one layer, the module, and a configuration that says what it is.
	// Istio does not take it, Chandler does.
	CNCF Form = "cncf"
)

// Forms lists them, the default first.
func Forms() []Form { return []Form{Docker, OCI, Artifact, CNCF} }

// ParseForm reads a form by its name.
func ParseForm(name string) (Form, error) {
	if f := Form(name); slices.Contains(Forms(), f) {
		return f, nil
	}
	return "", fmt.Errorf("%q is none of docker, oci, artifact, cncf", name)
}

// Media types that are not in the registry library.
const (
	soloConfig types.MediaType = "application/vnd.module.wasm.config.v1+json"
	soloLayer  types.MediaType = "application/vnd.module.wasm.content.layer.v1+wasm"
	cncfConfig types.MediaType = "application/vnd.wasm.config.v0+json"
	cncfLayer  types.MediaType = "application/wasm"
)

// created is the annotation that says when an image was made.
const created = "org.opencontainers.image.created"

// Options say what Build makes.
type Options struct {
	Form Form // default Docker
	// Annotations go into the manifest, or for Docker, whose manifests have none,
	// into the labels. Only what is given here makes two images of one module
	// differ; org.opencontainers.image.created, in RFC 3339, is also the image's
	// own time of creation, which is otherwise absent.
	Annotations map[string]string
	// Platform is what the image says it runs on, default wasip1/wasm. It decides
	// nothing for a proxy; docker pull wants its own there.
	Platform v1.Platform
}

// Build makes an image of a module, which it does not check; see [Check]. Errors
// are about the options.
func Build(wasm []byte, opts Options) (v1.Image, error) {
	if opts.Form == "" {
		opts.Form = Docker
	}
	if opts.Platform.OS == "" && opts.Platform.Architecture == "" {
		opts.Platform.OS, opts.Platform.Architecture = "wasip1", "wasm"
	}
	if err := opts.check(); err != nil {
		return nil, err
	}
	switch opts.Form {
	case Docker:
		return opts.dockerImage(wasm)
	case OCI:
		return opts.ociImage(wasm)
	case Artifact:
		return opts.artifactImage(wasm)
	case CNCF:
		return opts.cncfImage(wasm)
	}
	return nil, fmt.Errorf("form %q is unknown", opts.Form)
}

func (o Options) check() error {
	if at, ok := o.Annotations[created]; ok {
		if _, err := time.Parse(time.RFC3339, at); err != nil {
			return fmt.Errorf("annotation %s: %q is not a time as in 2006-01-02T15:04:05Z", created, at)
		}
	}
	if _, ok := o.Annotations[""]; ok {
		return errors.New("annotation without a name")
	}
	if p := o.Platform; o.Form == CNCF && (p.Architecture != "wasm" || p.OS != "wasip1") {
		return fmt.Errorf("platform %s/%s: form cncf has only wasip1/wasm for a module", p.OS, p.Architecture)
	}
	return nil
}

func (o Options) dockerImage(wasm []byte) (v1.Image, error) {
	tarball, compressed, err := archive(wasm)
	if err != nil {
		return nil, err
	}
	config := o.config(tarball)
	config.Config.Labels = o.Annotations
	return assemble(v1.Manifest{MediaType: types.DockerManifestSchema2}, types.DockerConfigJSON, config,
		static.NewLayer(compressed, types.DockerLayer))
}

func (o Options) ociImage(wasm []byte) (v1.Image, error) {
	tarball, compressed, err := archive(wasm)
	if err != nil {
		return nil, err
	}
	annotations := map[string]string{"module.wasm.image/variant": "compat"}
	maps.Copy(annotations, o.Annotations)
	return assemble(ociManifest(annotations), types.OCIConfigJSON, o.config(tarball),
		static.NewLayer(compressed, types.OCILayer))
}

// artifactImage makes the two layers of
// https://github.com/solo-io/wasm/blob/master/spec/spec.md.
func (o Options) artifactImage(wasm []byte) (v1.Image, error) {
	runtime := struct {
		Type        string   `json:"type"`
		ABIVersions []string `json:"abiVersions"`
		Config      struct{} `json:"config"`
	}{Type: "envoy_proxy", ABIVersions: []string{}}
	if info, err := module.Inspect(bytes.NewReader(wasm)); err == nil && info.ABI != "" {
		runtime.ABIVersions = []string{info.ABI}
	}
	text, err := json.Marshal(runtime)
	if err != nil {
		return nil, err
	}
	return assemble(ociManifest(o.Annotations), types.OCIConfigJSON, o.config(text, wasm),
		titled{static.NewLayer(text, soloConfig), "runtime-config.json"},
		titled{static.NewLayer(wasm, soloLayer), "plugin.wasm"})
}

// cncfImage makes the artifact of
// https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/.
func (o Options) cncfImage(wasm []byte) (v1.Image, error) {
	config := struct {
		Created      string   `json:"created,omitempty"`
		Architecture string   `json:"architecture"`
		OS           string   `json:"os"`
		LayerDigests []string `json:"layerDigests"`
	}{o.Annotations[created], o.Platform.Architecture, o.Platform.OS, []string{digest(wasm)}}
	return assemble(ociManifest(o.Annotations), cncfConfig, config, static.NewLayer(wasm, cncfLayer))
}

func ociManifest(annotations map[string]string) v1.Manifest {
	return v1.Manifest{MediaType: types.OCIManifestSchema1, Annotations: annotations}
}

// An imageConfig is what an image says of itself, in Docker's form and in OCI's:
// they are one. The library's type cannot leave the time of creation out.
//
// https://github.com/opencontainers/image-spec/blob/v1.1.1/config.md
type imageConfig struct {
	Created      string    `json:"created,omitempty"`
	Architecture string    `json:"architecture"`
	OS           string    `json:"os"`
	Variant      string    `json:"variant,omitempty"`
	Config       container `json:"config"`
	RootFS       rootFS    `json:"rootfs"`
}

type container struct {
	Labels map[string]string `json:"Labels,omitempty"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

// config is the configuration of an image whose layers are these before they are
// compressed.
func (o Options) config(layers ...[]byte) imageConfig {
	c := imageConfig{
		Created:      o.Annotations[created],
		Architecture: o.Platform.Architecture,
		OS:           o.Platform.OS,
		Variant:      o.Platform.Variant,
		RootFS:       rootFS{Type: "layers"},
	}
	for _, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest(l))
	}
	return c
}

func digest(b []byte) string { return module.Digest(sha256.Sum256(b)).String() }

// archive is the layer that COPY plugin.wasm ./plugin.wasm makes, before and after
// compression, at no time in particular.
func archive(wasm []byte) (tarball, compressed []byte, err error) {
	var plain, small bytes.Buffer
	w := tar.NewWriter(&plain)
	header := tar.Header{Name: "plugin.wasm", Mode: 0o644, Size: int64(len(wasm)), Format: tar.FormatUSTAR}
	if err := w.WriteHeader(&header); err != nil {
		return nil, nil, fmt.Errorf("archive module: %w", err)
	}
	if _, err := w.Write(wasm); err != nil {
		return nil, nil, fmt.Errorf("archive module: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, nil, fmt.Errorf("archive module: %w", err)
	}
	z := gzip.NewWriter(&small)
	if _, err := z.Write(plain.Bytes()); err != nil {
		return nil, nil, fmt.Errorf("compress module: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, nil, fmt.Errorf("compress module: %w", err)
	}
	return plain.Bytes(), small.Bytes(), nil
}

// A titled layer has a file name, which tools such as oras save it under.
type titled struct {
	v1.Layer
	title string
}

// assemble makes an image of its parts, m's configuration and layers excepted. Its
// manifest is encoded here and nowhere else: it is what the digest is of.
func assemble(m v1.Manifest, configType types.MediaType, config any, layers ...v1.Layer) (v1.Image, error) {
	text, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	i := image{mediaType: m.MediaType, config: text, layers: map[v1.Hash]v1.Layer{}}
	m.SchemaVersion = 2
	if m.Config, err = describe(static.NewLayer(text, configType)); err != nil {
		return nil, err
	}
	for _, l := range layers {
		d, err := describe(l)
		if err != nil {
			return nil, err
		}
		m.Layers = append(m.Layers, d)
		i.layers[d.Digest] = l
	}
	if i.manifest, err = json.Marshal(m); err != nil {
		return nil, err
	}
	return partial.CompressedToImage(i)
}

func describe(l v1.Layer) (v1.Descriptor, error) {
	d, err := partial.Descriptor(l)
	if err != nil {
		return v1.Descriptor{}, err
	}
	if t, ok := l.(titled); ok {
		d.Annotations = map[string]string{"org.opencontainers.image.title": t.title}
	}
	return *d, nil
}

// An image is a partial.CompressedImageCore.
type image struct {
	mediaType        types.MediaType
	manifest, config []byte
	layers           map[v1.Hash]v1.Layer
}

func (i image) MediaType() (types.MediaType, error) { return i.mediaType, nil }
func (i image) RawManifest() ([]byte, error)        { return i.manifest, nil }
func (i image) RawConfigFile() ([]byte, error)      { return i.config, nil }

func (i image) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	l, ok := i.layers[h]
	if !ok {
		return nil, fmt.Errorf("image has no layer %s", h)
	}
	return l, nil
}
