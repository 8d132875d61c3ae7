package preflight

import (
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// processorTime is how much the process has spent of it.
func processorTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0 // cannot happen: it is this process, and that is memory of it
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// niceness is how far a trial stands back when others want a processor.
const niceness = 10

// yieldToOthers makes the process one that may be killed: proxies that serve requests
// on the same machine come first. What the system does not let it do it does not need.
func yieldToOthers(memory uint64) {
	if unix.Getpgrp() == os.Getpid() {
		_ = unix.Setpriority(unix.PRIO_PGRP, 0, niceness) // all threads of the process
	}
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
	// Memory that grows is copied; and there is a compiler.
	limit := min(3*memory+1<<30, spareMemory("/")/2)
	_ = unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: limit, Max: limit})
	debug.SetMemoryLimit(int64(limit / 4 * 3))
}

// spareMemory is how many bytes of memory are left to the process, by the system's or
// its control group's account, below root. It is boundless where nothing is known.
func spareMemory(root string) uint64 {
	spare := uint64(math.MaxUint64)
	if kib, ok := entry(filepath.Join(root, "proc/meminfo"), "MemAvailable:"); ok {
		spare = kib << 10
	}
	groups, _ := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	_, group, ok := strings.Cut("\n"+string(groups), "\n0::")
	if !ok {
		return spare
	}
	group, _, _ = strings.Cut(group, "\n")
	for group = filepath.Clean("/" + group); ; group = filepath.Dir(group) {
		dir := filepath.Join(root, "sys/fs/cgroup", group)
		limit, ok := entry(filepath.Join(dir, "memory.max"), "")
		used, ok2 := entry(filepath.Join(dir, "memory.current"), "")
		if ok && ok2 {
			cached, _ := entry(filepath.Join(dir, "memory.stat"), "file ")
			spare = min(spare, limit-min(limit, used-min(used, cached)))
		}
		if group == "/" {
			return spare
		}
	}
}

// entry reads the number after name in a file of the kernel's.
func entry(path, name string) (uint64, bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	_, after, ok := strings.Cut("\n"+string(text), "\n"+name)
	fields := strings.Fields(after)
	if !ok || len(fields) == 0 {
		return 0, false
	}
	n, err := strconv.ParseUint(fields[0], 10, 64)
	return n, err == nil
}
