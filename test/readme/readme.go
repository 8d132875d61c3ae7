// Package readme runs the commands that Markdown files show, so that what a
// reader is told to type does what it is said to do.
//
// A command stands in a fenced block marked console, after "$ "; lines after
// "> " belong to it; then comes what it prints, up to the next command:
//
//	```console
//	$ curl -si localhost:8080/productpage
//	HTTP/1.1 401 Unauthorized
//	www-authenticate: Basic realm="istio"
//	...
//	```
//
// A line of three dots stands for any lines, or none; three dots in a line for
// anything there. Space at the ends of lines does not count. Blocks with another
// mark are for reading only. Each command has a bash of its own, which stops at
// the first failure in it; what it prints is all that is compared.
//
// A command that begins with curl, or asks for the status, is tried again until it
// prints what is said or time is up, as a reader would do while a proxy takes over
// a change: such commands must not change anything. Start at [Parse].
package readme

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"time"
)

const (
	again   = 100 * time.Millisecond // how long to wait before a command is tried again
	attempt = 20 * time.Second       // how long one try may take, if others may follow
)

// A Command is one command and what it prints.
type Command struct {
	File string
	Line int // 1-based, of the command's first line
	Text string
	Want []string // lines
}

// Parse returns the commands of a Markdown file, in order. It refuses a console
// block that is not of the form above, and one that does not end.
func Parse(file, text string) ([]Command, error) {
	var commands []Command
	var block *[]Command // of the console block we are in
	other := false       // in a block with another mark
	for i, line := range strings.Split(text, "\n") {
		at := func(what string) error { return fmt.Errorf("%s:%d: %s", file, i+1, what) }
		mark, fence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case fence && block != nil:
			if len(*block) == 0 {
				return nil, at("console block without a command")
			}
			commands, block = append(commands, *block...), nil
		case fence && (other || mark != "console"):
			other = !other
		case fence:
			block = new([]Command)
		case block == nil:
		case strings.HasPrefix(line, "$ "):
			*block = append(*block, Command{File: file, Line: i + 1, Text: line[2:]})
		case len(*block) == 0:
			return nil, at("console block does not begin with a command")
		default:
			last := &(*block)[len(*block)-1]
			if more, ok := strings.CutPrefix(line, "> "); ok && len(last.Want) == 0 {
				last.Text += "\n" + more
			} else {
				last.Want = append(last.Want, line)
			}
		}
	}
	if block != nil || other {
		return nil, fmt.Errorf("%s: a fenced block does not end", file)
	}
	return commands, nil
}

// Matches says whether got is what c prints.
func (c Command) Matches(got string) bool {
	pattern := `^`
	for _, line := range c.Want {
		if line = strings.TrimSpace(line); line == "..." {
			pattern += `(?:.*\n)*?`
			continue
		}
		pattern += strings.ReplaceAll(regexp.QuoteMeta(line), `\.\.\.`, `.*`) + `\n`
	}
	return regexp.MustCompile(pattern + `$`).MatchString(trimLines(got))
}

// trimLines takes the space off the ends of text's lines, and ends the last one.
func trimLines(text string) string {
	text = strings.TrimRight(text, "\n")
	if text == "" {
		return ""
	}
	var b strings.Builder
	for line := range strings.SplitSeq(text, "\n") {
		b.WriteString(strings.TrimSpace(line) + "\n")
	}
	return b.String()
}

// asks says whether c only asks for something that may not be so yet.
func (c Command) asks() bool {
	return strings.HasPrefix(c.Text, "curl ") || strings.HasPrefix(c.Text, "bin/chandler status")
}

// Run runs c in folder dir with environment env (as in [exec.Cmd]) and compares
// what it prints. A command that asks it tries again until ctx ends, and then tells
// of the last try that came to its end.
func (c Command) Run(ctx context.Context, dir string, env []string) error {
	if !c.asks() {
		return c.once(ctx, dir, env)
	}
	var last error
	for {
		try, cancel := context.WithTimeout(ctx, attempt)
		err := c.once(try, dir, env)
		cut := try.Err() != nil
		cancel()
		switch {
		case err == nil:
			return nil
		case last == nil || !cut:
			last = err
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(again):
		}
	}
}

func (c Command) once(ctx context.Context, dir string, env []string) error {
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", c.Text)
	cmd.Dir, cmd.Env = dir, env
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	// curl and grep tell by their status what their output tells too
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("%s:%d: run %s: %w", c.File, c.Line, c.Text, err)
	}
	if !c.Matches(string(out)) {
		return fmt.Errorf("%s:%d: %s\nprints:\n%s\nwant:\n%s", c.File, c.Line, c.Text, out, strings.Join(c.Want, "\n"))
	}
	return nil
}
