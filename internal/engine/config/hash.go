package config

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
)

// Envoy's defaults and limits of the tables that consistent hashing looks up.
const (
	defaultLeastRing = 1024
	maxRing          = 8 << 20
	defaultTable     = 65537
	maxTable         = 5_000_011
)

// Hashing is the table of a cluster that chooses endpoints by a hash. That Envoy's
// has the same entries is what has both send a key to the same endpoint.
type Hashing struct {
	LeastRing, MostRing uint64 // entries of RING_HASH
	Table               uint64 // entries of MAGLEV
}

func (d *decoder) hashing(m *clusterv3.Cluster) Hashing {
	h := Hashing{LeastRing: defaultLeastRing, MostRing: maxRing, Table: defaultTable}
	ring, maglev := m.GetRingHashLbConfig(), m.GetMaglevLbConfig()
	switch {
	case ring != nil && m.GetLbPolicy() != clusterv3.Cluster_RING_HASH:
		d.fail("ring_hash_lb_config", "does not go with %s", m.GetLbPolicy())
	case maglev != nil && m.GetLbPolicy() != clusterv3.Cluster_MAGLEV:
		d.fail("maglev_lb_config", "does not go with %s", m.GetLbPolicy())
	case ring.GetHashFunction() != clusterv3.Cluster_RingHashLbConfig_XX_HASH:
		d.fail("ring_hash_lb_config.hash_function", "%s is not supported by the engine", ring.GetHashFunction())
	}
	if n := ring.GetMinimumRingSize(); n != nil {
		h.LeastRing = n.GetValue()
	}
	if n := ring.GetMaximumRingSize(); n != nil {
		h.MostRing = n.GetValue()
	}
	if n := maglev.GetTableSize(); n != nil {
		h.Table = n.GetValue()
	}
	if h.LeastRing > h.MostRing || h.MostRing > maxRing {
		d.fail("ring_hash_lb_config", "the ring has %d to %d entries, at most %d are allowed", h.LeastRing, h.MostRing, maxRing)
	}
	if h.Table > maxTable || !prime(h.Table) {
		d.fail("maglev_lb_config.table_size", "%d is not a prime number up to %d", h.Table, maxTable)
	}
	return h
}

func prime(n uint64) bool {
	for i := uint64(2); i*i <= n; i++ {
		if n%i == 0 {
			return false
		}
	}
	return n > 1
}

// HashRules say by what of a request its endpoint is chosen.
type HashRules []hashRule

// A hashRule hashes one thing: that of header, cookie, query and source that is set.
type hashRule struct {
	header   string
	rewrite  *Rewrite // of the header's values; may be nil
	cookie   *Cookie
	query    string
	source   bool
	terminal bool // the rules after it are for requests that it has nothing to hash of
}

// A Cookie keeps a client with an endpoint. With Make, one that has none is given one.
type Cookie struct {
	Name string
	Make bool
	tail string // what follows the value
}

// Sign is the cookie as a response sets it.
func (c *Cookie) Sign(value string) string { return c.Name + `="` + value + `"` + c.tail }

// A Hashed is what a request is hashed by.
type Hashed struct {
	Fields Headers
	Remote netip.Addr             // of the client; the zero value for none
	Value  func(c *Cookie) string // makes the value of a cookie that a client lacks
}

func (d *decoder) hashRules(path string, list []*routev3.RouteAction_HashPolicy) HashRules {
	var rules HashRules
	for i, m := range list {
		p := at(path, i)
		rule := hashRule{terminal: m.GetTerminal()}
		switch s := m.GetPolicySpecifier().(type) {
		case *routev3.RouteAction_HashPolicy_Header_:
			rule.header = strings.ToLower(s.Header.GetHeaderName())
			rule.rewrite = d.rewrite(in(p, "header.regex_rewrite"), s.Header.GetRegexRewrite())
			if rule.header == "host" {
				rule.header = ":authority"
			}
		case *routev3.RouteAction_HashPolicy_Cookie_:
			rule.cookie = cookieOf(s.Cookie)
		case *routev3.RouteAction_HashPolicy_QueryParameter_:
			rule.query = s.QueryParameter.GetName()
		case *routev3.RouteAction_HashPolicy_ConnectionProperties_:
			rule.source = s.ConnectionProperties.GetSourceIp()
		default:
			d.fail(p, "only header, cookie, query_parameter and connection_properties are supported")
		}
		if rule.header == "" && rule.cookie == nil && rule.query == "" && !rule.source {
			continue
		}
		rules = append(rules, rule)
	}
	return rules
}

func cookieOf(m *routev3.RouteAction_HashPolicy_Cookie) *Cookie {
	c := &Cookie{Name: m.GetName(), Make: m.GetTtl() != nil}
	if s := m.GetTtl().GetSeconds(); s != 0 {
		c.tail += "; Max-Age=" + strconv.FormatInt(s, 10)
	}
	if m.GetPath() != "" {
		c.tail += "; Path=" + m.GetPath()
	}
	for _, a := range m.GetAttributes() {
		c.tail += "; " + a.GetName()
		if a.GetValue() != "" {
			c.tail += "=" + a.GetValue()
		}
	}
	c.tail += "; HttpOnly"
	return c
}

// connectionHash are the rules for connections, which have nothing but an address.
func (d *decoder) connectionHash(path string, list []*typev3.HashPolicy) HashRules {
	var rules HashRules
	for i, m := range list {
		if m.GetSourceIp() == nil {
			d.fail(at(path, i), "only source_ip is supported")
		}
		rules = append(rules, hashRule{source: true})
	}
	return rules
}

// Hash is the hash of a request, false if no rule finds anything to hash.
func (rules HashRules) Hash(q *Hashed) (hash uint64, ok bool) {
	for i := range rules {
		if one, found := rules[i].hash(q); found {
			hash = hash<<1 | hash>>63 // two equal rules must not cancel each other out
			hash, ok = hash^one, true
		}
		if rules[i].terminal && ok {
			break
		}
	}
	return hash, ok
}

func (r *hashRule) hash(q *Hashed) (uint64, bool) {
	switch {
	case r.header != "":
		return r.hashHeader(q)
	case r.cookie != nil:
		value := cookieValue(q.Fields, r.cookie.Name)
		if value == "" && r.cookie.Make {
			value = q.Value(r.cookie)
		}
		return xxhash.Sum64String(value), value != ""
	case r.query != "":
		path, _ := q.Fields.Get(":path")
		_, query, _ := strings.Cut(path, "?")
		query, _, _ = strings.Cut(query, "#")
		value, ok := parameter(query, r.query)
		return xxhash.Sum64String(value), ok
	}
	return xxhash.Sum64String(q.Remote.String()), q.Remote.IsValid()
}

// hashHeader hashes all values of the header, whatever their order.
func (r *hashRule) hashHeader(q *Hashed) (uint64, bool) {
	var values []string
	q.Fields.Each(func(name, value string) bool {
		if name == r.header {
			if r.rewrite != nil {
				value = r.rewrite.Apply(value)
			}
			values = append(values, value)
		}
		return true
	})
	slices.Sort(values)
	hash := uint64(0)
	for _, v := range values {
		x := xxhash.NewWithSeed(hash)
		_, _ = x.WriteString(v)
		hash = x.Sum64()
	}
	return hash, len(values) > 0
}

// cookieValue is the value of the first cookie of that name, without quotes around it.
func cookieValue(f Headers, name string) (value string) {
	f.Each(func(n, list string) bool {
		if n != "cookie" {
			return true
		}
		for part := range strings.SplitSeq(list, ";") {
			if k, v, ok := strings.Cut(strings.TrimSpace(part), "="); ok && k == name {
				if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
					v = v[1 : len(v)-1]
				}
				value = v
				return false
			}
		}
		return true
	})
	return value
}

// ConnectionCookie is the value of a cookie for a client on that connection: equal for
// all its requests, so that those that race are given the same.
func ConnectionCookie(remote, local netip.AddrPort) string {
	var raw [8]byte
	binary.BigEndian.PutUint64(raw[:], xxhash.Sum64String(remote.String()+local.String()))
	return hex.EncodeToString(raw[:])
}
