// Command within runs a command in the network of a new API server, and that only
// for so long: for tests of packages that want a real one, and nobody else who acts
// on its objects.
//
//	go run ./test/kube/within go test -tags e2e ./internal/status
//
// KUBECONFIG and CHANDLER_KUBECONFIG name the administrator's file. Its exit code is
// the command's, or 1.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/chandler-proxy/chandler/test/kube"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "within: %v\n", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(ctx context.Context, args []string) (code int, err error) {
	if len(args) == 0 {
		return 2, errors.New("no command is given")
	}
	cluster, err := kube.Start(ctx, kube.Config{APIServerOnly: true})
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, cluster.Stop()) }()
	cmd := cluster.Command(ctx, args[0], args[1:]...)
	cmd.Env = append(cmd.Env, "CHANDLER_KUBECONFIG="+cluster.Kubeconfig())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), nil
	}
	return 0, err
}
