package envoy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// A child is one Envoy process, started here or by an agent before this one.
type child struct {
	pid   int
	start uint64      // when it began, see startTime
	proc  *os.Process // stands for this process even when its number is used again
	cmd   *exec.Cmd   // nil if started by an earlier agent
	admin string      // file in which it writes its admin address

	live     atomic.Bool // it has been live
	answered bool        // it has answered; owned by who supervises it
	err      error       // how it ended, once wait has returned
}

// errEnded is how a process ended that exited with 0, or about which nothing is known.
var errEnded = errors.New("process ended")

// A state says which process was started from a directory, and as what. It lets
// the next agent judge whether that is the Envoy it would start itself.
type state struct {
	PID    int    `json:"pid"`
	Start  uint64 `json:"start"` // in clock ticks since the machine started
	Digest string `json:"digest"`
}

// start starts Envoy in a session of its own, so that neither a Ctrl-C meant for
// the agent nor the agent's death ends it.
func (p *Process) start() (*child, error) {
	if !HasBootstrap(p.cfg.Args) {
		if err := writeFile(filepath.Join(p.cfg.Dir, bootstrapFile), p.cfg.Bootstrap); err != nil {
			return nil, err
		}
	}
	if err := os.Remove(p.admin); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	cmd := exec.Command(p.cfg.Path, p.args...)
	cmd.Stdout, cmd.Stderr = p.cfg.Output, p.cfg.Output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// Who writes for an Envoy that is gone is not waited for.
	cmd.WaitDelay = p.cfg.Grace
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{pid: cmd.Process.Pid, proc: cmd.Process, cmd: cmd, admin: p.admin}
	p.cfg.Log.Info("envoy started", "pid", c.pid, "path", p.cfg.Path)
	if err := p.remember(c); err != nil {
		// It runs all the same; an agent after this one will start it anew.
		p.cfg.Log.Warn("envoy's state not written", "err", err)
	}
	return c, nil
}

func (p *Process) remember(c *child) error {
	var err error
	if c.start, err = startTime(c.pid); err != nil {
		return err
	}
	text, err := json.Marshal(state{PID: c.pid, Start: c.start, Digest: p.digest})
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(p.cfg.Dir, stateFile), text)
}

// writeFile replaces the file at path, whole.
func writeFile(path string, text []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// adopt reports whether c is the very process that the state file tells of, is
// just what would be started now, and serves or is about to. One that does not
// say that it is starting is taken to serve, also if it is not adopted.
func (p *Process) adopt(ctx context.Context, c *child) bool {
	c.live.Store(true)
	a, err := c.client()
	if err != nil {
		return false
	}
	err = a.Ready(ctx)
	var not *NotReadyError
	starting := errors.As(err, &not) && strings.HasSuffix(not.State, "INITIALIZING")
	c.live.Store(!starting)
	c.answered = err == nil || starting
	if !c.answered {
		return false
	}
	var s state
	text, err := os.ReadFile(filepath.Join(p.cfg.Dir, stateFile))
	if err != nil || json.Unmarshal(text, &s) != nil {
		return false
	}
	if s != (state{PID: c.pid, Start: c.start, Digest: p.digest}) {
		return false
	}
	p.cfg.Log.Info("envoy adopted", "pid", c.pid, "admin", a.Addr(), "live", c.live.Load())
	return true
}

// client returns a client for the admin interface of c, once c has told where
// that is.
func (c *child) client() (*Admin, error) {
	addr, err := os.ReadFile(c.admin)
	if err != nil || len(addr) == 0 {
		return nil, ErrNotRunning
	}
	return NewAdmin(strings.TrimSpace(string(addr))), nil
}

// wait returns when c is gone; c.err then says how it ended. It is called once.
func (c *child) wait() {
	if c.cmd != nil {
		if c.err = c.cmd.Wait(); c.err == nil {
			c.err = errEnded
		}
		return
	}
	c.err = errEnded
	if err := waitHandle(c.proc); err != nil && !errors.Is(err, os.ErrProcessDone) {
		c.err = fmt.Errorf("wait for process: %w", err)
	}
}

// waitHandle waits for the end of a process that is another's child, whose exit
// status cannot be had. Its handle becomes readable.
func waitHandle(proc *os.Process) error {
	var poll error
	err := proc.WithHandle(func(handle uintptr) {
		fds := []unix.PollFd{{Fd: int32(handle), Events: unix.POLLIN}}
		poll = unix.EINTR
		for errors.Is(poll, unix.EINTR) {
			_, poll = unix.Poll(fds, -1)
		}
	})
	return errors.Join(err, poll)
}

// running finds the processes of this user that were told to write their admin
// address to the file admin. That name is in nobody else's command line, and
// unlike a note on disk it cannot be missing after a crash.
func running(admin string) []*child {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	var found []*child
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() || !commands(pid, admin) {
			continue
		}
		proc, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		// Looked at again now that the handle keeps the process from being mistaken.
		start, err := startTime(pid)
		if err != nil || !commands(pid, admin) || proc.WithHandle(func(uintptr) {}) != nil {
			proc.Release()
			continue
		}
		found = append(found, &child{pid: pid, start: start, proc: proc, admin: admin})
	}
	return found
}

// commands reports whether process pid is this user's and has the pair of
// arguments --admin-address-path admin.
func commands(pid int, admin string) bool {
	dir := fmt.Sprintf("/proc/%d", pid)
	var owner unix.Stat_t
	if err := unix.Stat(dir, &owner); err != nil || int(owner.Uid) != os.Geteuid() {
		return false
	}
	line, err := os.ReadFile(dir + "/cmdline")
	if err != nil {
		return false
	}
	args := strings.Split(string(line), "\x00")
	i := slices.Index(args, "--admin-address-path")
	return i >= 0 && i+1 < len(args) && args[i+1] == admin
}

// startTime is when process pid began, in clock ticks since the machine started:
// with the number it names a process for good. See proc_pid_stat(5).
func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStartTime(stat)
}

// parseStartTime takes field 22. The second is the command in brackets, which
// may hold blanks and brackets itself.
func parseStartTime(stat []byte) (uint64, error) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const startTimeField = 22 - 3 // counted from the third
	if len(fields) <= startTimeField {
		return 0, fmt.Errorf("read process state: %d fields", len(fields))
	}
	return strconv.ParseUint(string(fields[startTimeField]), 10, 64)
}
