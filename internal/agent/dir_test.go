package agent

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestOpenDirRefusesSecond(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new")
	first, err := openDir(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = openDir(path)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("error = %v, want one with the directory and who uses it", err)
	}
	if err := first.close(); err != nil {
		t.Fatal(err)
	}
	second, err := openDir(path)
	if err != nil {
		t.Fatal(err)
	}
	second.close()
}

func TestListenTakesThePlaceOfAStaleSocket(t *testing.T) {
	d := &dataDir{path: t.TempDir()}
	path := filepath.Join(d.path, socketFile)
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	l, err := d.listen(socketFile)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v; want mode 0600", info, err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestListenRefusesLongPath(t *testing.T) {
	d := &dataDir{path: "/" + strings.Repeat("x", 100)}
	if _, err := d.listen(socketFile); err == nil || !strings.Contains(err.Error(), "shorter data directory") {
		t.Errorf("error = %v, want one that says what to do", err)
	}
}
