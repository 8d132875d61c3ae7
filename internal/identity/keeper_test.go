package identity

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"
)

func openDir(t *testing.T) (*Dir, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "new", "ca")
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	return d, path
}

func TestDir(t *testing.T) {
	d, path := openDir(t)
	ctx := t.Context()
	kept, err := d.Load(ctx)
	if err != nil || len(kept.Data) > 0 || kept.Version != "" {
		t.Fatalf("empty folder: %v, %v", kept, err)
	}
	if err := d.Save(ctx, []byte("one"), ""); err != nil {
		t.Fatal(err)
	}
	if err := d.Save(ctx, []byte("two"), ""); !errors.Is(err, ErrConflict) {
		t.Errorf("second first save: %v, want ErrConflict", err)
	}
	if kept, err = d.Load(ctx); err != nil || string(kept.Data) != "one" {
		t.Fatalf("loaded %q, %v", kept.Data, err)
	}
	if err := d.Save(ctx, []byte("two"), kept.Version); err != nil {
		t.Fatal(err)
	}
	if err := d.Save(ctx, []byte("three"), kept.Version); !errors.Is(err, ErrConflict) {
		t.Errorf("save of an old version: %v, want ErrConflict", err)
	}
	if err := d.WriteBundle([]byte("roots")); err != nil {
		t.Fatal(err)
	}
	modes := map[string]os.FileMode{dirState: 0o600, dirLock: 0o600, dirBundle: 0o644}
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if want, ok := modes[e.Name()]; !ok || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", e.Name(), info.Mode(), want)
		}
	}
	if got, err := os.ReadFile(d.BundlePath()); err != nil || string(got) != "roots" {
		t.Errorf("bundle = %q, %v", got, err)
	}
}

func TestDirRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		data string
		mode os.FileMode
		says string
	}{
		{"readable by others", "hush", 0o640, "chmod 600"},
		{"empty", "", 0o600, "is empty"},
		{"long", strings.Repeat("hush", maxState), 0o600, "more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, path := openDir(t)
			if err := os.WriteFile(filepath.Join(path, dirState), []byte(tt.data), tt.mode); err != nil {
				t.Fatal(err)
			}
			_, err := d.Load(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "hush") {
				t.Errorf("error = %v, want one that says %q", err, tt.says)
			}
			if err := d.Save(t.Context(), []byte("new"), ""); err == nil {
				t.Error("it is overwritten")
			}
		})
	}
}

// TestDirRace: of many who save at once, one is first, and all others are told.
func TestDirRace(t *testing.T) {
	d, path := openDir(t)
	for round := range 5 {
		kept, err := d.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		errs := make([]error, 8)
		var g errgroup.Group
		for i := range errs {
			g.Go(func() error {
				other := &Dir{path} // as another process has it
				errs[i] = other.Save(t.Context(), []byte(strconv.Itoa(round*10+i)), kept.Version)
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		winner := slices.Index(errs, nil)
		for i, err := range errs {
			if i != winner && !errors.Is(err, ErrConflict) {
				t.Errorf("save %d: %v, want ErrConflict", i, err)
			}
		}
		kept, err = d.Load(t.Context())
		if err != nil || string(kept.Data) != strconv.Itoa(round*10+winner) {
			t.Errorf("kept %q, %v; want that of %d", kept.Data, err, winner)
		}
	}
}

func TestDirWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := openDir(t)
		ctx, cancel := context.WithCancel(t.Context())
		changes := 0
		done := make(chan error, 1)
		go func() { done <- d.Watch(ctx, func() { changes++ }) }()
		time.Sleep(2 * dirPoll)
		synctest.Wait()
		if changes != 0 {
			t.Errorf("%d changes of nothing", changes)
		}
		if err := d.Save(ctx, []byte("one"), ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * dirPoll)
		synctest.Wait()
		if changes != 1 {
			t.Errorf("%d changes after one save", changes)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestDirAuthority: what one process has made the next one has.
func TestDirAuthority(t *testing.T) {
	d, path := openDir(t)
	first := open(t, d, nil)
	again, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	second := open(t, again, nil)
	if string(first.Bundle()) != string(second.Bundle()) {
		t.Error("the CA does not outlast its process")
	}
	if _, _, err := handshake(t, second, first.Bundle(), issue(t, first, time.Hour)); err != nil {
		t.Error(err)
	}
}
