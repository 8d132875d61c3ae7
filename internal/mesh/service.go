package mesh

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	apinetworking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/chandler-proxy/chandler/internal/resource"
)

// A Resolution is how the addresses behind a Service become known.
type Resolution int

const (
	Static        Resolution = iota // they are in [Service.Endpoints]
	DNS                             // the proxy resolves the host names in Endpoints, and uses all addresses
	DNSRoundRobin                   // the proxy resolves them, and uses the first address
)

// A Service is what requests can be sent to: a core Service, or one host of a
// ServiceEntry.
type Service struct {
	Object     resource.Object
	Name       types.NamespacedName // of Object
	Host       string               // full name, lower-case; may begin with "*." if External
	External   bool                 // from a ServiceEntry
	Headless   bool
	Resolution Resolution
	Addresses  []string // virtual addresses: IPs or, from a ServiceEntry, CIDRs too
	Ports      []Port
	Selector   map[string]string // of a core Service: labels of the Pods behind it
	ExportTo   []string

	endpoints map[uint32][]Endpoint // by port number
}

// A Port is one port of a Service.
type Port struct {
	Name     string
	Number   uint32
	Protocol Protocol
	Target   intstr.IntOrString // of a core Service; zero means Number
}

// An Endpoint is one address behind one port of a Service.
type Endpoint struct {
	Address string // IP, or host name if the Service's Resolution is not Static
	Port    uint32
	Labels  map[string]string // of the workload; subsets choose by them
	Weight  uint32            // 0 means 1
}

// Port returns the port with this number.
func (s *Service) Port(number uint32) (Port, bool) {
	i := slices.IndexFunc(s.Ports, func(p Port) bool { return p.Number == number })
	if i < 0 {
		return Port{}, false
	}
	return s.Ports[i], true
}

// Endpoints are the ready endpoints of the port with this number, ordered by
// address. They are shared: not to be changed.
func (s *Service) Endpoints(port uint32) []Endpoint { return s.endpoints[port] }

// A Pod is a workload.
type Pod struct {
	Name   types.NamespacedName
	Labels map[string]string
	IPs    []string
	ports  map[string]uint32 // container ports by name
	ready  bool
}

func newPod(p *corev1.Pod) *Pod {
	out := &Pod{
		Name:   types.NamespacedName{Namespace: p.Namespace, Name: p.Name},
		Labels: p.Labels,
		ports:  map[string]uint32{},
		ready:  podReady(p),
	}
	for _, ip := range p.Status.PodIPs {
		out.IPs = append(out.IPs, ip.IP)
	}
	if len(out.IPs) == 0 && p.Status.PodIP != "" {
		out.IPs = []string{p.Status.PodIP}
	}
	for _, c := range p.Spec.Containers {
		for _, port := range c.Ports {
			if port.Name != "" {
				out.ports[port.Name] = uint32(port.ContainerPort)
			}
		}
	}
	return out
}

// podReady is what the Pod's Ready condition says; a Pod that has none, as in a
// file, is ready. A Pod that is being deleted, or has ended, is not.
func podReady(p *corev1.Pod) bool {
	if p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return true
}

// TargetPort is the port of the workload that port leads to: a number, or the
// name of a container port of pod, which may be nil.
func (p Port) TargetPort(pod *Pod) (uint32, bool) {
	switch {
	case p.Target.Type == intstr.String && p.Target.StrVal != "":
		if pod == nil {
			return 0, false
		}
		number, ok := pod.ports[p.Target.StrVal]
		return number, ok
	case p.Target.IntVal != 0:
		return uint32(p.Target.IntVal), true
	}
	return p.Number, true
}

// newService reads a core Service. ExternalName Services are refused by their
// caller: they have no endpoints of their own.
func (w *World) newService(s *corev1.Service) *Service {
	out := &Service{
		Object:   s,
		Name:     types.NamespacedName{Namespace: s.Namespace, Name: s.Name},
		Host:     s.Name + "." + s.Namespace + ".svc." + w.opts.Domain,
		Headless: s.Spec.ClusterIP == corev1.ClusterIPNone,
		Selector: s.Spec.Selector,
		ExportTo: annotationList(s.Annotations["networking.istio.io/exportTo"]),
	}
	for _, ip := range append([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs...) {
		if ip != "" && ip != corev1.ClusterIPNone && !slices.Contains(out.Addresses, ip) {
			out.Addresses = append(out.Addresses, ip)
		}
	}
	for _, p := range s.Spec.Ports {
		out.Ports = append(out.Ports, Port{
			Name: p.Name, Number: uint32(p.Port), Protocol: portProtocol(p), Target: p.TargetPort,
		})
	}
	return out
}

func annotationList(s string) []string {
	var out []string
	for _, part := range strings.Split(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

// fromSlices takes the endpoints of a Service from its EndpointSlices, which
// have the ports resolved already.
func (w *World) fromSlices(s *Service, slicesOf []*discoveryv1.EndpointSlice) {
	s.endpoints = map[uint32][]Endpoint{}
	for _, slice := range slicesOf {
		for _, sp := range slice.Ports {
			for _, port := range s.Ports {
				if sp.Port == nil || port.Protocol == UDP || !slicePortIs(sp, port, len(s.Ports)) {
					continue
				}
				for _, e := range slice.Endpoints {
					if e.Conditions.Ready != nil && !*e.Conditions.Ready {
						continue
					}
					labels := w.endpointLabels(slice.Namespace, e)
					for _, address := range e.Addresses {
						if !isIP(address) {
							continue
						}
						s.endpoints[port.Number] = append(s.endpoints[port.Number],
							Endpoint{Address: address, Port: uint32(*sp.Port), Labels: labels})
					}
				}
			}
		}
	}
	s.sortEndpoints()
}

// isIP says whether an address is one that Envoy takes; an API server lets no other
// through, but for host names, which mean nothing to kube-proxy either.
func isIP(address string) bool {
	ip, err := netip.ParseAddr(address)
	return err == nil && ip.Zone() == ""
}

// slicePortIs says whether the port of an EndpointSlice is port: they share a
// name. A Service's only port may have none.
func slicePortIs(sp discoveryv1.EndpointPort, port Port, ports int) bool {
	name := ""
	if sp.Name != nil {
		name = *sp.Name
	}
	return name == port.Name || ports == 1 && name == ""
}

func (w *World) endpointLabels(namespace string, e discoveryv1.Endpoint) map[string]string {
	if ref := e.TargetRef; ref != nil && ref.Kind == "Pod" {
		if pod := w.pods[types.NamespacedName{Namespace: cmp.Or(ref.Namespace, namespace), Name: ref.Name}]; pod != nil {
			return pod.Labels
		}
	}
	for _, address := range e.Addresses {
		if pod := w.podsByIP[address]; pod != nil {
			return pod.Labels
		}
	}
	return nil
}

// fromPods takes the endpoints of a Service from the ready Pods that its
// selector chooses: for sources that have no EndpointSlices, as files.
func (s *Service) fromPods(pods []*Pod) {
	s.endpoints = map[uint32][]Endpoint{}
	for _, pod := range pods {
		if !pod.ready || len(pod.IPs) == 0 || !isIP(pod.IPs[0]) {
			continue
		}
		for _, port := range s.Ports {
			if target, ok := port.TargetPort(pod); ok && port.Protocol != UDP {
				s.endpoints[port.Number] = append(s.endpoints[port.Number],
					Endpoint{Address: pod.IPs[0], Port: target, Labels: pod.Labels})
			}
		}
	}
	s.sortEndpoints()
}

// sortEndpoints orders endpoints and drops those told twice, as overlapping
// EndpointSlices do.
func (s *Service) sortEndpoints() {
	for port, es := range s.endpoints {
		slices.SortStableFunc(es, func(a, b Endpoint) int {
			return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port))
		})
		s.endpoints[port] = slices.CompactFunc(es, func(a, b Endpoint) bool {
			return a.Address == b.Address && a.Port == b.Port
		})
	}
}

// newEntries reads a ServiceEntry: one Service for each of its hosts. What
// cannot be honoured is a problem and leaves the entry out.
func (w *World) newEntries(se *networkingv1.ServiceEntry) ([]*Service, []resource.Problem) {
	resolution, problem := entryResolution(se)
	if problem != nil {
		return nil, []resource.Problem{*problem}
	}
	var ports []Port
	for _, p := range se.Spec.Ports {
		ports = append(ports, Port{Name: p.Name, Number: p.Number, Protocol: ParseProtocol(p.Protocol),
			Target: intstr.FromInt32(int32(p.TargetPort))})
	}
	var out []*Service
	for _, host := range se.Spec.Hosts {
		if host == "*" || !ValidHost(host) {
			return nil, []resource.Problem{Refuse(se, "spec.hosts", host+" is not the name of a host or domain", "write a.example.com or *.example.com")}
		}
		s := &Service{
			Object:     se,
			Name:       types.NamespacedName{Namespace: se.Namespace, Name: se.Name},
			Host:       strings.ToLower(host),
			External:   true,
			Resolution: resolution,
			Addresses:  se.Spec.Addresses,
			Ports:      ports,
			ExportTo:   se.Spec.ExportTo,
		}
		if problem := w.entryEndpoints(s, &se.Spec); problem != nil {
			return nil, []resource.Problem{*problem}
		}
		out = append(out, s)
	}
	return out, nil
}

func entryResolution(se *networkingv1.ServiceEntry) (Resolution, *resource.Problem) {
	switch se.Spec.Resolution {
	case apinetworking.ServiceEntry_STATIC:
		return Static, nil
	case apinetworking.ServiceEntry_DNS:
		return DNS, nil
	case apinetworking.ServiceEntry_DNS_ROUND_ROBIN:
		return DNSRoundRobin, nil
	}
	p := Refuse(se, "spec.resolution", se.Spec.Resolution.String()+" is not supported",
		"use STATIC with endpoints, or DNS; sidecars let traffic to unknown hosts pass")
	return 0, &p
}

// entryEndpoints are the inline endpoints, those that workloadSelector chooses,
// or, with DNS and no endpoints, the host itself.
func (w *World) entryEndpoints(s *Service, se *apinetworking.ServiceEntry) *resource.Problem {
	if sel := se.WorkloadSelector; sel != nil {
		s.fromPods(w.selectPods(s.Name.Namespace, sel.Labels))
		return nil
	}
	s.endpoints = map[uint32][]Endpoint{}
	endpoints := se.Endpoints
	if len(endpoints) == 0 && s.Resolution != Static {
		if strings.HasPrefix(s.Host, "*") {
			p := Refuse(s.Object, "spec.hosts", "a wildcard host cannot be resolved by DNS", "give endpoints, or name the host")
			return &p
		}
		endpoints = []*apinetworking.WorkloadEntry{{Address: s.Host}}
	}
	for _, e := range endpoints {
		if _, err := netip.ParseAddr(e.Address); err != nil && (s.Resolution == Static || strings.Contains(e.Address, "/")) {
			p := Refuse(s.Object, "spec.endpoints.address", e.Address+" is not an IP address",
				"give an IP address, or set resolution: DNS")
			return &p
		}
		for _, port := range s.Ports {
			target, _ := port.TargetPort(nil)
			if number, ok := e.Ports[port.Name]; ok {
				target = number
			}
			s.endpoints[port.Number] = append(s.endpoints[port.Number],
				Endpoint{Address: e.Address, Port: target, Labels: e.Labels, Weight: e.Weight})
		}
	}
	s.sortEndpoints()
	return nil
}

// Older orders resources as Istio does: creation time, name, namespace, and
// kind where those are equal.
func Older(a, b resource.Object) int {
	var at, bt time.Time = a.GetCreationTimestamp().Time, b.GetCreationTimestamp().Time
	return cmp.Or(at.Compare(bt), cmp.Compare(a.GetName(), b.GetName()),
		cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(kindOf(a), kindOf(b)))
}

func kindOf(o resource.Object) string { return o.GetObjectKind().GroupVersionKind().Kind }

// Refuse is the problem that field of o is not honoured.
func Refuse(o resource.Object, field, message, mend string) resource.Problem {
	return resource.Problem{
		Kind: kindOf(o), Namespace: o.GetNamespace(), Name: o.GetName(),
		Field: field, Message: message, Mend: mend,
	}
}
