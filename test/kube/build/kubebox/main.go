// Command kubebox is the programs of a Kubernetes cluster in one binary, which
// compiles and links once what they share: etcd, kube-apiserver,
// kube-controller-manager, kube-scheduler, kube-proxy, kubelet and kubectl.
//
// It is the one that its own name says (through a link), or else its first
// argument. Nothing is changed in any of them.
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	_ "time/tzdata" // CronJobs name time zones; a test machine may have none

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // the clients' metrics
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"

	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// programs has the main function of each, given its name and arguments.
func programs() map[string]func(args []string) {
	return map[string]func([]string){
		"etcd":                    etcdmain.Main,
		"kube-apiserver":          server(apiserver.NewAPIServerCommand),
		"kube-controller-manager": server(controllers.NewControllerManagerCommand),
		"kube-scheduler":          server(func() *cobra.Command { return scheduler.NewSchedulerCommand() }),
		"kube-proxy":              server(proxy.NewProxyCommand),
		"kubelet":                 server(func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }),
		"kubectl": func(args []string) {
			logs.GlogSetter(kubectl.GetLogVerbosity(args)) // as kubectl's own main does, without a look at the error
			if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
				kubectlutil.CheckErr(err)
			}
		},
	}
}

func server(command func() *cobra.Command) func([]string) {
	return func(args []string) {
		c := command()
		c.SetArgs(args[1:])
		os.Exit(cli.Run(c))
	}
}

func main() {
	all := programs()
	if main, ok := all[filepath.Base(os.Args[0])]; ok {
		main(os.Args)
		return
	}
	if len(os.Args) > 1 {
		if main, ok := all[os.Args[1]]; ok {
			os.Args = os.Args[1:]
			main(os.Args)
			return
		}
	}
	fmt.Fprintln(os.Stderr, "usage: kubebox", strings.Join(slices.Sorted(maps.Keys(all)), "|"), "[flags]")
	os.Exit(2)
}
