package proxywasm

import (
	"context"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/tetratelabs/wazero/api"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// A kind says how a parameter of a host function is passed, and traced.
type kind uint8

const (
	number  kind = iota // i32
	long                // i64
	text                // address and size, of text
	blob                // address and size, of data whose size alone is traced
	pairs               // address and size, of a serialized map
	retData             // two addresses: where to store address and size of a value that the host allocates
	ret32               // the address of a 32-bit integer to be returned
	ret64               // the address of a 64-bit integer to be returned
)

// slots is how many stack slots the parameter takes.
func (k kind) slots() int {
	switch k {
	case text, blob, pairs, retData:
		return 2
	}
	return 1
}

type param struct {
	name string
	kind kind
}

// A phase is what a guest is doing when it calls a host function.
type phase uint8

const (
	running    phase = iota
	starting         // _initialize, _start or a start function
	allocating       // the host wants memory
)

// A hostFunc is a function that guests import.
type hostFunc struct {
	module       string // for traces
	name         string
	since, until abi.Version
	params       []param
	void         bool  // returns nothing, else one i32
	budget       bool  // is the interrupt: returns one i64
	early        phase // the last phase in which it may be called: running, or also starting, or also allocating
	call         func(in *Instance, stack []uint64) uint32
	status       func(uint32) string // for traces
}

// proxy describes a function of module env, in all versions.
func proxy(name string, call func(*Instance, []uint64) abi.Status, params ...param) *hostFunc {
	return &hostFunc{
		module: "env", name: name, since: abi.V010, until: abi.V021, params: params,
		call:   func(in *Instance, stack []uint64) uint32 { return uint32(call(in, stack)) },
		status: func(r uint32) string { return abi.Status(r).String() },
	}
}

// in limits the function to some versions.
func (f *hostFunc) in(since, until abi.Version) *hostFunc {
	f.since, f.until = since, until
	return f
}

// during lets the function be called in phases up to p.
func (f *hostFunc) during(p phase) *hostFunc {
	f.early = p
	return f
}

func byName(functions []*hostFunc) map[string]*hostFunc {
	m := make(map[string]*hostFunc, len(functions))
	for _, f := range functions {
		m[f.name] = f
	}
	return m
}

func (f *hostFunc) types() []api.ValueType {
	types := []api.ValueType{}
	for _, p := range f.params {
		for range p.kind.slots() {
			if p.kind == long {
				types = append(types, api.ValueTypeI64)
			} else {
				types = append(types, api.ValueTypeI32)
			}
		}
	}
	return types
}

func (f *hostFunc) results() []api.ValueType {
	switch {
	case f.void:
		return []api.ValueType{}
	case f.budget:
		return []api.ValueType{api.ValueTypeI64}
	}
	return []api.ValueType{api.ValueTypeI32}
}

// entry is what the guest calls.
func (f *hostFunc) entry() api.GoModuleFunc {
	if f.budget {
		return func(ctx context.Context, _ api.Module, stack []uint64) {
			instanceOf(ctx).interrupt.check()
			stack[0] = quantum
		}
	}
	call, void := f.call, f.void
	return func(ctx context.Context, mod api.Module, stack []uint64) {
		in := instanceOf(ctx)
		if in.phase == running && in.trace == nil && !void {
			stack[0] = uint64(call(in, stack))
			return
		}
		if in.mem == nil { // the module's start function runs before there is an instance
			in.mem = mod.Memory()
		}
		r := f.enter(in, stack)
		if !void {
			stack[0] = uint64(r)
		}
	}
}

// enter is entry with all that is rarely needed. Like Envoy it kills a guest that
// calls what it may not call while it starts or allocates.
func (f *hostFunc) enter(in *Instance, stack []uint64) uint32 {
	if in.phase != running && !f.allowed(in.phase) {
		panic(fmt.Errorf("restricted_callback: %s.%s cannot be called while the module is %s", f.module, f.name, in.phase))
	}
	if in.trace == nil {
		return f.call(in, stack)
	}
	args, c := append([]uint64(nil), stack...), in.effective
	in.trace(c, "==> "+f.traceArgs(in, args))
	r := f.call(in, stack)
	in.trace(c, "<== "+f.traceResults(in, args, r))
	return r
}

// allowed reports whether the function can be called in the phase. What a guest may do
// while it allocates it may also do while it starts.
func (f *hostFunc) allowed(p phase) bool { return f.early >= p }

// String is the phase in words.
func (p phase) String() string {
	switch p {
	case starting:
		return "starting"
	case allocating:
		return "allocating memory for the host"
	}
	return "running"
}

// traceArgs is the call as text: env.proxy_log(level=2,message="hello").
func (f *hostFunc) traceArgs(in *Instance, args []uint64) string {
	var out []string
	for _, p := range f.params {
		slots := args[:p.kind.slots()]
		args = args[p.kind.slots():]
		switch p.kind {
		case number:
			out = append(out, p.name+"="+strconv.FormatUint(uint64(uint32(slots[0])), 10))
		case long:
			out = append(out, p.name+"="+strconv.FormatInt(int64(slots[0]), 10))
		case text, blob, pairs:
			out = append(out, p.name+"="+in.traceData(p.kind, uint32(slots[0]), uint32(slots[1])))
		}
	}
	return f.module + "." + f.name + "(" + strings.Join(out, ",") + ")"
}

// traceResults is what the call returned as text: (value="bar",OK).
func (f *hostFunc) traceResults(in *Instance, args []uint64, r uint32) string {
	var out []string
	for _, p := range f.params {
		slots := args[:p.kind.slots()]
		args = args[p.kind.slots():]
		if r != 0 {
			continue
		}
		switch p.kind {
		case ret32:
			if v, ok := in.mem.ReadUint32Le(uint32(slots[0])); ok {
				out = append(out, p.name+"="+strconv.FormatUint(uint64(v), 10))
			}
		case ret64:
			if v, ok := in.mem.ReadUint64Le(uint32(slots[0])); ok {
				out = append(out, p.name+"="+strconv.FormatUint(v, 10))
			}
		case retData:
			addr, ok := in.mem.ReadUint32Le(uint32(slots[0]))
			size, ok2 := in.mem.ReadUint32Le(uint32(slots[1]))
			if ok && ok2 {
				out = append(out, p.name+"="+in.traceData(text, addr, size))
			}
		}
	}
	if !f.void {
		out = append(out, f.status(r))
	}
	return "(" + strings.Join(out, ",") + ")"
}

const traceLimit = 256 // bytes of a value in a trace

func (in *Instance) traceData(k kind, addr, size uint32) string {
	data, ok := in.mem.Read(addr, size)
	if !ok {
		return fmt.Sprintf("invalid[%d:%d]", addr, size)
	}
	switch k {
	case blob:
		return strconv.Itoa(len(data)) + "B"
	case pairs:
		if decoded, ok := abi.DecodePairs(data); ok {
			var out []string
			for _, p := range decoded {
				out = append(out, p.Key+": "+p.Value)
			}
			return fmt.Sprintf("%q", out)
		}
	}
	if len(data) > traceLimit {
		return fmt.Sprintf("%q…%dB", data[:traceLimit], len(data))
	}
	return fmt.Sprintf("%q", data)
}

// u32 is the i'th slot as an i32.
func u32(stack []uint64, i int) uint32 { return uint32(stack[i]) }

// read returns guest memory, to be copied or used before the guest goes on.
func (in *Instance) read(stack []uint64, i int) ([]byte, bool) {
	return in.mem.Read(uint32(stack[i]), uint32(stack[i+1]))
}

// view is read as a string that shares guest memory: for lookups, never to be kept.
func (in *Instance) view(stack []uint64, i int) (string, bool) {
	data, ok := in.read(stack, i)
	return abi.View(data), ok
}

// name is view in lower case. It is valid until name is called again.
func (in *Instance) name(stack []uint64, i int) (string, bool) {
	data, ok := in.read(stack, i)
	if !ok {
		return "", false
	}
	for _, c := range data {
		if 'A' <= c && c <= 'Z' {
			in.lower = abi.AppendLower(in.lower[:0], data)
			return abi.View(in.lower), true
		}
	}
	return abi.View(data), true
}

// put32 stores a value for the guest.
func (in *Instance) put32(addr, v uint32) abi.Status {
	if !in.mem.WriteUint32Le(addr, v) {
		return abi.InvalidMemoryAccess
	}
	return abi.OK
}

// put64 stores a value for the guest.
func (in *Instance) put64(addr uint32, v uint64) abi.Status {
	if !in.mem.WriteUint64Le(addr, v) {
		return abi.InvalidMemoryAccess
	}
	return abi.OK
}

// give copies the value into memory that the guest allocates, and stores its address
// and size at the two addresses in slots i and i+1. An empty value is at address 0,
// and allocates nothing.
func (in *Instance) give(stack []uint64, i int, value string) abi.Status {
	dst, addr, ok := in.allocate(len(value))
	if !ok {
		return abi.InvalidMemoryAccess
	}
	copy(dst, value)
	return in.giveAt(stack, i, addr, uint32(len(value)))
}

func (in *Instance) giveAt(stack []uint64, i int, addr, size uint32) abi.Status {
	if !in.mem.WriteUint32Le(u32(stack, i), addr) || !in.mem.WriteUint32Le(u32(stack, i+1), size) {
		return abi.InvalidMemoryAccess
	}
	return abi.OK
}

// allocate has the guest allocate size bytes and returns them. It returns false if the
// guest has none to give, and kills a guest that traps.
func (in *Instance) allocate(size int) (dst []byte, addr uint32, ok bool) {
	if size == 0 {
		return nil, 0, true
	}
	if uint64(size) > 1<<32-1 {
		return nil, 0, false
	}
	was := in.phase
	in.phase = allocating
	in.mallocStack[0] = uint64(size)
	err := in.malloc.CallWithStack((*guest)(in), in.mallocStack[:])
	in.phase = was
	if err != nil {
		panic(fmt.Errorf("allocate %d bytes: %w", size, err))
	}
	addr = uint32(in.mallocStack[0])
	if addr == 0 {
		return nil, 0, false
	}
	dst, ok = in.mem.Read(addr, uint32(size))
	return dst, addr, ok
}

// givePairs is give for a header map, serialized straight into guest memory.
func (in *Instance) givePairs(stack []uint64, i int, h Headers) abi.Status {
	if h == nil || h.Len() == 0 {
		return in.giveAt(stack, i, 0, 0)
	}
	count, size := 0, 4
	h.Each(func(name, value string) bool {
		count++
		size += 8 + len(name) + 1 + len(value) + 1
		return true
	})
	dst, addr, ok := in.allocate(size)
	if !ok {
		return abi.InvalidMemoryAccess
	}
	binary.LittleEndian.PutUint32(dst, uint32(count))
	lengths, data := dst[4:], dst[4+8*count:]
	h.Each(func(name, value string) bool {
		binary.LittleEndian.PutUint32(lengths, uint32(len(name)))
		binary.LittleEndian.PutUint32(lengths[4:], uint32(len(value)))
		n := copy(data, name)
		data[n] = 0
		data = data[n+1:]
		n = copy(data, value)
		data[n] = 0
		lengths, data = lengths[8:], data[n+1:]
		return true
	})
	return in.giveAt(stack, i, addr, uint32(size))
}

// pairs decodes a serialized map in guest memory. As in Envoy a malformed one is empty.
func (in *Instance) pairs(stack []uint64, i int) ([]abi.Pair, bool) {
	data, ok := in.read(stack, i)
	if !ok {
		return nil, false
	}
	decoded, _ := abi.DecodePairs(data)
	for j := range decoded {
		decoded[j].Key = strings.ToLower(decoded[j].Key)
	}
	return decoded, true
}

// proxyFunctions are all that guests import from env.
func proxyFunctions() []*hostFunc {
	all := []*hostFunc{emscriptenNotify()}
	for _, group := range [][]*hostFunc{
		loggingFunctions(), timeFunctions(), propertyFunctions(), headerFunctions(), bufferFunctions(),
		localResponseFunctions(), streamFunctions(), sharedDataFunctions(), queueFunctions(), httpCallFunctions(),
		grpcFunctions(), metricFunctions(), tickFunctions(), contextFunctions(), foreignFunctions(),
	} {
		all = append(all, group...)
	}
	return all
}

// emscriptenNotify is emscripten_notify_memory_growth, which modules built with
// Emscripten import from env.
func emscriptenNotify() *hostFunc {
	f := proxy("emscripten_notify_memory_growth", func(*Instance, []uint64) abi.Status { return abi.OK },
		param{"memory", number}).during(allocating)
	f.void = true
	return f
}
