// Package redirect leads a pod's TCP connections to the proxy beside it: what the
// workload opens goes to port 15001, what others open to the workload to 15006.
//
// The rules are those of Istio's init container, written as nftables: one table
// "chandler" an address family, with the nat chains prerouting and output. What
// the proxy opens itself, known by its user and group, passes, and so do the
// ports of the agent. [Rules] says which rules a [Config] asks for, as a value;
// [Apply] puts them into the network namespace of the process, all or none, in
// place of the table that is there. Applying them twice is as good as once.
//
// It redirects TCP only, calls no program, touches no table but its own, and needs
// the capability NET_ADMIN and a kernel with nf_tables and its nat chains (Linux
// 4.18 or newer). Start at [Rules].
package redirect
