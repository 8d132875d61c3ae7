package cluster

import (
	"context"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/chandler-proxy/chandler/internal/identity"
	"github.com/chandler-proxy/chandler/internal/inject"
)

// configurations is the resource that every replica looks after, not only the leader.
const configurations = "mutatingwebhookconfigurations"

// ownConfigurations are the webhook's configurations without those that lead to the
// Service of another control plane: its certificate is for that one to keep. Whoever
// was installed last under a revision has the configuration of that revision.
type ownConfigurations struct {
	inject.Configurations
	plane identity.Plane
	found func(identity.Foreign)
}

func (c ownConfigurations) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	w, err := c.Configurations.Watch(ctx, opts)
	if err != nil {
		return nil, err
	}
	return watch.Filter(w, func(e watch.Event) (watch.Event, bool) { return e, c.own(e) }), nil
}

func (c ownConfigurations) own(e watch.Event) bool {
	configuration, ok := e.Object.(*admissionregistrationv1.MutatingWebhookConfiguration)
	if !ok {
		return true
	}
	f := identity.Foreign{
		APIVersion: admissionregistrationv1.SchemeGroupVersion.String(), Kind: "MutatingWebhookConfiguration",
		Resource: configurations, Name: configuration.Name, UID: string(configuration.UID),
	}
	for _, w := range configuration.Webhooks {
		if s := w.ClientConfig.Service; s != nil && s.Namespace != c.plane.Namespace {
			f.Owner = identity.Plane{Namespace: s.Namespace, Revision: c.plane.Revision}
		}
	}
	c.found(f)
	return f.Owner == (identity.Plane{})
}
