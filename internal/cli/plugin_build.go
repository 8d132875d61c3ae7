package cli

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/chandler-proxy/chandler/internal/artifact"
	"github.com/chandler-proxy/chandler/internal/artifact/toolchain"
	"github.com/chandler-proxy/chandler/internal/module"
)

func (c *command) pluginBuild() *cobra.Command {
	var (
		lang, output string
		force        bool
	)
	cmd := &cobra.Command{
		Use:   "build [DIR]",
		Short: "Build a plugin with the compiler of its language",
		Long: `build calls the compiler of the language that the plugin in DIR (here, if none is given)
is written in, and writes its module to build/plugin.wasm there: Go by go build, Rust by
cargo build, C++ by its Makefile or clang++, AssemblyScript by npm run asbuild. What is
missing of a toolchain is told with how to get it. A module that Envoy would refuse is
not kept.`,
		Example: `  chandler plugin build hello
  chandler plugin build hello -o hello.wasm`,
		Args: argsBetween(0, 1, "at most a DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			language, err := toolchain.Detect(dir)
			if lang != "" {
				language, err = toolchain.ParseLanguage(lang)
				if err != nil {
					return misuse{fmt.Errorf("--lang: %w", err)}
				}
			}
			if err != nil {
				return err
			}
			wasm, err := toolchain.Build(cmd.Context(), dir, language, c.env.Stderr)
			if err != nil {
				return err
			}
			path := output
			if path == "" {
				path = filepath.Join(dir, defaultModule)
			}
			info, err := c.checked(path, wasm, force)
			if err != nil {
				return err
			}
			if err := artifact.WriteFile(path, bytes.NewReader(wasm)); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.env.Stdout, "%s: %s, %d bytes, ABI %s\n", path, module.Digest(sha256.Sum256(wasm)), len(wasm), info.ABI)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&lang, "lang", "", "`LANGUAGE` of the plugin: go, rust, cpp or assemblyscript (default: as its files tell)")
	flags.StringVarP(&output, "output", "o", "", "`FILE` to write the module to (default: build/plugin.wasm in DIR)")
	flags.BoolVar(&force, "force", false, "keep a module that Envoy would refuse")
	return cmd
}
