//go:build e2e

package kube

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// image is what build makes, which must succeed.
func image(t *testing.T, build func(context.Context, Config) (Image, error)) Image {
	t.Helper()
	i, err := build(t.Context(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// took reports how long something took, for people; nothing is judged by it.
func took(t *testing.T, what string, f func()) {
	t.Helper()
	start := time.Now()
	f()
	t.Logf("%-32s %6.2f s", what, time.Since(start).Seconds())
}

// eventually waits until f is nil.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	err := f()
	for err != nil {
		select {
		case <-tick.C:
			err = f()
		case <-ctx.Done():
			t.Fatalf("%s: still after %v: %v", what, patience, err)
		}
	}
}

// get is what a GET from this process says.
func get(c *Cluster, url string) error {
	client := c.HTTPClient()
	client.Timeout = 5 * time.Second
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// TestCluster has a workload and its client as the third seed's users have them,
// then what the tests of Chandler need besides, on one cluster.
func TestCluster(t *testing.T) {
	var httpbin, curl Image
	took(t, "images made or found", func() { httpbin, curl = image(t, Backend), image(t, Curl) })
	var c *Cluster
	took(t, "cluster up", func() { c = For(t) })
	took(t, "httpbin onto the node", func() { c.Import(t, httpbin) })
	took(t, "curl into the registry", func() { c.Push(t, curl, "curlimages/curl:latest") })
	took(t, "httpbin rolled out", func() {
		c.Kubectl(t, "apply", "-f", "testdata/httpbin.yaml")
		c.Kubectl(t, "rollout", "status", "deployment/httpbin", "--timeout=60s")
	})
	took(t, "kubectl run curl -it --rm", func() {
		out := c.Terminal(t, "$ ", []string{`curl -v -H "hello: something" http://httpbin:8000/headers`, "exit"},
			"kubectl", "run", "curl", "--image=curlimages/curl", "-it", "--rm", "--", "/bin/sh")
		for _, want := range []string{"Host: httpbin:8000", "HTTP/1.1 200 OK", `"Hello": "something"`, `pod "curl" deleted`} {
			if !strings.Contains(out, want) {
				t.Errorf("kubectl run says %q, without %q", out, want)
			}
		}
	})
	t.Run("names", func(t *testing.T) { names(t, c) })
	t.Run("commands in a pod", func(t *testing.T) { commands(t, c) })
	t.Run("this process", func(t *testing.T) { thisProcess(t, c) })
	t.Run("registries", func(t *testing.T) { registries(t, c, curl) })
	t.Run("image of one's own", func(t *testing.T) { ownImage(t, c) })
	t.Run("images of the project", func(t *testing.T) { projectImages(t, c) })
	t.Run("API server", func(t *testing.T) { apiServer(t, c) })
	t.Logf("%-32s %6d MB", "memory", memory(t, c))
	if t.Failed() {
		return // its logs are wanted
	}
	took(t, "cluster down", func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
}

// commands has logs and exec, in a pod whose init container may change its network.
func commands(t *testing.T, c *Cluster) {
	c.Kubectl(t, "apply", "-f", "testdata/redirect.yaml")
	c.Kubectl(t, "wait", "--for=condition=Ready", "--timeout=60s", "pod/redirect")
	out := c.Kubectl(t, "exec", "redirect", "-c", "curl", "--", "curl", "-s", "http://192.0.2.1/get")
	if !strings.Contains(out, `"url": "http://192.0.2.1/get"`) {
		t.Errorf("at the address of the init container: %s", out)
	}
	if _, err := c.TryKubectl(t.Context(), "", "exec", "redirect", "-c", "curl", "--", "busybox", "ip", "addr", "add", "192.0.2.2/32", "dev", "lo"); err == nil {
		t.Error("a container without NET_ADMIN may add an address")
	}
	c.Kubectl(t, "exec", "redirect", "-c", "curl", "--", "sh", "-c", "echo spoken >/tmp/heard")
	if out := c.KubectlInput(t, "cat /tmp/heard\n", "exec", "-i", "redirect", "-c", "curl", "--", "sh"); out != "spoken\n" {
		t.Errorf("exec says %q", out)
	}
	c.Kubectl(t, "run", "talk", "--image=curlimages/curl", "--restart=Never", "--", "echo", "said once")
	c.Kubectl(t, "wait", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s", "pod/talk")
	if out := c.Kubectl(t, "logs", "talk"); out != "said once\n" {
		t.Errorf("logs = %q", out)
	}
}

// names has cluster DNS, for pods: what there is, in short and in full, and what
// there is not.
func names(t *testing.T, c *Cluster) {
	c.Kubectl(t, "run", "names", "--image=curlimages/curl", "--", "sleep", "infinity")
	c.Kubectl(t, "wait", "--for=condition=Ready", "--timeout=60s", "pod/names")
	for _, host := range []string{"httpbin", "httpbin.default", "httpbin.default.svc.cluster.local"} {
		if out := c.Kubectl(t, "exec", "names", "--", "curl", "-s", "http://"+host+":8000/get"); !strings.Contains(out, `"origin"`) {
			t.Errorf("%s answers %q", host, out)
		}
	}
	_, err := c.TryKubectl(t.Context(), "", "exec", "names", "--", "curl", "-s", "http://not-there.example.com/")
	if err == nil || !strings.Contains(err.Error(), "exit code 6") {
		t.Errorf("a name that there is not: %v, want curl's exit code 6", err)
	}
	const api = `cd /var/run/secrets/kubernetes.io/serviceaccount && curl -s --cacert ca.crt -H "Authorization: Bearer $(cat token)" https://kubernetes.default.svc/version`
	if out := c.Kubectl(t, "exec", "names", "--", "sh", "-c", api); !strings.Contains(out, `"gitVersion": "v1.`) {
		t.Errorf("a pod's own token gives %q at the API server", out)
	}
}

// thisProcess reaches pods by address, service and NodePort, and is reached.
func thisProcess(t *testing.T, c *Cluster) {
	c.Kubectl(t, "patch", "service", "httpbin", "-p", `{"spec":{"type":"NodePort","ports":[{"name":"http","port":8000,"targetPort":80,"nodePort":30080}]}}`)
	for _, host := range []string{
		"httpbin.default.svc.cluster.local:8000",
		c.Kubectl(t, "get", "service", "httpbin", "-o", "jsonpath={.spec.clusterIP}") + ":8000",
		c.Kubectl(t, "get", "pod", "-l", "app=httpbin", "-o", "jsonpath={.items[0].status.podIP}") + ":80",
		c.NodeIP() + ":30080",
	} {
		eventually(t, host, func() error { return get(c, "http://"+host+"/get") })
	}
	ln, err := c.Listen(t.Context(), "tcp", c.NodeIP()+":0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "from the test") })}
	done := make(chan error, 1)
	go func() { done <- server.Serve(ln) }()
	if out := c.Kubectl(t, "exec", "names", "--", "curl", "-s", "http://"+ln.Addr().String()); out != "from the test" {
		t.Errorf("a pod hears %q", out)
	}
	if err := errors.Join(server.Close(), <-done); !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	// Its threads have stayed where they were.
	if pids := members(t, network(t, c)); slices.Contains(pids, os.Getpid()) {
		t.Error("this process is in the cluster's network")
	}
}

// registries has containerd pull, with and without a password.
func registries(t *testing.T, c *Cluster, image Image) {
	c.Push(t, image, "some/where:v1")
	// The kubelet lets a pod have an image that was pulled with a password only if
	// the pod could pull it too, under whatever name: this is one that all can pull.
	pull(t, c, "pulled", Registry+"/some/where:v1", "{}")
	eventually(t, "pull", func() error { return phase(c, "pulled", "Running") })

	private := c.PrivateRegistry(t, 5001, "reader", "secret")
	c.Run(t, "skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", "--dest-creds=reader:secret",
		"docker-archive:"+image.Archive, "docker://"+private+"/some/where:v2")
	pull(t, c, "refused", private+"/some/where:v2", "{}")
	eventually(t, "refusal", func() error {
		out, err := c.TryKubectl(t.Context(), "", "get", "pod", "refused", "-o", "jsonpath={.status.containerStatuses[0].state.waiting}")
		if err == nil && !strings.Contains(out, "401 Unauthorized") {
			err = errors.New(out)
		}
		return err
	})
	c.Kubectl(t, "create", "secret", "docker-registry", "reader", "--docker-server="+private, "--docker-username=reader", "--docker-password=secret")
	pull(t, c, "allowed", private+"/some/where:v2", `{"spec":{"imagePullSecrets":[{"name":"reader"}]}}`)
	eventually(t, "pull with a password", func() error { return phase(c, "allowed", "Running") })
}

func pull(t *testing.T, c *Cluster, pod, image, overrides string) {
	t.Helper()
	c.Kubectl(t, "run", pod, "--image="+image, "--image-pull-policy=Always", "--overrides="+overrides, "--", "sleep", "infinity")
}

func phase(c *Cluster, pod, want string) error {
	out, err := c.TryKubectl(context.Background(), "", "get", "pod", pod, "-o", "jsonpath={.status.phase}")
	if err == nil && out != want {
		err = fmt.Errorf("pod %s is %s", pod, out)
	}
	return err
}

// ownImage has an image from a Dockerfile with arguments, on top of a base, in a pod.
func ownImage(t *testing.T, c *Cluster) {
	dir := t.TempDir()
	err := errors.Join(
		os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("ARG BASE\nFROM ${BASE}\nARG WORD\nENV WORD=${WORD}\nCOPY tree/ /tree/\nCMD [\"sh\", \"-c\", \"cat /tree/link; echo $WORD\"]\n"), 0o644),
		os.Mkdir(filepath.Join(dir, "tree"), 0o755),
		os.WriteFile(filepath.Join(dir, "tree", "file"), []byte("in a file, "), 0o644),
		os.Symlink("file", filepath.Join(dir, "tree", "link")),
	)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := Config{}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	base := image(t, Base)
	cfg.Cache = t.TempDir() // where there is no image from before
	recipe := Recipe{
		Name:       "docker.io/library/own:latest",
		Dockerfile: filepath.Join(dir, "Dockerfile"),
		Files:      map[string]string{"tree": filepath.Join(dir, "tree")},
		Args:       map[string]string{"WORD": "and an argument"},
		Base:       &base,
	}
	var own Image
	took(t, "image on the base built", func() {
		if own, err = Build(t.Context(), cfg, recipe); err != nil {
			t.Fatal(err)
		}
	})
	c.Import(t, own)
	c.Kubectl(t, "run", "own", "--image=own", "--image-pull-policy=Never", "--restart=Never")
	eventually(t, "pod", func() error { return phase(c, "own", "Succeeded") })
	if out := c.Kubectl(t, "logs", "own"); out != "in a file, and an argument\n" {
		t.Errorf("logs = %q", out)
	}
}

// projectImages has the two images of deploy/ run, each as its own user.
func projectImages(t *testing.T, c *Cluster) {
	binary, envoy := os.Getenv("CHANDLER_BIN"), os.Getenv("CHANDLER_ENVOY")
	if binary == "" || envoy == "" {
		t.Fatal("CHANDLER_BIN or CHANDLER_ENVOY is not set; run make e2e")
	}
	var plain, proxy Image
	took(t, "images of the project", func() {
		plain = image(t, func(ctx context.Context, cfg Config) (Image, error) { return Chandler(ctx, cfg, binary) })
		proxy = image(t, func(ctx context.Context, cfg Config) (Image, error) { return ChandlerProxy(ctx, cfg, binary, envoy) })
	})
	took(t, "images onto the node", func() { c.Import(t, plain); c.Import(t, proxy) })
	for _, tt := range []struct {
		pod, want string
		args      []string
	}{
		{"chandler", "chandler v", []string{"--", "version"}},
		{"chandler-proxy", "envoy  version: ", []string{"--command", "--", "envoy", "--version"}},
	} {
		c.Kubectl(t, append([]string{"run", tt.pod, "--image=" + tt.pod, "--image-pull-policy=Never", "--restart=Never"}, tt.args...)...)
		eventually(t, tt.pod, func() error { return phase(c, tt.pod, "Succeeded") })
		if out := c.Kubectl(t, "logs", tt.pod); !strings.Contains(out, tt.want) {
			t.Errorf("%s says %q, without %q", tt.pod, out, tt.want)
		}
	}
}

// apiServer has the API server away and back; pods go on meanwhile.
func apiServer(t *testing.T, c *Cluster) {
	if err := c.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	if out, err := c.TryKubectl(t.Context(), "", "get", "pods"); err == nil {
		t.Errorf("without an API server kubectl says %s", out)
	}
	if err := get(c, "http://httpbin.default.svc.cluster.local:8000/get"); err != nil {
		t.Errorf("without an API server a service says %v", err)
	}
	took(t, "API server back", func() {
		if err := c.StartAPIServer(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	c.Kubectl(t, "scale", "deployment/httpbin", "--replicas=2")
	c.Kubectl(t, "rollout", "status", "deployment/httpbin", "--timeout=60s")
	out := c.Kubectl(t, "get", "deployment", "httpbin", "-o", "json")
	var d struct{ Status struct{ ReadyReplicas int } }
	if err := json.Unmarshal([]byte(out), &d); err != nil || d.Status.ReadyReplicas != 2 {
		t.Errorf("ready = %d (%v), want 2", d.Status.ReadyReplicas, err)
	}
}

// members are the processes in a network, by number: those with a thread there.
func members(t *testing.T, network string) []int {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*/ns/net")
	if err != nil || len(links) == 0 {
		t.Fatalf("no processes: %v", err)
	}
	var pids []int
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && to == network { // those that have ended have none
			pid, err := strconv.Atoi(strings.Split(link, "/")[2])
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(pids, pid) {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func network(t *testing.T, c *Cluster) string {
	t.Helper()
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", c.node.first.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// memory is how much the cluster's processes take, in MB: what several share is
// counted once.
func memory(t *testing.T, c *Cluster) int {
	t.Helper()
	sum := 0
	for _, pid := range members(t, network(t, c)) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // ended
		}
		for line := range strings.Lines(string(text)) {
			var kb int
			if _, err := fmt.Sscanf(line, "Pss: %d kB", &kb); err == nil {
				sum += kb
			}
		}
	}
	return sum >> 10
}

// nothing fails the test if anything is left of a cluster.
func nothing(t *testing.T, dir, network string) {
	t.Helper()
	if pids := members(t, network); len(pids) > 0 {
		t.Errorf("processes are left: %v", pids)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("folder %s is left (%v)", dir, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), filepath.Base(dir)) {
		t.Errorf("mounts are left (%v):\n%s", err, mounts)
	}
	err = eachCgroup(filepath.Base(dir), func(path string) error {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("control group %s is left (%v)", path, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestStop leaves nothing, with pods running, one of them with a volume in memory.
func TestStop(t *testing.T) {
	backend := image(t, Backend) // buildah has folders of its own that it makes when it first runs
	before := traces(t)
	c := For(t)
	c.Import(t, backend)
	c.Kubectl(t, "apply", "-f", "testdata/httpbin.yaml")
	c.Kubectl(t, "rollout", "status", "deployment/httpbin", "--timeout=60s")
	network := network(t, c)
	if len(members(t, network)) < 8 {
		t.Errorf("processes = %v, want etcd and seven more at least", members(t, network))
	}
	if err := c.Stop(); err != nil {
		t.Error(err)
	}
	nothing(t, c.dir, network)
	if err := c.Stop(); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if after := traces(t); !slices.Equal(before, after) {
		t.Errorf("the machine was\n%q, is\n%q", before, after)
	}
}

// traces is where a kubelet, containerd and kube-proxy on this machine itself
// would leave something.
func traces(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, path := range []string{"/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/panic", "/proc/sys/kernel/panic_on_oops", "/proc/sys/net/ipv4/ip_forward"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, path+" "+string(text))
	}
	for _, dir := range []string{"/run", "/run/netns", "/run/containerd", "/var/lib", "/var/lib/cni", "/var/lib/kubelet", "/var/log", "/sys/class/net"} {
		entries, _ := os.ReadDir(dir) // most are not there
		for _, e := range entries {
			all = append(all, filepath.Join(dir, e.Name()))
		}
	}
	return all
}

const killed = "CHANDLER_KUBE_KILLED"

// TestKilled kills a test that has a cluster: its processes end, and the next
// cluster removes the rest.
func TestKilled(t *testing.T) {
	if os.Getenv(killed) != "" {
		c := For(t)
		fmt.Println("cluster", c.dir, network(t, c))
		<-t.Context().Done() // which does not come
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), killed+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill() // it may be gone already
		cmd.Wait()
	})
	var dir, network string
	for lines := bufio.NewReader(out); dir == ""; {
		line, err := lines.ReadString('\n')
		fmt.Sscanf(line, "cluster %s %s", &dir, &network)
		if err == io.EOF {
			t.Fatal("the test to be killed has ended")
		}
	}
	if len(members(t, network)) < 8 {
		t.Fatalf("processes = %v", members(t, network))
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "processes of a killed test", func() error {
		if pids := members(t, network); len(pids) > 0 {
			return fmt.Errorf("left: %v", pids)
		}
		return nil
	})
	sweep()
	nothing(t, dir, network)
}

// TestFailure has a start that fails say why, and leave nothing.
func TestFailure(t *testing.T) {
	programs := t.TempDir()
	for _, name := range []string{"kubebox", "pause", "coredns"} {
		if err := os.WriteFile(filepath.Join(programs, name), []byte("#!/bin/sh\necho ready; exec sleep 60\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"etcd": "exec sleep 60", "kube-apiserver": "echo no storage >&2; exit 3"} {
		if err := os.WriteFile(filepath.Join(programs, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	before, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := Start(t.Context(), Config{Programs: programs, Cache: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "kube-apiserver ended:\nno storage") {
		t.Errorf("Start = %v, %v; want the API server's last words", c, err)
	}
	after, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	if err != nil || len(after) > len(before) {
		t.Errorf("folders are left: %v (%v)", after, err)
	}
}
