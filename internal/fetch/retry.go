package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Retry is a Fetcher that tries another again where that may help.
type Retry struct {
	Fetcher Fetcher
	Tries   int           // at most; default 5, Istio's WASM_HTTP_REQUEST_MAX_RETRIES
	Try     time.Duration // bounds a try that Want.Timeout does not; default 15s, WASM_HTTP_REQUEST_TIMEOUT
	Backoff time.Duration // after the first try, then doubled; default 500ms
	Longest time.Duration // wait between tries, also if the server asks for more; default 30s
}

func (f Retry) withDefaults() Retry {
	f.Tries = cmp.Or(f.Tries, 5)
	f.Try = cmp.Or(f.Try, 15*time.Second)
	f.Backoff = cmp.Or(f.Backoff, 500*time.Millisecond)
	f.Longest = cmp.Or(f.Longest, 30*time.Second)
	return f
}

// Fetch calls the other's Fetch until it succeeds, fails for good, or was
// called Tries times.
func (f Retry) Fetch(ctx context.Context, r Request) (Result, error) {
	f = f.withDefaults()
	for n := 1; ; n++ {
		res, err := f.try(ctx, r)
		if err == nil {
			return res, nil
		}
		if ctx.Err() != nil {
			return Result{}, stopped(ctx, err)
		}
		e, ok := errors.AsType[*Error](err)
		if !ok || !e.Retry {
			return Result{}, err
		}
		if n == f.Tries {
			return Result{}, &Error{Kind: e.Kind, Manifest: e.Manifest, Err: fmt.Errorf("after %d tries: %w", n, err)}
		}
		select {
		case <-time.After(f.wait(n, e.After)):
		case <-ctx.Done():
			return Result{}, stopped(ctx, err)
		}
	}
}

// stopped says that ctx ended, and what went wrong until then.
func stopped(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if errors.Is(err, cause) {
		return err
	}
	return fmt.Errorf("%w; last error: %w", cause, err)
}

func (f Retry) try(ctx context.Context, r Request) (Result, error) {
	limit := cmp.Or(r.Timeout, f.Try)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %v: %w", limit, context.DeadlineExceeded))
	defer cancel()
	res, err := f.Fetcher.Fetch(ctx, r)
	if e, ok := errors.AsType[*Error](err); ok && ctx.Err() != nil {
		// The cause says how long was waited, the error only that it was too long.
		err = &Error{Kind: e.Kind, Manifest: e.Manifest, Retry: true, Err: context.Cause(ctx)}
	}
	return res, err
}

// wait is how long to wait after try n: doubling, with up to a quarter of
// jitter either way so that many agents do not come back together, but no less
// than the server asks for, and never longer than Longest.
func (f Retry) wait(n int, asked time.Duration) time.Duration {
	d := min(f.Backoff<<min(n-1, 16), f.Longest)
	d += time.Duration((rand.Float64() - 0.5) / 2 * float64(d))
	return min(max(d, asked), f.Longest)
}
