package store

import (
	"sync"

	"github.com/chandler-proxy/chandler/internal/module"
)

// A Lease is the right to use a stored module file. The file is not removed,
// by this process or another, until the lease is released.
type Lease struct {
	Path   string        // absolute; the file is read-only, whole and verified
	Digest module.Digest // of the module's bytes
	Size   int64         // bytes

	once    sync.Once
	release func()
	sync    func() error
}

// Sync puts the module onto the disk, which takes a disk's time. A module that is
// fetched is of use before; see the package's guarantees. It may be called until the
// lease is released, and on nil.
func (l *Lease) Sync() error {
	if l == nil || l.sync == nil {
		return nil
	}
	return l.sync()
}

// Release gives the lease back. It may be called more than once, and on nil.
func (l *Lease) Release() {
	if l != nil && l.release != nil {
		l.once.Do(l.release)
	}
}
