package xds

import (
	"context"
	"fmt"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// as is a proxy on a stream of whoever it says.
func (m *mesh) as(who, id, class string) *proxy {
	m.t.Helper()
	ctx := metadata.AppendToOutgoingContext(m.t.Context(), "who", who)
	return m.in(ctx, m.connect(), id, class, true)
}

// boundByName counts streams by who they say they are of.
func boundByName(streams, classes int) func(context.Context) Bound {
	return func(ctx context.Context) Bound {
		who := metadata.ValueFromIncomingContext(ctx, "who")
		if len(who) == 0 {
			return Bound{}
		}
		return Bound{Holder: who[0], Streams: streams, Classes: classes}
	}
}

func TestStreamsOfOneHolder(t *testing.T) {
	m := newMesh(t)
	m.server.cfg.Bound = boundByName(3, 3)
	silent := []*proxy{m.as("x", "a", "a"), m.as("x", "b", "a")} // say nothing, and count
	talks := m.as("x", "c", "a")
	talks.send(request{typeURL: "ecds", names: []string{"e"}})
	<-m.appeared
	for _, p := range silent {
		p.send(request{typeURL: "ecds", names: []string{"e"}})
	}
	m.publish("a", "ecds e=1")
	for _, p := range append(silent, talks) {
		p.want("ecds e=1")
	}
	_, err := m.as("x", "d", "a").receive()
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "x: "+ErrTooManyStreams.Error()) {
		t.Errorf("one stream more: %v, want ResourceExhausted that says whose", err)
	}
	other := m.as("y", "e", "a")
	other.send(request{typeURL: "ecds", names: []string{"e"}})
	other.want("ecds e=1")

	if err := silent[0].delta.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := silent[0].receive(); err == nil { // the server has ended it, too
		t.Error("a stream goes on that its client ended")
	}
	again := m.as("x", "d", "a")
	again.send(request{typeURL: "ecds", names: []string{"e"}})
	again.want("ecds e=1")
	if log := m.log.String(); !strings.Contains(log, "proxy refused") {
		t.Errorf("the log does not tell of the refusal:\n%s", log)
	}
}

func TestClassesOfOneHolder(t *testing.T) {
	m := newMesh(t)
	m.server.cfg.Bound = boundByName(100, 2)
	connect := func(who, class string) (*proxy, error) {
		p := m.as(who, who+class, class)
		p.send(request{typeURL: "ecds", names: []string{"e"}})
		select {
		case <-m.appeared:
			m.publish(class, "ecds e=1")
		case <-p.delta.Context().Done():
		}
		_, err := p.receive()
		return p, err
	}
	first, err := connect("x", "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := connect("x", "b"); err != nil {
		t.Fatal(err)
	}
	third := m.as("x", "xc", "c")
	third.send(request{typeURL: "ecds", names: []string{"e"}})
	if _, err := third.receive(); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), ErrTooManyClasses.Error()) {
		t.Errorf("a third class: %v, want ResourceExhausted", err)
	}
	if n := len(m.server.Classes()); n != 2 {
		t.Errorf("%d classes, want 2", n)
	}
	same := m.as("x", "xa2", "a")
	same.send(request{typeURL: "ecds", names: []string{"e"}})
	same.want("ecds e=1")
	if _, err := connect("y", "c"); err != nil {
		t.Errorf("the same class for another: %v", err)
	}
	for _, p := range []*proxy{first, same} {
		if err := p.delta.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if _, err := p.receive(); err == nil {
			t.Error("a stream goes on that its client ended")
		}
	}
	if _, err := connect("x", "d"); err != nil {
		t.Errorf("a class in place of one that is gone: %v", err)
	}
	m.stop()
}

// Nothing is kept of holders without streams.
func TestHoldersAreForgotten(t *testing.T) {
	s := New(Config{})
	for i := range 1000 {
		h, err := s.enter(Bound{Holder: fmt.Sprint(i), Streams: 1})
		if err != nil {
			t.Fatal(err)
		}
		s.exit(h)
	}
	if n := len(s.holders); n != 0 {
		t.Errorf("%d holders are kept", n)
	}
}

func TestNodeTooLarge(t *testing.T) {
	m := newMesh(t)
	p := m.dial("p", "a", true)
	p.node.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"LABELS": structpb.NewStringValue(strings.Repeat("x", maxNode))}}
	p.send(request{typeURL: "ecds"})
	if _, err := p.receive(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "bytes long") {
		t.Errorf("error = %v, want InvalidArgument", err)
	}
}

// A proxy that refuses all day long does not fill the log; each refusal is counted.
func TestNackLines(t *testing.T) {
	m := newMesh(t)
	p := m.dial("p", "a", true)
	p.send(request{typeURL: "ecds", names: []string{"e"}})
	<-m.appeared
	m.publish("a", "ecds e=1")
	r := p.want("ecds e=1")
	const nacks = 20 * nackLines
	for range nacks {
		p.send(request{typeURL: "ecds", nonce: r.nonce, refused: true, reason: "no"})
	}
	p.caughtUp()
	if n := strings.Count(m.log.String(), "configuration refused"); n < nackLines || n > 2*nackLines {
		t.Errorf("%d lines of %d nacks, want about %d", n, nacks, nackLines)
	}
	families, err := m.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "pilot_total_xds_rejects" {
			if n := f.GetMetric()[0].GetCounter().GetValue(); n != nacks {
				t.Errorf("%v nacks are counted, want %d", n, nacks)
			}
		}
	}
}

// Whoever makes up nodes, classes and types makes no series of metrics.
func TestMetricsAreFew(t *testing.T) {
	m := newMesh(t)
	count := func() (n int) {
		families, err := m.metrics.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			n += len(f.GetMetric())
		}
		return n
	}
	one := func(i int) {
		p := m.dial(fmt.Sprint("p", i), fmt.Sprint("class", i), true)
		p.send(request{typeURL: "ecds", names: []string{"e"}})
		<-m.appeared
		made := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: fmt.Sprint("type.test/made.Up", i)}
		if err := p.delta.Send(made); err != nil {
			t.Fatal(err)
		}
		m.publish(fmt.Sprint("class", i), "ecds e=1")
		r := p.want("ecds e=1")
		p.send(request{typeURL: "ecds", nonce: r.nonce, refused: true, reason: fmt.Sprint("reason ", i)})
		p.caughtUp()
	}
	one(0)
	before := count()
	for i := range 50 {
		one(i + 1)
	}
	if after := count(); after != before {
		t.Errorf("%d series, before %d", after, before)
	}
}
