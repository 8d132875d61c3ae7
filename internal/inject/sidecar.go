package inject

import (
	"encoding/json"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/chandler-proxy/chandler/internal/inject/agentpod"
	"github.com/chandler-proxy/chandler/internal/probe"
	"github.com/chandler-proxy/chandler/internal/redirect"
)

// The containers that are added, under Istio's names.
const (
	proxyName = agentpod.Container
	initName  = "istio-init"
)

// proxyUser is user and group of the sidecar.
const proxyUser = agentpod.User

// initContainer redirects the pod's connections. It runs once, before all others, as
// root, for the kernel wants NET_ADMIN in effect and a container has that only so.
func initContainer(s settings, o Options) corev1.Container {
	return corev1.Container{
		Name:            initName,
		Image:           s.image,
		ImagePullPolicy: o.PullPolicy,
		Args:            append([]string{"redirect"}, redirectArgs(s.redirect)...),
		Resources:       *s.resources.DeepCopy(),
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false),
			Privileged:               new(false),
			Capabilities:             &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}, Drop: []corev1.Capability{"ALL"}},
			ReadOnlyRootFilesystem:   new(true),
			RunAsUser:                new(int64(0)),
			RunAsGroup:               new(int64(0)),
			RunAsNonRoot:             new(false),
			SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
	}
}

// redirectArgs are the flags that differ from the usual.
func redirectArgs(c redirect.Config) []string {
	usual := redirect.Default()
	var args []string
	for _, f := range []struct{ name, value, usual string }{
		{"--include-inbound-ports", c.IncludeInbound.String(), usual.IncludeInbound.String()},
		{"--exclude-inbound-ports", redirect.FormatPorts(c.ExcludeInbound), ""},
		{"--include-outbound-ports", redirect.FormatPorts(c.IncludeOutbound), ""},
		{"--exclude-outbound-ports", redirect.FormatPorts(c.ExcludeOutbound), ""},
		{"--include-outbound-networks", redirect.FormatNetworks(c.IncludeNetworks), redirect.FormatNetworks(usual.IncludeNetworks)},
		{"--exclude-outbound-networks", redirect.FormatNetworks(c.ExcludeNetworks), ""},
		{"--exclude-interfaces", redirect.FormatInterfaces(c.ExcludeInterfaces), ""},
	} {
		if f.value != f.usual {
			args = append(args, f.name+"="+f.value)
		}
	}
	return args
}

// proxyContainer is the sidecar. It passes Pod Security's "restricted".
func proxyContainer(workload string, s settings, o Options, probes probe.Set) corev1.Container {
	return corev1.Container{
		Name:            proxyName,
		Image:           s.image,
		ImagePullPolicy: o.PullPolicy,
		RestartPolicy:   new(corev1.ContainerRestartPolicyAlways),
		Args:            agentArgs(s, o),
		Env:             environment(workload, probes, o.Env),
		// a PodMonitor as Istio's documentation has it looks for the port by this name
		Ports:     []corev1.ContainerPort{{Name: "http-envoy-prom", ContainerPort: probe.Port, Protocol: corev1.ProtocolTCP}},
		Resources: *s.resources.DeepCopy(),
		// the workload starts when the proxy has its configuration
		StartupProbe: agentpod.Startup(),
		ReadinessProbe: agentpod.Ready(corev1.Probe{InitialDelaySeconds: s.readiness.delay, PeriodSeconds: s.readiness.period,
			TimeoutSeconds: 3, FailureThreshold: s.readiness.failures}),
		SecurityContext: agentpod.SecurityContext(),
		VolumeMounts:    append(agentpod.Mounts(), s.mounts...),
	}
}

// agentArgs are the agent's command.
func agentArgs(s settings, o Options) []string {
	args := agentpod.Args("sidecar", s.proxy, o.Control, o.Domain)
	if s.redirected {
		args = append(args, "--redirected")
	}
	switch {
	case s.logLevel == "":
	case s.proxy == Envoy:
		args = append(args, "--", "--log-level", s.logLevel)
	default:
		args = append(args, "--log-level="+ownLogLevel(s.logLevel))
	}
	return args
}

// ownLogLevel is the nearest of our levels to one of Envoy's.
func ownLogLevel(envoys string) string {
	switch envoys {
	case "trace", "debug":
		return "debug"
	case "info":
		return "info"
	case "warning":
		return "warn"
	}
	return "error"
}

func environment(workload string, probes probe.Set, more map[string]string) []corev1.EnvVar {
	env := agentpod.Env(more)
	if workload != "" {
		env = append(env, corev1.EnvVar{Name: "ISTIO_META_WORKLOAD_NAME", Value: workload})
	}
	if len(probes) > 0 {
		text, err := json.Marshal(probes)
		if err != nil {
			panic(err) // strings and numbers only
		}
		env = append(env, corev1.EnvVar{Name: probe.Variable, Value: string(text)})
	}
	return env
}

// takeProbes points the probes and events of a pod that the kubelet calls over the
// network to the agent, and returns what they were. One of a host of its own, or of a
// port that the container does not name, stays.
func takeProbes(pod *corev1.Pod) probe.Set {
	set := probe.Set{}
	for _, at := range containers(pod) {
		c := at.container
		for kind, p := range map[probe.Kind]*corev1.Probe{
			probe.Liveness: c.LivenessProbe, probe.Readiness: c.ReadinessProbe, probe.Startup: c.StartupProbe,
		} {
			if p == nil {
				continue
			}
			path := probe.Path(c.Name, kind)
			if was := original(c, p.ProbeHandler); was != nil {
				was.TimeoutSeconds = p.TimeoutSeconds
				set[path] = was
				p.ProbeHandler = corev1.ProbeHandler{HTTPGet: toAgent(path)}
			}
		}
		if c.Lifecycle == nil {
			continue
		}
		for kind, h := range map[probe.Kind]*corev1.LifecycleHandler{
			probe.PostStart: c.Lifecycle.PostStart, probe.PreStop: c.Lifecycle.PreStop,
		} {
			if h == nil || h.HTTPGet == nil {
				continue
			}
			path := probe.Path(c.Name, kind)
			if was := original(c, corev1.ProbeHandler{HTTPGet: h.HTTPGet}); was != nil {
				set[path] = was
				h.HTTPGet = toAgent(path)
			}
		}
	}
	return set
}

func toAgent(path string) *corev1.HTTPGetAction {
	return &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(probe.Port)}
}

// original is what the agent has to try in place of the kubelet; nil if the kubelet
// still has to.
func original(c *corev1.Container, h corev1.ProbeHandler) *probe.Probe {
	switch {
	case h.HTTPGet != nil && h.HTTPGet.Host == "":
		get := *h.HTTPGet
		var ok bool
		get.Port, ok = portNumber(c, get.Port)
		if ok {
			return &probe.Probe{HTTPGet: &get}
		}
	case h.TCPSocket != nil && h.TCPSocket.Host == "":
		if port, ok := portNumber(c, h.TCPSocket.Port); ok {
			return &probe.Probe{TCPSocket: &corev1.TCPSocketAction{Port: port}}
		}
	case h.GRPC != nil && isPort(h.GRPC.Port):
		return &probe.Probe{GRPC: h.GRPC}
	}
	return nil
}

// portNumber looks a port up that may be named.
func portNumber(c *corev1.Container, port intstr.IntOrString) (intstr.IntOrString, bool) {
	if port.Type == intstr.Int {
		return port, isPort(port.IntVal)
	}
	i := slices.IndexFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == port.StrVal })
	if i < 0 {
		return port, false
	}
	return intstr.FromInt32(c.Ports[i].ContainerPort), true
}

// isPort leaves what is none to the API server to refuse.
func isPort(n int32) bool { return 0 < n && n < 1<<16 }
