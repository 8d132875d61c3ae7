package config

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"

	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// compact takes out the white space that protojson varies on purpose.
func compact(raw []byte) []byte {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return raw
	}
	return b.Bytes()
}

// A StringMatch matches strings. The zero value matches the empty string only.
type StringMatch struct {
	op   func(s, pattern string) bool // nil for equality
	text string
	fold bool
	re   *regexp.Regexp
}

// Match reports whether s matches.
func (m *StringMatch) Match(s string) bool {
	switch {
	case m.re != nil:
		return m.re.MatchString(s)
	case m.op == nil && m.fold:
		return strings.EqualFold(s, m.text)
	case m.op == nil:
		return s == m.text
	case m.fold:
		return m.op(strings.ToLower(s), m.text)
	}
	return m.op(s, m.text)
}

func (d *decoder) stringMatch(path string, m *matcherv3.StringMatcher) StringMatch {
	s := StringMatch{fold: m.GetIgnoreCase()}
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		s.text = p.Exact
	case *matcherv3.StringMatcher_Prefix:
		s.op, s.text = strings.HasPrefix, p.Prefix
	case *matcherv3.StringMatcher_Suffix:
		s.op, s.text = strings.HasSuffix, p.Suffix
	case *matcherv3.StringMatcher_Contains:
		s.op, s.text = strings.Contains, p.Contains
	case *matcherv3.StringMatcher_SafeRegex:
		s.re = d.regex(in(path, "safe_regex"), p.SafeRegex)
	default:
		d.fail(path, "required")
	}
	if s.fold && s.op != nil {
		s.text = strings.ToLower(s.text)
	}
	return s
}

// regex compiles an expression that must match the whole of a string. Its syntax
// is RE2's, which is Go's.
func (d *decoder) regex(path string, m *matcherv3.RegexMatcher) *regexp.Regexp {
	re, err := regexp.Compile(`^(?s:` + m.GetRegex() + `)$`)
	if _, alone := regexp.Compile(m.GetRegex()); alone != nil {
		err = alone
	}
	if err != nil {
		d.fail(in(path, "regex"), "%v", err)
		return nil
	}
	return re
}

// A Rewrite replaces what an expression matches, wherever it does.
type Rewrite struct {
	re  *regexp.Regexp
	sub string // in Go's syntax
}

// Apply returns s rewritten.
func (r *Rewrite) Apply(s string) string { return r.re.ReplaceAllString(s, r.sub) }

func (d *decoder) rewrite(path string, m *matcherv3.RegexMatchAndSubstitute) *Rewrite {
	if m == nil {
		return nil
	}
	re, err := regexp.Compile(m.GetPattern().GetRegex())
	if err != nil {
		d.fail(in(path, "pattern.regex"), "%v", err)
		return nil
	}
	sub, ok := substitution(m.GetSubstitution(), re.NumSubexp())
	if !ok {
		d.fail(in(path, "substitution"), "%s: \\0 to \\%d and \\\\ are all that can follow a backslash", m.GetSubstitution(), re.NumSubexp())
	}
	return &Rewrite{re: re, sub: sub}
}

// substitution turns RE2's syntax, \1, into Go's, ${1}.
func substitution(s string, groups int) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '$':
			b.WriteString("$$")
		case s[i] != '\\':
			b.WriteByte(s[i])
		case i+1 == len(s):
			return "", false
		case s[i+1] == '\\':
			b.WriteByte('\\')
			i++
		case s[i+1] >= '0' && s[i+1] <= '9' && int(s[i+1]-'0') <= groups:
			b.WriteString("${" + s[i+1:i+2] + "}")
			i++
		default:
			return "", false
		}
	}
	return b.String(), true
}
