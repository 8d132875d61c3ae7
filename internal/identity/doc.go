// Package identity is how proxies and the control plane prove to each other who
// they are: the control plane by a certificate of its own CA, a proxy by a
// service-account token or a client certificate.
//
// It does not know Kubernetes: tokens are checked by a [TokenReviewer] and the
// CA is kept by a [Keeper], both of which package inject/trust has for a
// cluster. It refuses what it cannot check, and says nothing of tokens and keys
// in errors or logs.
//
// Invariants: certificates are issued only by a root that has been published for
// long enough that everybody trusts it, and a root stays trusted until it ends, so
// that no certificate is worthless before its time. A proxy gets configuration
// only for the namespace that its credential names ([Permit]).
//
// Revocation: a credential is checked when a stream begins. What makes that enough
// is [Gate.Options], by which no connection lives much longer than [MaxAge].
//
// SPIFFE ids are Istio's, spiffe://DOMAIN/ns/NAMESPACE/sa/SERVICEACCOUNT; tokens
// are https://kubernetes.io/docs/reference/access-authn-authz/authentication/.
// Start at [Open] for the CA, [NewGate] for a server, [Client] for an agent.
package identity
