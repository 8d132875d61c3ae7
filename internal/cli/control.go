package cli

import (
	"errors"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/chandler-proxy/chandler/internal/control"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/source/dir"
)

func (c *command) control() *cobra.Command {
	var (
		cfg  control.Config
		from []string
	)
	cmd := &cobra.Command{
		Use:   "control --source dir:PATH...",
		Short: "Serve proxies their configuration",
		Long: `control reads resources and serves what they mean to proxies, over ADS. A change
takes effect at once; what is wrong is logged, and shown at /debug/problems.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(from) == 0 {
				return misuse{errors.New("--source is required: dir:PATH, a file or folder of resources")}
			}
			paths, err := sources(from)
			if err != nil {
				return err
			}
			if cfg.Log, err = c.logger(); err != nil {
				return err
			}
			cfg.Source = dir.New(dir.Config{Paths: paths, Log: cfg.Log})
			return control.Run(cmd.Context(), cfg)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&from, "source", nil, "where resources are, as `dir:PATH`; may be repeated")
	flags.StringVar(&cfg.XDS, "xds", "127.0.0.1:15010", "`ADDRESS` for proxies, in plain text")
	flags.StringVar(&cfg.Monitoring, "monitoring", "127.0.0.1:15014", "`ADDRESS` for metrics, health and debug pages")
	flags.BoolVar(&cfg.Remote, "allow-remote", false, "allow addresses that are not loopback; nothing is encrypted there")
	flags.BoolVar(&cfg.Pprof, "pprof", false, "serve profiles at /debug/pprof")
	addMesh(flags, &cfg.Mesh)
	return cmd
}

func addMesh(flags *pflag.FlagSet, opts *mesh.Options) {
	flags.StringVar(&opts.RootNamespace, "root-namespace", "istio-system", "`NAMESPACE` whose plugins apply everywhere")
	flags.StringVar(&opts.Domain, "domain", "cluster.local", "DNS `DOMAIN` of services")
}
