package kube

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Terminal runs such a command as [Cluster.Run] does, on a terminal, as someone
// who types each line when the prompt appears: for `kubectl run -it`. It returns
// what would be on the screen, with \n for ends of lines. The command must
// succeed.
func (c *Cluster) Terminal(t testing.TB, prompt string, lines []string, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	keyboard, screen, err := openTerminal()
	if err != nil {
		t.Fatal(err)
	}
	defer keyboard.Close()
	cmd := c.Command(ctx, name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = screen, screen, screen
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = cmd.Start()
	screen.Close() // the command has its own
	if err != nil {
		t.Fatal(err)
	}
	defer context.AfterFunc(ctx, func() { keyboard.Close() })()
	shown, typed := typeLines(keyboard, prompt, lines)
	if err := cmd.Wait(); err != nil || typed < len(lines) {
		t.Fatalf("%s: %v; typed %d of %d lines:\n%s", line(cmd), err, typed, len(lines), shown)
	}
	return shown
}

// hint is what kubectl says if the prompt may have been printed before it came.
const hint = "try pressing enter.\r\n"

// typeLines writes each line when the prompt is the last that is on the screen,
// and returns what was there until the terminal closed, and how many it wrote.
func typeLines(keyboard *os.File, prompt string, lines []string) (shown string, typed int) {
	var all, last []byte // last begins after the line typed last
	for buf := make([]byte, 4096); ; {
		n, err := keyboard.Read(buf)
		if err != nil { // EIO: nobody has it open any more
			return string(bytes.ReplaceAll(all, []byte("\r\n"), []byte("\n"))), typed
		}
		all, last = append(all, buf[:n]...), append(last, buf[:n]...)
		if bytes.HasSuffix(last, []byte(hint)) {
			keyboard.WriteString("\n") // if that fails there will be no prompt
		}
		if typed < len(lines) && bytes.HasSuffix(last, []byte(prompt)) {
			last = nil
			if _, err := keyboard.WriteString(lines[typed] + "\n"); err == nil {
				typed++
			}
		}
	}
}

// openTerminal makes a pseudo-terminal: what is written to keyboard is read from
// screen, and the other way round.
func openTerminal() (keyboard, screen *os.File, err error) {
	keyboard, err = os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			keyboard.Close()
			err = fmt.Errorf("open terminal: %w", err)
		}
	}()
	raw, err := keyboard.SyscallConn() // unlike Fd it leaves reads interruptible
	if err != nil {
		return nil, nil, err
	}
	var number int
	var failed error
	if err := raw.Control(func(fd uintptr) {
		if failed = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); failed == nil {
			number, failed = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	}); err != nil {
		return nil, nil, err
	}
	if failed != nil {
		return nil, nil, failed
	}
	screen, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	return keyboard, screen, err
}
