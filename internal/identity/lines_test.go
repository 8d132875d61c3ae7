package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/peer"
)

func TestLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLines()
		told := func(address string, n int) (lines int) {
			for range n {
				if _, ok := l.Tell(address); ok {
					lines++
				}
			}
			return lines
		}
		if n := told("10.0.0.1:1000", 10_000); n != peerLines {
			t.Errorf("one address caused %d lines, want %d", n, peerLines)
		}
		if n := told("10.0.0.1:2000", 10_000); n != 0 {
			t.Errorf("another port of it caused %d more", n)
		}
		if unsaid, ok := l.Tell("[::1]:1000"); !ok || unsaid != 20_000-peerLines {
			t.Errorf("another address: %v, with %d that were not told, want %d", ok, unsaid, 20_000-peerLines)
		}
		if unsaid, ok := l.Tell("[::1]:1000"); !ok || unsaid != 0 {
			t.Errorf("its next: %v with %d, want none untold", ok, unsaid)
		}
		time.Sleep(time.Minute)
		many := 0
		for i := range 10 * maxPeers {
			many += told(fmt.Sprintf("10.1.%d.%d:1", i/256, i%256), 10)
		}
		if many != allLines {
			t.Errorf("many addresses caused %d lines at once, want %d", many, allLines)
		}
		if n := len(l.peers); n > maxPeers {
			t.Errorf("%d addresses are remembered, want %d at most", n, maxPeers)
		}
		time.Sleep(time.Minute)
		if n := told("10.0.0.1:1000", 10_000); n != peerLines {
			t.Errorf("a minute later it caused %d lines, want %d", n, peerLines)
		}
	})
}

// TestGateLines: whoever is refused again and again does not fill the log, nor keep
// out of it that a credential cannot be checked; all calls are counted.
func TestGateLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log synced
		metrics := prometheus.NewRegistry()
		verdict := fmt.Errorf("no: %w", ErrRefused)
		g := NewGate(GateConfig{
			Authenticators: []Authenticator{authenticatorFunc(func() error { return verdict })},
			Log:            slog.New(slog.NewTextHandler(&log, nil)), Registerer: metrics,
		})
		ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1}})
		call := func(n int) {
			for range n {
				if _, err := g.admit(ctx); err == nil {
					t.Fatal("a caller was let in")
				}
			}
		}
		call(10_000)
		verdict = errors.New("no answer")
		call(10_000)
		got := map[string]int{}
		for line := range strings.Lines(log.String()) {
			for _, message := range []string{"caller refused", "credential unchecked"} {
				if strings.Contains(line, message) {
					got[message]++
				}
			}
		}
		if diff := cmp.Diff(map[string]int{"caller refused": peerLines, "credential unchecked": peerLines}, got); diff != "" {
			t.Errorf("lines (-want +got):\n%s", diff)
		}
		for _, result := range []string{"refused", "unchecked"} {
			if n := testutil.ToFloat64(g.results.WithLabelValues(result)); n != 10_000 {
				t.Errorf("%v calls are counted as %s, want 10,000", n, result)
			}
		}
		time.Sleep(peerPause)
		call(1)
		if want := fmt.Sprintf("unsaid=%d", 10_000-peerLines); !strings.Contains(log.String(), want) {
			t.Errorf("the log does not have %q:\n%s", want, log.String())
		}
	})
}

// An authenticatorFunc is what it says of every caller.
type authenticatorFunc func() error

func (f authenticatorFunc) Authenticate(context.Context, Credentials) (Peer, error) {
	return Peer{}, f()
}
