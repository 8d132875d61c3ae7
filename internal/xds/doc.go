// Package xds serves configuration to proxies over the aggregated discovery
// service (ADS), incremental ("delta") and state of the world, and follows what
// each proxy accepts and refuses.
//
// It does not know where configuration comes from: who uses it publishes a
// [Snapshot] for each class of proxies, and all proxies of a class share it. A
// stream holds only what its client has and the newest snapshot, never a queue,
// so a client that does not read costs nothing more and gets the newest state
// when it does. Only what changed is sent.
//
// Invariants: clusters go out before listeners and routes, and are taken back
// only after listeners and routes no longer use them; in delta each extension
// config (ECDS) is a response of its own, so that a slow one holds back no
// other; an extension config that a proxy has is never removed under it. What a proxy
// has refused is sent again, when its type changes and now and then.
//
// The protocol is that of
// https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol. The state
// machine of a stream is [session], pure and without a clock; [Server] is the
// rim around it. Start at [Server].
package xds
