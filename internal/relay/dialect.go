package relay

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/chandler-proxy/chandler/internal/ecds"
	"github.com/chandler-proxy/chandler/internal/module"
)

// A request is what Envoy says about extension configs, in either variant.
type request struct {
	first       bool // on its stream
	node        *corev3.Node
	subscribe   []string
	unsubscribe []string
	// have is what Envoy already holds, by name, at the first request of a
	// stream. The version is empty if the variant does not tell.
	have   map[string]string
	nonce  string // of the response that is acked or nacked; empty if neither
	reject string // why it is nacked; empty for an ack
}

// A response is what the control plane says about extension configs.
type response struct {
	nonce     string
	version   string // of the whole, in state of the world
	from      string // the control plane's identifier
	resources []resource
	removed   []string
}

type resource struct {
	name    string
	version string
	body    *anypb.Any
}

// listeners is what the control plane says about listeners, in either variant.
type listeners struct {
	changed map[string]*anypb.Any // by name
	removed []string
	whole   bool // what is not among changed is gone
}

// A dialect is a variant of the protocol, on one stream: what to say of
// extension configs in it. It holds what the variant wants remembered.
type dialect interface {
	// requestType and responseType are the type URLs of the messages in f.
	requestType(f frame) string
	responseType(f frame) string

	// Towards Envoy.
	request(f frame) (request, error)
	deliver(nonce string, r resource) (frame, error)

	// Towards the control plane.
	response(f frame) (response, error)
	subscribe(r request) (frame, error)
	ack(nonce string) (frame, error) // nil if there is no one to tell
	nack(nonce string, code codes.Code, reason string) (frame, error)
	report(modules map[string]module.Digest) (frame, error)

	// listeners are what a response with listeners says.
	listeners(f frame) listeners
	// hasListeners says whether Envoy, at its first request for listeners on a
	// stream, has some that the control plane need not send again.
	hasListeners(f frame) bool

	// cumulative says that Envoy may answer only the last of several responses.
	cumulative() bool
}

// Fields of the messages of envoy.service.discovery.v3.
const (
	requestTypeField      protowire.Number = 4
	responseTypeField     protowire.Number = 4
	deltaRequestTypeField protowire.Number = 2
	listenerNameField     protowire.Number = 1 // of envoy.config.listener.v3.Listener
)

func reject(code codes.Code, reason string) *statuspb.Status {
	return &statuspb.Status{Code: int32(code), Message: reason}
}

// delta is the incremental variant.
type delta struct{ begun bool }

func (*delta) requestType(f frame) string  { return f.stringField(deltaRequestTypeField) }
func (*delta) responseType(f frame) string { return f.stringField(responseTypeField) }

func (d *delta) request(f frame) (request, error) {
	m := new(discoveryv3.DeltaDiscoveryRequest)
	if err := proto.Unmarshal(f, m); err != nil {
		return request{}, err
	}
	r := request{
		first:       !d.begun,
		node:        m.GetNode(),
		subscribe:   m.GetResourceNamesSubscribe(),
		unsubscribe: m.GetResourceNamesUnsubscribe(),
		have:        m.GetInitialResourceVersions(),
		nonce:       m.GetResponseNonce(),
		reject:      rejection(m.GetErrorDetail()),
	}
	d.begun = true
	return r, nil
}

// rejection is the reason in s, never empty if there is an s.
func rejection(s *statuspb.Status) string {
	if s != nil && s.GetMessage() == "" {
		return "no reason given"
	}
	return s.GetMessage()
}

func (*delta) deliver(nonce string, r resource) (frame, error) {
	return proto.Marshal(&discoveryv3.DeltaDiscoveryResponse{
		SystemVersionInfo: r.version,
		TypeUrl:           ecds.TypeURL,
		Nonce:             nonce,
		Resources:         []*discoveryv3.Resource{{Name: r.name, Version: r.version, Resource: r.body}},
	})
}

func (*delta) response(f frame) (response, error) {
	m := new(discoveryv3.DeltaDiscoveryResponse)
	if err := proto.Unmarshal(f, m); err != nil {
		return response{}, err
	}
	r := response{
		nonce:   m.GetNonce(),
		version: m.GetSystemVersionInfo(),
		from:    m.GetControlPlane().GetIdentifier(),
		removed: m.GetRemovedResources(),
	}
	for _, res := range m.GetResources() {
		r.resources = append(r.resources, resource{res.GetName(), res.GetVersion(), res.GetResource()})
	}
	return r, nil
}

func (*delta) subscribe(r request) (frame, error) {
	return proto.Marshal(&discoveryv3.DeltaDiscoveryRequest{
		Node:                     r.node,
		TypeUrl:                  ecds.TypeURL,
		ResourceNamesSubscribe:   r.subscribe,
		ResourceNamesUnsubscribe: r.unsubscribe,
		InitialResourceVersions:  r.have,
	})
}

func (*delta) ack(nonce string) (frame, error) {
	return proto.Marshal(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: ecds.TypeURL, ResponseNonce: nonce})
}

func (*delta) nack(nonce string, code codes.Code, reason string) (frame, error) {
	return proto.Marshal(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl:       ecds.TypeURL,
		ResponseNonce: nonce,
		ErrorDetail:   reject(code, reason),
	})
}

func (*delta) report(modules map[string]module.Digest) (frame, error) {
	return proto.Marshal(&discoveryv3.DeltaDiscoveryRequest{Node: ecds.Report(modules), TypeUrl: ecds.TypeURL})
}

func (*delta) cumulative() bool { return false }

func (*delta) listeners(f frame) listeners {
	m := new(discoveryv3.DeltaDiscoveryResponse)
	if err := proto.Unmarshal(f, m); err != nil {
		return listeners{} // Envoy will refuse it
	}
	l := listeners{changed: make(map[string]*anypb.Any), removed: m.GetRemovedResources()}
	for _, res := range m.GetResources() {
		l.changed[res.GetName()] = res.GetResource()
	}
	return l
}

func (*delta) hasListeners(f frame) bool {
	m := new(discoveryv3.DeltaDiscoveryRequest)
	return proto.Unmarshal(f, m) == nil && len(m.GetInitialResourceVersions()) > 0
}

// sotw is the state-of-the-world variant. Every request repeats all names and
// the last version accepted, and only the last nonce can be acked.
type sotw struct {
	begun    bool
	names    []string          // that Envoy subscribes to
	accepted string            // version last acked upwards
	last     string            // nonce last received from above
	versions map[string]string // of responses from above that are not acked yet, by nonce
}

func (*sotw) requestType(f frame) string  { return f.stringField(requestTypeField) }
func (*sotw) responseType(f frame) string { return f.stringField(responseTypeField) }

func (s *sotw) request(f frame) (request, error) {
	m := new(discoveryv3.DiscoveryRequest)
	if err := proto.Unmarshal(f, m); err != nil {
		return request{}, err
	}
	r := request{
		first:       !s.begun,
		node:        m.GetNode(),
		subscribe:   without(m.GetResourceNames(), s.names),
		unsubscribe: without(s.names, m.GetResourceNames()),
		nonce:       m.GetResponseNonce(),
		reject:      rejection(m.GetErrorDetail()),
	}
	if r.first && m.GetVersionInfo() != "" {
		r.have = make(map[string]string)
		for _, name := range r.subscribe {
			r.have[name] = ""
		}
	}
	s.begun, s.names = true, m.GetResourceNames()
	return r, nil
}

// without returns the elements of a that are not in b.
func without(a, b []string) []string {
	in := make(map[string]bool, len(b))
	for _, x := range b {
		in[x] = true
	}
	var rest []string
	for _, x := range a {
		if !in[x] {
			rest = append(rest, x)
		}
	}
	return rest
}

func (*sotw) deliver(nonce string, r resource) (frame, error) {
	return proto.Marshal(&discoveryv3.DiscoveryResponse{
		VersionInfo: r.version,
		TypeUrl:     ecds.TypeURL,
		Nonce:       nonce,
		Resources:   []*anypb.Any{r.body},
	})
}

func (s *sotw) response(f frame) (response, error) {
	m := new(discoveryv3.DiscoveryResponse)
	if err := proto.Unmarshal(f, m); err != nil {
		return response{}, err
	}
	s.last = m.GetNonce()
	s.versions = map[string]string{s.last: m.GetVersionInfo()} // an older nonce is stale now
	r := response{nonce: m.GetNonce(), version: m.GetVersionInfo(), from: m.GetControlPlane().GetIdentifier()}
	for _, body := range m.GetResources() {
		r.resources = append(r.resources, resource{ecds.Name(body), m.GetVersionInfo(), body})
	}
	return r, nil
}

func (s *sotw) message() *discoveryv3.DiscoveryRequest {
	return &discoveryv3.DiscoveryRequest{
		TypeUrl:       ecds.TypeURL,
		VersionInfo:   s.accepted,
		ResourceNames: s.names,
		ResponseNonce: s.last,
	}
}

func (s *sotw) subscribe(r request) (frame, error) {
	m := s.message()
	m.Node = r.node
	return proto.Marshal(m)
}

func (s *sotw) ack(nonce string) (frame, error) {
	if nonce != s.last {
		return nil, nil
	}
	s.accepted = s.versions[nonce]
	return proto.Marshal(s.message())
}

func (s *sotw) nack(nonce string, code codes.Code, reason string) (frame, error) {
	m := s.message()
	m.ResponseNonce = nonce
	m.ErrorDetail = reject(code, reason)
	return proto.Marshal(m)
}

// report repeats the last answer.
func (s *sotw) report(modules map[string]module.Digest) (frame, error) {
	m := s.message()
	m.Node = ecds.Report(modules)
	return proto.Marshal(m)
}

func (*sotw) cumulative() bool { return true }

func (*sotw) listeners(f frame) listeners {
	m := new(discoveryv3.DiscoveryResponse)
	if err := proto.Unmarshal(f, m); err != nil {
		return listeners{}
	}
	l := listeners{changed: make(map[string]*anypb.Any), whole: true}
	for _, body := range m.GetResources() {
		l.changed[frame(body.GetValue()).stringField(listenerNameField)] = body
	}
	return l
}

// hasListeners is false: every response has all listeners.
func (*sotw) hasListeners(frame) bool { return false }
