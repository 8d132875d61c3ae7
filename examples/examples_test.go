package examples

import (
	"errors"
	"io/fs"
	"net"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/chandler-proxy/chandler/internal/demo"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// TestDecode has every example read as users' files are.
func TestDecode(t *testing.T) {
	decoder := resource.NewDecoder()
	for _, file := range manifests(t, "*") {
		text, err := fs.ReadFile(FS, file)
		if err != nil {
			t.Fatal(err)
		}
		objects, problems := decoder.Decode(file, text)
		if len(objects) == 0 {
			t.Errorf("%s has no resources", file)
		}
		for _, p := range problems {
			t.Error(p)
		}
	}
}

// manifests are the resource files of the folders that match.
func manifests(t *testing.T, folders string) []string {
	t.Helper()
	files, err := fs.Glob(FS, folders+"/*.yaml")
	deeper, err2 := fs.Glob(FS, folders+"/*/*.yaml")
	if err := errors.Join(err, err2); err != nil || len(files) == 0 {
		t.Fatalf("Glob = %v, %v", files, err)
	}
	return append(files, deeper...)
}

// objects is all of one example.
func objects(t *testing.T, folder string) []resource.Object {
	t.Helper()
	var all []resource.Object
	for _, file := range manifests(t, folder) {
		text, err := fs.ReadFile(FS, file)
		if err != nil {
			t.Fatal(err)
		}
		some, _ := resource.NewDecoder().Decode(file, text)
		all = append(all, some...)
	}
	return all
}

// TestAddresses holds the examples against where the demo's parts are.
func TestAddresses(t *testing.T) {
	port := func(addr string) string {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		return port
	}
	for file, want := range map[string]string{
		"bookinfo/wasmplugin.yaml": "url: oci://localhost:" + port(demo.RegistryAddr) + "/basic-auth:" + demo.ImageTag + "\n",
		"httpbin/plugin.yaml":      "url: oci://localhost:" + port(demo.RegistryAddr) + "/header-counter:" + demo.ImageTag + "\n",
		"envoyfilter/config.yaml":  "uri: http://localhost:" + port(demo.FilesAddr) + "/basic-auth.wasm\n",
	} {
		if text, err := fs.ReadFile(FS, file); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s has no %q (%v)", file, want, err)
		}
	}
	for _, folder := range []string{"bookinfo", "envoyfilter"} {
		found := false
		for _, o := range objects(t, folder) {
			if slice, ok := o.(*discoveryv1.EndpointSlice); ok {
				found = true
				if got := endpoint(slice); got != demo.ProductpageAddr {
					t.Errorf("%s: productpage is at %s, want %s", folder, got, demo.ProductpageAddr)
				}
			}
		}
		if !found {
			t.Errorf("%s has no EndpointSlice", folder)
		}
	}
	for _, o := range objects(t, "httpbin") {
		if p, ok := o.(*corev1.Pod); ok {
			if got := strconv.Itoa(int(p.Spec.Containers[0].Ports[0].ContainerPort)); got != port(demo.HTTPBinAddr) {
				t.Errorf("httpbin is at port %s, want that of %s", got, demo.HTTPBinAddr)
			}
		}
	}
}

func endpoint(s *discoveryv1.EndpointSlice) string {
	return net.JoinHostPort(s.Endpoints[0].Addresses[0], strconv.Itoa(int(*s.Ports[0].Port)))
}
