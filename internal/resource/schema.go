package resource

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
)

//go:embed crds
var crds embed.FS

// A definition is a CRD's schema made ready. Compiling one takes milliseconds
// and up to 6 MB, so each is compiled when its kind is first met.
type definition struct {
	structural *structuralschema.Structural
	openAPI    validation.SchemaValidator
	rules      *cel.Validator
}

// compile makes the definition of the CRD of that name.
func compile(name string) (*definition, error) {
	data, err := crds.ReadFile("crds/" + name + ".json")
	if err != nil {
		return nil, err
	}
	var written apiextensionsv1.JSONSchemaProps
	if err := json.Unmarshal(data, &written); err != nil {
		return nil, fmt.Errorf("read schema %s: %w", name, err)
	}
	var schema apiextensions.JSONSchemaProps
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(&written, &schema, nil); err != nil {
		return nil, fmt.Errorf("convert schema %s: %w", name, err)
	}
	structural, err := structuralschema.NewStructural(&schema)
	if err != nil {
		return nil, fmt.Errorf("compile schema %s: %w", name, err)
	}
	openAPI, _, err := validation.NewSchemaValidator(&schema)
	if err != nil {
		return nil, fmt.Errorf("compile schema %s: %w", name, err)
	}
	return &definition{
		structural: structural,
		openAPI:    openAPI,
		rules:      cel.NewValidator(structural, true, celconfig.PerCallLimit),
	}, nil
}

// prepare does to tree what the API server does when it decodes a custom
// resource: it drops unknown fields, returning their paths, and fills in defaults.
func (d *definition) prepare(tree map[string]any) (unknown []string) {
	unknown = pruning.PruneWithOptions(tree, d.structural, true, structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})
	defaulting.PruneNonNullableNullsWithoutDefaults(tree, d.structural)
	defaulting.Default(tree, d.structural)
	return unknown
}

// validate checks tree as the API server does before it stores a custom resource.
// As there, rules wait until what they read has the right types.
func (d *definition) validate(tree map[string]any) field.ErrorList {
	errs := validation.ValidateCustomResource(nil, tree, d.openAPI)
	errs = append(errs, objectmeta.Validate(nil, tree, d.structural, false)...)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, d.structural, tree)...)
	if d.rules == nil || blocksRules(errs) {
		return errs
	}
	// The cost of rules is bounded by their budget, not by a context.
	broken, _ := d.rules.Validate(context.Background(), nil, d.structural, tree, nil, celconfig.RuntimeCELCostBudget)
	return append(errs, broken...)
}

func blocksRules(errs field.ErrorList) bool {
	for _, err := range errs {
		switch err.Type {
		case field.ErrorTypeNotSupported, field.ErrorTypeRequired, field.ErrorTypeTooLong, field.ErrorTypeTooMany, field.ErrorTypeTypeInvalid:
			return true
		}
	}
	return false
}
