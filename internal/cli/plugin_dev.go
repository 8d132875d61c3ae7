package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/chandler-proxy/chandler/internal/artifact/toolchain"
	"github.com/chandler-proxy/chandler/internal/dev"
)

// projectPlugin is the resource that init writes into a plugin's folder.
const projectPlugin = "wasmplugin.yaml"

// devFlags are those of plugin dev.
type devFlags struct {
	dev.Config
	lang, config string
	noBuild      bool
}

func (f *devFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.Upstream, "upstream", "", "`ADDRESS` that requests go to, HOST:PORT or http://HOST:PORT (default: a small httpbin of its own)")
	flags.StringVar(&f.Listen, "listen", "127.0.0.1:8080", "`ADDRESS` to serve at; port 0 is any")
	flags.StringVar(&f.config, "config", "", "the plugin's configuration: JSON, or a `FILE` with it, or with the WasmPlugin that has it (default: wasmplugin.yaml in DIR, if there is one)")
	flags.StringVar(&f.Module, "module", "", "do not build: take the module from a `FILE`, and again when that changes")
	flags.BoolVar(&f.noBuild, "no-build", false, "do not build: take the module from build/plugin.wasm in DIR, likewise")
	flags.StringVar(&f.lang, "lang", "", "`LANGUAGE` of the plugin: go, rust, cpp or assemblyscript (default: as its files tell)")
	flags.BoolVar(&f.Network, "network", false, "run the plugin on connections, not on HTTP requests")
	flags.StringToStringVar(&f.Clusters, "cluster", nil, "what the plugin can call, as `NAME=ADDRESS,...`")
	flags.StringVar(&f.Admin, "admin", "", "`ADDRESS` of the proxy's admin interface, which has the plugin's metrics (default: none)")
	flags.BoolVar(&f.Trace, "trace", true, "print the calls between plugin and proxy")
}

func (c *command) pluginDev() *cobra.Command {
	var f devFlags
	cmd := &cobra.Command{
		Use:   "dev [DIR]",
		Short: "Run a plugin in front of a server while you work on it",
		Long: `dev builds the plugin in DIR (here, if none is given) as build does, and serves with it in
front of --upstream, on the embedded engine. When a source, the module or the configuration
changes it builds and swaps the plugin, without losing a request. What does not compile, or
is refused, is told, and the last one that worked goes on serving. It prints each request,
what the plugin did to it call by call, and what the plugin logs. Ctrl-C ends it.`,
		Example: `  chandler plugin dev hello
  chandler plugin dev hello --upstream localhost:3000 --listen 127.0.0.1:8090
  chandler plugin dev --module hello/build/plugin.wasm --config '{"x-hello":"dev"}' --admin 127.0.0.1:15001`,
		Args: argsBetween(0, 1, "at most a DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.Dir = "."
			if len(args) == 1 {
				f.Dir = args[0]
			}
			cfg, err := f.read()
			if err != nil {
				return err
			}
			cfg.Out, cfg.Color = c.env.Stdout, c.colors()
			err = dev.Run(cmd.Context(), cfg)
			switch {
			case errors.Is(err, dev.ErrUpstream):
				return misuse{err}
			case errors.Is(err, syscall.EADDRINUSE):
				return fmt.Errorf("%w; choose others with --listen and --admin", err)
			}
			return err
		},
	}
	f.add(cmd.Flags())
	return cmd
}

// read makes the configuration that the flags ask for.
func (f *devFlags) read() (dev.Config, error) {
	cfg := f.Config
	info, err := os.Stat(cfg.Dir)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is not a folder; use --module for a module", cfg.Dir)
	}
	if err != nil {
		return cfg, misuse{err}
	}
	if err := checkAddress("listen", cfg.Listen); err != nil {
		return cfg, err
	}
	if cfg.Admin != "" {
		if err := checkAddress("admin", cfg.Admin); err != nil {
			return cfg, err
		}
	}
	switch {
	case f.lang != "" && (cfg.Module != "" || f.noBuild):
		return cfg, misuse{errors.New("--lang does not go together with --module or --no-build")}
	case f.lang != "":
		if cfg.Language, err = toolchain.ParseLanguage(f.lang); err != nil {
			return cfg, misuse{fmt.Errorf("--lang: %w", err)}
		}
	case cfg.Module == "" && !f.noBuild:
		if cfg.Language, err = toolchain.Detect(cfg.Dir); err != nil {
			return cfg, fmt.Errorf("%w; use --module for one that is built elsewhere", err)
		}
	}
	if cfg.Module == "" {
		cfg.Module = filepath.Join(cfg.Dir, defaultModule)
	}
	return cfg, f.configure(&cfg)
}

// configure reads --config.
func (f *devFlags) configure(cfg *dev.Config) error {
	switch text := strings.TrimSpace(f.config); {
	case text == "":
		path := filepath.Join(cfg.Dir, projectPlugin)
		if _, err := os.Stat(path); err == nil {
			cfg.ConfigFile = path
		}
	default:
		json, isJSON, err := jsonFlag(f.config)
		if err != nil {
			return misuse{fmt.Errorf("--config: %w", err)}
		}
		if isJSON {
			cfg.Configuration = string(json)
			return nil
		}
		if _, err := os.Stat(f.config); err != nil {
			return misuse{fmt.Errorf("--config: %w; JSON begins with {, [ or a quotation mark", err)}
		}
		cfg.ConfigFile = f.config
	}
	return nil
}

// jsonFlag returns the JSON that a flag has, if it has that: what else it is, it cannot
// begin so.
func jsonFlag(value string) (text []byte, ok bool, err error) {
	text = []byte(strings.TrimSpace(value))
	if len(text) == 0 || !strings.ContainsRune(`{["`, rune(text[0])) {
		return nil, false, nil
	}
	var any json.RawMessage
	if err := json.Unmarshal(text, &any); err != nil {
		return nil, true, fmt.Errorf("not JSON: %w", err)
	}
	return text, true, nil
}

// checkAddress wants what a flag has to be an address to listen at.
func checkAddress(flag, address string) error {
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		return misuse{fmt.Errorf("--%s: %q: want HOST:PORT, such as 127.0.0.1:8080", flag, address)}
	}
	return nil
}

// colors reports whether standard output is a terminal whose user wants colours.
//
// https://no-color.org
func (c *command) colors() bool {
	if off, ok := c.env.Lookup("NO_COLOR"); ok && off != "" {
		return false
	}
	if kind, _ := c.env.Lookup("TERM"); kind == "dumb" {
		return false
	}
	return terminal(c.env.Stdout)
}
