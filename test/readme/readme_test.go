package readme

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	const text = "# Title\n" +
		"```sh\n$ not this\n```\n" +
		"```console\n$ echo a\na\n$ cat <<E\n> $ b\n> E\n$ b\n```\n" +
		"```yaml\na: b\n```\nText.\n" +
		"```console\n$ true\n```\n"
	want := []Command{
		{"x.md", 6, "echo a", []string{"a"}},
		{"x.md", 8, "cat <<E\n$ b\nE", nil},
		{"x.md", 11, "b", nil},
		{"x.md", 18, "true", nil},
	}
	got, err := Parse("x.md", text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Parse (-want +got):\n%s", diff)
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"```console\n```\n":                         "x.md:2: console block without a command",
		"\n```console\nHTTP/1.1 200 OK\n```\n":      "x.md:3: console block does not begin with a command",
		"```console\n$ true\n":                      "x.md: a fenced block does not end",
		"```sh\n":                                   "x.md: a fenced block does not end",
		"```console\n$ true\n```\n```sh\ntrue\n":    "x.md: a fenced block does not end",
		"```sh\ntrue\n```\n```console\n> more\n```": "x.md:5: console block does not begin with a command",
	} {
		if _, err := Parse("x.md", text); err == nil || err.Error() != want {
			t.Errorf("Parse(%q) error = %v, want %s", text, err, want)
		}
	}
}

func TestMatches(t *testing.T) {
	for _, tt := range []struct {
		name, want, got string
		match           bool
	}{
		{"the same", "a\nb", "a\nb\n", true},
		{"without the last line end", "a", "a", true},
		{"carriage returns", "a\nb", "a\r\nb\r\n", true},
		{"other", "a", "b\n", false},
		{"more", "a", "a\nb\n", false},
		{"less", "a\nb", "a\n", false},
		{"nothing", "", "", true},
		{"something for nothing", "", "a\n", false},
		{"nothing for something", "a", "", false},
		{"dots for lines", "a\n...\nd", "a\nb\nc\nd\n", true},
		{"dots for no lines", "a\n...\nd", "a\nd\n", true},
		{"dots at the end", "a\n...", "a\nb\n", true},
		{"dots at the start", "...\nb", "a\nb\n", true},
		{"dots for lines, the end missing", "a\n...\nd", "a\nb\nc\n", false},
		{"dots in a line", "date: ... GMT", "date: Mon, 1 GMT\n", true},
		{"dots do not go beyond their line", "a...b", "a\nb\n", false},
		{"signs that patterns have", "a.b{} 1 (c)", "a.b{} 1 (c)\n", true},
		{"a point is no dots", "a.b", "axb\n", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := Command{}
			if tt.want != "" {
				c.Want = strings.Split(tt.want, "\n")
			}
			if got := c.Matches(tt.got); got != tt.match {
				t.Errorf("Matches = %v, want %v", got, tt.match)
			}
		})
	}
}

func TestRun(t *testing.T) {
	dir := t.TempDir()
	run := func(text string, want ...string) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		return Command{"x.md", 7, text, want}.Run(ctx, dir, []string{"NAME=world", "PATH=" + dir + ":" + os.Getenv("PATH")})
	}
	if err := run("echo hello $NAME >&2; pwd", "hello world", dir); err != nil {
		t.Error(err)
	}
	if err := run("false; echo on"); err != nil {
		t.Errorf("a command that stops at a failure: %v", err)
	}
	err := run("echo a", "b")
	if err == nil || !strings.HasPrefix(err.Error(), "x.md:7: echo a\nprints:\na\n\nwant:\nb") {
		t.Errorf("error = %v, want one that shows both", err)
	}

	// a curl that has the answer at the third try
	const script = "#!/bin/sh\necho x >>tries\nwc -l <tries\n"
	if err := os.WriteFile(filepath.Join(dir, "curl"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := run("curl something", "3"); err != nil {
		t.Error(err)
	}
}

// TestRunGivesUp has a command that never prints what is said.
func TestRunGivesUp(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := (Command{Text: "curl --version", Want: []string{"never"}}).Run(ctx, t.TempDir(), nil); err == nil {
		t.Error("Run = nil, want an error")
	}
}

// TestRunCut has a command whose second try is cut short: the first is what is told of.
func TestRunCut(t *testing.T) {
	dir := t.TempDir()
	const script = "#!/bin/sh\nif [ -e first ]; then echo >second; exec sleep 600; fi\ntouch first\necho first\n"
	if err := errors.Join(syscall.Mkfifo(filepath.Join(dir, "second"), 0o600), os.WriteFile(filepath.Join(dir, "curl"), []byte(script), 0o700)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	read := make(chan error, 1)
	go func() {
		defer cancel()
		_, err := os.ReadFile(filepath.Join(dir, "second")) // waits for it
		read <- err
	}()
	err := Command{Text: "curl x", Want: []string{"never"}}.Run(ctx, dir, []string{"PATH=" + dir + ":" + os.Getenv("PATH")})
	if err == nil || !strings.Contains(err.Error(), "prints:\nfirst\n") {
		t.Errorf("error = %v, want one that shows the first try", err)
	}
	if err := <-read; err != nil {
		t.Error(err)
	}
}

func TestAsks(t *testing.T) {
	for text, want := range map[string]bool{
		"curl -s localhost": true, "bin/chandler status": true, "bin/chandler plugin build x": false, "curly": false, "echo curl ": false,
	} {
		if got := (Command{Text: text}).asks(); got != want {
			t.Errorf("%q asks: %v, want %v", text, got, want)
		}
	}
}
