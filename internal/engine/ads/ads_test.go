package ads

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
)

// A server refuses streams, or ends them after an answer, as told for each.
type server struct {
	answers func(stream int) bool

	mu      sync.Mutex
	streams []time.Time
	enough  func(n int) bool
	stop    context.CancelFunc
}

func (s *server) Invoke(context.Context, string, any, any, ...grpc.CallOption) error {
	return errors.ErrUnsupported
}

func (s *server) NewStream(ctx context.Context, _ *grpc.StreamDesc, _ string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.streams)
	s.streams = append(s.streams, time.Now())
	if s.enough(n + 1) {
		s.stop()
	}
	return &stream{ctx: ctx, answers: s.answers(n)}, nil
}

// A stream ends at once, or after one answer.
type stream struct {
	grpc.ClientStream
	ctx     context.Context
	answers bool
}

func (s *stream) SendMsg(any) error { return nil }

func (s *stream) RecvMsg(m any) error {
	if !s.answers {
		return io.EOF
	}
	s.answers = false
	m.(*discoveryv3.DeltaDiscoveryResponse).TypeUrl = "type"
	return nil
}

// pauses are those between the streams of a client of the server.
func pauses(t *testing.T, n int, answers func(stream int) bool) (list []time.Duration) {
	ctx, cancel := context.WithCancel(t.Context())
	s := &server{answers: answers, enough: func(m int) bool { return m > n }, stop: cancel}
	c := New(Config{
		Node: new(corev3.Node), Conn: s, Log: slog.New(slog.DiscardHandler),
		Apply: func(context.Context, Update) error { return nil },
	})
	if err := c.Run(ctx); err != nil {
		t.Fatal(err)
	}
	for i := range s.streams[1:] {
		list = append(list, s.streams[i+1].Sub(s.streams[i]))
	}
	return list
}

// A server that refuses again and again is asked less and less often.
func TestRetryGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		most, longest := retryBase, time.Duration(0)
		for i, pause := range pauses(t, 60, func(int) bool { return false }) {
			if pause <= 0 || pause > most {
				t.Errorf("pause %d is %v, want at most %v", i, pause, most)
			}
			most, longest = min(2*most, retryMost), max(longest, pause)
		}
		// By chance none of 54 would be as long once in 10^16 runs.
		if longest < retryMost/2 {
			t.Errorf("the longest pause of 60 is %v", longest)
		}
	})
}

// A stream that worked is followed by a short pause.
func TestRetryStartsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for i, pause := range pauses(t, 60, func(stream int) bool { return stream%10 == 9 }) {
			if most := min(retryBase<<((i+1)%10), retryMost); pause > most {
				t.Errorf("pause %d is %v, want at most %v", i, pause, most)
			}
		}
	})
}
