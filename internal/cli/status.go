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
	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/xds"
)

// maxStatus bounds what is read of a control plane's answer, in bytes.
const maxStatus = 64 << 20

func (c *command) status() *cobra.Command {
	var monitoring string
	cmd := &cobra.Command{
		Use:   "status [RESOURCE]",
		Short: "Show what became of each extension at the proxies",
		Long: `status asks a control plane for each extension's phase, whether its resource is
accepted, the digest of the module that runs, how many proxies are to run it and
do, and who refuses it, or a listener that it is in, and why; then for what proxies
refuse beside extensions, and what is wrong with resources.
RESOURCE is a part of an extension's name, as in basic-auth or
istio-system.basic-auth.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return misuse{fmt.Errorf("%s takes one RESOURCE, not %d", cmd.CommandPath(), len(args))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			s, missing, err := askStatus(cmd.Context(), "http://"+monitoring+"/debug/")
			if err != nil {
				return err
			}
			for _, address := range missing {
				fmt.Fprintf(c.env.Stderr, "replica %s of the control plane does not answer: its proxies are not counted\n", address)
			}
			if len(args) == 1 && !s.only(args[0]) {
				return fmt.Errorf("there is no extension whose name has %q in it", args[0])
			}
			return s.print(c.env.Stdout)
		},
	}
	cmd.Flags().StringVar(&monitoring, "monitoring", "127.0.0.1:15014", "`ADDRESS` of the control plane's debug pages")
	return cmd
}

// A standing is what a control plane tells of itself.
type standing struct {
	extensions []control.Extension
	proxies    []xds.Proxy        // of the replica that was asked
	problems   []resource.Problem // with the resources
}

// askStatus reads the debug pages below url. It also returns the addresses of replicas
// that were not heard.
func askStatus(ctx context.Context, url string) (s standing, missing []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	header, err := ask(ctx, url+"extensionz", &s.extensions)
	if err != nil {
		return standing{}, nil, err
	}
	if _, err := ask(ctx, url+"syncz", &s.proxies); err != nil {
		return standing{}, nil, err
	}
	if _, err := ask(ctx, url+"problems", &s.problems); err != nil {
		return standing{}, nil, err
	}
	return s, header.Values(control.MissingHeader), nil
}

// ask reads one page into content.
func ask(ctx context.Context, url string, content any) (http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("ask control plane: %w", err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask control plane: %w; --monitoring says where it is", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask control plane: %s answers %s", url, res.Status)
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxStatus)).Decode(content); err != nil {
		return nil, fmt.Errorf("ask control plane: read %s: %w", url, err)
	}
	return res.Header, nil
}

// only leaves what is about resources whose name has part in it, and what may be about
// any. It returns false if nothing is about them.
func (s *standing) only(part string) bool {
	s.extensions = slices.DeleteFunc(s.extensions, func(e control.Extension) bool { return !strings.Contains(e.Name, part) })
	found := len(s.extensions) > 0
	s.problems = slices.DeleteFunc(s.problems, func(p resource.Problem) bool {
		if p.Name == "" { // it could not be read
			return false
		}
		about := strings.Contains(p.Namespace+"."+p.Name, part)
		found = found || about
		return !about
	})
	return found
}

func (s *standing) print(w io.Writer) error {
	if err := s.printExtensions(w); err != nil {
		return err
	}
	for _, p := range s.proxies {
		for _, typeURL := range slices.Sorted(maps.Keys(p.Types)) {
			t := p.Types[typeURL]
			if t.Nacked == "" || typeURL == xds.ExtensionType { // told with the extension
				continue
			}
			kind := typeURL[strings.LastIndexByte(typeURL, '.')+1:]
			if _, err := fmt.Fprintf(w, "\n%s\n  refuses %s, version %s: %s\n", p.ID, kind, t.Nacked, t.Reason); err != nil {
				return err
			}
		}
	}
	if len(s.problems) == 0 {
		return nil
	}
	if _, err := fmt.Fprintln(w, "\nPROBLEMS"); err != nil {
		return err
	}
	for _, p := range s.problems {
		if _, err := fmt.Fprintln(w, p); err != nil {
			return err
		}
	}
	return nil
}

// printExtensions prints a line an extension, and below it one for each refusal.
func (s *standing) printExtensions(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	fmt.Fprintln(t, "EXTENSION\tPHASE\tACCEPTED\tPROXIES\tRUNNING\tPENDING\tREFUSED\tMODULE")
	for _, e := range s.extensions {
		running := e.Wanted - e.Pending - e.Missing - len(e.Refused)
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\n", e.Name, cmp.Or(e.Phase, "-"), s.accepted(e),
			e.Wanted, running, e.Pending, len(e.Refused),
			cmp.Or(strings.Join(slices.Sorted(maps.Keys(e.Modules)), ","), "-"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, e := range s.extensions {
		for _, r := range e.Refused {
			since := ""
			if !r.Since.IsZero() {
				since = " since " + r.Since.UTC().Format(time.RFC3339)
			}
			if _, err := fmt.Fprintf(w, "\n%s\n  refused by %s%s\n  version %s: %s\n",
				e.Name, r.Proxy, since, r.Version, r.Reason); err != nil {
				return err
			}
		}
	}
	return nil
}

// accepted is whether the resource of e is, in a word; a dash of what is none.
func (s *standing) accepted(e control.Extension) string {
	switch {
	case e.Kind == "":
		return "-"
	case slices.ContainsFunc(s.problems, func(p resource.Problem) bool {
		return p.Kind == e.Kind && p.Namespace == e.Namespace && p.Name == e.Resource
	}):
		return "False"
	}
	return "True"
}
