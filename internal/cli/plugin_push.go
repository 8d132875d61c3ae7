package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"github.com/chandler-proxy/chandler/internal/artifact"
	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/module"
)

// pushFlags say what image to make of a module, and where it goes.
type pushFlags struct {
	registry         registryFlags
	format, platform string
	annotations      []string
	attach           []string
	force            bool
}

func (c *command) pluginPush() *cobra.Command {
	var f pushFlags
	cmd := &cobra.Command{
		Use:   "push REF [FILE]",
		Short: "Push a module to a registry, and print the digest of its image",
		Long: `push makes an image of a module (build/plugin.wasm if no FILE is given), pushes it to a
registry and prints the digest of the image. The same module makes the same image,
with the same digest.

The formats are docker, as a Dockerfile of FROM scratch and COPY plugin.wasm makes it;
oci, the same for registries that want OCI's media types; artifact, Solo's and Istio's
layers of a configuration and the module itself; cncf, the CNCF's artifact, which
Istio does not take. A module that Envoy would refuse is not pushed.`,
		Example: `  chandler plugin push localhost:5055/hello:v1 hello/build/plugin.wasm
  chandler plugin push --format oci --annotation org.opencontainers.image.version=1.2 localhost:5055/hello:v2 hello/build/plugin.wasm
  echo secret | chandler plugin push --username ada --password-stdin localhost:5055/hello:v3 hello/build/plugin.wasm`,
		Args: argsBetween(1, 2, "a REF and perhaps a FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := pushRef(args[0])
			if err != nil {
				return err
			}
			file := defaultModule
			if len(args) == 2 {
				file = args[1]
			}
			return c.push(cmd.Context(), ref, file, f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.format, "format", string(artifact.Docker), "`FORM` of the image: docker, oci, artifact or cncf")
	flags.StringVar(&f.platform, "platform", "wasip1/wasm", "what the image says it runs on, as `OS/ARCHITECTURE`")
	flags.StringArrayVar(&f.annotations, "annotation", nil, "`KEY=VALUE` about the image, as in org.opencontainers.image.version=1.2; may be repeated")
	flags.StringArrayVar(&f.attach, "attach", nil, "a document about the image, an SBOM or its provenance, to put beside it, as `MEDIATYPE=FILE`; may be repeated")
	flags.BoolVar(&f.force, "force", false, "push a module that Envoy would refuse")
	f.registry.add(flags)
	return cmd
}

// push pushes the module in a file, and what goes beside it, and prints the digest.
func (c *command) push(ctx context.Context, ref module.Ref, file string, f pushFlags) error {
	image, err := c.image(file, f)
	if err != nil {
		return err
	}
	documents, err := attachments(f.attach)
	if err != nil {
		return err
	}
	client, err := f.registry.client(c)
	if err != nil {
		return err
	}
	progress, done := bar(c.env.Stderr)
	err = client.Push(ctx, ref, image, progress)
	done()
	if err != nil {
		return f.registry.explain(ref, err)
	}
	for _, d := range documents {
		if err := client.Attach(ctx, ref, image, d); err != nil {
			return f.registry.explain(ref, err)
		}
	}
	digest, err := image.Digest()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.env.Stdout, digest)
	return err
}

// pushRef reads where to push to. A module, or an address with a scheme of the web, is
// taken there by mistake.
func pushRef(arg string) (module.Ref, error) {
	if _, err := os.Stat(arg); err == nil {
		return module.Ref{}, misuse{fmt.Errorf("%s is a file or a folder here: want the REF first, as in registry.example/team/hello:v1, and the FILE after it", arg)}
	}
	for _, scheme := range []string{"http://", "https://"} {
		if rest, ok := strings.CutPrefix(arg, scheme); ok {
			return module.Ref{}, misuse{fmt.Errorf("push to %s: only registries take images: want %s; --insecure-registries names those without TLS", arg, rest)}
		}
	}
	return parseRef(arg)
}

// image makes an image of the module in a file, if it is one to push.
func (c *command) image(file string, f pushFlags) (v1.Image, error) {
	opts, err := imageOptions(f.format, f.platform, f.annotations)
	if err != nil {
		return nil, misuse{err}
	}
	wasm, err := artifact.ReadFile(file, fetch.DefaultMaxModule)
	if errors.Is(err, fs.ErrNotExist) && file == defaultModule {
		return nil, fmt.Errorf("%w; build it (chandler plugin build), or name the FILE", err)
	}
	if err != nil {
		return nil, err
	}
	if _, err := c.checked(file, wasm, f.force); err != nil {
		return nil, err
	}
	image, err := artifact.Build(wasm, opts)
	if err != nil {
		return nil, misuse{err}
	}
	return image, nil
}

// imageOptions reads the flags that say what image to make.
func imageOptions(format, platform string, annotations []string) (artifact.Options, error) {
	var opts artifact.Options
	var err error
	if opts.Form, err = artifact.ParseForm(format); err != nil {
		return opts, fmt.Errorf("--format: %w", err)
	}
	p, err := v1.ParsePlatform(platform)
	if err != nil || p.OS == "" || p.Architecture == "" {
		return opts, fmt.Errorf("--platform: %q is not OS/ARCHITECTURE", platform)
	}
	opts.Platform = *p
	for _, a := range annotations {
		key, value, ok := strings.Cut(a, "=")
		if !ok || key == "" {
			return opts, fmt.Errorf("--annotation: %q is not KEY=VALUE", a)
		}
		if opts.Annotations == nil {
			opts.Annotations = map[string]string{}
		}
		opts.Annotations[key] = value
	}
	return opts, nil
}

// attachments reads the documents that go beside the image.
func attachments(list []string) ([]artifact.Attachment, error) {
	var all []artifact.Attachment
	for _, a := range list {
		mediaType, file, ok := strings.Cut(a, "=")
		if !ok || file == "" || !strings.Contains(mediaType, "/") {
			return nil, misuse{fmt.Errorf("--attach: %q is not MEDIATYPE=FILE, as in application/spdx+json=sbom.json", a)}
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("--attach: %w", err)
		}
		all = append(all, artifact.Attachment{MediaType: mediaType, Name: filepath.Base(file), Content: content})
	}
	return all, nil
}

// bar shows progress on a terminal, on one line that done ends; elsewhere nothing.
func bar(w io.Writer) (progress artifact.Progress, done func()) {
	if !terminal(w) {
		return nil, func() {}
	}
	last := int64(-1)
	progress = func(sent, total int64) {
		percent := 100 * sent / cmp.Or(total, 1)
		if percent != last {
			last = percent
			fmt.Fprintf(w, "\rpushing %3d%% of %.1f MB ", percent, float64(total)/1e6)
		}
	}
	return progress, func() {
		if last >= 0 {
			fmt.Fprint(w, "\r\x1b[K")
		}
	}
}
