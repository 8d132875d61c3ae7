package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/chandler-proxy/chandler/internal/spec"
)

// events are those of three suites: one with a test that passes, one that fails and one
// that is measured; one without tests, and one that all pass.
func events() []spec.Event {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var list []spec.Event
	add := func(a spec.Action, suite, test, text string, elapsed time.Duration) {
		list = append(list, spec.Event{Action: a, Suite: suite, Test: test, Text: text, Elapsed: elapsed, Time: at})
	}
	add(spec.Start, "a.yaml", "", "", 0)
	add(spec.Run, "a.yaml", "good", "", 0)
	add(spec.Pass, "a.yaml", "good", "", 12*time.Millisecond)
	add(spec.Run, "a.yaml", "bad", "", 0)
	add(spec.Output, "a.yaml", "bad", "a.yaml:5: want \"<a>\"\n    have \"b\"", 0)
	add(spec.Output, "a.yaml", "bad", "a.yaml:6: more", 0)
	add(spec.Trace, "a.yaml", "bad", "calls:\n--> proxy_on_tick(context=1)", 0)
	add(spec.Fail, "a.yaml", "bad", "", 1500*time.Millisecond)
	add(spec.Run, "a.yaml", "measured", "", 0)
	add(spec.Bench, "a.yaml", "measured", "Benchmarkmeasured\t1\t5 ns/op", 0)
	add(spec.Pass, "a.yaml", "measured", "", 0)
	add(spec.Fail, "a.yaml", "", "", 1600*time.Millisecond)
	add(spec.Start, "b.yaml", "", "", 0)
	add(spec.Pass, "b.yaml", "", "", 0)
	add(spec.Start, "c.yaml", "", "", 0)
	add(spec.Run, "c.yaml", "one", "", 0)
	add(spec.Pass, "c.yaml", "one", "", time.Millisecond)
	add(spec.Pass, "c.yaml", "", "", 2*time.Millisecond)
	return list
}

func TestText(t *testing.T) {
	for _, tt := range []struct {
		name    string
		verbose bool
		want    string
	}{
		{"short", false, `--- FAIL: bad (1.50s)
    a.yaml:5: want "<a>"
        have "b"
    a.yaml:6: more
Benchmarkmeasured	1	5 ns/op
FAIL
FAIL	a.yaml	1.600s
ok  	b.yaml	0.000s [no tests to run]
ok  	c.yaml	0.002s
`},
		{"verbose", true, `=== RUN   good
--- PASS: good (0.01s)
=== RUN   bad
--- FAIL: bad (1.50s)
    a.yaml:5: want "<a>"
        have "b"
    a.yaml:6: more
    calls:
    --> proxy_on_tick(context=1)
=== RUN   measured
Benchmarkmeasured	1	5 ns/op
--- PASS: measured (0.00s)
FAIL
FAIL	a.yaml	1.600s
PASS
ok  	b.yaml	0.000s [no tests to run]
=== RUN   one
--- PASS: one (0.00s)
PASS
ok  	c.yaml	0.002s
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			r := &Text{W: &b, Verbose: tt.verbose}
			for _, e := range events() {
				r.Take(e)
			}
			if diff := cmp.Diff(tt.want, b.String()); diff != "" || r.Close() != nil {
				t.Errorf("%v (-want +got):\n%s", r.Close(), diff)
			}
		})
	}
}

// TestJSON reads what is printed as those do who read go test -json.
func TestJSON(t *testing.T) {
	var b bytes.Buffer
	r := &JSON{W: &b}
	for _, e := range events() {
		r.Take(e)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	var got []string
	output := map[string]string{}
	d := json.NewDecoder(&b)
	d.DisallowUnknownFields()
	for d.More() {
		var e struct {
			Time    time.Time
			Action  string
			Package string
			Test    string
			Elapsed float64
			Output  string
		}
		if err := d.Decode(&e); err != nil {
			t.Fatal(err)
		}
		if e.Time.Year() != 2026 || e.Package == "" {
			t.Errorf("event %+v", e)
		}
		if e.Action == "output" {
			output[e.Package+" "+e.Test] += e.Output
			continue
		}
		got = append(got, strings.TrimSpace(e.Action+" "+e.Package+" "+e.Test))
	}
	want := []string{
		"start a.yaml", "run a.yaml good", "pass a.yaml good", "run a.yaml bad", "fail a.yaml bad", "run a.yaml measured", "pass a.yaml measured", "fail a.yaml",
		"start b.yaml", "pass b.yaml", "start c.yaml", "run c.yaml one", "pass c.yaml one", "pass c.yaml",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	wantOutput := map[string]string{
		"a.yaml good":     "=== RUN   good\n--- PASS: good (0.01s)\n",
		"a.yaml bad":      "=== RUN   bad\n--- FAIL: bad (1.50s)\n    a.yaml:5: want \"<a>\"\n        have \"b\"\n    a.yaml:6: more\n    calls:\n    --> proxy_on_tick(context=1)\n",
		"a.yaml measured": "=== RUN   measured\nBenchmarkmeasured\t1\t5 ns/op\n--- PASS: measured (0.00s)\n",
		"a.yaml ":         "FAIL\nFAIL\ta.yaml\t1.600s\n",
		"b.yaml ":         "PASS\nok  \tb.yaml\t0.000s [no tests to run]\n",
		"c.yaml one":      "=== RUN   one\n--- PASS: one (0.00s)\n",
		"c.yaml ":         "PASS\nok  \tc.yaml\t0.002s\n",
	}
	if diff := cmp.Diff(wantOutput, output); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
}

// TestTest2JSON compares with what Go itself makes of what go test -v prints.
func TestTest2JSON(t *testing.T) {
	type event struct{ Action, Package, Test, Output string }
	read := func(r io.Reader) (all []event) {
		for d := json.NewDecoder(r); d.More(); {
			var e event
			if err := d.Decode(&e); err != nil {
				t.Fatal(err)
			}
			all = append(all, e)
		}
		return all
	}
	for _, suite := range []string{"a.yaml", "b.yaml", "c.yaml"} {
		var verbose, ours bytes.Buffer
		text, js := &Text{W: &verbose, Verbose: true}, &JSON{W: &ours}
		for _, e := range events() {
			if e.Suite == suite {
				text.Take(e)
				js.Take(e)
			}
		}
		cmd := exec.Command("go", "tool", "test2json", "-p", suite)
		cmd.Stdin = &verbose
		theirs, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(read(bytes.NewReader(theirs)), read(&ours)); diff != "" {
			t.Errorf("%s (-test2json +ours):\n%s", suite, diff)
		}
	}
}

func TestJUnit(t *testing.T) {
	var b bytes.Buffer
	r := &JUnit{W: &b}
	for _, e := range events() {
		r.Take(e)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	want := xml.Header + `<testsuites tests="4" failures="1" time="1.602">
  <testsuite name="a.yaml" tests="3" failures="1" errors="0" time="1.600" timestamp="2026-01-02T03:04:05">
    <testcase classname="a.yaml" name="good" time="0.012"></testcase>
    <testcase classname="a.yaml" name="bad" time="1.500">
      <failure message="a.yaml:5: want &#34;&lt;a&gt;&#34;">a.yaml:5: want &#34;&lt;a&gt;&#34;&#xA;    have &#34;b&#34;&#xA;a.yaml:6: more</failure>
      <system-out>calls:&#xA;--&gt; proxy_on_tick(context=1)</system-out>
    </testcase>
    <testcase classname="a.yaml" name="measured" time="0.000">
      <system-out>Benchmarkmeasured&#x9;1&#x9;5 ns/op</system-out>
    </testcase>
  </testsuite>
  <testsuite name="b.yaml" tests="0" failures="0" errors="0" time="0.000" timestamp="2026-01-02T03:04:05"></testsuite>
  <testsuite name="c.yaml" tests="1" failures="0" errors="0" time="0.002" timestamp="2026-01-02T03:04:05">
    <testcase classname="c.yaml" name="one" time="0.001"></testcase>
  </testsuite>
</testsuites>
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
}

// The line shows which test runs, and is gone before anything is printed after it.
func TestProgress(t *testing.T) {
	var b bytes.Buffer
	p, text := &Progress{W: &b, Total: 4}, &Text{W: &b}
	for _, e := range events()[:8] {
		p.Take(e)
		text.Take(e)
	}
	want := "\r1/4 a.yaml good\r\x1b[K\r2/4 a.yaml bad\r\x1b[K--- FAIL: bad"
	if got := b.String(); !strings.HasPrefix(got, want) {
		t.Errorf("printed %q, want %q", got, want)
	}
	b.Reset()
	p.Take(events()[1])
	if err := p.Close(); err != nil || !strings.HasSuffix(b.String(), "\r\x1b[K") {
		t.Errorf("printed %q, %v", &b, err)
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("disk full") }

// What cannot be written is told.
func TestBroken(t *testing.T) {
	for name, r := range map[string]interface {
		Take(spec.Event)
		Close() error
	}{"text": &Text{W: broken{}}, "json": &JSON{W: broken{}}, "junit": &JUnit{W: broken{}}} {
		for _, e := range events() {
			r.Take(e)
		}
		if err := r.Close(); err == nil || !strings.Contains(err.Error(), "disk full") {
			t.Errorf("%s: Close = %v", name, err)
		}
	}
}
