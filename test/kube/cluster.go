package kube

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Addresses within a cluster's network, the same in every cluster. Some of the
// files in node/ and dns.yaml repeat them.
const (
	nodeName     = "node1"
	nodeIP       = "172.18.0.1"
	apiAddr      = nodeIP + ":6443"
	apiServiceIP = "10.96.0.1"
	dnsServiceIP = "10.96.0.10"
)

// Registry is the address of the cluster's image registry, for pods, containerd
// and [Cluster.Dial]: plain HTTP, no password, empty at first. Images that name
// no registry, or docker.io, are looked for there too.
const Registry = nodeIP + ":5000"

// patience is how long anything that must happen may take.
const patience = 2 * time.Minute

//go:embed node node.sh dns.yaml
var files embed.FS

// A Config says where things are. The zero value is right within this
// repository after `test/kube/build.sh .tools/kube/bin`.
type Config struct {
	Programs string // folder made by build.sh; default $CHANDLER_KUBE, else Cache/bin
	Cache    string // folder of what is kept between runs; default .tools/kube of the repository
	// APIServerOnly leaves out what acts on objects: there are etcd and the API server.
	APIServerOnly bool
}

func (c Config) withDefaults() (Config, error) {
	root, err := repository()
	if err != nil {
		return c, err
	}
	c.Cache = cmp.Or(c.Cache, filepath.Join(root, ".tools", "kube"))
	c.Programs = cmp.Or(c.Programs, os.Getenv("CHANDLER_KUBE"), filepath.Join(c.Cache, "bin"))
	if _, err := os.Stat(filepath.Join(c.Programs, "kubebox")); err != nil {
		return c, fmt.Errorf("find Kubernetes, which test/kube/build.sh %s builds: %w", c.Programs, err)
	}
	return c, nil
}

// repository is the folder of the module that the working directory is in.
func repository() (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("find repository: no go.mod here or above")
		}
		dir = filepath.Dir(dir)
	}
	return "", err
}

// A Cluster is a running Kubernetes. Its methods may be called concurrently,
// except Stop, StopAPIServer and StartAPIServer, which exclude one another.
type Cluster struct {
	cfg    Config
	dir    string // its data; the node knows it as /run/kube
	node   *node
	client *http.Client // of the administrator

	mu        sync.Mutex
	processes map[string]*process
}

// Start runs a cluster: when it returns, the node is ready and DNS answers. If
// it fails nothing is left and the error has the log of what failed. ctx is for
// starting only; the cluster runs until Stop.
func Start(ctx context.Context, cfg Config) (_ *Cluster, err error) {
	cfg, err = cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	system, err := systemImages(ctx, cfg)
	if err != nil {
		return nil, err
	}
	sweep()
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		return nil, err
	}
	c := &Cluster{cfg: cfg, dir: dir, processes: map[string]*process{}}
	if err := c.start(ctx, system); err != nil {
		return nil, errors.Join(fmt.Errorf("start cluster: %w", err), c.Stop())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context, system []Image) (err error) {
	if err := c.write(); err != nil {
		return err
	}
	if c.node, err = startNode(ctx, c.dir, c.cfg.Programs); err != nil {
		return err
	}
	if c.client, err = c.administrator(); err != nil {
		return err
	}
	if c.cfg.APIServerOnly {
		return c.startStore(ctx)
	}
	g, both := errgroup.WithContext(ctx)
	g.Go(func() error { return c.startControlPlane(both) })
	g.Go(func() error { return c.startContainers(both, system) })
	if err := g.Wait(); err != nil {
		return err
	}
	return c.startPods(ctx)
}

// startControlPlane runs what decides. The API server waits for etcd by itself,
// controllers and scheduler would give up.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	if err := c.startStore(ctx); err != nil {
		return err
	}
	if err := c.spawn("kube-controller-manager", append(as("controllers"),
		"--use-service-account-credentials", "--service-account-private-key-file=/run/kube/pki/sa.key",
		"--root-ca-file=/run/kube/pki/ca.crt", "--leader-elect=false", "--cert-dir=/run/kube",
		// While the API server is away the node cannot say that it lives.
		"--node-monitor-grace-period=10m",
		"--flex-volume-plugin-dir=/run/kube/volumeplugins", "--kube-api-qps=200", "--kube-api-burst=400")...); err != nil {
		return err
	}
	return c.spawn("kube-scheduler", append(as("scheduler"), "--leader-elect=false", "--cert-dir=/run/kube")...)
}

// startStore runs what keeps objects.
func (c *Cluster) startStore(ctx context.Context) error {
	if err := c.spawn("etcd",
		"--data-dir=/run/kube/etcd", "--unsafe-no-fsync"); err != nil {
		return err
	}
	return c.StartAPIServer(ctx)
}

// as has a program act as the user.
func as(user string) []string {
	path := "/run/kube/" + user + ".kubeconfig"
	return []string{"--kubeconfig=" + path, "--authentication-kubeconfig=" + path, "--authorization-kubeconfig=" + path}
}

// startContainers runs what keeps and runs images.
func (c *Cluster) startContainers(ctx context.Context, system []Image) error {
	if err := c.spawn("docker-registry", "serve", "/run/kube/registry.yaml"); err != nil {
		return err
	}
	if err := c.spawn("containerd", "--config=/run/kube/containerd.toml"); err != nil {
		return err
	}
	err := c.wait(ctx, "containerd", func(ctx context.Context) error {
		return quiet(c.node.command(ctx, "ctr", "version"))
	})
	for _, image := range system {
		err = errors.Join(err, c.importImage(ctx, image))
	}
	return err
}

// startPods runs what makes pods of the API server's objects, and the first of them.
func (c *Cluster) startPods(ctx context.Context) error {
	if err := c.spawn("kubelet", "--config=/run/kube/kubelet.yaml", "--kubeconfig=/run/kube/node.kubeconfig",
		"--hostname-override="+nodeName, "--node-ip="+nodeIP, "--cert-dir=/run/kube"); err != nil {
		return err
	}
	if err := c.spawn("kube-proxy", "--kubeconfig=/run/kube/proxy.kubeconfig", "--hostname-override="+nodeName,
		"--proxy-mode=iptables", "--cluster-cidr=10.244.0.0/24", "--conntrack-max-per-core=0",
		"--iptables-min-sync-period=100ms"); err != nil {
		return err
	}
	dns, err := files.ReadFile("dns.yaml")
	if err != nil {
		return err
	}
	if _, err := c.kubectl(ctx, string(dns), "apply", "-f", "-"); err != nil {
		return err
	}
	for _, what := range [][]string{
		{"wait", "--for=condition=Ready", "--timeout=60s", "node/" + nodeName},
		{"wait", "--for=create", "--timeout=60s", "serviceaccount/default"},
		{"rollout", "status", "--timeout=60s", "--namespace=kube-system", "deployment/coredns"},
	} {
		err := c.wait(ctx, "kubelet", func(ctx context.Context) error {
			_, err := c.kubectl(ctx, "", what...)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// StartAPIServer runs the API server and waits until it is ready.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	if err := c.spawn("kube-apiserver",
		"--etcd-servers=http://127.0.0.1:2379", "--advertise-address="+nodeIP, "--cert-dir=/run/kube",
		"--tls-cert-file=/run/kube/pki/apiserver.crt", "--tls-private-key-file=/run/kube/pki/apiserver.key",
		"--client-ca-file=/run/kube/pki/ca.crt", "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=/run/kube/pki/sa.pub", "--service-account-signing-key-file=/run/kube/pki/sa.key",
		"--kubelet-client-certificate=/run/kube/pki/kubelet-client.crt", "--kubelet-client-key=/run/kube/pki/kubelet-client.key",
		"--kubelet-certificate-authority=/run/kube/pki/ca.crt", "--kubelet-preferred-address-types=InternalIP",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged",
		"--service-cluster-ip-range=10.96.0.0/16"); err != nil {
		return err
	}
	return c.wait(ctx, "kube-apiserver", func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+apiAddr+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := c.client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("readyz: %s", resp.Status)
		}
		return nil
	})
}

// StopAPIServer kills the API server as a crash would: clients' connections
// break, and new ones are refused until StartAPIServer.
func (c *Cluster) StopAPIServer() error {
	return c.kill("kube-apiserver")
}

// Stop ends the cluster and removes all there is of it. It may be called again.
func (c *Cluster) Stop() error {
	var err error
	if c.client != nil {
		c.client.CloseIdleConnections()
	}
	if c.node != nil {
		err = c.node.stop()
	}
	for _, p := range c.all() {
		<-p.done // it ended with the node
	}
	return errors.Join(err, removeCgroups(filepath.Base(c.dir)), os.RemoveAll(c.dir))
}

// write makes the cluster's folder: keys, clients' and programs' configuration.
func (c *Cluster) write() error {
	pki := filepath.Join(c.dir, "pki")
	if err := credentials(pki); err != nil {
		return err
	}
	for _, user := range []string{"admin", "controllers", "scheduler", "proxy", "node"} {
		if err := kubeconfig(filepath.Join(c.dir, user+".kubeconfig"), pki, user); err != nil {
			return err
		}
	}
	config, err := fs.Sub(files, "node")
	if err != nil {
		return err
	}
	if err := os.CopyFS(c.dir, config); err != nil {
		return err
	}
	kubelet := filepath.Join(c.dir, "kubelet.yaml")
	text, err := os.ReadFile(kubelet)
	if err != nil {
		return err
	}
	text = []byte(strings.Replace(string(text), "CGROUP", "/"+filepath.Base(c.dir), 1))
	return errors.Join(os.WriteFile(kubelet, text, 0o600), os.Mkdir(filepath.Join(c.dir, "log"), 0o755), c.plainHTTP(Registry))
}

// administrator is an HTTP client that the API server lets do everything.
func (c *Cluster) administrator() (*http.Client, error) {
	pki := filepath.Join(c.dir, "pki")
	cert, err := tls.LoadX509KeyPair(filepath.Join(pki, "admin.crt"), filepath.Join(pki, "admin.key"))
	if err != nil {
		return nil, err
	}
	root, err := os.ReadFile(filepath.Join(pki, "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(root)
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DialContext:     c.Dial,
		TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots},
	}}, nil
}

// Kubeconfig is the path of the administrator's kubeconfig. The address in it is
// within the cluster's network: for commands of [Cluster.Run], or for clients
// that dial with [Cluster.Dial].
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.dir, "admin.kubeconfig") }

// NodeIP is the node's address, where NodePorts are.
func (c *Cluster) NodeIP() string { return nodeIP }

// Dial connects to an address in the cluster's network: a pod's, a service's,
// the node's with a NodePort, or a name that cluster DNS knows in full.
func (c *Cluster) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if net.ParseIP(host) == nil {
		names := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return c.node.dial(ctx, network, net.JoinHostPort(dnsServiceIP, "53"))
		}}
		addrs, err := names.LookupHost(ctx, host)
		if err != nil {
			return nil, err
		}
		host = addrs[0]
	}
	return c.node.dial(ctx, network, net.JoinHostPort(host, port))
}

// Listen listens in the cluster's network, for pods at the node's address.
func (c *Cluster) Listen(ctx context.Context, network, addr string) (net.Listener, error) {
	return c.node.listen(ctx, network, addr)
}

// HTTPClient is a client whose connections are those of [Cluster.Dial], one for
// every request, so that it follows what changes.
func (c *Cluster) HTTPClient() *http.Client {
	return &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: c.Dial, DisableKeepAlives: true}}
}
