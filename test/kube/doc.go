// Package kube runs a real Kubernetes for tests: etcd, API server, controllers
// and scheduler, and one real node with kubelet, containerd, runc and
// kube-proxy, with cluster DNS and an image registry, on a machine without
// Docker and without internet.
//
// A cluster lives in namespaces of its own for processes, mounts and network:
// its addresses are the same every time and collide with nothing, several can
// run at once, and all of it vanishes with the first process in there, which
// ends when the test does, however that ends. Only the folder with its data and
// the empty control groups remain for [Cluster.Stop] to remove, or for the next
// cluster that starts. It needs root and Linux, the packages that
// scripts/deps.sh installs, and the programs that build.sh builds; what is
// missing is an error. It changes nothing of the machine outside the namespaces.
//
// Start at [For] in a test and [Start] elsewhere. Commands reach the cluster
// through [Cluster.Kubectl] and [Cluster.Run], Go code through [Cluster.Dial],
// images through [Build] and [Cluster.Import].
package kube
