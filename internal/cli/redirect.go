package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/chandler-proxy/chandler/internal/redirect"
)

// redirect is what a pod's init container runs; see [inject.Pod].
func (c *command) redirect() *cobra.Command {
	cfg := redirect.Default()
	show := false
	cmd := &cobra.Command{
		Use:   "redirect",
		Short: "Redirect a pod's TCP connections to its sidecar",
		Long: `redirect makes the nftables rules of the network namespace it runs in: what the
workload opens goes to the sidecar's port 15001, what others open to the workload to
15006. What the sidecar opens passes. It needs the capability NET_ADMIN, and a kernel
with nf_tables. Run again, it replaces its rules.`,
		Hidden: true,
		Args:   noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := c.logger()
			if err != nil {
				return err
			}
			if !cmd.Flags().Changed("ipv6") {
				cfg.IPv6 = redirect.HasIPv6()
			}
			tables, err := redirect.Rules(cfg)
			if err != nil {
				return misuse{err}
			}
			if show {
				for _, t := range tables {
					fmt.Fprint(c.env.Stdout, t)
				}
				return nil
			}
			if err := redirect.Apply(tables); err != nil {
				return err
			}
			log.Info("connections are redirected", "outbound", cfg.OutboundPort, "inbound", cfg.InboundPort, "ipv6", cfg.IPv6)
			return nil
		},
	}
	flags := cmd.Flags()
	flags.Uint16Var(&cfg.OutboundPort, "outbound-port", cfg.OutboundPort, "`PORT` of the sidecar for what the workload opens")
	flags.Uint16Var(&cfg.InboundPort, "inbound-port", cfg.InboundPort, "`PORT` of the sidecar for what is opened to the workload")
	flags.Uint32Var(&cfg.User, "uid", cfg.User, "`USER` the sidecar runs as")
	flags.Uint32Var(&cfg.Group, "gid", cfg.Group, "`GROUP` the sidecar runs as")
	flags.Func("include-inbound-ports", "`PORTS` of the workload to redirect, or * (default *)", parsed(redirect.ParsePorts, &cfg.IncludeInbound))
	flags.Func("exclude-inbound-ports", "`PORTS` of the workload not to redirect", parsed(redirect.ParsePortList, &cfg.ExcludeInbound))
	flags.Func("include-outbound-ports", "`PORTS` to redirect wherever they are", parsed(redirect.ParsePortList, &cfg.IncludeOutbound))
	flags.Func("exclude-outbound-ports", "`PORTS` not to redirect wherever they are", parsed(redirect.ParsePortList, &cfg.ExcludeOutbound))
	flags.Func("include-outbound-networks", "`NETWORKS`, as 10.0.0.0/8, to redirect what goes there, or * (default *)", parsed(redirect.ParseNetworks, &cfg.IncludeNetworks))
	flags.Func("exclude-outbound-networks", "`NETWORKS` not to redirect what goes there", parsed(redirect.ParseNetworks, &cfg.ExcludeNetworks))
	flags.Func("exclude-interfaces", "`NAMES` of network interfaces to leave alone", parsed(redirect.ParseInterfaces, &cfg.ExcludeInterfaces))
	flags.BoolVar(&cfg.IPv6, "ipv6", false, "redirect IPv6 too (default: if the network has it)")
	flags.BoolVar(&show, "dry-run", false, "print the rules, as nft does, and change nothing")
	return cmd
}

// parsed returns the setter of a flag that parse reads.
func parsed[T any](parse func(string) (T, error), to *T) func(string) error {
	return func(text string) (err error) {
		*to, err = parse(strings.TrimSpace(text))
		return err
	}
}
