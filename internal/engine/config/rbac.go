package config

import (
	"net/netip"
	"slices"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
)

// A Peer is whom RBAC judges: a connection, and a request if there is one.
type Peer struct {
	Headers Headers // nil for a connection
	Path    string  // without the query
	Port    uint32  // the destination's
	Direct  netip.Addr
	Remote  netip.Addr // the client, behind trusted proxies
}

// A test judges a peer.
type test func(*Peer) bool

// RBAC allows or denies.
type RBAC struct {
	Kind     Kind
	rules    bool // without rules everything is allowed
	deny     bool
	policies []test
}

// Allows reports whether the peer may pass.
func (r *RBAC) Allows(p *Peer) bool {
	if !r.rules {
		return true
	}
	for _, policy := range r.policies {
		if policy(p) {
			return !r.deny
		}
	}
	return r.deny
}

func (d *decoder) rbac(path string, m *rbacv3.RBAC, kind Kind) *RBAC {
	r := &RBAC{Kind: kind, rules: m != nil}
	switch m.GetAction() {
	case rbacv3.RBAC_ALLOW:
	case rbacv3.RBAC_DENY:
		r.deny = true
	default:
		d.fail(in(path, "action"), "%s is not supported by the engine", m.GetAction())
	}
	for name, p := range m.GetPolicies() {
		at := in(path, "policies["+name+"]")
		r.policies = append(r.policies, all(
			some(d.permissions(in(at, "permissions"), p.GetPermissions(), kind)),
			some(d.principals(in(at, "principals"), p.GetPrincipals(), kind)),
		))
	}
	return r
}

func all(tests ...test) test {
	return func(p *Peer) bool { return !slices.ContainsFunc(tests, func(t test) bool { return !t(p) }) }
}

func some(tests []test) test {
	return func(p *Peer) bool { return slices.ContainsFunc(tests, func(t test) bool { return t(p) }) }
}

func not(t test) test { return func(p *Peer) bool { return !t(p) } }

func constant(v bool) test { return func(*Peer) bool { return v } }

func (d *decoder) permissions(path string, list []*rbacv3.Permission, kind Kind) []test {
	var tests []test
	for i, m := range list {
		tests = append(tests, d.permission(at(path, i), m, kind))
	}
	return tests
}

func (d *decoder) permission(path string, m *rbacv3.Permission, kind Kind) test {
	switch r := m.GetRule().(type) {
	case *rbacv3.Permission_AndRules:
		return all(d.permissions(in(path, "and_rules.rules"), r.AndRules.GetRules(), kind)...)
	case *rbacv3.Permission_OrRules:
		return some(d.permissions(in(path, "or_rules.rules"), r.OrRules.GetRules(), kind))
	case *rbacv3.Permission_NotRule:
		return not(d.permission(in(path, "not_rule"), r.NotRule, kind))
	case *rbacv3.Permission_Any:
		return constant(r.Any)
	case *rbacv3.Permission_DestinationPort:
		return func(p *Peer) bool { return p.Port == r.DestinationPort }
	case *rbacv3.Permission_Header:
		h := d.headerMatch(in(path, "header"), r.Header)
		d.needsHTTP(in(path, "header"), kind)
		return func(p *Peer) bool { return h.match(p.Headers) }
	case *rbacv3.Permission_UrlPath:
		s := d.stringMatch(in(path, "url_path.path"), r.UrlPath.GetPath())
		d.needsHTTP(in(path, "url_path"), kind)
		return func(p *Peer) bool { return s.Match(p.Path) }
	}
	d.fail(path, "required")
	return constant(false)
}

func (d *decoder) principals(path string, list []*rbacv3.Principal, kind Kind) []test {
	var tests []test
	for i, m := range list {
		tests = append(tests, d.principal(at(path, i), m, kind))
	}
	return tests
}

func (d *decoder) principal(path string, m *rbacv3.Principal, kind Kind) test {
	switch r := m.GetIdentifier().(type) {
	case *rbacv3.Principal_AndIds:
		return all(d.principals(in(path, "and_ids.ids"), r.AndIds.GetIds(), kind)...)
	case *rbacv3.Principal_OrIds:
		return some(d.principals(in(path, "or_ids.ids"), r.OrIds.GetIds(), kind))
	case *rbacv3.Principal_NotId:
		return not(d.principal(in(path, "not_id"), r.NotId, kind))
	case *rbacv3.Principal_Any:
		return constant(r.Any)
	case *rbacv3.Principal_DirectRemoteIp:
		prefix := d.prefix(in(path, "direct_remote_ip"), r.DirectRemoteIp)
		return func(p *Peer) bool { return prefix.Contains(p.Direct) }
	case *rbacv3.Principal_RemoteIp:
		prefix := d.prefix(in(path, "remote_ip"), r.RemoteIp)
		return func(p *Peer) bool { return prefix.Contains(p.Remote) }
	case *rbacv3.Principal_Header:
		h := d.headerMatch(in(path, "header"), r.Header)
		d.needsHTTP(in(path, "header"), kind)
		return func(p *Peer) bool { return h.match(p.Headers) }
	case *rbacv3.Principal_UrlPath:
		s := d.stringMatch(in(path, "url_path.path"), r.UrlPath.GetPath())
		d.needsHTTP(in(path, "url_path"), kind)
		return func(p *Peer) bool { return s.Match(p.Path) }
	}
	d.fail(path, "required")
	return constant(false)
}

func (d *decoder) needsHTTP(path string, kind Kind) {
	if kind != HTTPStream {
		d.fail(path, "a connection has none")
	}
}
