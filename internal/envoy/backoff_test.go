package envoy

import (
	"errors"
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	var b backoff
	for i, step := range []struct {
		ran      time.Duration
		answered bool
		want     time.Duration
	}{
		{0, false, 100 * time.Millisecond},
		{0, true, 200 * time.Millisecond},
		{0, false, 400 * time.Millisecond},
		{0, false, 800 * time.Millisecond},
		{0, false, 1600 * time.Millisecond}, // the fifth, but one had answered
		{0, false, 3200 * time.Millisecond},
		{0, false, 6400 * time.Millisecond},
		{0, false, 10 * time.Second},
		{29 * time.Second, true, 10 * time.Second},
		{30 * time.Second, true, 100 * time.Millisecond},
	} {
		got, err := b.next(step.ran, step.answered)
		if err != nil || got != step.want {
			t.Errorf("death %d: next = %v, %v; want %v", i+1, got, err, step.want)
		}
	}
}

func TestBackoffNeverUp(t *testing.T) {
	var b backoff
	for range neverUpMax - 1 {
		if _, err := b.next(0, false); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.next(0, false); !errors.Is(err, errNeverUp) {
		t.Errorf("error = %v, want %v", err, errNeverUp)
	}
}
