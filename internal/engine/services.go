package engine

import (
	"bytes"
	"context"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/engine/http1"
	"github.com/chandler-proxy/chandler/internal/engine/stats"
	"github.com/chandler-proxy/chandler/internal/engine/upstream"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
	"github.com/chandler-proxy/chandler/internal/proxywasm/expr"
)

// maxAnswer bounds the body of an answer to a plugin's call, in bytes.
const maxAnswer = 16 << 20

// services are what plugins need of the engine.
func (e *Engine) services(s *state) proxywasm.Services {
	e.level.Store(uint32(abi.Info))
	services := proxywasm.Services{
		Log:     pluginLog{e},
		Metrics: e.stats.Plugins,
		Calls:   calls{s},
		Shared:  proxywasm.NewShared(),
		Foreign: proxywasm.EnvoyForeign(),
		Trace:   e.cfg.Trace,
		Reloads: e.reloads,
	}
	expr.Register(&services)
	return services
}

// reloads counts the reloads of a plugin, under Envoy's names.
func (e *Engine) reloads(plugin string) proxywasm.Reloads {
	counter := func(name string) *stats.Value {
		return e.stats.Counter(stats.Scope{}, "wasm."+plugin+".vm_reload"+name)
	}
	counter("") // which Envoy has, too, and does not count
	return proxywasm.Reloads{Backoff: counter("_backoff"), Failure: counter("_failure"), Success: counter("_success")}
}

// pluginLog writes what plugins log into the engine's log.
type pluginLog struct{ e *Engine }

func (l pluginLog) Level() abi.LogLevel { return abi.LogLevel(l.e.level.Load()) }

// Log writes the record on one line as Envoy words it: what people look for in its log.
func (l pluginLog) Log(r proxywasm.Record) {
	log := l.e.cfg.Log.Info
	switch r.Level {
	case abi.Trace, abi.Debug:
		log = l.e.cfg.Log.Debug
	case abi.Warn:
		log = l.e.cfg.Log.Warn
	case abi.Error, abi.Critical:
		log = l.e.cfg.Log.Error
	}
	log("wasm log" + r.Prefix() + ": " + r.Message)
}

// calls makes plugins' calls to clusters.
type calls struct{ s *state }

// serviceTime is the header that tells how long an upstream took, in milliseconds.
const serviceTime = "x-envoy-upstream-service-time"

// addInternal adds what Envoy adds to the requests of its own.
func addInternal(f *http1.Fields, timeout time.Duration) {
	f.Add("x-envoy-internal", "true")
	if timeout > 0 {
		f.Add("x-envoy-expected-rq-timeout-ms", strconv.FormatInt(timeout.Milliseconds(), 10))
	}
}

// HTTPCall sends a request. As in Envoy every failure is an answer, with 503 or 504,
// but for a cluster without endpoints.
func (c calls) HTTPCall(call proxywasm.HTTPCall, answer func(proxywasm.HTTPAnswer)) (func(), abi.Status) {
	cluster := c.s.cluster(call.Upstream)
	if cluster == nil {
		return nil, abi.BadArgument
	}
	host := cluster.Choose(upstream.Wanted{})
	if host == nil {
		cluster.Stats.NoneHealthy.Inc()
		return nil, abi.InternalFailure
	}
	ctx, cancel := callContext(c.s.ctx, call.Timeout)
	c.s.workers.Go(func() {
		defer cancel()
		answer(send(ctx, cluster, host, call))
	})
	return cancel, abi.OK
}

// callContext is that of a plugin's call; 0 is no limit. It must be cancelled.
func callContext(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	if timeout > 0 {
		return context.WithTimeout(ctx, timeout)
	}
	return context.WithCancel(ctx)
}

// send makes the call and waits for all of the answer.
func send(ctx context.Context, cluster *upstream.Cluster, host *upstream.Host, call proxywasm.HTTPCall) proxywasm.HTTPAnswer {
	end := call.Body == "" && len(call.Trailers) == 0
	fields := proxywasm.NewRequestFields(call.Headers...)
	if _, ok := fields.Get(":scheme"); !ok {
		fields.Add(":scheme", "http")
	}
	addInternal(fields, call.Timeout)
	began := time.Now()
	x, err := host.Start(ctx, upstream.Request{Fields: fields, End: end})
	if err != nil {
		return failedAnswer(ctx, err)
	}
	defer x.Finish()
	stop := context.AfterFunc(ctx, x.Cancel)
	defer stop()
	var sending sync.WaitGroup
	if !end {
		sending.Go(func() {
			_ = x.Send([]byte(call.Body), true) // the response tells
			var trailers *http1.Fields
			if len(call.Trailers) > 0 {
				trailers = proxywasm.NewFields(call.Trailers...)
			}
			_ = x.SendEnd(trailers)
		})
	}
	defer sending.Wait()
	resp, err := x.Response()
	if err != nil {
		x.Cancel()
		return failedAnswer(ctx, err)
	}
	resp.Fields.Add(serviceTime, strconv.FormatInt(time.Since(began).Milliseconds(), 10))
	status, _ := resp.Fields.Get(":status")
	code, _ := strconv.Atoi(status)
	cluster.Stats.Answered(code)
	host.Report(code)
	var body bytes.Buffer
	if !resp.End {
		if _, err := io.Copy(&body, io.LimitReader(resp.Body, maxAnswer)); err != nil {
			x.Cancel()
			return failedAnswer(ctx, err)
		}
	}
	a := proxywasm.HTTPAnswer{Headers: resp.Fields, Body: body.String()}
	if t := resp.Body.Trailers(); t != nil {
		a.Trailers = t
	}
	return a
}

func failedAnswer(ctx context.Context, err error) proxywasm.HTTPAnswer {
	if ctx.Err() != nil {
		return localAnswer(504, "upstream request timeout")
	}
	return localAnswer(503, "upstream connect error or disconnect/reset before headers. reset reason: "+err.Error())
}

func localAnswer(status int, body string) proxywasm.HTTPAnswer {
	return proxywasm.HTTPAnswer{
		Headers: proxywasm.NewResponseFields(
			abi.Pair{Key: ":status", Value: strconv.Itoa(status)},
			abi.Pair{Key: "content-length", Value: strconv.Itoa(len(body))},
			abi.Pair{Key: "content-type", Value: "text/plain"},
		),
		Body: body,
	}
}
