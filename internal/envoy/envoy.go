// Package envoy runs one Envoy proxy: it writes the bootstrap, starts the
// process, talks to its admin interface, restarts it when it dies and drains it
// before it is stopped.
//
// It knows nothing of extensions and does not speak xDS; that Envoy finds its
// configuration at a Unix socket is all the bootstrap says. It never starts a
// second Envoy on one directory while a first one lives: an Envoy outlives the
// agent that started it, and the next agent takes it over as it is, if it was
// started just so, or drains and replaces it. Two agents on one directory are
// kept apart by the caller.
//
// Field names and admin paths are Envoy 1.40's; node ids and metadata follow
// Istio. Start at [Open] and [Process.Run]; [Bootstrap] is pure.
package envoy
