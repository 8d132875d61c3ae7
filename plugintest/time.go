package plugintest

import (
	"slices"
	"time"

	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// A timer is one that the plugin's tick waits for.
type timer struct {
	at      time.Time
	f       func()
	stopped bool
}

func (t *timer) Stop() bool {
	was := t.stopped
	t.stopped = true
	return !was
}

// now is the plugin's clock. Unless the test wants it otherwise it runs, or plugins that
// wait for it would wait for ever.
func (p *Plugin) now() time.Time {
	if p.cfg.StopClock {
		return p.stopped.Add(p.offset)
	}
	return time.Now().Add(p.offset)
}

func (p *Plugin) afterFunc(d time.Duration, f func()) proxywasm.Timer {
	t := &timer{at: p.now().Add(d), f: f}
	p.timers = append(slices.DeleteFunc(p.timers, func(t *timer) bool { return t.stopped }), t)
	return t
}

// Tick calls the plugin's tick now, whatever its period.
func (p *Plugin) Tick() {
	p.t.Helper()
	p.started()
	for _, in := range p.plugin.Instances() {
		in.Tick(p.plugin)
	}
	p.settle()
}

// TickPeriod is how often the plugin wants its tick, 0 if it does not.
func (p *Plugin) TickPeriod() time.Duration {
	p.t.Helper()
	p.started()
	return p.plugin.Instances()[0].TickPeriod(p.plugin)
}

// Advance moves the plugin's clock forward, with the ticks that become due. Calls do
// not time out by it.
func (p *Plugin) Advance(d time.Duration) {
	p.t.Helper()
	p.started()
	until := p.now().Add(d)
	for {
		next := p.due(until)
		if next == nil {
			break
		}
		next.stopped = true
		p.forwardTo(next.at)
		next.f()
		p.settle()
	}
	p.forwardTo(until)
}

// due is the first timer until then, or nil.
func (p *Plugin) due(until time.Time) *timer {
	var first *timer
	for _, t := range p.timers {
		if !t.stopped && !t.at.After(until) && (first == nil || t.at.Before(first.at)) {
			first = t
		}
	}
	return first
}

func (p *Plugin) forwardTo(t time.Time) {
	if d := t.Sub(p.now()); d > 0 {
		p.offset += d
	}
}
