package cli

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/chandler-proxy/chandler/internal/artifact/template"
	"github.com/chandler-proxy/chandler/internal/artifact/toolchain"
)

func (c *command) pluginInit() *cobra.Command {
	var lang, dir string
	cmd := &cobra.Command{
		Use:   "init --lang LANGUAGE NAME",
		Short: "Begin a plugin: one that builds, with tests and a Dockerfile",
		Long: `init writes a small plugin that adds the headers of its configuration to responses,
with tests, a Dockerfile, a WasmPlugin and a README, into a new folder NAME.`,
		Example: `  chandler plugin init --lang go hello
  chandler plugin init --lang rust --dir plugins hello`,
		Args: func(cmd *cobra.Command, args []string) error {
			if i := slices.IndexFunc(args, isLanguage); lang == "" && len(args) == 2 && i >= 0 {
				return misuse{fmt.Errorf("%s wants a NAME, got 2 arguments; did you mean --lang %s %s?", cmd.CommandPath(), args[i], args[1-i])}
			}
			return argsBetween(1, 1, "a NAME")(cmd, args)
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if lang == "" {
				return misuse{errors.New("--lang is required: go, rust, cpp or assemblyscript")}
			}
			language, err := toolchain.ParseLanguage(lang)
			if err != nil {
				return misuse{fmt.Errorf("--lang: %w", err)}
			}
			name := args[0]
			to := filepath.Join(dir, name)
			err = template.Write(to, language, name)
			if errors.Is(err, template.ErrName) {
				return misuse{err}
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.env.Stdout, "%s: see README.md there; chandler plugin build %s builds it\n", to, to)
			return err
		},
	}
	cmd.Flags().StringVar(&lang, "lang", "", "`LANGUAGE` of the plugin: go, rust, cpp or assemblyscript")
	cmd.Flags().StringVar(&dir, "dir", ".", "`DIR` to make the plugin's folder in")
	return cmd
}

// isLanguage says whether an argument is what --lang takes.
func isLanguage(arg string) bool {
	_, err := toolchain.ParseLanguage(arg)
	return err == nil
}
