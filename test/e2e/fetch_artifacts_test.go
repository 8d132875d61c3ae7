//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Media types of modules that are not files in an image.
const (
	soloLayer  = "application/vnd.module.wasm.content.layer.v1+wasm"
	soloConfig = "application/vnd.module.wasm.config.v1+json"
	cncfLayer  = "application/wasm"
	cncfConfig = "application/vnd.wasm.config.v0+json"
)

// layerOf is a layer of these very bytes.
func layerOf(content []byte, mediaType types.MediaType) v1.Layer {
	return static.NewLayer(content, mediaType)
}

// image is an OCI image of layers.
func image(t testing.TB, config types.MediaType, layers ...v1.Layer) v1.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), config)
	var adds []mutate.Addendum
	for _, l := range layers {
		mediaType, err := l.MediaType()
		if err != nil {
			t.Fatal(err)
		}
		adds = append(adds, mutate.Addendum{Layer: l, MediaType: mediaType})
	}
	img, err := mutate.Append(img, adds...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// filesImage is an image with these files, as FROM scratch and COPY make it.
func filesImage(t testing.TB, files ...file) v1.Image {
	t.Helper()
	return image(t, types.OCIConfigJSON, layerOf(tarGz(t, files...), types.OCILayer))
}

// pluginImage is an image with a module as plugin.wasm.
func pluginImage(t testing.TB, module []byte) v1.Image {
	t.Helper()
	return filesImage(t, file{name: "plugin.wasm", content: module})
}

// pushArtifact pushes an image or an index made here and returns the digest of its manifest.
func (r *registry) pushArtifact(t testing.TB, ref string, artifact remote.Taggable) v1.Hash {
	t.Helper()
	tag, err := name.ParseReference(r.Addr+"/"+ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Push(tag, artifact, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	manifest, err := artifact.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	digest, _, err := v1.SHA256(bytes.NewReader(manifest))
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

// A file is one of an archive.
type file struct {
	name    string
	content []byte
	zeros   int64 // that many follow content
}

// tarGz is a gzipped tar of files.
func tarGz(t testing.TB, files ...file) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	archive := tar.NewWriter(z)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(f.content)) + f.zeros}
		if err := archive.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(archive, io.MultiReader(bytes.NewReader(f.content), zeros(f.zeros))); err != nil {
			t.Fatal(err)
		}
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// lyingTarGz is a tar whose only header claims a file of that size, and ends there.
func lyingTarGz(t testing.TB, name string, size int64) []byte {
	t.Helper()
	var header bytes.Buffer
	if err := tar.NewWriter(&header).WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: size}); err != nil {
		t.Fatal(err)
	}
	return gz(t, append(header.Bytes(), "\x00asm\x01\x00\x00\x00"...))
}

// gz is b, gzipped.
func gz(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// zeros yields n of them.
func zeros(n int64) io.Reader { return io.LimitReader(zeroReader{}, n) }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// hexDigest is the SHA-256 of b.
func hexDigest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
