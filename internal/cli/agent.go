package cli

import (
	"errors"
	"fmt"
	"net"

	"github.com/spf13/cobra"

	"github.com/chandler-proxy/chandler/internal/agent"
)

func (c *command) agent() *cobra.Command {
	var (
		proxy    proxyFlags
		upstream string
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
			cfg, err := proxy.config(c)
			if err != nil {
				return err
			}
			cfg.Upstream, cfg.EnvoyArgs = upstream, args
			if cfg.Status, err = net.Listen("tcp", proxy.status); err != nil {
				return fmt.Errorf("--status: %w", err)
			}
			return agent.Run(cmd.Context(), cfg)
		},
	}
	cmd.Flags().StringVar(&upstream, "control", "", "`ADDRESS` of the control plane, host:port")
	proxy.add(cmd.Flags(), "envoy", "/var/lib/chandler", "")
	return cmd
}
