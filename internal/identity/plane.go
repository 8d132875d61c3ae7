package identity

import "strings"

// Labels by which objects say which of several control planes of a cluster they are
// of. The first is on what a control plane writes and has its root namespace; the
// others are Istio's.
const (
	PlaneLabel     = "chandler.io/control-plane"
	RevisionLabel  = "istio.io/rev"
	injectionLabel = "istio-injection"

	// DefaultRevision is that of namespaces that ask for injection and name none.
	DefaultRevision = "default"
)

// A Plane is one of the control planes of a cluster: there is one in a namespace.
type Plane struct {
	Namespace string // its root namespace
	Revision  string // never empty, where Namespace is not
}

// String is NAMESPACE/REVISION, empty for the zero Plane.
func (p Plane) String() string {
	if p == (Plane{}) {
		return ""
	}
	return p.Namespace + "/" + p.Revision
}

// ParsePlane reads what [Plane.String] has written; the zero Plane is for all else.
func ParsePlane(s string) Plane {
	namespace, revision, ok := strings.Cut(s, "/")
	if !ok || namespace == "" || revision == "" {
		return Plane{}
	}
	return Plane{namespace, revision}
}

// Labels are those of what the control plane writes.
func (p Plane) Labels() map[string]string {
	if p == (Plane{}) {
		return nil
	}
	return map[string]string{PlaneLabel: p.Namespace, RevisionLabel: p.Revision}
}

// PlaneOf is the one that has written an object with these labels; zero if none says so.
func PlaneOf(labels map[string]string) Plane {
	if labels[PlaneLabel] == "" {
		return Plane{}
	}
	p := Plane{labels[PlaneLabel], labels[RevisionLabel]}
	if p.Revision == "" {
		p.Revision = DefaultRevision
	}
	return p
}

// ChosenRevision is the revision that a namespace with these labels belongs to, as
// Istio reads them; empty if it names none.
func ChosenRevision(labels map[string]string) string {
	if labels[injectionLabel] == "enabled" {
		return DefaultRevision
	}
	return labels[RevisionLabel]
}

// May reports whether p may write an object that owner wrote last, of a namespace
// that has chosen that revision. It is the first who comes, until the choice gives
// the object to another: two never take it from each other.
func (p Plane) May(owner Plane, chosen string) bool {
	if owner == (Plane{}) || owner.Namespace == p.Namespace {
		return true
	}
	return chosen != "" && chosen == p.Revision && owner.Revision != chosen
}

// A Foreign object is one that another control plane owns.
type Foreign struct {
	APIVersion, Kind string
	Resource         string // as in configmaps
	Namespace, Name  string
	UID              string
	Owner            Plane // zero: it is not, any more
}
