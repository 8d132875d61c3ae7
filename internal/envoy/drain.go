package envoy

import (
	"cmp"
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
	if !noDrain && (c.live.Load() || c.serves(ctx)) {
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

// serves reports whether c is live, as far as it says so within a second: it may have
// become so since it was asked last.
func (c *child) serves(ctx context.Context) bool {
	a, err := c.client()
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return a.Ready(ctx) == nil
}

func (p *Process) signal(c *child, sig syscall.Signal) {
	if err := c.proc.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.cfg.Log.Error("envoy not signalled", "pid", c.pid, "signal", sig.String(), "err", err)
	}
}

// A Drain lets clients go without losing a request. The zero value is useful.
type Drain struct {
	Min   time.Duration   // connections are waited for at least so long
	Most  time.Duration   // and at most so long; default 5s, and no less than Min
	Grace time.Duration   // then requests, so long; default 5s
	Hurry <-chan struct{} // closed, it ends the waiting; may be nil
}

// Run drains the proxy behind a, until gone is closed at the latest. At first
// clients are told to go and new ones are still served, for who sends them may not
// know yet; when none is left, or it took too long, no more are let in, and what was
// begun is finished. A proxy that cannot be asked is waited for until the time is
// over; one that cannot be told is an error.
func (d Drain) Run(ctx context.Context, a *Admin, gone <-chan struct{}) error {
	d.Most = max(cmp.Or(d.Most, 5*time.Second), d.Min)
	d.Grace = cmp.Or(d.Grace, 5*time.Second)
	if err := a.FailHealthcheck(ctx); err != nil {
		return err
	}
	begun := time.Now()
	d.poll(ctx, d.Most, gone, func() bool {
		connections, _, err := a.Active(ctx)
		return err == nil && connections == 0 && time.Since(begun) >= d.Min
	})
	if err := a.StopListening(ctx); err != nil {
		return err
	}
	overtime := time.Since(begun) >= d.Most
	d.poll(ctx, d.Grace, gone, func() bool {
		connections, requests, err := a.Active(ctx)
		return err != nil || connections == 0 || overtime && requests == 0
	})
	return nil
}

// drain drains c.
func (p *Process) drain(ctx context.Context, c *child, gone <-chan struct{}) {
	a, err := c.client()
	if err == nil {
		p.cfg.Log.Info("envoy draining", "pid", c.pid, "at_most", p.cfg.Drain)
		err = Drain{Min: p.cfg.MinDrain, Most: p.cfg.Drain, Grace: p.cfg.Grace, Hurry: p.cfg.Hurry}.Run(ctx, a, gone)
	}
	if err != nil {
		p.cfg.Log.Error("envoy not drained", "pid", c.pid, "err", err)
	}
}

// poll asks done again and again until it agrees, the process is gone, the time is
// over, or there is a hurry.
func (d Drain) poll(ctx context.Context, atMost time.Duration, gone <-chan struct{}, done func() bool) {
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	tick := time.NewTicker(drainInterval)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-gone:
			return
		case <-d.Hurry:
			return
		case <-ctx.Done():
			return
		}
	}
}
