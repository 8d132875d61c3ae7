package inject

import (
	"encoding/json"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/chandler-proxy/chandler/internal/probe"
	"github.com/chandler-proxy/chandler/internal/redirect"
)

// The containers that are added, under Istio's names.
const (
	proxyName = "istio-proxy"
	initName  = "istio-init"
)

// proxyUser is user and group of the sidecar.
const proxyUser = 1337

// What the control plane has in every namespace, and proxies show it; package identity
// has the other end.
const (
	caConfigMap   = "chandler-ca-root-cert" // its key is rootCertKey
	rootCertKey   = "root-cert.pem"
	tokenAudience = "chandler-ca"
	tokenSeconds  = 3600
)

// Volumes, and where the sidecar has them.
const (
	tokenVolume, tokenDir = "chandler-token", "/var/run/secrets/chandler/token"
	caVolume, caDir       = "chandler-ca", "/var/run/secrets/chandler/ca"
	podVolume, podDir     = "chandler-pod", "/etc/chandler/pod"
	dataVolume, dataDir   = "chandler-data", "/var/lib/chandler"
	tmpVolume, tmpDir     = "chandler-tmp", "/tmp"
)

// volumes are what the sidecar needs: its proof of identity, the control plane's
// certificate, what the pod is, and room to write.
//
// The token can be read by user 1337 without an fsGroup: the kubelet makes it
// everybody's within the pod, unless all containers have one user or the pod has an
// fsGroup, and then it is that one's.
func volumes() []corev1.Volume {
	return []corev1.Volume{
		{Name: tokenVolume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
			Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
				Audience: tokenAudience, ExpirationSeconds: new(int64(tokenSeconds)), Path: "token",
			}}},
		}}},
		{Name: caVolume, VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: caConfigMap},
		}}},
		{Name: podVolume, VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{
			Items: []corev1.DownwardAPIVolumeFile{
				{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
				{Path: "annotations", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.annotations"}},
			},
		}}},
		{Name: dataVolume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{Name: tmpVolume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	}
}

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
		StartupProbe: ready(corev1.Probe{PeriodSeconds: 1, TimeoutSeconds: 3, FailureThreshold: 600}),
		ReadinessProbe: ready(corev1.Probe{InitialDelaySeconds: s.readiness.delay, PeriodSeconds: s.readiness.period,
			TimeoutSeconds: 3, FailureThreshold: s.readiness.failures}),
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false),
			Privileged:               new(false),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			ReadOnlyRootFilesystem:   new(true),
			RunAsUser:                new(int64(proxyUser)),
			RunAsGroup:               new(int64(proxyUser)),
			RunAsNonRoot:             new(true),
			SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		VolumeMounts: append([]corev1.VolumeMount{
			{Name: tokenVolume, MountPath: tokenDir, ReadOnly: true},
			{Name: caVolume, MountPath: caDir, ReadOnly: true},
			{Name: podVolume, MountPath: podDir, ReadOnly: true},
			{Name: dataVolume, MountPath: dataDir},
			{Name: tmpVolume, MountPath: tmpDir},
		}, s.mounts...),
	}
}

// agentArgs are the agent's command. It listens at all addresses, of either family,
// for the kubelet and Prometheus.
func agentArgs(s settings, o Options) []string {
	args := []string{
		"agent",
		"--proxy=" + s.proxy,
		"--control=" + o.Control,
		"--ca=" + caDir + "/" + rootCertKey,
		"--token=" + tokenDir + "/token",
		"--id=sidecar~$(INSTANCE_IP)~$(POD_NAME).$(POD_NAMESPACE)~$(POD_NAMESPACE).svc." + o.Domain,
		"--pod-info=" + podDir,
		"--data=" + dataDir,
		"--status=:15020",
	}
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
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
	}
	env := []corev1.EnvVar{
		field("INSTANCE_IP", "status.podIP"),
		field("INSTANCE_IPS", "status.podIPs"),
		field("POD_NAME", "metadata.name"),
		field("POD_NAMESPACE", "metadata.namespace"),
		// the runtime collects garbage earlier rather than be killed
		{Name: "GOMEMLIMIT", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory"}}},
	}
	for _, name := range slices.Sorted(maps.Keys(more)) {
		env = append(env, corev1.EnvVar{Name: name, Value: more[name]})
	}
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

// ready is p, asking the agent.
func ready(p corev1.Probe) *corev1.Probe {
	p.HTTPGet = &corev1.HTTPGetAction{Path: "/healthz/ready", Port: intstr.FromInt32(probe.Port)}
	return &p
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
