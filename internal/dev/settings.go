package dev

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unicode/utf8"

	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	netwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	"sigs.k8s.io/yaml"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// settings are what the plugin is to be told now.
func (c Config) settings() (settings, error) {
	if c.ConfigFile == "" {
		return plainSettings(c.name(), []byte(c.Configuration))
	}
	text, err := os.ReadFile(c.ConfigFile)
	if err != nil {
		return settings{}, err
	}
	s, err := parseSettings(c.name(), c.ConfigFile, text)
	if err == nil && s.network && !c.Network {
		err = fmt.Errorf("%s: the plugin is a network filter: run it with --network", c.ConfigFile)
	}
	return s, err
}

// name is what the plugin is called if no resource says.
func (c Config) name() string {
	abs, err := filepath.Abs(c.Dir)
	if err != nil {
		return extensionName
	}
	return filepath.Base(abs)
}

// plainSettings are a configuration and nothing else.
func plainSettings(name string, configuration []byte) (settings, error) {
	p := &wasmv3.PluginConfig{Name: name}
	if !utf8.Valid(configuration) {
		return settings{}, errors.New("configuration is not UTF-8")
	}
	if len(configuration) > 0 {
		p.Configuration = anyOf(wrapperspb.String(string(configuration)))
	}
	return settings{plugin: p}, nil
}

// parseSettings reads a file: the resource that has the plugin's configuration, that
// configuration in YAML or JSON, or anything else, which is the configuration as it is.
func parseSettings(name, file string, text []byte) (settings, error) {
	switch filepath.Ext(file) {
	case ".yaml", ".yml":
	case ".json":
		var any json.RawMessage
		if err := json.Unmarshal(text, &any); err != nil {
			return settings{}, fmt.Errorf("%s: not JSON: %w", file, err)
		}
		return plainSettings(name, text)
	default:
		return plainSettings(name, text)
	}
	asJSON, err := yaml.YAMLToJSON(text)
	if err != nil {
		return settings{}, fmt.Errorf("%s: %w", file, err)
	}
	if !isResource(asJSON) {
		return plainSettings(name, asJSON)
	}
	objects, problems := resource.NewDecoder().Decode(file, text)
	if len(problems) > 0 {
		return settings{}, told(problems)
	}
	return resourceSettings(file, objects)
}

// isResource tells a resource, be it one that lacks its apiVersion, from a configuration.
func isResource(text []byte) bool {
	var head struct {
		Kind       string `json:"kind"`
		APIVersion string `json:"apiVersion"`
	}
	err := json.Unmarshal(text, &head)
	return err == nil && head.Kind != "" &&
		(head.APIVersion != "" || head.Kind == "WasmPlugin" || head.Kind == "TrafficExtension")
}

// resourceSettings are those of the one extension among resources.
func resourceSettings(file string, objects []resource.Object) (settings, error) {
	var found []resource.Object
	for _, o := range objects {
		switch o := o.DeepCopyObject().(type) {
		case *extensionsv1alpha1.WasmPlugin:
			// The module is the author's: where it is pulled from does not matter yet.
			o.Spec.Url, o.Spec.Sha256, o.Spec.ImagePullSecret, o.Spec.VerificationKey = "oci://dev/plugin", "", "", ""
			found = append(found, o)
		case *extensionsv1alpha1.TrafficExtension:
			if w := o.Spec.GetWasm(); w != nil {
				w.Url, w.Sha256, w.ImagePullSecret, w.VerificationKey = "oci://dev/plugin", "", "", ""
			}
			found = append(found, o)
		}
	}
	if len(found) != 1 {
		return settings{}, fmt.Errorf("%s: has %d WasmPlugins, want one", file, len(found))
	}
	world, problems := mesh.New(found, mesh.Options{})
	all := world.AllExtensions()
	if len(all) != 1 {
		return settings{}, fmt.Errorf("%s: %w", file, told(problems))
	}
	if all[0].Config == nil {
		return settings{}, fmt.Errorf("%s: has no Wasm plugin", file)
	}
	p, err := pluginOf(all[0])
	return settings{plugin: p, network: all[0].Network}, err
}

func pluginOf(e *mesh.Extension) (*wasmv3.PluginConfig, error) {
	if e.Network {
		m := new(netwasmv3.Wasm)
		err := e.Config.GetTypedConfig().UnmarshalTo(m)
		return m.GetConfig(), err
	}
	m := new(httpwasmv3.Wasm)
	err := e.Config.GetTypedConfig().UnmarshalTo(m)
	return m.GetConfig(), err
}

// told makes an error of what is wrong with resources.
func told(problems []resource.Problem) error {
	var errs []error
	for _, p := range problems {
		errs = append(errs, errors.New(p.String()))
	}
	return errors.Join(errs...)
}
