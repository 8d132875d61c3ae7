// Command chandler supplies Envoy proxies with WebAssembly extensions.
//
// It only gives package cli the process's arguments, environment and signals, and
// exits with its code. Start at chandler --help, USAGE.md or the README.
package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/chandler-proxy/chandler/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	run := cli.Main
	if filepath.Base(os.Args[0]) == "curl" {
		run = cli.Curl
	}
	code := run(ctx, os.Args[1:], cli.Env{
		Stdin:  os.Stdin,
		Stdout: os.Stdout,
		Stderr: os.Stderr,
		Lookup: os.LookupEnv,
	})
	stop()
	os.Exit(code)
}
