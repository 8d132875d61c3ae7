package inject

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"github.com/chandler-proxy/chandler/internal/inject/agentpod"
	"github.com/chandler-proxy/chandler/internal/probe"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// Pod returns a copy of pod with a sidecar, and warnings of what the user may have
// expected and does not get. A pod that has a sidecar is returned as it is. Whether
// the pod should have one is for [Decide] to say. An error is a [*Refusal].
func Pod(pod *corev1.Pod, o Options) (*corev1.Pod, []resource.Problem, error) {
	return add(pod, Workload(pod), o)
}

// add is Pod, for a pod that workload makes.
func add(pod *corev1.Pod, workload string, o Options) (*corev1.Pod, []resource.Problem, error) {
	out := pod.DeepCopy()
	if injected(pod) {
		return out, nil, nil
	}
	s, warnings, err := readSettings(pod, o)
	if err != nil {
		return nil, nil, err
	}
	proxyOverride, initOverride := take(out, proxyName), take(out, initName)
	if problems := conflicts(out, s); len(problems) > 0 {
		return nil, nil, &Refusal{problems}
	}
	warnings = append(warnings, doubts(out)...)

	label(out, workload)
	var probes probe.Set
	if s.redirected && s.rewriteProbes {
		probes = takeProbes(out)
	}
	proxy, err := override(proxyContainer(workload, s, o, probes), proxyOverride, s.redirected)
	if err != nil {
		return nil, nil, err
	}
	containers := []corev1.Container{proxy}
	if s.redirected {
		first, err := override(initContainer(s, o), initOverride, false)
		if err != nil {
			return nil, nil, err
		}
		containers = []corev1.Container{first, proxy}
	}
	out.Spec.InitContainers = append(containers, out.Spec.InitContainers...)
	added := append(agentpod.Volumes(), s.volumes...)
	out.Spec.Volumes = append(out.Spec.Volumes, added...)
	for _, name := range o.PullSecrets {
		ref := corev1.LocalObjectReference{Name: name}
		if !slices.Contains(out.Spec.ImagePullSecrets, ref) {
			out.Spec.ImagePullSecrets = append(out.Spec.ImagePullSecrets, ref)
		}
	}
	annotate(out, s, o, containers, added)
	return out, warnings, nil
}

// take removes the container of a name from a pod, wherever the user put it, and
// returns it; nil if there is none.
func take(pod *corev1.Pod, name string) *corev1.Container {
	for _, list := range []*[]corev1.Container{&pod.Spec.InitContainers, &pod.Spec.Containers} {
		if i := slices.IndexFunc(*list, func(c corev1.Container) bool { return c.Name == name }); i >= 0 {
			c := (*list)[i]
			*list = slices.Delete(*list, i, i+1)
			return &c
		}
	}
	return nil
}

// override merges what the user wrote for a container over ours, as kubectl would
// apply it. With fixedUser, the user that redirection knows the proxy by cannot be
// another.
func override(ours corev1.Container, theirs *corev1.Container, fixedUser bool) (corev1.Container, error) {
	if theirs == nil {
		return ours, nil
	}
	over := theirs.DeepCopy()
	if over.Image == "auto" { // Istio's word for the usual one
		over.Image = ""
		// which the API server takes for the latest of something, before we are asked
		if over.ImagePullPolicy == corev1.PullAlways {
			over.ImagePullPolicy = ""
		}
	}
	merged, err := merge(ours, *over)
	if err != nil {
		return ours, &Refusal{[]resource.Problem{{Field: "spec.containers[" + ours.Name + "]", Message: err.Error()}}}
	}
	merged.RestartPolicy = ours.RestartPolicy
	c := merged.SecurityContext
	if fixedUser && (c == nil || c.RunAsUser == nil || *c.RunAsUser != proxyUser || c.RunAsGroup == nil || *c.RunAsGroup != proxyUser) {
		return ours, &Refusal{[]resource.Problem{{
			Field:   "spec.containers[" + ours.Name + "].securityContext",
			Message: fmt.Sprintf("user and group of the sidecar must be %d: redirection knows its connections by them", proxyUser),
			Mend:    "leave runAsUser and runAsGroup out",
		}}}
	}
	return merged, nil
}

func merge(ours, theirs corev1.Container) (merged corev1.Container, err error) {
	// of what can be only one, a value or where it comes from, theirs alone is left
	ours.Env = slices.DeleteFunc(slices.Clone(ours.Env), func(e corev1.EnvVar) bool {
		return slices.ContainsFunc(theirs.Env, func(t corev1.EnvVar) bool { return t.Name == e.Name })
	})
	ours.StartupProbe = withoutHandler(ours.StartupProbe, theirs.StartupProbe)
	ours.ReadinessProbe = withoutHandler(ours.ReadinessProbe, theirs.ReadinessProbe)
	base, err := json.Marshal(ours)
	if err != nil {
		return merged, err
	}
	over, err := json.Marshal(theirs)
	if err != nil {
		return merged, err
	}
	text, err := strategicpatch.StrategicMergePatch(base, over, corev1.Container{})
	if err != nil {
		return merged, err
	}
	return merged, json.Unmarshal(text, &merged)
}

// withoutHandler leaves of our probe what is to be merged with theirs.
func withoutHandler(ours, theirs *corev1.Probe) *corev1.Probe {
	if ours == nil || theirs == nil || theirs.ProbeHandler == (corev1.ProbeHandler{}) {
		return ours
	}
	without := *ours
	without.ProbeHandler = corev1.ProbeHandler{}
	return &without
}

// conflicts are what of a pod, without the user's istio-proxy, cannot be together with
// a sidecar.
func conflicts(pod *corev1.Pod, s settings) []resource.Problem {
	var list []resource.Problem
	names := map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		names[v.Name] = true
	}
	for _, v := range append(agentpod.Volumes(), s.volumes...) {
		if names[v.Name] {
			list = append(list, resource.Problem{Field: "spec.volumes[" + v.Name + "]", Message: "the sidecar has a volume of this name", Mend: "rename it"})
		}
		names[v.Name] = true
	}
	if !s.redirected {
		return list
	}
	if c := pod.Spec.SecurityContext; c != nil && c.RunAsUser != nil && *c.RunAsUser == proxyUser {
		list = append(list, asProxy("spec.securityContext.runAsUser"))
	}
	for _, at := range containers(pod) {
		if c := at.container.SecurityContext; c != nil && c.RunAsUser != nil && *c.RunAsUser == proxyUser {
			list = append(list, asProxy(at.field+".securityContext.runAsUser"))
		}
	}
	return list
}

func asProxy(field string) resource.Problem {
	return resource.Problem{Field: field,
		Message: fmt.Sprintf("%d is the sidecar's user: what the container opens would pass the sidecar by", proxyUser),
		Mend:    "choose another"}
}

// A place is a container, and where it is in its pod.
type place struct {
	field     string
	container *corev1.Container
}

// containers are a pod's, those first that run first.
func containers(pod *corev1.Pod) []place {
	var list []place
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		list = append(list, place{"spec.initContainers[" + c.Name + "]", c})
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		list = append(list, place{"spec.containers[" + c.Name + "]", c})
	}
	return list
}

// doubts are what of a pod may not work together with a sidecar.
func doubts(pod *corev1.Pod) []resource.Problem {
	var list []resource.Problem
	if p := pod.Spec.DNSPolicy; p != "" && p != corev1.DNSClusterFirst {
		list = append(list, resource.Problem{Field: "spec.dnsPolicy",
			Message: fmt.Sprintf("is %s; the sidecar may not find the control plane by its name", p)})
	}
	for _, at := range containers(pod) {
		for _, p := range at.container.Ports {
			if slices.Contains([]int32{15000, 15001, 15006, probe.Port}, p.ContainerPort) {
				list = append(list, resource.Problem{Field: at.field + ".ports", Message: fmt.Sprintf("%d is a port of the sidecar's", p.ContainerPort)})
			}
		}
	}
	return list
}

// label adds the labels by which telemetry knows the workload, as Istio does.
func label(pod *corev1.Pod, workload string) {
	labels := maps.Clone(pod.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	name := cmp.Or(labels["app.kubernetes.io/name"], labels["app"], workload)
	revision := cmp.Or(labels["app.kubernetes.io/version"], labels["version"], "latest")
	for key, value := range map[string]string{
		"service.istio.io/canonical-name":     labelValue(name),
		"service.istio.io/canonical-revision": labelValue(revision),
	} {
		if _, ok := labels[key]; !ok && value != "" {
			labels[key] = value
		}
	}
	pod.Labels = labels
}

// labelValue cuts a name to what a label's value may have.
func labelValue(name string) string {
	return strings.TrimRight(name[:min(len(name), 63)], "-_.")
}

// Workload is the name of what made a pod: of the Deployment, not its ReplicaSet, or
// the CronJob, not its Job. A pod that nothing made has its own name.
func Workload(pod *corev1.Pod) string {
	name := cmp.Or(pod.Name, strings.TrimSuffix(pod.GenerateName, "-"))
	owner := metav1.GetControllerOfNoCopy(pod)
	if owner == nil {
		return name
	}
	switch owner.Kind {
	case "ReplicaSet":
		if hash := pod.Labels["pod-template-hash"]; hash != "" {
			return strings.TrimSuffix(owner.Name, "-"+hash)
		}
	case "Job":
		// a CronJob's Job bears the minute it was made for
		if at := strings.LastIndexByte(owner.Name, '-'); at > 0 && isMinutes(owner.Name[at+1:]) {
			return owner.Name[:at]
		}
	}
	return owner.Name
}

// isMinutes says whether text is a number of minutes since 1970, in this century.
func isMinutes(text string) bool {
	return len(text) == 8 && strings.Trim(text, "0123456789") == ""
}

// A status is what [statusAnnotation] says, as Istio's tools read it.
type status struct {
	InitContainers   []string `json:"initContainers"`
	Containers       []string `json:"containers"`
	Volumes          []string `json:"volumes"`
	ImagePullSecrets []string `json:"imagePullSecrets"`
	Revision         string   `json:"revision"`
}

// annotate tells what was added, and where metrics are unless the pod says so itself.
func annotate(pod *corev1.Pod, s settings, o Options, containers []corev1.Container, volumes []corev1.Volume) {
	told := status{ImagePullSecrets: o.PullSecrets, Revision: o.Revision}
	for _, c := range containers {
		told.InitContainers = append(told.InitContainers, c.Name)
	}
	for _, v := range volumes {
		told.Volumes = append(told.Volumes, v.Name)
	}
	text, err := json.Marshal(told)
	if err != nil {
		panic(err) // strings only
	}
	annotations := maps.Clone(pod.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[statusAnnotation] = string(text)
	annotations[revisionLabel] = o.Revision
	if s.scrape && !slices.ContainsFunc(slices.Collect(maps.Keys(annotations)), forPrometheus) {
		annotations["prometheus.io/scrape"] = "true"
		annotations["prometheus.io/port"] = fmt.Sprint(probe.Port)
		annotations["prometheus.io/path"] = "/stats/prometheus"
	}
	pod.Annotations = annotations
}

// forPrometheus says whether an annotation tells Prometheus what to scrape, which knows
// many spellings of one name.
func forPrometheus(name string) bool {
	return strings.HasPrefix(strings.Map(func(r rune) rune {
		if r == '.' || r == '/' || r == '-' {
			return '_'
		}
		return r
	}, name), "prometheus_io_")
}
