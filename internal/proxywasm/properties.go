package proxywasm

import "github.com/chandler-proxy/chandler/internal/abi"

func propertyFunctions() []*hostFunc {
	return []*hostFunc{
		proxy("proxy_get_property", getProperty, param{"path", text}, param{"value", retData}),
		proxy("proxy_set_property", setProperty, param{"path", text}, param{"value", text}),
	}
}

// getProperty is proxy_get_property. A path without segments has an empty value in
// Envoy's code, but of no type that can be serialized.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_get_property
func getProperty(in *Instance, stack []uint64) abi.Status {
	path, ok := in.view(stack, 0)
	if !ok {
		return abi.InvalidMemoryAccess
	}
	if path == "" {
		return abi.SerializationFailure
	}
	value, status := in.effective.appendProperty(in.property[:0], path)
	in.property = value
	if status != abi.OK {
		return status
	}
	return in.give(stack, 2, abi.View(value))
}

// appendProperty looks a property up: first where Envoy's own are, then what the host
// itself knows, then what plugins have set.
func (c *Context) appendProperty(dst []byte, path string) ([]byte, abi.Status) {
	if p := c.properties(); p != nil {
		if value, status := p.AppendProperty(dst, path); status != abi.NotFound {
			return value, status
		}
	}
	if c.root == nil {
		return dst, abi.NotFound
	}
	switch name, rest := abi.CutPath(path); {
	case name == "plugin_name" && rest == "":
		return append(dst, c.root.plugin.cfg.Name...), abi.OK
	case name == "plugin_root_id" && rest == "":
		return append(dst, c.root.plugin.cfg.RootID...), abi.OK
	case name == "plugin_vm_id" && rest == "":
		return append(dst, c.in.vm.cfg.ID...), abi.OK
	}
	return c.appendState(dst, path)
}

func (c *Context) properties() Properties {
	if p := c.stream(); p != nil {
		return p
	}
	if c.root == nil {
		return nil
	}
	return c.root.plugin.cfg.Properties
}

// setProperty is proxy_set_property. Outside of a stream there is nothing to set it on.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_set_property
func setProperty(in *Instance, stack []uint64) abi.Status {
	path, ok := in.read(stack, 0)
	value, ok2 := in.read(stack, 2)
	if !ok || !ok2 {
		return abi.InvalidMemoryAccess
	}
	return in.effective.setProperty(string(path), string(value))
}
