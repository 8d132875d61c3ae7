package inject

import (
	"bytes"
	"encoding/json"
	"fmt"
	"iter"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/chandler-proxy/chandler/internal/resource"
)

// Stream returns YAML documents with sidecars in those that make pods: Pod,
// ReplicationController, Deployment, StatefulSet, DaemonSet, ReplicaSet, Job, CronJob,
// and the items of a List. Labels of namespaces are not known; every pod gets one that
// does not say otherwise. A document that none is added to stays as it is, byte for
// byte; another loses its comments. Problems are warnings, and why pods that would
// have been expected to get one got none. An error names the document, counted from 1,
// and is a [*Refusal] where the user asked for what cannot be.
func Stream(text []byte, o Options) ([]byte, []resource.Problem, error) {
	var (
		out      bytes.Buffer
		problems []resource.Problem
		number   int
	)
	for doc := range documents(text) {
		if doc.content {
			number++
		}
		changed, p, err := o.document(doc.text)
		if err != nil {
			return nil, nil, fmt.Errorf("inject document %d: %w", number, err)
		}
		problems = append(problems, p...)
		out.Write(doc.start)
		if changed == nil {
			out.Write(doc.text)
			continue
		}
		if len(doc.start) > 0 {
			out.WriteByte('\n')
		}
		out.Write(changed)
	}
	return out.Bytes(), problems, nil
}

// A document is one of a stream.
type document struct {
	start   []byte // three dashes, or nothing before the first
	text    []byte
	content bool // not comments and blank lines only
}

// documents splits a stream. Put together again, the documents are the stream.
func documents(text []byte) iter.Seq[document] {
	return func(yield func(document) bool) {
		var d document
		for line := range bytes.Lines(text) {
			if isSeparator(line) {
				if !yield(d) {
					return
				}
				d = document{start: line[:3]}
				line = line[3:]
			}
			d.text = append(d.text, line...)
			trimmed := bytes.TrimSpace(line)
			d.content = d.content || len(trimmed) > 0 && trimmed[0] != '#'
		}
		yield(d)
	}
}

// isSeparator says whether a line begins a document: with three dashes, and perhaps
// the document's beginning after a blank.
func isSeparator(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("---"))
	return ok && (len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0)
}

// document returns a document with sidecars; nil if it stays as it is.
func (o Options) document(text []byte) ([]byte, []resource.Problem, error) {
	encoded, err := yaml.YAMLToJSON(text)
	if err != nil {
		return nil, nil, err
	}
	var object map[string]any
	if kjson.UnmarshalCaseSensitivePreserveInts(encoded, &object) != nil || object == nil {
		return nil, nil, nil // comments, or no resource
	}
	changed, problems, err := o.object(object)
	if err != nil || !changed {
		return nil, problems, err
	}
	out, err := yaml.Marshal(object)
	return out, problems, err
}

// object adds a sidecar to the pods that a resource makes, in place, and says whether
// there was any.
func (o Options) object(object map[string]any) (changed bool, problems []resource.Problem, err error) {
	kind, _ := object["kind"].(string)
	version, _ := object["apiVersion"].(string)
	if version == "v1" && kind == "List" {
		items, _ := object["items"].([]any)
		for _, item := range items {
			item, ok := item.(map[string]any)
			if !ok {
				continue
			}
			c, p, err := o.object(item)
			if err != nil {
				return false, nil, err
			}
			changed, problems = changed || c, append(problems, p...)
		}
		return changed, problems, nil
	}
	path, ok := templates(version, kind)
	if !ok {
		return false, nil, nil
	}
	return o.template(object, kind, path)
}

// templates is where a kind has what its pods are like.
func templates(version, kind string) (path []string, ok bool) {
	switch version + "/" + kind {
	case "v1/Pod":
		return nil, true
	case "v1/ReplicationController", "apps/v1/Deployment", "apps/v1/StatefulSet", "apps/v1/DaemonSet", "apps/v1/ReplicaSet", "batch/v1/Job":
		return []string{"spec", "template"}, true
	case "batch/v1/CronJob":
		return []string{"spec", "jobTemplate", "spec", "template"}, true
	}
	return nil, false
}

// template adds a sidecar to what is at path of object.
func (o Options) template(object map[string]any, kind string, path []string) (bool, []resource.Problem, error) {
	var meta metav1.PartialObjectMetadata
	if err := decode(object, &meta); err != nil {
		return false, nil, fmt.Errorf("read %s: %w", kind, err)
	}
	located := func(p resource.Problem) resource.Problem {
		p.Kind, p.Namespace, p.Name = kind, meta.Namespace, meta.Name
		if len(path) > 0 && p.Field != "" {
			p.Field = strings.Join(path, ".") + "." + p.Field
		}
		return p
	}
	node := object
	for _, key := range path {
		node, _ = node[key].(map[string]any)
	}
	if node == nil {
		return false, nil, nil // for the API server to refuse
	}
	if m, ok := node["metadata"]; !ok || m == nil {
		node["metadata"] = map[string]any{}
	}
	var pod corev1.Pod
	if err := decode(node, &pod); err != nil {
		return false, nil, fmt.Errorf("read %s %s: %w", kind, meta.Name, err)
	}
	if of, ok := pod.Labels[revisionLabel]; ok && of != o.Revision {
		return false, []resource.Problem{located(resource.Problem{Message: "no sidecar: " + otherRevision("pod", of, o.Revision)})}, nil
	}
	if why := left(&pod, meta.Namespace); why != "" {
		return false, []resource.Problem{located(resource.Problem{Message: "no sidecar: " + why})}, nil
	}
	workload := meta.Name
	if kind == "Pod" {
		workload = Workload(&pod)
	}
	with, problems, err := add(&pod, workload, o)
	if err != nil {
		if refusal, ok := err.(*Refusal); ok {
			err = &Refusal{each(refusal.Problems, located)}
		}
		return false, nil, err
	}
	ops, err := difference(pod, with)
	if err != nil {
		return false, nil, err
	}
	if _, err := patch(node, ops); err != nil {
		return false, nil, fmt.Errorf("change %s %s: %w", kind, meta.Name, err)
	}
	return true, each(problems, located), nil
}

func decode(object map[string]any, to any) error {
	text, err := json.Marshal(object)
	if err != nil {
		return err
	}
	return kjson.UnmarshalCaseSensitivePreserveInts(text, to)
}

func each[T any](list []T, change func(T) T) []T {
	var changed []T
	for _, item := range list {
		changed = append(changed, change(item))
	}
	return changed
}
