package preflight

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// A request is what the process that tries a module reads from its standard input, as
// one gob value. It writes a verdict to its standard output, likewise. Its input stays
// open: if it ends the one who asked is gone, and so is the process.
type request struct {
	Trial  Trial
	Bounds bounds
}

// apart tries a module in a process of its own. Whatever happens to that process, it
// has no bearing on this one.
func (p *Preflight) apart(ctx context.Context, r request) verdict {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.cfg.Command[0], p.cfg.Command[1:]...)
	cmd.Env = []string{} // it needs none, and must not show ours to a module
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdout, stderr := &head{limit: 1 << 20}, &head{limit: 4 << 10}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.WaitDelay = time.Second
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return verdict{Doubt: "no process to try it in: " + err.Error(), fleeting: true}
	}
	sent := gob.NewEncoder(stdin).Encode(r)
	ended := cmd.Wait()
	var v verdict
	got := gob.NewDecoder(&stdout.Buffer).Decode(&v)
	switch {
	case got == nil && ended == nil:
		return v
	case ctx.Err() != nil:
		return verdict{Doubt: fmt.Sprintf("no verdict after %s", p.cfg.Patience), fleeting: true}
	}
	// Most likely it had too little memory.
	why := errors.Join(ended, sent, got).Error()
	if first, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n"); first != "" {
		why += ": " + first
	}
	return verdict{Doubt: "the process that tried it ended: " + strings.ReplaceAll(why, "\n", ", ")}
}

// A head keeps the first bytes that are written to it.
type head struct {
	bytes.Buffer
	limit int
}

func (h *head) Write(b []byte) (int, error) {
	if room := h.limit - h.Len(); room > 0 {
		h.Buffer.Write(b[:min(room, len(b))])
	}
	return len(b), nil
}

// tick is how often the processor time of a module is looked at.
const tick = 20 * time.Millisecond

// Serve is the process of [Config.Command]: it tries the one module that in asks for,
// writes the verdict to out, and returns. It gives the process the lowest priority, has
// the system kill it before others when memory is short, and limits what it can take of
// it: nothing else should run in the process, which is to exit when Serve returns, also
// if the module still runs.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	var r request
	if err := gob.NewDecoder(in).Decode(&r); err != nil {
		return fmt.Errorf("read trial: %w", err)
	}
	yieldToOthers(r.Bounds.Memory)
	v, err := serve(ctx, in, r)
	if err != nil {
		return err
	}
	if err := gob.NewEncoder(out).Encode(v); err != nil {
		return fmt.Errorf("write verdict: %w", err)
	}
	return nil
}

func serve(ctx context.Context, in io.Reader, r request) (verdict, error) {
	deadline := r.Bounds.Deadline
	r.Bounds.Deadline, r.Bounds.Leave = -1, true // here processor time counts, and nothing is closed
	type outcome struct {
		v   verdict
		err error
	}
	w := new(watch)
	done, gone := make(chan outcome, 1), make(chan struct{})
	// Both end with the process at the latest.
	go func() {
		v, err := try(ctx, r.Trial, r.Bounds, w)
		done <- outcome{v, err}
	}()
	go func() {
		_, _ = io.Copy(io.Discard, in)
		close(gone)
	}()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case o := <-done:
			return o.v, o.err
		case <-gone:
			return verdict{}, errors.New("try module: no one waits for it")
		case <-ctx.Done():
			return verdict{}, context.Cause(ctx)
		case <-ticker.C:
			if w.took() > deadline {
				return verdict{Reason: late(deadline, w.where()), Log: w.last()}, nil
			}
		}
	}
}
