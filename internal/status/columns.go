package status

import (
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
)

// Columns makes kubectl get show what became of extensions: it replaces the
// printer columns of every version of crd, if that is of a kind of extension;
// Istio's definitions have the age only. Others are left as they are. What is of
// priority 1 is shown with -o wide.
func Columns(crd *apiextensionsv1.CustomResourceDefinition) {
	if !isExtension(crd.Spec.Group) {
		return
	}
	for i := range crd.Spec.Versions {
		crd.Spec.Versions[i].AdditionalPrinterColumns = columns()
	}
}

func columns() []apiextensionsv1.CustomResourceColumnDefinition {
	of := func(condition, field string) string {
		return `.status.conditions[?(@.type=="` + condition + `")].` + field
	}
	return []apiextensionsv1.CustomResourceColumnDefinition{
		{Name: "Programmed", Type: "string", JSONPath: of(Programmed, "status"), Description: "Whether every proxy that it is for runs the newest of it."},
		{Name: "Proxies", Type: "string", JSONPath: ".status." + ownField + ".proxies", Description: "How many proxies run the newest of it, of how many it is for."},
		{Name: "Reason", Type: "string", JSONPath: of(Programmed, "reason"), Description: "Why it is or is not programmed."},
		{Name: "Age", Type: "date", JSONPath: ".metadata.creationTimestamp", Description: "Since when the resource is there."},
		{Name: "Accepted", Type: "string", Priority: 1, JSONPath: of(Accepted, "status"), Description: "Whether the resource is valid."},
		{Name: "Resolved", Type: "string", Priority: 1, JSONPath: of(Resolved, "status"), Description: "Whether its module is known."},
		{Name: "Digest", Type: "string", Priority: 1, JSONPath: ".status." + ownField + ".digest", Description: "The digest of its module, shortened."},
		{Name: "Message", Type: "string", Priority: 1, JSONPath: of(Programmed, "message"), Description: "What became of it, in words."},
	}
}
