package translate

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	apinetworking "istio.io/api/networking/v1alpha3"

	"github.com/chandler-proxy/chandler/internal/resource"
)

// An invalidValue is a value that a user wrote and that Envoy would refuse, and
// all the configuration around it with it.
type invalidValue struct{ message, mend string }

func (e *invalidValue) Error() string { return e.message }

// refuseValue tells err, with the mend of the invalidValue that it wraps.
func (b *builder) refuseValue(o resource.Object, field string, err error) {
	mend := ""
	if v := (*invalidValue)(nil); errors.As(err, &v) {
		mend = v.mend
	}
	b.refuse(o, field, err.Error(), mend)
}

// valid passes m on, with the first error of what Envoy's own rules say of it.
// What Envoy refuses it refuses with all that comes in the same message.
func valid[M interface{ Validate() error }](m M, err error) (M, error) {
	if err == nil {
		if v := m.Validate(); v != nil {
			err = &invalidValue{"Envoy would refuse it: " + v.Error(), ""}
		}
	}
	return m, err
}

// written are the fields of m that are set, as users write them.
func written(m proto.Message) []string {
	var out []string
	r := m.ProtoReflect()
	for i := range r.Descriptor().Fields().Len() {
		if f := r.Descriptor().Fields().Get(i); r.Has(f) {
			out = append(out, f.JSONName())
		}
	}
	return out
}

// regex is a pattern that must match a whole value. Envoy's RE2 and Go's
// regexp have the same syntax.
func regex(pattern string) (*matcherv3.RegexMatcher, error) {
	if _, err := regexp.Compile(pattern); err != nil {
		return nil, &invalidValue{"is not a regular expression: " + err.Error(), "write it in RE2's syntax"}
	}
	return &matcherv3.RegexMatcher{Regex: pattern}, nil
}

// stringMatcher is m for Envoy; nil means that the value must be present and no
// more. Istio has "*" as a regex mean that too.
func stringMatcher(m *apinetworking.StringMatch) (*matcherv3.StringMatcher, error) {
	switch m := m.GetMatchType().(type) {
	case *apinetworking.StringMatch_Exact:
		return exact(m.Exact), nil
	case *apinetworking.StringMatch_Prefix:
		if m.Prefix == "" {
			return nil, nil
		}
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: m.Prefix}}, nil
	case *apinetworking.StringMatch_Regex:
		if m.Regex == "*" {
			return nil, nil
		}
		return regexMatcher(m.Regex)
	}
	return nil, nil
}

func exact(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}}
}

func regexMatcher(pattern string) (*matcherv3.StringMatcher, error) {
	re, err := regex(pattern)
	if err != nil {
		return nil, err
	}
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: re}}, nil
}

func headerMatcher(name string, m *matcherv3.StringMatcher) *routev3.HeaderMatcher {
	if m == nil {
		return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
	}
	return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: m}}
}

func queryMatcher(name string, m *matcherv3.StringMatcher) *routev3.QueryParameterMatcher {
	if m == nil {
		return &routev3.QueryParameterMatcher{Name: name,
			QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: true}}
	}
	return &routev3.QueryParameterMatcher{Name: name,
		QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_StringMatch{StringMatch: m}}
}

// pathBelow matches path and what is below it, element by element.
func pathBelow(m *routev3.RouteMatch, path string) {
	if path = strings.TrimRight(path, "/"); path == "" {
		m.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: "/"}
		return
	}
	m.PathSpecifier = &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: path}
}

// headerOptions is headers to be added, by name.
func headerOptions(headers map[string]string, action corev3.HeaderValueOption_HeaderAppendAction) ([]*corev3.HeaderValueOption, error) {
	var out []*corev3.HeaderValueOption
	for _, name := range sortedKeys(headers) {
		if isPseudo(name) {
			continue
		}
		o, err := headerOption(name, headers[name], action)
		if err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	return out, nil
}

// isPseudo says of a header that it is no header: Envoy takes the host from the
// route's action, and the others cannot be changed.
func isPseudo(name string) bool {
	return strings.HasPrefix(name, ":") || strings.EqualFold(name, "host")
}

func headerOption(name, value string, action corev3.HeaderValueOption_HeaderAppendAction) (*corev3.HeaderValueOption, error) {
	if name == "" || strings.ContainsAny(name+value, "\x00\r\n") {
		return nil, &invalidValue{fmt.Sprintf("header %q has no name, or a line break", name), ""}
	}
	if !validFormat(value) {
		return nil, &invalidValue{fmt.Sprintf("header %s has a %% that begins no command of Envoy's", name), "write %% for a per cent sign"}
	}
	return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, Value: value}, AppendAction: action}, nil
}

// validFormat says whether each % of s is doubled or begins %COMMAND(ARGS):N%.
func validFormat(s string) bool {
	for {
		_, after, ok := strings.Cut(s, "%")
		if !ok {
			return true
		}
		if rest, ok := strings.CutPrefix(after, "%"); ok {
			s = rest
			continue
		}
		if s, ok = cutCommand(after); !ok {
			return false
		}
	}
}

func cutCommand(s string) (rest string, ok bool) {
	n := strings.IndexFunc(s, func(r rune) bool { return (r < 'A' || r > 'Z') && r != '_' && (r < '0' || r > '9') })
	if n <= 0 {
		return "", false
	}
	if s = s[n:]; s[0] == '(' {
		if _, s, ok = strings.Cut(s, ")"); !ok {
			return "", false
		}
	}
	if after, ok := strings.CutPrefix(s, ":"); ok {
		s = strings.TrimLeft(after, "0123456789")
		if len(s) == len(after) {
			return "", false
		}
	}
	return strings.CutPrefix(s, "%")
}

// literal is s as a substitution of a regular expression.
func literal(s string) string { return strings.ReplaceAll(s, `\`, `\\`) }

// withoutPrefix replaces prefix, and a slash behind it, by one slash. A plain
// prefix rewrite to "/" would double the slash.
func withoutPrefix(prefix string) *matcherv3.RegexMatchAndSubstitute {
	return &matcherv3.RegexMatchAndSubstitute{
		Pattern:      &matcherv3.RegexMatcher{Regex: "^" + regexp.QuoteMeta(prefix) + "(/?)(.*)"},
		Substitution: `/\2`,
	}
}

func sortHeaders(ms []*routev3.HeaderMatcher) {
	slices.SortStableFunc(ms, func(a, b *routev3.HeaderMatcher) int { return cmp.Compare(a.Name, b.Name) })
}
