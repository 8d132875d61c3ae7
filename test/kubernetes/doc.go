// Package kubernetes has the tasks of the seed documents on a real Kubernetes,
// command by command as their users type them: chandler install, labelled
// namespaces, injected pods, plugins at sidecars and at the ingress gateway, with
// the engine and with real Envoy, and then what goes wrong in clusters.
//
// The cluster is package test/kube's; the images are built from deploy/. All tests
// share one cluster. They need what make e2e has: CHANDLER_BIN and CHANDLER_ENVOY.
package kubernetes
