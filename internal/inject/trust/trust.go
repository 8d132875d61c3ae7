// Package trust is what package identity needs of Kubernetes: the check of
// service-account tokens ([Reviewer]), the place where the CA is kept
// ([SecretKeeper]) and the way its roots reach every namespace ([Publisher]).
//
// It makes no certificate and decides about no proxy; it never logs what a token
// or the CA's Secret holds. (client-go itself logs requests with their bodies at
// klog verbosity 8: leave it below.) Objects are read one by one or watched by
// name, so that RBAC can be by resourceNames:
//
//   - tokenreviews.authentication.k8s.io: create
//   - secrets named chandler-ca in the root namespace: get, list, watch, update;
//     secrets there: create
//   - namespaces: list, watch
//   - configmaps named chandler-ca-root-cert everywhere: get, list, watch, create,
//     patch (create by its name is enough, since it is done by server-side apply)
//
// Who runs a Publisher leads; the other two are every replica's.
package trust

import (
	"context"
	"log/slog"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

const (
	// SecretName is the Secret of the root namespace that keeps the CA.
	SecretName = "chandler-ca"
	// ConfigMapName is the ConfigMap of every namespace with the root certificates.
	ConfigMapName = "chandler-ca-root-cert"
	// ConfigMapKey is its key, and so the name of the file that a pod mounts.
	ConfigMapKey = "root-cert.pem"
)

// labels are on all that this package writes.
func labels() map[string]string { return map[string]string{"app": "chandler"} }

// named selects objects of one name: a list or watch with it is authorized by
// resourceNames.
func named(name string) string {
	return fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
}

// A lister is the part of a typed client that an informer stands on.
type lister[L runtime.Object] interface {
	List(ctx context.Context, opts metav1.ListOptions) (L, error)
	Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error)
}

// inform returns a store of what objects holds by that field selector, without
// what strip takes away, and what runs it. Of each change it calls changed with
// the object's key.
func inform[L runtime.Object](client any, objects lister[L], kind runtime.Object, selector string, strip cache.TransformFunc, changed func(cache.ObjectName), log *slog.Logger) (cache.Store, cache.Controller) {
	logger := logr.FromSlogHandler(log.Handler())
	tell := func(object any) {
		if name, err := cache.DeletionHandlingObjectToName(object); err == nil {
			changed(name)
		}
	}
	return cache.NewInformerWithOptions(cache.InformerOptions{
		Logger: &logger,
		ListerWatcher: cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
				opts.FieldSelector = selector
				return objects.List(ctx, opts)
			},
			WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
				opts.FieldSelector = selector
				return objects.Watch(ctx, opts)
			},
		}, client),
		ObjectType: kind,
		Transform:  strip,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    tell,
			UpdateFunc: func(_, object any) { tell(object) },
			DeleteFunc: tell,
		},
	})
}

// run runs an informer until ctx ends. Its messages go to log.
func run(ctx context.Context, c cache.Controller, log *slog.Logger) error {
	c.RunWithContext(klog.NewContext(ctx, logr.FromSlogHandler(log.Handler())))
	return nil
}
