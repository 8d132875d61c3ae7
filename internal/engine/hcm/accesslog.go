package hcm

import (
	"net/netip"
	"time"

	"github.com/chandler-proxy/chandler/internal/engine/config"
	"github.com/chandler-proxy/chandler/internal/engine/upstream"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// WriteLogs writes e into those of the logs that want it.
func (env *Env) WriteLogs(logs []*config.AccessLog, e *config.Entry) {
	for _, l := range logs {
		if !l.Wants(e) {
			continue
		}
		if _, err := env.AccessLog(l.Path).Write(l.Line(e)); err != nil {
			env.Log.Warn("write access log", "path", l.Path, "error", err)
		}
	}
}

// log writes the request into the access logs, when it is over.
func (s *stream) log() {
	if len(s.m.cfg.AccessLogs) > 0 {
		s.m.env.WriteLogs(s.m.cfg.AccessLogs, s.entry())
	}
}

// entry is what is known of the request.
func (s *stream) entry() *config.Entry {
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
	if r := s.router.choose().route; r != nil {
		e.Route = r.Name
	}
	e.ServerName = s.conn.serverName()
	if a := s.router.try.Load(); a != nil && a.host != nil {
		e.UpstreamHost, e.UpstreamFailure = a.host.Address, upstream.TransportFailure(a.err)
		if a.exchange != nil {
			e.UpstreamLocal = addressOf(a.exchange.Local())
		}
	}
	return e
}

// NewEntry is what is known of a connection when it has come. There are no flags.
func (c *Conn) NewEntry(now time.Time) *config.Entry {
	return &config.Entry{
		Request: proxywasm.NewFields(), Flags: "-", Start: now, Connection: c.ID,
		Remote: addressOf(c.Remote), Direct: addressOf(c.Remote), Local: addressOf(c.Local),
	}
}

// serverName is the one that the client has asked for by TLS.
func (c *Conn) serverName() string {
	if c.TLS != nil {
		return c.TLS.ServerName
	}
	return ""
}

func addressOf(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
