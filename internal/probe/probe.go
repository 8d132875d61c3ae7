// Package probe answers the kubelet's probes in place of the workload, from beside
// it.
//
// A probe of the kubelet would come through the proxy as anybody's request, and be
// judged by its extensions: one that wants a password would have every pod
// restarted. Injection (package inject) therefore points probes to the agent, at
// /app-health/CONTAINER/livez and its like, and leaves the originals in the agent's
// environment, as [Set]. [Handler] tries them as the kubelet would: HTTP, HTTPS
// without looking at certificates, TCP, gRPC health; never a command.
//
// It asks nobody but the pod's own address and only what the set has; a path that
// the set does not have is an error, not a success. The form is that of Istio's
// ISTIO_KUBE_APP_PROBERS; how probes behave is the kubelet's. Start at [Handler].
package probe

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Variable is the environment variable that has the agent's [Set].
const Variable = "ISTIO_KUBE_APP_PROBERS"

// Port is where the agent answers probes.
const Port = 15020

// A Set is the probes that the agent answers, by the paths it does so at.
type Set map[string]*Probe

// A Probe is one probe as the workload's author wrote it. It has one of HTTPGet,
// TCPSocket and GRPC, and its port is a number.
type Probe struct {
	HTTPGet        *corev1.HTTPGetAction   `json:"httpGet,omitempty"`
	TCPSocket      *corev1.TCPSocketAction `json:"tcpSocket,omitempty"`
	GRPC           *corev1.GRPCAction      `json:"grpc,omitempty"`
	TimeoutSeconds int32                   `json:"timeoutSeconds,omitempty"` // 0 is 1 second
}

// A Kind is what a probe is for, as the last part of its path.
type Kind string

// The kinds of probes, and the two events of a container's life that may be told by
// HTTP.
const (
	Liveness  Kind = "livez"
	Readiness Kind = "readyz"
	Startup   Kind = "startupz"
	PostStart Kind = "poststartz"
	PreStop   Kind = "prestopz"
)

// Path is where the agent answers a container's probe.
func Path(container string, kind Kind) string {
	if kind == PostStart || kind == PreStop {
		return LifecyclePrefix + container + "/" + string(kind)
	}
	return HealthPrefix + container + "/" + string(kind)
}

// What the paths of a [Set] begin with.
const (
	HealthPrefix    = "/app-health/"
	LifecyclePrefix = "/app-lifecycle/"
)

// ParseSet reads what [Variable] has; no text is no probes. A probe that could never
// be answered is an error that names its path.
func ParseSet(text string) (Set, error) {
	if text == "" {
		return nil, nil
	}
	var s Set
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return nil, fmt.Errorf("read probes: %w", err)
	}
	path := regexp.MustCompile(`^(/app-health/[^/]+/(livez|readyz|startupz)|/app-lifecycle/[^/]+/(poststartz|prestopz))$`)
	for at, p := range s {
		if !path.MatchString(at) {
			return nil, fmt.Errorf("read probes: %q is not /app-health/CONTAINER/livez, readyz or startupz, nor /app-lifecycle/CONTAINER/poststartz or prestopz", at)
		}
		if err := p.check(); err != nil {
			return nil, fmt.Errorf("read probes: %s: %w", at, err)
		}
	}
	return s, nil
}

func (p *Probe) check() error {
	if p == nil {
		return errors.New("no probe")
	}
	n := 0
	for _, port := range p.ports() {
		if port.Type != intstr.Int || port.IntVal < 1 || port.IntVal > 65535 {
			return fmt.Errorf("port %s is not a number from 1 to 65535", port.String())
		}
		n++
	}
	if n != 1 {
		return fmt.Errorf("has %d of httpGet, tcpSocket and grpc, not one", n)
	}
	if p.TimeoutSeconds < 0 {
		return fmt.Errorf("timeoutSeconds %d is below 0", p.TimeoutSeconds)
	}
	return nil
}

// ports are those of the actions p has.
func (p *Probe) ports() []intstr.IntOrString {
	var list []intstr.IntOrString
	if p.HTTPGet != nil {
		list = append(list, p.HTTPGet.Port)
	}
	if p.TCPSocket != nil {
		list = append(list, p.TCPSocket.Port)
	}
	if p.GRPC != nil {
		list = append(list, intstr.FromInt32(p.GRPC.Port))
	}
	return list
}
