// Package kube measures the control plane on a Kubernetes with many resources:
//
//	go test -tags e2e -run '^$' -bench . ./bench/kube
//
// The API server, etcd and controllers are real (package test/kube). The pods are
// objects with an address, bound to a node that nobody runs, and no proxies but the
// one that the benchmark plays: what many connected proxies cost, bench/control
// measures. The control plane is the binary, one replica, with all that it has in a
// cluster but no TLS to the API server: it is reached through a proxy that counts.
//
// istiod is not measured beside it: there is none to be had where this runs. Start at
// BenchmarkLoad.
package kube
