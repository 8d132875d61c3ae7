package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	kjson "sigs.k8s.io/json"
)

// An operation is one of a JSON patch, RFC 6902.
type operation struct {
	Op    string `json:"op"`   // add, remove, replace or test
	Path  string `json:"path"` // RFC 6901
	Value any    `json:"value"`
}

// MarshalJSON leaves out the value of a removal, which has none; null is one.
func (o operation) MarshalJSON() ([]byte, error) {
	if o.Op == "remove" {
		return json.Marshal(map[string]string{"op": o.Op, "path": o.Path})
	}
	type plain operation
	return json.Marshal(plain(o))
}

// difference is the patch that makes from into to, both anything that marshals to
// JSON. What neither has is not touched, so that the patch also applies to a document
// with more fields than their types know.
func difference(from, to any) ([]operation, error) {
	a, err := generic(from)
	if err != nil {
		return nil, err
	}
	b, err := generic(to)
	if err != nil {
		return nil, err
	}
	return diff(nil, "", a, b), nil
}

func generic(v any) (any, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var out any
	return out, kjson.UnmarshalCaseSensitivePreserveInts(text, &out)
}

func diff(ops []operation, path string, a, b any) []operation {
	switch a := a.(type) {
	case map[string]any:
		if b, ok := b.(map[string]any); ok {
			return diffObjects(ops, path, a, b)
		}
	case []any:
		if b, ok := b.([]any); ok {
			return diffArrays(ops, path, a, b)
		}
	}
	if reflect.DeepEqual(a, b) {
		return ops
	}
	return append(ops, operation{"replace", path, b})
}

func diffObjects(ops []operation, path string, a, b map[string]any) []operation {
	for _, key := range sortedKeys(a) {
		if _, ok := b[key]; !ok {
			ops = append(ops, operation{Op: "remove", Path: path + "/" + escape(key)})
		}
	}
	for _, key := range sortedKeys(b) {
		at := path + "/" + escape(key)
		if was, ok := a[key]; ok {
			ops = diff(ops, at, was, b[key])
		} else {
			ops = append(ops, operation{"add", at, b[key]})
		}
	}
	return ops
}

// diffArrays takes items of one name, or that are the same, for one item. Where such
// items changed their order, or share a name, the array is replaced as a whole.
func diffArrays(ops []operation, path string, a, b []any) []operation {
	if reflect.DeepEqual(a, b) {
		return ops
	}
	inB := map[string]bool{}
	for _, item := range b {
		inB[identity(item)] = true
	}
	var kept []any
	inA := map[string]bool{}
	for _, item := range a {
		if inB[identity(item)] {
			kept = append(kept, item)
		}
		inA[identity(item)] = true
	}
	if len(inA) < len(a) || len(inB) < len(b) || !inOrder(kept, b) {
		return append(ops, operation{"replace", path, b})
	}
	for i, item := range slices.Backward(a) {
		if !inB[identity(item)] {
			ops = append(ops, operation{Op: "remove", Path: path + "/" + strconv.Itoa(i)})
		}
	}
	for i, item := range b {
		at := path + "/" + strconv.Itoa(i)
		if inA[identity(item)] {
			ops, kept = diff(ops, at, kept[0], item), kept[1:]
		} else {
			ops = append(ops, operation{"add", at, item})
		}
	}
	return ops
}

// inOrder says whether b has the items of kept in their order.
func inOrder(kept, b []any) bool {
	for _, item := range b {
		if len(kept) > 0 && identity(item) == identity(kept[0]) {
			kept = kept[1:]
		}
	}
	return len(kept) == 0
}

// identity is the name of an item, or all of it.
func identity(item any) string {
	if object, ok := item.(map[string]any); ok {
		if name, ok := object["name"].(string); ok {
			return name
		}
	}
	text, err := json.Marshal(item)
	if err != nil {
		panic(err) // it came out of JSON
	}
	return "\x00" + string(text) // no name begins so
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

func escape(key string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
}

func unescape(key string) string {
	return strings.NewReplacer("~1", "/", "~0", "~").Replace(key)
}

// patch applies operations to a document of maps, slices and scalars, which it may
// change, and returns it.
func patch(document any, ops []operation) (any, error) {
	for _, op := range ops {
		var err error
		if document, err = apply(document, strings.Split(op.Path, "/")[1:], op); err != nil {
			return nil, fmt.Errorf("%s %s: %w", op.Op, op.Path, err)
		}
	}
	return document, nil
}

var errNoPlace = errors.New("there is no such place")

// apply applies op to the place that path leads to from node, and returns what then is
// at node.
func apply(node any, path []string, op operation) (any, error) {
	if len(path) == 0 {
		if op.Op == "remove" {
			return nil, errNoPlace
		}
		return op.Value, nil
	}
	key := unescape(path[0])
	switch node := node.(type) {
	case map[string]any:
		return node, applyToObject(node, key, path[1:], op)
	case []any:
		return applyToArray(node, key, path[1:], op)
	}
	return nil, errNoPlace
}

func applyToObject(node map[string]any, key string, rest []string, op operation) (err error) {
	child, ok := node[key]
	switch {
	case len(rest) == 0 && op.Op == "add":
		node[key] = op.Value
	case !ok:
		return errNoPlace
	case len(rest) == 0 && op.Op == "remove":
		delete(node, key)
	default:
		node[key], err = apply(child, rest, op)
	}
	return err
}

func applyToArray(node []any, key string, rest []string, op operation) (_ any, err error) {
	i, err := strconv.Atoi(key)
	if err != nil || i < 0 || i > len(node) {
		return nil, errNoPlace
	}
	switch {
	case len(rest) == 0 && op.Op == "add":
		return slices.Insert(node, i, op.Value), nil
	case i == len(node):
		return nil, errNoPlace
	case len(rest) == 0 && op.Op == "remove":
		return slices.Delete(node, i, i+1), nil
	}
	node[i], err = apply(node[i], rest, op)
	return node, err
}
