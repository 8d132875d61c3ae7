package cli

import (
	"fmt"
	"math"
	"runtime/debug"
	"strconv"

	"github.com/chandler-proxy/chandler/internal/inject/agentpod"
)

// limitMemory has the runtime collect garbage early enough to stay below what
// [memoryTarget] says.
func limitMemory(lookup func(string) (string, bool)) error {
	target, err := memoryTarget(lookup)
	if err == nil && target > 0 {
		debug.SetMemoryLimit(target)
	}
	return err
}

// memoryTarget is nine tenths of the memory, bytes, that the container may have, which
// the variable [agentpod.MemoryVariable] says: the rest is for what the runtime does not
// count, such as compiled modules and the kernel's buffers. It is 0 for no target of ours,
// which GOMEMLIMIT, that the runtime reads itself, goes before.
func memoryTarget(lookup func(string) (string, bool)) (int64, error) {
	text, _ := lookup(agentpod.MemoryVariable)
	if own, _ := lookup("GOMEMLIMIT"); own != "" || text == "" {
		return 0, nil
	}
	limit, err := strconv.ParseInt(text, 10, 64)
	if err != nil || limit <= 0 {
		return 0, misuse{fmt.Errorf("%s: %q is not a number of bytes", agentpod.MemoryVariable, text)}
	}
	return min(limit, math.MaxInt64/9) * 9 / 10, nil
}
