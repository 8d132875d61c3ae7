package xds

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

var short = map[string]string{
	"cds": ClusterType, "eds": EndpointType, "sds": SecretType,
	"ecds": ExtensionType, "lds": ListenerType, "rds": RouteType,
}

func shortOf(typeURL string) string {
	for s, long := range short {
		if long == typeURL {
			return s
		}
	}
	return typeURL
}

// envoyMessage makes a resource from "TYPE NAME=CONTENT".
func envoyMessage(t testing.TB, typ, name, content string) proto.Message {
	t.Helper()
	switch short[typ] {
	case ClusterType:
		return &clusterv3.Cluster{
			Name:                 name,
			AltStatName:          content,
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		}
	case EndpointType:
		return &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints:   []*endpointv3.LocalityLbEndpoints{{Locality: &corev3.Locality{Zone: content}}},
		}
	case SecretType:
		return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_GenericSecret{GenericSecret: &tlsv3.GenericSecret{
			Secret: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: content}},
		}}}
	case ExtensionType:
		body, err := anypb.New(wrapperspb.String(content))
		if err != nil {
			t.Fatal(err)
		}
		return &corev3.TypedExtensionConfig{Name: name, TypedConfig: body}
	case ListenerType:
		return &listenerv3.Listener{Name: name, StatPrefix: content}
	case RouteType:
		return &routev3.RouteConfiguration{Name: name, InternalOnlyHeaders: []string{content}}
	}
	t.Fatalf("no type %q", typ)
	return nil
}

// world makes a snapshot from "cds a=1 b=2; lds l=1".
func world(t testing.TB, prev *Snapshot, text string) *Snapshot {
	t.Helper()
	enc := NewEncoder()
	var all []*Resource
	for part := range strings.SplitSeq(text, ";") {
		fields := strings.Fields(part)
		for _, f := range fields[min(1, len(fields)):] {
			name, content, _ := strings.Cut(f, "=")
			r, err := enc.Encode(envoyMessage(t, fields[0], name, content))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, r)
		}
	}
	snap, err := NewSnapshot(prev, all)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

// contentOf is what envoyMessage put into r.
func contentOf(t testing.TB, r *Resource) string {
	t.Helper()
	m, err := r.Body.UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	switch m := m.(type) {
	case *clusterv3.Cluster:
		return m.GetAltStatName()
	case *endpointv3.ClusterLoadAssignment:
		return m.GetEndpoints()[0].GetLocality().GetZone()
	case *tlsv3.Secret:
		return m.GetGenericSecret().GetSecret().GetInlineString()
	case *corev3.TypedExtensionConfig:
		s := new(wrapperspb.StringValue)
		if err := m.GetTypedConfig().UnmarshalTo(s); err != nil {
			t.Fatal(err)
		}
		return s.GetValue()
	case *listenerv3.Listener:
		return m.GetStatPrefix()
	case *routev3.RouteConfiguration:
		return m.GetInternalOnlyHeaders()[0]
	}
	t.Fatalf("no content in %T", m)
	return ""
}

// A client drives a session, as the peer of its stream would.
type client struct {
	t       testing.TB
	s       *session
	now     time.Time
	wake    time.Time // when the session wants to be asked again
	snap    *Snapshot
	last    map[string]*response // by short type
	byName  map[string]*response // extension configs
	unacked []*response
	nacks   []Nack
}

func newClient(t testing.TB, delta bool) *client {
	return &client{
		t:      t,
		s:      newSession(delta, "s."),
		now:    time.Unix(1_000_000, 0),
		last:   make(map[string]*response),
		byName: make(map[string]*response),
	}
}

func (c *client) publish(text string) {
	c.snap = world(c.t, c.snap, text)
	c.s.offer(c.snap)
}

func (c *client) request(r request) {
	c.t.Helper()
	if long := short[r.typeURL]; long != "" {
		r.typeURL = long
	}
	nack, err := c.s.request(&r, c.now)
	if err != nil {
		c.t.Fatalf("request %+v: %v", r, err)
	}
	if nack != nil {
		c.nacks = append(c.nacks, *nack)
	}
}

// subscribe is a delta request that subscribes to names.
func (c *client) subscribe(typ string, names ...string) {
	c.t.Helper()
	c.request(request{typeURL: typ, subscribe: names})
}

func (c *client) ack(r *response) {
	c.t.Helper()
	c.request(request{typeURL: r.typeURL, nonce: r.nonce, version: r.version, names: c.names(r)})
}

func (c *client) nack(r *response, reason string) {
	c.t.Helper()
	c.request(request{typeURL: r.typeURL, nonce: r.nonce, version: "older", refused: true, reason: reason, names: c.names(r)})
}

// names are what a state-of-the-world client repeats in each request.
func (c *client) names(r *response) []string {
	var names []string
	if c.s.delta {
		return nil
	}
	w := c.s.watches[r.typeURL]
	for name := range w.names {
		names = append(names, name)
	}
	if w.wildcard && !w.legacy {
		names = append(names, wildcard)
	}
	return names
}

// read returns what the session sends now, as text, without answering.
func (c *client) read() []string {
	c.t.Helper()
	var out []string
	for {
		r, wake := c.s.next(c.now)
		if r == nil {
			c.wake = wake
			return out
		}
		if len(out) > 10_000 {
			c.t.Fatal("the session sends without end")
		}
		out = append(out, c.text(r))
		c.last[shortOf(r.typeURL)] = r
		c.unacked = append(c.unacked, r)
		for _, res := range r.resources {
			if r.typeURL == ExtensionType {
				c.byName[res.Name] = r
			}
		}
	}
}

func (c *client) text(r *response) string {
	out := shortOf(r.typeURL)
	for _, res := range r.resources {
		out += " " + res.Name + "=" + contentOf(c.t, res)
	}
	for _, name := range r.removed {
		out += " -" + name
	}
	return out
}

// ackAll acks everything that was read.
func (c *client) ackAll() {
	c.t.Helper()
	for _, r := range c.unacked {
		c.ack(r)
	}
	c.unacked = nil
}

// exchange reads and acks, letting time pass, until there is nothing more.
func (c *client) exchange() []string {
	c.t.Helper()
	var all []string
	for {
		out := c.read()
		c.ackAll()
		all = append(all, out...)
		if len(out) == 0 {
			if c.wake.IsZero() {
				return all
			}
			c.now = c.wake
		}
	}
}

func (c *client) want(want ...string) {
	c.t.Helper()
	c.same(c.read(), want)
}

func (c *client) wantExchange(want ...string) {
	c.t.Helper()
	c.same(c.exchange(), want)
}

func (c *client) same(got, want []string) {
	c.t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		c.t.Fatalf("responses (-want +got):\n%s", diff)
	}
}

// start subscribes to everything as Envoy does and acks it.
func (c *client) start(types ...string) {
	c.t.Helper()
	for _, typ := range []string{"cds", "lds"} {
		c.request(request{typeURL: typ})
	}
	for _, text := range types {
		f := strings.Fields(text)
		c.request(request{typeURL: f[0], subscribe: f[1:], names: f[1:]})
	}
	c.exchange()
}

func TestDelta(t *testing.T) {
	for _, tt := range []struct {
		name string
		run  func(c *client)
	}{
		{"nothing before the first snapshot", func(c *client) {
			c.request(request{typeURL: "cds"})
			c.want()
			c.publish("cds a=1")
			c.want("cds a=1")
		}},
		{"legacy wildcard, and an answer even if there is nothing", func(c *client) {
			c.publish("cds a=1 b=1")
			c.request(request{typeURL: "cds"})
			c.request(request{typeURL: "lds"})
			c.want("cds a=1 b=1", "lds")
		}},
		{"explicit wildcard", func(c *client) {
			c.publish("lds a=1 b=1")
			c.subscribe("lds", "*")
			c.want("lds a=1 b=1")
			c.subscribe("cds", "*")
			c.want("cds")
		}},
		{"wildcard and a name: the name stays when the wildcard goes", func(c *client) {
			c.publish("lds a=1 b=1")
			c.subscribe("lds", "*", "a")
			c.wantExchange("lds a=1 b=1")
			c.request(request{typeURL: "lds", unsubscribe: []string{"*"}})
			c.publish("lds a=2 b=2 c=2")
			c.wantExchange("lds a=2")
		}},
		{"wildcard that goes before it was answered sends nothing more", func(c *client) {
			c.publish("lds a=1 b=1")
			c.subscribe("lds", "*", "a")
			c.request(request{typeURL: "lds", unsubscribe: []string{"*"}})
			c.want("lds a=1")
		}},
		{"a name that goes under the wildcard stays wanted", func(c *client) {
			c.publish("lds a=1 b=1")
			c.subscribe("lds", "*", "a")
			c.wantExchange("lds a=1 b=1")
			c.request(request{typeURL: "lds", unsubscribe: []string{"a"}})
			c.wantExchange("lds a=1")
			c.publish("lds a=2 b=1")
			c.wantExchange("lds a=2")
		}},
		{"only what changed", func(c *client) {
			c.publish("cds a=1 b=1 c=1")
			c.start()
			c.publish("cds a=1 b=2 c=1")
			c.want("cds b=2")
		}},
		{"on demand: only what is subscribed to", func(c *client) {
			c.publish("eds a=1 b=1 c=1")
			c.subscribe("eds", "a")
			c.want("eds a=1")
			c.subscribe("eds", "b")
			c.want("eds b=1")
			c.publish("eds a=2 b=2 c=2")
			c.want("eds a=2 b=2")
			c.request(request{typeURL: "eds", unsubscribe: []string{"a"}})
			c.publish("eds a=3 b=3 c=3")
			c.want("eds b=3")
		}},
		{"no name, no wildcard for types on demand", func(c *client) {
			c.publish("rds a=1; eds a=1")
			c.subscribe("rds")
			c.subscribe("eds")
			c.want()
		}},
		{"subscribing again gets it again", func(c *client) {
			c.publish("rds a=1")
			c.subscribe("rds", "a")
			c.wantExchange("rds a=1")
			c.subscribe("rds", "a")
			c.wantExchange("rds a=1")
		}},
		{"what is not there is said once, and sent when it is", func(c *client) {
			c.publish("rds b=1")
			c.subscribe("rds", "a", "b")
			c.wantExchange("rds b=1", "rds -a")
			c.publish("rds b=2")
			c.wantExchange("rds b=2")
			c.publish("rds a=1 b=2")
			c.wantExchange("rds a=1")
		}},
		{"an unknown type has nothing", func(c *client) {
			c.publish("rds b=1")
			c.subscribe("type.googleapis.com/envoy.service.runtime.v3.Runtime", "rtds")
			c.want("type.googleapis.com/envoy.service.runtime.v3.Runtime -rtds")
		}},
		{"extensions are a response each", func(c *client) {
			c.publish("ecds a=1 b=1 c=1")
			c.subscribe("ecds", "c", "b", "a")
			c.want("ecds a=1", "ecds b=1", "ecds c=1")
		}},
		{"one extension that is not answered holds back no other, nor its own newer version", func(c *client) {
			c.publish("ecds a=1 b=1")
			c.subscribe("ecds", "a", "b")
			c.want("ecds a=1", "ecds b=1")
			c.publish("ecds a=1 b=2")
			c.want("ecds b=2")
			c.publish("ecds a=2 b=2")
			c.want("ecds a=2")
		}},
		{"an extension that a proxy has is never removed", func(c *client) {
			c.publish("ecds a=1; lds l=1")
			c.start("ecds a")
			c.publish("lds l=2")
			c.wantExchange("lds l=2")
			c.publish("lds l=2; ecds a=1")
			c.wantExchange("ecds a=1")
			c.request(request{typeURL: "ecds", unsubscribe: []string{"a"}})
			c.publish("lds l=2")
			c.wantExchange()
		}},
		{"an extension that never was is said not to be, after the listeners", func(c *client) {
			c.publish("lds l=1")
			c.start()
			c.publish("lds l=2")
			c.subscribe("ecds", "a")
			c.want("lds l=2", "ecds -a")
		}},
		{"coalesced: only the newest snapshot counts", func(c *client) {
			c.publish("cds a=1 b=1")
			c.start()
			c.publish("cds a=2 b=1")
			c.publish("cds a=3 b=2")
			c.publish("cds a=4 b=1 c=1")
			c.want("cds a=4 c=1")
		}},
		{"there and back again is nothing", func(c *client) {
			c.publish("cds a=1; lds l=1")
			c.start()
			c.publish("cds a=2; lds l=2")
			c.publish("cds a=1; lds l=1")
			c.want()
			c.publish("cds b=1; lds l=1")
			c.publish("cds a=1; lds l=1")
			c.want()
		}},
		{"a refused version is sent again after what is new, the next instead of it", func(c *client) {
			c.publish("cds a=1")
			c.request(request{typeURL: "cds"})
			c.want("cds a=1")
			c.nack(c.last["cds"], "no")
			c.want()
			c.publish("cds a=1 b=1")
			c.want("cds b=1", "cds a=1")
			c.nack(c.last["cds"], "no")
			c.publish("cds a=2 b=1")
			c.want("cds a=2")
		}},
		{"reconnect: what the client has is not sent, what is gone is removed", func(c *client) {
			c.publish("cds a=1 b=2 c=1; lds l=1; ecds x=1 y=2")
			have := func(typ, name string) string {
				return world(c.t, nil, typ+" "+name).set(short[typ]).resources[name[:1]].Version
			}
			c.request(request{typeURL: "cds", nonce: "old.7", initial: map[string]string{
				"a": have("cds", "a=1"), "b": have("cds", "b=1"), "z": "whatever",
			}})
			c.request(request{typeURL: "lds", initial: map[string]string{"l": have("lds", "l=1"), "gone": "1"}})
			c.request(request{typeURL: "ecds", subscribe: []string{"x", "y", "gone"}, initial: map[string]string{
				"x": have("ecds", "x=1"), "y": have("ecds", "y=1"), "gone": "1", "unwanted": "1",
			}})
			c.wantExchange("cds b=2 c=1", "ecds y=2", "lds -gone", "cds -z")
		}},
		{"what is gone is not removed before listeners were asked for", func(c *client) {
			c.publish("cds a=1; lds l=2")
			c.request(request{typeURL: "cds", initial: map[string]string{"a": "older", "z": "1"}})
			c.want("cds a=1")
			c.ackAll()
			c.want()
			c.request(request{typeURL: "lds", initial: map[string]string{"l": "older"}})
			c.want("lds l=2")
			c.now = c.now.Add(settle)
			c.want()
			c.ackAll()
			c.now = c.now.Add(settle)
			c.want("cds -z")
		}},
		{"reconnect with nothing new is silent", func(c *client) {
			c.publish("cds a=1")
			c.request(request{typeURL: "cds", subscribe: []string{"*"}, initial: map[string]string{"a": c.snap.set(ClusterType).resources["a"].Version}})
			c.wantExchange()
		}},
		{"order: what is referred to goes first, removals last", func(c *client) {
			c.publish("cds old=1; eds old=1; sds s=1; ecds x=1; lds l=1; rds r=1")
			c.start("eds old new", "sds s", "ecds x", "rds r")
			c.publish("cds new=1; eds new=1; sds s=2; ecds x=2; lds l=2; rds r=2")
			c.want("cds new=1", "eds new=1", "sds s=2", "ecds x=2") // listeners wait for the clusters
			c.ackAll()
			c.want("lds l=2", "rds r=2") // removals wait for the listeners
			c.ackAll()
			c.want()
			c.now = c.now.Add(settle)
			c.want("eds -old", "cds -old")
		}},
		{"a proxy that starts waits for nothing", func(c *client) {
			c.publish("cds a=1; lds l=1; rds r=1")
			c.request(request{typeURL: "cds"})
			c.request(request{typeURL: "lds"})
			c.want("cds a=1", "lds l=1")
			c.subscribe("rds", "r")
			c.want("rds r=1")
		}},
		{"listeners wait for unanswered clusters only so long", func(c *client) {
			c.publish("cds a=1; lds l=1")
			c.start()
			c.publish("cds a=2; lds l=2")
			c.want("cds a=2")
			c.now = c.now.Add(warmPatience - 1)
			c.want()
			c.now = c.now.Add(1)
			c.want("lds l=2")
		}},
		{"listeners do not wait for refused clusters", func(c *client) {
			c.publish("cds a=1; lds l=1")
			c.start()
			c.publish("cds a=2; lds l=2")
			c.want("cds a=2")
			c.nack(c.last["cds"], "no")
			c.want("lds l=2")
		}},
		{"a cluster is removed at once if no listener or route changed lately", func(c *client) {
			c.publish("cds a=1 b=1; lds l=1")
			c.start()
			c.now = c.now.Add(settle)
			c.publish("cds a=1; lds l=1")
			c.want("cds -b")
		}},
		{"a cluster stays while routes that may use it are not answered, but not for ever", func(c *client) {
			c.publish("cds a=1 b=1; rds r=1")
			c.start("rds r")
			c.publish("cds a=1; rds r=2")
			c.want("rds r=2")
			c.now = c.now.Add(usePatience - 1)
			c.want()
			c.now = c.now.Add(1)
			c.want("cds -b")
		}},
		{"a cluster stays as long as the new listener is refused", func(c *client) {
			c.publish("cds a=1 b=1; lds l=1")
			c.start()
			c.publish("cds a=1; lds l=2")
			c.want("lds l=2")
			c.nack(c.last["lds"], "no")
			c.now = c.now.Add(time.Hour)
			c.want("lds l=2")
			c.nack(c.last["lds"], "no")
			c.want()
			c.publish("cds a=1; lds l=3")
			c.wantExchange("lds l=3", "cds -b")
		}},
		{"a cluster that comes back was never away", func(c *client) {
			c.publish("cds a=1 b=1; rds r=1")
			c.start("rds r")
			c.publish("cds a=1; rds r=2")
			c.want("rds r=2")
			c.publish("cds a=1 b=1; rds r=2")
			c.ackAll()
			c.wantExchange()
		}},
		{"listeners go as others come, in one response", func(c *client) {
			c.publish("lds a=1")
			c.start()
			c.publish("lds b=1")
			c.want("lds b=1 -a")
			c.publish("")
			c.want("lds -b")
		}},
		{"a changed cluster gets its endpoints again", func(c *client) {
			c.publish("cds a=1 b=1; eds a=1 b=1")
			c.start("eds a b")
			c.publish("cds a=2 b=1; eds a=1 b=1")
			c.want("cds a=2", "eds a=1")
		}},
		{"also right after a reconnect", func(c *client) {
			c.publish("cds a=2; eds a=1")
			c.request(request{typeURL: "cds", initial: map[string]string{"a": "older"}})
			c.want("cds a=2")
			c.request(request{typeURL: "eds", subscribe: []string{"a"}, initial: map[string]string{"a": c.snap.set(EndpointType).resources["a"].Version}})
			c.want("eds a=1")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(newClient(t, true)) })
	}
}

func TestStateOfTheWorld(t *testing.T) {
	for _, tt := range []struct {
		name string
		run  func(c *client)
	}{
		{"wildcard, and an answer even if there is nothing", func(c *client) {
			c.publish("cds a=1 b=1")
			c.start()
			c.publish("cds a=1 b=2")
			c.want("cds a=1 b=2")
		}},
		{"empty is an answer", func(c *client) {
			c.publish("cds a=1")
			c.request(request{typeURL: "lds"})
			c.want("lds")
		}},
		{"explicit wildcard", func(c *client) {
			c.publish("lds a=1")
			c.request(request{typeURL: "lds", names: []string{"*"}})
			c.want("lds a=1")
		}},
		{"names given end the legacy wildcard, and none then is none", func(c *client) {
			c.publish("lds a=1 b=1")
			c.request(request{typeURL: "lds"})
			c.wantExchange("lds a=1 b=1")
			last := c.last["lds"]
			c.request(request{typeURL: "lds", nonce: last.nonce, version: last.version, names: []string{"a"}})
			c.wantExchange("lds a=1")
			last = c.last["lds"]
			c.request(request{typeURL: "lds", nonce: last.nonce, version: last.version})
			c.publish("lds a=2 b=2")
			c.wantExchange()
		}},
		{"on demand: all that is subscribed to, when some of it changes", func(c *client) {
			c.publish("eds a=1 b=1 c=1")
			c.request(request{typeURL: "eds", names: []string{"a", "b"}})
			c.wantExchange("eds a=1 b=1")
			c.publish("eds a=1 b=1 c=2")
			c.wantExchange()
			c.publish("eds a=2 b=1 c=2")
			c.wantExchange("eds a=2 b=1")
		}},
		{"a new name is answered, a name less is not", func(c *client) {
			c.publish("eds a=1 b=1")
			c.request(request{typeURL: "eds", names: []string{"a"}})
			c.wantExchange("eds a=1")
			last := c.last["eds"]
			c.request(request{typeURL: "eds", nonce: last.nonce, version: last.version, names: []string{"a", "b"}})
			c.wantExchange("eds a=1 b=1")
			last = c.last["eds"]
			c.request(request{typeURL: "eds", nonce: last.nonce, version: last.version, names: []string{"b"}})
			c.wantExchange()
		}},
		{"a stale nonce subscribes to nothing", func(c *client) {
			c.publish("eds a=1 b=1")
			c.request(request{typeURL: "eds", names: []string{"a"}})
			c.want("eds a=1")
			first := c.last["eds"]
			c.publish("eds a=2 b=1")
			c.want("eds a=2")
			c.request(request{typeURL: "eds", nonce: first.nonce, version: first.version, names: []string{"a", "b"}})
			c.want()
			c.request(request{typeURL: "eds", nonce: c.last["eds"].nonce, version: c.last["eds"].version, names: []string{"a", "b"}})
			c.want("eds a=2 b=1")
		}},
		{"all extensions in one response", func(c *client) {
			c.publish("ecds a=1 b=1")
			c.request(request{typeURL: "ecds", names: []string{"a", "b"}})
			c.wantExchange("ecds a=1 b=1")
			c.publish("ecds a=2 b=1")
			c.wantExchange("ecds a=2 b=1")
		}},
		{"an extension that goes is left out of the next, no response for it alone", func(c *client) {
			c.publish("ecds a=1 b=1")
			c.start("ecds a b")
			c.publish("ecds b=1")
			c.wantExchange()
			c.publish("ecds a=1 b=1")
			c.wantExchange("ecds a=1 b=1")
		}},
		{"a refused version is not sent again, the next is", func(c *client) {
			c.publish("cds a=1")
			c.request(request{typeURL: "cds"})
			c.want("cds a=1")
			c.nack(c.last["cds"], "no")
			c.want()
			c.publish("cds a=2")
			c.want("cds a=2")
		}},
		{"clusters go in a second step, after listeners and routes", func(c *client) {
			c.publish("cds old=1; lds l=1; rds r=1")
			c.start("rds r")
			c.publish("cds new=1; lds l=2; rds r=2")
			c.want("cds new=1 old=1")
			c.ackAll()
			c.want("lds l=2", "rds r=2")
			c.ackAll()
			c.want()
			c.now = c.now.Add(settle)
			c.want("cds new=1")
			c.ackAll()
			c.wantExchange()
		}},
		{"a listener goes at once", func(c *client) {
			c.publish("lds a=1 b=1")
			c.start()
			c.publish("lds a=1")
			c.wantExchange("lds a=1")
		}},
		{"reconnect with the version that is", func(c *client) {
			c.publish("cds a=1; lds l=1; ecds x=1")
			c.request(request{typeURL: "cds", nonce: "old.1", version: c.snap.Version(ClusterType)})
			c.request(request{typeURL: "lds", nonce: "old.2", version: "other"})
			c.request(request{typeURL: "ecds", nonce: "old.3", version: c.snap.Version(ExtensionType), names: []string{"x"}})
			c.wantExchange("ecds x=1", "lds l=1")
			c.publish("cds a=2; lds l=1; ecds x=1")
			c.wantExchange("cds a=2")
		}},
		{"reconnect: clusters that the client is known to have go after listeners and routes", func(c *client) {
			c.s.past = newPast()
			c.publish("cds old=1 same=1; lds l=1; rds r=1")
			c.start("rds r")
			again := newClient(c.t, false)
			again.s.past, again.now = c.s.past, c.now
			again.publish("cds new=1 same=1; lds l=2; rds r=2")
			again.request(request{typeURL: "cds", nonce: "old.1", version: c.snap.Version(ClusterType)})
			again.request(request{typeURL: "lds", nonce: "old.2", version: "other"})
			again.request(request{typeURL: "rds", nonce: "old.3", version: "other", names: []string{"r"}})
			again.want("cds new=1 old=1 same=1")
			again.ackAll()
			again.want("lds l=2", "rds r=2")
			again.ackAll()
			again.want()
			again.now = again.now.Add(settle)
			again.want("cds new=1 same=1")
		}},
		{"reconnect: listeners and routes wait for clusters, known or not", func(c *client) {
			c.publish("cds a=1; lds l=1")
			c.request(request{typeURL: "cds", nonce: "old.1", version: "other"})
			c.request(request{typeURL: "lds", nonce: "old.2", version: "other"})
			c.want("cds a=1")
			c.now = c.now.Add(warmPatience)
			c.want("lds l=1")
		}},
		{"a changed cluster gets the endpoints again", func(c *client) {
			c.publish("cds a=1; eds a=1 b=1")
			c.start("eds a b")
			c.publish("cds a=2; eds a=1 b=1")
			c.want("cds a=2", "eds a=1 b=1")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(newClient(t, false)) })
	}
}

// TestAnswers follows one extension from sent to refused to healed, in both variants.
func TestAnswers(t *testing.T) {
	for _, delta := range []bool{true, false} {
		t.Run(fmt.Sprintf("delta=%v", delta), func(t *testing.T) {
			c := newClient(t, delta)
			held := func(state State, content, running, reason string) {
				t.Helper()
				version := func(content string) string {
					if content == "" {
						return ""
					}
					return world(t, nil, "ecds x="+content).set(ExtensionType).resources["x"].Version
				}
				got := c.s.watches[ExtensionType].status().Extensions[0]
				got.Since = time.Time{}
				want := Held{Name: "x", State: state, Version: version(content), Running: version(running), Reason: reason}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("state of x (-want +got):\n%s", diff)
				}
			}
			c.publish("ecds x=1")
			c.request(request{typeURL: "ecds", subscribe: []string{"x"}, names: []string{"x"}})
			held(Pending, "", "", "")
			c.want("ecds x=1")
			held(Pending, "1", "", "")
			one := c.last["ecds"]
			c.ack(one)
			held(Acked, "1", "1", "")

			c.publish("ecds x=2")
			c.want("ecds x=2")
			two := c.last["ecds"]
			held(Pending, "2", "1", "")
			c.nack(two, "no such image")
			held(Nacked, "2", "1", "no such image")
			c.nack(two, "still no such image")
			held(Nacked, "2", "1", "still no such image")
			c.nack(one, "late")
			held(Nacked, "2", "1", "still no such image")
			if st := c.s.watches[ExtensionType].status(); st.Reason != "still no such image" || st.Nacked != two.version {
				t.Errorf("status of type = %+v, want it refused", st)
			}
			c.ack(two) // the agent got the module at last
			held(Acked, "2", "2", "")
			c.want()

			c.publish("")
			c.want()
			held(Missing, "", "2", "")

			want := []Nack{
				{Type: ExtensionType, Names: []string{"x"}, Version: two.version, Nonce: two.nonce, Reason: "no such image"},
				{Type: ExtensionType, Names: []string{"x"}, Version: two.version, Nonce: two.nonce, Reason: "still no such image"},
				{Type: ExtensionType, Nonce: one.nonce, Reason: "late", Late: true},
			}
			if diff := cmp.Diff(want, c.nacks); diff != "" {
				t.Errorf("nacks (-want +got):\n%s", diff)
			}
		})
	}
}

// TestWorldSubscriptionAfterNack: a request with the nonce of a refused response
// but an older version only subscribes.
func TestWorldSubscriptionAfterNack(t *testing.T) {
	c := newClient(t, false)
	c.publish("ecds x=1 y=1")
	c.request(request{typeURL: "ecds", names: []string{"x"}})
	c.want("ecds x=1")
	r := c.last["ecds"]
	c.nack(r, "no")
	c.request(request{typeURL: "ecds", nonce: r.nonce, names: []string{"x"}})
	if st := c.s.watches[ExtensionType].status().Extensions[0].State; st != Nacked {
		t.Errorf("state = %s, want %s", st, Nacked)
	}
}

func TestLargeResponsesAreSplit(t *testing.T) {
	c := newClient(t, true)
	big := strings.Repeat("x", maxResponse/2)
	c.publish(fmt.Sprintf("cds a=%[1]s b=%[1]s c=%[1]s d=%[1]s e=%[1]s", big))
	c.request(request{typeURL: "cds"})
	c.read()
	var sizes []int
	for _, r := range c.unacked {
		sizes = append(sizes, len(r.resources))
	}
	if want := []int{2, 2, 1}; !slices.Equal(sizes, want) {
		t.Errorf("resources in each response = %v, want %v", sizes, want)
	}
}

// manyNames are one more than a client may subscribe to.
func manyNames() []string {
	many := make([]string, maxSubscriptions+1)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	return many
}

func TestRefusedRequests(t *testing.T) {
	many := manyNames()
	for _, tt := range []struct {
		name string
		r    request
		want error
	}{
		{"no type", request{}, ErrNoType},
		{"long type", request{typeURL: strings.Repeat("x", maxName+1)}, ErrLongName},
		{"long name", request{typeURL: EndpointType, subscribe: []string{strings.Repeat("x", maxName+1)}, names: []string{strings.Repeat("x", maxName+1)}}, ErrLongName},
		{"many names", request{typeURL: EndpointType, subscribe: many, names: many}, ErrTooManyNames},
	} {
		for _, delta := range []bool{true, false} {
			if _, err := newSession(delta, "").request(&tt.r, time.Time{}); err != tt.want {
				t.Errorf("%s, delta=%v: error = %v, want %v", tt.name, delta, err, tt.want)
			}
		}
	}
	s := newSession(true, "")
	for i := range maxTypes {
		if _, err := s.request(&request{typeURL: fmt.Sprint(i)}, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.request(&request{typeURL: "one more"}, time.Time{}); err != ErrTooManyTypes {
		t.Errorf("error = %v, want %v", err, ErrTooManyTypes)
	}
}
