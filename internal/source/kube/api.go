package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// An api asks one API server.
type api struct {
	http   *http.Client
	custom *dynamic.DynamicClient
	typed  map[schema.GroupVersion]*rest.RESTClient // of Kubernetes itself
	params runtime.ParameterCodec
}

// newAPI makes the clients that config describes. It makes no connection.
func newAPI(config *rest.Config) (*api, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("read cluster configuration: %w", err)
	}
	custom, err := dynamic.NewForConfigAndClient(config, client)
	if err != nil {
		return nil, fmt.Errorf("read cluster configuration: %w", err)
	}
	scheme := runtime.NewScheme()
	a := &api{http: client, custom: custom, typed: map[schema.GroupVersion]*rest.RESTClient{}, params: runtime.NewParameterCodec(scheme)}
	codecs := serializer.NewCodecFactory(scheme)
	for gv, add := range map[schema.GroupVersion]func(*runtime.Scheme) error{
		corev1.SchemeGroupVersion: corev1.AddToScheme, discoveryv1.SchemeGroupVersion: discoveryv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register %s: %w", gv, err)
		}
		c := rest.CopyConfig(config)
		c.GroupVersion, c.APIPath = &gv, "/apis"
		if gv.Group == "" {
			c.APIPath = "/api"
		}
		c.NegotiatedSerializer = codecs.WithoutConversion()
		// A third of what JSON costs to decode, and it leaves no large strings alive.
		c.ContentType = runtime.ContentTypeProtobuf
		c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
		if a.typed[gv], err = rest.RESTClientForConfigAndClient(c, client); err != nil {
			return nil, fmt.Errorf("read cluster configuration: %w", err)
		}
	}
	return a, nil
}

// close ends connections that are not in use.
func (a *api) close() { a.http.CloseIdleConnections() }

// reader lists and watches the objects of k in one of its versions: all, or the
// only one that has a name.
func (a *api) reader(k kind, version string, one types.NamespacedName) *cache.ListWatch {
	choose := func(opts *metav1.ListOptions) {
		if one.Name != "" {
			opts.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, one.Name).String()
		}
	}
	gv := schema.GroupVersion{Group: k.Group, Version: version}
	if !k.builtIn() {
		client := a.custom.Resource(gv.WithResource(k.Resource)).Namespace(one.Namespace)
		return &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
				choose(&opts)
				return client.List(ctx, opts)
			},
			WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
				choose(&opts)
				return client.Watch(ctx, opts)
			},
		}
	}
	request := func(opts metav1.ListOptions) *rest.Request {
		choose(&opts)
		return a.typed[gv].Get().NamespaceIfScoped(one.Namespace, one.Namespace != "").Resource(k.Resource).VersionedParams(&opts, a.params)
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			list := k.list()
			return list, request(opts).Do(ctx).Into(list)
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			opts.Watch = true
			return request(opts).Watch(ctx)
		},
	}
}

// served finds out in which version each of the kinds can be read: the best one
// that the API server has. A kind that it does not have is left out.
//
// It asks for the whole list of groups first: that one is not found, which is
// how a missing group looks, might be the answer of something in between.
func (a *api) served(ctx context.Context, kinds []kind) (map[schema.GroupResource]string, error) {
	var groups metav1.APIGroupList
	if err := a.ask(ctx, "/apis", "APIGroupList", &groups); err != nil {
		return nil, err
	}
	has := map[schema.GroupVersion]bool{}
	for _, g := range groups.Groups {
		for _, v := range g.Versions {
			has[schema.GroupVersion{Group: g.Name, Version: v.Version}] = true
		}
	}
	asked := map[schema.GroupVersion]metav1.APIResourceList{}
	found := map[schema.GroupResource]string{}
	for _, k := range kinds {
		for _, version := range k.versions {
			gv := schema.GroupVersion{Group: k.Group, Version: version}
			list, known := asked[gv]
			if has[gv] && !known {
				if err := a.ask(ctx, "/apis/"+gv.String(), "APIResourceList", &list); err != nil {
					return nil, err
				}
				asked[gv] = list
			}
			if hasResource(list, k.Resource) {
				found[k.GroupResource] = version
				break
			}
		}
	}
	return found, nil
}

func hasResource(list metav1.APIResourceList, name string) bool {
	for _, r := range list.APIResources {
		if r.Name == name {
			return true
		}
	}
	return false
}

// ask reads into what the API server answers at path, which must be of that kind.
func (a *api) ask(ctx context.Context, path, kind string, into any) error {
	data, err := a.typed[corev1.SchemeGroupVersion].Get().AbsPath(path).
		SetHeader("Accept", runtime.ContentTypeJSON).Do(ctx).Raw()
	if err != nil {
		return fmt.Errorf("ask %s: %w", path, err)
	}
	var meta metav1.TypeMeta
	if err := json.Unmarshal(data, &meta); err != nil {
		return fmt.Errorf("ask %s: %w", path, err)
	}
	if meta.Kind != kind {
		return fmt.Errorf("ask %s: got kind %q, want %s", path, meta.Kind, kind)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("ask %s: %w", path, err)
	}
	return nil
}
