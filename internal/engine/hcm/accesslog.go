package hcm

import (
	"net/netip"

	"github.com/chandler-proxy/chandler/internal/engine/config"
	"github.com/chandler-proxy/chandler/internal/engine/upstream"
)

// log writes the request into the access logs, when it is over. A request that cannot
// be read never was one: it is counted, and not logged.
func (s *stream) log() {
	if len(s.m.cfg.AccessLogs) == 0 {
		return
	}
	e := s.entry()
	for _, l := range s.m.cfg.AccessLogs {
		if _, err := s.m.env.AccessLog(l.Path).Write(l.Line(e)); err != nil {
			s.m.env.Log.Warn("write access log", "path", l.Path, "error", err)
		}
	}
}

// entry is what is known of the request.
func (s *stream) entry() *config.Entry {
	_, route := s.route()
	e := &config.Entry{
		Request: s.fields, Protocol: s.protocol, Code: s.status, Flags: s.flags.String(),
		Start: s.start, Duration: s.m.env.Now().Sub(s.start), Received: s.received.Load(), Sent: s.sent.Load(), Attempts: s.attempts(),
		Chain: s.m.chain, Remote: addressOf(s.remote.addr), Direct: addressOf(s.conn.Remote), Local: addressOf(s.conn.Local), Connection: s.conn.ID,
	}
	if h := s.head.Load(); h != nil {
		e.Response, e.CodeDetails = h, "via_upstream"
	}
	if t := s.trailers.Load(); t != nil {
		e.Trailers = t
	}
	if d := s.details.Load(); d != nil {
		e.CodeDetails = *d
	}
	if c := s.cluster(); c != nil {
		e.Cluster = c.Config.StatName
	}
	if route != nil {
		e.Route = route.Name
	}
	if s.conn.TLS != nil {
		e.ServerName = s.conn.TLS.ServerName
	}
	if a := s.router.try.Load(); a != nil && a.host != nil {
		e.UpstreamHost, e.UpstreamFailure = a.host.Address, upstream.TransportFailure(a.err)
		if a.exchange != nil {
			e.UpstreamLocal = addressOf(a.exchange.Local())
		}
	}
	return e
}

func addressOf(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
