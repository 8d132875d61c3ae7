package fetch_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chandler-proxy/chandler/internal/fetch"
)

// A script is a Fetcher that gives one answer after another and notes when.
type script struct {
	answers []func(context.Context) error
	at      []time.Duration
	start   time.Time
}

func (s *script) Fetch(ctx context.Context, _ fetch.Request) (fetch.Result, error) {
	s.at = append(s.at, time.Since(s.start))
	answer := s.answers[min(len(s.at), len(s.answers))-1]
	return fetch.Result{Source: "s"}, answer(ctx)
}

func say(err error) func(context.Context) error {
	return func(context.Context) error { return err }
}

func hang(ctx context.Context) error {
	<-ctx.Done()
	return fetch.Transient(ctx.Err())
}

func TestRetry(t *testing.T) {
	boom := errors.New("boom")
	transient := say(&fetch.Error{Err: boom, Retry: true})
	asked := func(after time.Duration) func(context.Context) error {
		return say(&fetch.Error{Err: boom, Retry: true, After: after})
	}
	final := say(&fetch.Error{Kind: fetch.NotFound, Err: boom})
	for _, tt := range []struct {
		name    string
		answers []func(context.Context) error
		timeout time.Duration // Want.Timeout
		at      []time.Duration
		err     string
	}{
		{name: "at once", answers: []func(context.Context) error{say(nil)}, at: []time.Duration{0}},
		{name: "third try", answers: []func(context.Context) error{transient, transient, say(nil)},
			at: []time.Duration{0, 500 * time.Millisecond, 1500 * time.Millisecond}},
		{name: "never", answers: []func(context.Context) error{transient}, err: "after 5 tries: boom",
			at: []time.Duration{0, 500 * time.Millisecond, 1500 * time.Millisecond, 3500 * time.Millisecond, 7500 * time.Millisecond}},
		{name: "for good", answers: []func(context.Context) error{final}, at: []time.Duration{0}, err: "boom"},
		{name: "not the fetcher's", answers: []func(context.Context) error{say(boom)}, at: []time.Duration{0}, err: "boom"},
		{name: "server asks for more", answers: []func(context.Context) error{asked(10 * time.Second), say(nil)},
			at: []time.Duration{0, 10 * time.Second}},
		{name: "server asks for too much", answers: []func(context.Context) error{asked(time.Hour), say(nil)},
			at: []time.Duration{0, 30 * time.Second}},
		{name: "slow", answers: []func(context.Context) error{hang, say(nil)}, at: []time.Duration{0, 15500 * time.Millisecond}},
		{name: "slow, with more time for the plugin", timeout: 30 * time.Second, answers: []func(context.Context) error{hang, say(nil)},
			at: []time.Duration{0, 15500 * time.Millisecond}},
		{name: "slow for the plugin", timeout: time.Second, answers: []func(context.Context) error{hang},
			at:  []time.Duration{0, 1500 * time.Millisecond, 3500 * time.Millisecond, 6500 * time.Millisecond, 11500 * time.Millisecond},
			err: "after 5 tries: no answer within 1s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{answers: tt.answers, start: time.Now()}
				r := fetch.Request{}
				r.Timeout = tt.timeout
				res, err := fetch.Retry{Fetcher: s}.Fetch(t.Context(), r)
				switch {
				case tt.err == "" && (err != nil || res.Source != "s"):
					t.Errorf("Fetch = %+v, %v", res, err)
				case tt.err != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.err)):
					t.Errorf("error is %v, want %q", err, tt.err)
				}
				if e, ok := errors.AsType[*fetch.Error](err); ok && e.Retry {
					t.Error("says to try again after all tries")
				}
				if len(s.at) != len(tt.at) {
					t.Fatalf("tried at %v, want about %v", s.at, tt.at)
				}
				for i, want := range tt.at {
					// Jitter is a quarter of every wait.
					if off := (s.at[i] - want).Abs(); off > want/4 {
						t.Errorf("try %d at %v, want about %v", i, s.at[i], want)
					}
				}
			})
		})
	}
}

func TestRetryEndsWithItsContext(t *testing.T) {
	gone := errors.New("superseded")
	for name, answer := range map[string]func(context.Context) error{
		"in a try":      hang,
		"between tries": say(&fetch.Error{Err: errors.New("boom"), Retry: true}),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(200*time.Millisecond, func() { cancel(gone) })
				start := time.Now()
				_, err := fetch.Retry{Fetcher: &script{answers: []func(context.Context) error{answer}}}.Fetch(ctx, fetch.Request{})
				if !errors.Is(err, gone) || time.Since(start) != 200*time.Millisecond {
					t.Errorf("after %v: %v", time.Since(start), err)
				}
			})
		})
	}
}
