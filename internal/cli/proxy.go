package cli

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/spf13/pflag"

	"github.com/chandler-proxy/chandler/internal/agent"
	"github.com/chandler-proxy/chandler/internal/envoy"
	"github.com/chandler-proxy/chandler/internal/mesh"
)

// proxyFlags say which proxy there is, who it is and where it serves. The verbs
// agent and run share them.
type proxyFlags struct {
	kind, envoy            string
	id, namespace          string
	labels                 map[string]string
	redirected, wholeWorld bool
	preflight              bool
	data, modules          string
	podInfo                string
	admin, status          string
}

func (f *proxyFlags) add(flags *pflag.FlagSet, kind, data, dataUsage string) {
	flags.StringVar(&f.kind, "proxy", kind, "`KIND` of the proxy: envoy, or engine, the embedded one")
	flags.StringVar(&f.envoy, "envoy", "", "`PATH` of the Envoy binary for --proxy envoy (default: envoy on $PATH, then what scripts/envoy.sh fetched)")
	flags.StringVar(&f.id, "id", "", "`ID` of the proxy: TYPE~IP~NAME.NAMESPACE~DOMAIN, where TYPE is router or sidecar (default: a router)")
	flags.StringVar(&f.namespace, "namespace", "", "`NAMESPACE` of the proxy (default: that in --id, or istio-system)")
	flags.StringToStringVar(&f.labels, "labels", nil, "labels of the proxy's workload, as `KEY=VALUE,...`")
	flags.BoolVar(&f.redirected, "redirected", false, "traffic is redirected to the proxy: it listens on 15001 and 15006 only")
	flags.BoolVar(&f.wholeWorld, "state-of-the-world", false, "use the state-of-the-world variant of xDS, not the incremental one")
	flags.StringVar(&f.data, "data", data, "`DIR` for modules, bootstrap and socket"+dataUsage)
	flags.StringVar(&f.modules, "modules", "", "`DIR` for modules that agents on this machine share (default: in --data)")
	flags.BoolVar(&f.preflight, "preflight", true, "try modules with their configuration before the proxy gets them")
	flags.StringVar(&f.admin, "admin", "127.0.0.1:15000", "`ADDRESS` of the proxy's admin interface")
	flags.StringVar(&f.status, "status", "127.0.0.1:15020", "`ADDRESS` for metrics and health of agent and proxy")
}

// config reads the flags into an agent's configuration.
func (f *proxyFlags) config(c *command) (agent.Config, error) {
	var cfg agent.Config
	if f.kind != "envoy" && f.kind != "engine" {
		return cfg, misuse{fmt.Errorf("--proxy: %q is neither envoy nor engine", f.kind)}
	}
	var err error
	if cfg.Log, err = c.logger(); err != nil {
		return cfg, err
	}
	if cfg.Proxy, err = f.proxy(c.env.Lookup); err != nil {
		return cfg, misuse{err}
	}
	if cfg.Admin, err = netip.ParseAddrPort(f.admin); err != nil {
		return cfg, misuse{fmt.Errorf("--admin: %q is not an IP address and port", f.admin)}
	}
	if cfg.Engine = f.kind == "engine"; !cfg.Engine {
		if cfg.Envoy, err = envoy.Find(f.envoy, envoyFetched); err != nil {
			return cfg, err
		}
	}
	if f.preflight {
		if cfg.Preflight, err = preflightCommand(); err != nil {
			return cfg, err
		}
	}
	cfg.DataDir, cfg.ModuleDir = f.data, f.modules
	cfg.StateOfTheWorld = f.wholeWorld
	cfg.EnvoyOutput, cfg.Hurry = c.env.Stderr, c.env.Hurry
	return agent.ConfigFromEnv(c.env.Lookup, cfg)
}

// envoyFetched is where scripts/envoy.sh leaves Envoy, seen from the project's folder.
const envoyFetched = ".tools/envoy"

// proxy is who the flags say the proxy is, and the variables that injection sets,
// which are Istio's.
func (f *proxyFlags) proxy(lookup func(string) (string, bool)) (mesh.Proxy, error) {
	host, err := os.Hostname()
	if err != nil {
		return mesh.Proxy{}, err
	}
	namespace := cmp.Or(f.namespace, "istio-system")
	id := cmp.Or(f.id, "router~127.0.0.1~"+host+"."+namespace+"~"+namespace+".svc.cluster.local")
	p, err := mesh.ParseNode(&corev3.Node{Id: id})
	if err != nil {
		return p, fmt.Errorf("--id: %w", err)
	}
	if f.namespace != "" && f.namespace != p.Namespace {
		return p, fmt.Errorf("--namespace: %s contradicts %s in --id", f.namespace, p.Namespace)
	}
	p.Labels = f.labels
	if f.podInfo != "" {
		if p.Labels, err = podLabels(filepath.Join(f.podInfo, "labels")); err != nil {
			return p, fmt.Errorf("--pod-info: %w", err)
		}
		maps.Copy(p.Labels, f.labels)
	}
	p.Redirected = f.redirected
	p.Workload, _ = lookup("ISTIO_META_WORKLOAD_NAME")
	if list, _ := lookup("INSTANCE_IPS"); list != "" {
		p.IPs = nil
		for text := range strings.SplitSeq(list, ",") {
			ip, err := netip.ParseAddr(strings.TrimSpace(text))
			if err != nil {
				return p, fmt.Errorf("INSTANCE_IPS: %q is not an IP address", text)
			}
			p.IPs = append(p.IPs, ip)
		}
	}
	return p, nil
}

// userDir is a folder for the data of what a user runs by hand.
func userDir(name string) string {
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "chandler", name)
	}
	return filepath.Join(os.TempDir(), "chandler-"+name)
}

// sources splits "dir:PATH" forms.
func sources(list []string) ([]string, error) {
	var paths []string
	for _, s := range list {
		path, ok := strings.CutPrefix(s, "dir:")
		if !ok || path == "" {
			return nil, misuse{fmt.Errorf("--source: %q is neither kube nor dir:PATH", s)}
		}
		paths = append(paths, path)
	}
	return paths, nil
}
