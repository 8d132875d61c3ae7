package cli

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/chandler-proxy/chandler/internal/preflight"
)

// preflightVerb is the name of the hidden command that the agent runs to try a
// module in a process of its own.
const preflightVerb = "preflight"

func (c *command) preflight() *cobra.Command {
	return &cobra.Command{
		Use:    preflightVerb,
		Short:  "Try a module; the agent runs this",
		Hidden: true,
		Args:   noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return preflight.Serve(cmd.Context(), c.env.Stdin, c.env.Stdout)
		},
	}
}

// preflightCommand is how the agent runs it, with this binary.
func preflightCommand() ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return []string{self, preflightVerb}, nil
}
