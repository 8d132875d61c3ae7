// Package inject gives pods their sidecar: the agent with its proxy, as a native
// sidecar, and before it a container that redirects the pod's connections to it.
//
// [Decide] says whether a pod gets one and why not, as Istio does, from labels of the
// namespace and the pod. [Pod] adds it; annotations under Istio's names say how.
// [Stream] does so to the workloads in YAML files, for those who apply what they have
// read; [Handler] to every pod that an API server is about to create. The API server
// asks about those pods only that [WebhookConfiguration] selects, and trusts the
// webhook because [Trust] keeps its certificate there.
//
// A pod that has a sidecar is left as it is, so that injecting twice is as good as
// once. What an annotation gets wrong is refused with the way to mend it, and what
// Istio honours and we do not is warned of: neither is passed over. Only Trust calls
// an API server; all else is computed from what is given. Start at [Pod].
package inject
