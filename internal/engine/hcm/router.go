package hcm

import (
	"cmp"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/engine/config"
	"github.com/chandler-proxy/chandler/internal/engine/http1"
	"github.com/chandler-proxy/chandler/internal/engine/upstream"
)

// routed is whether a request has come to the router.
type routed uint8

const (
	pending routed = iota
	sentUp         // it was sent to an upstream
	stuck          // it will not come
)

// A router sends the request to an upstream, again if need be, and returns the
// response. The request's side gives it the request; the response's side waits.
type router struct {
	s *stream

	cache struct {
		sync.Mutex
		chosen
		known  bool
		rolled bool
		roll   uint64 // decides between weighted clusters: the same also if the route is chosen anew
	}

	// Set before the request is sent, and not changed after.
	chosen
	cluster *upstream.Cluster
	want    upstream.Wanted
	cookies []string // to be set by the response
	timeout time.Duration
	end     bool // without a body
	facts   config.Facts

	mu       sync.Mutex      // orders what is sent
	replay   []byte          // the body so far
	room     *[16 << 10]byte // of the manager's buffers: what replay is in, as long as it fits; nil without a body
	keep     atomic.Bool     // replay has all of it; changed with mu held
	whole    atomic.Bool     // all of the request was given to the upstream
	lost     bool            // an attempt was given up that cannot be made again
	ended    bool
	trailing *http1.Fields
	timer    *time.Timer

	copies []*mirror

	try      atomic.Pointer[attempt]
	attempts int
	retrying bool // counts among the cluster's retries
	tried    []*upstream.Host
	began    time.Time
}

// chosen is what a request's route is: all nil if there is none.
type chosen struct {
	host     *config.VirtualHost
	route    *config.Route
	weighted *config.Weighted // of the route, if it forwards
}

// An attempt is a request to one endpoint.
type attempt struct {
	number   int               // from 1
	host     *upstream.Host    // nil if there was none
	exchange upstream.Exchange // nil if it did not begin
	err      error
	ready    time.Duration // until there was a connection
	timer    *time.Timer
	late     atomic.Bool
	none     bool // there was no endpoint
}

func (r *router) init(s *stream) { r.s = s }

// clear has the route chosen again.
func (r *router) clear() {
	r.cache.Lock()
	r.cache.known = false
	r.cache.Unlock()
}

// choose returns the route for the head as it is.
func (r *router) choose() chosen {
	r.cache.Lock()
	defer r.cache.Unlock()
	if r.cache.known {
		return r.cache.chosen
	}
	r.cache.known, r.cache.chosen = true, chosen{}
	f := r.s.fields
	// Without x-forwarded-proto, which a filter must have removed, Envoy finds no route.
	if r.s.routes == nil || fieldOf(f, "x-forwarded-proto") == "" {
		return chosen{}
	}
	c := &r.cache.chosen
	if c.host = r.s.routes.Host(fieldOf(f, ":authority")); c.host != nil {
		path, query := cutQuery(fieldOf(f, ":path"))
		c.route = c.host.Find(f, path, query)
	}
	if c.route != nil && c.route.Forward != nil {
		c.weighted = r.pick(c.route.Forward)
	}
	return *c
}

// pick is the cluster that falls to the request. r.cache is locked.
func (r *router) pick(f *config.Forward) *config.Weighted {
	if len(f.Clusters) == 1 {
		return &f.Clusters[0]
	}
	if !r.cache.rolled {
		r.cache.rolled, r.cache.roll = true, rand.Uint64()
	}
	return f.Pick(r.cache.roll)
}

// never says that the request will not come.
func (r *router) never() { r.tell(stuck) }

func (r *router) tell(what routed) {
	r.s.signal.Lock()
	r.s.signal.routed = what
	r.s.signal.cond.Broadcast()
	r.s.signal.Unlock()
}

// headers takes the head of the request. It returns false if the proxy answers itself.
func (r *router) headers(f *http1.Fields, end bool) bool {
	s := r.s
	r.chosen = r.choose()
	if local := r.local(f); local != nil {
		s.reply(local)
		return false
	}
	forward := r.route.Forward
	r.cluster = s.m.env.Cluster(r.weighted.Cluster)
	if r.cluster == nil {
		s.m.stats.noCluster.Inc()
		s.reply(&reply{status: forward.NotFound, details: "cluster_not_found", flag: noCluster})
		return false
	}
	r.end = end
	r.keep.Store(forward.Retry.On != 0)
	r.rewrite(f)
	r.want.Dst = s.conn.Dst
	r.hash(f)
	r.mirrored(f)
	r.began = s.m.env.Now()
	r.mu.Lock()
	r.ended = end
	r.whole.Store(end)
	r.begin()
	if end {
		r.complete()
	}
	r.mu.Unlock()
	r.tell(sentUp)
	return true
}

// hash finds what the endpoint is chosen by, if the cluster wants to know: of the head as
// the upstream gets it.
func (r *router) hash(f *http1.Fields) {
	if !r.cluster.Hashes() {
		return
	}
	s := r.s
	r.want.Hash, r.want.Hashed = r.route.Forward.Hash.Hash(&config.Hashed{
		Fields: f, Remote: s.remote.addr.Addr(), Value: func(c *config.Cookie) string {
			value := config.ConnectionCookie(s.conn.Remote, s.conn.Local)
			r.cookies = append(r.cookies, c.Sign(value))
			return value
		},
	})
}

// local is the answer to a request that goes to no upstream.
func (r *router) local(f *http1.Fields) *reply {
	s := r.s
	switch {
	case r.host == nil:
		s.m.stats.noRoute.Inc()
		return &reply{status: 404, details: "route_not_found", flag: noRoute}
	case r.host.RequireTLS != routev3.VirtualHost_NONE && fieldOf(f, "x-forwarded-proto") != "https":
		return redirection(301, "https://"+fieldOf(f, ":authority")+fieldOf(f, ":path")) // whether there is a route or not
	case r.route == nil:
		s.m.stats.noRoute.Inc()
		return &reply{status: 404, details: "route_not_found", flag: noRoute}
	case r.route.Redirect != nil:
		return r.mutated(r.redirect(f, r.route.Redirect))
	case r.route.Direct != nil:
		r.setFacts(f)
		return r.mutated(&reply{status: r.route.Direct.Status, body: string(r.route.Direct.Body), details: "direct_response"})
	}
	return nil
}

// mutated adds to an answer what the route adds to responses.
func (r *router) mutated(answer *reply) *reply {
	f := new(http1.Fields)
	for _, h := range answer.headers {
		f.Add(h.Key, h.Value)
	}
	r.mutateResponse(f)
	answer.headers = slices.Clone(f.Pairs())
	return answer
}

// redirect is an answer that sends the client elsewhere.
func (r *router) redirect(f *http1.Fields, to *config.Redirect) *reply {
	r.setFacts(f)
	scheme := fieldOf(f, ":scheme")
	if v := fieldOf(f, "x-forwarded-proto"); v != "" {
		scheme = v
	}
	host := fieldOf(f, ":authority")
	was := scheme
	switch {
	case to.HTTPS:
		scheme = "https"
	case to.Scheme != "":
		scheme = to.Scheme
	}
	name, port := splitPort(host)
	if port == "80" && was == "http" && scheme == "https" || port == "443" && was == "https" && scheme == "http" {
		host = name
	}
	if to.Host != "" {
		host = to.Host
		if p, _ := splitPort(to.Host); p != to.Host || to.Port == 0 {
			name = p
		} else {
			name = to.Host
		}
	}
	if to.Port != 0 {
		host = name + ":" + strconv.Itoa(int(to.Port))
	}
	location := scheme + "://" + host + r.redirectPath(f, to)
	return redirection(to.Status, location)
}

func redirection(status int, location string) *reply {
	return &reply{status: status, headers: []abi.Pair{{Key: "location", Value: location}}, details: "direct_response"}
}

func splitPort(host string) (name, port string) {
	i := strings.LastIndexByte(host, ':')
	if i < 0 || strings.HasSuffix(host, "]") {
		return host, ""
	}
	return host[:i], host[i+1:]
}

func (r *router) redirectPath(f *http1.Fields, to *config.Redirect) string {
	full := fieldOf(f, ":path")
	path, query, has := strings.Cut(full, "?")
	switch {
	case to.Path != "":
		if strings.Contains(to.Path, "?") {
			return to.Path
		}
		path = to.Path
	case to.ReplacePath:
		path = r.route.Replace(path, to.Prefix)
	case to.Regex != nil:
		path = to.Regex.Apply(path)
	}
	if has && !to.StripQuery {
		return path + "?" + query
	}
	return path
}

func (r *router) setFacts(f *http1.Fields) {
	r.facts = config.Facts{Request: f, Protocol: r.s.protocol, Remote: r.s.remote.addr, Local: r.s.conn.Local}
}

// rewrite changes the head for the upstream: it is Envoy's
// Filter::decodeHeaders and RouteEntryImplBase::finalizeRequestHeaders.
func (r *router) rewrite(f *http1.Fields) {
	forward := r.route.Forward
	r.timeout = forward.Timeout
	if r.timeout > 0 {
		put(f, "x-envoy-expected-rq-timeout-ms", strconv.FormatInt(r.timeout.Milliseconds(), 10))
	}
	if r.host.CountAttempts {
		put(f, "x-envoy-attempt-count", "1")
	}
	r.setFacts(f)
	r.mutate(f, &r.weighted.Request, &r.route.Request, &r.host.Request, &r.s.routes.Request)
	if host := cmp.Or(r.weighted.HostRewrite, forward.HostRewrite); host != "" {
		if old := fieldOf(f, ":authority"); old != host {
			put(f, "x-envoy-original-host", old)
		}
		put(f, ":authority", host)
	}
	r.rewritePath(f)
}

func (r *router) rewritePath(f *http1.Fields) {
	forward := r.route.Forward
	if !forward.Replace && forward.Regex == nil {
		return
	}
	old := fieldOf(f, ":path")
	path, rest := old, ""
	if i := strings.IndexAny(old, "?#"); i >= 0 {
		path, rest = old[:i], old[i:]
	}
	if forward.Replace {
		path = r.route.Replace(path, forward.Prefix)
	} else {
		path = forward.Regex.Apply(path)
	}
	put(f, "x-envoy-original-path", old)
	put(f, ":path", path+rest)
}

// mutateResponse does what the route does to responses.
func (r *router) mutateResponse(f *http1.Fields) {
	list := [...]*config.Mutations{nil, &r.route.Response, &r.host.Response, &r.s.routes.Response}
	if r.weighted != nil {
		list[0] = &r.weighted.Response
	}
	r.mutate(f, list[:]...)
}

// mutate does what the levels say, from the most specific one on, or up to it.
func (r *router) mutate(f *http1.Fields, levels ...*config.Mutations) {
	if r.s.routes.SpecificWins {
		slices.Reverse(levels)
	}
	for _, m := range levels {
		if m != nil {
			m.Apply(f, &r.facts)
		}
	}
}

// begin makes an attempt. r.mu is held.
func (r *router) begin() {
	s := r.s
	r.attempts++
	retry := &r.route.Forward.Retry
	a := &attempt{number: r.attempts}
	tries := 0
	if retry.OtherHosts {
		tries = retry.HostTries
	}
	want := r.want
	want.Tried, want.Tries = r.tried, tries
	if h := r.cluster.Choose(want); h != nil {
		a.host, r.tried = h, append(r.tried, h)
		from := s.m.env.Now()
		a.exchange, a.err = h.Start(s.ctx, upstream.Request{Fields: s.fields, End: r.end, Upgrade: s.upgrade, Late: s.writer.multiplexed()})
		a.ready = s.m.env.Now().Sub(from)
	} else {
		a.none = true
	}
	if a.exchange != nil && retry.PerTry > 0 {
		a.timer = time.AfterFunc(retry.PerTry, func() {
			a.late.Store(true)
			a.exchange.Cancel()
		})
	}
	r.try.Store(a)
	if s.stopped() {
		r.stop()
	}
}

// flush sends what is not sent yet.
func (r *router) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.try.Load(); a != nil && a.exchange != nil {
		_ = a.exchange.Send(nil, false) // its response tells
	}
}

// data takes some of the body.
func (r *router) data(p []byte, end bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !r.keep.Load():
	case len(r.replay)+len(p) <= r.s.m.limit:
		if r.room == nil {
			r.room = r.s.m.buffers.Get().(*[16 << 10]byte)
			r.replay = r.room[:0]
		}
		r.replay = append(r.replay, p...)
	default:
		r.keep.Store(false)
		r.replay = nil
	}
	for _, m := range r.copies {
		m.add(p, r.s.m.limit)
	}
	if a := r.try.Load(); a.exchange != nil {
		_ = a.exchange.Send(p, end) // its response tells
	}
	if end {
		r.finish(nil)
	}
}

// trailers takes the end of the request.
func (r *router) trailers(t *http1.Fields) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.finish(t)
}

func (r *router) finish(t *http1.Fields) {
	r.ended, r.trailing = true, t
	r.whole.Store(true) // before the response can come
	if a := r.try.Load(); a.exchange != nil {
		_ = a.exchange.SendEnd(t)
	}
	r.complete()
}

// heard notes that the upstream has said all that it says.
func (r *router) heard() {
	if !r.began.IsZero() {
		r.s.backend.CompareAndSwap(0, int64(r.s.m.env.Now().Sub(r.began)))
	}
}

// complete starts the clock: the whole request was sent.
func (r *router) complete() {
	r.sendCopies()
	if r.timeout > 0 {
		r.timer = time.AfterFunc(r.timeout, func() {
			r.cluster.Stats.Timeout.Inc()
			if a := r.try.Load(); a.host != nil {
				a.host.Report(504)
			}
			r.s.reply(&reply{status: 504, body: "upstream request timeout", details: "response_timeout", flag: upstreamTimeout})
		})
	}
}

// response waits for the head of the response. nil means that there is none: the
// proxy answers, or the stream was reset.
func (r *router) response() *upstream.Response {
	s := r.s
	s.signal.Lock()
	for s.signal.routed == pending && s.signal.local == nil && !s.signal.dead {
		s.signal.cond.Wait()
	}
	sent := s.signal.routed == sentUp
	s.signal.Unlock()
	for sent && !s.stopped() {
		a := r.try.Load()
		var resp *upstream.Response
		err := a.err
		if a.exchange != nil {
			resp, err = a.exchange.Response()
		}
		if a.timer != nil {
			a.timer.Stop()
		}
		if s.stopped() {
			return nil
		}
		r.count(a, resp, err)
		if r.again(a, resp, err) {
			continue
		}
		if r.lost {
			resp, err = nil, &upstream.ResetError{Reason: upstream.Terminated}
		}
		if resp == nil {
			s.reply(r.failure(a, err))
			return nil
		}
		r.answered(resp)
		return resp
	}
	return nil
}

func (r *router) count(a *attempt, resp *upstream.Response, err error) {
	stats := &r.cluster.Stats
	switch {
	case a.none:
		stats.NoneHealthy.Inc()
	case a.late.Load():
		stats.PerTryTimeout.Inc()
		a.host.Report(504)
	case resp != nil:
		status := statusOf(resp.Fields)
		stats.Answered(status)
		a.host.Report(status)
	case err != nil:
		stats.Answered(503)
		if !errors.Is(err, upstream.ErrOverflow) {
			a.host.Report(503)
		}
	}
}

// answered changes the head of the upstream's response.
func (r *router) answered(resp *upstream.Response) {
	if r.whole.Load() { // otherwise there is no time to tell
		took := r.s.m.env.Now().Sub(r.began).Milliseconds()
		put(resp.Fields, "x-envoy-upstream-service-time", strconv.FormatInt(took, 10))
	}
	r.mutateResponse(resp.Fields)
	for _, c := range r.cookies {
		resp.Fields.Add("set-cookie", c)
	}
}

// again makes another attempt if the route says so. It returns false if this one counts.
func (r *router) again(a *attempt, resp *upstream.Response, err error) bool {
	retry := &r.route.Forward.Retry
	if r.s.upgrade && a.exchange != nil { // of another protocol nothing is sent twice
		return false
	}
	if !r.keep.Load() || !wanted(retry, a, resp, err) {
		return false
	}
	if r.attempts > retry.Max {
		if retry.Max > 0 {
			r.s.flag(retriesExceeded)
		}
		return false
	}
	if !r.retrying {
		if r.retrying = r.cluster.Breakers.Retries.Take(); !r.retrying {
			r.cluster.Stats.RetryOverflow.Inc()
			r.s.flag(upstreamOverflow)
			return false
		}
	}
	if a.exchange != nil {
		a.exchange.Cancel() // whoever is sending stops
	}
	if !r.pause(retry) {
		return true // the caller sees that it was stopped
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.keep.Load() { // it grew too long meanwhile
		r.lost = true
		return false
	}
	r.cluster.Stats.Retry.Inc()
	if r.host.CountAttempts {
		put(r.s.fields, "x-envoy-attempt-count", strconv.Itoa(r.attempts+1))
	}
	r.begin()
	next := r.try.Load().exchange
	if next == nil || r.end {
		return true
	}
	_ = next.Send(r.replay, r.ended)
	if r.ended {
		_ = next.SendEnd(r.trailing)
	}
	return true
}

// pause waits before the next attempt: a random time, up to twice as long for each.
func (r *router) pause(retry *config.Retry) bool {
	most := min(retry.Base<<min(r.attempts-1, 16), retry.Most)
	t := time.NewTimer(rand.N(max(most, 1)))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.s.ctx.Done():
		return false
	}
}

// wanted reports whether what came of an attempt is to be tried again.
func wanted(retry *config.Retry, a *attempt, resp *upstream.Response, err error) bool {
	on := func(c config.RetryOn) bool { return retry.On&c != 0 }
	if resp == nil {
		var reset *upstream.ResetError
		errors.As(err, &reset)
		connect := reset != nil && (reset.Reason == upstream.ConnectFailure || reset.Reason == upstream.ConnectTimeout)
		switch {
		case a.none, errors.Is(err, upstream.ErrOverflow):
			return false
		case a.late.Load():
			return on(config.On5xx | config.OnGatewayError)
		}
		return on(config.OnReset|config.On5xx|config.OnGatewayError) ||
			on(config.OnResetBeforeRequest) && a.exchange == nil ||
			on(config.OnRefusedStream) && reset != nil && reset.Reason == upstream.RemoteRefused ||
			on(config.OnConnectFailure) && connect
	}
	status := statusOf(resp.Fields)
	_, limited := resp.Fields.Get("x-envoy-ratelimited")
	if limited {
		return on(config.OnEnvoyRateLimited)
	}
	return on(config.On5xx) && status >= 500 ||
		on(config.OnGatewayError) && status >= 502 && status <= 504 ||
		on(config.OnRetriable4xx) && status == 409 ||
		on(config.OnRetriableStatusCodes) && slices.Contains(retry.StatusCodes, uint32(status)) ||
		wantedGRPC(retry, resp.Fields)
}

func wantedGRPC(retry *config.Retry, f *http1.Fields) bool {
	status, ok := f.Get("grpc-status")
	if !ok {
		return false
	}
	var c config.RetryOn
	switch status {
	case "1":
		c = config.OnCancelled
	case "4":
		c = config.OnDeadlineExceeded
	case "8":
		c = config.OnResourceExhausted
	case "13":
		c = config.OnInternal
	case "14":
		c = config.OnUnavailable
	}
	return retry.On&c != 0
}

// failure is the answer when there is none from an upstream.
func (r *router) failure(a *attempt, err error) *reply {
	if a.none {
		return &reply{status: 503, body: "no healthy upstream", details: "no_healthy_upstream", flag: noHealthyUpstream}
	}
	if a.late.Load() {
		return &reply{status: 504, body: "upstream request timeout", details: "upstream_per_try_timeout", flag: upstreamTimeout}
	}
	text := "upstream connect error or disconnect/reset before headers. "
	if r.attempts > 1 {
		text += "retried and the latest "
	}
	text += "reset reason: " + err.Error()
	answer := &reply{status: 503, body: text, details: "upstream_reset_before_response_started{" + upstream.Details(err) + "}"}
	var reset *upstream.ResetError
	if errors.As(err, &reset) {
		answer.flag = flagOf(reset.Reason)
		switch reset.Reason {
		case upstream.ProtocolError:
			answer.status = 502
		case upstream.Overflow:
			answer.headers = []abi.Pair{{Key: "x-envoy-overloaded", Value: "true"}}
		}
	}
	return answer
}

// flagOf is the flag for why an upstream gave no response.
func flagOf(why upstream.Reason) flag {
	switch why {
	case upstream.ConnectFailure, upstream.ConnectTimeout:
		return connectionFailure
	case upstream.RemoteReset, upstream.RemoteRefused:
		return upstreamReset
	case upstream.ProtocolError:
		return upstreamProtocol
	case upstream.Overflow:
		return upstreamOverflow
	}
	return connectionTermination
}

// stop gives the request up, from any goroutine. It does not block.
func (r *router) stop() {
	r.s.cancel()
	if a := r.try.Load(); a != nil && a.exchange != nil {
		a.exchange.Cancel()
	}
}

// abandon gives up a response that is not wanted.
func (r *router) abandon() { r.stop() }

// close ends the attempt: a connection that can be used again is.
func (r *router) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil {
		r.timer.Stop()
	}
	if r.retrying {
		r.cluster.Breakers.Retries.Give()
	}
	if a := r.try.Load(); a != nil {
		if a.timer != nil {
			a.timer.Stop()
		}
		if a.exchange != nil {
			a.exchange.Finish()
		}
	}
	if r.room != nil {
		r.s.m.buffers.Put(r.room)
		r.room, r.replay = nil, nil
	}
}
