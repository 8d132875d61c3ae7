package artifact

import (
	"context"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/chandler-proxy/chandler/internal/module"
)

// An Attachment is a document about an image: an SBOM, a statement of provenance.
type Attachment struct {
	MediaType string // as in application/spdx+json; what the document is found by
	Name      string // of the file
	Content   []byte
}

// emptyConfig is that of a manifest that is no image.
const emptyConfig types.MediaType = "application/vnd.oci.empty.v1+json"

// Attach pushes a document beside an image that is in the registry under ref, so that
// asking for what refers to the image finds it; in a registry that does not know how
// to be asked, by the tag that stands in for it. The image stays as it is. Errors are
// those of [Client.Push].
//
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pushing-manifests-with-subject
func (c *Client) Attach(ctx context.Context, ref module.Ref, image v1.Image, a Attachment) error {
	document, err := a.document(image)
	if err != nil {
		return fmt.Errorf("attach %s: %w", a.Name, err)
	}
	hash, err := document.Digest()
	if err != nil {
		return fmt.Errorf("attach %s: %w", a.Name, err)
	}
	digest, err := module.ParseDigest(hash.String())
	if err != nil {
		return fmt.Errorf("attach %s: %w", a.Name, err)
	}
	to, err := pinned(ref, digest)
	if err != nil {
		return fmt.Errorf("attach %s: %w", a.Name, err)
	}
	if err := c.Push(ctx, to, document, nil); err != nil {
		return fmt.Errorf("attach %s: %w", a.Name, err)
	}
	return nil
}

// document makes a manifest whose subject is the image.
func (a Attachment) document(image v1.Image) (v1.Image, error) {
	subject, err := partial.Descriptor(image)
	if err != nil {
		return nil, err
	}
	m := v1.Manifest{
		MediaType:    types.OCIManifestSchema1,
		ArtifactType: a.MediaType,
		Subject:      &v1.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
	}
	return assemble(m, emptyConfig, struct{}{}, titled{static.NewLayer(a.Content, types.MediaType(a.MediaType)), a.Name})
}
