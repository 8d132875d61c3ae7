// Command pause is the first process of a pod's sandbox, and of a test node:
// it waits, and reaps those whose parents have gone.
//
// In a sandbox it ends at SIGTERM or SIGINT. As `pause node` it prints "ready"
// and ends when its standard input does: when whoever started the node is gone,
// however that came, the kernel takes the node's processes, mounts and network
// along with it.
package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	events := make(chan os.Signal, 8)
	signal.Notify(events, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	gone := make(chan struct{})
	if len(os.Args) > 1 && os.Args[1] == "node" {
		fmt.Println("ready")
		go func() {
			io.Copy(io.Discard, os.Stdin) // an error is an end too
			close(gone)
		}()
	}
	for {
		select {
		case <-gone:
			return
		case s := <-events:
			if s != syscall.SIGCHLD {
				return
			}
			reap()
		}
	}
}

// reap takes every child that has ended.
func reap() {
	for {
		if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
			return
		}
	}
}
