package identity

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A Kept is what a [Keeper] holds, and its version for the next save.
type Kept struct {
	Data    []byte // the CA with its keys; empty if nothing is kept
	Version string // changes with Data
}

// A Keeper keeps one CA for all replicas of a control plane. Its methods are safe
// for concurrent use, also by other processes, and never log nor report the data.
type Keeper interface {
	// Load returns what is kept. That there is nothing is no error.
	Load(ctx context.Context) (Kept, error)
	// Save keeps data if what is kept still has that version, and otherwise
	// returns an error that wraps [ErrConflict]: another replica was faster.
	Save(ctx context.Context, data []byte, version string) error
	// Watch calls changed once it watches, since what is kept may have changed before,
	// and whenever it may have changed after that, until ctx ends; then it returns nil.
	Watch(ctx context.Context, changed func()) error
}

// ErrConflict is that what is kept is not what was loaded any more.
var ErrConflict = errors.New("changed by another")

const (
	dirState  = "ca.json"
	dirLock   = "lock"
	dirBundle = "root-cert.pem"

	// dirPoll is how often a Dir looks whether another process has written.
	dirPoll = 5 * time.Second
)

// A Dir is a folder that keeps a CA where there is no Kubernetes: its state with
// keys in ca.json, which only its owner may read, and the public bundle in
// root-cert.pem, which agents are given. A file at its path is whole, also after
// a crash. It implements [Keeper].
type Dir struct{ path string }

// OpenDir returns the Dir at path, and makes the folder if there is none.
func OpenDir(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("make folder of the CA: %w", err)
	}
	return &Dir{path}, nil
}

// BundlePath is the file that [Dir.WriteBundle] writes.
func (d *Dir) BundlePath() string { return filepath.Join(d.path, dirBundle) }

// Load implements [Keeper]. It refuses a file that others than its owner may
// read or write.
func (d *Dir) Load(context.Context) (Kept, error) {
	kept, err := d.load()
	if err != nil {
		return Kept{}, fmt.Errorf("load CA: %w", err)
	}
	return kept, nil
}

func (d *Dir) load() (Kept, error) {
	path := filepath.Join(d.path, dirState)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Kept{}, nil
	}
	if err != nil {
		return Kept{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Kept{}, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return Kept{}, fmt.Errorf("%s holds keys and others may use it: run chmod 600 %[1]s", path)
	}
	data, err := readBounded(f, maxState)
	if err != nil {
		return Kept{}, fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) == 0 { // a save never leaves that
		return Kept{}, fmt.Errorf("%s is empty: restore it, or remove it for a new CA", path)
	}
	sum := sha256.Sum256(data)
	return Kept{Data: data, Version: hex.EncodeToString(sum[:])}, nil
}

// Save implements [Keeper].
func (d *Dir) Save(_ context.Context, data []byte, version string) error {
	if err := d.save(data, version); err != nil {
		return fmt.Errorf("save CA: %w", err)
	}
	return nil
}

func (d *Dir) save(data []byte, version string) error {
	lock, err := os.OpenFile(filepath.Join(d.path, dirLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() // gives the lock back
	if err := flock(lock); err != nil {
		return err
	}
	kept, err := d.load()
	if err != nil {
		return err
	}
	if kept.Version != version {
		return ErrConflict
	}
	return d.write(dirState, data, 0o600)
}

// flock waits for the lock, which is held only for the time of a write.
func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return &os.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
	}
}

// WriteBundle writes the roots that are trusted to root-cert.pem, for agents; see
// [Authority.Follow].
func (d *Dir) WriteBundle(bundle []byte) error {
	if err := d.write(dirBundle, bundle, 0o644); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}

func (d *Dir) write(name string, data []byte, mode fs.FileMode) error {
	return WriteFile(filepath.Join(d.path, name), data, mode)
}

// WriteFile makes a file with a certificate or key, or replaces it: nobody finds half
// of it, also after a crash, and one that was there before does not pass its mode on.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".write-*") // for its owner alone
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails harmlessly once renamed
	defer tmp.Close()
	if _, err := tmp.Write(data); err != nil {
		return err
	}
	if err := errors.Join(tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes a rename in the folder outlast a crash.
func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Watch implements [Keeper]. It looks every few seconds: roots change in years.
func (d *Dir) Watch(ctx context.Context, changed func()) error {
	var last string
	ticker := time.NewTicker(dirPoll)
	defer ticker.Stop()
	for {
		// An error is the caller's to see, when it loads.
		if kept, err := d.load(); err != nil || kept.Version != last {
			last = kept.Version
			changed()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// readBounded reads all of r, which must not be more than limit bytes.
func readBounded(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("more than %d bytes", limit)
	}
	return data, nil
}
