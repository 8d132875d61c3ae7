package store

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chandler-proxy/chandler/internal/module"
)

// A handle is an open, locked, verified module file: all leases of one module
// in this process share it.
type handle struct {
	digest module.Digest
	path   string
	file   *os.File
	size   int64

	leases int           // guarded by Store.mu
	ready  chan struct{} // closed when the fields above and err are set
	err    error
}

// An identity changes whenever a file is written, replaced or touched.
type identity struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

func identify(f *os.File) (identity, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return identity{}, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return identity{uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim}, nil
}

// isAt says whether path leads to the file that id describes.
func (id identity) isAt(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil && uint64(st.Dev) == id.dev && st.Ino == id.ino
}

// Lease gives the right to use the module with digest d. It hashes the file if
// it was not verified by this process yet; concurrent callers wait for that
// together. The error wraps ErrNotFound if there is none, or none that is whole.
func (s *Store) Lease(d module.Digest) (*Lease, error) {
	s.mu.Lock()
	h := s.handles[d]
	if h == nil {
		h = &handle{digest: d, path: s.path(d), leases: 1, ready: make(chan struct{})}
		s.handles[d] = h
		s.mu.Unlock()
		s.acquire(h)
	} else {
		h.leases++
		s.mu.Unlock()
		<-h.ready
	}
	if h.err != nil {
		return nil, h.err
	}
	return &Lease{Path: h.path, Digest: d, Size: h.size, release: func() { s.release(h) }, sync: h.file.Sync}, nil
}

// acquire sets h's file, or its error; then it is h no one finds any more.
func (s *Store) acquire(h *handle) {
	defer close(h.ready)
	if h.err = s.openVerified(h); h.err == nil {
		return
	}
	h.err = fmt.Errorf("lease module %s: %w", h.digest, h.err)
	s.mu.Lock()
	delete(s.handles, h.digest)
	s.mu.Unlock()
}

// openVerified opens h's file, makes sure that it is what its name says, and
// marks it used.
func (s *Store) openVerified(h *handle) error {
	f, id, err := openLocked(h.path)
	if err != nil {
		return err
	}
	if !s.isKnown(h.digest, id) {
		if err := s.check(f, id, h); err != nil {
			f.Close()
			return err
		}
	}
	h.file, h.size = f, id.size
	s.setKnown(h.digest, touch(f, id))
	return nil
}

func (s *Store) isKnown(d module.Digest, id identity) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, ok := s.known[d]
	return ok && known == id
}

func (s *Store) setKnown(d module.Digest, id identity) {
	s.mu.Lock()
	s.known[d] = id
	s.mu.Unlock()
}

// openLocked opens the file that is at path and takes a shared lock on it.
func openLocked(path string) (*os.File, identity, error) {
	for {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, identity{}, ErrNotFound
		}
		if err != nil {
			return nil, identity{}, err
		}
		if err = flock(f, unix.LOCK_SH); err == nil {
			var id identity
			// It may have been collected between opening and locking.
			if id, err = identify(f); err == nil && id.isAt(path) {
				return f, id, nil
			}
		}
		f.Close()
		if err != nil {
			return nil, identity{}, err
		}
	}
}

// check hashes h's file and removes it if it is damaged.
func (s *Store) check(f *os.File, id identity, h *handle) error {
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	got := module.Digest(sum.Sum(nil))
	if got == h.digest {
		return nil
	}
	err := s.locked(func() error {
		if !id.isAt(h.path) {
			return nil // replaced by a good one meanwhile
		}
		return os.Remove(h.path)
	})
	return errors.Join(fmt.Errorf("%w: damaged file removed: %w", ErrNotFound, &module.DigestError{Want: h.digest, Got: got}), err)
}

// touch notes on disk that f, which id describes, is in use now. It returns
// f's identity after that.
func touch(f *os.File, id identity) identity {
	now := time.Now()
	if now.Sub(time.Unix(id.mtime.Unix())).Abs() < touchEvery {
		return id
	}
	// Only the owner may; to others, last use is when the owner last used it.
	if os.Chtimes(f.Name(), now, now) == nil {
		id, _ = identify(f) // of an open file: a zero one would only mean hashing again
	}
	return id
}

// release ends one lease on h, and h with the last.
func (s *Store) release(h *handle) {
	s.mu.Lock()
	h.leases--
	last := h.leases == 0
	if last {
		delete(s.handles, h.digest)
	}
	s.mu.Unlock()
	if !last {
		return
	}
	if id, err := identify(h.file); err == nil {
		// If the file changed under the lease, the next lease hashes it.
		known := s.isKnown(h.digest, id)
		if id = touch(h.file, id); known {
			s.setKnown(h.digest, id)
		}
	}
	h.file.Close()
}
