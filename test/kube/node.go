package kube

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// prefix begins the names of clusters' folders and control groups.
const prefix = "chandler-kube-"

// A node is a machine as far as processes are concerned: namespaces whose first
// process, pause, keeps them while its standard input is open.
type node struct {
	first *exec.Cmd
	hold  io.WriteCloser
	net   *os.File // its network namespace
	lock  *os.File // of its folder: who holds it lives
}

// startNode runs node.sh, which sets the node up over dir.
func startNode(ctx context.Context, dir, programs string) (_ *node, err error) {
	lock, err := os.Create(filepath.Join(dir, "unlocked"))
	if err != nil {
		return nil, err
	}
	n := &node{lock: lock}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start node: %w", err), n.stop())
		}
	}()
	// It has its name only when it is locked: another's sweep does not take it.
	err = errors.Join(unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB), os.Rename(lock.Name(), filepath.Join(dir, "lock")))
	if err != nil {
		return nil, err
	}
	if err := eachCgroup(filepath.Base(dir), func(path string) error { return os.MkdirAll(path, 0o755) }); err != nil {
		return nil, err
	}
	script, err := files.ReadFile("node.sh")
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("sh", "-c", string(script), "node.sh", dir, programs, nodeIP)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:    true, // a terminal's Ctrl-C is for the test, which then ends it
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	cmd.Env = environment("")
	if n.hold, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	n.first = cmd
	defer context.AfterFunc(ctx, func() { cmd.Process.Kill() })()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		return nil, errors.Join(err, n.stop(), errors.New(stderr.String()))
	}
	n.net, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	return n, err
}

// stop ends every process of the node. It may be called again.
func (n *node) stop() error {
	if n.first != nil {
		n.first.Process.Kill()
		n.first.Wait() // killed is how it ends; by then all others have
		n.first = nil
	}
	if n.net != nil {
		n.net.Close()
		n.net = nil
	}
	if n.lock == nil {
		return nil
	}
	err := n.lock.Close()
	n.lock = nil
	return err
}

// command is a program that runs as one of the node's processes.
func (n *node) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	pid := strconv.Itoa(n.first.Process.Pid)
	cmd := exec.CommandContext(ctx, "nsenter",
		slices.Concat([]string{"--target", pid, "--mount", "--uts", "--ipc", "--net", "--pid", "--", name}, args)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // of nsenter and what it forks
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// guest is a program of this machine with the node's network.
func (n *node) guest(ctx context.Context, name string, args ...string) *exec.Cmd {
	path := fmt.Sprintf("/proc/%d/ns/net", n.first.Process.Pid)
	cmd := exec.CommandContext(ctx, "nsenter", slices.Concat([]string{"--net=" + path, "--", name}, args)...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

func (n *node) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = n.inside(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

func (n *node) listen(ctx context.Context, network, addr string) (ln net.Listener, err error) {
	err = n.inside(func() (err error) {
		ln, err = new(net.ListenConfig).Listen(ctx, network, addr)
		return err
	})
	return ln, err
}

// inside calls f on a thread in the node's network. A socket belongs to the
// network in which it was made, and stays there.
func (n *node) inside(f func() error) error {
	if n == nil || n.net == nil {
		return net.ErrClosed
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		result <- func() error {
			home, err := os.Open("/proc/thread-self/ns/net")
			if err != nil {
				return err
			}
			defer home.Close()
			if err := unix.Setns(int(n.net.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter network: %w", err)
			}
			err = f()
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread() // else the thread ends with this goroutine
			}
			return err
		}()
	}()
	return <-result
}

// environment is this process's, with the programs and those of administrators
// in PATH.
func environment(programs string) []string {
	path := os.Getenv("PATH") + ":/usr/local/sbin:/usr/sbin:/sbin"
	if programs != "" {
		path = programs + ":" + path
	}
	return append(os.Environ(), "PATH="+path)
}

// sweep removes what clusters left whose tests were killed. Those that live hold
// their folder's lock.
func sweep() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*")) // the pattern is good
	for _, dir := range dirs {
		lock, err := os.Open(filepath.Join(dir, "lock"))
		if err != nil {
			continue // being made or removed
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			removeCgroups(filepath.Base(dir)) // best effort: the next cluster tries again
			os.RemoveAll(dir)
		}
		lock.Close()
	}
}

// removeCgroups removes the control groups of that name from every hierarchy.
func removeCgroups(name string) error { return eachCgroup(name, removeCgroup) }

// eachCgroup calls do with the path of that name at the top of every hierarchy of
// control groups that is mounted: one, or version 1's dozen.
func eachCgroup(name string, do func(path string) error) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && strings.HasPrefix(f[2], "cgroup") {
			err = errors.Join(err, do(filepath.Join(f[1], name)))
		}
	}
	return err
}

// removeCgroup removes a control group and those below it. The kernel may still
// be busy with processes that have just ended.
func removeCgroup(top string) error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		var groups []string
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				groups = append(groups, path)
			}
			return nil // what cannot be read is being removed
		})
		slices.Reverse(groups) // those below first
		for _, group := range groups {
			err = errors.Join(err, os.Remove(group))
		}
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}
