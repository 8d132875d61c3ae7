// Package report prints what tests of plugins come to, as people and programs read it: as
// go test prints it ([Text]), as its -json option does ([JSON]), as JUnit's XML
// ([JUnit]), and as a line that shows how far it is ([Progress]).
//
// Reports take the events of package spec as they come, and decide nothing. What cannot
// be written is told once, by Close. Start at [Text].
package report

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/chandler-proxy/chandler/internal/spec"
)

// A Text prints as go test does.
type Text struct {
	W       io.Writer
	Verbose bool // every test, and the traces of those that fail

	lines []string // of the test that runs
	ran   int      // tests of the suite
	err   error
}

// Take prints the event.
func (t *Text) Take(e spec.Event) {
	switch {
	case e.Action == spec.Start:
		t.ran = 0
	case e.Action == spec.Run:
		t.ran++
		t.lines = nil
		if t.Verbose {
			t.print("=== RUN   %s\n", e.Test)
		}
	case e.Action == spec.Output, e.Action == spec.Trace && t.Verbose:
		t.lines = append(t.lines, e.Text)
	case e.Action == spec.Bench:
		t.print("%s\n", e.Text)
	case e.Action == spec.Trace:
	case e.Test != "":
		t.test(e)
	default:
		t.suite(e)
	}
}

func (t *Text) test(e spec.Event) {
	if e.Action == spec.Fail || t.Verbose {
		t.print("%s", verdictLines(e, t.lines))
	}
}

// verdictLines are what go test prints when a test is over.
func verdictLines(e spec.Event, lines []string) string {
	word := "PASS"
	if e.Action == spec.Fail {
		word = "FAIL"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "--- %s: %s (%s)\n", word, e.Test, seconds(e.Elapsed, 2))
	for _, text := range lines {
		fmt.Fprintf(&b, "    %s\n", strings.ReplaceAll(text, "\n", "\n    "))
	}
	return b.String()
}

func seconds(d time.Duration, digits int) string { return fmt.Sprintf("%.*fs", digits, d.Seconds()) }

func (t *Text) suite(e spec.Event) {
	t.print("%s", suiteLines(e, t.ran, t.Verbose))
}

// suiteLines are what go test prints when a package is over.
func suiteLines(e spec.Event, ran int, verbose bool) string {
	if e.Action == spec.Fail {
		return fmt.Sprintf("FAIL\nFAIL\t%s\t%s\n", e.Suite, seconds(e.Elapsed, 3))
	}
	none := ""
	if ran == 0 {
		none = " [no tests to run]"
	}
	pass := ""
	if verbose {
		pass = "PASS\n"
	}
	return fmt.Sprintf("%sok  \t%s\t%s%s\n", pass, e.Suite, seconds(e.Elapsed, 3), none)
}

func (t *Text) print(format string, a ...any) {
	if t.err == nil {
		_, t.err = fmt.Fprintf(t.W, format, a...)
	}
}

// Close says what kept anything from being printed.
func (t *Text) Close() error { return t.err }

// A JSON prints events as go test -json does, a line each: programs that read those read
// these.
//
// https://pkg.go.dev/cmd/test2json
type JSON struct {
	W io.Writer

	lines []string
	ran   int
	err   error
}

type jsonEvent struct {
	Time    time.Time
	Action  string
	Package string
	Test    string   `json:",omitempty"`
	Elapsed *float64 `json:",omitempty"`
	Output  *string  `json:",omitempty"`
}

// Take prints the event.
func (j *JSON) Take(e spec.Event) {
	switch e.Action {
	case spec.Start:
		j.ran = 0
		j.print(e, "start")
	case spec.Run:
		j.ran++
		j.lines = nil
		j.print(e, "run")
		j.output(e, fmt.Sprintf("=== RUN   %s\n", e.Test))
	case spec.Output, spec.Trace:
		j.lines = append(j.lines, e.Text)
	case spec.Bench:
		j.output(e, e.Text+"\n")
	case spec.Pass, spec.Fail:
		if e.Test != "" {
			j.output(e, verdictLines(e, j.lines))
		} else {
			j.output(e, suiteLines(e, j.ran, true))
		}
		j.print(e, map[spec.Action]string{spec.Pass: "pass", spec.Fail: "fail"}[e.Action])
	}
}

// output prints text, a line an event.
func (j *JSON) output(e spec.Event, text string) {
	for line := range strings.Lines(text) {
		j.write(jsonEvent{Time: e.Time, Action: "output", Package: e.Suite, Test: e.Test, Output: &line})
	}
}

func (j *JSON) print(e spec.Event, action string) {
	out := jsonEvent{Time: e.Time, Action: action, Package: e.Suite, Test: e.Test}
	if action == "pass" || action == "fail" {
		s := e.Elapsed.Seconds()
		out.Elapsed = &s
	}
	j.write(out)
}

func (j *JSON) write(e jsonEvent) {
	if j.err != nil {
		return
	}
	text, err := json.Marshal(e)
	if err == nil {
		_, err = j.W.Write(append(text, '\n'))
	}
	j.err = err
}

// Close says what kept anything from being printed.
func (j *JSON) Close() error { return j.err }

// A JUnit collects events, for a report in the XML that build servers read.
type JUnit struct {
	W io.Writer

	suites []junitSuite
	lines  []string
	out    []string
}

type junitSuites struct {
	XMLName  xml.Name     `xml:"testsuites"`
	Tests    int          `xml:"tests,attr"`
	Failures int          `xml:"failures,attr"`
	Time     string       `xml:"time,attr"`
	Suites   []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name      string      `xml:"name,attr"`
	Tests     int         `xml:"tests,attr"`
	Failures  int         `xml:"failures,attr"`
	Errors    int         `xml:"errors,attr"`
	Time      string      `xml:"time,attr"`
	Timestamp string      `xml:"timestamp,attr"`
	Cases     []junitCase `xml:"testcase"`

	elapsed time.Duration
}

type junitCase struct {
	Class   string        `xml:"classname,attr"`
	Name    string        `xml:"name,attr"`
	Time    string        `xml:"time,attr"`
	Failure *junitFailure `xml:"failure"`
	Out     string        `xml:"system-out,omitempty"`
}

type junitFailure struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// Take keeps the event.
func (j *JUnit) Take(e spec.Event) {
	switch {
	case e.Action == spec.Start:
		j.suites = append(j.suites, junitSuite{Name: e.Suite, Timestamp: e.Time.UTC().Format("2006-01-02T15:04:05")})
	case e.Action == spec.Run:
		j.lines, j.out = nil, nil
	case e.Action == spec.Output:
		j.lines = append(j.lines, e.Text)
	case e.Action == spec.Trace, e.Action == spec.Bench:
		j.out = append(j.out, e.Text)
	case e.Test != "":
		j.test(e)
	default:
		s := &j.suites[len(j.suites)-1]
		s.elapsed, s.Time = e.Elapsed, number(e.Elapsed)
	}
}

func (j *JUnit) test(e spec.Event) {
	s := &j.suites[len(j.suites)-1]
	c := junitCase{Class: e.Suite, Name: e.Test, Time: number(e.Elapsed), Out: strings.Join(j.out, "\n")}
	s.Tests++
	if e.Action == spec.Fail {
		s.Failures++
		text := strings.Join(j.lines, "\n")
		first, _, _ := strings.Cut(text, "\n")
		c.Failure = &junitFailure{first, text}
	}
	s.Cases = append(s.Cases, c)
}

func number(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }

// Close writes the report.
func (j *JUnit) Close() error {
	all := junitSuites{Suites: j.suites}
	var elapsed time.Duration
	for _, s := range j.suites {
		all.Tests += s.Tests
		all.Failures += s.Failures
		elapsed += s.elapsed
	}
	all.Time = number(elapsed)
	if _, err := io.WriteString(j.W, xml.Header); err != nil {
		return fmt.Errorf("write JUnit report: %w", err)
	}
	e := xml.NewEncoder(j.W)
	e.Indent("", "  ")
	if err := e.Encode(all); err != nil {
		return fmt.Errorf("write JUnit report: %w", err)
	}
	_, err := io.WriteString(j.W, "\n")
	return err
}

// A Progress shows, on one line of a terminal, which test runs. The line is gone before
// anything else is printed, as long as it takes the events first.
type Progress struct {
	W     io.Writer
	Total int // tests there are

	done  int
	shown bool
}

// Take shows the event.
func (p *Progress) Take(e spec.Event) {
	switch {
	case e.Action == spec.Run:
		p.clear()
		p.done++
		fmt.Fprintf(p.W, "\r%d/%d %s %s", p.done, p.Total, e.Suite, e.Test)
		p.shown = true
	case e.Action >= spec.Bench:
		p.clear()
	}
}

func (p *Progress) clear() {
	if p.shown {
		fmt.Fprint(p.W, "\r\x1b[K")
		p.shown = false
	}
}

// Close leaves the line empty.
func (p *Progress) Close() error {
	p.clear()
	return nil
}
