//go:build e2e

package trust

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/chandler-proxy/chandler/internal/identity"
)

// A cluster is a real one: admin may do all, ours only what the package says that
// it needs, with the test's own namespace as the root namespace.
type cluster struct {
	admin, ours kubernetes.Interface
	namespace   string
}

func openCluster(t *testing.T) cluster {
	t.Helper()
	path := os.Getenv("CHANDLER_KUBECONFIG")
	if path == "" {
		t.Skip("CHANDLER_KUBECONFIG names no cluster's kubeconfig")
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst = 200, 200
	c := cluster{admin: connect(t, config)}
	c.namespace = c.newNamespace(t)
	c.grant(t)
	ours := rest.CopyConfig(config)
	ours.Impersonate.UserName = "system:serviceaccount:" + c.namespace + ":chandler"
	c.ours = connect(t, ours)
	return c
}

func connect(t *testing.T, config *rest.Config) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func (c cluster) newNamespace(t *testing.T) string {
	t.Helper()
	n, err := c.admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "trust-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.admin.CoreV1().Namespaces().Delete(context.WithoutCancel(t.Context()), n.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
	return n.Name
}

// grant gives the service account chandler of the root namespace the rights that
// the package's documentation lists, and no others.
func (c cluster) grant(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	rule := func(group, resource, name string, verbs ...string) rbacv1.PolicyRule {
		r := rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: verbs}
		if name != "" {
			r.ResourceNames = []string{name}
		}
		return r
	}
	meta := metav1.ObjectMeta{Name: c.namespace + "-trust"}
	subjects := []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: c.namespace, Name: "chandler"}}
	rbac := c.admin.RbacV1()
	_, err1 := rbac.ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{
		rule("authentication.k8s.io", "tokenreviews", "", "create"),
		rule("", "namespaces", "", "list", "watch"),
		rule("", "configmaps", ConfigMapName, "get", "list", "watch", "create", "patch"),
	}}, metav1.CreateOptions{})
	_, err2 := rbac.ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: meta, Subjects: subjects,
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: meta.Name}}, metav1.CreateOptions{})
	_, err3 := rbac.Roles(c.namespace).Create(ctx, &rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{
		rule("", "secrets", SecretName, "get", "list", "watch", "update"),
		rule("", "secrets", "", "create"),
	}}, metav1.CreateOptions{})
	_, err4 := rbac.RoleBindings(c.namespace).Create(ctx, &rbacv1.RoleBinding{ObjectMeta: meta, Subjects: subjects,
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name}}, metav1.CreateOptions{})
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if err := errors.Join(
			rbac.ClusterRoleBindings().Delete(ctx, meta.Name, metav1.DeleteOptions{}),
			rbac.ClusterRoles().Delete(ctx, meta.Name, metav1.DeleteOptions{}),
		); err != nil {
			t.Error(err)
		}
	})
}

// token asks for one of the namespace's service account httpbin, bound to a pod
// if one is given.
func (c cluster) token(t *testing.T, namespace string, pod *corev1.Pod, audiences ...string) string {
	t.Helper()
	spec := authenticationv1.TokenRequestSpec{Audiences: audiences, ExpirationSeconds: new(int64(600))}
	if pod != nil {
		spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}
	}
	request, err := c.admin.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), "httpbin",
		&authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return request.Status.Token
}

// workload makes a service account httpbin and a pod of it, which nothing runs.
func (c cluster) workload(t *testing.T, namespace string) *corev1.Pod {
	t.Helper()
	ctx := t.Context()
	if _, err := c.admin.CoreV1().ServiceAccounts(namespace).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "httpbin"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod, err := c.admin.CoreV1().Pods(namespace).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "httpbin-1"},
		Spec: corev1.PodSpec{
			ServiceAccountName:           "httpbin",
			AutomountServiceAccountToken: new(false),
			Containers:                   []corev1.Container{{Name: "httpbin", Image: "none"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// TestClusterTokens: real tokens, reviewed by a real API server.
func TestClusterTokens(t *testing.T) {
	c := openCluster(t)
	ctx := t.Context()
	pod := c.workload(t, c.namespace)
	review := func(token string) (identity.Peer, error) {
		return identity.NewTokens(NewReviewer(c.ours, ""), "").Authenticate(ctx, identity.Credentials{Token: token})
	}

	bound := c.token(t, c.namespace, pod, identity.Audience)
	peer, err := review(bound)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(peer.Expires); left <= 0 || left > 11*time.Minute {
		t.Errorf("token for 10 minutes expires in %v", left)
	}
	peer.Expires = time.Time{}
	if want := (identity.Peer{Namespace: c.namespace, ServiceAccount: "httpbin", Pod: pod.Name, PodUID: string(pod.UID)}); peer != want {
		t.Errorf("peer = %+v, want %+v", peer, want)
	}
	if err := identity.Permit(peer, c.namespace, pod.Name); err != nil {
		t.Error(err)
	}
	if err := identity.Permit(peer, "default", pod.Name); status.Code(err) != codes.PermissionDenied {
		t.Errorf("another namespace: %v", err)
	}

	if peer, err = review(c.token(t, c.namespace, nil, identity.Audience)); err != nil || peer.Pod != "" || peer.Namespace != c.namespace {
		t.Errorf("token bound to nothing: %+v, %v", peer, err)
	}
	good := []byte(bound)
	good[len(good)-20] ^= 1
	for name, token := range map[string]string{
		"other audience":         c.token(t, c.namespace, pod, "vault"),
		"API server's audience":  c.token(t, c.namespace, pod),
		"signature is not right": string(good),
	} {
		// The reviewer alone, without what a token says of itself.
		if _, err := NewReviewer(c.ours, "").Review(ctx, token); !errors.Is(err, identity.ErrRefused) {
			t.Errorf("%s: %v, want ErrRefused", name, err)
		}
		if _, err := review(token); !errors.Is(err, identity.ErrRefused) {
			t.Errorf("%s: %v, want ErrRefused", name, err)
		}
	}

	if err := c.admin.CoreV1().Pods(c.namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil {
		t.Fatal(err)
	}
	await(t, "the token of a pod that is gone to be refused", func() bool {
		_, err := review(bound) // the API server remembers, too, for some seconds
		return errors.Is(err, identity.ErrRefused)
	})
}

// await polls: there is nothing to watch for what it waits for.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-ticker.C:
		}
	}
}

// TestClusterSecret: replicas that start at once have one CA, and of saves at once
// one wins.
func TestClusterSecret(t *testing.T) {
	c := openCluster(t)
	ctx := t.Context()
	bundles := make([][]byte, 6)
	var g errgroup.Group
	for i := range bundles {
		g.Go(func() error {
			a, err := identity.Open(ctx, identity.AuthorityConfig{
				Keeper: NewSecretKeeper(c.ours, c.namespace, nil),
				Names:  []string{"chandler." + c.namespace + ".svc"},
			})
			if err == nil {
				bundles[i] = a.Bundle()
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, b := range bundles[1:] {
		if !bytes.Equal(b, bundles[0]) {
			t.Fatal("replicas have made more than one CA")
		}
	}

	k := NewSecretKeeper(c.ours, c.namespace, nil)
	kept, err := k.Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	watching, stop := context.WithCancel(ctx)
	changes := make(chan struct{}, 10)
	watched := make(chan error, 1)
	go func() { watched <- k.Watch(watching, func() { changes <- struct{}{} }) }()
	<-changes // it is there
	errs := make([]error, 6)
	for i := range errs {
		g.Go(func() error {
			errs[i] = NewSecretKeeper(c.ours, c.namespace, nil).Save(ctx, append(kept.Data, ' '), kept.Version)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, identity.ErrConflict):
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d of %d saves of one version succeeded", won, len(errs))
	}
	<-changes // it is told
	stop()
	if err := <-watched; err != nil {
		t.Error(err)
	}
}

// TestClusterPublisher: every namespace has the bundle, also a new one, and keeps it.
func TestClusterPublisher(t *testing.T) {
	c := openCluster(t)
	ctx := t.Context()
	bundles := make(chan []byte)
	p, err := NewPublisher(PublisherConfig{Client: c.ours, Follow: func(ctx context.Context, deliver func([]byte)) error {
		for {
			select {
			case b := <-bundles:
				deliver(b)
			case <-ctx.Done():
				return nil
			}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- p.Run(running) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		c.removeAll(t)
	}()
	maps := func(namespace string) func() bool { return func() bool { return c.has(t, namespace, "one") } }
	other := c.newNamespace(t)
	bundles <- []byte("one")
	await(t, "the root namespace to have the bundle", maps(c.namespace))
	await(t, "another to have the bundle", maps(other))
	await(t, "the default namespace to have the bundle", maps("default"))
	later := c.newNamespace(t)
	await(t, "a new namespace to have the bundle", maps(later))

	configMaps := c.admin.CoreV1().ConfigMaps(other)
	edited, err := configMaps.Get(ctx, ConfigMapName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	edited.Data = map[string]string{ConfigMapKey: "mallory", "other": "y"}
	if _, err := configMaps.Update(ctx, edited, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, "the bundle to be put right", maps(other))
	repaired, err := configMaps.Get(ctx, ConfigMapName, metav1.GetOptions{})
	if err != nil || repaired.Data["other"] != "y" {
		t.Errorf("what somebody has added is gone: %v, %v", repaired.Data, err)
	}
	if err := c.admin.CoreV1().ConfigMaps(later).Delete(ctx, ConfigMapName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, "the ConfigMap to be put back", maps(later))
	bundles <- []byte("two")
	await(t, "the new bundle to be everywhere", func() bool { return c.has(t, other, "two") && c.has(t, later, "two") && c.has(t, "default", "two") })
}

func (c cluster) has(t *testing.T, namespace, bundle string) bool {
	t.Helper()
	m, err := c.admin.CoreV1().ConfigMaps(namespace).Get(t.Context(), ConfigMapName, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil && m.Data[ConfigMapKey] == bundle
}

// removeAll leaves the cluster's other namespaces as they were.
func (c cluster) removeAll(t *testing.T) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	list, err := c.admin.CoreV1().ConfigMaps("").List(ctx, metav1.ListOptions{FieldSelector: named(ConfigMapName)})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list.Items {
		if err := c.admin.CoreV1().ConfigMaps(m.Namespace).Delete(ctx, m.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	}
}
