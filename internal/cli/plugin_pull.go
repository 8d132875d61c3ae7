package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func (c *command) pluginPull() *cobra.Command {
	var (
		registry registryFlags
		output   string
	)
	cmd := &cobra.Command{
		Use:   "pull REF -o FILE",
		Short: "Pull a module out of an image into a file",
		Long: `pull fetches a module as an agent does, from a registry (oci://, or no scheme) or a web
server (http://, https://), and writes it to FILE: all of it, or nothing. It prints the
digest that a WasmPlugin's sha256 takes: of the image, or of a web server's module.`,
		Example: `  chandler plugin pull localhost:5055/hello:v1 -o plugin.wasm`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 && output == "" {
				return misuse{fmt.Errorf("%s wants a REF, got 2 arguments; did you mean -o %s?", cmd.CommandPath(), args[1])}
			}
			return argsBetween(1, 1, "a REF")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if output == "" {
				return misuse{errors.New("-o is required: the FILE to write the module to")}
			}
			ref, err := parseRef(args[0])
			if err != nil {
				return err
			}
			client, err := registry.client(c)
			if err != nil {
				return err
			}
			pulled, err := client.Pull(cmd.Context(), ref, output)
			if err != nil {
				return registry.explain(ref, err)
			}
			_, err = fmt.Fprintln(c.env.Stdout, pulled.Digest)
			return err
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "`FILE` to write the module to")
	registry.add(cmd.Flags())
	return cmd
}
