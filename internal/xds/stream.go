package xds

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/chandler-proxy/chandler/internal/ecds"
)

// A stream is one ADS stream of one proxy.
type stream struct {
	id        string // of the node
	class     string
	peer      string // address
	serial    uint64
	connected time.Time
	wake      chan struct{} // there may be something to send
	moved     chan struct{} // closed when the proxy is of another class
	holder    *holder       // nil: nobody counts it

	// Of the goroutine that receives: lines of the log about nacks.
	nacks  *rate.Limiter
	unsaid int // since the last line

	mu      sync.Mutex // held to compute, never to send or receive
	session *session
	ending  bool // moved is closed
}

func (st *stream) signal() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

func (st *stream) offer(snap *Snapshot) {
	st.mu.Lock()
	if !st.ending {
		st.session.offer(snap)
	}
	st.mu.Unlock()
	st.signal()
}

// move ends the stream, whose proxy is of another class. It is offered nothing more.
func (st *stream) move() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.ending {
		st.ending = true
		close(st.moved)
	}
}

func (st *stream) request(r *request) (*Nack, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	defer st.signal()
	return st.session.request(r, time.Now())
}

func (st *stream) next() (*response, time.Time) {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.session.next(time.Now())
}

// A wire is a gRPC stream of either variant.
type wire interface {
	Context() context.Context
	// receive returns the next request, and the node if it is given.
	receive() (*request, *corev3.Node, error)
	send(*response) error
}

// DeltaAggregatedResources serves incremental ADS.
func (s *Server) DeltaAggregatedResources(g discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.serve(deltaWire{g}, true)
}

// StreamAggregatedResources serves state-of-the-world ADS.
func (s *Server) StreamAggregatedResources(g discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.serve(worldWire{g}, false)
}

// serve serves one stream until its client or the server ends it. This
// goroutine sends; another receives, so that a client that is slow to read is
// still heard.
func (s *Server) serve(w wire, delta bool) error {
	h, err := s.enter(s.cfg.Bound(w.Context()))
	if err != nil {
		return s.refuse(w, "", err)
	}
	defer s.exit(h)
	r, node, err := w.receive()
	if err != nil {
		return ended(err)
	}
	classed := s.classings()
	key, err := s.nodeClass(w.Context(), node)
	if err != nil {
		return s.refuse(w, node.GetId(), err)
	}
	st, err := s.join(h, node, key, classed, delta, address(w.Context()))
	if errors.Is(err, errStopping) || errors.Is(err, errMoved) {
		return status.Error(codes.Unavailable, err.Error())
	}
	if err != nil {
		return s.refuse(w, node.GetId(), err)
	}
	defer s.leave(st)
	s.cfg.Log.Info("proxy connected", "proxy", st.id, "peer", st.peer, "delta", delta)

	received := make(chan error, 1)
	go func() { // Run waits for it; it ends when this stream's handler has returned
		defer s.streams.Done()
		received <- s.receive(st, w, r)
	}()
	err = s.send(st, w, received)
	s.cfg.Log.Info("proxy disconnected", "proxy", st.id, "peer", st.peer, "reason", err)
	return err
}

// refuse is the error of a stream that proxy may not have.
func (s *Server) refuse(w wire, proxy string, err error) error {
	peer := address(w.Context())
	if unsaid, ok := s.lines.Tell(peer); ok {
		s.cfg.Log.Warn("proxy refused", "proxy", proxy[:min(len(proxy), maxName)], "peer", peer, "reason", err, "unsaid", unsaid)
	}
	return status.Error(refusal(err), err.Error())
}

// refusal is the code of an error of a stream that begins: its own, if it has one.
func refusal(err error) codes.Code {
	if errors.Is(err, ErrTooManyStreams) || errors.Is(err, ErrTooManyClasses) {
		return codes.ResourceExhausted
	}
	if s, ok := status.FromError(err); ok {
		return s.Code()
	}
	return codes.InvalidArgument
}

// receive takes requests, the first of which has been read, until there are no more.
func (s *Server) receive(st *stream, w wire, r *request) error {
	for {
		nack, err := st.request(r)
		if r.typeURL == ExtensionType {
			s.cfg.Changed()
		}
		if nack != nil {
			s.refused(st, nack)
		}
		if err != nil {
			return status.Error(code(err), err.Error())
		}
		if r, _, err = w.receive(); err != nil {
			return ended(err)
		}
	}
}

// code is that of an error of a request.
func code(err error) codes.Code {
	if errors.Is(err, ErrTooManyNames) || errors.Is(err, ErrTooManyTypes) {
		return codes.ResourceExhausted
	}
	return codes.InvalidArgument
}

const (
	// maxNames is how many names of one nack are logged.
	maxNames = 10
	// Nacks of one stream that are logged: so many at once, and one after each pause.
	nackLines = 100
	nackPause = time.Second
)

func (s *Server) refused(st *stream, n *Nack) {
	s.metrics.refused(n.Type)
	if !st.nacks.Allow() {
		st.unsaid++
		return
	}
	unsaid := st.unsaid
	st.unsaid = 0
	s.cfg.Log.Warn("configuration refused",
		"proxy", st.id,
		"type", n.Type,
		"resources", n.Names[:min(len(n.Names), maxNames)],
		"version", n.Version,
		"nonce", n.Nonce,
		"late", n.Late,
		"reason", n.Reason,
		"unsaid", unsaid)
}

// send sends what there is to send, when there is, until the stream ends.
func (s *Server) send(st *stream, w wire, received <-chan error) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		var again <-chan time.Time
		switch r, wake := st.next(); {
		case r != nil:
			if err := w.send(r); err != nil {
				return err
			}
			s.metrics.pushed(r.typeURL)
			continue
		case !wake.IsZero():
			timer.Reset(time.Until(wake))
			again = timer.C
		}
		select {
		case <-st.wake:
		case <-again:
		case err := <-received:
			return err
		case <-st.moved:
			return status.Error(codes.Unavailable, errMoved.Error())
		case <-s.stopping:
			return status.Error(codes.Unavailable, errStopping.Error())
		}
	}
}

// ended is nil if err is only the client's end of the stream.
func ended(err error) error {
	if errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled {
		return nil
	}
	return err
}

func address(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok {
		return p.Addr.String()
	}
	return ""
}

// deltaWire is incremental ADS.
type deltaWire struct {
	discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
}

func (w deltaWire) receive() (*request, *corev3.Node, error) {
	m, err := w.Recv()
	if err != nil {
		return nil, nil, err
	}
	return &request{
		typeURL:     m.GetTypeUrl(),
		nonce:       m.GetResponseNonce(),
		refused:     m.GetErrorDetail() != nil,
		reason:      m.GetErrorDetail().GetMessage(),
		code:        codes.Code(m.GetErrorDetail().GetCode()),
		subscribe:   m.GetResourceNamesSubscribe(),
		unsubscribe: m.GetResourceNamesUnsubscribe(),
		initial:     m.GetInitialResourceVersions(),
		modules:     ecds.Reported(m.GetNode()),
	}, m.GetNode(), nil
}

func (w deltaWire) send(r *response) error { return w.SendMsg(r.encode(true)) }

// worldWire is state-of-the-world ADS.
type worldWire struct {
	discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer
}

func (w worldWire) receive() (*request, *corev3.Node, error) {
	m, err := w.Recv()
	if err != nil {
		return nil, nil, err
	}
	return &request{
		typeURL: m.GetTypeUrl(),
		nonce:   m.GetResponseNonce(),
		refused: m.GetErrorDetail() != nil,
		reason:  m.GetErrorDetail().GetMessage(),
		code:    codes.Code(m.GetErrorDetail().GetCode()),
		names:   m.GetResourceNames(),
		version: m.GetVersionInfo(),
		modules: ecds.Reported(m.GetNode()),
	}, m.GetNode(), nil
}

func (w worldWire) send(r *response) error { return w.SendMsg(r.encode(false)) }
