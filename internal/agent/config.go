package agent

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/chandler-proxy/chandler/internal/envoy"
	"github.com/chandler-proxy/chandler/internal/identity"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/probe"
)

// A Config is everything the agent can be told. Upstream, Log and one of Envoy and
// Engine are required, and so is Proxy unless EnvoyArgs bring a bootstrap.
type Config struct {
	Upstream string          // ADS server, host:port
	Identity identity.Client // what the two know each other by; its zero value is plain text
	DataDir  string          // default /var/lib/chandler; the agent's socket is xds.sock in it
	Log      *slog.Logger

	Status  net.Listener         // metrics and health; closed by Run; default is at 127.0.0.1:15020
	Health  net.Listener         // health alone, for load balancers; closed by Run; default none
	Metrics *prometheus.Registry // default a new one; the agent adds its own
	Probes  probe.Set            // of the workload, answered at Status in its place

	Proxy           mesh.Proxy // who the proxy is towards the control plane
	Service         string     // node cluster, default WORKLOAD.NAMESPACE
	StateOfTheWorld bool       // let Envoy ask for whole sets instead of changes

	Engine      bool            // run the embedded engine, not an Envoy
	Envoy       string          // path of the binary; see [envoy.Find]
	EnvoyArgs   []string        // passed on; may name a bootstrap of the user's own with -c, or add to ours with --config-yaml
	EnvoyOutput io.Writer       // default stderr
	Admin       netip.AddrPort  // default 127.0.0.1:15000
	MinDrain    time.Duration   // connections are waited for at least so long; default 0
	Drain       time.Duration   // and at most so long; default 5s
	Grace       time.Duration   // then requests, and the end of the process, so long each; default 5s
	Hurry       <-chan struct{} // closed, it has a drain wait no more; default never

	ModuleDir          string         // default DataDir/modules; agents on one machine may share it
	MaxModule          int64          // bytes, default 256 MiB
	ModuleExpiry       time.Duration  // a module not used for so long is removed; default 24h
	PurgeInterval      time.Duration  // default 1h
	FetchTimeout       time.Duration  // of one try, default 15s
	FetchTries         int            // default 5
	InsecureRegistries []string       // hosts that may be asked in plain text or with a certificate nobody knows; * is all
	BlockedCIDRs       []netip.Prefix // never dialled for modules, besides link-local and cloud metadata addresses
	Preflight          []string       // command that runs preflight.Serve; modules are tried before Envoy gets them. None: they are not
	PassECDS           bool           // leave extensions to Envoy as they come, with remote modules
}

func (c Config) withDefaults() (Config, error) {
	switch {
	case c.Upstream == "":
		return c, errors.New("upstream is required")
	case !hasPort(c.Upstream):
		return c, fmt.Errorf("upstream %s is not HOST:PORT", c.Upstream)
	case c.Envoy == "" && !c.Engine:
		return c, errors.New("path of envoy is required")
	case c.Engine && len(c.EnvoyArgs) > 0:
		return c, errors.New("arguments of envoy go with an envoy only")
	case c.Engine && c.StateOfTheWorld:
		return c, errors.New("the engine has only the incremental variant of xDS")
	case c.Log == nil:
		return c, errors.New("log is required")
	}
	var err error
	if c.DataDir, err = filepath.Abs(cmp.Or(c.DataDir, "/var/lib/chandler")); err != nil {
		return c, err
	}
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	if c.EnvoyOutput == nil {
		c.EnvoyOutput = os.Stderr
	}
	c.ModuleDir = cmp.Or(c.ModuleDir, filepath.Join(c.DataDir, "modules"))
	return c, nil
}

// hasPort reports whether addr is a host and a port.
func hasPort(addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	_, bad := strconv.ParseUint(port, 10, 16)
	return err == nil && bad == nil && host != "" && port != "0"
}

// listenStatus returns the listener for metrics and health.
func listenStatus(cfg Config) (net.Listener, error) {
	if cfg.Status != nil {
		return cfg.Status, nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:15020")
	if err != nil {
		return nil, fmt.Errorf("listen for metrics and health: %w", err)
	}
	return l, nil
}

func (c Config) withModuleDefaults() Config {
	c.MaxModule = cmp.Or(c.MaxModule, 256<<20)
	c.ModuleExpiry = cmp.Or(c.ModuleExpiry, 24*time.Hour)
	c.PurgeInterval = cmp.Or(c.PurgeInterval, time.Hour)
	c.FetchTimeout = cmp.Or(c.FetchTimeout, 15*time.Second)
	c.FetchTries = cmp.Or(c.FetchTries, 5)
	return c
}

// bootstrap is what Envoy starts from, unless the user brings one. That is only
// looked at.
func bootstrap(cfg Config) ([]byte, error) {
	socket := filepath.Join(cfg.DataDir, socketFile)
	if !envoy.HasBootstrap(cfg.EnvoyArgs) {
		return envoy.Bootstrap{
			Proxy:           cfg.Proxy,
			Service:         cfg.Service,
			Socket:          socket,
			StateOfTheWorld: cfg.StateOfTheWorld,
			Admin:           cfg.Admin,
		}.Encode()
	}
	own, err := envoy.ReadOwn(cfg.EnvoyArgs, os.ReadFile)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(own.Pipes, socket) {
		cfg.Log.Warn("bootstrap does not lead to the agent: no cluster has its socket as pipe", "socket", socket)
	}
	cfg.Log.Info("bootstrap is the user's own", "node", own.NodeID, "admin", own.Admin, "socket", socket)
	return nil, nil
}

// observe registers what the agent says of itself as a process, under names
// that begin as Istio's.
func observe(r prometheus.Registerer) error {
	own := prometheus.WrapRegistererWithPrefix("istio_agent_", r)
	return errors.Join(
		own.Register(collectors.NewGoCollector()),
		own.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})),
	)
}
