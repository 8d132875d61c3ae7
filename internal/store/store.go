// Package store keeps Wasm modules on disk, one read-only file a digest, and
// remembers which reference led to which.
//
// It neither fetches nor judges; it refuses bytes that are not what they claim
// to be. Guarantees, for any number of processes of one user that share the
// directory, and across crashes:
//
//   - A file is under its name only when all of it arrived and was hashed while it
//     was written.
//   - A leased file has the content of its digest. Size is compared when the
//     store is opened; everything is hashed before the first lease in a process,
//     and again whenever the file's inode, size or times have changed since. A
//     file that fails is removed, as if it had never been there.
//   - A leased file is not removed by [Store.Collect]. A lease holds a shared
//     flock(2) on it; collecting needs an exclusive one. A dead process holds none.
//   - What a crash left half written is removed by the next Open or Collect; what a
//     machine that lost power had not put on its disk, before the first lease. Files are
//     synced by [Lease.Sync], after they are of use already, so that this is rare.
//   - Of those who ask for a [Turn] at the same thing one has it, and a process that
//     dies gives it back.
//
// Credentials are never stored, only a keyed hash; see [Store.Fingerprint].
// Start at [Open], then [Store.Put] and [Store.Lease].
package store

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chandler-proxy/chandler/internal/module"
)

var (
	// ErrNotFound says that the store has no such module, or had a damaged one.
	ErrNotFound = errors.New("not in the store")
	// ErrFull says that the disk, or the user's share of it, is full.
	ErrFull = errors.New("no space left for modules")
)

// A TooLargeError says that a module exceeds the store's limit.
type TooLargeError struct{ Limit int64 } // bytes

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("module is larger than the limit of %d bytes", e.Limit)
}

// touchEvery bounds how often a file's last use is written down.
const touchEvery = time.Minute

const (
	moduleSuffix = ".wasm"
	ingestPrefix = "ingest-"
	lockName     = "lock"
	saltName     = "salt"
	refsName     = "refs"
)

// A Store is a directory of modules. Its methods may be called concurrently.
type Store struct {
	dir     string
	maxSize int64
	salt    []byte

	dirMu sync.Mutex // with the flock on the lock file: renames and removals

	mu      sync.Mutex
	handles map[module.Digest]*handle  // what this process has leased
	known   map[module.Digest]identity // what it has verified
	records map[string]Record          // by reference key

	buffers sync.Pool // of *buffers
}

// Open makes dir a store, or opens the one that it is, and clears what a crash
// left. No module may exceed maxSize bytes.
func Open(dir string, maxSize int64) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open module store: %w", err)
	}
	s := &Store{
		dir:     dir,
		maxSize: maxSize,
		handles: make(map[module.Digest]*handle),
		known:   make(map[module.Digest]identity),
		records: make(map[string]Record),
	}
	// Envoy may run as another user: it needs to reach modules, nothing else.
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open module store: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, refsName), 0o700); err != nil {
		return nil, fmt.Errorf("open module store: %w", err)
	}
	err = s.locked(func() error {
		return errors.Join(s.loadSalt(), s.removeLeftovers(), s.loadRecords())
	})
	if err != nil {
		return nil, fmt.Errorf("open module store: %w", err)
	}
	return s, nil
}

func (s *Store) path(d module.Digest) string {
	return filepath.Join(s.dir, d.Hex()+moduleSuffix)
}

// locked runs f while no one else, in any process, renames or removes files.
func (s *Store) locked(f func() error) error {
	s.dirMu.Lock()
	defer s.dirMu.Unlock()
	lock, err := os.OpenFile(filepath.Join(s.dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() // gives back the lock
	if err := flock(lock, unix.LOCK_EX); err != nil {
		return err
	}
	return f()
}

// flock is flock(2), started again when a signal interrupts it.
func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return &os.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
	}
}

// loadSalt reads the store's salt and makes it first if need be.
func (s *Store) loadSalt() error {
	path := filepath.Join(s.dir, saltName)
	salt, err := os.ReadFile(path)
	if err == nil && len(salt) >= 32 {
		s.salt = salt
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.salt = make([]byte, 32)
	rand.Read(s.salt) // never fails
	return replaceFile(path, s.salt)
}

// Fingerprint is a keyed hash of a secret, to compare it by later. It is of no
// use outside this store. That of no secret is empty.
func (s *Store) Fingerprint(secret []byte) string {
	if len(secret) == 0 {
		return ""
	}
	mac := hmac.New(sha256.New, s.salt)
	mac.Write(secret)
	return hex.EncodeToString(mac.Sum(nil))
}

// removeLeftovers removes temporary files of writers, and turns of fetchers, that are
// no more.
func (s *Store) removeLeftovers() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ingestPrefix) && !strings.HasPrefix(e.Name(), turnPrefix) {
			continue
		}
		name := filepath.Join(s.dir, e.Name())
		f, err := os.Open(name)
		if err != nil {
			continue // another process cleared it
		}
		if flock(f, unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = os.Remove(name)
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // its writer may have been faster
			return err
		}
	}
	return nil
}

// Put stores what r yields and leases it. Nothing is visible unless all of it
// arrived and, where want is not zero, has that digest; otherwise nothing is
// left on the disk. It need not be on the disk yet, but in the kernel's memory; see
// [Lease.Sync]. Errors of r are passed on; others are a *module.DigestError,
// a *TooLargeError, ErrFull, or the disk's.
func (s *Store) Put(want module.Digest, r io.Reader) (*Lease, error) {
	tmp, err := s.ingest()
	if err != nil {
		return nil, fmt.Errorf("store module: %w", diskError(err))
	}
	defer tmp.Close()
	defer os.Remove(tmp.Name()) // fails harmlessly once renamed

	got, err := s.copy(tmp, r)
	if err != nil {
		return nil, err
	}
	if !want.IsZero() && got != want {
		return nil, &module.DigestError{Want: want, Got: got}
	}
	if err := tmp.Chmod(0o444); err != nil {
		return nil, fmt.Errorf("store module: %w", diskError(err))
	}
	return s.reveal(tmp, got)
}

// ingest makes a temporary file and locks it, so that no one takes it for a
// leftover, or, once it has its name, for unused.
func (s *Store) ingest() (tmp *os.File, err error) {
	err = s.locked(func() error {
		if tmp, err = os.CreateTemp(s.dir, ingestPrefix+"*"); err != nil {
			return err
		}
		return flock(tmp, unix.LOCK_SH)
	})
	return tmp, err
}

func diskError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// reveal gives tmp its name, unless another has it, and leases the file. A file
// that others may have leased is never replaced.
func (s *Store) reveal(tmp *os.File, d module.Digest) (*Lease, error) {
	for range 2 { // the second time if the one that was there is damaged
		if err := s.locked(func() error { return s.rename(tmp, d) }); err != nil {
			return nil, fmt.Errorf("store module: %w", diskError(err))
		}
		lease, err := s.Lease(d)
		if !errors.Is(err, ErrNotFound) {
			return lease, err
		}
	}
	return nil, fmt.Errorf("store module %s: removed while it was written", d)
}

func (s *Store) rename(tmp *os.File, d module.Digest) error {
	if _, err := os.Lstat(s.path(d)); err == nil {
		return nil
	}
	if err := os.Rename(tmp.Name(), s.path(d)); err != nil {
		return err
	}
	id, err := identify(tmp)
	if err != nil {
		return err
	}
	s.setKnown(d, id)
	return nil // the folder is not synced: a name lost in a crash is a module fetched again
}

// Len is how many modules the store holds.
func (s *Store) Len() int {
	names, _ := filepath.Glob(filepath.Join(s.dir, "*"+moduleSuffix)) // a pattern without errors
	return len(names)
}

// Collect removes every module that no process has leased since before, and
// references that lead nowhere. It returns how many modules it removed.
func (s *Store) Collect(before time.Time) (int, error) {
	removed := 0
	err := s.locked(func() error {
		entries, err := os.ReadDir(s.dir)
		if err != nil {
			return err
		}
		errs := []error{s.removeLeftovers()}
		for _, e := range entries {
			if !strings.HasSuffix(e.Name(), moduleSuffix) {
				continue
			}
			gone, err := s.collect(e.Name(), before)
			errs = append(errs, err)
			if gone {
				removed++
			}
		}
		return errors.Join(append(errs, s.forgetLost())...)
	})
	if err != nil {
		return removed, fmt.Errorf("collect modules: %w", err)
	}
	return removed, nil
}

// collect removes one module file, unless it is in use or was lately.
func (s *Store) collect(name string, before time.Time) (gone bool, err error) {
	path := filepath.Join(s.dir, name)
	info, err := os.Lstat(path)
	if err != nil || !info.ModTime().Before(before) {
		return false, err
	}
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	// A lease may have come and gone since.
	if info, err = f.Stat(); err != nil || !info.ModTime().Before(before) {
		return false, err
	}
	return true, os.Remove(path)
}
