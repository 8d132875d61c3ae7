package preflight

import (
	"fmt"

	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// FromPlugin returns the trial of a plugin as Envoy's configuration has it. Its Path is
// that of a local module, empty otherwise; it has no Digest. lookup finds the
// variables of the proxy's environment that the plugin is to see. What Envoy refuses
// before it looks at the module is an error.
func FromPlugin(c *wasmv3.PluginConfig, lookup func(name string) (string, bool)) (Trial, error) {
	vm := c.GetVmConfig()
	t := Trial{
		Path:   vm.GetCode().GetLocal().GetFilename(),
		Name:   c.GetName(),
		RootID: c.GetRootId(),
		VMID:   vm.GetVmId(),
	}
	var err error
	if t.Configuration, err = Configuration(c.GetConfiguration()); err != nil {
		return t, fmt.Errorf("read configuration of plugin %s: %w", t.Name, err)
	}
	if t.VMConfiguration, err = Configuration(vm.GetConfiguration()); err != nil {
		return t, fmt.Errorf("read VM configuration of plugin %s: %w", t.Name, err)
	}
	if t.Env, err = environment(vm.GetEnvironmentVariables(), lookup); err != nil {
		return t, fmt.Errorf("read environment of plugin %s: %w", t.Name, err)
	}
	return t, nil
}

// Configuration is what a guest sees of a configuration: the value of a StringValue or
// BytesValue, of anything else its encoding. That goes for a Struct too: Envoy 1.40
// hands over its encoding, although its documentation says JSON.
func Configuration(a *anypb.Any) ([]byte, error) {
	s, b := new(wrapperspb.StringValue), new(wrapperspb.BytesValue)
	switch {
	case a.MessageIs(s):
		err := a.UnmarshalTo(s)
		return []byte(s.GetValue()), err
	case a.MessageIs(b):
		err := a.UnmarshalTo(b)
		return b.GetValue(), err
	}
	return a.GetValue(), nil
}

// environment is the variables that are given and those that the host has. Envoy
// refuses a name that is given twice.
func environment(e *wasmv3.EnvironmentVariables, lookup func(string) (string, bool)) (map[string]string, error) {
	env := map[string]string{}
	for name, value := range e.GetKeyValues() {
		env[name] = value
	}
	seen := map[string]bool{}
	for _, name := range e.GetHostEnvKeys() {
		if _, given := e.GetKeyValues()[name]; given || seen[name] {
			return nil, fmt.Errorf("variable %s is given twice", name)
		}
		seen[name] = true
		if value, ok := lookup(name); ok {
			env[name] = value
		}
	}
	return env, nil
}
