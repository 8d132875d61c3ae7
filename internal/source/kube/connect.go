package kube

import (
	"errors"
	"fmt"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// ErrNoCluster is returned by Connect where nothing says which cluster is meant.
var ErrNoCluster = errors.New("no cluster: give a kubeconfig, set KUBECONFIG, or run in a pod with a service account")

// Connect returns how to talk to the API server: as the file kubeconfig says or,
// if that is empty, as kubectl finds it: the files in $KUBECONFIG, else
// ~/.kube/config, else the service account of the pod that this runs in. It
// reads files but makes no connection. The API server tells itself who asks too
// much: requests are not limited here. userAgent names the asking program to it.
//
// The error is [ErrNoCluster] if there is none of these.
func Connect(kubeconfig, userAgent string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	rules.WarnIfAllMissing = false
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{}).ClientConfig()
	switch {
	case clientcmd.IsEmptyConfig(err) && kubeconfig == "":
		return nil, ErrNoCluster
	case clientcmd.IsEmptyConfig(err):
		return nil, fmt.Errorf("read kubeconfig %s: it names no cluster as current", kubeconfig)
	case err != nil:
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	config.QPS = -1
	config.UserAgent = userAgent
	config.WarningHandler = rest.NoWarnings{}
	return config, nil
}
