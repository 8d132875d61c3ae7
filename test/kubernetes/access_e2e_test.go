//go:build e2e

package kubernetes

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chandler-proxy/chandler/test/kube"
)

// proxyPod is a pod with nothing but a proxy, as a user of the namespace may make
// one: it calls itself id, and shows the token that it has for that audience, or
// none.
func proxyPod(name, id, audience string) string {
	token := "--token=/token/token"
	if audience == "" {
		token, audience = "--log-level=info", "unused"
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {sidecar.istio.io/inject: "false"}}
spec:
  containers:
  - name: proxy
    image: chandler
    imagePullPolicy: IfNotPresent
    args: [agent, --proxy=engine, --control=%s:15012, --ca=/ca/root-cert.pem, %s, "--id=%s", --data=/data, --status=0.0.0.0:15020]
    env:
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    securityContext: {runAsUser: 1337}
    readinessProbe: {httpGet: {path: /healthz/ready, port: 15020}, periodSeconds: 1}
    volumeMounts: [{name: ca, mountPath: /ca}, {name: token, mountPath: /token}, {name: data, mountPath: /data}, {name: data, mountPath: /tmp}]
  volumes:
  - name: ca
    configMap: {name: chandler-ca-root-cert}
  - name: token
    projected: {sources: [{serviceAccountToken: {audience: %s, path: token}}]}
  - name: data
    emptyDir: {}
---
`, name, control, token, id, audience)
}

// TestIdentity: a proxy gets the configuration of the namespace and the pod that its
// token names, and of no other.
func TestIdentity(t *testing.T) {
	c := installed(t)
	t.Parallel()
	ownNamespace(t, c, "victim")
	ownNamespace(t, c, "mallory")
	apply(t, c, "victim", httpbin("bank", 1, ""), "bank")
	id := func(pod, namespace string) string {
		return "sidecar~$(IP)~" + pod + "." + namespace + "~" + namespace + ".svc.cluster.local"
	}
	bank := pods(t, c, "victim", "app=bank")[0]
	const audience = "chandler-ca"
	refused := map[string]string{ // by pod: what it is told
		"other-namespace": "PermissionDenied",
		"other-pod":       "PermissionDenied",
		"other-audience":  "Unauthenticated",
		"no-token":        "Unauthenticated",
	}
	apply(t, c, "mallory", proxyPod("own", id("own", "mallory"), audience)+
		proxyPod("other-namespace", id(bank, "victim"), audience)+
		proxyPod("other-pod", id("own", "mallory"), audience)+
		proxyPod("other-audience", id("other-audience", "mallory"), "https://kubernetes.default.svc.cluster.local")+
		proxyPod("no-token", id("no-token", "mallory"), ""))
	dump := func(pod string) string {
		return c.Kubectl(t, "exec", "-n", "mallory", pod, "--", "curl", "-s", "localhost:15000/config_dump")
	}
	// That the pods are what they should be but for their credential, this one shows.
	c.Kubectl(t, "wait", "-n", "mallory", "--for=condition=Ready", "pod/own", "--timeout=60s")
	if err := contains(dump("own"), "outbound|80||bank.victim"); err != nil {
		t.Errorf("configuration of the pod that is who it says: %v", err)
	}
	for pod, code := range refused {
		eventually(t, pod, func() error {
			log := c.Kubectl(t, "logs", "-n", "mallory", pod)
			return contains(log, code)
		})
		if d := dump(pod); strings.Contains(d, "outbound|") {
			t.Errorf("%s has a configuration:\n%s", pod, d)
		}
		if ready := c.Kubectl(t, "get", "pod", "-n", "mallory", pod, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`); ready != "False" {
			t.Errorf("%s: ready is %s", pod, ready)
		}
	}
	for _, r := range replicas(t, c) {
		proxies := c.Kubectl(t, "exec", "-n", root, r.name, "--", "curl", "-s", "localhost:15014/debug/syncz")
		if strings.Contains(proxies, bank) {
			t.Errorf("%s counts who has a stolen name:\n%s", r.name, proxies)
		}
	}
}

// TestPullSecret: a registry that wants a password, and what happens to a plugin
// while the Secret with it is right, wrong, missing and right again. The password
// comes to nobody's eyes.
func TestPullSecret(t *testing.T) {
	c := installed(t)
	t.Parallel()
	password := rand.Text()
	registry := c.PrivateRegistry(t, 5010, "puller", password)
	ownNamespace(t, c, "private", "istio-injection=enabled")
	dist, err := filepath.Abs("../../plugins/dist")
	if err != nil {
		t.Fatal(err)
	}
	for tag, module := range map[string]string{"v1": "header-counter.wasm", "v2": "basic-auth.wasm", "v3": "header-counter.wasm"} {
		push := c.Command(t.Context(), binary(t), "plugin", "push", "--insecure-registries", registry, "--username", "puller", "--password-stdin",
			registry+"/private:"+tag, filepath.Join(dist, module))
		push.Stdin = strings.NewReader(password)
		if out, err := push.CombinedOutput(); err != nil {
			t.Fatalf("push: %v: %s", err, out)
		}
	}
	secret := func(password string) {
		t.Helper()
		out := c.Kubectl(t, "create", "secret", "docker-registry", "-n", "private", "pull", "--docker-server="+registry,
			"--docker-username=puller", "--docker-password="+password, "--dry-run=client", "-o", "yaml")
		c.KubectlInput(t, out, "apply", "-f", "-")
	}
	plugin := func(tag, value string) {
		t.Helper()
		apply(t, c, "private", `
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: private}
spec:
  url: oci://`+registry+`/private:`+tag+`
  imagePullSecret: pull
  pluginConfig: {step: "`+value+`"}
`)
	}
	secret(password)
	plugin("v1", "one")
	// The sidecars are told, by their user, that the registry has no TLS.
	own := "      containers:\n      - {name: istio-proxy, image: auto, env: [{name: WASM_INSECURE_REGISTRIES, value: \"" + registry + "\"}]}\n"
	apply(t, c, "private", strings.ReplaceAll(httpbin("engine", 1, "")+httpbin("envoy", 1, envoyPod), "      containers:\n", own), "engine", "envoy")
	urls := []string{"http://" + serviceIP(t, c, "private", "engine") + "/get", "http://" + serviceIP(t, c, "private", "envoy") + "/get"}
	serves := func(value string) {
		t.Helper()
		for _, url := range urls {
			answers(t, c, url, 200, "Step", value)
		}
	}
	serves("one")
	current(t, c, "private", "private", 2)
	load := startLoad(t, c, urls...)

	secret("wrong")
	plugin("v2", "two") // would ask for a password and so answer 401: it must not get there
	message := condition(t, c, "private", "private", "Resolved", "False Unauthorized")
	t.Logf("wrong: %s", message)
	eventually(t, "status with a wrong password", func() error {
		message = condition(t, c, "private", "private", "Programmed", "False Refused")
		return contains(message, "0 of 2 proxies run it", "2 refuse it", "envoy-", "engine-")
	})
	t.Logf("wrong: %s", message)
	serves("one")

	c.Kubectl(t, "delete", "secret", "-n", "private", "pull")
	message = condition(t, c, "private", "private", "Accepted", "False Invalid")
	t.Logf("missing: %s", message)
	if err := contains(message, "imagePullSecret", "there is no Secret private/pull", "kubectl create secret docker-registry"); err != nil {
		t.Errorf("status without the Secret: %v", err)
	}
	serves("one")
	plugin("v3", "three")
	condition(t, c, "private", "private", "Resolved", "False Unauthorized")
	serves("one")

	secret(password)
	serves("three")
	condition(t, c, "private", "private", "Accepted", "True Accepted")
	current(t, c, "private", "private", 2)
	load.end(t)
	unseen(t, c, password)
}

// unseen fails the test if a password that is part of a Secret's data is found
// anywhere but there: in logs, resources and their status, events, what proxies are
// configured with, and the control plane's pages.
func unseen(t *testing.T, c *kube.Cluster, password string) {
	t.Helper()
	texts := map[string]string{
		"resources": c.Kubectl(t, "get", "wasmplugins,events,pods,configmaps", "--all-namespaces", "-o", "yaml"),
	}
	all := c.Kubectl(t, "get", "pods", "--all-namespaces", "-o", `jsonpath={range .items[*]}{.metadata.namespace} {.metadata.name}{"\n"}{end}`)
	for line := range strings.Lines(all) {
		namespace, pod, _ := strings.Cut(strings.TrimSpace(line), " ")
		// Pods of other tests may go while we look.
		log, err := c.TryKubectl(t.Context(), "", "logs", "-n", namespace, pod, "--all-containers")
		if err != nil && namespace == "private" {
			t.Error(err)
		}
		texts["log of "+namespace+"/"+pod] = log
		if namespace != "private" {
			continue
		}
		dump := c.Kubectl(t, "exec", "-n", namespace, pod, "-c", "istio-proxy", "--", "curl", "-s", "localhost:15000/config_dump?include_eds")
		if !strings.Contains(dump, "private.private") {
			t.Errorf("configuration of %s has no plugin:\n%s", pod, dump)
		}
		texts["configuration of "+pod] = dump
		texts["metrics of "+pod] = c.Kubectl(t, "exec", "-n", namespace, pod, "-c", "istio-proxy", "--", "curl", "-s", "localhost:15020/metrics")
	}
	for _, r := range replicas(t, c) {
		page := func(path string) string {
			return c.Kubectl(t, "exec", "-n", root, r.name, "--", "curl", "-s", "localhost:15014"+path)
		}
		for _, path := range []string{"/metrics", "/debug/syncz", "/debug/extensionz", "/debug/problems", "/debug/worldz"} {
			texts[r.name+path] = page(path)
		}
		for part := range strings.SplitSeq(texts[r.name+"/debug/syncz"], `"`) {
			if strings.HasPrefix(part, "sidecar~") {
				texts[r.name+" config_dump of "+part] = page("/debug/config_dump?proxyID=" + part)
			}
		}
	}
	if !slices.ContainsFunc(slices.Collect(maps.Keys(texts)), func(name string) bool { return strings.Contains(name, "config_dump of sidecar~") }) {
		t.Error("no page of the control plane shows what a sidecar is given")
	}
	for name, text := range texts {
		for _, form := range encoded(password) {
			if strings.Contains(text, form) {
				t.Errorf("%s has the password", name)
			}
		}
	}
	t.Logf("looked for the password in %d texts", len(texts))
}

// encoded is a password as it may stand somewhere: as it is, and in base64, by
// itself, behind its user's name, and within a docker configuration, where it begins
// at any of three places.
func encoded(password string) []string {
	all := []string{password, base64.StdEncoding.EncodeToString([]byte("puller:" + password))}
	for at := range 3 {
		text := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", at) + password))
		all = append(all, text[4:len(text)-4]) // what does not depend on what is around it
	}
	return all
}

// TestRights: what the control plane may not do. That it may do what it must, all
// other tests show, which find nothing forbidden in its log.
func TestRights(t *testing.T) {
	c := installed(t)
	t.Parallel()
	rights := []struct {
		may  bool
		what []string // verb resource[/subresource] [name]; in all namespaces unless the last is -n=NAMESPACE
	}{
		{true, []string{
			"list pods", "create tokenreviews.authentication.k8s.io", "patch wasmplugins.extensions.istio.io/status",
			"get secrets", // for imagePullSecret; not with --pull-secrets=false
			"update secrets chandler-ca -n=" + root, "update leases.coordination.k8s.io chandler-leader -n=" + root,
		}},
		{false, []string{
			"create pods", "patch pods", "delete pods -n=" + root, "create pods/exec", "get pods/log", "create pods/ephemeralcontainers", "create pods/portforward",
			"update secrets", "delete secrets", "create secrets -n=default", "update secrets other -n=" + root, "delete secrets chandler-ca -n=" + root,
			"get configmaps other -n=default", "patch configmaps kube-root-ca.crt -n=default", "delete configmaps",
			"delete nodes", "get nodes/proxy", "patch nodes", "list nodes", "patch nodes/status",
			"create serviceaccounts/token", "impersonate users", "impersonate groups", "impersonate serviceaccounts",
			"escalate clusterroles.rbac.authorization.k8s.io", "bind clusterroles.rbac.authorization.k8s.io",
			"create clusterrolebindings.rbac.authorization.k8s.io", "create rolebindings.rbac.authorization.k8s.io",
			"create wasmplugins.extensions.istio.io", "update wasmplugins.extensions.istio.io", "patch wasmplugins.extensions.istio.io", "delete wasmplugins.extensions.istio.io",
			"patch virtualservices.networking.istio.io", "patch gateways.gateway.networking.k8s.io", "delete gatewayclasses.gateway.networking.k8s.io",
			"create mutatingwebhookconfigurations.admissionregistration.k8s.io", "delete mutatingwebhookconfigurations.admissionregistration.k8s.io chandler-sidecar-injector",
			"patch mutatingwebhookconfigurations.admissionregistration.k8s.io other", "patch validatingwebhookconfigurations.admissionregistration.k8s.io",
			"create customresourcedefinitions.apiextensions.k8s.io", "create namespaces", "patch namespaces", "delete namespaces",
			"create certificatesigningrequests.certificates.k8s.io", "update certificatesigningrequests.certificates.k8s.io/approval",
			"delete leases.coordination.k8s.io -n=" + root, "update leases.coordination.k8s.io other -n=kube-system", "update leases.coordination.k8s.io other -n=" + root,
			"create daemonsets.apps", "create jobs.batch", "list networkpolicies.networking.k8s.io", "list events",
		}},
	}
	for _, r := range rights {
		for i, got := range can(t, c, r.what) {
			if got != r.may {
				t.Errorf("may the control plane %s: %v", r.what[i], got)
			}
		}
	}
	// Proxies have no rights: they have no token for the API server.
	mounted := c.Kubectl(t, "get", "pods", "-n", root, "-l", "app=istio-ingressgateway", "-o", "jsonpath={.items[0].spec.volumes}")
	if strings.Contains(mounted, "kube-root-ca.crt") {
		t.Errorf("the ingress gateway has a token for the API server: %s", mounted)
	}
}

// can asks what kubectl auth can-i does, about all at once.
func can(t *testing.T, c *kube.Cluster, what []string) []bool {
	t.Helper()
	var reviews []string
	for _, right := range what {
		f := strings.Fields(right)
		attributes := map[string]string{"verb": f[0]}
		resource, sub, _ := strings.Cut(f[1], "/")
		attributes["subresource"] = sub
		attributes["resource"], attributes["group"], _ = strings.Cut(resource, ".")
		for _, more := range f[2:] {
			if namespace, ok := strings.CutPrefix(more, "-n="); ok {
				attributes["namespace"] = namespace
			} else {
				attributes["name"] = more
			}
		}
		text, err := json.Marshal(map[string]any{
			"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
			"spec": map[string]any{"user": "system:serviceaccount:" + root + ":chandler", "resourceAttributes": attributes},
		})
		if err != nil {
			t.Fatal(err)
		}
		reviews = append(reviews, string(text))
	}
	out := c.KubectlInput(t, strings.Join(reviews, "\n---\n"), "create", "-f", "-", "-o", `jsonpath={.status.allowed}{"\n"}`)
	var all []bool
	for line := range strings.Lines(out) {
		all = append(all, strings.TrimSpace(line) == "true")
	}
	if len(all) != len(what) {
		t.Fatalf("%d answers to %d questions:\n%s", len(all), len(what), out)
	}
	return all
}
