package inject

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// options are those of tests, with their defaults.
func options(t testing.TB, text string) Options {
	t.Helper()
	o, err := ReadOptions([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if o, err = o.WithDefaults(); err != nil {
		t.Fatal(err)
	}
	return o
}

const image = `{"image": "registry.test/chandler:v1"}`

// TestGolden adds sidecars to testdata/*.in.yaml. A first line "# options:" has the
// options. What comes out has its problems as comments before it.
func TestGolden(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join("testdata", "*.in.yaml"))
	if err != nil || len(paths) == 0 {
		t.Fatal(err, "no files")
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".in.yaml"), func(t *testing.T) {
			in, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			o := options(t, image)
			if first, _, _ := strings.Cut(string(in), "\n"); strings.HasPrefix(first, "# options: ") {
				o = options(t, strings.TrimPrefix(first, "# options: "))
			}
			out, problems, err := Stream(in, o)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			for _, p := range problems {
				got.WriteString("# " + p.String() + "\n")
			}
			got.Write(out)
			golden(t, strings.Replace(path, ".in.", ".out.", 1), got.Bytes())

			again, _, err := Stream(out, o)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(out), string(again)); diff != "" {
				t.Errorf("again (-once +twice):\n%s", diff)
			}
		})
	}
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// TestUntouched: what gets no sidecar stays as it is, byte for byte.
func TestUntouched(t *testing.T) {
	in, err := os.ReadFile(filepath.Join("testdata", "untouched.in.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(in), "", "\n", "---", "---\n---\n", "a: 1\r\n---\r\nb: 2\r\n", "# only\n", "[1, 2]", "--- a\n--- b"} {
		out, _, err := Stream([]byte(text), options(t, image))
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if diff := cmp.Diff(text, string(out)); diff != "" {
			t.Errorf("%q (-in +out):\n%s", text, diff)
		}
	}
}

func TestStreamErrors(t *testing.T) {
	for name, tt := range map[string]struct{ in, want string }{
		"no YAML": {"a: 1\n---\n# comment\n---\na: [", "inject document 2: yaml: "},
		"refused": {`
apiVersion: apps/v1
kind: Deployment
metadata: {name: app, namespace: shop}
spec:
  template:
    metadata: {annotations: {sidecar.istio.io/proxyCPU: lots, sidecar.istio.io/interceptionMode: TPROXY}}
    spec: {containers: [{name: a, image: a}]}
`, "inject document 1: Deployment shop/app: spec.template.metadata.annotations[sidecar.istio.io/interceptionMode]: " +
			`"TPROXY" is neither REDIRECT nor NONE; leave it out to have connections redirected; ` +
			"Deployment shop/app: spec.template.metadata.annotations[sidecar.istio.io/proxyCPU]: " +
			`"lots" is not an amount of cpu; write one such as 100m`},
		"wrong type": {"apiVersion: v1\nkind: Pod\nmetadata: {name: app}\nspec: {containers: 1}\n",
			"inject document 1: read Pod app: json: cannot unmarshal number"},
	} {
		t.Run(name, func(t *testing.T) {
			out, _, err := Stream([]byte(tt.in), options(t, image))
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("error %v, want %s", err, tt.want)
			}
			if out != nil {
				t.Errorf("with the error comes %s", out)
			}
			if name == "refused" {
				if _, ok := errors.AsType[*Refusal](err); !ok {
					t.Errorf("%v is no refusal", err)
				}
			}
		})
	}
}

// FuzzStream: nothing panics; what comes out once is not changed again.
func FuzzStream(f *testing.F) {
	paths, err := filepath.Glob(filepath.Join("testdata", "*.in.yaml"))
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	o := options(f, image)
	f.Fuzz(func(t *testing.T, text []byte) {
		out, _, err := Stream(text, o)
		if err != nil {
			return
		}
		again, _, err := Stream(out, o)
		if err != nil {
			t.Fatalf("%s\n%v", out, err)
		}
		if !bytes.Equal(out, again) {
			t.Fatalf("once:\n%s\ntwice:\n%s", out, again)
		}
	})
}
