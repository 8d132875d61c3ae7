package gateway

import (
	"maps"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/chandler-proxy/chandler/internal/inject/agentpod"
	"github.com/chandler-proxy/chandler/internal/probe"
)

// podTemplate is a proxy as deploy/base/ingress-gateway.yaml has it: no root, no
// rights at the API server, no writing but to memory-backed or empty folders.
func podTemplate(g *gatewayv1.Gateway, opts Options) corev1.PodTemplateSpec {
	labels, annotations := labelsOf(g), map[string]string{
		"prometheus.io/scrape": "true",
		"prometheus.io/port":   strconv.Itoa(probe.Port),
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
				RunAsNonRoot: new(true), RunAsUser: new(int64(agentpod.User)), RunAsGroup: new(int64(agentpod.User)), FSGroup: new(int64(agentpod.User)),
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{container(opts)},
			Volumes:    agentpod.Volumes(),
		},
	}
}

func container(opts Options) corev1.Container {
	return corev1.Container{
		Name:            agentpod.Container,
		Image:           opts.Image,
		ImagePullPolicy: corev1.PullIfNotPresent,
		Args:            agentpod.Args("router", opts.Proxy, opts.Control, opts.Domain),
		Env:             agentpod.Env(opts.Env),
		Ports: []corev1.ContainerPort{
			{Name: "http-status", ContainerPort: probe.Port, Protocol: corev1.ProtocolTCP},
			{Name: statusPort, ContainerPort: agentpod.HealthPort, Protocol: corev1.ProtocolTCP},
		},
		StartupProbe:    agentpod.Startup(),
		ReadinessProbe:  agentpod.Ready(corev1.Probe{PeriodSeconds: 5, TimeoutSeconds: 3, FailureThreshold: 4}),
		Resources:       agentpod.Resources(),
		SecurityContext: agentpod.SecurityContext(),
		VolumeMounts:    agentpod.Mounts(),
	}
}
