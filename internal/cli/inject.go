package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"

	"github.com/chandler-proxy/chandler/internal/inject"
)

func (c *command) inject() *cobra.Command {
	var (
		files []string
		opts  injectFlags
	)
	cmd := &cobra.Command{
		Use:   "inject -f PATH... [flags]",
		Short: "Print workloads with their sidecar",
		Long: `inject reads Kubernetes resources and prints them with a sidecar in every pod that
they make, for those who do without the webhook. What makes no pod, declines
(sidecar.istio.io/inject: "false") or has a sidecar is printed as it is. What could not be
honoured is told on standard error.`,
		Example: `  chandler inject -f app.yaml --image registry.example/chandler:v1 | kubectl apply -f -`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return misuse{errors.New("-f is required: a file or folder of resources, or - for standard input")}
			}
			o, err := opts.options()
			if err != nil {
				return err
			}
			return c.injectFiles(files, o)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&files, "filename", "f", nil, "file or folder of resources, or - for standard input, a `PATH`; may be repeated")
	opts.add(flags)
	return cmd
}

// defaultImage is what make images builds, and install and control use.
const defaultImage = "chandler"

// injectFlags say what the sidecars are like.
type injectFlags struct {
	file, pullPolicy string
	flags            inject.Options
}

func (f *injectFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.file, "options", "", "`FILE` with the options, as the control plane's ConfigMap has them; flags go before it")
	flags.StringVar(&f.flags.Image, "image", "", "`IMAGE` of chandler (default: chandler)")
	flags.StringVar(&f.flags.EnvoyImage, "envoy-image", "", "`IMAGE` of chandler with an Envoy")
	flags.StringVar(&f.flags.Proxy, "proxy", "", "`KIND` of the proxy: envoy, or engine, the embedded one (default: engine)")
	flags.StringVar(&f.pullPolicy, "pull-policy", "", "`POLICY` of pulling images: Always, IfNotPresent or Never (default IfNotPresent)")
	flags.StringSliceVar(&f.flags.PullSecrets, "pull-secret", nil, "`SECRET` to pull images with; may be repeated")
	flags.StringVar(&f.flags.Revision, "revision", "", "`REVISION` of the control plane (default: default)")
	flags.StringVar(&f.flags.RootNamespace, "root-namespace", "", "`NAMESPACE` of the control plane (default: istio-system)")
	flags.StringVar(&f.flags.Control, "control", "", "`ADDRESS` of the control plane, host:port (default: chandler.istio-system.svc:15012)")
	flags.StringVar(&f.flags.Domain, "domain", "", "`DOMAIN` of the cluster (default: cluster.local)")
}

// options are those of the flags, and for those not given, of the file.
func (f *injectFlags) options() (inject.Options, error) {
	var o inject.Options
	if f.file != "" {
		text, err := os.ReadFile(f.file)
		if err != nil {
			return o, fmt.Errorf("--options: %w", err)
		}
		if o, err = inject.ReadOptions(text); err != nil {
			return o, fmt.Errorf("--options: %s: %w", f.file, err)
		}
	}
	o.Image = cmp.Or(f.flags.Image, o.Image, defaultImage)
	o.EnvoyImage = cmp.Or(f.flags.EnvoyImage, o.EnvoyImage)
	o.Proxy = cmp.Or(f.flags.Proxy, o.Proxy)
	o.PullPolicy = cmp.Or(corev1.PullPolicy(f.pullPolicy), o.PullPolicy)
	o.Revision = cmp.Or(f.flags.Revision, o.Revision)
	o.RootNamespace = cmp.Or(f.flags.RootNamespace, o.RootNamespace)
	o.Control = cmp.Or(f.flags.Control, o.Control)
	o.Domain = cmp.Or(f.flags.Domain, o.Domain)
	if len(f.flags.PullSecrets) > 0 {
		o.PullSecrets = f.flags.PullSecrets
	}
	o, err := o.WithDefaults()
	if err != nil {
		return o, misuse{fmt.Errorf("options of the sidecar: %w", err)}
	}
	return o, nil
}

// injectFiles prints the resources of files, a document each, with sidecars.
func (c *command) injectFiles(files []string, o inject.Options) error {
	var texts []resourceFile
	for _, path := range files {
		more, err := c.readResources(path)
		if err != nil {
			return err
		}
		texts = append(texts, more...)
	}
	for i, file := range texts {
		out, problems, err := inject.Stream(file.text, o)
		if err != nil {
			return fmt.Errorf("%s: %w", file.path, err)
		}
		for _, p := range problems {
			fmt.Fprintf(c.env.Stderr, "%s: %s\n", file.path, p)
		}
		if i > 0 {
			fmt.Fprintln(c.env.Stdout, "---")
		}
		if len(out) > 0 && out[len(out)-1] != '\n' && i < len(texts)-1 {
			out = append(out, '\n')
		}
		if _, err := c.env.Stdout.Write(out); err != nil {
			return err
		}
	}
	return nil
}

// A resourceFile is a file as it was read.
type resourceFile struct {
	path string
	text []byte
}

// readResources reads a file, the files of a folder in the order of their names, or
// standard input.
func (c *command) readResources(path string) ([]resourceFile, error) {
	if path == "-" {
		if c.env.Stdin == nil {
			return nil, nil
		}
		text, err := io.ReadAll(c.env.Stdin)
		if err != nil {
			return nil, fmt.Errorf("read resources: %w", err)
		}
		return []resourceFile{{"standard input", text}}, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read resources: %w", err)
	}
	paths := []string{path}
	if info.IsDir() {
		paths = nil
		entries, err := os.ReadDir(path)
		if err != nil {
			return nil, fmt.Errorf("read resources: %w", err)
		}
		for _, e := range entries {
			if slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) && !e.IsDir() {
				paths = append(paths, filepath.Join(path, e.Name()))
			}
		}
	}
	var texts []resourceFile
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil {
			return nil, fmt.Errorf("read resources: %w", err)
		}
		texts = append(texts, resourceFile{p, text})
	}
	return texts, nil
}
