package gateway

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// Known is what there is to know beside the Gateways and HTTPRoutes themselves.
type Known struct {
	World    *mesh.World
	Problems []resource.Problem // that translate found; those of other resources do not matter
	Now      time.Time
	Revision string // of the control plane; empty is the default one
}

// A Deployment is how far a Gateway's own objects are.
type Deployment struct {
	Service   *corev1.Service // nil if it is not there
	Available int32           // pods that are ready
	Failure   string          // why the objects could not be made, for people; empty if they could
}

// ClassStatus is the status of a GatewayClass of ours.
func ClassStatus(class *gatewayv1.GatewayClass, now time.Time) gatewayv1.GatewayClassStatus {
	c := conditions{class.Status.Conditions, class.Generation, now}.clone()
	if class.Spec.ParametersRef != nil {
		c.set(string(gatewayv1.GatewayClassConditionStatusAccepted), false, string(gatewayv1.GatewayClassReasonInvalidParameters),
			"spec.parametersRef is not supported; remove it")
	} else {
		c.set(string(gatewayv1.GatewayClassConditionStatusAccepted), true, string(gatewayv1.GatewayClassReasonAccepted), "")
	}
	return gatewayv1.GatewayClassStatus{Conditions: c.list, SupportedFeatures: class.Status.SupportedFeatures}
}

// GatewayStatus is the status of g. Its own objects are d; routes are all that
// there are.
func GatewayStatus(g *gatewayv1.Gateway, d Deployment, routes []*gatewayv1.HTTPRoute, known Known) gatewayv1.GatewayStatus {
	s := gatewayJudge{gateway: g, known: known}
	s.readiness(d)
	out := gatewayv1.GatewayStatus{Addresses: s.addresses, AttachedListenerSets: g.Status.AttachedListenerSets}
	for i := range g.Spec.Listeners {
		out.Listeners = append(out.Listeners, s.listener(i, routes))
	}
	out.Conditions = s.conditions(out.Listeners)
	return out
}

// gatewayJudge is a GatewayStatus in the making.
type gatewayJudge struct {
	gateway   *gatewayv1.Gateway
	known     Known
	addresses []gatewayv1.GatewayStatusAddress
	// notReady is why no listener is served, with its reason; empty if they are.
	notReady, reason string
	// note is what is to be said although it is ready.
	note string
}

func (s *gatewayJudge) pending(reason gatewayv1.GatewayConditionReason, format string, args ...any) {
	if s.notReady == "" {
		s.reason, s.notReady = string(reason), fmt.Sprintf(format, args...)
	}
}

// readiness finds out at which addresses the Gateway is served, and whether it is.
func (s *gatewayJudge) readiness(d Deployment) {
	if hosts, byHand := hostnames(s.gateway); byHand {
		s.byHand(hosts)
		return
	}
	if d.Failure != "" {
		s.pending(gatewayv1.GatewayReasonNoResources, "%s", d.Failure)
	}
	if d.Service == nil {
		s.pending(gatewayv1.GatewayReasonAddressNotAssigned, "there is no Service %s yet", objectName(s.gateway))
		return
	}
	s.addresses = addressesOf(d.Service)
	for _, a := range s.gateway.Spec.Addresses {
		if a.Value != "" && !slices.ContainsFunc(s.addresses, func(has gatewayv1.GatewayStatusAddress) bool { return has.Value == a.Value }) {
			s.pending(gatewayv1.GatewayReasonAddressNotUsable, "Service %s does not have the address %s", d.Service.Name, a.Value)
		}
	}
	if len(s.addresses) == 0 {
		s.pending(gatewayv1.GatewayReasonAddressNotAssigned, "Service %s has no address yet", d.Service.Name)
	}
	if d.Available == 0 {
		s.pending(gatewayv1.GatewayReasonPending, "no pod of Deployment %s is ready", objectName(s.gateway))
	}
	if d.Service.Spec.Type == corev1.ServiceTypeLoadBalancer && len(d.Service.Status.LoadBalancer.Ingress) == 0 {
		s.note = fmt.Sprintf("Service %s has no load balancer's address; the Gateway is served inside the cluster", d.Service.Name)
	}
}

// byHand is readiness where the user deployed the proxies behind Services.
func (s *gatewayJudge) byHand(hosts []string) {
	view := s.known.World.View(s.gateway.Namespace)
	for _, host := range hosts {
		service := view.Service(host, s.gateway.Namespace)
		if service == nil {
			s.pending(gatewayv1.GatewayReasonAddressNotUsable, "there is no Service %s", host)
			continue
		}
		if core, ok := service.Object.(*corev1.Service); ok {
			s.addresses = append(s.addresses, addressesOf(core)...)
		}
		for _, l := range s.gateway.Spec.Listeners {
			if _, ok := service.Port(uint32(l.Port)); !ok {
				s.pending(gatewayv1.GatewayReasonAddressNotUsable, "Service %s has no port %d", host, l.Port)
			} else if len(service.Endpoints(uint32(l.Port))) == 0 {
				s.pending(gatewayv1.GatewayReasonPending, "no pod behind port %d of Service %s is ready", l.Port, host)
			}
		}
	}
}

// addressesOf are those of the load balancer or, if there is none, the Service's
// own.
func addressesOf(s *corev1.Service) []gatewayv1.GatewayStatusAddress {
	var out []gatewayv1.GatewayStatusAddress
	add := func(t gatewayv1.AddressType, value string) {
		if value != "" && value != corev1.ClusterIPNone {
			out = append(out, gatewayv1.GatewayStatusAddress{Type: &t, Value: value})
		}
	}
	for _, in := range s.Status.LoadBalancer.Ingress {
		add(gatewayv1.IPAddressType, in.IP)
		add(gatewayv1.HostnameAddressType, in.Hostname)
	}
	if len(out) > 0 {
		return out
	}
	for _, ip := range s.Spec.ClusterIPs {
		add(gatewayv1.IPAddressType, ip)
	}
	if len(out) == 0 {
		add(gatewayv1.IPAddressType, s.Spec.ClusterIP)
	}
	return out
}

// conditions are those of the Gateway itself.
func (s *gatewayJudge) conditions(listeners []gatewayv1.ListenerStatus) []metav1.Condition {
	c := conditions{s.gateway.Status.Conditions, s.gateway.Generation, s.known.Now}.clone()
	accepted, programmed := string(gatewayv1.GatewayConditionAccepted), string(gatewayv1.GatewayConditionProgrammed)
	invalid, notValid := string(gatewayv1.GatewayReasonInvalid), string(gatewayv1.GatewayReasonListenersNotValid)
	valid := count(listeners, gatewayv1.ListenerConditionAccepted)
	refused := refuse(s.gateway)
	switch {
	case refused != nil:
		c.set(accepted, false, string(refused.reason), refused.message)
	case valid == 0:
		c.set(accepted, false, notValid, "no listener is valid")
	case valid < len(listeners):
		c.set(accepted, true, notValid, fmt.Sprintf("%d of %d listeners are valid", valid, len(listeners)))
	default:
		c.set(accepted, true, string(gatewayv1.GatewayReasonAccepted), "")
	}
	switch {
	case refused != nil:
		c.set(programmed, false, invalid, refused.message)
	case valid == 0 || s.notReady == "" && count(listeners, gatewayv1.ListenerConditionProgrammed) == 0:
		c.set(programmed, false, invalid, "no listener can be served")
	case s.notReady != "":
		c.set(programmed, false, s.reason, s.notReady)
	default:
		c.set(programmed, true, string(gatewayv1.GatewayReasonProgrammed), s.note)
	}
	return c.list
}

// count is how many listeners have a condition that is true.
func count(listeners []gatewayv1.ListenerStatus, kind gatewayv1.ListenerConditionType) (n int) {
	for _, l := range listeners {
		if meta.IsStatusConditionTrue(l.Conditions, string(kind)) {
			n++
		}
	}
	return n
}

// listener is the status of the listener of this index.
func (s *gatewayJudge) listener(i int, routes []*gatewayv1.HTTPRoute) gatewayv1.ListenerStatus {
	l := &s.gateway.Spec.Listeners[i]
	var before []metav1.Condition
	for _, old := range s.gateway.Status.Listeners {
		if old.Name == l.Name {
			before = old.Conditions
		}
	}
	j := judged{conditions{before, s.gateway.Generation, s.known.Now}.clone(), true}
	kinds, unknown := supportedKinds(l)
	s.judgeAccepted(&j, i)
	s.judgeConflicted(&j, i)
	s.judgeRefs(&j, l, unknown)
	programmed := string(gatewayv1.ListenerConditionProgrammed)
	switch {
	case refuse(s.gateway) != nil || !j.good:
		j.set(programmed, false, string(gatewayv1.ListenerReasonInvalid), "")
	case s.notReady != "":
		j.set(programmed, false, string(gatewayv1.ListenerReasonPending), s.notReady)
	default:
		j.set(programmed, true, string(gatewayv1.ListenerReasonProgrammed), "")
	}
	return gatewayv1.ListenerStatus{
		Name: l.Name, SupportedKinds: kinds, AttachedRoutes: s.attached(l, routes), Conditions: j.list,
	}
}

// judged are conditions, and whether the listener that they are of can be served.
type judged struct {
	conditions
	good bool
}

// want sets a condition that has to be so for the listener to be served.
func (j *judged) want(kind gatewayv1.ListenerConditionType, status, good bool, reason gatewayv1.ListenerConditionReason, message string) {
	j.set(string(kind), status, string(reason), message)
	j.good = j.good && good
}

func (s *gatewayJudge) judgeAccepted(j *judged, i int) {
	l := &s.gateway.Spec.Listeners[i]
	problem := s.problem(fmt.Sprintf("spec.listeners[%d]", i))
	accept := func(ok bool, reason gatewayv1.ListenerConditionReason, message string) {
		j.want(gatewayv1.ListenerConditionAccepted, ok, ok, reason, message)
	}
	switch frontend := s.gateway.Spec.TLS != nil && s.gateway.Spec.TLS.Frontend != nil; {
	case !supported(l.Protocol):
		accept(false, gatewayv1.ListenerReasonUnsupportedProtocol, string(l.Protocol)+" is not supported; use HTTP or HTTPS")
	case l.Protocol == gatewayv1.HTTPSProtocolType && frontend:
		accept(false, gatewayv1.ListenerReasonUnsupportedValue, "spec.tls.frontend is not supported; remove it")
	case s.conflict(i) != "":
		accept(false, gatewayv1.ListenerReasonPortUnavailable, s.conflict(i))
	case s.badCertificate(l) == nil && problem != "":
		accept(false, gatewayv1.ListenerReasonUnsupportedValue, problem)
	default:
		accept(true, gatewayv1.ListenerReasonAccepted, "")
	}
}

// problem is what translate found wrong at a field of the Gateway or below it.
func (s *gatewayJudge) problem(field string) string {
	var found []string
	for _, p := range s.known.Problems {
		if of(p, s.gateway) && (p.Field == field || strings.HasPrefix(p.Field, field+".")) {
			found = append(found, message(p))
		}
	}
	return join(found)
}

// of says whether a problem is o's.
func of(p resource.Problem, o resource.Object) bool {
	return p.Kind == o.GetObjectKind().GroupVersionKind().Kind && p.Namespace == o.GetNamespace() && p.Name == o.GetName()
}

// message is a problem without the name of its resource, which stands in its status.
func message(p resource.Problem) string {
	return resource.Problem{Field: p.Field, Message: p.Message, Mend: p.Mend}.String()
}

// join makes one text of messages, each once and in order.
func join(messages []string) string {
	slices.Sort(messages)
	return strings.Join(slices.Compact(messages), "; ")
}

// judgeConflicted: of listeners that cannot share a port the first is served.
func (s *gatewayJudge) judgeConflicted(j *judged, i int) {
	if message := s.conflict(i); message != "" {
		j.want(gatewayv1.ListenerConditionConflicted, true, false, gatewayv1.ListenerReasonProtocolConflict, message)
		return
	}
	j.want(gatewayv1.ListenerConditionConflicted, false, true, gatewayv1.ListenerReasonNoConflicts, "")
}

// conflict tells of an earlier listener with which that of index i cannot share
// its port. Those with the same host name too are refused by the API server.
func (s *gatewayJudge) conflict(i int) string {
	l := s.gateway.Spec.Listeners[i]
	for _, o := range s.gateway.Spec.Listeners[:i] {
		if supported(o.Protocol) && supported(l.Protocol) && o.Port == l.Port && o.Protocol != l.Protocol {
			return fmt.Sprintf("listener %s has port %d for %s", o.Name, o.Port, o.Protocol)
		}
	}
	return ""
}

func (s *gatewayJudge) judgeRefs(j *judged, l *gatewayv1.Listener, unknown []string) {
	resolved := func(ok, good bool, reason gatewayv1.ListenerConditionReason, message string) {
		j.want(gatewayv1.ListenerConditionResolvedRefs, ok, good, reason, message)
	}
	bad := s.badCertificate(l)
	switch {
	case bad != nil:
		resolved(false, false, gatewayv1.ListenerConditionReason(bad.reason), bad.message)
	case len(unknown) > 0: // routes of kinds that are known are served
		resolved(false, true, gatewayv1.ListenerReasonInvalidRouteKinds, "not supported: "+strings.Join(unknown, ", "))
	default:
		resolved(true, true, gatewayv1.ListenerReasonResolvedRefs, "")
	}
}

// badCertificate is what is wrong with the certificates that an HTTPS listener
// names, or nil.
func (s *gatewayJudge) badCertificate(l *gatewayv1.Listener) *refusal {
	if l.Protocol != gatewayv1.HTTPSProtocolType || l.TLS == nil {
		return nil
	}
	invalid := gatewayv1.GatewayConditionReason(gatewayv1.ListenerReasonInvalidCertificateRef)
	for _, ref := range l.TLS.CertificateRefs {
		name := s.gateway.Namespace + "/" + string(ref.Name)
		switch {
		case ref.Group != nil && *ref.Group != "" || ref.Kind != nil && *ref.Kind != "Secret":
			return &refusal{invalid, "only a Secret can hold a certificate"}
		case ref.Namespace != nil && string(*ref.Namespace) != s.gateway.Namespace:
			return &refusal{gatewayv1.GatewayReasonRefNotPermitted, "a Secret of another namespace needs a ReferenceGrant, which is not supported"}
		}
		secret := s.known.World.Secret(s.gateway.Namespace, string(ref.Name))
		if secret == nil {
			return &refusal{invalid, "there is no Secret " + name}
		}
		// The error says nothing of the bytes; it is left out to be sure of that.
		chain, key := first(secret, corev1.TLSCertKey, "cert"), first(secret, corev1.TLSPrivateKeyKey, "key")
		if _, err := tls.X509KeyPair(chain, key); err != nil {
			return &refusal{invalid, "Secret " + name + " has no usable tls.crt and tls.key"}
		}
	}
	return nil
}

// first is what s has under the first of keys that it has.
func first(s *corev1.Secret, keys ...string) []byte {
	for _, k := range keys {
		if len(s.Data[k]) > 0 {
			return s.Data[k]
		}
	}
	return nil
}

// supportedKinds are the kinds of route that l takes, and those that it asks for
// and nobody here knows.
func supportedKinds(l *gatewayv1.Listener) (kinds []gatewayv1.RouteGroupKind, unknown []string) {
	group := gatewayv1.Group(gatewayv1.GroupName)
	http := []gatewayv1.RouteGroupKind{{Group: &group, Kind: "HTTPRoute"}}
	if !supported(l.Protocol) {
		return []gatewayv1.RouteGroupKind{}, nil
	}
	if l.AllowedRoutes == nil || len(l.AllowedRoutes.Kinds) == 0 {
		return http, nil
	}
	kinds = []gatewayv1.RouteGroupKind{}
	for _, k := range l.AllowedRoutes.Kinds {
		if isHTTPRoute(k) {
			kinds = http
		} else {
			unknown = append(unknown, string(k.Kind))
		}
	}
	return kinds, unknown
}

func isHTTPRoute(k gatewayv1.RouteGroupKind) bool {
	return k.Kind == "HTTPRoute" && (k.Group == nil || *k.Group == gatewayv1.GroupName)
}

// attached counts the routes that l has.
func (s *gatewayJudge) attached(l *gatewayv1.Listener, routes []*gatewayv1.HTTPRoute) int32 {
	var n int32
	for _, r := range routes {
		_, refused := ruleProblems(r, s.known)
		if !refused && slices.ContainsFunc(r.Spec.ParentRefs, func(ref gatewayv1.ParentReference) bool {
			return refersTo(ref, r.Namespace, s.gateway) && chooses(ref, l) && attach(r, l, s.gateway, s.known.World) == ""
		}) {
			n++
		}
	}
	return n
}

// conditions are those of one object, of its generation.
type conditions struct {
	list       []metav1.Condition
	generation int64
	now        time.Time
}

// clone keeps what c was made of as it is.
func (c conditions) clone() conditions {
	c.list = slices.Clone(c.list)
	return c
}

// set sets a condition; the time is that of its last change of status, in whole
// seconds as the API has it.
func (c *conditions) set(kind string, status bool, reason, message string) {
	value := metav1.ConditionFalse
	if status {
		value = metav1.ConditionTrue
	}
	meta.SetStatusCondition(&c.list, metav1.Condition{
		Type: kind, Status: value, Reason: reason, Message: message,
		ObservedGeneration: c.generation, LastTransitionTime: metav1.NewTime(c.now.UTC().Truncate(time.Second)),
	})
}
