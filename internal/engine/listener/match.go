package listener

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/chandler-proxy/chandler/internal/engine/config"
)

// A hello is what a client said first.
type hello struct {
	tls          bool
	name         string   // server name, in lower case
	applications []string // protocols that it offers, or speaks
}

// match returns the chain for a connection, nil if there is none. Criteria are
// looked at in Envoy's order; of each the most specific value that matches
// decides, and what it leaves is not looked at again.
func (l *Listener) match(dst netip.AddrPort, said hello) *Chain {
	set := l.chains
	set = keep(set, func(m *config.Match) int {
		return rank(m.Port == 0, m.Port == uint32(dst.Port()), 1)
	})
	set = keep(set, func(m *config.Match) int {
		best := -1
		for _, p := range m.Prefixes {
			if p.Contains(dst.Addr()) {
				best = max(best, p.Bits())
			}
		}
		return rank(len(m.Prefixes) == 0, best >= 0, 1+best)
	})
	set = keep(set, func(m *config.Match) int {
		best := nameRank(m.ServerNames, said.name)
		return rank(len(m.ServerNames) == 0, best > 0, best)
	})
	set = keep(set, func(m *config.Match) int {
		return rank(m.Transport == "", (m.Transport == "tls") == said.tls, 1)
	})
	set = keep(set, func(m *config.Match) int {
		ok := slices.ContainsFunc(m.Applications, func(a string) bool { return slices.Contains(said.applications, a) })
		return rank(len(m.Applications) == 0, ok, 1)
	})
	if len(set) == 0 {
		return l.rest
	}
	return set[0]
}

// rank is 0 for what matches everything, how specific it is for what matches, and
// less than 0 for what does not.
func rank(all, ok bool, specific int) int {
	switch {
	case all:
		return 0
	case ok:
		return specific
	}
	return -1
}

// nameRank is how specifically a name is matched: longer is better, and the name
// itself is best.
func nameRank(names []string, name string) int {
	best := 0
	for _, n := range names {
		suffix, wild := strings.CutPrefix(n, "*")
		switch {
		case name == "":
		case !wild && n == name:
			return 1 << 20
		case wild && len(name) > len(suffix) && strings.HasSuffix(name, suffix):
			best = max(best, 1+len(suffix))
		}
	}
	return best
}

// keep returns the chains of the highest rank, if it is not less than 0.
func keep(chains []*Chain, rank func(*config.Match) int) []*Chain {
	best, kept := 0, []*Chain(nil)
	for _, c := range chains {
		switch r := rank(&c.cfg.Match); {
		case r < best || r < 0:
		case r > best:
			best, kept = r, []*Chain{c}
		default:
			kept = append(kept, c)
		}
	}
	return kept
}
