package status

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/identity"
	"github.com/chandler-proxy/chandler/internal/module"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// How much a message tells; what is more is counted.
const (
	mostProblems = 3
	mostReasons  = 3   // of refusal
	mostNames    = 3   // of proxies that refuse for one reason
	mostText     = 280 // bytes of one problem or reason
)

// A verdict is all that a Fact comes to, but for the time.
type verdict struct {
	uid        types.UID
	generation int64
	extension  bool
	conditions []metav1.Condition // without LastTransitionTime
	// Of extensions: what is shown in columns, which cannot be had of conditions.
	proxies string // how many of how many run it, as in 2/3
	digest  string // shortened

	plane    identity.Plane // whose the verdict is; zero: there is one only
	revision string         // that was chosen for the resource
}

func judge(f Fact) verdict {
	v := verdict{uid: f.UID, generation: f.Generation, extension: isExtension(f.Key.Group), revision: f.Revision}
	v.add(accepted(f))
	if v.extension {
		t := count(f)
		v.add(resolved(f, t))
		v.add(programmed(f, t))
		v.proxies = fmt.Sprintf("%d/%d", t.running, t.all)
		v.digest = shorten(f.Digest)
	}
	return v
}

// isExtension reports whether resources of a group are extensions.
func isExtension(group string) bool { return group == extensions }

// shorten is a digest as long as people need to tell one from another.
func shorten(digest string) string {
	algorithm, hex, ok := strings.Cut(digest, ":")
	if !ok {
		return ""
	}
	return algorithm + ":" + hex[:min(12, len(hex))]
}

func (v *verdict) add(c metav1.Condition) {
	c.ObservedGeneration = v.generation
	c.Message = message(c.Message)
	v.conditions = append(v.conditions, c)
}

func is(kind, reason, message string) metav1.Condition {
	return metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: reason, Message: message}
}

func isNot(kind, reason, message string) metav1.Condition {
	return metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reason, Message: message}
}

func mayBe(kind, reason, message string) metav1.Condition {
	return metav1.Condition{Type: kind, Status: metav1.ConditionUnknown, Reason: reason, Message: message}
}

func accepted(f Fact) metav1.Condition {
	if len(f.Problems) > 0 {
		return isNot(Accepted, ReasonInvalid, tellProblems(f.Problems))
	}
	return is(Accepted, Accepted, "valid")
}

// tellProblems tells the first few of problems, in which one may be repeated: each
// class of proxies may have found it.
func tellProblems(problems []resource.Problem) string {
	texts := make([]string, 0, len(problems))
	for _, p := range problems {
		texts = append(texts, clip(clean(resource.Problem{Field: p.Field, Message: p.Message, Mend: p.Mend}.String()), mostText))
	}
	slices.Sort(texts)
	texts = slices.Compact(texts)
	if len(texts) == 1 {
		return texts[0]
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d problems:", len(texts))
	for i, text := range texts[:min(mostProblems, len(texts))] {
		fmt.Fprintf(&b, " (%d) %s", i+1, text)
	}
	if more := len(texts) - mostProblems; more > 0 {
		fmt.Fprintf(&b, "; and %d more", more)
	}
	return b.String()
}

// unserved reports whether the resource is so wrong that nothing is made of it.
func unserved(f Fact) bool { return f.Want == "" && len(f.Problems) > 0 }

func resolved(f Fact, t tally) metav1.Condition {
	ref := clip(clean(f.Reference), mostText)
	switch {
	case f.ResolveError != nil:
		text := fmt.Sprintf("%s: %s", ref, clip(clean(f.ResolveError.Error()), mostText))
		if f.Digest != "" {
			text += "; it was " + f.Digest + " before"
		}
		return isNot(Resolved, reasonOf(f.ResolveError), text)
	case f.Digest != "":
		return is(Resolved, ReasonResolved, ref+" is "+f.Digest)
	case unserved(f):
		return mayBe(Resolved, ReasonInvalid, "not looked for: the resource is not accepted")
	case f.Reference == "":
		return is(Resolved, ReasonNotRemote, "there is no module to fetch")
	case strings.HasPrefix(f.Reference, module.File+"://"):
		return is(Resolved, ReasonNotRemote, ref+" is read where each proxy runs")
	case t.running > 0:
		return is(Resolved, ReasonResolved, ref+" was resolved by the proxies that run it")
	case f.Fetched:
		return is(Resolved, ReasonFetched, ref+" was fetched; "+Programmed+" says why it is refused")
	}
	return mayBe(Resolved, ReasonPending, ref+" is being resolved")
}

// reasonOf says in a word why a module could not be fetched.
func reasonOf(err error) string {
	e, ok := errors.AsType[*fetch.Error](err)
	if !ok {
		return ReasonFetchFailed
	}
	switch e.Kind {
	case fetch.Denied:
		return ReasonUnauthorized
	case fetch.NotFound:
		return ReasonNotFound
	case fetch.Checksum:
		return ReasonMismatch
	case fetch.TooLarge:
		return ReasonTooLarge
	case fetch.NotModule:
		return ReasonNotModule
	case fetch.Blocked:
		return ReasonBlocked
	}
	return ReasonFetchFailed
}

// A tally is what proxies do with the version that is wanted.
type tally struct {
	all     int
	running int
	older   int // run another version
	refused int
	reasons map[string][]string // names of the proxies that refuse, by why as they told it
}

func count(f Fact) tally {
	t := tally{all: len(f.Proxies), reasons: make(map[string][]string)}
	for _, p := range f.Proxies {
		switch {
		case p.State == Running && p.Version == f.Want && f.Want != "":
			t.running++
		case p.State == Running:
			t.older++
		case p.State == Refused && p.Version == f.Want:
			t.refused++
			t.reasons[p.Reason] = append(t.reasons[p.Reason], proxyName(p.ID))
		}
	}
	return t
}

func programmed(f Fact, t tally) metav1.Condition {
	switch {
	case unserved(f):
		text := "not delivered: " + tellProblems(f.Problems)
		if t.older > 0 {
			text = fmt.Sprintf("%s; %s on with what was valid before", text, many(t.older, "proxy goes", "proxies go"))
		}
		return isNot(Programmed, ReasonInvalid, text)
	case t.all == 0:
		return isNot(Programmed, ReasonNoProxySelected, "no connected proxy is selected: it is enforced nowhere")
	case f.Want == "":
		return mayBe(Programmed, ReasonPending, "no configuration was made of it yet")
	case t.refused > 0:
		return isNot(Programmed, ReasonRefused, t.tell("under way"))
	case t.running == t.all:
		return is(Programmed, Programmed, t.tell(""))
	case f.ResolveError != nil:
		return isNot(Programmed, reasonOf(f.ResolveError),
			t.tell("without the module")+": "+clip(clean(f.ResolveError.Error()), mostText))
	}
	return mayBe(Programmed, ReasonPending, t.tell("under way"))
}

// tell is as in "1 of 5 proxies run it, 2 under way, 2 refuse it: a.ns, b.ns: no such
// image". waiting is how those are that neither run nor refuse it.
func (t tally) tell(waiting string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %s it", t.running, many(t.all, "proxy runs", "proxies run"))
	if n := t.all - t.running - t.refused; n > 0 {
		fmt.Fprintf(&b, ", %d %s", n, waiting)
	}
	if t.refused > 0 {
		fmt.Fprintf(&b, ", %s it: ", many(t.refused, "refuses", "refuse"))
		b.WriteString(t.refusals())
	}
	return b.String()
}

// refusals tells the most frequent reasons with a few of the proxies that gave them.
func (t tally) refusals() string {
	type group struct {
		reason string
		names  []string
	}
	told := make(map[string][]string, len(t.reasons))
	for reason, names := range t.reasons {
		reason = cmp.Or(clip(clean(reason), mostText), "without saying why")
		told[reason] = append(told[reason], names...)
	}
	groups := make([]group, 0, len(told))
	for reason, names := range told {
		slices.Sort(names)
		groups = append(groups, group{reason, names})
	}
	slices.SortFunc(groups, func(a, b group) int {
		return cmp.Or(cmp.Compare(len(b.names), len(a.names)), cmp.Compare(a.reason, b.reason))
	})
	var parts []string
	rest := t.refused
	for _, g := range groups[:min(mostReasons, len(groups))] {
		parts = append(parts, list(g.names)+": "+g.reason)
		rest -= len(g.names)
	}
	if rest > 0 {
		parts = append(parts, fmt.Sprintf("%d more for other reasons", rest))
	}
	return strings.Join(parts, "; ")
}

// list names the first few and counts the rest.
func list(names []string) string {
	if more := len(names) - mostNames; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:mostNames], ", "), more)
	}
	return strings.Join(names, ", ")
}

// proxyName is the pod and namespace that the id of a node names, TYPE~IP~NAME.NS~DOMAIN.
func proxyName(id string) string {
	if parts := strings.Split(id, "~"); len(parts) == 4 && parts[2] != "" {
		id = parts[2]
	}
	return clip(id, 100)
}

func many(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, more)
}
