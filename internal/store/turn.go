package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	turnPrefix = "turn-"

	// How often whoever waits looks whether the turn is over: soon at first, because
	// most fetches are short.
	firstLook = time.Millisecond
	lastLook  = 20 * time.Millisecond

	// progressEvery bounds how often progress is written down. It is less than anyone
	// waits for it.
	progressEvery = 200 * time.Millisecond
)

// A Turn is the right to be the one, among the processes that share a store, who fetches
// what a key names. It only spares work: who fetches without one does no harm. It ends
// with its process, if not before. Its methods may be called concurrently.
type Turn struct {
	file *os.File // locked, and still at its path

	mu   sync.Mutex
	told time.Time // when progress was last written down
}

// Turn waits for the turn of a key, which is part of a file name. If its holder makes no
// progress for the time of patience, hangs or is stopped, Turn returns nil and no error:
// the caller goes ahead without. An error is ctx's cause or the disk's. With the turn
// comes the duty to look again: another may have stored what it is for.
func (s *Store) Turn(ctx context.Context, key string, patience time.Duration) (*Turn, error) {
	var (
		path  = filepath.Join(s.dir, turnPrefix+key)
		wait  = firstLook
		heard time.Time // of the holder, by its own account
		since = time.Now()
	)
	for {
		t, progress, err := takeTurn(path)
		if t != nil || err != nil {
			return t, err
		}
		if !progress.Equal(heard) {
			heard, since = progress, time.Now()
		}
		if time.Since(since) > patience {
			return nil, nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(wait):
			wait = min(2*wait, lastLook)
		}
	}
}

// takeTurn takes the turn at path, if nobody has it; else it says when its holder last
// made progress.
func takeTurn(path string) (*Turn, time.Time, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, time.Time{}, err
		}
		t, progress, err := lockTurn(f, path)
		if t == nil {
			f.Close()
		}
		if !errors.Is(err, errReplaced) {
			return t, progress, err
		}
	}
}

// errReplaced says that a turn ended, and its file went, between opening and locking.
var errReplaced = errors.New("replaced")

func lockTurn(f *os.File, path string) (*Turn, time.Time, error) {
	err := flock(f, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		info, err := f.Stat()
		if err != nil {
			return nil, time.Time{}, err
		}
		return nil, info.ModTime(), nil
	}
	if err != nil {
		return nil, time.Time{}, err
	}
	id, err := identify(f)
	if err != nil {
		return nil, time.Time{}, err
	}
	if !id.isAt(path) {
		return nil, time.Time{}, errReplaced
	}
	t := &Turn{file: f}
	t.Progress() // the file may be that of one who died
	return t, time.Time{}, nil
}

// Progress says that the holder is getting on. It may be called often, and on nil.
func (t *Turn) Progress() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := time.Now(); now.Sub(t.told) >= progressEvery {
		t.told = now
		_ = os.Chtimes(t.file.Name(), now, now) // at worst, others do not wait
	}
}

// End lets others have their turn. It is called once, and may be on nil.
func (t *Turn) End() {
	if t == nil {
		return
	}
	_ = os.Remove(t.file.Name()) // before it is unlocked; at worst it is removed with the leftovers
	t.file.Close()
}
