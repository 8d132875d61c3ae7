package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/chandler-proxy/chandler/internal/artifact"
	"github.com/chandler-proxy/chandler/internal/module"
)

func (c *command) pluginInspect() *cobra.Command {
	var (
		registry registryFlags
		asJSON   bool
	)
	cmd := &cobra.Command{
		Use:   "inspect REF|FILE",
		Short: "Show what is in a module or its image, and what Envoy would miss",
		Long: `inspect reads a module, and the image around it, and shows its form, layers, digest,
size, ABI version, language, imports and exports, and why Envoy would not load it if it
would not. What is no file and does not end in .wasm is a reference.`,
		Example: `  chandler plugin inspect hello/build/plugin.wasm
  chandler plugin inspect --json localhost:5055/hello:v1`,
		Args: argsBetween(1, 1, "a REF or a FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			report, err := registry.inspect(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			if asJSON {
				e := json.NewEncoder(c.env.Stdout)
				e.SetIndent("", "  ")
				return e.Encode(report)
			}
			return printReport(c.env.Stdout, report)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	registry.add(cmd.Flags())
	return cmd
}

// inspect reads the file or the reference that an argument is.
func (f *registryFlags) inspect(ctx context.Context, c *command, arg string) (artifact.Report, error) {
	if isFile(arg) {
		return artifact.InspectFile(arg)
	}
	ref, err := parseRef(arg)
	if err != nil {
		return artifact.Report{}, err
	}
	client, err := f.client(c)
	if err != nil {
		return artifact.Report{}, err
	}
	report, err := client.Inspect(ctx, ref)
	if err = f.explain(ref, err); err != nil && ref.Scheme() == module.OCI && dockerHub(ref) {
		err = fmt.Errorf("%w; nor is there a file %s", err, arg)
	}
	return report, err
}

// isFile tells a file from a reference: it is there, or it can only be meant as one.
func isFile(arg string) bool {
	if strings.Contains(arg, "://") {
		return false
	}
	_, err := os.Stat(arg)
	return err == nil || strings.HasSuffix(arg, ".wasm")
}

func printReport(w io.Writer, r artifact.Report) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(name string, values ...any) {
		fmt.Fprintf(t, "%s\t%s\n", name, strings.TrimSuffix(fmt.Sprintln(values...), "\n"))
	}
	line("source", r.Source)
	if i := r.Image; i != nil {
		line("form", i.Form)
		line("digest", i.Digest)
		if i.Manifest != "" {
			line("image", i.Manifest, "of an index")
		}
		line("manifest", i.MediaType)
		for _, l := range i.Layers {
			line("layer", l.MediaType, l.Digest, l.Size, "bytes")
		}
		for _, key := range slices.Sorted(maps.Keys(i.Annotations)) {
			line("annotation", key+"="+i.Annotations[key])
		}
	}
	line("module", r.Digest, r.Size, "bytes")
	line("ABI", cmp.Or(r.ABI, "none"))
	line("language", cmp.Or(r.Language, "unknown"))
	for _, i := range r.Imports {
		line("import", i)
	}
	for _, e := range r.Exports {
		line("export", e)
	}
	for _, p := range r.Problems {
		line("Envoy refuses", p)
	}
	return t.Flush()
}
