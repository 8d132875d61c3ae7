// Package envoytest is what tests and benchmarks with real programs stand on: Envoy
// itself, agents and control planes that run one, and what is around them.
//
// It finds programs by the environment, hands out ports, waits for what must happen, and
// runs processes until the test ends ([Start], [StartEnvoy]); next to these are texts of
// the resources that nearly every such test begins with ([Gateway], [Backend]). It knows
// nothing of what is tested. Whatever is missing fails the test, and nothing is skipped:
// a test that does not run says nothing.
//
// All takes a testing.TB, so that benchmarks are served too, and is called by the
// goroutine of the test. Only tests import it.
package envoytest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// Tool is the path of a program that tests need, which the environment has: CHANDLER_BIN,
// CHANDLER_ENVOY.
func Tool(t testing.TB, variable string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		t.Fatalf("%s is not set; run make e2e, or make bench", variable)
	}
	return path
}

// Ports are handed out one after the other, below those that the system takes for
// outgoing connections, so that no other socket takes one before it is bound. It starts
// anywhere: other processes do the same.
const firstPort, lastPort = 20_000, 32_000

var ports atomic.Int64

// Port is a loopback port that nothing listens on.
func Port(t testing.TB) int {
	t.Helper()
	const all = lastPort - firstPort
	ports.CompareAndSwap(0, 1+rand.Int64N(all))
	for range all {
		port := int(firstPort + ports.Add(1)%all)
		l, err := net.Listen("tcp", Loopback(port))
		if err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// Loopback is the address of a port of this machine's.
func Loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// Address is a loopback address, host:port, that nothing listens on.
func Address(t testing.TB) string {
	t.Helper()
	return Loopback(Port(t))
}

// ShortDir is a temporary folder whose path leaves room for a Unix socket's.
func ShortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ch")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// A Wait says how something is waited for.
type Wait struct {
	Patience time.Duration // after which the test fails
	Every    time.Duration // time between two looks
}

// Until waits until f gives no error; if that is too long, it fails the test with what
// was waited for, and the last error.
func (w Wait) Until(t testing.TB, what string, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), w.Patience)
	defer cancel()
	tick := time.NewTicker(w.Every)
	defer tick.Stop()
	for err := f(); err != nil; err = f() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: still after %v: %v", what, w.Patience, err)
		}
	}
}
