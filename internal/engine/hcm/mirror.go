package hcm

import (
	"context"
	"io"
	"slices"

	"github.com/chandler-proxy/chandler/internal/engine/config"
	"github.com/chandler-proxy/chandler/internal/engine/http1"
	"github.com/chandler-proxy/chandler/internal/engine/upstream"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// A mirror is a copy of a request on its way to a second cluster. It is sent when
// the request is complete; one that is too long for that is not sent at all.
type mirror struct {
	cluster *upstream.Cluster
	head    *http1.Fields
	body    []byte
	broken  bool // it is too long
}

// mirrored makes the copies that the route wants of the head, as it goes upstream.
func (r *router) mirrored(f *http1.Fields) {
	for _, m := range r.route.Forward.Mirrors {
		cluster := r.s.m.env.Cluster(m.Cluster)
		if cluster == nil || !m.Share.Falls() {
			continue
		}
		head := proxywasm.NewRequestFields(slices.Clone(f.Pairs())...)
		if !m.SameHost {
			put(head, ":authority", config.ShadowHost(fieldOf(f, ":authority")))
		}
		head.Add("x-envoy-internal", "true")
		self := r.s.m.env.Address.String()
		if list := fieldOf(head, "x-forwarded-for"); list != "" {
			self = list + "," + self
		}
		put(head, "x-forwarded-for", self)
		r.copies = append(r.copies, &mirror{cluster: cluster, head: head})
	}
}

// add keeps some of the body. r.mu is held.
func (m *mirror) add(p []byte, limit int) {
	if m.broken = m.broken || len(m.body)+len(p) > limit; m.broken {
		m.body = nil
		return
	}
	m.body = append(m.body, p...)
}

// sendCopies sends the copies, and forgets them. r.mu is held.
func (r *router) sendCopies() {
	for _, m := range r.copies {
		if m.broken {
			continue
		}
		trailers, timeout := r.trailing, r.timeout
		r.s.m.env.Background(func(ctx context.Context) {
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			m.send(ctx, trailers)
		})
	}
	r.copies = nil
}

// send sends the copy and drops the answer.
func (m *mirror) send(ctx context.Context, trailers *http1.Fields) {
	host := m.cluster.Choose(upstream.Wanted{})
	if host == nil {
		m.cluster.Stats.NoneHealthy.Inc()
		return
	}
	end := len(m.body) == 0 && trailers == nil
	x, err := host.Start(ctx, upstream.Request{Fields: m.head, End: end})
	if err != nil {
		m.cluster.Stats.Answered(503)
		return
	}
	defer x.Finish()
	stop := context.AfterFunc(ctx, x.Cancel)
	defer stop()
	if !end {
		sent := make(chan struct{})
		defer func() { <-sent }()
		go func() { // ends with the exchange; waited for above
			defer close(sent)
			_ = x.Send(m.body, true) // the response tells
			_ = x.SendEnd(trailers)
		}()
	}
	resp, err := x.Response()
	if err != nil {
		m.cluster.Stats.Answered(503)
		x.Cancel()
		return
	}
	m.cluster.Stats.Answered(statusOf(resp.Fields))
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		x.Cancel()
	}
}
