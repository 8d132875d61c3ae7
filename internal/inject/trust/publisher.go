package trust

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/chandler-proxy/chandler/internal/identity"
)

const (
	// fieldManager owns what a Publisher writes.
	fieldManager = "chandler-ca"

	// writers is how many writes are under way at once.
	writers = 2
	// Writes a second, and at once after a rest: a new bundle reaches 1,000
	// namespaces in a minute, and whoever fights over a ConfigMap meets a bound.
	writeRate  = 20
	writeBurst = 20
	// An error is met by another try, after so long and then ever longer.
	firstRetry, lastRetry = 100 * time.Millisecond, time.Minute
)

// A PublisherConfig is what a [Publisher] must be told. Client and Follow are
// required.
type PublisherConfig struct {
	Client kubernetes.Interface
	// Follow calls deliver with the bundle, and with each new one, until ctx ends:
	// identity.Authority's.
	Follow func(ctx context.Context, deliver func(bundle []byte)) error
	// Plane is who publishes. ConfigMaps of another are left alone, as
	// [identity.Plane.May] has it, while its namespace is there. Zero marks nothing.
	Plane identity.Plane
	// Found is told of each ConfigMap that is left to another, and when it is not any
	// more. It must not block. Default: nobody.
	Found func(identity.Foreign)
	Log   *slog.Logger // default: none
}

// A Publisher writes the root certificates to the ConfigMap chandler-ca-root-cert
// of every namespace, and puts it right when somebody changes or removes it. What
// else is in the ConfigMap stays. Namespaces that are being deleted are left alone, and
// so is a ConfigMap that another control plane publishes.
type Publisher struct {
	client kubernetes.Interface
	follow func(ctx context.Context, deliver func(bundle []byte)) error
	plane  identity.Plane
	found  func(identity.Foreign)
	log    *slog.Logger
	limit  *rate.Limiter

	bundle     atomic.Pointer[[]byte]
	namespaces cache.Store
	configMaps cache.Store
	queue      workqueue.TypedRateLimitingInterface[string] // names of namespaces

	mu   sync.Mutex
	left map[string]identity.Plane // owners of the ConfigMaps that are left alone, by namespace
}

// NewPublisher returns a Publisher. It does nothing until it runs.
func NewPublisher(cfg PublisherConfig) (*Publisher, error) {
	if cfg.Client == nil || cfg.Follow == nil {
		return nil, errors.New("publisher of root certificates: client and follow are required")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Found == nil {
		cfg.Found = func(identity.Foreign) {}
	}
	return &Publisher{
		client: cfg.Client,
		follow: cfg.Follow,
		plane:  cfg.Plane,
		found:  cfg.Found,
		left:   make(map[string]identity.Plane),
		log:    cfg.Log,
		limit:  rate.NewLimiter(writeRate, writeBurst),
	}, nil
}

// Run publishes until ctx ends; then it returns nil. Only one replica should run
// it, the one that leads. It is called once.
func (p *Publisher) Run(ctx context.Context) error {
	p.queue = workqueue.NewTypedRateLimitingQueue(
		workqueue.NewTypedItemExponentialFailureRateLimiter[string](firstRetry, lastRetry))
	core := p.client.CoreV1()
	var namespaces, configMaps cache.Controller
	p.namespaces, namespaces = inform(p.client, core.Namespaces(), new(corev1.Namespace), "",
		namespaceOnly, func(n cache.ObjectName) { p.queue.Add(n.Name) }, p.log)
	p.configMaps, configMaps = inform(p.client, core.ConfigMaps(metav1.NamespaceAll), new(corev1.ConfigMap), named(ConfigMapName),
		bundleOnly, func(n cache.ObjectName) { p.queue.Add(n.Namespace) }, p.log)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return run(ctx, namespaces, p.log) })
	g.Go(func() error { return run(ctx, configMaps, p.log) })
	g.Go(func() error { return p.follow(ctx, p.deliver) })
	for range writers {
		g.Go(func() error {
			// Until both are known, every ConfigMap would look as if it were missing.
			if cache.WaitForCacheSync(ctx.Done(), namespaces.HasSynced, configMaps.HasSynced) {
				p.work(ctx)
			}
			return nil
		})
	}
	g.Go(func() error {
		<-ctx.Done()
		p.queue.ShutDown()
		return nil
	})
	return g.Wait()
}

// deliver takes a new bundle, which all namespaces then need.
func (p *Publisher) deliver(bundle []byte) {
	p.bundle.Store(&bundle)
	for _, name := range p.namespaces.ListKeys() {
		p.queue.Add(name)
	}
}

func (p *Publisher) work(ctx context.Context) {
	for {
		namespace, shutdown := p.queue.Get()
		if shutdown {
			return
		}
		err := p.publish(ctx, namespace)
		if err == nil || ctx.Err() != nil {
			p.queue.Forget(namespace)
		} else {
			p.log.Warn("root certificates not published", "namespace", namespace, "error", err)
			p.queue.AddRateLimited(namespace)
		}
		p.queue.Done(namespace)
	}
}

// publish makes the ConfigMap of one namespace what it should be.
func (p *Publisher) publish(ctx context.Context, namespace string) error {
	bundle := p.bundle.Load()
	chosen, wants := p.wants(namespace)
	if !wants {
		p.leave(namespace, nil)
		p.release(namespace)
		return nil
	}
	is := p.configMap(namespace)
	if p.leave(namespace, p.foreign(is, chosen)) || bundle == nil || p.has(is, *bundle) {
		return nil
	}
	if err := p.limit.Wait(ctx); err != nil {
		return err
	}
	should := applycorev1.ConfigMap(ConfigMapName, namespace).
		WithLabels(labels()).WithLabels(p.plane.Labels()).
		WithData(map[string]string{ConfigMapKey: string(*bundle)})
	if is != nil { // and nobody has made it theirs meanwhile
		should.WithResourceVersion(is.ResourceVersion)
	}
	_, err := p.client.CoreV1().ConfigMaps(namespace).Apply(ctx, should, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	switch {
	case apierrors.IsConflict(err):
		return nil // what it is now is on its way
	case err == nil:
		p.log.Info("root certificates published", "namespace", namespace)
		return nil
	case apierrors.IsNotFound(err), apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil // the namespace was going while we wrote
	default:
		return fmt.Errorf("apply ConfigMap %s: %w", ConfigMapName, err)
	}
}

// wants says that the namespace is there, and there to stay, and which revision it
// has chosen.
func (p *Publisher) wants(namespace string) (chosen string, ok bool) {
	object, ok, err := p.namespaces.GetByKey(namespace)
	if err != nil || !ok {
		return "", false
	}
	n, ok := object.(*corev1.Namespace)
	return identity.ChosenRevision(n.GetLabels()), ok && n.DeletionTimestamp.IsZero()
}

// configMap is that of a namespace; nil if there is none to stay.
func (p *Publisher) configMap(namespace string) *corev1.ConfigMap {
	object, ok, err := p.configMaps.GetByKey(namespace + "/" + ConfigMapName)
	if err != nil || !ok {
		return nil
	}
	m, ok := object.(*corev1.ConfigMap)
	if !ok || !m.DeletionTimestamp.IsZero() {
		return nil
	}
	return m
}

// has says that m has that bundle, and that it is ours.
func (p *Publisher) has(m *corev1.ConfigMap, bundle []byte) bool {
	return m != nil && bytes.Equal([]byte(m.Data[ConfigMapKey]), bundle) && identity.PlaneOf(m.Labels) == p.plane
}

// foreign is m if another control plane has it, and is to have it. The root namespace
// of each is its own, whatever it chooses.
func (p *Publisher) foreign(m *corev1.ConfigMap, chosen string) *identity.Foreign {
	if m == nil || p.plane == (identity.Plane{}) {
		return nil
	}
	owner := identity.PlaneOf(m.Labels)
	if m.Namespace == p.plane.Namespace || m.Namespace != owner.Namespace && p.plane.May(owner, chosen) {
		return nil
	}
	if _, there := p.wants(owner.Namespace); !there {
		return nil // it is gone, with its namespace
	}
	return &identity.Foreign{
		APIVersion: "v1", Kind: "ConfigMap", Resource: "configmaps",
		Namespace: m.Namespace, Name: m.Name, UID: string(m.UID), Owner: owner,
	}
}

// leave notes whether the ConfigMap of a namespace is left to another, and reports it.
func (p *Publisher) leave(namespace string, f *identity.Foreign) bool {
	p.mu.Lock()
	before, was := p.left[namespace]
	if f == nil {
		delete(p.left, namespace)
	} else {
		p.left[namespace] = f.Owner
	}
	p.mu.Unlock()
	switch {
	case f != nil && before != f.Owner:
		p.found(*f)
	case f == nil && was:
		p.found(identity.Foreign{Resource: "configmaps", Namespace: namespace, Name: ConfigMapName})
	}
	return f != nil
}

// release looks again at what was left to the control plane of a namespace that is gone.
func (p *Publisher) release(namespace string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for of, owner := range p.left {
		if owner.Namespace == namespace {
			p.queue.Add(of)
		}
	}
}

// namespaceOnly is what a Publisher needs of a namespace.
func namespaceOnly(object any) (any, error) {
	n, ok := object.(*corev1.Namespace)
	if !ok {
		return object, nil
	}
	slimmed := &corev1.Namespace{ObjectMeta: slim(&n.ObjectMeta)}
	slimmed.Labels = n.Labels
	return slimmed, nil
}

// bundleOnly is what a Publisher needs of a ConfigMap.
func bundleOnly(object any) (any, error) {
	m, ok := object.(*corev1.ConfigMap)
	if !ok {
		return object, nil
	}
	slimmed := &corev1.ConfigMap{ObjectMeta: slim(&m.ObjectMeta)}
	slimmed.Labels = m.Labels
	if bundle, ok := m.Data[ConfigMapKey]; ok {
		slimmed.Data = map[string]string{ConfigMapKey: bundle}
	}
	return slimmed, nil
}
