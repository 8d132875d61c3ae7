package envoypatch

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	api "istio.io/api/networking/v1alpha3"
)

// extensions returns list with p applied. The context does not matter, as in
// Istio: a proxy takes the extension configs that its filters name, and one that
// is named but not there would hold a listener back for ever.
func (p *patch) extensions(list []*corev3.TypedExtensionConfig) ([]*corev3.TypedExtensionConfig, error) {
	if p.op == api.EnvoyFilter_Patch_ADD {
		return appended(list, p)
	}
	value := p.value.(*corev3.TypedExtensionConfig)
	return each(list, func(c *corev3.TypedExtensionConfig) (*corev3.TypedExtensionConfig, error) {
		switch {
		case c.GetName() != value.GetName():
			return c, nil
		case p.op == api.EnvoyFilter_Patch_REMOVE:
			return nil, nil
		case p.op == api.EnvoyFilter_Patch_REPLACE:
			return proto.Clone(value).(*corev3.TypedExtensionConfig), nil
		}
		return changed(c, func(c *corev3.TypedExtensionConfig) (bool, error) { return true, mergeNamed(c, value) })
	})
}
