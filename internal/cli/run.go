package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/chandler-proxy/chandler/examples"
	"github.com/chandler-proxy/chandler/internal/run"
	"github.com/chandler-proxy/chandler/internal/source/dir"
)

// defaultExample is what run runs if it is not told what.
const defaultExample = "bookinfo"

func (c *command) run() *cobra.Command {
	var (
		files []string
		proxy proxyFlags
		cfg   run.Config
	)
	cmd := &cobra.Command{
		Use:   "run [-f PATH]...",
		Short: "Run control plane, agent and proxy on this machine, with an example",
		Long: `run starts a control plane, an agent and a proxy in one process tree, and the
registry and services that the examples use. Change the resource files while it
runs: a change takes effect at once. Without -f it runs examples/bookinfo.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := areThere(files)
			if err != nil {
				return err
			}
			proxy.data = cmp.Or(proxy.data, userDir("run"))
			if cfg.Agent, err = proxy.config(c); err != nil {
				return err
			}
			cfg.Ready = hints(proxy.status, cfg.Control.Monitoring)
			if len(files) == 0 {
				path, err := example(defaultExample, proxy.data)
				if err != nil {
					return err
				}
				files = []string{path}
				cfg.Ready = firstHints(path) + cfg.Ready
			}
			if !cmd.Flags().Changed("labels") && cfg.Agent.Proxy.Role == "router" {
				cfg.Agent.Proxy.Labels = map[string]string{"istio": "ingressgateway"}
			}
			cfg.Status, cfg.Out = proxy.status, c.env.Stdout
			cfg.Control.Log = cfg.Agent.Log
			cfg.Control.Source = dir.New(dir.Config{Paths: files, Log: cfg.Agent.Log})
			return run.Run(cmd.Context(), cfg)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&files, "filename", "f", nil, "file or folder of resources, a `PATH`; may be repeated")
	flags.BoolVar(&cfg.Demo, "demo", true, "run the registry and the services that the examples use")
	flags.StringVar(&cfg.Control.XDS, "xds", "127.0.0.1:15010", "`ADDRESS` of the control plane")
	flags.StringVar(&cfg.Control.Monitoring, "monitoring", "127.0.0.1:15014", "`ADDRESS` of the control plane's metrics, health and debug pages")
	addMesh(flags, &cfg.Control.Mesh)
	proxy.add(flags, "engine", "", " (default: in your cache folder)")
	return cmd
}

// example is the folder of an example: that of the project if run is started
// there, else a copy in data, which is the user's to change.
func example(name, data string) (string, error) {
	path := filepath.Join("examples", name)
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return path, nil
	}
	path = filepath.Join(data, path)
	sub, err := fs.Sub(examples.FS, name)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("copy example: %w", err)
	}
	if err := os.CopyFS(path, sub); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("copy example: %w", err)
	}
	return path, nil
}

// firstHints are what to try with the default example.
func firstHints(path string) string {
	return fmt.Sprintf(`
The gateway serves %s. Try

  curl -i localhost:8080/productpage                                                  401
  curl -i -H "Authorization: Basic YWRtaW4zOmFkbWluMw==" localhost:8080/productpage   200

Change a file there, or remove wasmplugin.yaml, and try again.
`, path)
}

// hints are what to look at in any case.
func hints(status, monitoring string) string {
	local := strings.NewReplacer("127.0.0.1", "localhost")
	return fmt.Sprintf(`
  chandler status --monitoring %-28s what became of each extension
  curl -s %-49s how modules are delivered
  curl -s %-49s what proxies have taken and refused

Ctrl-C ends it.
`, local.Replace(monitoring), local.Replace(status)+"/metrics | grep istio_agent_wasm", local.Replace(monitoring)+"/debug/syncz")
}
