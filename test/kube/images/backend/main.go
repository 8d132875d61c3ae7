// Command backend is one of the demo's services in a container: backend
// httpbin|productpage ADDR.
//
// It stands for docker.io/kennethreitz/httpbin and Bookinfo's product page,
// which the examples reach. SIGTERM and SIGINT end it, after the requests under
// way.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/chandler-proxy/chandler/internal/demo"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "backend:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("want a service and an address, have %q", args)
	}
	services := map[string]func(net.Listener) *demo.Server{"httpbin": demo.NewHTTPBin, "productpage": demo.NewProductpage}
	service, ok := services[args[0]]
	if !ok {
		return fmt.Errorf("no service %q", args[0])
	}
	ln, err := net.Listen("tcp", args[1])
	if err != nil {
		return err
	}
	return service(ln).Run(ctx)
}
