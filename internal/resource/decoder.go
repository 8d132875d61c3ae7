package resource

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
)

// A Decoder makes objects of what users write. It may be used concurrently, and
// is worth sharing: it keeps the schemas that it has compiled.
type Decoder struct {
	kinds       []kind
	definitions map[string]func() (*definition, error) // by name of the CRD
}

// NewDecoder returns a decoder for all kinds that Chandler knows. It compiles
// nothing yet: each kind's schema waits for the first resource of that kind.
func NewDecoder() *Decoder {
	d := &Decoder{kinds: kinds(), definitions: map[string]func() (*definition, error){}}
	for _, k := range d.kinds {
		if k.crd != "" {
			d.definitions[k.crd] = sync.OnceValues(func() (*definition, error) { return compile(k.crd) })
		}
	}
	return d
}

// A Document is what became of one resource in a file.
type Document struct {
	Line int // where it begins, 1-based
	// Key is as much as could be read. A resource that could not be identified
	// has no Name.
	Key Key
	// Object is nil if there are Problems, and for kinds that say nothing about
	// traffic, such as Deployment: they are accepted and left out.
	Object   Object
	Problems []Problem
	Lines    *Lines // of the file; the same for all of its documents
}

// Decode returns the valid resources of a file and the problems of the others,
// each in the order of the file. file is for the problems only.
//
// data may hold several YAML documents or JSON values, and a document may be a
// List. A namespace that is not given is "default". What an API server sets
// (uid, generation, status and their like) is dropped; ResourceVersion becomes
// a hash of the rest, so it changes exactly when the resource does.
func (d *Decoder) Decode(file string, data []byte) ([]Object, []Problem) {
	var objects []Object
	var problems []Problem
	for _, document := range d.Documents(file, data) {
		if document.Object != nil {
			objects = append(objects, document.Object)
		}
		problems = append(problems, document.Problems...)
	}
	return objects, problems
}

// Documents is Decode for who needs to know what became of each resource. A
// syntax error, and a file that is too large, is a document without a key.
func (d *Decoder) Documents(file string, data []byte) []Document {
	if len(data) > MaxFile {
		return []Document{unread(file, finding{message: fmt.Sprintf("larger than %d MiB", MaxFile>>20)})}
	}
	nodes, bad := parse(data)
	var documents []Document
	for _, f := range bad {
		documents = append(documents, unread(file, f))
	}
	left := maxValues
	for _, n := range nodes {
		documents = append(documents, d.documents(file, n, &left)...)
	}
	if len(documents) > maxDocuments {
		return []Document{unread(file, finding{message: fmt.Sprintf("more than %d resources", maxDocuments), mend: "split the file"})}
	}
	slices.SortStableFunc(documents, func(a, b Document) int { return cmp.Compare(a.Line, b.Line) })
	refuseRepeated(file, documents)
	lines := newLines(data)
	for i := range documents {
		documents[i].Lines = lines
	}
	return documents
}

// unread is the document that stands for what could not be read.
func unread(file string, f finding) Document {
	return Document{Line: f.line, Problems: []Problem{problem(file, Key{}, f)}}
}

// refuseRepeated leaves only the first of several resources with the same key.
func refuseRepeated(file string, documents []Document) {
	first := map[Key]int{}
	for i, document := range documents {
		key := document.Key
		unused := document.Object == nil && len(document.Problems) == 0
		if key.Name == "" || unused {
			continue
		}
		line, repeated := first[key]
		if !repeated {
			first[key] = document.Line
			continue
		}
		documents[i].Object = nil
		documents[i].Problems = append(document.Problems, problem(file, key, finding{
			line:    document.Line,
			message: fmt.Sprintf("is already in this file, at line %d, which is taken", line),
			mend:    "keep one of them",
		}))
	}
}

// documents decodes the resource at n, or each one if it is a List.
func (d *Decoder) documents(file string, n *yaml.Node, left *int) []Document {
	if items := listItems(n); items != nil {
		var documents []Document
		for _, item := range items {
			documents = append(documents, d.documents(file, item, left)...)
		}
		return documents
	}
	key, object, findings := d.decode(n, left)
	document := Document{Line: n.Line, Key: key, Object: object}
	for _, f := range settle(n, findings) {
		document.Problems = append(document.Problems, problem(file, key, f))
	}
	return []Document{document}
}

// listItems returns what a List, or a WasmPluginList and its like, holds; nil
// if n is none.
func listItems(n *yaml.Node) []*yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	var items []*yaml.Node
	isList := false
	for i := 0; i+1 < len(n.Content); i += 2 {
		switch key, value := n.Content[i].Value, n.Content[i+1]; {
		case key == "kind":
			isList = strings.HasSuffix(value.Value, "List")
		case key == "items" && value.Kind == yaml.SequenceNode:
			items = value.Content
		}
	}
	if !isList {
		return nil
	}
	return items
}

// decode makes the object of n. With any finding there is none.
func (d *Decoder) decode(n *yaml.Node, left *int) (Key, Object, []finding) {
	if n.Kind != yaml.MappingNode {
		return Key{}, nil, []finding{{line: n.Line, message: "not a resource: a mapping with apiVersion, kind and metadata is needed"}}
	}
	r := reader{left: *left}
	tree, _ := r.read(n, "", 0).(map[string]any)
	*left = max(r.left, 0)
	key, k, findings := d.identify(tree)
	findings = append(findings, r.findings...)
	if k == nil || len(r.findings) > 0 {
		return key, nil, findings
	}
	dropServerFields(k, tree)
	var object Object
	if k.crd != "" {
		object, findings = d.decodeCustom(k, n, tree)
	} else {
		object, findings = decodeBuiltIn(k, n, tree)
	}
	if len(findings) > 0 {
		return key, nil, findings
	}
	return key, object, nil
}

// identify reads what resource tree is, and puts a namespace into it if it
// needs one. Without a kind there is nothing more to do: it is unknown, as the
// finding says, or not used.
func (d *Decoder) identify(tree map[string]any) (Key, *kind, []finding) {
	var missing []finding
	text := func(name string) string {
		s, _ := tree[name].(string)
		if s == "" {
			missing = append(missing, finding{field: name, message: "Required value"})
		}
		return s
	}
	group, version := splitVersion(text("apiVersion"))
	key := Key{Group: group, Kind: text("kind")}
	metadata, _ := tree["metadata"].(map[string]any)
	key.Name, _ = metadata["name"].(string)
	key.Namespace, _ = metadata["namespace"].(string)
	if len(missing) > 0 {
		return key, nil, missing
	}
	k := d.kind(group, key.Kind)
	switch {
	case k == nil && isUnused(group, key.Kind):
		return key, nil, nil
	case k == nil || !slices.Contains(k.versions, version):
		return key, nil, []finding{d.unknownKind(group, version, key.Kind)}
	}
	if key.Namespace == "" && !k.cluster {
		key.Namespace = metav1.NamespaceDefault
		setNamespace(tree, key.Namespace)
	}
	return key, k, nil
}

// setNamespace puts namespace into tree unless something else is in its place.
func setNamespace(tree map[string]any, namespace string) {
	if tree["metadata"] == nil {
		tree["metadata"] = map[string]any{}
	}
	metadata, _ := tree["metadata"].(map[string]any)
	if metadata != nil && (metadata["namespace"] == nil || metadata["namespace"] == "") {
		metadata["namespace"] = namespace
	}
}

func (d *Decoder) kind(group, name string) *kind {
	i := slices.IndexFunc(d.kinds, func(k kind) bool { return k.group == group && k.name == name })
	if i < 0 {
		return nil
	}
	return &d.kinds[i]
}

// dropServerFields removes what an API server sets, and would drop or replace
// if a user sent it, so that the output of "kubectl get -o yaml" is a resource.
// The status of Kubernetes' own kinds stays: it has the IP of a Pod.
func dropServerFields(k *kind, tree map[string]any) {
	if k.crd != "" {
		delete(tree, "status")
	}
	metadata, _ := tree["metadata"].(map[string]any)
	for _, name := range []string{"generation", "managedFields", "resourceVersion", "selfLink", "uid"} {
		delete(metadata, name)
	}
}

// decodeCustom makes an object of a kind that a CRD defines.
func (d *Decoder) decodeCustom(k *kind, n *yaml.Node, tree map[string]any) (Object, []finding) {
	def, err := d.definitions[k.crd]()
	if err != nil {
		return nil, []finding{{message: err.Error()}}
	}
	meta, _, unknown, err := objectmeta.GetObjectMetaWithOptions(tree, objectmeta.ObjectMetaOptions{ReturnUnknownFieldPaths: true})
	if err != nil {
		return nil, []finding{typeFinding(err, tree["metadata"], new(metav1.ObjectMeta), "metadata")}
	}
	if meta == nil {
		meta = new(metav1.ObjectMeta)
	}
	findings := unknownFields(n, schemaShape{def.structural, true}, append(unknown, def.prepare(tree)...))
	errs := validateMeta(k, meta)
	errs = append(errs, def.validate(tree)...)
	if findings = append(findings, fieldFindings(errs)...); len(findings) > 0 {
		return nil, findings
	}
	object := k.new()
	if err := remarshal(tree, object); err != nil {
		return nil, []finding{typeFinding(err, tree, k.new(), "")}
	}
	return finish(k, object, tree)
}

// decodeBuiltIn makes an object of a kind of Kubernetes itself.
func decodeBuiltIn(k *kind, n *yaml.Node, tree map[string]any) (Object, []finding) {
	if k.name == "Secret" {
		if findings := checkSecretData(tree); len(findings) > 0 {
			return nil, findings
		}
	}
	data, err := json.Marshal(tree)
	if err != nil {
		return nil, []finding{{message: err.Error()}}
	}
	object := k.new()
	strict, err := kjson.UnmarshalStrict(data, object)
	if err != nil {
		return nil, []finding{typeFinding(err, tree, k.new(), "")}
	}
	var unknown []string
	for _, err := range strict {
		if err, ok := err.(kjson.FieldError); ok {
			unknown = append(unknown, err.FieldPath())
		}
	}
	findings := unknownFields(n, shapeOf(object), unknown)
	if k.complete != nil {
		k.complete(object)
	}
	if findings = append(findings, fieldFindings(validateMeta(k, object))...); len(findings) > 0 {
		return nil, findings
	}
	return finish(k, object, tree)
}

func validateMeta(k *kind, meta metav1.Object) field.ErrorList {
	return validation.ValidateObjectMetaAccessor(meta, !k.cluster, k.validate, field.NewPath("metadata"))
}

// finish makes the last checks and gives object its type and version.
func finish(k *kind, object Object, tree map[string]any) (Object, []finding) {
	if k.check != nil {
		if findings := fieldFindings(k.check(object)); len(findings) > 0 {
			return nil, findings
		}
	}
	object.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{Group: k.group, Version: k.versions[0], Kind: k.name})
	data, err := json.Marshal(tree)
	if err != nil {
		return nil, []finding{{message: err.Error()}}
	}
	sum := sha256.Sum256(data)
	object.SetResourceVersion(hex.EncodeToString(sum[:8]))
	return object, nil
}

func remarshal(tree any, into any) error {
	data, err := json.Marshal(tree)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}
