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
	ctx, hurry := ended()
	run := cli.Main
	if filepath.Base(os.Args[0]) == "curl" {
		run = cli.Curl
	}
	code := run(ctx, os.Args[1:], cli.Env{
		Stdin:  os.Stdin,
		Stdout: os.Stdout,
		Stderr: os.Stderr,
		Lookup: os.LookupEnv,
		Hurry:  hurry.Done(),
	})
	os.Exit(code)
}

// ended returns a context that the first signal to end ends, of which the end of the
// terminal is one unless nohup has it ignored, and one that the second ends. The third
// one kills.
func ended() (ctx, hurry context.Context) {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	hurry, now := context.WithCancel(context.Background())
	ctx, _ = signal.NotifyContext(context.Background(), signals...)
	context.AfterFunc(ctx, func() {
		again, _ := signal.NotifyContext(context.Background(), signals...)
		context.AfterFunc(again, func() {
			signal.Reset(signals...)
			now()
		})
	})
	return ctx, hurry
}
