package mesh

import (
	"cmp"
	"strings"
)

// HostMatches says whether pattern covers host: equal, or pattern is "*" or a
// leading-wildcard pattern *.SUFFIX whose suffix ends host. A wildcard covers
// any number of labels, at least one. Both must be lower-case.
func HostMatches(pattern, host string) bool {
	if pattern == "*" || pattern == host {
		return true
	}
	suffix, wild := strings.CutPrefix(pattern, "*")
	if !wild {
		return false
	}
	host, hostWild := strings.CutPrefix(host, "*")
	return strings.HasSuffix(host, suffix) && (hostWild || len(host) > len(suffix))
}

// ValidHost says whether host is a pattern that Envoy takes: a wildcard only at
// its beginning, no blanks, no control characters.
func ValidHost(host string) bool {
	rest := strings.TrimPrefix(host, "*")
	return host != "" && !strings.ContainsFunc(rest, func(r rune) bool { return r == '*' || r <= ' ' || r == 0x7f })
}

// HostIntersection is the hosts that both a and b cover, as a pattern: the more
// specific of the two. ok is false if there are none.
func HostIntersection(a, b string) (host string, ok bool) {
	switch {
	case HostMatches(a, b):
		return b, true
	case HostMatches(b, a):
		return a, true
	}
	return "", false
}

// CompareHosts orders host patterns as they are to be tried: exact before
// wildcard, then longer before shorter.
func CompareHosts(a, b string) int {
	exact := func(host string) int {
		if strings.HasPrefix(host, "*") {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(exact(b), exact(a)), cmp.Compare(len(b), len(a)))
}

// FQDN is the full name of a host that a resource in namespace wrote: a name
// without a dot is that of a Service of the namespace.
func (w *World) FQDN(host, namespace string) string {
	host = strings.ToLower(host)
	if host == "" || strings.HasPrefix(host, "*") || strings.Contains(host, ".") {
		return host
	}
	return host + "." + namespace + ".svc." + w.opts.Domain
}

// ShortForms are the shorter names by which a proxy in namespace reaches the
// Service with this full name; none if host is not a Service's.
func (w *World) ShortForms(host, namespace string) []string {
	base, ok := strings.CutSuffix(host, ".svc."+w.opts.Domain)
	if !ok {
		return nil
	}
	name, ns, ok := strings.Cut(base, ".")
	if !ok {
		return nil
	}
	forms := []string{base, base + ".svc"}
	if ns == namespace {
		forms = append([]string{name}, forms...)
	}
	return forms
}
