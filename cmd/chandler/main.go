// Command chandler supplies Envoy proxies with WebAssembly extensions.
// See chandler --help, and the README.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/chandler-proxy/chandler/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Main(ctx, os.Args[1:], cli.Env{
		Stdout: os.Stdout,
		Stderr: os.Stderr,
		Lookup: os.LookupEnv,
	})
	stop()
	os.Exit(code)
}
