package cli

import (
	"errors"
	"fmt"
	"net"

	"github.com/spf13/cobra"

	"github.com/chandler-proxy/chandler/internal/agent"
	"github.com/chandler-proxy/chandler/internal/identity"
)

func (c *command) agent() *cobra.Command {
	var (
		proxy    proxyFlags
		upstream string
		health   string
		id       identity.Client
	)
	cmd := &cobra.Command{
		Use:   "agent --control ADDRESS [flags] [-- ENVOY ARGS]",
		Short: "Run a proxy beside a workload, and get the modules of its extensions",
		Long: `agent starts and watches one Envoy and relays its configuration from a control
plane (Chandler's, istiod, any ADS server). It fetches the modules of the
extensions in it and hands Envoy local files, or refuses the update.

What follows -- goes to Envoy. A bootstrap of your own (-- -c FILE) must reach the
agent's socket, xds.sock in --data, as its ADS cluster.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if at := cmd.ArgsLenAtDash(); at != 0 {
				return noArgs(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if upstream == "" {
				return misuse{errors.New("--control is required: the ADDRESS of a control plane")}
			}
			if _, _, err := net.SplitHostPort(upstream); err != nil {
				return misuse{fmt.Errorf("--control: %w", err)}
			}
			if id != (identity.Client{}) && id.CAFile == "" {
				return misuse{errors.New("--ca is required: without it nothing is encrypted, and a credential is not sent in plain text")}
			}
			cfg, err := proxy.config(c)
			if err != nil {
				return err
			}
			cfg.Upstream, cfg.Identity, cfg.EnvoyArgs = upstream, id, args
			if cfg.Status, err = net.Listen("tcp", proxy.status); err != nil {
				return fmt.Errorf("--status: %w", err)
			}
			if health != "" {
				if cfg.Health, err = net.Listen("tcp", health); err != nil {
					return errors.Join(fmt.Errorf("--health: %w", err), cfg.Status.Close())
				}
			}
			return agent.Run(cmd.Context(), cfg)
		},
	}
	cmd.Flags().StringVar(&upstream, "control", "", "`ADDRESS` of the control plane, host:port")
	flags := cmd.Flags()
	flags.StringVar(&id.CAFile, "ca", "", "`FILE` of root certificates that the control plane is verified by; without it, it is spoken to in plain text")
	flags.StringVar(&id.TokenFile, "token", "", "`FILE` of the service-account token that the proxy proves itself with; read again when it changes")
	flags.StringVar(&id.CertFile, "cert", "", "`FILE` of a client certificate, instead of a token")
	flags.StringVar(&id.KeyFile, "key", "", "`FILE` of its key")
	flags.StringVar(&id.ServerName, "control-name", "", "`NAME` in the control plane's certificate (default: the host of --control)")
	flags.StringVar(&proxy.podInfo, "pod-info", "", "`DIR` of a downwardAPI volume: its file labels has the workload's labels")
	flags.StringVar(&health, "health", "", "`ADDRESS` for health alone, at /healthz/ready, which load balancers may show to everybody (default: none)")
	proxy.add(flags, "envoy", "/var/lib/chandler", "")
	return cmd
}
