package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/util/csaupgrade"
	"k8s.io/client-go/util/workqueue"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/chandler-proxy/chandler/internal/identity"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// fieldManager is whose the fields are that are applied.
const fieldManager = "chandler-gateway"

// A Config is what a Controller needs. Client, Options and Log are required.
type Config struct {
	Client  dynamic.Interface
	Options Options
	Log     *slog.Logger

	// Plane is who controls. Its revision is part of the names of its controller and
	// class; what another of the same revision has is left to it while There says that
	// its namespace is there. Zero is the only one.
	Plane identity.Plane
	There func(namespace string) bool // default: always
	// Found is told whether the class is left to another, now and then. It must not
	// block. Default: nobody.
	Found func(identity.Foreign)
}

// A Controller keeps Gateways deployed and their status up to date, at one API
// server. Of several replicas only one may run, which its caller sees to.
type Controller struct {
	client dynamic.Interface
	opts   Options
	log    *slog.Logger
	cache  *caches
	plane  identity.Plane
	there  func(namespace string) bool
	found  func(identity.Foreign)

	mu    sync.Mutex
	known Known                                      // World is nil before the first
	queue workqueue.TypedRateLimitingInterface[task] // nil before Run

	failures map[types.NamespacedName]string // of the last try to deploy; of Run alone
}

// A task is one thing to look after. Many causes become one task.
type task struct {
	work work
	name types.NamespacedName
}

type work int

const (
	classStatus work = iota
	deploy
	gatewayStatus
	routeStatus
)

// New returns a Controller that has not begun to look.
func New(cfg Config) *Controller {
	c := &Controller{
		client: cfg.Client, opts: cfg.Options, log: cfg.Log,
		plane: cfg.Plane, there: cfg.There, found: cfg.Found,
		failures: map[types.NamespacedName]string{},
	}
	if c.there == nil {
		c.there = func(string) bool { return true }
	}
	if c.found == nil {
		c.found = func(identity.Foreign) {}
	}
	c.cache = newCaches(cfg.Client, c.add)
	c.cache.controller = ControllerOf(cfg.Plane.Revision)
	return c
}

// add queues a task, unless nobody does any yet: what there is to do is found when
// the caches are read.
func (c *Controller) add(t task) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.queue != nil {
		c.queue.Add(t)
	}
}

// open makes the queue, which has goroutines of its own until it is shut down.
func (c *Controller) open() workqueue.TypedRateLimitingInterface[task] {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[task](100*time.Millisecond, time.Minute))
	return c.queue
}

// Deliver takes the mesh as it is now, and what translate found wrong with it: of
// them Secrets, Services, labels of namespaces and problems go into status. No
// status of a Gateway or a route is written before the first. Safe for concurrent
// use.
func (c *Controller) Deliver(world *mesh.World, problems []resource.Problem) {
	c.mu.Lock()
	c.known = Known{World: world, Problems: problems, Revision: c.plane.Revision}
	c.mu.Unlock()
	c.cache.all(c.add)
}

// Run deploys and tells until ctx ends. It is called once. Where the Gateway API's
// definitions are missing it waits for them.
func (c *Controller) Run(ctx context.Context) error {
	queue := c.open()
	defer queue.ShutDown()
	g, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, queue.ShutDown)()
	synced := make(chan struct{})
	g.Go(func() error { return c.cache.run(ctx, c.log, func() { close(synced) }) })
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-synced:
			queue.Add(task{classStatus, types.NamespacedName{Name: ClassOf(c.plane.Revision)}})
			c.serve(ctx, queue)
		}
		return nil
	})
	return g.Wait()
}

// serve does tasks until the queue is shut down.
func (c *Controller) serve(ctx context.Context, queue workqueue.TypedRateLimitingInterface[task]) {
	for {
		t, over := queue.Get()
		if over {
			return
		}
		err := c.do(ctx, t)
		switch {
		case err == nil:
			queue.Forget(t)
		case ctx.Err() == nil:
			if !isStale(err) {
				c.log.Warn("gateway not up to date", "name", t.name.String(), "err", err)
			}
			queue.AddRateLimited(t)
		}
		queue.Done(t)
	}
}

func (c *Controller) do(ctx context.Context, t task) error {
	if c.yields() {
		return nil
	}
	switch t.work {
	case classStatus:
		return c.class(ctx, t.name.Name)
	case deploy:
		return c.deploy(ctx, t.name)
	case gatewayStatus:
		return c.gateway(ctx, t.name)
	default:
		return c.route(ctx, t.name)
	}
}

// now is what is known, as of now; false before the first World.
func (c *Controller) now() (Known, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := c.known
	known.Now = time.Now()
	return known, known.World != nil
}

// class makes the GatewayClass of our name if there is none, and writes the status
// of those of ours.
func (c *Controller) class(ctx context.Context, name string) error {
	class := get[*gatewayv1.GatewayClass](c.cache.classes, types.NamespacedName{Name: name})
	if class == nil {
		if name != ClassOf(c.plane.Revision) {
			return nil
		}
		_, err := c.client.Resource(c.cache.classes.resource).Create(ctx, ownClass(c.plane), metav1.CreateOptions{FieldManager: fieldManager})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create GatewayClass %s: %w", name, err)
		}
		return nil
	}
	if class.Spec.ControllerName != c.cache.controller {
		return nil
	}
	return c.writeStatus(ctx, c.cache.classes, class, class.Status, ClassStatus(class, time.Now()))
}

func ownClass(plane identity.Plane) *unstructured.Unstructured {
	class := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": gatewayv1.GroupVersion.String(), "kind": "GatewayClass",
		"metadata": map[string]any{"name": ClassOf(plane.Revision)},
		"spec": map[string]any{
			"controllerName": string(ControllerOf(plane.Revision)),
			"description":    "Proxies of Chandler, deployed for each Gateway.",
		},
	}}
	class.SetLabels(plane.Labels())
	return class
}

// deploy makes a Gateway's objects what they are to be, and removes those that
// are not to be.
func (c *Controller) deploy(ctx context.Context, name types.NamespacedName) error {
	g := get[*gatewayv1.Gateway](c.cache.gateways, name)
	if g == nil { // the API server removes what it owned
		delete(c.failures, name)
		return nil
	}
	var wanted []resource.Object
	if c.cache.ours(g) {
		wanted = Desired(g, c.opts)
	}
	err := c.applyAll(ctx, g, wanted)
	if err == nil {
		err = c.prune(ctx, g, wanted)
	}
	delete(c.failures, name)
	if err != nil && !isStale(err) {
		c.failures[name] = err.Error()
	}
	c.add(task{gatewayStatus, name})
	return err
}

func (c *Controller) applyAll(ctx context.Context, g *gatewayv1.Gateway, wanted []resource.Object) error {
	for _, o := range wanted {
		if err := c.apply(ctx, g, o); err != nil {
			return fmt.Errorf("apply %s %s: %w", o.GetObjectKind().GroupVersionKind().Kind, o.GetName(), err)
		}
	}
	return nil
}

// A foreignError is that someone else has an object of the name that a Gateway's
// has to have.
type foreignError struct{ gateway string }

func (e *foreignError) Error() string {
	return "it is there and does not belong to Gateway " + e.gateway + "; remove one of them"
}

// apply makes o, unless an object of its name is there that is not g's. It changes only
// what it has looked at, and makes only what is not there: g may have been deleted, made
// anew and deployed by another replica meanwhile, or a user may have been faster.
func (c *Controller) apply(ctx context.Context, g *gatewayv1.Gateway, o resource.Object) error {
	client := c.client.Resource(c.cache.resourceOf(o)).Namespace(o.GetNamespace())
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return err
	}
	delete(content, "status")
	wanted := &unstructured.Unstructured{Object: content}
	there, err := client.Get(ctx, o.GetName(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		// an apply cannot be told that there must be nothing
		there, err = client.Create(ctx, wanted, metav1.CreateOptions{FieldManager: fieldManager})
	case err == nil && !metav1.IsControlledBy(there, g):
		return &foreignError{g.Name}
	}
	if err != nil {
		return err
	}
	if there, err = own(ctx, client, there); err != nil {
		return err
	}
	wanted.SetResourceVersion(there.GetResourceVersion())
	_, err = client.Apply(ctx, o.GetName(), wanted, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	return err
}

// own makes the fields that an object was created with those that were applied, so
// that the next apply takes away what it leaves out.
func own(ctx context.Context, client dynamic.ResourceInterface, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	patch, err := csaupgrade.UpgradeManagedFieldsPatch(o, sets.New(fieldManager), fieldManager)
	if err != nil || patch == nil {
		return o, err
	}
	return client.Patch(ctx, o.GetName(), types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
}

// isStale says of an error that it is because someone else was faster: their change
// comes, too.
func isStale(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }

// resourceOf is where the API server has objects of o's kind.
func (c *caches) resourceOf(o resource.Object) schema.GroupVersionResource {
	switch o.(type) {
	case *appsv1.Deployment:
		return c.deployments.resource
	case *corev1.Service:
		return c.services.resource
	default:
		return c.serviceAccounts.resource
	}
}

// prune removes those of g's objects that are not wanted: g is of another class
// now, or deployed by its user, or cannot be served.
func (c *Controller) prune(ctx context.Context, g *gatewayv1.Gateway, wanted []resource.Object) error {
	for gvr, o := range c.cache.owned(g) {
		if slices.ContainsFunc(wanted, func(w resource.Object) bool { return c.cache.resourceOf(w) == gvr && w.GetName() == o.GetName() }) {
			continue
		}
		uid := o.GetUID()
		err := c.client.Resource(gvr).Namespace(g.Namespace).Delete(ctx, o.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete %s %s: %w", gvr.Resource, o.GetName(), err)
		}
	}
	return nil
}

func (c *Controller) gateway(ctx context.Context, name types.NamespacedName) error {
	g := get[*gatewayv1.Gateway](c.cache.gateways, name)
	known, ok := c.now()
	if g == nil || !ok || !c.cache.ours(g) {
		return nil
	}
	d := Deployment{Failure: c.failures[name]}
	for _, o := range c.cache.owned(g) {
		switch o := o.(type) {
		case *corev1.Service:
			d.Service = o
		case *appsv1.Deployment:
			d.Available = o.Status.AvailableReplicas
		}
	}
	return c.writeStatus(ctx, c.cache.gateways, g, g.Status, GatewayStatus(g, d, list[*gatewayv1.HTTPRoute](c.cache.routes), known))
}

func (c *Controller) route(ctx context.Context, name types.NamespacedName) error {
	route := get[*gatewayv1.HTTPRoute](c.cache.routes, name)
	known, ok := c.now()
	if route == nil || !ok {
		return nil
	}
	return c.writeStatus(ctx, c.cache.routes, route, route.Status, gatewayv1.HTTPRouteStatus{
		RouteStatus: RouteStatus(route, c.cache.ourGateways(), known),
	})
}

// writeStatus writes the status of o, which is old, if it is to be another.
func (c *Controller) writeStatus(ctx context.Context, at *reader, o resource.Object, old, status any) error {
	if equality.Semantic.DeepEqual(old, status) {
		return nil
	}
	patch, err := statusPatch(o, old, status)
	if err != nil {
		return err
	}
	_, err = c.client.Resource(at.resource).Namespace(o.GetNamespace()).
		Patch(ctx, o.GetName(), types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager}, "status")
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write status of %s %s: %w", at.resource.Resource, o.GetName(), err)
	}
	return nil
}

// statusPatch makes status of old, as a merge patch (RFC 7386): what is not to be
// there any more is null. It is for o as it was read alone, because others write
// to the same lists.
func statusPatch(o resource.Object, old, status any) ([]byte, error) {
	before, err := asMap(old)
	if err != nil {
		return nil, err
	}
	after, err := asMap(status)
	if err != nil {
		return nil, err
	}
	for key := range before {
		if _, stays := after[key]; !stays {
			after[key] = nil
		}
	}
	return json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": o.GetResourceVersion()}, "status": after})
}

func asMap(v any) (out map[string]any, err error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return out, json.Unmarshal(text, &out)
}
