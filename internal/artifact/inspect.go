package artifact

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/fetch/oci"
	"github.com/chandler-proxy/chandler/internal/module"
)

// A Report is what a module is, and the image around it if there is one.
type Report struct {
	Source string  `json:"source"`          // the reference or file
	Image  *Layout `json:"image,omitempty"` // nil for a file or a web server's
	Digest string  `json:"digest"`          // of the module
	Size   int64   `json:"size"`            // of the module, in bytes

	ABI      string   `json:"abi,omitempty"`      // Proxy-Wasm version
	Language string   `json:"language,omitempty"` // as the toolchain says, if it does
	Imports  []string `json:"imports"`            // MODULE.NAME, with the kind if it is no function
	Exports  []string `json:"exports"`
	Problems []string `json:"problems"` // why Envoy would not load it; empty if it would
}

// A Layout is how an image holds a module.
type Layout struct {
	Form        Form              `json:"form"`
	Digest      string            `json:"digest"`             // of what the reference leads to
	Manifest    string            `json:"manifest,omitempty"` // digest of the image, if the former is of an index
	MediaType   string            `json:"mediaType"`          // of the manifest
	Layers      []Layer           `json:"layers"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// A Layer is one layer of an image.
type Layer struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"` // bytes, as the manifest has it
	Module    bool   `json:"module"`
}

// Inspect fetches what ref leads to and says what it is. It keeps nothing: its
// memory does not grow with the module. Errors are of type *fetch.Error, about the
// module, or ctx's.
func (c *Client) Inspect(ctx context.Context, ref module.Ref) (Report, error) {
	report := Report{Source: ref.String()}
	if err := c.inspect(ctx, ref, &report); err != nil {
		return Report{}, fmt.Errorf("inspect %s: %w", ref, err)
	}
	return report, nil
}

func (c *Client) inspect(ctx context.Context, ref module.Ref, report *Report) error {
	if ref.Scheme() == module.OCI {
		var found oci.Image
		if err := c.retry.Do(ctx, 0, func(ctx context.Context) (err error) {
			found, err = c.registries.Describe(ctx, fetch.Request{Want: module.Want{Ref: ref}})
			return err
		}); err != nil {
			return err
		}
		report.Image = layout(found)
		var err error
		if ref, err = pinned(ref, found.Digest); err != nil { // a tag may move meanwhile
			return err
		}
	}
	_, err := c.retry.Fetch(ctx, fetch.Request{
		Want: module.Want{Ref: ref},
		Put: func(want module.Digest, r io.Reader) error {
			return report.read(&verifier{r: r, hash: sha256.New(), want: want})
		},
	})
	return err
}

// pinned is ref by the digest of its manifest.
func pinned(ref module.Ref, digest module.Digest) (module.Ref, error) {
	image, err := name.ParseReference(ref.Target())
	if err != nil {
		return ref, err
	}
	return module.ParseRef(image.Context().Name()+"@"+digest.String(), "")
}

// InspectFile is [Client.Inspect] for a file, which may be packed as what a web
// server serves may be.
func InspectFile(path string) (Report, error) {
	f, err := os.Open(path)
	if err != nil {
		return Report{}, fmt.Errorf("inspect module: %w", err)
	}
	defer f.Close()
	if err := notFolder(path, f); err != nil {
		return Report{}, fmt.Errorf("inspect module: %w", err)
	}
	box, err := fetch.Unbox(f, "", fetch.DefaultMaxModule)
	if err != nil {
		return Report{}, fmt.Errorf("inspect %s: %w", path, err)
	}
	defer box.Close()
	report := Report{Source: path}
	if err := report.read(&verifier{r: box, hash: sha256.New()}); err != nil {
		return Report{}, fmt.Errorf("inspect %s: %w", path, err)
	}
	return report, nil
}

// read fills in what the module says of itself.
func (r *Report) read(v *verifier) error {
	info, err := module.Inspect(v)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, v); err != nil {
		return err
	}
	r.Digest, r.Size = v.digest().String(), v.size
	r.ABI, r.Language = info.ABI, language(info)
	r.Imports, r.Exports, r.Problems = []string{}, []string{}, []string{}
	for _, i := range info.Imports {
		r.Imports = append(r.Imports, i.Module+"."+i.Name+suffix(i.Kind))
	}
	for _, e := range info.Exports {
		r.Exports = append(r.Exports, e.Name+suffix(e.Kind))
	}
	slices.Sort(r.Imports)
	r.Imports = slices.Compact(r.Imports) // compilers import some more than once
	slices.Sort(r.Exports)
	r.Problems = append(r.Problems, problems(info)...)
	return nil
}

// language is the one that most of the module was written in. Compilers of C++ name C
// first, for what they link in, and C++ in a spelling of their own.
func language(info module.Info) string {
	for _, p := range info.Producers {
		if year, ok := strings.CutPrefix(p.Name, "C_plus_plus_"); ok && p.Field == "language" {
			return "C++" + year
		}
	}
	return info.Language
}

func suffix(k module.Kind) string {
	if k == module.Func {
		return ""
	}
	return " (" + k.String() + ")"
}

// layout is what the manifest says.
func layout(i oci.Image) *Layout {
	l := &Layout{
		Form:        formOf(i),
		Digest:      i.Source.String(),
		MediaType:   string(i.MediaType),
		Annotations: i.Manifest.Annotations,
	}
	if i.Digest != i.Source {
		l.Manifest = i.Digest.String()
	}
	for n, d := range i.Manifest.Layers {
		l.Layers = append(l.Layers, Layer{string(d.MediaType), d.Digest.String(), d.Size, n == i.Layer})
	}
	return l
}

// formOf is the form that an image has, or comes nearest to.
func formOf(i oci.Image) Form {
	is := func(t types.MediaType) bool {
		return slices.ContainsFunc(i.Manifest.Layers, func(d v1.Descriptor) bool { return d.MediaType == t })
	}
	switch {
	case i.Manifest.Config.MediaType == cncfConfig || is(cncfLayer):
		return CNCF
	case slices.ContainsFunc(i.Manifest.Layers, func(d v1.Descriptor) bool { return strings.HasSuffix(string(d.MediaType), "+wasm") }):
		return Artifact
	case i.MediaType == types.DockerManifestSchema2:
		return Docker
	}
	return OCI
}
