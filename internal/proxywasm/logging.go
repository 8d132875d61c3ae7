package proxywasm

import (
	"github.com/chandler-proxy/chandler/internal/abi"
)

func loggingFunctions() []*hostFunc {
	return []*hostFunc{
		proxy("proxy_log", log, param{"level", number}, param{"message", text}).during(allocating),
		proxy("proxy_get_log_level", getLogLevel, param{"level", ret32}).in(abi.V021, abi.V021),
	}
}

// log is proxy_log.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_log
func log(in *Instance, stack []uint64) abi.Status {
	level := abi.LogLevel(u32(stack, 0))
	if !level.Valid() {
		return abi.BadArgument
	}
	message, ok := in.read(stack, 1)
	if !ok {
		return abi.InvalidMemoryAccess
	}
	in.log(level, message)
	return abi.OK
}

// getLogLevel is proxy_get_log_level.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_get_log_level
func getLogLevel(in *Instance, stack []uint64) abi.Status {
	return in.put32(u32(stack, 0), uint32(in.vm.cfg.Log.Level()))
}

// log logs on behalf of the effective context.
func (in *Instance) log(level abi.LogLevel, message []byte) {
	if level < in.vm.cfg.Log.Level() {
		return
	}
	r := Record{Level: level, Message: string(message)}
	if c := in.effective; c != nil && c.root != nil {
		r.RootID, r.VMID = c.root.plugin.cfg.RootID, in.vm.cfg.ID
		if c.http != nil || c.tcp != nil {
			r.Plugin = c.root.plugin.cfg.Name
		}
	}
	in.vm.cfg.Log.Log(r)
}

// A line gathers what a guest writes to stdout or stderr.
type line struct{ text []byte }

// maxLine is how much of an unfinished line is kept before it is logged as it is.
const maxLine = 64 << 10

// write logs what the guest wrote, as one message without its last newline. Envoy logs
// every write so, and cuts lines written in pieces, such as a Go panic, into as many
// messages; here a write that ends within a line waits for the rest of it, until the
// callback returns at the latest.
func (in *Instance) write(fd int, data []byte) {
	l := &in.out[fd-1]
	l.text = append(l.text, data...)
	if n := len(l.text); n > 0 && (l.text[n-1] == '\n' || n > maxLine) {
		in.flushLine(fd)
	}
}

func (in *Instance) flushLine(fd int) {
	l := &in.out[fd-1]
	text := l.text
	if n := len(text); n > 0 && text[n-1] == '\n' {
		text = text[:n-1]
	}
	level := abi.Info
	if fd == 2 {
		level = abi.Error
	}
	in.log(level, text)
	l.text = l.text[:0]
}

// flush logs unfinished lines.
func (in *Instance) flush() {
	for fd := 1; fd <= 2; fd++ {
		if len(in.out[fd-1].text) > 0 {
			in.flushLine(fd)
		}
	}
}
