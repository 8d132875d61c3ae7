// Command crdgen writes the schemas that package resource embeds: those of the
// CustomResourceDefinitions of istio.io/api and sigs.k8s.io/gateway-api, at the
// versions that go.mod names.
//
// It takes away what validation does not read: descriptions, which are most of
// the bytes, and the schema of status, which the API server drops from what
// users write. It invents nothing. A kind's served versions must agree, for
// package resource decodes all of them into one Go type.
//
// "go generate ./internal/resource" runs it; its test fails until that is done
// after an update of either module.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
)

func main() {
	dir := flag.String("dir", "crds", "folder to write to")
	flag.Parse()
	if err := run(*dir); err != nil {
		fmt.Fprintln(os.Stderr, "crdgen:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	files, err := generate()
	if err != nil {
		return err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// origins are the files that hold the definitions, by Go module.
func origins() map[string][]string {
	return map[string][]string{
		"istio.io/api": {
			"kubernetes/customresourcedefinitions.gen.yaml",
		},
		"sigs.k8s.io/gateway-api": {
			"config/crd/standard/gateway.networking.k8s.io_gatewayclasses.yaml",
			"config/crd/standard/gateway.networking.k8s.io_gateways.yaml",
			"config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",
		},
	}
}

// wanted are the definitions to take, by their own names.
func wanted() []string {
	return []string{
		"destinationrules.networking.istio.io",
		"envoyfilters.networking.istio.io",
		"gatewayclasses.gateway.networking.k8s.io",
		"gateways.gateway.networking.k8s.io",
		"gateways.networking.istio.io",
		"httproutes.gateway.networking.k8s.io",
		"serviceentries.networking.istio.io",
		"trafficextensions.extensions.istio.io",
		"virtualservices.networking.istio.io",
		"wasmplugins.extensions.istio.io",
	}
}

// generate returns the files to embed, by name.
func generate() (map[string][]byte, error) {
	files := map[string][]byte{}
	for module, paths := range origins() {
		root, err := moduleDir(module)
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			if err := readDefinitions(filepath.Join(root, path), files); err != nil {
				return nil, fmt.Errorf("read %s of %s: %w", path, module, err)
			}
		}
	}
	if len(files) != len(wanted()) {
		return nil, fmt.Errorf("found %d of %d definitions", len(files), len(wanted()))
	}
	return files, nil
}

func moduleDir(module string) (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("find module %s: %w", module, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// readDefinitions adds the schemas of the wanted definitions in the file at path.
func readDefinitions(path string, files map[string][]byte) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	documents := yaml.NewYAMLOrJSONDecoder(f, 4096)
	for {
		var crd apiextensionsv1.CustomResourceDefinition
		err := documents.Decode(&crd)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !slices.Contains(wanted(), crd.Name) {
			continue
		}
		if files[crd.Name+".json"], err = schema(crd); err != nil {
			return fmt.Errorf("definition %s: %w", crd.Name, err)
		}
	}
}

// schema is the one schema of all served versions of crd, as indented JSON.
func schema(crd apiextensionsv1.CustomResourceDefinition) ([]byte, error) {
	var one []byte
	for _, version := range crd.Spec.Versions {
		if !version.Served {
			continue
		}
		s := version.Schema.OpenAPIV3Schema.DeepCopy()
		strip(s)
		preserve := true
		s.Properties["status"] = apiextensionsv1.JSONSchemaProps{Type: "object", XPreserveUnknownFields: &preserve}
		data, err := json.MarshalIndent(s, "", " ")
		if err != nil {
			return nil, err
		}
		if one != nil && !bytes.Equal(one, data) {
			return nil, fmt.Errorf("the schema of version %s is not that of the others", version.Name)
		}
		one = data
	}
	return append(one, '\n'), nil
}

// strip removes descriptions from s and everything below it.
func strip(s *apiextensionsv1.JSONSchemaProps) {
	if s == nil {
		return
	}
	s.Description = ""
	for _, properties := range []map[string]apiextensionsv1.JSONSchemaProps{s.Properties, s.PatternProperties} {
		for name, p := range properties {
			strip(&p)
			properties[name] = p
		}
	}
	if s.Items != nil {
		strip(s.Items.Schema)
	}
	if s.AdditionalProperties != nil {
		strip(s.AdditionalProperties.Schema)
	}
	strip(s.Not)
	for _, alternatives := range [][]apiextensionsv1.JSONSchemaProps{s.AllOf, s.AnyOf, s.OneOf} {
		for i := range alternatives {
			strip(&alternatives[i])
		}
	}
}
