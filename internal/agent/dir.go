package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/chandler-proxy/chandler/internal/envoy"
)

const (
	socketFile = "xds.sock"   // where Envoy finds the agent
	lockFile   = "agent.lock" // locked by the agent that uses the directory; holds its pid
)

// ErrInUse says that another agent uses the data directory.
var ErrInUse = errors.New("in use by another agent")

// A dataDir is a data directory that no other agent uses until it is closed, or
// this process ends in whatever way.
type dataDir struct {
	path string
	lock *os.File
}

// openDir makes the directory if need be, and locks it.
func openDir(path string) (*dataDir, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	if err := claim(lock); err != nil {
		lock.Close()
		return nil, fmt.Errorf("open data directory %s: %w", path, err)
	}
	return &dataDir{path: path, lock: lock}, nil
}

// claim locks the file and writes this process's number into it.
func claim(lock *os.File) error {
	err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		var pid [16]byte
		n, _ := lock.ReadAt(pid[:], 0)
		return fmt.Errorf("%w (pid %s); stop that one, or choose another directory",
			ErrInUse, strings.TrimSpace(string(pid[:n])))
	}
	if err != nil {
		return err
	}
	if err := lock.Truncate(0); err != nil {
		return err
	}
	_, err = lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// close lets another agent have the directory. The lock file stays: to remove it
// would let two agents lock two files of that name.
func (d *dataDir) close() error { return d.lock.Close() }

// listen listens on a Unix socket in d that only this user can reach. It takes
// the place of one that an agent before this one left; as it is bound under
// another name and then renamed, it is at no time open to others.
func (d *dataDir) listen(name string) (net.Listener, error) {
	path := filepath.Join(d.path, name)
	if err := envoy.CheckSocket(path); err != nil {
		return nil, err
	}
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // its name will be another
	if err := errors.Join(os.Chmod(fresh, 0o600), os.Rename(fresh, path)); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}
