package proxywasm

import "github.com/chandler-proxy/chandler/internal/abi"

func timeFunctions() []*hostFunc {
	return []*hostFunc{
		proxy("proxy_get_current_time_nanoseconds", getCurrentTime, param{"time", ret64}),
	}
}

// getCurrentTime is proxy_get_current_time_nanoseconds, since 1970.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_get_current_time_nanoseconds
func getCurrentTime(in *Instance, stack []uint64) abi.Status {
	return in.put64(u32(stack, 0), uint64(in.vm.cfg.Now().UnixNano()))
}
