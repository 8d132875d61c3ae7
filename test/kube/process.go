package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A process is one of the cluster's programs. Its log is log/NAME.log.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// spawn runs a program in the node until the cluster stops.
func (c *Cluster) spawn(name string, args ...string) error {
	return c.spawnAs(name, nil, name, args...)
}

func (c *Cluster) spawnAs(as string, env []string, name string, args ...string) error {
	log, err := os.OpenFile(c.logFile(as), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own
	cmd := c.node.command(context.Background(), name, args...)
	cmd.Env = append(environment(c.cfg.Programs), env...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", as, err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		cmd.Wait() // how it ended is in its log
		close(p.done)
	}()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.processes[as] = p
	return nil
}

func (c *Cluster) logFile(name string) string { return filepath.Join(c.dir, "log", name+".log") }

func (c *Cluster) all() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.processes))
}

// kill ends a program as a crash would and waits until it is gone.
func (c *Cluster) kill(name string) error {
	c.mu.Lock()
	p, ok := c.processes[name]
	c.mu.Unlock()
	if !ok {
		return fmt.Errorf("kill %s: not running", name)
	}
	// Not nsenter, but what it waits for: it ends when that is gone, ports and all.
	children, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", p.cmd.Process.Pid))
	if err != nil {
		return fmt.Errorf("kill %s: %w", name, err)
	}
	for _, child := range strings.Fields(string(children)) {
		pid, err := strconv.Atoi(child)
		if err != nil {
			return fmt.Errorf("kill %s: %w", name, err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill %s: %w", name, err)
		}
	}
	<-p.done
	return nil
}

// wait calls f until it returns nil, for as long as the program runs that f
// waits for, but no longer than patience.
func (c *Cluster) wait(ctx context.Context, name string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c.mu.Lock()
	p := c.processes[name]
	c.mu.Unlock()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.done:
			return fmt.Errorf("%s ended:\n%s", name, c.tail(name))
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w; its log ends:\n%s", name, err, c.tail(name))
		}
	}
}

// tail is the end of a program's log.
func (c *Cluster) tail(name string) string {
	text, err := os.ReadFile(c.logFile(name))
	if err != nil {
		return err.Error()
	}
	lines := strings.SplitAfter(string(text), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "")
}

// quiet runs cmd and gives what it printed as part of its error.
func quiet(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", line(cmd), err, bytes.TrimSpace(out))
	}
	return nil
}

// line is cmd as one would type it, without how it gets into the cluster.
func line(cmd *exec.Cmd) string {
	args := cmd.Args
	if args[0] == "nsenter" {
		args = args[slices.Index(args, "--")+1:]
	}
	return strings.Join(args, " ")
}
