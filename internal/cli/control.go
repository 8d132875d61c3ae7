package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/chandler-proxy/chandler/internal/control"
	"github.com/chandler-proxy/chandler/internal/control/cluster"
	"github.com/chandler-proxy/chandler/internal/identity"
	"github.com/chandler-proxy/chandler/internal/inject"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/source/dir"
	"github.com/chandler-proxy/chandler/internal/source/kube"
)

// fromKube is the source that is a cluster.
const fromKube = "kube"

// A controlCommand is what the flags of control say.
type controlCommand struct {
	*command
	cfg        control.Config
	from       []string
	kubeconfig string
	caDir      string
	names      []string
	webhook    string
	inject     inject.Options
	gateways   bool
}

func (c *command) control() *cobra.Command {
	k := &controlCommand{command: c}
	cmd := &cobra.Command{
		Use:   "control --source kube|dir:PATH...",
		Short: "Serve proxies their configuration",
		Long: `control reads resources and serves what they mean to proxies, over ADS. A change
takes effect at once; what is wrong is logged, shown at /debug/problems and, on
Kubernetes, in the status of the resource.

Proxies beyond this machine are served over TLS, at --secure-xds, and must prove
who they are: on Kubernetes by a service-account token, elsewhere by a client
certificate of the CA in --ca-dir, which "control issue" makes.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return k.run(cmd.Context()) },
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&k.from, "source", nil, "where resources are: kube, or files as `dir:PATH`, which may be repeated")
	flags.StringVar(&k.kubeconfig, "kubeconfig", "", "`FILE` that says how to reach the API server (default: as kubectl finds it, or from within the cluster)")
	flags.StringVar(&k.cfg.XDS, "xds", "127.0.0.1:15010", "`ADDRESS` for proxies, in plain text")
	flags.StringVar(&k.cfg.Secure, "secure-xds", "", "`ADDRESS` for proxies over TLS (default: none)")
	flags.StringVar(&k.caDir, "ca-dir", "", "`DIR` of the CA where there is no Kubernetes; made if it is not there")
	flags.StringSliceVar(&k.names, "names", nil, "`NAMES` and IP addresses that proxies reach the control plane by, besides its Service's (default without Kubernetes: localhost, 127.0.0.1, ::1 and the name of this machine)")
	flags.StringVar(&k.cfg.Monitoring, "monitoring", "127.0.0.1:15014", "`ADDRESS` for metrics and health, and for debug pages, which only this machine sees")
	flags.BoolVar(&k.cfg.Remote, "allow-remote", false, "allow --xds to be an address that is not loopback; nothing is encrypted there")
	flags.BoolVar(&k.cfg.Pprof, "pprof", false, "serve profiles at /debug/pprof")
	flags.StringVar(&k.webhook, "webhook", "", "`ADDRESS` of the injector of sidecars, over TLS (default: none)")
	flags.StringVar(&k.inject.Image, "inject-image", defaultImage, "`IMAGE` of sidecars and gateways")
	flags.StringVar(&k.inject.EnvoyImage, "inject-envoy-image", "", "`IMAGE` of those with an Envoy (default: that of --inject-image)")
	flags.StringVar(&k.inject.Proxy, "inject-proxy", inject.Engine, "`KIND` of their proxy: engine or envoy")
	flags.StringVar((*string)(&k.inject.PullPolicy), "inject-pull-policy", "", "`POLICY` of pulling the image, as in Kubernetes")
	flags.StringSliceVar(&k.inject.PullSecrets, "inject-pull-secrets", nil, "`NAMES` of Secrets to pull the image with")
	flags.StringToStringVar(&k.inject.Env, "inject-env", nil, "`NAME=VALUE,...` in the environment of their agents, such as WASM_INSECURE_REGISTRIES")
	flags.StringVar(&k.inject.Revision, "revision", inject.DefaultRevision, "inject where the label istio.io/rev names this `REVISION`")
	flags.BoolVar(&k.gateways, "gateways", true, "deploy a proxy for each Gateway of the Gateway API, and write its status")
	addMesh(flags, &k.cfg.Mesh)
	cmd.AddCommand(c.issue())
	return cmd
}

func (k *controlCommand) run(ctx context.Context) error {
	if len(k.from) == 0 {
		return misuse{errors.New("--source is required: kube, or dir:PATH, a file or folder of resources")}
	}
	var err error
	if k.cfg.Log, err = k.logger(); err != nil {
		return err
	}
	if slices.Contains(k.from, fromKube) {
		if len(k.from) > 1 {
			return misuse{errors.New("--source: kube goes with no other source")}
		}
		return k.runCluster(ctx)
	}
	if k.webhook != "" {
		return misuse{errors.New("--webhook: there is an injector with --source kube only")}
	}
	paths, err := sources(k.from)
	if err != nil {
		return err
	}
	k.cfg.Source = dir.New(dir.Config{Paths: paths, Log: k.cfg.Log})
	if k.cfg.Secure == "" {
		return control.Run(ctx, k.cfg)
	}
	return k.runSecure(ctx)
}

// runCluster serves a cluster. Which replica this is, the downward API says.
func (k *controlCommand) runCluster(ctx context.Context) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	env := func(name, otherwise string) string {
		value, _ := k.env.Lookup(name)
		return cmp.Or(value, otherwise)
	}
	cfg := cluster.Config{
		Control: k.cfg, Instance: env("POD_NAME", host), IP: env("POD_IP", ""),
		Names: k.names, Webhook: k.webhook, Inject: k.inject, Gateways: k.gateways,
	}
	if cfg.API, err = kube.Connect(k.kubeconfig, userAgent); err != nil {
		return err
	}
	return cluster.Run(ctx, cfg)
}

// userAgent is what the API server's log and metrics call the control plane.
const userAgent = "chandler"

// runSecure serves files, also over TLS by the CA of a folder.
func (k *controlCommand) runSecure(ctx context.Context) error {
	if k.caDir == "" {
		return misuse{errors.New("--ca-dir is required with --secure-xds: the folder of the CA")}
	}
	if len(k.names) == 0 {
		host, err := os.Hostname()
		if err != nil {
			return err
		}
		k.names = []string{"localhost", "127.0.0.1", "::1", host}
	}
	folder, ca, err := openCA(ctx, k.caDir, k.names)
	if err != nil {
		return err
	}
	k.cfg.Trust = control.Trust{Authority: ca}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return ca.Run(ctx) })
	g.Go(func() error {
		return ca.Follow(ctx, func(bundle []byte) {
			if err := folder.WriteBundle(bundle); err != nil {
				k.cfg.Log.Error("root certificates not written", "error", err)
			}
		})
	})
	g.Go(func() error { return control.Run(ctx, k.cfg) })
	return g.Wait()
}

func openCA(ctx context.Context, path string, names []string) (*identity.Dir, *identity.Authority, error) {
	folder, err := identity.OpenDir(path)
	if err != nil {
		return nil, nil, err
	}
	ca, err := identity.Open(ctx, identity.AuthorityConfig{Keeper: folder, Names: names})
	return folder, ca, err
}

// issue makes what a proxy proves itself with where there is no Kubernetes.
func (c *command) issue() *cobra.Command {
	var dir, namespace, account, cert, key string
	var life time.Duration
	cmd := &cobra.Command{
		Use:   "issue --ca-dir DIR --cert FILE --key FILE",
		Short: "Issue a client certificate, which an agent without Kubernetes proves itself with",
		Long: `issue makes a certificate of the CA in --ca-dir, and its key, for the agents of one
namespace: they get the configuration of proxies of that namespace and no other.
An agent is given both (--cert, --key), and root-cert.pem of that folder (--ca).`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" || cert == "" || key == "" {
				return misuse{errors.New("--ca-dir, --cert and --key are required")}
			}
			folder, ca, err := openCA(cmd.Context(), dir, []string{"localhost"})
			if err != nil {
				return err
			}
			if err := folder.WriteBundle(ca.Bundle()); err != nil {
				return err
			}
			certificate, private, err := ca.IssueClient(namespace, account, life)
			if err != nil {
				return misuse{err}
			}
			if err := identity.WriteFile(key, private, 0o600); err != nil {
				return fmt.Errorf("write key: %w", err)
			}
			if err := identity.WriteFile(cert, certificate, 0o644); err != nil {
				return fmt.Errorf("write certificate: %w", err)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&dir, "ca-dir", "", "`DIR` of the CA; made if it is not there")
	flags.StringVar(&namespace, "namespace", "istio-system", "`NAMESPACE` of the proxies")
	flags.StringVar(&account, "service-account", "default", "`NAME` of their service account")
	flags.DurationVar(&life, "life", 90*24*time.Hour, "how long the certificate is valid")
	flags.StringVar(&cert, "cert", "", "`FILE` for the certificate")
	flags.StringVar(&key, "key", "", "`FILE` for its key, which only its owner may read")
	return cmd
}

func addMesh(flags *pflag.FlagSet, opts *mesh.Options) {
	flags.StringVar(&opts.RootNamespace, "root-namespace", "istio-system", "`NAMESPACE` whose plugins apply everywhere")
	flags.StringVar(&opts.Domain, "domain", "cluster.local", "DNS `DOMAIN` of services")
}
