package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/chandler-proxy/chandler/internal/control"
)

// maxStatus bounds what is read of a control plane's answer, in bytes.
const maxStatus = 64 << 20

func (c *command) status() *cobra.Command {
	var monitoring string
	cmd := &cobra.Command{
		Use:   "status [RESOURCE]",
		Short: "Show what became of each extension at the proxies",
		Long: `status asks a control plane for each extension's phase, the digest of the module
that runs, how many proxies want it and run it, and who refuses it and why.
RESOURCE is a part of an extension's name, as in basic-auth or
istio-system.basic-auth.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return misuse{fmt.Errorf("%s takes one RESOURCE, not %d", cmd.CommandPath(), len(args))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			extensions, missing, err := askExtensions(cmd.Context(), "http://"+monitoring+"/debug/extensionz")
			if err != nil {
				return err
			}
			for _, address := range missing {
				fmt.Fprintf(c.env.Stderr, "replica %s of the control plane does not answer: its proxies are not counted\n", address)
			}
			if len(args) == 1 {
				extensions = slices.DeleteFunc(extensions, func(e control.Extension) bool {
					return !strings.Contains(e.Name, args[0])
				})
				if len(extensions) == 0 {
					return fmt.Errorf("there is no extension whose name has %q in it", args[0])
				}
			}
			return printExtensions(c.env.Stdout, extensions)
		},
	}
	cmd.Flags().StringVar(&monitoring, "monitoring", "127.0.0.1:15014", "`ADDRESS` of the control plane's debug pages")
	return cmd
}

// askExtensions also returns the addresses of replicas that were not heard.
func askExtensions(ctx context.Context, url string) (extensions []control.Extension, missing []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("ask control plane: %w", err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, nil, fmt.Errorf("ask control plane: %w; --monitoring says where it is", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("ask control plane: %s answers %s", url, res.Status)
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxStatus)).Decode(&extensions); err != nil {
		return nil, nil, fmt.Errorf("ask control plane: read %s: %w", url, err)
	}
	return extensions, res.Header.Values(control.MissingHeader), nil
}

// printExtensions prints a line an extension, and below it one for each refusal.
func printExtensions(w io.Writer, extensions []control.Extension) error {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	fmt.Fprintln(t, "EXTENSION\tPHASE\tPROXIES\tRUNNING\tPENDING\tREFUSED\tMODULE")
	for _, e := range extensions {
		running := 0
		for _, n := range e.Running {
			running += n
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%d\t%s\n", e.Name, cmp.Or(e.Phase, "-"), e.Wanted, running, e.Pending, len(e.Refused),
			cmp.Or(strings.Join(slices.Sorted(maps.Keys(e.Modules)), ","), "-"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, e := range extensions {
		for _, r := range e.Refused {
			if _, err := fmt.Fprintf(w, "\n%s\n  refused by %s since %s\n  version %s: %s\n",
				e.Name, r.Proxy, r.Since.UTC().Format(time.RFC3339), r.Version, r.Reason); err != nil {
				return err
			}
		}
	}
	return nil
}
