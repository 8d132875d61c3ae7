package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func turn(t *testing.T, s *Store, patience time.Duration) *Turn {
	t.Helper()
	got, err := s.Turn(t.Context(), "key", patience)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func turns(t *testing.T, dir string) int {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, turnPrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// Two stores in one folder are as two processes: a lock is of the open file.
func TestTurn(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		a, b := open(t, dir), open(t, dir)
		first := turn(t, a, time.Minute)
		if first == nil {
			t.Fatal("no turn although nobody has it")
		}
		other, err := b.Turn(t.Context(), "other", time.Minute)
		if err != nil || other == nil {
			t.Errorf("turn of another key is %v, %v", other, err)
		}
		other.End()

		second := make(chan *Turn)
		go func() { second <- turn(t, b, time.Minute) }()
		for range 3 { // the holder gets on, and is waited for
			time.Sleep(50 * time.Second)
			select {
			case <-second:
				t.Fatal("two have their turn")
			default:
				first.Progress()
			}
		}
		first.End()
		got := <-second
		if got == nil {
			t.Fatal("who waited has no turn")
		}
		got.End()
	})
	if n := turns(t, dir); n != 0 {
		t.Errorf("%d turns left in the folder", n)
	}
}

func TestTurnOfOneWhoHangs(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		a, b := open(t, dir), open(t, dir)
		first := turn(t, a, 0)
		start := time.Now()
		if got := turn(t, b, 5*time.Second); got != nil || time.Since(start) < 5*time.Second || time.Since(start) > 6*time.Second {
			t.Errorf("after %v: turn %v, want none after 5s", time.Since(start), got)
		}
		stop := errors.New("stop")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(stop) })
		if got, err := b.Turn(ctx, "key", time.Hour); got != nil || !errors.Is(err, stop) {
			t.Errorf("turn %v, %v, want the cause of the context's end", got, err)
		}
		first.End()
		var none *Turn
		none.Progress()
		none.End()
	})
}

// What someone who died left is taken over, or cleared.
func TestTurnOfTheDead(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if err := os.WriteFile(filepath.Join(dir, turnPrefix+"key"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	age(t, filepath.Join(dir, turnPrefix+"key"))
	got := turn(t, s, 0)
	if got == nil {
		t.Fatal("no turn")
	}
	open(t, dir) // clears what is not in use
	if n := turns(t, dir); n != 1 {
		t.Errorf("%d turns in the folder, want the one that is in use", n)
	}
	got.file.Close() // as death would
	open(t, dir)
	if n := turns(t, dir); n != 0 {
		t.Errorf("%d turns left in the folder", n)
	}
}

// A disk that takes nothing gives an error.
func TestTurnWithoutFolder(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Turn(t.Context(), "key", time.Minute); got != nil || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("turn %v, %v", got, err)
	}
}
