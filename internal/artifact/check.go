package artifact

import (
	"bytes"
	"slices"
	"strings"

	"github.com/chandler-proxy/chandler/internal/module"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// A RefusedError says why Envoy would not load a module, or could not use it.
type RefusedError struct{ Problems []string }

func (e *RefusedError) Error() string {
	return "Envoy would refuse the module: " + strings.Join(e.Problems, "; ")
}

// Check reads a module and says whether Envoy would load it. It goes by what the
// module imports and exports, and compiles nothing. Errors: one that wraps
// [module.ErrNotModule] or is about the module's framing, with which nothing can
// be done, or a *RefusedError beside a valid Info.
func Check(wasm []byte) (module.Info, error) {
	info, err := module.Inspect(bytes.NewReader(wasm))
	if err != nil {
		return info, err
	}
	if p := problems(info); len(p) > 0 {
		return info, &RefusedError{p}
	}
	return info, nil
}

// problems lists what Envoy would miss of a module, and what it would miss at a
// module.
func problems(info module.Info) []string {
	var list []string
	if info.ABI == "" {
		list = append(list, "exports no Proxy-Wasm ABI version, such as proxy_abi_version_0_2_1")
	}
	exports := func(kind module.Kind, names ...string) bool {
		return slices.ContainsFunc(info.Exports, func(e module.Export) bool {
			return e.Kind == kind && slices.Contains(names, e.Name)
		})
	}
	imports := func(kind module.Kind) func(module.Import) bool {
		return func(i module.Import) bool { return i.Kind == kind }
	}
	if !exports(module.Func, "malloc", "proxy_on_memory_allocate") {
		list = append(list, "exports neither malloc nor proxy_on_memory_allocate")
	}
	// Envoy gives a memory or a table to a module that imports one.
	if !exports(module.Memory, "memory") && !slices.ContainsFunc(info.Imports, imports(module.Memory)) {
		list = append(list, "exports no memory")
	}
	for _, i := range info.Imports {
		if i.Kind == module.Global || i.Kind == module.Tag {
			list = append(list, "import "+i.Module+"."+i.Name+": Envoy provides no "+i.Kind.String()+"s")
		}
	}
	for _, e := range proxywasm.Missing(info) {
		list = append(list, e.Error())
	}
	return list
}
