package gateway

import (
	"context"
	"iter"
	"log/slog"
	"maps"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// caches follow what the Controller reads at the API server: the Gateway API's
// kinds, and of Kubernetes' own only what was made for Gateways.
type caches struct {
	classes, gateways, routes              *reader
	deployments, services, serviceAccounts *reader

	controller gatewayv1.GatewayController // that a class of ours names
}

// newCaches returns caches that have not begun to follow. add gets the tasks that
// changes bring.
func newCaches(client dynamic.Interface, add func(task)) *caches {
	c := &caches{
		controller:      ControllerName,
		classes:         newReader(client, api("gatewayclasses"), "", func() resource.Object { return new(gatewayv1.GatewayClass) }),
		gateways:        newReader(client, api("gateways"), "", func() resource.Object { return new(gatewayv1.Gateway) }),
		routes:          newReader(client, api("httproutes"), "", func() resource.Object { return new(gatewayv1.HTTPRoute) }),
		deployments:     newReader(client, appsv1.SchemeGroupVersion.WithResource("deployments"), manager, func() resource.Object { return new(appsv1.Deployment) }),
		services:        newReader(client, corev1.SchemeGroupVersion.WithResource("services"), manager, func() resource.Object { return new(corev1.Service) }),
		serviceAccounts: newReader(client, corev1.SchemeGroupVersion.WithResource("serviceaccounts"), manager, func() resource.Object { return new(corev1.ServiceAccount) }),
	}
	c.classes.changed = func(was, is resource.Object) { c.classChanged(was, is, add) }
	c.gateways.changed = func(was, is resource.Object) { c.gatewayChanged(was, is, add) }
	c.routes.changed = func(was, is resource.Object) { routeChanged(was, is, add) }
	for _, r := range c.made() {
		r.changed = func(was, is resource.Object) { ownedChanged(was, is, add) }
	}
	return c
}

// api is a resource of the Gateway API.
func api(resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: gatewayv1.GroupName, Version: gatewayv1.GroupVersion.Version, Resource: resource}
}

// made are the readers of what is made for Gateways.
func (c *caches) made() []*reader { return []*reader{c.serviceAccounts, c.services, c.deployments} }

// run follows until ctx ends. synced is called when all of them have been read once.
func (c *caches) run(ctx context.Context, log *slog.Logger, synced func()) error {
	var following sync.WaitGroup
	defer following.Wait()
	var read []cache.InformerSynced
	for _, r := range append(c.made(), c.classes, c.gateways, c.routes) {
		if err := r.prepare(log); err != nil {
			return err
		}
		following.Go(func() { r.informer.RunWithContext(ctx) })
		read = append(read, r.informer.HasSynced)
	}
	if cache.WaitForCacheSync(ctx.Done(), read...) {
		synced()
	}
	return nil
}

// ours says whether g is of a class of ours that can be served.
func (c *caches) ours(g *gatewayv1.Gateway) bool {
	class := get[*gatewayv1.GatewayClass](c.classes, types.NamespacedName{Name: string(g.Spec.GatewayClassName)})
	return class != nil && class.Spec.ControllerName == c.controller && class.Spec.ParametersRef == nil
}

func (c *caches) ourGateways() map[types.NamespacedName]*gatewayv1.Gateway {
	out := map[types.NamespacedName]*gatewayv1.Gateway{}
	for _, g := range list[*gatewayv1.Gateway](c.gateways) {
		if c.ours(g) {
			out[nameOf(g)] = g
		}
	}
	return out
}

// owned are the objects that were made for g, and where the API server has them.
func (c *caches) owned(g *gatewayv1.Gateway) iter.Seq2[schema.GroupVersionResource, resource.Object] {
	return func(yield func(schema.GroupVersionResource, resource.Object) bool) {
		for _, r := range c.made() {
			for _, o := range list[resource.Object](r) {
				if metav1.IsControlledBy(o, g) && !yield(r.resource, o) {
					return
				}
			}
		}
	}
}

// all brings a task for every status that depends on the mesh.
func (c *caches) all(add func(task)) {
	for _, g := range list[*gatewayv1.Gateway](c.gateways) {
		add(task{gatewayStatus, nameOf(g)})
	}
	for _, r := range list[*gatewayv1.HTTPRoute](c.routes) {
		add(task{routeStatus, nameOf(r)})
	}
}

// The causes of tasks. Of was and is one may be nil: the object is new, or gone.

func (c *caches) classChanged(was, is resource.Object, add func(task)) {
	add(task{classStatus, nameOf(either(was, is))})
	if !sameSpec(was, is) {
		for _, g := range list[*gatewayv1.Gateway](c.gateways) {
			add(task{deploy, nameOf(g)})
		}
		c.all(add)
	}
}

func (c *caches) gatewayChanged(was, is resource.Object, add func(task)) {
	name := nameOf(either(was, is))
	add(task{gatewayStatus, name})
	if sameSpec(was, is) && maps.Equal(was.GetAnnotations(), is.GetAnnotations()) {
		return
	}
	add(task{deploy, name})
	for _, r := range list[*gatewayv1.HTTPRoute](c.routes) {
		for _, ref := range r.Spec.ParentRefs {
			if parent(ref, r.Namespace) == name {
				add(task{routeStatus, nameOf(r)})
			}
		}
	}
}

func routeChanged(was, is resource.Object, add func(task)) {
	add(task{routeStatus, nameOf(either(was, is))})
	if sameSpec(was, is) {
		return
	}
	for _, o := range []resource.Object{was, is} {
		if r, ok := o.(*gatewayv1.HTTPRoute); ok {
			for _, ref := range r.Spec.ParentRefs {
				add(task{gatewayStatus, parent(ref, r.Namespace)})
			}
		}
	}
}

func ownedChanged(was, is resource.Object, add func(task)) {
	o := either(was, is)
	name := types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetLabels()[mesh.GatewayNameLabel]}
	if o.GetGeneration() == 0 || !sameSpec(was, is) { // not all kinds have a generation
		add(task{deploy, name})
		return
	}
	add(task{gatewayStatus, name})
}

func either(was, is resource.Object) resource.Object {
	if is != nil {
		return is
	}
	return was
}

// sameSpec says that it is one object, of which what users write is the same.
func sameSpec(was, is resource.Object) bool {
	return was != nil && is != nil && was.GetUID() == is.GetUID() && was.GetGeneration() == is.GetGeneration()
}

func nameOf(o resource.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// A reader follows one kind. It holds objects of its Go type.
type reader struct {
	resource schema.GroupVersionResource
	informer cache.SharedIndexInformer
	new      func() resource.Object
	changed  func(was, is resource.Object)
}

// newReader follows all objects or, if managedBy is given, those so labelled.
func newReader(client dynamic.Interface, gvr schema.GroupVersionResource, managedBy string, newObject func() resource.Object) *reader {
	choose := func(opts *metav1.ListOptions) {
		if managedBy != "" {
			opts.LabelSelector = managedLabel + "=" + managedBy
		}
	}
	informer := dynamicinformer.NewFilteredDynamicInformer(client, gvr, metav1.NamespaceAll, 0, cache.Indexers{}, choose).Informer()
	return &reader{resource: gvr, informer: informer, new: newObject}
}

// prepare makes the informer do what r says. It has not begun.
func (r *reader) prepare(log *slog.Logger) error {
	if err := r.informer.SetTransform(r.decode); err != nil {
		return err
	}
	told := ""
	if err := r.informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) {
		if ctx.Err() == nil && err.Error() != told { // it goes on trying
			told = err.Error()
			log.Warn("gateway kind not followed", "resource", r.resource.GroupResource().String(), "err", err)
		}
	}); err != nil {
		return err
	}
	_, err := r.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { r.changed(nil, o.(resource.Object)) },
		UpdateFunc: func(was, is any) { r.changed(was.(resource.Object), is.(resource.Object)) },
		DeleteFunc: func(o any) {
			if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = gone.Obj
			}
			r.changed(o.(resource.Object), nil)
		},
	})
	return err
}

// decode makes an object as it is read one of its Go type.
func (r *reader) decode(in any) (any, error) {
	u, ok := in.(*unstructured.Unstructured)
	if !ok {
		return in, nil
	}
	u.SetManagedFields(nil)
	out := r.new()
	return out, runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, out)
}

// get returns the object of this name, or nil.
func get[T resource.Object](r *reader, name types.NamespacedName) (o T) {
	found, _, _ := r.informer.GetStore().GetByKey(cache.ObjectName{Namespace: name.Namespace, Name: name.Name}.String())
	o, _ = found.(T)
	return o
}

// list returns all objects, in no order.
func list[T resource.Object](r *reader) []T {
	var out []T
	for _, found := range r.informer.GetStore().List() {
		if o, ok := found.(T); ok {
			out = append(out, o)
		}
	}
	return out
}
