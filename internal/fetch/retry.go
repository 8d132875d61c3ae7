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
	Try     time.Duration // bounds a try, as Want.Timeout does; default 15s, WASM_HTTP_REQUEST_TIMEOUT
	Backoff time.Duration // after the first try, then doubled; default 500ms
	Longest time.Duration // wait between tries, also if the server asks for more; default 30s

	// Waiting is told before a try that failed is repeated, by who does it; nil for nobody.
	Waiting func(failed error, wait time.Duration)
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
	var res Result
	limit := f.withDefaults().Try
	if r.Timeout > 0 {
		limit = min(limit, r.Timeout)
	}
	err := f.Do(ctx, limit, func(ctx context.Context) (err error) {
		res, err = f.Fetcher.Fetch(ctx, r)
		return err
	})
	if err != nil {
		return Result{}, err
	}
	return res, nil
}

// Do is Fetch for anything that fails as a Fetcher does. A try may take as long
// as timeout says, or Try if it is 0.
func (f Retry) Do(ctx context.Context, timeout time.Duration, try func(context.Context) error) error {
	f = f.withDefaults()
	for n := 1; ; n++ {
		err := within(ctx, cmp.Or(timeout, f.Try), try)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return stopped(ctx, err)
		}
		e, ok := errors.AsType[*Error](err)
		if !ok || !e.Retry {
			return err
		}
		if n == f.Tries {
			return &Error{Kind: e.Kind, Manifest: e.Manifest, Err: fmt.Errorf("after %d tries: %w", n, err)}
		}
		wait := f.wait(n, e.After)
		if f.Waiting != nil {
			f.Waiting(err, wait)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return stopped(ctx, err)
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

// within calls try, which may take as long as limit.
func within(ctx context.Context, limit time.Duration, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %v: %w", limit, context.DeadlineExceeded))
	defer cancel()
	err := try(ctx)
	if e, ok := errors.AsType[*Error](err); ok && ctx.Err() != nil {
		// The cause says how long was waited, the error only that it was too long.
		err = &Error{Kind: e.Kind, Manifest: e.Manifest, Retry: true, Err: context.Cause(ctx)}
	}
	return err
}

// wait is how long to wait after try n: doubling, with up to a quarter of
// jitter either way so that many agents do not come back together, but no less
// than the server asks for, and never longer than Longest.
func (f Retry) wait(n int, asked time.Duration) time.Duration {
	d := min(f.Backoff<<min(n-1, 16), f.Longest)
	d += time.Duration((rand.Float64() - 0.5) / 2 * float64(d))
	return min(max(d, asked), f.Longest)
}
