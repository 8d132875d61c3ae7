package proxywasm

import (
	"errors"
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/proxywasm/meter"
)

// ErrDeadline is why a guest that ran too long is dead.
var ErrDeadline = errors.New("deadline exceeded")

// Guests are instrumented (see package meter) to call interrupt every so often, which
// says how much they may do until the next time.
const (
	interruptModule = "chandler"
	interruptName   = "interrupt"

	// quantum is in loop iterations and calls, thus some 100 µs: often enough for the
	// garbage collector, which waits for guests, seldom enough to cost nothing.
	quantum = 1 << 16
)

// prepare instruments the module, so that it can be stopped.
func (h *Host) prepare(wasm []byte) ([]byte, error) {
	wasm, err := meter.OwnMemory(wasm)
	if err != nil {
		return nil, err
	}
	return meter.Instrument(wasm, interruptModule, interruptName)
}

// An interrupt is the deadline of the call into a guest that runs now.
type interrupt struct {
	deadline time.Duration // forever if negative
	since    time.Time     // of the call's first interrupt, or zero
}

// begin starts a call. It reads no clock: calls are short, clocks slow. The deadline
// counts from the first interrupt.
func (i *interrupt) begin(deadline time.Duration) {
	i.deadline = deadline
	i.since = time.Time{}
}

// check panics with ErrDeadline if the guest had its time, which ends the guest.
func (i *interrupt) check() {
	switch {
	case i.deadline < 0:
	case i.since.IsZero():
		i.since = time.Now()
	case time.Since(i.since) > i.deadline:
		panic(ErrDeadline)
	}
}

// interruptFunction is what instrumented code calls. It is in Go, and thus a point at
// which the scheduler and the garbage collector get their turn.
func interruptFunction() *hostFunc {
	return &hostFunc{
		module: interruptModule, name: interruptName, since: abi.V010, until: abi.V021,
		early: allocating, budget: true,
	}
}
