//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// An imageForm is one way to publish a module. publish returns the url of the
// plugin and further lines of its spec.
type imageForm struct {
	name    string
	publish func(t testing.TB, r *registry, module []byte) (url string, more []string)
}

// artifactForm is a form that is made here.
func artifactForm(name string, artifact func(t testing.TB, module []byte) v1.Image) imageForm {
	return imageForm{name, func(t testing.TB, r *registry, module []byte) (string, []string) {
		r.pushArtifact(t, name+":1", artifact(t, module))
		return "oci://" + r.Addr + "/" + name + ":1", nil
	}}
}

// indexForm is an index of the module's image and of others, by platform.
func indexForm(name string, module v1.Platform, others ...v1.Platform) imageForm {
	return imageForm{name, func(t testing.TB, r *registry, content []byte) (string, []string) {
		var adds []mutate.IndexAddendum
		for _, p := range others {
			other := filesImage(t, file{name: "bin/sh", content: []byte(p.Architecture)})
			adds = append(adds, mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &p}})
		}
		adds = append(adds, mutate.IndexAddendum{Add: pluginImage(t, content), Descriptor: v1.Descriptor{Platform: &module}})
		r.pushArtifact(t, name+":1", mutate.AppendManifests(empty.Index, adds...))
		return "oci://" + r.Addr + "/" + name + ":1", nil
	}}
}

var (
	amd64 = v1.Platform{OS: "linux", Architecture: "amd64"}
	arm64 = v1.Platform{OS: "linux", Architecture: "arm64"}
	wasm  = v1.Platform{OS: "wasip1", Architecture: "wasm"}
)

// imageForms are all that users publish.
func imageForms() []imageForm {
	return []imageForm{
		{"docker", func(t testing.TB, r *registry, module []byte) (string, []string) {
			return r.push(t, "docker:1", module, "docker"), nil
		}},
		{"oci", func(t testing.TB, r *registry, module []byte) (string, []string) {
			return r.push(t, "oci:1", module, "oci"), nil
		}},
		{"skopeo", func(t testing.TB, r *registry, module []byte) (string, []string) {
			r.pushArtifact(t, "original:1", pluginImage(t, module))
			to := r.Addr + "/copied:1"
			run(t, "skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", "--format", "v2s2",
				"docker://"+r.Addr+"/original:1", "docker://"+to)
			return "oci://" + to, nil
		}},
		{"no-scheme", func(t testing.TB, r *registry, module []byte) (string, []string) {
			r.pushArtifact(t, "no-scheme:1", pluginImage(t, module))
			return r.Addr + "/no-scheme:1", nil
		}},
		artifactForm("artifact", func(t testing.TB, module []byte) v1.Image {
			return image(t, types.OCIConfigJSON, layerOf([]byte(`{"type":"envoy_proxy"}`), soloConfig), layerOf(module, soloLayer))
		}),
		artifactForm("artifact-layer-alone", func(t testing.TB, module []byte) v1.Image {
			return image(t, soloConfig, layerOf(module, soloLayer))
		}),
		artifactForm("cncf", func(t testing.TB, module []byte) v1.Image {
			return image(t, cncfConfig, layerOf(module, cncfLayer))
		}),
		artifactForm("module-among-files", func(t testing.TB, module []byte) v1.Image {
			base := layerOf(tarGz(t, file{name: "etc/base", content: []byte("a layer below")}), types.OCILayer)
			last := layerOf(tarGz(t, file{name: "README"}, file{name: "dir/plugin.wasm", content: module}), types.OCILayer)
			return image(t, types.OCIConfigJSON, base, last)
		}),
		indexForm("index", wasm, amd64, arm64),
		indexForm("index-of-one", amd64),
		{"digest", func(t testing.TB, r *registry, module []byte) (string, []string) {
			digest := r.pushArtifact(t, "digest:1", pluginImage(t, module))
			return "oci://" + r.Addr + "/digest@" + digest.String(), nil
		}},
		{"tag-and-digest", func(t testing.TB, r *registry, module []byte) (string, []string) {
			digest := r.pushArtifact(t, "tag-and-digest:1", pluginImage(t, module))
			return "oci://" + r.Addr + "/tag-and-digest:1@" + digest.String(), nil
		}},
		{"sha256", func(t testing.TB, r *registry, module []byte) (string, []string) {
			digest := r.pushArtifact(t, "sha256:1", pluginImage(t, module))
			return "oci://" + r.Addr + "/sha256:1", []string{"sha256: \"" + digest.Hex + "\""}
		}},
	}
}

// Every form of image is fetched once and served, and what follows is refused
// without a trace in the answers.
func TestImages(t *testing.T) {
	r := startRegistry(t)
	m := start(t)
	m.answers(200, "")
	serves := ""
	forms := imageForms()
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			m := m.in(t)
			content := module(t, form.name)
			url, more := form.publish(t, r, content)
			l := m.load()
			m.write("plugin.yaml", plugin("image", url, form.name, more...))
			m.answers(200, form.name)
			m.loads(content)
			m.accepted("image")
			l.more(50)
			l.only(ok(serves), ok(form.name))
			serves = form.name
		})
	}
	for series, want := range map[string]int{
		fetches("success"): len(forms), conversions("success"): len(forms), missed: len(forms), timed: len(forms), entries: len(forms),
		hit: 0, fetches("download_failure"): 0, fetches("manifest_failure"): 0, fetches("checksum_mismatched"): 0, conversions("fetch_failure"): 0,
	} {
		if got := m.metric(m.AgentHTTP, series); got != float64(want) {
			t.Errorf("%s = %v, want %d", series, got, want)
		}
	}
	if got := m.metric(m.Monitoring, rejects); got != 0 {
		t.Errorf("%s = %v", rejects, got)
	}

	for _, wrong := range wrongImages() {
		t.Run(wrong.name, func(t *testing.T) {
			m := m.in(t)
			url, more := wrong.publish(t, r)
			before := m.counts(wrong.result)
			l := m.load()
			m.write("plugin.yaml", plugin("image", url, wrong.name, more...))
			m.refused("image", wrong.reason...)
			l.more(100)
			if wrong.result != "" {
				m.moved(wrong.result, before)
			}
			l.only(ok(serves))
		})
	}
}

// A wrongImage is one that must be refused.
type wrongImage struct {
	name    string
	publish func(t testing.TB, r *registry) (url string, more []string)
	result  string // of the fetch; empty if there is none
	reason  []string
}

func wrongImages() []wrongImage {
	other := strings.Repeat("f", 64)
	return []wrongImage{
		{"no-wasm", func(t testing.TB, r *registry) (string, []string) {
			r.pushArtifact(t, "no-wasm:1", filesImage(t, file{name: "bin/app", content: []byte("ELF")}))
			return "oci://" + r.Addr + "/no-wasm:1", nil
		}, "download_failure", []string{"no plugin.wasm in the archive", "bin/app", "oci://", "/no-wasm:1"}},
		{"no-wasm-layer", func(t testing.TB, r *registry) (string, []string) {
			r.pushArtifact(t, "chart:1", image(t, "application/vnd.cncf.helm.config.v1+json",
				layerOf([]byte("chart"), "application/vnd.cncf.helm.chart.content.v1.tar+gzip")))
			return "oci://" + r.Addr + "/chart:1", nil
		}, "manifest_failure", []string{"no Wasm module", "helm.chart", "plugin.wasm"}},
		{"no-wasm-in-index", func(t testing.TB, r *registry) (string, []string) {
			form := indexForm("platforms", amd64, arm64)
			url, _ := form.publish(t, r, module(t, "platforms"))
			return url, nil
		}, "manifest_failure", []string{"image index has no Wasm module", "linux/amd64", "linux/arm64"}},
		{"wrong-sha256", func(t testing.TB, r *registry) (string, []string) {
			r.pushArtifact(t, "wrong:1", pluginImage(t, module(t, "wrong")))
			return "oci://" + r.Addr + "/wrong:1", []string{"sha256: \"" + other + "\""}
		}, "checksum_mismatched", []string{"want sha256:" + other}},
		{"zero-sha256", func(t testing.TB, r *registry) (string, []string) {
			return "oci://" + r.Addr + "/wrong:1", []string{"sha256: \"" + strings.Repeat("0", 64) + "\""}
		}, "", []string{"sha256: digest", "nothing has that digest"}},
		{"absent-digest", func(t testing.TB, r *registry) (string, []string) {
			return "oci://" + r.Addr + "/wrong@sha256:" + other, nil
		}, "manifest_failure", []string{"no such image", "404"}},
		{"absent-tag", func(t testing.TB, r *registry) (string, []string) {
			return "oci://" + r.Addr + "/wrong:absent", nil
		}, "manifest_failure", []string{"no such image", "404"}},
	}
}

// A tag that moves is followed if it is latest, or the policy is Always, and
// the resource changes; else what was pulled is what is served.
func TestPullPolicy(t *testing.T) {
	r := startRegistry(t)
	m := start(t)
	for _, tt := range []struct {
		name, tag string
		more      []string
		follows   bool
	}{
		{name: "latest", tag: ":latest", follows: true},
		{name: "no-tag", tag: "", follows: true},
		{name: "latest-if-not-present", tag: ":latest", more: []string{"imagePullPolicy: IfNotPresent"}},
		{name: "tag", tag: ":1"},
		{name: "tag-always", tag: ":1", more: []string{"imagePullPolicy: Always"}, follows: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := m.in(t)
			old, moved := module(t, tt.name+" old"), module(t, tt.name+" moved")
			r.pushArtifact(t, tt.name+tt.tag, pluginImage(t, old))
			url := "oci://" + r.Addr + "/" + tt.name + tt.tag
			version := func(n int) string { return fmt.Sprintf("%s-%d", tt.name, n) }

			m.write("plugin.yaml", plugin("image", url, version(1), tt.more...))
			m.answers(200, version(1))
			m.loads(old)

			fetched := m.metric(m.AgentHTTP, fetches("success"))
			r.pushArtifact(t, tt.name+tt.tag, pluginImage(t, moved))
			l := m.load()
			m.write("plugin.yaml", plugin("image", url, version(2), tt.more...))
			m.answers(200, version(2))
			m.accepted("image")
			l.more(50)
			l.only(ok(version(1)), ok(version(2)))
			want, more := old, 0.0
			if tt.follows {
				want, more = moved, 1
			}
			m.loads(want)
			if got := m.metric(m.AgentHTTP, fetches("success")) - fetched; got != more {
				t.Errorf("%v fetches, want %v", got, more)
			}

			// The same again costs the registry nothing, whatever the policy: its
			// image has not changed.
			fetched += more
			m.write("plugin.yaml", plugin("image", url, version(3), tt.more...))
			m.answers(200, version(3))
			m.loads(want)
			if got := m.metric(m.AgentHTTP, fetches("success")) - fetched; got != 0 {
				t.Errorf("%v fetches of an image that has not changed", got)
			}
		})
	}
}
