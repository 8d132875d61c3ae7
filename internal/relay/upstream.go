package relay

import (
	"log/slog"
	"sync"
	"time"
)

// tellEvery is how often it is logged that the control plane is away, while it is.
const tellEvery = time.Minute

// An outage is what is known of a control plane that is away. The zero value is one
// that is there. It is safe for concurrent use.
type outage struct {
	mu    sync.Mutex
	cause error     // nil while it is there
	told  time.Time // when it was logged last
}

// begin notes why the control plane cannot be had, or has ended a stream. It logs that
// the first time, and now and then.
func (o *outage) begin(log *slog.Logger, cause error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	first := o.cause == nil
	o.cause = cause
	if now := time.Now(); first || now.Sub(o.told) >= tellEvery {
		o.told = now
		log.Warn("control plane is away", "reason", cause)
	}
}

// end notes that the control plane has answered.
func (o *outage) end(log *slog.Logger) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cause != nil {
		o.cause = nil
		log.Info("control plane is back")
	}
}

// Away is why the control plane cannot be had now, nil if it has answered since.
func (r *Relay) Away() error {
	r.outage.mu.Lock()
	defer r.outage.mu.Unlock()
	return r.outage.cause
}
