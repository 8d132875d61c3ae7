package proxywasm

import (
	"strings"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/module"
)

// Missing lists the functions that a module imports and Envoy, as this host, does
// not have for modules of its ABI version; one that declares none is taken for one
// of the newest. It goes by names: the types of functions it does not know.
func Missing(info module.Info) []*ImportError {
	version, ok := abi.VersionOf("proxy_abi_version_" + strings.ReplaceAll(info.ABI, ".", "_"))
	if !ok {
		version = abi.V021
	}
	known := &Host{env: byName(proxyFunctions()), wasi: byName(wasiFunctions())}
	var missing []*ImportError
	for _, i := range info.Imports {
		if i.Kind != module.Func {
			continue
		}
		fail := func(why string) {
			missing = append(missing, &ImportError{Module: i.Module, Name: i.Name, Why: why})
		}
		switch f := known.function(i.Module, i.Name); {
		case f == nil || i.Module == interruptModule:
			fail("no such function in Proxy-Wasm ABI " + version.String())
		case misfits(f):
			fail("Envoy has it with one parameter less than WASI, and refuses modules that want it as WASI has it")
		case version < f.since || version > f.until:
			fail("not in Proxy-Wasm ABI " + version.String() + ", which the module declares")
		}
	}
	return missing
}

// misfits says of two functions of WASI that Envoy has forgotten a parameter, the
// length of the last path. What calls them is refused when it is loaded.
func misfits(f *hostFunc) bool {
	return f.module == "wasi_snapshot_preview1" && (f.name == "path_link" || f.name == "path_symlink")
}
