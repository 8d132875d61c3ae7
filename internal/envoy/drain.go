package envoy

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"
)

// drainInterval is how often a draining Envoy is asked what is left.
const drainInterval = 50 * time.Millisecond

// stop drains c, ends it, and returns when it is gone. That ctx has ended is why
// it is called; only the cause is of interest.
func (p *Process) stop(ctx context.Context, c *child, gone <-chan struct{}) {
	noDrain := errors.Is(context.Cause(ctx), ErrNoDrain)
	ctx = context.WithoutCancel(ctx)
	if c.live.Load() && !noDrain {
		p.drain(ctx, c, gone)
	}
	p.signal(c, syscall.SIGTERM)
	select {
	case <-gone:
	case <-time.After(p.cfg.Grace):
		p.cfg.Log.Warn("envoy killed", "pid", c.pid, "grace", p.cfg.Grace)
		p.signal(c, syscall.SIGKILL)
		<-gone
	}
	p.cfg.Log.Info("envoy stopped", "pid", c.pid)
}

func (p *Process) signal(c *child, sig syscall.Signal) {
	if err := c.proc.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.cfg.Log.Error("envoy not signalled", "pid", c.pid, "signal", sig.String(), "err", err)
	}
}

// drain lets clients go without losing a request. At first they are told to go
// and new ones are still served, for who sends them may not know yet; when none
// is left, or it took too long, no more are let in, and what was begun is
// finished. An Envoy that cannot be asked is waited for until the time is over.
func (p *Process) drain(ctx context.Context, c *child, gone <-chan struct{}) {
	a, err := c.client()
	if err == nil {
		err = a.FailHealthcheck(ctx)
	}
	if err != nil {
		p.cfg.Log.Error("envoy not drained", "pid", c.pid, "err", err)
		return
	}
	p.cfg.Log.Info("envoy draining", "pid", c.pid, "at_most", p.cfg.Drain)
	begun := time.Now()
	p.poll(ctx, p.cfg.Drain, gone, func() bool {
		connections, _, err := a.Active(ctx)
		return err == nil && connections == 0 && time.Since(begun) >= p.cfg.MinDrain
	})
	if err := a.StopListening(ctx); err != nil {
		p.cfg.Log.Error("envoy not drained", "pid", c.pid, "err", err)
		return
	}
	overtime := time.Since(begun) >= p.cfg.Drain
	p.poll(ctx, p.cfg.Grace, gone, func() bool {
		connections, requests, err := a.Active(ctx)
		return err != nil || connections == 0 || overtime && requests == 0
	})
}

// poll asks done again and again until it agrees, the process is gone, or the
// time is over.
func (p *Process) poll(ctx context.Context, atMost time.Duration, gone <-chan struct{}, done func() bool) {
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	tick := time.NewTicker(drainInterval)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-gone:
			return
		case <-ctx.Done():
			return
		}
	}
}
