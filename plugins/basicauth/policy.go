package main

import (
	"crypto/subtle"
	"encoding/base64"
	"slices"
	"strings"

	"github.com/chandler-proxy/chandler/plugins/internal/config"
)

// defaultRealm is what Istio's extension names without a realm of the user's.
const defaultRealm = "istio"

// A policy is rules, in the order written. It does not change once parsed.
type policy []rule

// A rule guards the requests that it matches.
type rule struct {
	path        pattern
	methods     []string
	hosts       []pattern // none: all
	credentials []string  // user:password
	challenge   string    // the www-authenticate header of a denial
}

// A pattern is a text and where in a subject it must be.
type pattern struct {
	at   position
	text string
}

type position int

const (
	exact position = iota
	prefix
	suffix
)

func (p pattern) matches(subject string) bool {
	switch p.at {
	case prefix:
		return strings.HasPrefix(subject, p.text)
	case suffix:
		return strings.HasSuffix(subject, p.text)
	default:
		return subject == p.text
	}
}

// A request is what of an HTTP request the policy looks at, as the client sent it.
type request struct {
	method        string
	path          string // with the query
	host          string // with the port, if any
	authorization string
}

// A denial is what to answer to a request that may not pass, with status 401.
type denial struct {
	challenge string
	body      string
}

// decide returns nil if r may pass.
func (p policy) decide(r request) *denial {
	path, _, _ := strings.Cut(r.path, "?")
	path, _, _ = strings.Cut(path, "#")
	host := hostname(r.host)
	for _, rule := range p {
		if !rule.guards(r.method, path, host) {
			continue
		}
		switch given, ok := credential(r.authorization); {
		case !ok:
			return &denial{rule.challenge, "This page asks for a user name and a password.\n"}
		case !rule.admits(given):
			return &denial{rule.challenge, "The user name or the password is wrong.\n"}
		}
	}
	return nil
}

func (r *rule) guards(method, path, host string) bool {
	return r.path.matches(path) && slices.Contains(r.methods, method) && r.serves(host)
}

func (r *rule) serves(host string) bool {
	return len(r.hosts) == 0 ||
		slices.ContainsFunc(r.hosts, func(h pattern) bool { return h.matches(host) })
}

// admits says whether given is among the rule's credentials. How long it takes
// tells their lengths and nothing more of them.
func (r *rule) admits(given string) bool {
	found := 0
	for _, c := range r.credentials {
		found |= subtle.ConstantTimeCompare([]byte(c), []byte(given))
	}
	return found == 1
}

// hostname is host without port and final dot, in lower case.
func hostname(host string) string {
	return strings.ToLower(strings.TrimSuffix(withoutPort(host), "."))
}

func withoutPort(host string) string {
	if colon := strings.LastIndexByte(host, ':'); colon > strings.LastIndexByte(host, ']') {
		return host[:colon]
	}
	return host
}

// credential takes user:password out of an authorization header (RFC 7617,
// section 2). Padding may be missing; the scheme's case does not matter.
func credential(authorization string) (string, bool) {
	scheme, token, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "basic") {
		return "", false
	}
	return decode(strings.TrimSpace(token))
}

// decode turns base64, with or without padding, into user:password.
func decode(token string) (string, bool) {
	plain, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(token, "="))
	if err != nil || strings.IndexByte(string(plain), ':') < 0 {
		return "", false
	}
	return string(plain), true
}

// parse reads the plugin's configuration. Its error names the field that is
// wrong, and never quotes a credential.
func parse(text []byte) (policy, error) {
	top, err := config.Parse(text)
	if err != nil {
		return nil, err
	}
	fields, err := pick(top, "basic_auth_rules", "realm")
	if err != nil {
		return nil, err
	}
	challenge, err := challengeOf(fields["realm"], "Basic realm=\""+defaultRealm+"\"")
	if err != nil {
		return nil, err
	}
	items, err := some(top, fields, "basic_auth_rules")
	if err != nil {
		return nil, err
	}
	rules := make(policy, len(items))
	for i, item := range items {
		if rules[i], err = parseRule(item, challenge); err != nil {
			return nil, err
		}
	}
	return rules, nil
}

func parseRule(v config.Value, challenge string) (rule, error) {
	var r rule
	fields, err := pick(v, "prefix", "exact", "suffix", "hosts", "request_methods", "credentials", "realm")
	if err != nil {
		return r, err
	}
	if r.path, err = pathOf(v, fields); err != nil {
		return r, err
	}
	if r.challenge, err = challengeOf(fields["realm"], challenge); err != nil {
		return r, err
	}
	if fields["hosts"] != nil {
		if r.hosts, err = all(v, fields, "hosts", hostOf); err != nil {
			return r, err
		}
	}
	if r.methods, err = all(v, fields, "request_methods", methodOf); err != nil {
		return r, err
	}
	r.credentials, err = all(v, fields, "credentials", credentialOf)
	return r, err
}

// pick takes v apart into its fields, which must be among known. A name that
// is not known may be a misspelt restriction, so it is not passed over.
func pick(v config.Value, known ...string) (map[string]*config.Value, error) {
	list, err := v.Fields()
	if err != nil {
		return nil, err
	}
	fields := make(map[string]*config.Value, len(list))
	for _, f := range list {
		if !slices.Contains(known, f.Name) {
			return nil, f.Value.Wrong("not known here; known are " + strings.Join(known, ", "))
		}
		fields[f.Name] = &f.Value
	}
	return fields, nil
}

// some takes the items of the list called name, at least one.
func some(v config.Value, fields map[string]*config.Value, name string) ([]config.Value, error) {
	list := fields[name]
	if list == nil {
		return nil, v.Wrong(name + " is missing")
	}
	items, err := list.Items()
	if err == nil && len(items) == 0 {
		err = list.Wrong("want at least one")
	}
	return items, err
}

// all reads every item of the list called name.
func all[T any](v config.Value, fields map[string]*config.Value, name string, read func(config.Value, string) (T, error)) ([]T, error) {
	items, err := some(v, fields, name)
	if err != nil {
		return nil, err
	}
	out := make([]T, len(items))
	for i, item := range items {
		text, err := item.Text()
		if err != nil {
			return nil, err
		}
		if out[i], err = read(item, text); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// pathOf reads the one of prefix, exact and suffix that is given.
func pathOf(v config.Value, fields map[string]*config.Value) (pattern, error) {
	var given *config.Value
	var p pattern
	for at, name := range []string{exact: "exact", prefix: "prefix", suffix: "suffix"} {
		if fields[name] == nil {
			continue
		}
		if given != nil {
			return p, v.Wrong("want one of prefix, exact and suffix, have more")
		}
		given, p.at = fields[name], position(at)
	}
	if given == nil {
		return p, v.Wrong("one of prefix, exact and suffix is missing")
	}
	var err error
	if p.text, err = given.Text(); err != nil {
		return p, err
	}
	if p.text == "" {
		return p, given.Wrong("is empty")
	}
	if p.at != suffix && p.text[0] != '/' {
		return p, given.Wrong("want a path that begins with /")
	}
	if strings.ContainsAny(p.text, "?#") {
		return p, given.Wrong("want a path without query: it is compared without")
	}
	return p, nil
}

// challengeOf reads a realm into a www-authenticate header, with the realm as
// a quoted-string (RFC 9110, section 5.6.4).
func challengeOf(realm *config.Value, otherwise string) (string, error) {
	if realm == nil {
		return otherwise, nil
	}
	text, err := realm.Text()
	if err != nil {
		return "", err
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
		return "", realm.Wrong("want printable ASCII")
	}
	return `Basic realm="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text) + `"`, nil
}

func hostOf(v config.Value, text string) (pattern, error) {
	p := pattern{text: strings.ToLower(text)}
	switch {
	case strings.HasPrefix(text, "*"):
		p.at, p.text = suffix, p.text[1:]
	case strings.HasSuffix(text, "*"):
		p.at, p.text = prefix, p.text[:len(p.text)-1]
	case text == "":
		return p, v.Wrong("is empty")
	}
	if strings.Contains(p.text, "*") {
		return p, v.Wrong("want * only once, at the start or the end")
	}
	if withoutPort(p.text) != p.text {
		return p, v.Wrong("want a host without port: it is compared without")
	}
	if p.at != prefix {
		p.text = strings.TrimSuffix(p.text, ".")
	}
	return p, nil
}

func methodOf(v config.Value, text string) (string, error) {
	if text == "" || strings.ToUpper(text) != text {
		return "", v.Wrong("want a method in capital letters")
	}
	return text, nil
}

// credentialOf takes user:password as it is, and else as base64 of it.
func credentialOf(v config.Value, text string) (string, error) {
	if strings.Contains(text, ":") {
		return text, nil
	}
	plain, ok := decode(text)
	if !ok {
		return "", v.Wrong("want user:password, or base64 of it")
	}
	return plain, nil
}
