package inject

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	kresource "k8s.io/apimachinery/pkg/api/resource"

	"github.com/chandler-proxy/chandler/internal/redirect"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// A Refusal is a pod that cannot be given a sidecar, with all that is wrong with it.
type Refusal struct {
	Problems []resource.Problem
}

// Error is the problems, one after the other.
func (r *Refusal) Error() string {
	var lines []string
	for _, p := range r.Problems {
		lines = append(lines, p.String())
	}
	return strings.Join(lines, "; ")
}

// settings are what annotations of a pod ask for.
type settings struct {
	proxy, image string
	resources    corev1.ResourceRequirements
	logLevel     string // as Envoy names them; empty is the default

	redirected bool
	redirect   redirect.Config

	rewriteProbes, scrape bool
	readiness             struct{ delay, period, failures int32 }

	volumes []corev1.Volume
	mounts  []corev1.VolumeMount
}

// annotations reads those of one pod, collecting what is wrong.
type annotations struct {
	all      map[string]string
	known    []string
	problems []resource.Problem
}

// field is where an annotation is in its pod.
func field(annotation string) string { return fmt.Sprintf("metadata.annotations[%s]", annotation) }

// read gives the annotation to set, if it is there. An error of set is the user's
// mistake: "MESSAGE", or "MESSAGE; MEND".
func (a *annotations) read(name string, set func(string) error) {
	a.known = append(a.known, name)
	value, ok := a.all[name]
	if !ok {
		return
	}
	if err := set(value); err != nil {
		message, mend, _ := strings.Cut(err.Error(), "; ")
		a.problems = append(a.problems, resource.Problem{Field: field(name), Message: message, Mend: mend})
	}
}

// readSettings reads the annotations of a pod. Warnings are of those that Istio would
// honour and we do not.
func readSettings(pod *corev1.Pod, o Options) (s settings, warnings []resource.Problem, err error) {
	a := &annotations{all: pod.Annotations}
	s.proxy, s.redirected, s.rewriteProbes, s.scrape = o.Proxy, true, true, true
	a.read("sidecar.chandler.io/proxy", oneOf(&s.proxy, Engine, Envoy))
	a.read("sidecar.istio.io/logLevel", oneOf(&s.logLevel, "trace", "debug", "info", "warning", "error", "critical", "off"))
	a.read("sidecar.istio.io/proxyImage", func(v string) error {
		s.image = strings.TrimSpace(v)
		return nil
	})
	if s.image == "" {
		s.image = o.ImageOf(s.proxy)
	}
	if s.image == "" {
		a.problems = append(a.problems, resource.Problem{Field: field("sidecar.chandler.io/proxy"),
			Message: "the control plane knows no image with an Envoy", Mend: "name one in " + field("sidecar.istio.io/proxyImage")})
	}
	s.readResources(a, o)
	s.readRedirection(a)
	a.read("sidecar.istio.io/rewriteAppHTTPProbers", boolean(&s.rewriteProbes))
	a.read("prometheus.istio.io/merge-metrics", boolean(&s.scrape))
	s.readiness.period, s.readiness.failures = 15, 4
	a.read("readiness.status.sidecar.istio.io/initialDelaySeconds", number(&s.readiness.delay, 0))
	a.read("readiness.status.sidecar.istio.io/periodSeconds", number(&s.readiness.period, 1))
	a.read("readiness.status.sidecar.istio.io/failureThreshold", number(&s.readiness.failures, 1))
	a.read("sidecar.istio.io/userVolume", func(v string) (err error) {
		s.volumes, err = named(v, func(x *corev1.Volume) *string { return &x.Name })
		return err
	})
	a.read("sidecar.istio.io/userVolumeMount", func(v string) (err error) {
		s.mounts, err = named(v, func(x *corev1.VolumeMount) *string { return &x.Name })
		return err
	})
	a.read("inject.istio.io/templates", func(v string) error {
		if v != "sidecar" {
			return fmt.Errorf("template %q is unknown; the only one is sidecar, and gateways are made from Gateway resources", v)
		}
		return nil
	})
	a.known = append(a.known, podLabel, statusAnnotation)
	if len(a.problems) > 0 {
		sortByField(a.problems)
		return s, nil, &Refusal{a.problems}
	}
	return s, a.unknown(), nil
}

// readResources follows Istio: an annotation for any of them takes the place of all
// defaults.
func (s *settings) readResources(a *annotations, o Options) {
	var r corev1.ResourceRequirements
	given := false
	quantity := func(list *corev1.ResourceList, name corev1.ResourceName) func(string) error {
		return func(v string) error {
			q, err := kresource.ParseQuantity(v)
			if err != nil || q.Sign() < 0 {
				return fmt.Errorf("%q is not an amount of %s; write one such as %s", v, name, map[corev1.ResourceName]string{
					corev1.ResourceCPU: "100m", corev1.ResourceMemory: "128Mi"}[name])
			}
			if *list == nil {
				*list = corev1.ResourceList{}
			}
			(*list)[name], given = q, true
			return nil
		}
	}
	a.read("sidecar.istio.io/proxyCPU", quantity(&r.Requests, corev1.ResourceCPU))
	a.read("sidecar.istio.io/proxyMemory", quantity(&r.Requests, corev1.ResourceMemory))
	a.read("sidecar.istio.io/proxyCPULimit", quantity(&r.Limits, corev1.ResourceCPU))
	a.read("sidecar.istio.io/proxyMemoryLimit", quantity(&r.Limits, corev1.ResourceMemory))
	if s.resources = r; !given {
		s.resources = *o.Resources.DeepCopy()
	}
}

// readRedirection reads which connections go to the sidecar, all unless it is told
// otherwise.
func (s *settings) readRedirection(a *annotations) {
	a.read("sidecar.istio.io/interceptionMode", func(v string) error {
		switch v {
		case "REDIRECT":
		case "NONE":
			s.redirected = false
		default:
			return fmt.Errorf("%q is neither REDIRECT nor NONE; leave it out to have connections redirected", v)
		}
		return nil
	})
	c := redirect.Default()
	ports := "; separate ports by commas, as in 80,443"
	networks := "; separate networks by commas, as in 10.0.0.0/8,fd00::/8, or write *"
	for name, set := range map[string]func(string) error{
		"includeInboundPorts":     mend(parsed(redirect.ParsePorts, &c.IncludeInbound), ports+", or write * for all"),
		"excludeInboundPorts":     mend(parsed(redirect.ParsePortList, &c.ExcludeInbound), ports),
		"includeOutboundPorts":    mend(parsed(redirect.ParsePortList, &c.IncludeOutbound), ports),
		"excludeOutboundPorts":    mend(parsed(redirect.ParsePortList, &c.ExcludeOutbound), ports),
		"includeOutboundIPRanges": mend(parsed(redirect.ParseNetworks, &c.IncludeNetworks), networks),
		"excludeOutboundIPRanges": mend(parsed(redirect.ParseNetworks, &c.ExcludeNetworks), networks),
		"excludeInterfaces":       mend(parsed(redirect.ParseInterfaces, &c.ExcludeInterfaces), "; separate names by commas, as in eth1,net1"),
	} {
		a.read("traffic.sidecar.istio.io/"+name, set)
	}
	s.redirect = c
}

// unknown warns of annotations that ask for what we do not do.
func (a *annotations) unknown() []resource.Problem {
	var list []resource.Problem
	for name := range a.all {
		prefix, _, _ := strings.Cut(name, "/")
		switch prefix {
		case "sidecar.istio.io", "traffic.sidecar.istio.io", "readiness.status.sidecar.istio.io", "status.sidecar.istio.io",
			"proxy.istio.io", "inject.istio.io", "sidecar.chandler.io":
			if !slices.Contains(a.known, name) {
				list = append(list, resource.Problem{Field: field(name), Message: "is not honoured"})
			}
		}
	}
	sortByField(list)
	return list
}

func sortByField(list []resource.Problem) {
	slices.SortFunc(list, func(x, y resource.Problem) int { return cmp.Compare(x.Field, y.Field) })
}

func oneOf(to *string, values ...string) func(string) error {
	return func(v string) error {
		if !slices.Contains(values, v) {
			return fmt.Errorf("%q is unknown; write one of %s", v, strings.Join(values, ", "))
		}
		*to = v
		return nil
	}
}

func boolean(to *bool) func(string) error {
	return func(v string) error {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", v)
		}
		*to = b
		return nil
	}
}

func number(to *int32, least int32) func(string) error {
	return func(v string) error {
		n, err := strconv.ParseInt(v, 10, 32)
		if err != nil || int32(n) < least {
			return fmt.Errorf("%q is not a whole number of at least %d", v, least)
		}
		*to = int32(n)
		return nil
	}
}

// parsed returns a function that keeps what parse reads.
func parsed[T any](parse func(string) (T, error), to *T) func(string) error {
	return func(text string) (err error) {
		*to, err = parse(text)
		return err
	}
}

// mend adds to errors how to mend the mistake, unless they say so themselves.
func mend(set func(string) error, how string) func(string) error {
	return func(text string) error {
		err := set(text)
		if err != nil && !strings.Contains(err.Error(), "; ") {
			return fmt.Errorf("%w%s", err, how)
		}
		return err
	}
}

// named reads JSON as Istio's users write it: a list of things with a name, or an
// object with the names as keys.
func named[T any](text string, name func(*T) *string) ([]T, error) {
	wrong := func(err error) error {
		return fmt.Errorf("not the JSON of a list: %w; write as in [{\"name\": \"data\", ...}]", err)
	}
	text = strings.TrimSpace(text)
	if !strings.HasPrefix(text, "{") {
		var list []T
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			return nil, wrong(err)
		}
		return list, nil
	}
	var byName map[string]T
	if err := json.Unmarshal([]byte(text), &byName); err != nil {
		return nil, wrong(err)
	}
	var list []T
	for n, item := range byName {
		*name(&item) = n
		list = append(list, item)
	}
	slices.SortFunc(list, func(x, y T) int { return cmp.Compare(*name(&x), *name(&y)) })
	return list, nil
}
