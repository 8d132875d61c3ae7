package inject

import (
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ServiceName is the control plane's Service, in the root namespace, whose port 443
// leads to the webhook.
const ServiceName = "chandler"

// ConfigurationName is the name of the webhook's configuration for a revision.
func ConfigurationName(revision string) string {
	if revision == DefaultRevision {
		return "chandler-sidecar-injector"
	}
	return "chandler-sidecar-injector-" + revision
}

// WebhookConfiguration tells the API server which pods to ask about: those that
// [Decide] may give a sidecar, as Istio's four webhooks have it, of which at most one
// selects any pod, and no pod of Kubernetes' own namespaces, so that nobody else waits
// for the webhook or depends on it. A pod that is selected is not created while the
// webhook cannot be asked. The control plane's own pods must have the label
// sidecar.istio.io/inject=false, and then are never selected. The certificate is for
// [Trust] to add. o must have its defaults.
func WebhookConfiguration(o Options) *admissionregistrationv1.MutatingWebhookConfiguration {
	w := webhooks{o}
	c := &admissionregistrationv1.MutatingWebhookConfiguration{
		TypeMeta: metav1.TypeMeta{APIVersion: admissionregistrationv1.SchemeGroupVersion.String(), Kind: "MutatingWebhookConfiguration"},
		ObjectMeta: metav1.ObjectMeta{
			Name:   ConfigurationName(o.Revision),
			Labels: map[string]string{"app": "chandler", revisionLabel: o.Revision},
		},
		Webhooks: []admissionregistrationv1.MutatingWebhook{
			w.webhook("rev.namespace", selector(is(revisionLabel, o.Revision), none(namespaceLabel)), selector(not(podLabel, "false"))),
			w.webhook("rev.object", selector(none(revisionLabel), none(namespaceLabel)), selector(not(podLabel, "false"), is(revisionLabel, o.Revision))),
		},
	}
	if o.Revision == DefaultRevision {
		c.Webhooks = append(c.Webhooks,
			w.webhook("namespace", selector(is(namespaceLabel, "enabled")), selector(not(podLabel, "false"))),
			w.webhook("object", selector(none(revisionLabel), none(namespaceLabel)), selector(is(podLabel, "true"), none(revisionLabel))),
		)
	}
	return c
}

type webhooks struct{ o Options }

func (w webhooks) webhook(name string, namespace, object *metav1.LabelSelector) admissionregistrationv1.MutatingWebhook {
	namespace.MatchExpressions = append(namespace.MatchExpressions, not(corev1.LabelMetadataName, ignoredNamespaces()...))
	return admissionregistrationv1.MutatingWebhook{
		Name: name + ".sidecar-injector.chandler.io",
		ClientConfig: admissionregistrationv1.WebhookClientConfig{Service: &admissionregistrationv1.ServiceReference{
			Namespace: w.o.RootNamespace, Name: ServiceName, Path: new("/inject"), Port: new(int32(443)),
		}},
		Rules: []admissionregistrationv1.RuleWithOperations{{
			Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
			Rule: admissionregistrationv1.Rule{
				APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}, Scope: new(admissionregistrationv1.NamespacedScope),
			},
		}},
		NamespaceSelector:       namespace,
		ObjectSelector:          object,
		FailurePolicy:           new(admissionregistrationv1.Fail),
		MatchPolicy:             new(admissionregistrationv1.Equivalent),
		ReinvocationPolicy:      new(admissionregistrationv1.NeverReinvocationPolicy),
		SideEffects:             new(admissionregistrationv1.SideEffectClassNone),
		TimeoutSeconds:          new(int32(10)),
		AdmissionReviewVersions: []string{"v1"},
	}
}

func selector(all ...metav1.LabelSelectorRequirement) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchExpressions: all}
}

func is(key, value string) metav1.LabelSelectorRequirement {
	return metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpIn, Values: []string{value}}
}

// not also selects what has no such label.
func not(key string, values ...string) metav1.LabelSelectorRequirement {
	return metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpNotIn, Values: values}
}

func none(key string) metav1.LabelSelectorRequirement {
	return metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpDoesNotExist}
}
