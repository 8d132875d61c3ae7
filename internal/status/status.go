// Package status tells users what became of their resources: conditions in the
// resource's own status, and events when its state turns.
//
// It is in three parts that know little of each other. [Conditions] is pure: what
// is known of a resource, a [Fact], becomes conditions. A [Writer] takes whole
// sets of Facts and sees to it that the API server has what they come to, with as
// few writes as that takes. [Lead] lets one replica of several do so.
//
// It judges no resource and asks no proxy: it is told. It writes no status of
// Kubernetes' own kinds nor of the Gateway API, whose conditions mean other things.
//
// Invariants: a status is written only if it differs, and a write is no reason for
// another; conditions of other owners in the same list stay as they are; no message
// is longer than 1,000 bytes or tells the credentials of a URL; an observed
// generation never goes back.
//
// The shape of the status is Istio's (istio.io/api meta/v1alpha1 IstioStatus), the
// meaning of its conditions is that of the Kubernetes API conventions. Start at [Fact].
package status

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/chandler-proxy/chandler/internal/resource"
)

// The types of condition. Extensions, WasmPlugin and TrafficExtension, have all of
// them, other kinds Accepted only.
const (
	// Accepted says whether the resource is valid and could be taken as it is.
	Accepted = "Accepted"
	// Resolved says whether it is known which module the extension's URL means.
	Resolved = "Resolved"
	// Programmed is true when every proxy that the extension is for runs the newest
	// of it, false when that will not come without a change, unknown on the way.
	Programmed = "Programmed"
)

// The reasons of conditions. Those of [Accepted] and [Programmed] that are true are
// called like the condition.
const (
	ReasonInvalid         = "Invalid"         // Problems say what is wrong
	ReasonResolved        = "Resolved"        // the module is known
	ReasonFetched         = "Fetched"         // the module is there, and proxies refuse it or its configuration
	ReasonNotRemote       = "NotRemote"       // there is nothing to fetch
	ReasonFetchFailed     = "FetchFailed"     // the network, or an answer that makes no sense
	ReasonUnauthorized    = "Unauthorized"    // the server wants other credentials
	ReasonNotFound        = "NotFound"        // no such image, tag or file
	ReasonMismatch        = "DigestMismatch"  // not what its digest says
	ReasonTooLarge        = "TooLarge"        // over a limit
	ReasonNotModule       = "NotModule"       // what is there is no Wasm module
	ReasonBlocked         = "AddressBlocked"  // at an address that must not be asked
	ReasonPending         = "Pending"         // under way
	ReasonRefused         = "Refused"         // proxies refuse it
	ReasonNoProxySelected = "NoProxySelected" // it is enforced nowhere
)

// A Fact is what is known of one resource at one moment.
type Fact struct {
	Key resource.Key
	// UID is of the object that was judged. It tells an object from one of the same
	// name that was there before. Empty if it is not known.
	UID types.UID
	// Generation is of the object that was judged, also where it is invalid and
	// what is served is an older one. 0 means that of the object as it is.
	Generation int64
	Problems   []resource.Problem // with the resource
	// Revision is that of the control planes whose the resource is, by the choice of
	// its namespace or its own; empty if nothing is chosen.
	Revision string

	// The rest is of extensions only.

	// Reference is where the module comes from, as people may see it, with its
	// scheme. Empty if there is no module, as in an extension that is Lua.
	Reference string
	// Digest is what Reference means, as in sha256:0123…, empty if not known.
	Digest string
	// ResolveError is why Digest is not known, or not known anew. A *fetch.Error
	// in it gives the reason.
	ResolveError error
	// Fetched says that the module is there, although none runs it: it, or its
	// configuration, is refused.
	Fetched bool
	// Want is the version of the extension configuration that was made of this
	// generation. Empty if none was made; proxies go on with what they have.
	Want string
	// Proxies are the connected ones that the extension is for, in any order.
	Proxies []Proxy
}

// A Proxy is what one proxy does with an extension.
type Proxy struct {
	ID      string // of its node, as in sidecar~10.0.0.1~httpbin-1.default~default.svc.cluster.local
	State   State
	Version string // of the extension configuration that State is about
	Reason  string // why it is refused, as the proxy told it
}

// A State is how far a proxy is with one version of an extension.
type State int

// The states.
const (
	Pending State = iota // sent, or about to be; not answered
	Running              // accepted
	Refused              // the proxy goes on with the version that it ran before, if any
)

// Conditions are those that f comes to at now. previous are those of the status as
// it is, of any owner; where one has the same type and status, since when is
// taken from it.
func Conditions(f Fact, previous []metav1.Condition, now time.Time) []metav1.Condition {
	conditions := judge(f).conditions
	for i := range conditions {
		conditions[i].LastTransitionTime = since(conditions[i], previous, now)
	}
	return conditions
}

// since is when c came to have its status, in whole seconds as the API has it.
func since(c metav1.Condition, previous []metav1.Condition, now time.Time) metav1.Time {
	for _, p := range previous {
		if p.Type == c.Type && p.Status == c.Status && !p.LastTransitionTime.IsZero() {
			return p.LastTransitionTime
		}
	}
	return metav1.NewTime(now.UTC().Truncate(time.Second))
}
