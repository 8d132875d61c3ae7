package proxywasm

import "github.com/chandler-proxy/chandler/internal/abi"

func foreignFunctions() []*hostFunc {
	return []*hostFunc{
		proxy("proxy_call_foreign_function", callForeignFunction, param{"name", text}, param{"arguments", blob}, param{"results", retData}),
	}
}

// callForeignFunction is proxy_call_foreign_function. Either address of the results
// may be 0: then the guest does not want them.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_call_foreign_function
func callForeignFunction(in *Instance, stack []uint64) abi.Status {
	name, ok := in.view(stack, 0)
	arguments, ok2 := in.read(stack, 2)
	if !ok || !ok2 {
		return abi.InvalidMemoryAccess
	}
	f := in.vm.cfg.Foreign[name]
	if f == nil {
		return abi.NotFound
	}
	results, status := f(in.effective, arguments)
	if status != abi.OK {
		results = nil
	}
	var addr uint32
	if u32(stack, 4) != 0 {
		dst, a, ok := in.allocate(len(results))
		if !ok {
			return abi.InvalidMemoryAccess
		}
		copy(dst, results)
		addr = a
		if !in.mem.WriteUint32Le(u32(stack, 4), addr) {
			return abi.InvalidMemoryAccess
		}
	}
	if u32(stack, 5) != 0 && !in.mem.WriteUint32Le(u32(stack, 5), uint32(len(results))) {
		return abi.InvalidMemoryAccess
	}
	return status
}

// OnForeignFunction is proxy_on_foreign_function, of ABI 0.2.0 and later, in the
// plugin's root context.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_on_foreign_function
func (in *Instance) OnForeignFunction(p *Plugin, function uint32, arguments []byte) {
	in.lock()
	defer in.unlock()
	if r := in.roots[p]; r != nil {
		in.foreign = arguments
		in.call(&r.Context, onForeignFunction, r.id, function, uint32(len(arguments)))
		in.foreign = nil
	}
}
