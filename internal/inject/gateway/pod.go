package gateway

import (
	"maps"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

const (
	proxyUser  = 1337
	statusPort = 15020

	caDir    = "/var/run/secrets/chandler/ca"
	tokenDir = "/var/run/secrets/chandler/token"
	podDir   = "/etc/chandler/pod"
	dataDir  = "/var/lib/chandler"
)

// podTemplate is a proxy as deploy/base/ingress-gateway.yaml has it: no root, no
// rights at the API server, no writing but to memory-backed or empty folders.
func podTemplate(g *gatewayv1.Gateway, opts Options) corev1.PodTemplateSpec {
	labels, annotations := labelsOf(g), map[string]string{
		"prometheus.io/scrape": "true",
		"prometheus.io/port":   strconv.Itoa(statusPort),
		"prometheus.io/path":   "/metrics",
	}
	labels["sidecar.istio.io/inject"] = "false"
	maps.Copy(annotations, annotationsOf(g))
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: annotations},
		Spec: corev1.PodSpec{
			ServiceAccountName:           objectName(g),
			AutomountServiceAccountToken: new(false),
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: new(true), RunAsUser: new(int64(proxyUser)), RunAsGroup: new(int64(proxyUser)), FSGroup: new(int64(proxyUser)),
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{container(opts)},
			Volumes:    volumes(),
		},
	}
}

func container(opts Options) corev1.Container {
	return corev1.Container{
		Name:            "istio-proxy",
		Image:           opts.Image,
		ImagePullPolicy: corev1.PullIfNotPresent,
		Args: []string{
			"agent",
			"--proxy=" + opts.Proxy,
			"--control=" + opts.Control,
			"--ca=" + caDir + "/root-cert.pem",
			"--token=" + tokenDir + "/token",
			"--id=router~$(INSTANCE_IP)~$(POD_NAME).$(POD_NAMESPACE)~$(POD_NAMESPACE).svc." + opts.Domain,
			"--pod-info=" + podDir,
			"--data=" + dataDir,
			"--status=0.0.0.0:" + strconv.Itoa(statusPort),
		},
		Env:   environment(opts),
		Ports: []corev1.ContainerPort{{Name: "http-status", ContainerPort: statusPort, Protocol: corev1.ProtocolTCP}},
		// Before it is ready the first time, modules are fetched.
		StartupProbe:   readyProbe(1, 600),
		ReadinessProbe: readyProbe(5, 4),
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("1Gi")},
		},
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false), Privileged: new(false),
			ReadOnlyRootFilesystem: new(true), RunAsNonRoot: new(true),
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
		VolumeMounts: []corev1.VolumeMount{
			{Name: "chandler-ca", MountPath: caDir, ReadOnly: true},
			{Name: "chandler-token", MountPath: tokenDir, ReadOnly: true},
			{Name: "chandler-pod", MountPath: podDir, ReadOnly: true},
			{Name: "chandler-data", MountPath: dataDir},
			{Name: "chandler-tmp", MountPath: "/tmp"},
		},
	}
}

func environment(opts Options) []corev1.EnvVar {
	env := []corev1.EnvVar{
		fieldEnv("INSTANCE_IP", "status.podIP"),
		fieldEnv("POD_NAME", "metadata.name"),
		fieldEnv("POD_NAMESPACE", "metadata.namespace"),
	}
	for _, name := range slices.Sorted(maps.Keys(opts.Env)) {
		env = append(env, corev1.EnvVar{Name: name, Value: opts.Env[name]})
	}
	return env
}

func fieldEnv(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: field(path)}}
}

func field(path string) *corev1.ObjectFieldSelector {
	return &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}
}

func readyProbe(period, failures int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
			Path: "/healthz/ready", Port: intstr.FromInt32(statusPort), Scheme: corev1.URISchemeHTTP,
		}},
		PeriodSeconds: period, FailureThreshold: failures, TimeoutSeconds: 3,
	}
}

func volumes() []corev1.Volume {
	emptyDir := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
	return []corev1.Volume{
		{Name: "chandler-ca", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: "chandler-ca-root-cert"},
		}}},
		{Name: "chandler-token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
			Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
				Audience: "chandler-ca", ExpirationSeconds: new(int64(3600)), Path: "token",
			}}},
		}}},
		{Name: "chandler-pod", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{
			Items: []corev1.DownwardAPIVolumeFile{
				{Path: "labels", FieldRef: field("metadata.labels")},
				{Path: "annotations", FieldRef: field("metadata.annotations")},
			},
		}}},
		{Name: "chandler-data", VolumeSource: emptyDir},
		{Name: "chandler-tmp", VolumeSource: emptyDir},
	}
}
