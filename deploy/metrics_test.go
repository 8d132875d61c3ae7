package deploy_test

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"sigs.k8s.io/yaml"
)

// A query is a PromQL expression and where it stands.
type query struct{ at, expr string }

func rules(t *testing.T) []query {
	t.Helper()
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	text, err := os.ReadFile("prometheus/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	var out []query
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if r.Alert == "" || r.For == "" || r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("alert %q lacks something", r.Alert)
			}
			out = append(out, query{"alert " + r.Alert, r.Expr})
		}
	}
	return out
}

func dashboard(t *testing.T) []query {
	t.Helper()
	var file struct {
		Panels []struct {
			ID          int
			Type, Title string
			GridPos     struct{ H, W, X, Y int }
			Targets     []struct{ Expr string }
		}
	}
	text, err := os.ReadFile("grafana/chandler.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	var out []query
	ids := map[int]bool{}
	for i, p := range file.Panels {
		if ids[p.ID] {
			t.Errorf("panel %q has the id of another", p.Title)
		}
		ids[p.ID] = true
		a := p.GridPos
		for _, o := range file.Panels[:i] {
			if b := o.GridPos; a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("panels %q and %q overlap", o.Title, p.Title)
			}
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			out = append(out, query{"panel " + p.Title, strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")})
		}
	}
	return out
}

// TestMetrics: every metric that an alert or a panel asks for is one that the code
// registers.
func TestMetrics(t *testing.T) {
	known := registered(t)
	queries := append(rules(t), dashboard(t)...)
	if len(queries) < 20 {
		t.Fatalf("there are %d queries", len(queries))
	}
	for _, q := range queries {
		names := metrics(q.expr)
		if len(names) == 0 {
			t.Errorf("%s asks for no metric: %s", q.at, q.expr)
		}
		for _, name := range names {
			if !known[name] {
				t.Errorf("%s asks for %s, which nobody registers", q.at, name)
			}
		}
		if strings.Count(q.expr, "(") != strings.Count(q.expr, ")") || strings.Count(q.expr, "[") != strings.Count(q.expr, "]") {
			t.Errorf("%s has brackets that do not match: %s", q.at, q.expr)
		}
	}
}

// metrics are the words of a query that are neither keywords nor labels nor text.
func metrics(expr string) []string {
	expr = regexp.MustCompile(`\{[^}]*\}|\[[^\]]*\]|\b(by|on|without|ignoring) *\([^)]*\)`).ReplaceAllString(expr, " ")
	var out []string
	for _, m := range regexp.MustCompile(`[a-zA-Z_][a-zA-Z0-9_]*( *\()?`).FindAllString(expr, -1) {
		if !strings.HasSuffix(m, "(") && !slices.Contains([]string{"and", "or", "unless", "by", "on"}, m) {
			out = append(out, m)
		}
	}
	return out
}

// registered are the names of the series that the code can have: those of metrics
// that are made anywhere in it, and of the Go and process collectors.
func registered(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		names[f.GetName()] = true
		names["istio_agent_"+f.GetName()] = true // see agent's observe
	}
	err = filepath.WalkDir("../internal", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if options, ok := n.(*ast.CompositeLit); ok {
				addOptions(names, options)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// addOptions adds the metric that a prometheus.CounterOpts and its like describe.
func addOptions(names map[string]bool, options *ast.CompositeLit) {
	of, ok := options.Type.(*ast.SelectorExpr)
	if pkg, isName := ident(of, ok); !isName || pkg != "prometheus" || !strings.HasSuffix(of.Sel.Name, "Opts") {
		return
	}
	for _, e := range options.Elts {
		kv, ok := e.(*ast.KeyValueExpr)
		if !ok {
			continue
		}
		if key, ok := kv.Key.(*ast.Ident); !ok || key.Name != "Name" {
			continue
		}
		name := text(kv.Value)
		names[name] = true
		if strings.HasPrefix(of.Sel.Name, "Histogram") {
			names[name+"_bucket"], names[name+"_sum"], names[name+"_count"] = true, true, true
		}
		if name == "sidecar_injection_" { // the injector's, by result
			for _, result := range []string{"requests", "success", "skip", "failure"} {
				names[name+result+"_total"] = true
			}
		}
	}
}

func ident(s *ast.SelectorExpr, ok bool) (string, bool) {
	if !ok {
		return "", false
	}
	x, ok := s.X.(*ast.Ident)
	if !ok {
		return "", false
	}
	return x.Name, true
}

// text is a string constant, or the constant that a sum begins with.
func text(e ast.Expr) string {
	for {
		switch v := e.(type) {
		case *ast.BinaryExpr:
			e = v.X
		case *ast.BasicLit:
			s, _ := strconv.Unquote(v.Value)
			return s
		default:
			return ""
		}
	}
}

// TestAlerts has promtool parse the alerts and run their tests. It is in Debian's
// package prometheus.
func TestAlerts(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not installed")
	}
	for _, args := range [][]string{{"check", "rules", "rules.yaml"}, {"test", "rules", "rules_test.yaml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = "prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
	for _, q := range dashboard(t) { // as alerts, for promtool to parse
		rule := map[string]any{"groups": []any{map[string]any{"name": "g", "rules": []any{map[string]any{"alert": "A", "expr": q.expr}}}}}
		text, err := yaml.Marshal(rule)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "rules.yaml")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), promtool, "check", "rules", file).CombinedOutput(); err != nil {
			t.Errorf("%s: %s\n%s", q.at, q.expr, out)
		}
	}
}
