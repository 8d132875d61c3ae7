package status

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/resource"
)

var update = flag.Bool("update", false, "write golden files")

const (
	reference = "oci://registry.example/hello:v1"
	digest    = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

func pluginKey(name string) resource.Key {
	return resource.Key{Group: "extensions.istio.io", Kind: "WasmPlugin", Namespace: "default", Name: name}
}

// fact is of an extension that n of m proxies run; the rest is under way.
func fact(name string, n, m int) Fact {
	f := Fact{Key: pluginKey(name), Generation: 1, Reference: reference, Digest: digest, Want: "v1"}
	for i := range m {
		p := Proxy{ID: proxyID(fmt.Sprint("httpbin-", i))}
		if i < n {
			p.State, p.Version = Running, "v1"
		}
		f.Proxies = append(f.Proxies, p)
	}
	return f
}

func proxyID(name string) string {
	return "sidecar~10.0.0.1~" + name + ".default~default.svc.cluster.local"
}

func (f Fact) with(change func(*Fact)) Fact {
	change(&f)
	return f
}

// refusedBy has the first of f's proxies refuse for those reasons.
func (f Fact) refusedBy(reasons ...string) Fact {
	for i, reason := range reasons {
		f.Proxies[i].State, f.Proxies[i].Version, f.Proxies[i].Reason = Refused, f.Want, reason
	}
	return f
}

// TestConditions compares what Facts come to with testdata/conditions.golden.
func TestConditions(t *testing.T) {
	invalid := []resource.Problem{{File: "x", Kind: "WasmPlugin", Name: "x", Field: "spec.url", Message: "scheme \"ftp\" is not supported", Mend: "use oci, http, https or file"}}
	failed := func(kind fetch.Kind, text string) error {
		return fmt.Errorf("resolve: %w", &fetch.Error{Kind: kind, Err: errors.New(text)})
	}
	unresolved := func(err error) func(*Fact) {
		return func(f *Fact) { f.Digest, f.ResolveError = "", err }
	}
	other := func(kind string, problems ...resource.Problem) Fact {
		return Fact{Key: resource.Key{Group: "networking.istio.io", Kind: kind, Namespace: "default", Name: "x"}, Generation: 3, Problems: problems}
	}
	var b strings.Builder
	for _, tt := range []struct {
		name string
		fact Fact
	}{
		{"all proxies run it", fact("x", 3, 3)},
		{"the only proxy runs it", fact("x", 1, 1)},
		{"under way", fact("x", 1, 3)},
		{"no proxy is selected", fact("x", 0, 0)},
		{"one refuses", fact("x", 3, 3).refusedBy("no such image")},
		{"many refuse for one reason", fact("x", 8, 9).refusedBy("no such image", "no such image", "no such image", "no such image", "no such image")},
		{"refused for many reasons", fact("x", 6, 6).refusedBy("a", "b", "b", "c", "d", "")},
		{"an older version is refused, the newest under way", fact("x", 1, 2).with(func(f *Fact) { f.Proxies[1] = Proxy{ID: "b", State: Refused, Version: "v0", Reason: "old"} })},
		{"an older version runs", fact("x", 2, 2).with(func(f *Fact) { f.Proxies[1].Version = "v0" })},
		{"invalid, and nothing runs", fact("x", 0, 0).with(func(f *Fact) { f.Problems, f.Want, f.Digest = invalid, "", "" })},
		{"invalid, and what was valid runs", fact("x", 2, 2).with(func(f *Fact) { f.Problems, f.Want, f.Digest = invalid, "", "" })},
		{"a problem with what runs", fact("x", 2, 2).with(func(f *Fact) { f.Problems = invalid })},
		{"several problems, one repeated", fact("x", 2, 2).with(func(f *Fact) {
			f.Problems = append(invalid, resource.Problem{Message: "one"}, resource.Problem{Message: "one"}, resource.Problem{Message: "two"}, resource.Problem{Message: "three"}, resource.Problem{Message: "four"})
		})},
		{"nothing made of it yet", fact("x", 0, 2).with(func(f *Fact) { f.Want = "" })},
		{"being resolved", fact("x", 0, 2).with(func(f *Fact) { f.Digest = "" })},
		{"resolved by proxies only", fact("x", 1, 2).with(func(f *Fact) { f.Digest = "" })},
		{"image not there", fact("x", 0, 2).with(unresolved(failed(fetch.NotFound, "server answers 404 Not Found")))},
		{"credentials refused", fact("x", 1, 2).with(unresolved(failed(fetch.Denied, "server answers 401 Unauthorized")))},
		{"checksum", fact("x", 0, 1).with(unresolved(failed(fetch.Checksum, "digest is a, want b")))},
		{"too large", fact("x", 0, 1).with(unresolved(failed(fetch.TooLarge, "larger than the limit")))},
		{"no module", fact("x", 0, 1).with(unresolved(failed(fetch.NotModule, "not a Wasm module")))},
		{"blocked", fact("x", 0, 1).with(unresolved(failed(fetch.Blocked, "address 169.254.169.254 is blocked for module downloads")))},
		{"network down", fact("x", 0, 1).with(unresolved(errors.New("dial https://user:hush@registry.example/v2/?token=hush: refused")))},
		{"not resolved anew, and what was resolved runs", fact("x", 1, 1).with(func(f *Fact) { f.ResolveError = errors.New("timeout") })},
		{"module not fetched, and refused for that", fact("x", 0, 1).with(unresolved(errors.New("timeout"))).refusedBy("fetch: timeout")},
		{"fetched, and its configuration refused", fact("x", 0, 1).with(func(f *Fact) { f.Digest, f.Fetched = "", true }).refusedBy("bad configuration")},
		{"a file where each proxy runs", fact("x", 1, 1).with(func(f *Fact) { f.Digest, f.Reference = "", "file:///plugins/hello.wasm" })},
		{"without a module", fact("x", 1, 1).with(func(f *Fact) { f.Digest, f.Reference = "", "" })},
		{"a node's id of another form", fact("x", 0, 1).with(func(f *Fact) { f.Proxies[0].ID = "gateway\n7" }).refusedBy("multi\nline\treason\x00")},
		{"other kind, valid", other("EnvoyFilter")},
		{"other kind, invalid", other("VirtualService", invalid...)},
	} {
		fmt.Fprintf(&b, "# %s\n", tt.name)
		for _, c := range Conditions(tt.fact, nil, time.Unix(0, 0)) {
			fmt.Fprintf(&b, "%s=%s %s generation=%d\n  %s\n", c.Type, c.Status, c.Reason, c.ObservedGeneration, c.Message)
		}
		if v := judge(tt.fact); v.extension {
			fmt.Fprintf(&b, "proxies %s digest %s\n", v.proxies, v.digest)
		}
		b.WriteString("\n")
	}
	const golden = "testdata/conditions.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("conditions (-want +got):\n%s", diff)
	}
	if strings.Contains(b.String(), "hush") {
		t.Error("a message tells credentials")
	}
}

// TestConditionsAreStable: the order in which proxies are known makes no difference.
func TestConditionsAreStable(t *testing.T) {
	f := fact("x", 6, 6).refusedBy("a", "b", "b", "c", "d", "e")
	want := Conditions(f, nil, time.Unix(0, 0))
	for i := range f.Proxies {
		j := (i * 5) % len(f.Proxies)
		f.Proxies[i], f.Proxies[j] = f.Proxies[j], f.Proxies[i]
		if diff := cmp.Diff(want, Conditions(f, nil, time.Unix(0, 0))); diff != "" {
			t.Fatalf("conditions (-want +got):\n%s", diff)
		}
	}
}

func TestTransitionTime(t *testing.T) {
	first, later := time.Unix(1000, 500).UTC(), time.Unix(2000, 0).UTC()
	conditions := Conditions(fact("x", 1, 3), nil, first)
	conditions = Conditions(fact("x", 2, 3), conditions, later)
	for _, c := range conditions {
		if want := metav1.NewTime(time.Unix(1000, 0)); !c.LastTransitionTime.Equal(&want) {
			t.Errorf("%s has changed at %s although its status is the same", c.Type, c.LastTransitionTime)
		}
	}
	conditions = Conditions(fact("x", 3, 3), conditions, later)
	for _, c := range conditions {
		want := metav1.NewTime(time.Unix(1000, 0))
		if c.Type == Programmed {
			want = metav1.NewTime(later)
		}
		if !c.LastTransitionTime.Equal(&want) {
			t.Errorf("%s changed at %s, want %s", c.Type, c.LastTransitionTime, want)
		}
	}
}

func TestMessagesAreBounded(t *testing.T) {
	long := strings.Repeat("äöü ", 5000)
	f := fact(strings.Repeat("n", 253), 0, 50).with(func(f *Fact) {
		f.Reference, f.ResolveError = long, errors.New(long)
		f.Problems = []resource.Problem{{Message: long}, {Message: long + "2", Field: long}, {Message: long + "3"}}
	})
	for i := range f.Proxies {
		f.Proxies[i] = Proxy{ID: fmt.Sprint(i, long), State: Refused, Version: f.Want, Reason: fmt.Sprint(i, long)}
	}
	for _, c := range Conditions(f, nil, time.Unix(0, 0)) {
		if len(c.Message) > mostMessage || !utf8.ValidString(c.Message) {
			t.Errorf("message of %s has %d bytes", c.Type, len(c.Message))
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain text":                             "plain text",
		"  two\r\n lines\t ":                     "two lines",
		"get https://u:hush@h/p?t=hush: refused": "get https://[redacted]@h/p?[redacted] refused",
		`Get "https://h/p?t=hush": EOF`:          `Get "https://h/p?[redacted]": EOF`,
		"oci://nginx@sha256:00 is not there":     "oci://nginx@sha256:00 is not there",
		"https://hush@sha256:80/x":               "https://[redacted]@sha256:80/x",
		"mail a@b.example":                       "mail a@b.example",
		"is it? yes":                             "is it? yes",
		"bad \xff byte":                          "bad \uFFFD byte",
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzMessage(f *testing.F) {
	f.Add("https://user:hush@host/path?token=hush and more")
	f.Add("oci://image@sha256:0123 http://a@b@c?d?e")
	f.Add(strings.Repeat("\xe4\xb8", 700))
	f.Fuzz(func(t *testing.T, text string) {
		got := message(text)
		if len(got) > mostMessage || !utf8.ValidString(got) || strings.ContainsAny(got, "\n\r\x00") {
			t.Errorf("message(%q) = %q", text, got)
		}
		hush := message("https://u" + strings.Join(strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(`/@"'?`, r) || r <= ' ' }), "") + ":HUSH@host/")
		if strings.Contains(hush, "HUSH") {
			t.Errorf("%q tells the password", hush)
		}
	})
}
