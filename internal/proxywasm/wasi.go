package proxywasm

import (
	"crypto/rand"
	"encoding/binary"
	"strconv"
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// WASI preview 1 is here as Envoy has it, not as wazero does: with the error numbers
// that plugins meet in production, under both names that it had, and in traces; a call
// costs the same. There are no files but stdout and stderr, which go to the log, and
// no sockets.

// wasi describes a function of WASI, which a guest may call whatever it is doing
// unless it is told otherwise.
func wasi(name string, call func(*Instance, []uint64) abi.Errno, params ...param) *hostFunc {
	return &hostFunc{
		module: "wasi_snapshot_preview1", name: name, since: abi.V010, until: abi.V021, params: params, early: starting,
		call:   func(in *Instance, stack []uint64) uint32 { return uint32(call(in, stack)) },
		status: func(r uint32) string { return "errno=" + strconv.Itoa(int(r)) },
	}
}

func wasiFunctions() []*hostFunc {
	n := func(names ...string) []param { // i32s
		var params []param
		for _, name := range names {
			params = append(params, param{name, number})
		}
		return params
	}
	l := func(name string) param { return param{name, long} }
	cat := func(lists ...[]param) []param {
		var params []param
		for _, list := range lists {
			params = append(params, list...)
		}
		return params
	}
	one := func(p param) []param { return []param{p} }
	return []*hostFunc{
		wasi("fd_write", fdWrite, n("fd", "iovs", "iovs_len", "nwritten")...).during(allocating),
		wasi("fd_pwrite", fdPwrite, cat(n("fd", "iovs", "iovs_len"), one(l("offset")), n("nwritten"))...),
		wasi("fd_read", no(abi.ErrnoNoSys), n("fd", "iovs", "iovs_len", "nread")...).during(running),
		wasi("fd_pread", no(abi.ErrnoNoSys), cat(n("fd", "iovs", "iovs_len"), one(l("offset")), n("nread"))...),
		wasi("fd_seek", no(abi.ErrnoSuccess), cat(n("fd"), one(l("offset")), n("whence", "offset_out"))...).during(running),
		wasi("fd_tell", fdTell, n("fd", "offset_out")...),
		wasi("fd_close", no(abi.ErrnoSuccess), n("fd")...).during(running),
		wasi("fd_fdstat_get", fdFdstatGet, n("fd", "stat")...),
		wasi("fd_fdstat_set_flags", no(abi.ErrnoNoSys), n("fd", "flags")...),
		wasi("fd_fdstat_set_rights", onlyOutput, cat(n("fd"), one(l("base")), one(l("inheriting")))...),
		wasi("fd_filestat_get", no(abi.ErrnoBadF), n("fd", "stat")...),
		wasi("fd_filestat_set_size", onlyOutput, cat(n("fd"), one(l("size")))...),
		wasi("fd_filestat_set_times", onlyOutput, cat(n("fd"), one(l("atim")), one(l("mtim")), n("flags"))...),
		wasi("fd_advise", no(abi.ErrnoSuccess), cat(n("fd"), one(l("offset")), one(l("len")), n("advice"))...),
		wasi("fd_allocate", onlyOutput, cat(n("fd"), one(l("offset")), one(l("len")))...),
		wasi("fd_datasync", onlyOutput, n("fd")...),
		wasi("fd_sync", onlyOutput, n("fd")...),
		wasi("fd_renumber", fdRenumber, n("fd", "to")...),
		wasi("fd_readdir", zeroThen(4, abi.ErrnoNotDir), cat(n("fd", "buf", "buf_len"), one(l("cookie")), n("nread"))...),
		wasi("fd_prestat_get", no(abi.ErrnoBadF), n("fd", "stat")...),
		wasi("fd_prestat_dir_name", no(abi.ErrnoNoSys), n("fd", "path", "path_len")...),
		wasi("path_open", no(abi.ErrnoNoEnt), cat(n("fd", "dirflags", "path", "path_len", "oflags"), one(l("base")), one(l("inheriting")), n("fdflags", "opened"))...).during(running),
		wasi("path_create_directory", no(abi.ErrnoNotSup), n("fd", "path", "path_len")...),
		wasi("path_filestat_get", no(abi.ErrnoNotSup), n("fd", "flags", "path", "path_len", "stat")...),
		wasi("path_filestat_set_times", no(abi.ErrnoNotSup), cat(n("fd", "flags", "path", "path_len"), one(l("atim")), one(l("mtim")), n("fst_flags"))...),
		wasi("path_link", no(abi.ErrnoNotSup), n("old_fd", "old_flags", "old_path", "old_path_len", "new_fd", "new_path")...), // one parameter less than WASI has, as Envoy
		wasi("path_readlink", zeroThen(5, abi.ErrnoNotSup), n("fd", "path", "path_len", "buf", "buf_len", "nread")...),
		wasi("path_remove_directory", no(abi.ErrnoNotSup), n("fd", "path", "path_len")...),
		wasi("path_rename", no(abi.ErrnoNotSup), n("fd", "old_path", "old_path_len", "new_fd", "new_path", "new_path_len")...),
		wasi("path_symlink", no(abi.ErrnoNotSup), n("old_path", "old_path_len", "fd", "new_path")...), // likewise
		wasi("path_unlink_file", no(abi.ErrnoNotSup), n("fd", "path", "path_len")...),
		wasi("sock_accept", zeroThen(2, abi.ErrnoNotSup), n("fd", "flags", "accepted")...),
		wasi("sock_recv", zeroThen(4, abi.ErrnoNotSup), n("fd", "iovs", "iovs_len", "flags", "nread", "oflags")...),
		wasi("sock_send", zeroThen(4, abi.ErrnoNotSup), n("fd", "iovs", "iovs_len", "flags", "nwritten")...),
		wasi("sock_shutdown", no(abi.ErrnoNotSup), n("fd", "how")...),
		wasi("environ_sizes_get", environSizesGet, param{"count", ret32}, param{"size", ret32}),
		wasi("environ_get", environGet, n("environ", "buf")...),
		wasi("args_sizes_get", argsSizesGet, param{"count", ret32}, param{"size", ret32}),
		wasi("args_get", no(abi.ErrnoSuccess), n("argv", "buf")...),
		wasi("clock_time_get", clockTimeGet, param{"clock", number}, l("precision"), param{"time", ret64}).during(allocating),
		wasi("clock_res_get", clockResGet, param{"clock", number}, param{"resolution", ret64}),
		wasi("random_get", randomGet, n("buf", "buf_len")...),
		wasi("sched_yield", no(abi.ErrnoSuccess)),
		wasi("poll_oneoff", pollOneoff, n("in", "out", "nsubscriptions", "nevents")...).during(allocating),
		procExit(),
	}
}

// no is a function that does nothing but answer.
func no(errno abi.Errno) func(*Instance, []uint64) abi.Errno {
	return func(*Instance, []uint64) abi.Errno { return errno }
}

// zeroThen is no for a function that says how much it did not do.
func zeroThen(slot int, errno abi.Errno) func(*Instance, []uint64) abi.Errno {
	return func(in *Instance, stack []uint64) abi.Errno {
		if !in.mem.WriteUint32Le(u32(stack, slot), 0) {
			return abi.ErrnoFault
		}
		return errno
	}
}

// onlyOutput is a function that changes nothing about stdout and stderr, which are all
// there is.
func onlyOutput(_ *Instance, stack []uint64) abi.Errno {
	if !isOutput(u32(stack, 0)) {
		return abi.ErrnoBadF
	}
	return abi.ErrnoSuccess
}

func isOutput(fd uint32) bool { return fd == 1 || fd == 2 }

// fdWrite logs what goes to stdout at level info, what goes to stderr at level error;
// see [Instance.write].
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#wasi_snapshot_preview1fd_write
func fdWrite(in *Instance, stack []uint64) abi.Errno {
	return in.writev(u32(stack, 0), u32(stack, 1), u32(stack, 2), u32(stack, 3))
}

func fdPwrite(in *Instance, stack []uint64) abi.Errno {
	return in.writev(u32(stack, 0), u32(stack, 1), u32(stack, 2), u32(stack, 4))
}

func (in *Instance) writev(fd, iovs, count, nwritten uint32) abi.Errno {
	if !isOutput(fd) {
		return abi.ErrnoBadF
	}
	if uint64(count)*8 > 1<<32-1 {
		return abi.ErrnoFault
	}
	vectors, ok := in.mem.Read(iovs, count*8)
	if !ok {
		return abi.ErrnoFault
	}
	var written uint32
	var data []byte
	for ; len(vectors) > 0; vectors = vectors[8:] {
		part, ok := in.mem.Read(binary.LittleEndian.Uint32(vectors), binary.LittleEndian.Uint32(vectors[4:]))
		if !ok || len(data)+len(part) > maxWrite {
			return abi.ErrnoFault
		}
		if len(vectors) == 8 && data == nil {
			data = part // the usual case: one vector
		} else {
			data = append(data, part...)
		}
		written += uint32(len(part))
	}
	if len(data) > 0 {
		in.write(int(fd), data)
	}
	if !in.mem.WriteUint32Le(nwritten, written) {
		return abi.ErrnoFault
	}
	return abi.ErrnoSuccess
}

// maxWrite bounds one write, whose vectors may all mean the same memory.
const maxWrite = 16 << 20

func fdTell(in *Instance, stack []uint64) abi.Errno {
	if !isOutput(u32(stack, 0)) {
		return abi.ErrnoBadF
	}
	if !in.mem.WriteUint64Le(u32(stack, 1), 0) {
		return abi.ErrnoFault
	}
	return abi.ErrnoSuccess
}

func fdRenumber(_ *Instance, stack []uint64) abi.Errno {
	if !isOutput(u32(stack, 0)) || !isOutput(u32(stack, 1)) {
		return abi.ErrnoBadF
	}
	return abi.ErrnoNotSup
}

// fdFdstatGet says of stdout and stderr that they can be written to.
func fdFdstatGet(in *Instance, stack []uint64) abi.Errno {
	if !isOutput(u32(stack, 0)) {
		return abi.ErrnoBadF
	}
	stat, ok := in.mem.Read(u32(stack, 1), 24)
	if !ok {
		return abi.ErrnoFault
	}
	clear(stat)
	stat[8] = 64 // the right fd_write
	return abi.ErrnoSuccess
}

func environSizesGet(in *Instance, stack []uint64) abi.Errno {
	env := in.vm.cfg.Env
	if !in.mem.WriteUint32Le(u32(stack, 0), uint32(len(env))) ||
		!in.mem.WriteUint32Le(u32(stack, 1), uint32(len(in.vm.cfg.environ()))) {
		return abi.ErrnoFault
	}
	return abi.ErrnoSuccess
}

func environGet(in *Instance, stack []uint64) abi.Errno {
	array, buf := u32(stack, 0), u32(stack, 1)
	at := uint32(0)
	for i, e := range in.vm.cfg.Env {
		if !in.mem.WriteUint32Le(array+uint32(i)*4, buf+at) {
			return abi.ErrnoFault
		}
		at += uint32(len(e)) + 1
	}
	if !in.mem.WriteString(buf, in.vm.cfg.environ()) {
		return abi.ErrnoFault
	}
	return abi.ErrnoSuccess
}

func argsSizesGet(in *Instance, stack []uint64) abi.Errno {
	if !in.mem.WriteUint32Le(u32(stack, 0), 0) || !in.mem.WriteUint32Le(u32(stack, 1), 0) {
		return abi.ErrnoFault
	}
	return abi.ErrnoSuccess
}

func clockTimeGet(in *Instance, stack []uint64) abi.Errno {
	now := in.vm.cfg.Now()
	var t int64
	switch u32(stack, 0) {
	case 0:
		t = now.UnixNano()
	case 1:
		t = int64(now.Sub(in.epoch) + time.Second) // Go takes a clock at 0 for none
	default:
		return abi.ErrnoNotSup
	}
	if !in.mem.WriteUint64Le(u32(stack, 2), uint64(t)) {
		return abi.ErrnoFault
	}
	return abi.ErrnoSuccess
}

func clockResGet(in *Instance, stack []uint64) abi.Errno {
	if u32(stack, 0) > 1 {
		return abi.ErrnoNotSup
	}
	if !in.mem.WriteUint64Le(u32(stack, 1), 1) {
		return abi.ErrnoFault
	}
	return abi.ErrnoSuccess
}

func randomGet(in *Instance, stack []uint64) abi.Errno {
	if u32(stack, 1) > 64<<10 {
		return abi.ErrnoInval
	}
	buf, ok := in.mem.Read(u32(stack, 0), u32(stack, 1))
	if !ok {
		return abi.ErrnoFault
	}
	_, _ = rand.Read(buf) // never fails
	return abi.ErrnoSuccess
}

// pollOneoff reports no events, at once, as Envoy does. Go's runtime sleeps so, and is
// content with any sleep, also none.
func pollOneoff(in *Instance, stack []uint64) abi.Errno {
	if !in.mem.WriteUint32Le(u32(stack, 3), 0) {
		return abi.ErrnoFault
	}
	return abi.ErrnoSuccess
}

// procExit returns, as in Envoy, which a guest takes ill: it traps next. The code is
// kept to say so.
func procExit() *hostFunc {
	f := wasi("proc_exit", func(in *Instance, stack []uint64) abi.Errno {
		in.exit = int64(u32(stack, 0))
		return abi.ErrnoSuccess
	}, param{"code", number}).during(allocating)
	f.void = true
	return f
}
