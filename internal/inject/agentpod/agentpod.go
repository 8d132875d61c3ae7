// Package agentpod is what a pod must have so that an agent can run in it: where the
// agent finds its identity, the control plane's certificate and what the pod is, and
// how the kubelet sees that it is ready.
//
// Sidecars (package inject) and gateways (package inject/gateway) are made of it, and
// deploy/base/ingress-gateway.yaml says the same, which a test sees to. It decides
// nothing: who gets an agent, and with which image, is its callers'. Start at [Args].
package agentpod

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/chandler-proxy/chandler/internal/identity"
	"github.com/chandler-proxy/chandler/internal/inject/trust"
	"github.com/chandler-proxy/chandler/internal/probe"
)

const (
	// Container is the agent's, under Istio's name.
	Container = "istio-proxy"
	// User is user and group of the agent and its proxy; redirection lets them pass.
	User = 1337
	// MemoryVariable says how many bytes of memory the container may have. The downward
	// API cannot compute the runtime's GOMEMLIMIT, which has to be less.
	MemoryVariable = "CHANDLER_MEMORY_LIMIT"
	// HealthPort is where that of a router serves health alone, for load balancers.
	HealthPort = 15021
)

// tokenSeconds is how long the token is valid by which the agent proves itself.
const tokenSeconds = 3600

// Volumes, and where the agent has them.
const (
	tokenVolume, tokenDir = "chandler-token", "/var/run/secrets/chandler/token"
	caVolume, caDir       = "chandler-ca", "/var/run/secrets/chandler/ca"
	podVolume, podDir     = "chandler-pod", "/etc/chandler/pod"
	dataVolume, dataDir   = "chandler-data", "/var/lib/chandler"
	tmpVolume, tmpDir     = "chandler-tmp", "/tmp"
)

// Volumes are what the agent needs: its proof of identity, the control plane's
// certificate, what the pod is, and room to write.
//
// The token can be read by [User] without an fsGroup: the kubelet makes it
// everybody's within the pod, unless all containers have one user or the pod has an
// fsGroup, and then it is that one's.
func Volumes() []corev1.Volume {
	return []corev1.Volume{
		{Name: tokenVolume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
			Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
				Audience: identity.Audience, ExpirationSeconds: new(int64(tokenSeconds)), Path: "token",
			}}},
		}}},
		{Name: caVolume, VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: trust.ConfigMapName},
		}}},
		{Name: podVolume, VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{
			Items: []corev1.DownwardAPIVolumeFile{
				{Path: "labels", FieldRef: field("metadata.labels")},
				{Path: "annotations", FieldRef: field("metadata.annotations")},
			},
		}}},
		{Name: dataVolume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{Name: tmpVolume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	}
}

// Mounts are where the agent has [Volumes].
func Mounts() []corev1.VolumeMount {
	return []corev1.VolumeMount{
		{Name: tokenVolume, MountPath: tokenDir, ReadOnly: true},
		{Name: caVolume, MountPath: caDir, ReadOnly: true},
		{Name: podVolume, MountPath: podDir, ReadOnly: true},
		{Name: dataVolume, MountPath: dataDir},
		{Name: tmpVolume, MountPath: tmpDir},
	}
}

// Args are the command of an agent whose proxy has the role, sidecar or router, and is
// of the kind, engine or envoy. It listens at all addresses, of either family, for the
// kubelet and Prometheus.
func Args(role, kind, control, domain string) []string {
	args := []string{
		"agent",
		"--proxy=" + kind,
		"--control=" + control,
		"--ca=" + caDir + "/" + trust.ConfigMapKey,
		"--token=" + tokenDir + "/token",
		"--id=" + role + "~$(INSTANCE_IP)~$(POD_NAME).$(POD_NAMESPACE)~$(POD_NAMESPACE).svc." + domain,
		"--pod-info=" + podDir,
		"--data=" + dataDir,
		"--status=:15020",
	}
	if role == "router" {
		args = append(args, "--health=:15021")
	}
	return args
}

// Env is what the agent's variables say of the pod, and more.
func Env(more map[string]string) []corev1.EnvVar {
	env := []corev1.EnvVar{
		{Name: "INSTANCE_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: field("status.podIP")}},
		{Name: "INSTANCE_IPS", ValueFrom: &corev1.EnvVarSource{FieldRef: field("status.podIPs")}},
		{Name: "POD_NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: field("metadata.name")}},
		{Name: "POD_NAMESPACE", ValueFrom: &corev1.EnvVarSource{FieldRef: field("metadata.namespace")}},
		// collects garbage earlier rather than be killed
		{Name: MemoryVariable, ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory", Divisor: resource.MustParse("0")}}},
	}
	for _, name := range slices.Sorted(maps.Keys(more)) {
		env = append(env, corev1.EnvVar{Name: name, Value: more[name]})
	}
	return env
}

func field(path string) *corev1.ObjectFieldSelector {
	return &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}
}

// Startup waits for the proxy's first configuration, for which modules are fetched.
func Startup() *corev1.Probe {
	return Ready(corev1.Probe{PeriodSeconds: 1, TimeoutSeconds: 3, FailureThreshold: 600})
}

// Ready is p, asking the agent whether its proxy serves.
func Ready(p corev1.Probe) *corev1.Probe {
	p.HTTPGet = &corev1.HTTPGetAction{Path: "/healthz/ready", Port: intstr.FromInt32(probe.Port), Scheme: corev1.URISchemeHTTP}
	return &p
}

// Resources are Istio's.
func Resources() corev1.ResourceRequirements {
	list := func(cpu, memory string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	}
	return corev1.ResourceRequirements{Requests: list("100m", "128Mi"), Limits: list("2", "1Gi")}
}

// SecurityContext passes Pod Security's "restricted".
func SecurityContext() *corev1.SecurityContext {
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: new(false),
		Privileged:               new(false),
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		ReadOnlyRootFilesystem:   new(true),
		RunAsUser:                new(int64(User)),
		RunAsGroup:               new(int64(User)),
		RunAsNonRoot:             new(true),
		SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}
