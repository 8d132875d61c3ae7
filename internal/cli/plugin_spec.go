package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/chandler-proxy/chandler/internal/spec"
	"github.com/chandler-proxy/chandler/internal/spec/document"
	"github.com/chandler-proxy/chandler/internal/spec/report"
)

// errTests says that tests failed, which they have told of themselves.
var errTests = errors.New("tests failed")

// testFlags are those of plugin test.
type testFlags struct {
	module, config   string
	run, junit       string
	verbose, json    bool
	failFast, schema bool
	count            int
	benchTime        time.Duration
}

func (f *testFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.module, "module", "", "module to test, a `FILE` (default: what the tests say, else build/plugin.wasm in the plugin's folder)")
	flags.StringVar(&f.config, "config", "", "the plugin's configuration for tests in Google's form: JSON, or a `FILE` with it")
	flags.StringVar(&f.run, "run", "", "run only the tests whose names match the `REGEXP`")
	flags.IntVar(&f.count, "count", 1, "run each test so many times, a `NUMBER`")
	flags.BoolVar(&f.failFast, "failfast", false, "stop after the first test that fails")
	flags.DurationVar(&f.benchTime, "benchtime", 200*time.Millisecond, "how long to run each benchmark that the tests ask for, a `DURATION`; 0 for none")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "print all tests, and the calls between plugin and host of those that fail")
	flags.BoolVar(&f.json, "json", false, "print events as go test -json does")
	flags.StringVar(&f.junit, "junit", "", "write a JUnit report to a `FILE`, too")
	flags.BoolVar(&f.schema, "schema", false, "print the JSON schema of tests in YAML, and do nothing else")
}

func (c *command) pluginTest() *cobra.Command {
	var f testFlags
	cmd := &cobra.Command{
		Use:   "test [DIR|FILE]...",
		Short: "Run a plugin's tests, written in YAML or as Google's Service Extensions have them",
		Long: `test runs the tests of a built plugin, without a proxy: tests*.yaml, tests*.textpb and
those in the folder tests of each DIR (here, if none is given), or the FILEs. They are
described in docs/plugin-tests.md. It prints what go test would, and takes -run, -count,
-failfast, -benchtime and -json with one hyphen too. It exits with 1 if a test fails, with
2 if one cannot be understood.`,
		Example: `  chandler plugin test hello
  chandler plugin test -v -run 'adds .*header' hello
  chandler plugin test -json hello/tests/headers.yaml
  chandler plugin test --module hello/build/plugin.wasm --junit report.xml hello`,
		DisableFlagParsing: true, // or -run would be -r, -u, -n
		RunE: func(cmd *cobra.Command, args []string) error {
			cmd.DisableFlagParsing = false
			if err := cmd.ParseFlags(withHyphens(args)); err != nil {
				return cmd.FlagErrorFunc()(cmd, err)
			}
			if help, err := cmd.Flags().GetBool("help"); err == nil && help {
				return cmd.Help()
			}
			if f.schema {
				schema, err := spec.Schema()
				if err == nil {
					_, err = c.env.Stdout.Write(schema)
				}
				return err
			}
			return c.test(cmd.Context(), cmd.Flags().Args(), f)
		},
	}
	f.add(cmd.Flags())
	return cmd
}

// withHyphens gives flags as go test has them, of more than one letter, their second
// hyphen.
func withHyphens(args []string) []string {
	args = slices.Clone(args)
	for i, arg := range args {
		if arg == "--" {
			break
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(arg, "-"), "=")
		if strings.HasPrefix(arg, "-") && !strings.HasPrefix(arg, "--") && len(name) > 1 {
			args[i] = "-" + arg
		}
	}
	return args
}

// test runs the tests at the paths.
func (c *command) test(ctx context.Context, paths []string, f testFlags) error {
	cfg, err := f.cfg()
	if err != nil {
		return misuse{err}
	}
	suites, err := c.loadTests(paths, f)
	if err != nil {
		return err
	}
	take, done, err := c.reports(suites, cfg, f)
	if err != nil {
		return err
	}
	passed, err := spec.RunAll(ctx, suites, cfg, take)
	if err = errors.Join(err, done()); err != nil {
		return err
	}
	if !passed {
		return errTests
	}
	return nil
}

// cfg reads the flags that say how to run.
func (f testFlags) cfg() (spec.Config, error) {
	cfg := spec.Config{Count: f.count, FailFast: f.failFast, BenchTime: f.benchTime}
	if f.count < 1 {
		return cfg, errors.New("--count: want 1 or more")
	}
	if f.run != "" {
		var err error
		if cfg.Match, err = regexp.Compile(spec.Name(f.run)); err != nil {
			return cfg, fmt.Errorf("--run: %w", err)
		}
	}
	return cfg, nil
}

// loadTests reads all tests before any runs. What is wrong with them is misuse.
func (c *command) loadTests(paths []string, f testFlags) ([]*spec.Suite, error) {
	if len(paths) == 0 {
		paths = []string{"."}
	}
	opts := spec.Options{Module: f.module, Stdout: c.env.Stdout, Stderr: c.env.Stderr}
	if f.json { // which is all that may be there
		opts.Stdout = c.env.Stderr
	}
	if f.config != "" {
		config, isJSON, err := jsonFlag(f.config)
		if err == nil && !isJSON {
			config, err = os.ReadFile(f.config)
		}
		if err != nil {
			return nil, misuse{fmt.Errorf("--config: %w", err)}
		}
		opts.PluginConfig = config
	}
	var suites []*spec.Suite
	for _, path := range paths {
		if strings.HasSuffix(path, "...") {
			return nil, misuse{fmt.Errorf("%s: patterns of folders are not taken, name each plugin's", path)}
		}
		files, err := spec.Find(path)
		if err != nil {
			return nil, misuse{err}
		}
		if len(files) == 0 {
			return nil, misuse{fmt.Errorf("%s has no tests: want tests/*.yaml there, or tests.yaml, or tests.textpb", path)}
		}
		for _, file := range files {
			s, err := spec.Load(file, opts)
			if err != nil {
				return nil, unreadable(err)
			}
			suites = append(suites, s)
		}
	}
	return suites, nil
}

// unreadable says what is wrong with tests: a line for each mistake.
func unreadable(err error) error {
	if e, ok := errors.AsType[*document.Error](err); ok && len(e.Problems) > 1 {
		return misuse{fmt.Errorf("%d mistakes:\n%w", len(e.Problems), err)}
	}
	return misuse{err}
}

// reports makes what takes the events, and what ends it.
func (c *command) reports(suites []*spec.Suite, cfg spec.Config, f testFlags) (take func(spec.Event), done func() error, err error) {
	type reporter interface {
		Take(spec.Event)
		Close() error
	}
	var all []reporter
	if !f.verbose && !f.json && terminal(c.env.Stderr) {
		all = append(all, &report.Progress{W: c.env.Stderr, Total: total(suites, cfg)})
	}
	if f.json {
		all = append(all, &report.JSON{W: c.env.Stdout})
	} else {
		all = append(all, &report.Text{W: c.env.Stdout, Verbose: f.verbose})
	}
	var file io.Closer
	if f.junit != "" {
		w, err := os.Create(f.junit)
		if err != nil {
			return nil, nil, misuse{fmt.Errorf("--junit: %w", err)}
		}
		file = w
		all = append(all, &report.JUnit{W: w})
	}
	take = func(e spec.Event) {
		for _, r := range all {
			r.Take(e)
		}
	}
	done = func() error {
		var errs []error
		for _, r := range all {
			errs = append(errs, r.Close())
		}
		if file != nil {
			errs = append(errs, file.Close())
		}
		return errors.Join(errs...)
	}
	return take, done, nil
}

// total is how many tests will run.
func total(suites []*spec.Suite, cfg spec.Config) int {
	n := 0
	for _, s := range suites {
		for _, t := range s.Tests {
			if cfg.Match == nil || cfg.Match.MatchString(t.Name) {
				n += cfg.Count
			}
		}
	}
	return n
}
