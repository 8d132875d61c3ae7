package envoytest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// A Peer is a process of the test's own program, say one in another network, that does as
// it is asked, a line each.
type Peer struct {
	Cmd *exec.Cmd
	in  io.Writer
	out *bufio.Reader
}

// peerAnswer begins the lines that are answers, among those of the test itself.
const peerAnswer = "answer "

// StartPeer starts cmd, which is to call [Answer]. It ends with the test.
func StartPeer(t testing.TB, cmd *exec.Cmd) Peer {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait() // it has nobody to answer any more
	})
	return Peer{cmd, in, bufio.NewReader(out)}
}

// Ask returns the answer to a question, or why there is none.
func (p Peer) Ask(question string) string {
	fmt.Fprintln(p.in, question)
	for {
		line, err := p.out.ReadString('\n')
		if err != nil {
			return err.Error()
		}
		if answer, ok := strings.CutPrefix(line, peerAnswer); ok {
			return strings.TrimSpace(answer)
		}
	}
}

// Answer answers, in the process of a [Peer], until nobody asks any more.
func Answer(answer func(question string) string) {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println(peerAnswer + answer(lines.Text()))
	}
}
