// Package resource reads what users write: YAML or JSON in, typed, defaulted
// and valid resources out, or problems told by file, line and field.
//
// It is strict, as "kubectl apply --validate=strict" is. What a
// CustomResourceDefinition defines is checked with that definition's own
// OpenAPI schema and CEL rules, the ones an API server would use (embedded by
// crdgen), so a file and a cluster take the same things and refuse the rest in
// the same words; then with what Istio's admission webhook adds. Kinds of
// Kubernetes itself are decoded strictly into their Go types and checked as far
// as Chandler relies on them.
//
// It does not judge what resources mean together, nor whether Chandler can
// honour them: that is for mesh and translate. It does no I/O, and a document
// that has a problem yields no object.
//
// Start at [Decoder.Decode].
package resource

//go:generate go run ./crdgen -dir crds
