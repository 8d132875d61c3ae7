package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/chandler-proxy/chandler/deploy"
)

func (c *command) install() *cobra.Command {
	opts := deploy.Defaults()
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Print the manifests that install Chandler on Kubernetes",
		Long: `install prints Kubernetes manifests, to be applied: chandler install | kubectl apply -f -
There are definitions (Istio's own and the Gateway API's), a control plane of two
replicas, its rights, the injector of sidecars and an ingress gateway.

With the defaults it is what the kustomize base deploy/base has.`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			objects, err := deploy.Objects(opts)
			if errors.As(err, new(*deploy.OptionError)) {
				return misuse{err}
			}
			if err != nil {
				return err
			}
			return deploy.Write(c.env.Stdout, objects)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&opts.Namespace, "namespace", opts.Namespace, "`NAMESPACE` to install in; plugins there apply everywhere")
	flags.StringVar(&opts.Image, "image", opts.Image, "`IMAGE` of the control plane")
	flags.StringVar(&opts.Proxy, "proxy", opts.Proxy, "`KIND` of the proxies of gateways and sidecars: engine or envoy")
	flags.StringVar(&opts.ProxyImage, "proxy-image", opts.ProxyImage, "`IMAGE` of gateways and sidecars (default: that of the control plane; chandler-proxy for envoy)")
	flags.StringToStringVar(&opts.ProxyEnv, "proxy-env", nil, "`NAME=VALUE,...` in the environment of the agents of gateways and sidecars, such as WASM_INSECURE_REGISTRIES")
	flags.Int32Var(&opts.Replicas, "replicas", opts.Replicas, "`NUMBER` of replicas of the control plane")
	flags.StringVar(&opts.Revision, "revision", opts.Revision, "inject for the label istio.io/rev=`REVISION` only, beside an Istio that injects for other labels")
	flags.BoolVar(&opts.CRDs, "crds", opts.CRDs, "define Istio's and the Gateway API's kinds")
	flags.BoolVar(&opts.GatewayAPI, "gateway-api", opts.GatewayAPI, "define the Gateway API's kinds, and allow to deploy a proxy for each of its Gateways")
	flags.BoolVar(&opts.IngressGateway, "ingress-gateway", opts.IngressGateway, "deploy istio-ingressgateway, for Istio Gateways")
	flags.BoolVar(&opts.PullSecrets, "pull-secrets", opts.PullSecrets, "allow to read Secrets of all namespaces; without, allow it by a Role in each")
	return cmd
}
