package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/chandler-proxy/chandler/internal/ecds"
	"github.com/chandler-proxy/chandler/internal/store"
)

const (
	// maxWaiting is how many responses may wait for a slow Envoy before the
	// control plane is not read any more, and so is held back by its own window.
	maxWaiting = 64

	// openFor is how long a response stays unanswered while its modules are
	// fetched. See session.lateAck.
	openFor = 3 * time.Second

	// awaitFor is how long what Envoy may refuse waits for extensions that a listener
	// brings. See session.await.
	awaitFor = 5 * time.Second
)

// An outcome is what came of one fetch.
type outcome struct {
	name  string
	gen   uint64
	lease *store.Lease
	err   error
}

// serve relays one stream of Envoy's until either side ends it.
func (r *Relay) serve(down grpc.ServerStream, method string, d dialect) error {
	g, ctx := errgroup.WithContext(down.Context())
	up, err := r.cfg.Upstream.NewStream(ctx,
		&grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method,
		grpc.ForceCodecV2(codec{}),
		grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage))
	if err != nil {
		if down.Context().Err() == nil {
			r.outage.begin(r.cfg.Log, err)
		}
		return status.Errorf(codes.Unavailable, "connect to the control plane: %v", err)
	}

	s := &stream{
		relay:     r,
		fromEnvoy: make(chan frame), toEnvoy: make(chan frame),
		fromAbove: make(chan frame), toAbove: make(chan frame),
		outcomes: make(chan outcome), late: make(chan func() error),
	}
	s.session = newSession(ctx, r, d)
	s.session.start = func(ctx context.Context, name string, gen uint64, delay time.Duration, w *wanted) {
		g.Go(func() error { return s.fetch(ctx, name, gen, delay, w) })
	}
	s.after = func(d time.Duration, do func() error) {
		g.Go(func() error { return s.wait(ctx, d, do) })
	}

	// A server stream's RecvMsg returns only once this handler has, so the
	// relay, not the group, waits for it.
	r.streams.Go(func() {
		defer close(s.fromEnvoy)
		_ = receive(ctx, down, s.fromEnvoy) // however it ended, Envoy connects again
	})
	g.Go(func() error {
		if err := receive(ctx, up, s.fromAbove); err != nil {
			return fmt.Errorf("control plane: %w", err)
		}
		return nil
	})
	g.Go(func() error { return send(ctx, down, s.toEnvoy) })
	g.Go(func() error { return send(ctx, up, s.toAbove) })
	g.Go(func() error { return s.run(ctx) })
	err = g.Wait()
	s.session.end()
	if err != nil && !errors.Is(err, errEnvoyEnded) && down.Context().Err() == nil {
		r.outage.begin(r.cfg.Log, err)
		return status.Error(codes.Unavailable, err.Error())
	}
	return nil
}

var errEnvoyEnded = errors.New("the proxy ended the stream")

// receive passes messages from st to frames until st ends, which is an error, or ctx does.
func receive(ctx context.Context, st interface{ RecvMsg(any) error }, frames chan<- frame) error {
	for {
		var f frame
		if err := st.RecvMsg(&f); err != nil {
			return err
		}
		select {
		case frames <- f:
		case <-ctx.Done():
			return nil
		}
	}
}

// send passes frames to st until ctx ends.
func send(ctx context.Context, st interface{ SendMsg(any) error }, frames <-chan frame) error {
	for {
		select {
		case f := <-frames:
			if err := st.SendMsg(f); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// A stream is the one goroutine that sees everything of one relayed stream, in order.
type stream struct {
	relay   *Relay
	session *session
	after   func(d time.Duration, do func() error) // has run call do after d
	begun   bool                                   // Envoy has asked for listeners

	fromEnvoy, toEnvoy chan frame
	fromAbove, toAbove chan frame
	outcomes           chan outcome
	late               chan func() error // what is due; see after
}

// run moves messages until either side ends. It never waits to send: both
// sides' messages queue in the session's outboxes, so that neither side can
// hold up the other's answers.
func (s *stream) run(ctx context.Context) error {
	for {
		toEnvoy, down := outbox(s.toEnvoy, s.session.down)
		toAbove, up := outbox(s.toAbove, s.session.up)
		fromAbove := s.fromAbove
		if len(s.session.down)+len(s.session.listeners) >= maxWaiting {
			fromAbove = nil
		}
		var err error
		select {
		case toEnvoy <- down:
			s.session.down = s.session.down[1:]
		case toAbove <- up:
			s.session.up = s.session.up[1:]
		case f, ok := <-s.fromEnvoy:
			if !ok {
				return errEnvoyEnded
			}
			err = s.request(f)
		case f := <-fromAbove:
			err = s.response(f)
		case o := <-s.outcomes:
			err = s.session.fetched(o.name, o.gen, o.lease, o.err)
		case do := <-s.late:
			err = do()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// outbox returns where to send the first of queue, or nil, on which sending blocks, if it is empty.
func outbox(to chan<- frame, queue []frame) (chan<- frame, frame) {
	if len(queue) == 0 {
		return nil, nil
	}
	return to, queue[0]
}

func (s *stream) request(f frame) error {
	typeURL := s.session.d.requestType(f)
	if !s.relay.cfg.PassECDS && typeURL == ecds.TypeURL {
		return s.session.fromEnvoy(f)
	}
	if typeURL == ecds.ListenerTypeURL && !s.begun {
		s.begun = true
		s.relay.begin(s.session.d.hasListeners(f))
	}
	s.session.up = append(s.session.up, f)
	return nil
}

func (s *stream) response(f frame) error {
	s.relay.connected.Store(true)
	s.relay.outage.end(s.relay.cfg.Log)
	typeURL := s.session.d.responseType(f)
	switch {
	case s.relay.cfg.PassECDS, typeURL != ecds.TypeURL && typeURL != ecds.ListenerTypeURL:
		s.session.down = append(s.session.down, f)
		return nil
	case typeURL == ecds.ListenerTypeURL:
		gone, back := s.relay.discovered(s.session.d.listeners(f))
		if wait, begun := s.session.await(back); begun {
			s.after(awaitFor, func() error { return s.session.awaitedEnough(wait) })
		}
		s.session.passListeners(f)
		return s.session.renamed(gone, back)
	}
	nonce, from, err := s.session.fromAbove(f)
	if err != nil {
		return err
	}
	own := from == ecds.ControlPlane
	s.relay.own.Store(own)
	if !own && s.session.open(nonce) { // Chandler's never waits for an answer
		s.after(openFor, func() error { return s.session.lateAck(nonce) })
	}
	return nil
}

// fetch gets w's module after delay and reports what came of it.
func (s *stream) fetch(ctx context.Context, name string, gen uint64, delay time.Duration, w *wanted) error {
	if delay > 0 {
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
	o := outcome{name: name, gen: gen}
	o.lease, o.err = s.get(ctx, w)
	select {
	case s.outcomes <- o:
	case <-ctx.Done():
		o.lease.Release()
	}
	return nil
}

// get gets w's module, and tries it.
func (s *stream) get(ctx context.Context, w *wanted) (*store.Lease, error) {
	want, err := w.ext.Want()
	if err != nil {
		return nil, err
	}
	lease, err := s.relay.cfg.Modules.Get(ctx, want)
	if err != nil || s.relay.cfg.Try == nil {
		return lease, err
	}
	if err := s.relay.cfg.Try(ctx, w.ext, lease); err != nil {
		lease.Release()
		return nil, Refusal{err}
	}
	return lease, nil
}

// wait has do called after d.
func (s *stream) wait(ctx context.Context, d time.Duration, do func() error) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return nil
	}
	select {
	case s.late <- do:
	case <-ctx.Done():
	}
	return nil
}
