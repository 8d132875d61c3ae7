package status

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/client-go/util/jsonpath"
)

func TestColumns(t *testing.T) {
	crd := func(group, kind string) *apiextensionsv1.CustomResourceDefinition {
		return &apiextensionsv1.CustomResourceDefinition{Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: group, Names: apiextensionsv1.CustomResourceDefinitionNames{Kind: kind},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{AdditionalPrinterColumns: []apiextensionsv1.CustomResourceColumnDefinition{{Name: "Age"}}}, {}},
		}}
	}
	other := crd("networking.istio.io", "Gateway")
	Columns(other)
	if diff := cmp.Diff(crd("networking.istio.io", "Gateway"), other); diff != "" {
		t.Errorf("Columns changed another kind (-want +got):\n%s", diff)
	}
	plugin := crd("extensions.istio.io", "WasmPlugin")
	Columns(plugin)
	Columns(plugin) // again

	patch := object{}.status(judge(fact("x", 2, 3).refusedBy("trap")), time.Unix(0, 0))
	body, err := json.Marshal(map[string]any{"status": patch, "metadata": map[string]any{"creationTimestamp": "2020-01-01T00:00:00Z"}})
	if err != nil {
		t.Fatal(err)
	}
	var o any
	if err := json.Unmarshal(body, &o); err != nil {
		t.Fatal(err)
	}
	for _, version := range plugin.Spec.Versions {
		shown := map[string]string{}
		for _, c := range version.AdditionalPrinterColumns {
			path := jsonpath.New(c.Name)
			if err := path.Parse("{" + c.JSONPath + "}"); err != nil {
				t.Errorf("%s: %v", c.JSONPath, err)
				continue
			}
			var b bytes.Buffer
			if err := path.Execute(&b, o); err != nil {
				t.Errorf("%s: %v", c.JSONPath, err)
			}
			name := c.Name
			if c.Priority > 0 {
				name = strings.ToLower(name)
			}
			shown[name] = b.String()
		}
		want := map[string]string{
			"Programmed": "False", "Proxies": "1/3", "Reason": "Refused", "Age": "2020-01-01T00:00:00Z",
			"accepted": "True", "resolved": "True", "digest": "sha256:0123456789ab",
			"message": "1 of 3 proxies run it, 1 under way, 1 refuses it: httpbin-0.default: trap",
		}
		if diff := cmp.Diff(want, shown); diff != "" {
			t.Errorf("columns (-want +got):\n%s", diff)
		}
	}
}
