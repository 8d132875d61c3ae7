// Package cli is the chandler command: one file a verb, each of which reads its
// flags into the configuration of a package and runs that. It decides nothing
// itself.
//
// A flag that is not given is taken from the environment: --data from
// CHANDLER_DATA, and so on. The agent knows Istio's variables too
// (agent.ConfigFromEnv). Errors come back to [Main], which alone prints them and
// chooses the exit code: 0, 1 if the command failed, 2 if it was misused.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/chandler-proxy/chandler/internal/nearest"
)

// An Env is what the command has of the outside.
type Env struct {
	Stdin          io.Reader // of passwords; nil is empty
	Stdout, Stderr io.Writer
	Lookup         func(name string) (string, bool) // of environment variables
	Hurry          <-chan struct{}                  // closed once nobody wants to wait for the end any more; may be nil
}

// A misuse is an error in how the command was called.
type misuse struct{ error }

func (m misuse) Unwrap() error { return m.error }

// Main runs the command with args, until ctx ends if it is one that stays, and
// returns the exit code.
func Main(ctx context.Context, args []string, env Env) int {
	err := limitMemory(env.Lookup)
	if err == nil {
		root := New(env)
		root.SetArgs(args)
		err = root.ExecuteContext(ctx)
	}
	if err == nil {
		return 0
	}
	fmt.Fprintf(env.Stderr, "chandler: %v\n", err)
	if errors.As(err, new(misuse)) {
		return 2
	}
	return 1
}

// New returns the command tree.
func New(env Env) *cobra.Command {
	c := &command{env: env}
	root := &cobra.Command{
		Use:   "chandler",
		Short: "Supply Envoy proxies with WebAssembly extensions",
		Long: `Chandler supplies Envoy proxies with WebAssembly extensions. You write Istio's
WasmPlugin, TrafficExtension or EnvoyFilter; Chandler finds, verifies, delivers and
watches the module, and the proxy never sees one that does not work.

A flag that is not given is taken from the environment: --data from CHANDLER_DATA.`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return flagsFromEnv(cmd.Flags(), env.Lookup)
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		Args: noArgs,
	}
	root.SuggestionsMinimumDistance = 2
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return misuse{fmt.Errorf("%w; %s", err, wayOut(cmd, err))}
	})
	root.PersistentFlags().StringVar(&c.logLevel, "log-level", "info", "least severe `LEVEL` to log: debug, info, warn or error")
	root.PersistentFlags().StringVar(&c.logFormat, "log-format", "text", "`FORMAT` of the log: text or json")
	root.AddCommand(c.run(), c.control(), c.agent(), c.check(), c.status(), c.install(), c.plugin(), c.version(), c.preflight(), c.redirect(), c.inject())
	return root
}

// A command is what the verbs share.
type command struct {
	env                 Env
	logLevel, logFormat string
}

// logger returns the log that the flags ask for, on standard error.
func (c *command) logger() (*slog.Logger, error) {
	opts := new(slog.HandlerOptions)
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.logLevel)); err != nil {
		return nil, misuse{fmt.Errorf("--log-level: %q is none of debug, info, warn, error", c.logLevel)}
	}
	opts.Level = level
	switch c.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(c.env.Stderr, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(c.env.Stderr, opts)), nil
	}
	return nil, misuse{fmt.Errorf("--log-format: %q is neither text nor json", c.logFormat)}
}

// noArgs refuses arguments, naming the nearest subcommand if there is one.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fmt.Errorf("unknown argument %q for %s", args[0], cmd.CommandPath())
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		err = fmt.Errorf("%w; did you mean %s?", err, strings.Join(near, " or "))
	}
	return misuse{err}
}

// wayOut says which flag an unknown one may have been meant to be, or where to look.
func wayOut(cmd *cobra.Command, err error) string {
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		given := unknown.GetSpecifiedName()
		if i := slices.IndexFunc(names, func(name string) bool { return len(given) > 2 && strings.HasPrefix(name, given) }); i >= 0 {
			return "did you mean --" + names[i] + "?"
		}
		if near := nearest.Name(given, names); near != "" {
			return "did you mean --" + near + "?"
		}
	}
	return "see " + cmd.CommandPath() + " --help"
}

// flagsFromEnv sets the flags that were not given from CHANDLER_ variables.
func flagsFromEnv(flags *pflag.FlagSet, lookup func(string) (string, bool)) error {
	var err error
	flags.VisitAll(func(f *pflag.Flag) {
		name := "CHANDLER_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value, ok := lookup(name)
		if !ok || value == "" || f.Changed || f.Name == "help" || err != nil {
			return
		}
		if e := flags.Set(f.Name, value); e != nil {
			err = misuse{fmt.Errorf("%s: %w", name, e)}
		}
	})
	return err
}
