package resource

import (
	"fmt"
	"iter"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// An Object is one decoded, defaulted and valid resource, in the Go type of the
// project that owns its kind: *extensionsv1alpha1.WasmPlugin and its like from
// istio.io/client-go/pkg/apis (extensions/v1alpha1, networking/v1, and
// networking/v1alpha3 for EnvoyFilter), *gatewayv1.Gateway from
// sigs.k8s.io/gateway-api, *corev1.Service from k8s.io/api. Its TypeMeta is
// filled in, with that type's version. It is not changed once made.
type Object interface {
	metav1.Object
	runtime.Object
}

// A Key identifies a resource among all others, whatever version it was written in.
type Key struct {
	Group     string
	Kind      string
	Namespace string // empty for a resource that is in none
	Name      string
}

// KeyOf returns the key of o.
func KeyOf(o Object) Key {
	gvk := o.GetObjectKind().GroupVersionKind()
	return Key{Group: gvk.Group, Kind: gvk.Kind, Namespace: o.GetNamespace(), Name: o.GetName()}
}

// A Problem is a mistake in what a user wrote, told in the user's terms. It is
// a value for status and logs, not an error: nothing of Chandler's went wrong.
type Problem struct {
	File      string // where it was written; empty if it came from an API server
	Line      int    // 1-based; 0 if not known
	Kind      string // of the resource, as far as it could be read
	Namespace string
	Name      string
	Field     string // path of the offending field, as in spec.match[0].mode; empty for the whole resource
	Message   string // what is wrong
	Mend      string // what to do about it; may be empty
}

// About is the key of the object that p is about, but for its group, which a
// Problem does not tell.
func (p Problem) About() Key { return Key{Kind: p.Kind, Namespace: p.Namespace, Name: p.Name} }

// ByProblem returns keys by what [Problem.About] tells of them. Where two objects
// differ in their group alone, the zero Key stands for both: neither is chosen.
func ByProblem(keys iter.Seq[Key]) map[Key]Key {
	told := make(map[Key]Key)
	for key := range keys {
		about := key
		about.Group = ""
		if _, twice := told[about]; twice {
			key = Key{}
		}
		told[about] = key
	}
	return told
}

// String is one line: where, which resource, which field, what is wrong and how to mend it.
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
		}
		b.WriteString(": ")
	}
	if p.Kind != "" {
		b.WriteString(p.Kind)
		if p.Name != "" {
			b.WriteString(" ")
			if p.Namespace != "" {
				b.WriteString(p.Namespace + "/")
			}
			b.WriteString(p.Name)
		}
		b.WriteString(": ")
	}
	if p.Field != "" && !strings.Contains(p.Message, strconv.Quote(p.Field)) {
		b.WriteString(p.Field + ": ")
	}
	b.WriteString(p.Message)
	if p.Mend != "" {
		b.WriteString("; " + p.Mend)
	}
	return b.String()
}
