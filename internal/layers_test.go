package internal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const root = "github.com/chandler-proxy/chandler/"

// layers places every family of packages below internal. Imports point down
// only; a family, such as source with source/dir and source/kube, is one place.
var layers = map[string]int{
	"module": 0, "nearest": 0, "part": 0, "resource": 0,

	"abi": 1, "ecds": 1, "envoypatch": 1, "envoytypes": 1, "mesh": 1, "translate": 1,

	"envoy": 2, "fetch": 2, "identity": 2, "probe": 2, "proxywasm": 2, "redirect": 2, "source": 2, "store": 2, "verify": 2,

	"artifact": 3, "demo": 3, "engine": 3, "inject": 3, "modcache": 3, "preflight": 3, "relay": 3, "spec": 3, "status": 3, "xds": 3,

	"agent": 4, "cli": 4, "control": 4, "dev": 4, "run": 4,
}

// A goPackage is what go list tells of one package.
type goPackage struct {
	ImportPath string
	Name       string
	Dir        string
	GoFiles    []string
	Imports    []string // directly, without those of tests
	Deps       []string // all
}

// packages lists the packages of this module.
func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Name,Dir,GoFiles,Imports,Deps", root+"...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var list []goPackage
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		switch err := d.Decode(&p); {
		case errors.Is(err, io.EOF):
			if len(list) == 0 {
				t.Fatal("go list tells of no package")
			}
			return list
		case err != nil:
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

// family is the first folder of an import path below internal, empty for what
// is not there.
func family(path string) string {
	below, ok := strings.CutPrefix(path, root+"internal/")
	if !ok {
		return ""
	}
	first, _, _ := strings.Cut(below, "/")
	return first
}

func TestLayers(t *testing.T) {
	for _, p := range packages(t) {
		from := family(p.ImportPath)
		if from == "" || p.Name == "main" { // a generator is a tool, not a part
			continue
		}
		layer, ok := layers[from]
		if !ok {
			t.Errorf("%s has no layer: add internal/%s to the table", p.ImportPath, from)
			continue
		}
		for _, path := range p.Imports {
			to := family(path)
			if to == "" || to == from {
				continue
			}
			switch below, ok := layers[to]; {
			case !ok: // told of once, above
			case below > layer:
				t.Errorf("%s (L%d) imports %s (L%d): imports point down only", p.ImportPath, layer, path, below)
			case below == layer && (layer == 2 || layer == 3):
				t.Errorf("%s imports %s: siblings in L%d do not know each other; L4 joins them", p.ImportPath, path, layer)
			}
		}
	}
}

// TestImports has the rules that concern packages from outside.
func TestImports(t *testing.T) {
	pure := func(path string) bool {
		layer, ok := layers[family(root+path)]
		return ok && layer <= 1
	}
	below := func(folders ...string) func(string) bool {
		return func(path string) bool {
			return slices.ContainsFunc(folders, func(f string) bool { return path == f || strings.HasPrefix(path, f+"/") })
		}
	}
	kube := below("internal/source/kube", "internal/inject", "internal/status",
		"internal/control", "internal/run", "internal/cli", "cmd")

	all := packages(t)
	for _, rule := range []rule{
		{"pure packages do no I/O", pure,
			[]string{"net", "net/http", "os", "os/exec", "os/signal", "syscall", "golang.org/x/sys/"}, false,
			"L0 and L1 are values and functions, tested without files, ports or clocks"},
		{"pure packages call nobody", pure,
			[]string{"google.golang.org/grpc", "k8s.io/client-go/"}, false,
			"L0 and L1 do no I/O"},
		{"the Kubernetes client stays where it is used", func(path string) bool { return strings.HasPrefix(path, "internal/") && !kube(path) },
			[]string{"k8s.io/client-go/"}, true,
			"the agent runs beside every Envoy: it must stay small"},
		{"plugins and examples stand for themselves", below("plugins", "examples"),
			[]string{root + "internal/"}, false,
			"they show what a user would write"},
	} {
		t.Run(rule.name, func(t *testing.T) {
			for _, p := range all {
				path := strings.TrimPrefix(p.ImportPath, root)
				if !rule.who(path) || p.Name == "main" && family(p.ImportPath) != "" {
					continue
				}
				imports := p.Imports
				if rule.deep {
					imports = p.Deps
				}
				if i := slices.IndexFunc(imports, rule.forbids); i >= 0 {
					t.Errorf("%s imports %s: %s", path, imports[i], rule.why)
				}
			}
		})
	}
}

// A rule keeps imports out of packages.
type rule struct {
	name  string
	who   func(path string) bool // of a package, by its path below the root
	never []string               // import paths; one that ends in / is all below it
	deep  bool                   // not even through others
	why   string
}

func (r rule) forbids(path string) bool {
	return slices.ContainsFunc(r.never, func(n string) bool {
		return path == n || strings.HasSuffix(n, "/") && strings.HasPrefix(path, n)
	})
}
