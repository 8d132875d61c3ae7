package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// junit reads a JUnit report as build servers do, checks that its numbers add up, and
// prints its tests: junit file.
func junit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: junit file")
	}
	var report struct {
		XMLName  xml.Name `xml:"testsuites"`
		Tests    int      `xml:"tests,attr"`
		Failures int      `xml:"failures,attr"`
		Time     float64  `xml:"time,attr"`
		Suites   []struct {
			Name      string  `xml:"name,attr"`
			Tests     int     `xml:"tests,attr"`
			Failures  int     `xml:"failures,attr"`
			Errors    int     `xml:"errors,attr"`
			Time      float64 `xml:"time,attr"`
			Timestamp string  `xml:"timestamp,attr"`
			Cases     []struct {
				Class   string  `xml:"classname,attr"`
				Name    string  `xml:"name,attr"`
				Time    float64 `xml:"time,attr"`
				Failure *struct {
					Message string `xml:"message,attr"`
					Text    string `xml:",chardata"`
				} `xml:"failure"`
				Out   string     `xml:"system-out"`
				Other []struct{} `xml:",any"`
			} `xml:"testcase"`
			Other []struct{} `xml:",any"`
		} `xml:"testsuite"`
		Other []struct{} `xml:",any"`
	}
	d := xml.NewDecoder(strings.NewReader(ts.ReadFile(args[0])))
	ts.Check(d.Decode(&report))
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		if text, err := d.Token(); !errors.Is(err, io.EOF) {
			ts.Fatalf("%s goes on after its end: %v", args[0], text)
		}
	}
	tests, failures := 0, 0
	for _, s := range report.Suites {
		tests, failures = tests+s.Tests, failures+s.Failures
		if _, err := time.Parse("2006-01-02T15:04:05", s.Timestamp); err != nil || s.Tests != len(s.Cases) || s.Errors != 0 || len(s.Other) > 0 {
			ts.Fatalf("suite %s: %d tests, %d cases, %d errors, timestamp %q, %d other elements", s.Name, s.Tests, len(s.Cases), s.Errors, s.Timestamp, len(s.Other))
		}
		for _, c := range s.Cases {
			verdict := "pass"
			if c.Failure != nil {
				failures--
				verdict = "fail: " + c.Failure.Message
				if c.Failure.Message == "" || !strings.HasPrefix(c.Failure.Text, c.Failure.Message) {
					ts.Fatalf("%s: failure %+v", c.Name, *c.Failure)
				}
			}
			if c.Class != s.Name || c.Time > s.Time+0.001 || len(c.Other) > 0 {
				ts.Fatalf("case %s of %s: class %q, %v s of %v s", c.Name, s.Name, c.Class, c.Time, s.Time)
			}
			fmt.Fprintf(ts.Stdout(), "%s %s %s\n", s.Name, c.Name, verdict)
		}
	}
	if tests != report.Tests || failures != 0 || len(report.Other) > 0 {
		ts.Fatalf("%d tests of %d are in suites; %d failures are no case's", tests, report.Tests, failures)
	}
}

// testEvents reads what go test -json prints, checks that events come in the order that
// its readers rely on, and prints them but for output: testevents file.
//
// https://pkg.go.dev/cmd/test2json
func testEvents(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: testevents file")
	}
	d := json.NewDecoder(strings.NewReader(ts.ReadFile(args[0])))
	d.DisallowUnknownFields()
	open := map[string]bool{} // packages, and tests after a space
	for d.More() {
		var e struct {
			Time                          time.Time
			Action, Package, Test, Output string
			Elapsed                       *float64
		}
		ts.Check(d.Decode(&e))
		key := strings.TrimSpace(e.Package + " " + e.Test)
		begins, ends := e.Action == "start" || e.Action == "run", e.Action == "pass" || e.Action == "fail"
		switch {
		case e.Time.IsZero(), e.Package == "", begins == open[key], (e.Action == "run") && e.Test == "", (e.Action == "start") && e.Test != "":
			ts.Fatalf("event %+v, while it is %v that %s runs", e, open[key], key)
		case e.Action != "output" && !begins && !ends, ends != (e.Elapsed != nil), (e.Output != "") != (e.Action == "output"):
			ts.Fatalf("event %+v", e)
		case e.Test != "" && !open[e.Package]:
			ts.Fatalf("event %+v of a package that does not run", e)
		case begins:
			open[key] = true
		case ends:
			delete(open, key)
		}
		if e.Action != "output" {
			fmt.Fprintf(ts.Stdout(), "%s %s\n", e.Action, key)
		}
	}
	if len(open) > 0 {
		ts.Fatalf("%v did not end", open)
	}
}
