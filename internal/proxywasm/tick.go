package proxywasm

import (
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
)

func tickFunctions() []*hostFunc {
	return []*hostFunc{
		proxy("proxy_set_tick_period_milliseconds", setTickPeriod, param{"period", number}),
	}
}

// A tick is a root context's timer.
type tick struct {
	period time.Duration // 0 for none
	timer  Timer
	turn   uint // counts settings, so that a timer that fires late is known for late
}

// setTickPeriod is proxy_set_tick_period_milliseconds, of the plugin whose context it is.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_set_tick_period_milliseconds
func setTickPeriod(in *Instance, stack []uint64) abi.Status {
	if r := in.effective.root; r != nil {
		r.setTick(time.Duration(u32(stack, 0)) * time.Millisecond)
	}
	return abi.OK
}

func (r *root) setTick(period time.Duration) {
	t := &r.tick
	if t.timer != nil {
		t.timer.Stop()
		t.timer = nil
	}
	t.period = period
	t.turn++
	if period > 0 {
		r.arm()
	}
}

// arm starts the timer. As in Envoy the next period begins when the callback is over.
func (r *root) arm() {
	turn := r.tick.turn
	r.tick.timer = r.in.vm.cfg.AfterFunc(r.tick.period, func() {
		r.in.lock()
		defer r.in.unlock()
		if r.tick.turn != turn || r.in.err() != nil {
			return
		}
		r.in.call(&r.Context, onTick, r.id)
		if r.tick.turn == turn && r.in.err() == nil {
			r.arm()
		}
	})
}

// Tick calls proxy_on_tick of the plugin now, whatever its period, and returns that
// period.
func (in *Instance) Tick(p *Plugin) time.Duration {
	in.lock()
	defer in.unlock()
	r := in.roots[p]
	if r == nil {
		return 0
	}
	in.call(&r.Context, onTick, r.id)
	return r.tick.period
}

// TickPeriod is how often the plugin wants proxy_on_tick, 0 if it does not.
func (in *Instance) TickPeriod(p *Plugin) time.Duration {
	in.lock()
	defer in.unlock()
	if r := in.roots[p]; r != nil {
		return r.tick.period
	}
	return 0
}
