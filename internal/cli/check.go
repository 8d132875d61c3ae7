package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/chandler-proxy/chandler/internal/agent"
	"github.com/chandler-proxy/chandler/internal/ecds"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/modcache"
	"github.com/chandler-proxy/chandler/internal/module"
	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
	"github.com/chandler-proxy/chandler/internal/source/dir"
	"github.com/chandler-proxy/chandler/internal/translate"
)

// errProblems is what check fails with if anything is wrong; the problems are printed.
var errProblems = errors.New("there are problems")

func (c *command) check() *cobra.Command {
	var (
		files   []string
		modules string
		fetch   bool
		opts    mesh.Options
	)
	cmd := &cobra.Command{
		Use:   "check -f PATH...",
		Short: "Validate resources, fetch and try their modules, print what each proxy would run",
		Long: `check reads resources as the control plane would, fetches the modules of their
extensions as an agent would, tries them, and prints which extensions each gateway and each
pod would run, in order, and which none of these would: the pods of a Deployment are not
known before they are made. It fails if anything is wrong with them.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return misuse{errors.New("-f is required: a file or folder of resources")}
			}
			k := checking{out: c.env.Stdout}
			if err := k.read(cmd.Context(), files, opts); err != nil {
				return err
			}
			if fetch {
				cfg, err := agent.ConfigFromEnv(c.env.Lookup, agent.Config{ModuleDir: cmp.Or(modules, userDir("modules")), DataDir: userDir("check")})
				if err != nil {
					return err
				}
				if err := k.fetch(cmd.Context(), cfg); err != nil {
					return err
				}
			}
			return k.print()
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&files, "filename", "f", nil, "file or folder of resources, a `PATH`; may be repeated")
	flags.StringVar(&modules, "modules", "", "`DIR` to keep modules in (default: in your cache folder)")
	flags.BoolVar(&fetch, "fetch", true, "fetch modules and try them")
	addMesh(flags, &opts)
	return cmd
}

// checking is what check has found out.
type checking struct {
	out      io.Writer
	snap     source.Snapshot
	written  map[string]*mesh.Extension // resources of extensions, by name of the extension
	proxies  []wouldRun
	unused   []*corev3.TypedExtensionConfig // for none of proxies
	problems []resource.Problem
	modules  map[string]string // what became of each extension's module, by its name
}

// wouldRun is one proxy and the extensions it would run.
type wouldRun struct {
	proxy      mesh.Proxy
	extensions []*corev3.TypedExtensionConfig
}

// read takes the resources as a control plane would at its start.
func (k *checking) read(ctx context.Context, files []string, opts mesh.Options) error {
	if err := areThere(files); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var snap source.Snapshot
	read := false
	if err := dir.New(dir.Config{Paths: files}).Run(ctx, func(s source.Snapshot) {
		if !read {
			snap, read = s, true
		}
		cancel()
	}); err != nil {
		return err
	}
	k.snap = snap
	world, problems := mesh.New(snap.Objects, opts)
	k.problems = slices.Concat(snap.Problems, problems, translate.Problems(world))
	for _, p := range world.Proxies() {
		built, problems := translate.Build(world, p)
		k.problems = append(k.problems, problems...)
		k.proxies = append(k.proxies, wouldRun{p, built.Extensions})
	}
	k.written = make(map[string]*mesh.Extension)
	for _, e := range world.AllExtensions() {
		k.written[e.Resource] = e
		if e.Config != nil && !slices.ContainsFunc(k.proxies, func(p wouldRun) bool { return p.runs(e.Resource) }) {
			k.unused = append(k.unused, e.Config)
		}
	}
	return nil
}

func (w wouldRun) runs(name string) bool {
	return slices.ContainsFunc(w.extensions, func(e *corev3.TypedExtensionConfig) bool { return e.GetName() == name })
}

// areThere refuses paths of resources that are not there: a source waits for them, a
// user has mistyped them.
func areThere(paths []string) error {
	for _, path := range paths {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("read resources: %w", err)
		}
	}
	return nil
}

// fetch gets and reads every extension's module.
func (k *checking) fetch(ctx context.Context, cfg agent.Config) error {
	cfg.Metrics, cfg.Log = prometheus.NewRegistry(), slog.New(slog.DiscardHandler)
	modules, err := agent.OpenModules(cfg)
	if err != nil {
		return err
	}
	if cfg.Preflight, err = preflightCommand(); err != nil {
		return err
	}
	try, err := agent.OpenPreflight(cfg)
	if err != nil {
		return err
	}
	k.modules = make(map[string]string)
	running, stop := context.WithCancel(ctx)
	g, running := errgroup.WithContext(running)
	g.Go(func() error { return modules.Run(running) })
	for _, e := range slices.Concat(append(k.running(), k.unused)...) {
		if k.modules[e.GetName()] != "" {
			continue
		}
		found, err := inspect(ctx, modules, try, e)
		if err != nil {
			k.problems = append(k.problems, k.problem(e.GetName(), err))
			found = "no module"
		}
		k.modules[e.GetName()] = found
	}
	stop()
	return g.Wait()
}

// running are the extensions of each proxy.
func (k *checking) running() [][]*corev3.TypedExtensionConfig {
	var all [][]*corev3.TypedExtensionConfig
	for _, p := range k.proxies {
		all = append(all, p.extensions)
	}
	return all
}

// problem is that of the module of an extension. Of one that an EnvoyFilter makes only the
// name is known.
func (k *checking) problem(extension string, err error) resource.Problem {
	p := resource.Problem{Kind: "extension", Name: extension, Message: err.Error()}
	if e := k.written[extension]; e != nil {
		key := resource.KeyOf(e.Object)
		p.Kind, p.Namespace, p.Name, p.Field = key.Kind, key.Namespace, key.Name, "spec.url"
		if key.Kind == "TrafficExtension" {
			p.Field = "spec.wasm.url"
		}
	}
	return p
}

// inspect gets the module that an extension wants and says what it is.
func inspect(ctx context.Context, modules *modcache.Cache, try agent.Try, config *corev3.TypedExtensionConfig) (string, error) {
	res, err := anypb.New(config)
	if err != nil {
		return "", err
	}
	e, err := ecds.Decode(res)
	if err != nil {
		return "", err
	}
	want, err := e.Want()
	if errors.Is(err, ecds.ErrNotRemote) {
		return "a file of the proxy's machine", nil
	}
	if err != nil {
		return "", err
	}
	lease, err := modules.Get(ctx, want)
	if err != nil {
		return "", err
	}
	defer lease.Release()
	f, err := os.Open(lease.Path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := module.Inspect(f)
	if err != nil {
		return "", fmt.Errorf("read module of %s: %w", want.Ref, err)
	}
	if err := try(ctx, e, lease); err != nil {
		return "", fmt.Errorf("try module of %s: %w", want.Ref, err)
	}
	return fmt.Sprintf("%s, %d bytes, ABI %s", lease.Digest, lease.Size, cmp.Or(info.ABI, "unknown")), nil
}

// print prints what each proxy would run, then the problems, once each.
func (k *checking) print() error {
	for _, p := range k.proxies {
		fmt.Fprintf(k.out, "%s %s\n", p.proxy.Role, describe(p.proxy))
		if len(p.extensions) == 0 {
			fmt.Fprintln(k.out, "  no extensions")
		}
		for _, e := range p.extensions {
			k.printExtension(e)
		}
	}
	if len(k.unused) > 0 {
		fmt.Fprintln(k.out, "for no gateway and no pod among these resources")
	}
	for _, e := range k.unused {
		k.printExtension(e)
	}
	var told []string
	for _, p := range k.snap.Locate(k.problems) {
		told = append(told, p.String())
	}
	slices.Sort(told)
	for _, line := range slices.Compact(told) {
		fmt.Fprintln(k.out, line)
	}
	if len(told) > 0 {
		return errProblems
	}
	return nil
}

func (k *checking) printExtension(e *corev3.TypedExtensionConfig) {
	fmt.Fprintln(k.out, strings.TrimRight("  "+e.GetName()+"  "+k.modules[e.GetName()], " "))
}

// describe tells a proxy by its namespace and name, or its labels if it has none.
func describe(p mesh.Proxy) string {
	if p.Name != "" {
		return p.Namespace + "/" + p.Name
	}
	var labels []string
	for key, value := range p.Labels {
		labels = append(labels, key+"="+value)
	}
	slices.Sort(labels)
	return p.Namespace + " " + strings.Join(labels, ",")
}
