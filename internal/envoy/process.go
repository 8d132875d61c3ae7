package envoy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
)

// The files that a Process keeps in its directory.
const (
	bootstrapFile = "envoy.json"       // the bootstrap, if it is not the user's own
	adminFile     = "envoy.admin"      // the admin address, written by Envoy
	stateFile     = "envoy.state.json" // which process was started, and how
)

// ErrNotRunning says that there is no Envoy at the moment, or none that can be
// asked yet.
var ErrNotRunning = errors.New("envoy is not running")

// ErrNoDrain, as the cause of a context's end, stops Envoy without draining it.
var ErrNoDrain = errors.New("stop without draining")

// A Config says how to run Envoy. Path, Dir, Output and Log are required.
type Config struct {
	Path      string          // Envoy's binary
	Args      []string        // the user's arguments, passed on
	Dir       string          // absolute; exists, and is used by no other Process
	Bootstrap []byte          // not used if Args bring one; see [HasBootstrap]
	Output    io.Writer       // Envoy's stdout and stderr; only an *os.File is one that Envoy still has after the agent died
	MinDrain  time.Duration   // connections are waited for at least so long, for load balancers to take note; default 0
	Drain     time.Duration   // and at most so long; default 5s
	Grace     time.Duration   // requests that are still under way then, and the end after SIGTERM, are waited for so long each; default 5s
	Hurry     <-chan struct{} // closed, it has a drain wait no more; default never
	Log       *slog.Logger
}

func (c Config) withDefaults() Config {
	c.Drain = max(cmp.Or(c.Drain, 5*time.Second), c.MinDrain)
	c.Grace = cmp.Or(c.Grace, 5*time.Second)
	return c
}

// A Process is one Envoy: at any time one operating system process, or none.
// All but Run may be called from several goroutines.
type Process struct {
	cfg    Config
	args   []string
	admin  string // file in which Envoy writes its admin address
	digest string // of all that makes one Envoy like another

	old     []*child // left over from earlier; drained before a new one starts
	adopted *child   // to begin with; nil after
	current atomic.Pointer[child]
}

// Open prepares to run Envoy. One that was left by an agent that died is taken
// over now, so that [Process.Live] tells the truth before the first of its
// requests is answered. Run must be called next.
func Open(ctx context.Context, cfg Config) (*Process, error) {
	p := &Process{cfg: cfg.withDefaults()}
	p.args, p.admin = arguments(cfg)
	var err error
	if p.digest, err = digest(cfg, p.args); err != nil {
		return nil, fmt.Errorf("open envoy: %w", err)
	}
	for _, c := range running(p.admin) {
		if p.adopted == nil && p.adopt(ctx, c) {
			p.adopted = c
		} else {
			p.old = append(p.old, c)
		}
		p.current.Store(c)
	}
	if p.adopted != nil {
		p.current.Store(p.adopted)
	}
	return p, nil
}

// arguments completes cfg.Args with what the user did not say, and names the
// file in which Envoy will write its admin address.
func arguments(cfg Config) (args []string, adminPath string) {
	add := func(name string, value ...string) {
		if _, ok := argument(cfg.Args, name); !ok {
			args = append(append(args, name), value...)
		}
	}
	adminPath, ok := argument(cfg.Args, "--admin-address-path")
	if !ok {
		adminPath = filepath.Join(cfg.Dir, adminFile)
	}
	if !HasBootstrap(cfg.Args) {
		add("-c", filepath.Join(cfg.Dir, bootstrapFile))
	}
	add("--admin-address-path", adminPath)
	add("--disable-hot-restart") // several Envoys on a machine would need numbers
	// When a listener is changed or removed, its connections have so long to
	// finish, and clients are told at their next answer; as in Istio.
	add("--drain-time-s", "45")
	add("--drain-strategy", "immediate")
	add("--file-flush-interval-msec", "1000")
	return append(args, cfg.Args...), adminPath
}

// digest is the same for two Envoys that need not be told apart: the same
// binary, arguments and bootstrap.
func digest(cfg Config, args []string) (string, error) {
	binary, err := os.Stat(cfg.Path)
	if err != nil {
		return "", err
	}
	bootstrap := cfg.Bootstrap
	if file, ok := argument(cfg.Args, "-c", "--config-path"); ok {
		if bootstrap, err = os.ReadFile(file); err != nil {
			return "", err
		}
	}
	all, err := json.Marshal([]any{cfg.Path, binary.Size(), binary.ModTime().UnixNano(), args, bootstrap})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(all)
	return hex.EncodeToString(sum[:]), nil
}

// Live reports whether the process that runs now has been live: it has its
// listeners and serves.
func (p *Process) Live() bool {
	c := p.current.Load()
	return c != nil && c.live.Load()
}

// Adopted reports whether the process that runs now was started by an earlier agent.
func (p *Process) Adopted() bool {
	c := p.current.Load()
	return c != nil && c.cmd == nil
}

// Ready returns nil if Envoy is live at this moment, else why it is not.
func (p *Process) Ready(ctx context.Context) error {
	a, err := p.Admin()
	if err != nil {
		return err
	}
	return a.Ready(ctx)
}

// Admin returns a client for the admin interface of the process that runs now.
// It returns [ErrNotRunning] if there is none, or none that has told its address.
func (p *Process) Admin() (*Admin, error) {
	c := p.current.Load()
	if c == nil {
		return nil, ErrNotRunning
	}
	return c.client()
}

// Run keeps an Envoy running until ctx ends, then drains it and stops it. One
// that dies is started again after a pause, which grows as long as it keeps
// dying. One that dies several times without ever having answered is an error,
// as it is that its binary cannot be run.
func (p *Process) Run(ctx context.Context) error {
	for _, c := range p.old {
		p.cfg.Log.Info("envoy replaced", "pid", c.pid)
		p.supervise(ended(ctx), c)
	}
	var b backoff
	for {
		c := p.adopted // is stopped even if ctx has ended by now
		p.adopted = nil
		if c == nil {
			if ctx.Err() != nil {
				return nil
			}
			var err error
			if c, err = p.start(); err != nil {
				return fmt.Errorf("start envoy: %w", err)
			}
		}
		begun := time.Now()
		p.supervise(ctx, c)
		if ctx.Err() != nil {
			return nil
		}
		pause, err := b.next(time.Since(begun), c.answered)
		if err != nil {
			return fmt.Errorf("run envoy: %w: %w", err, c.err)
		}
		p.cfg.Log.Error("envoy died", "pid", c.pid, "err", c.err, "restart_in", pause)
		wait(ctx, pause)
	}
}

// ended returns ctx as it is once it has ended.
func ended(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	return ctx
}

// supervise follows c until it is gone. When ctx ends it stops c.
func (p *Process) supervise(ctx context.Context, c *child) {
	p.current.Store(c)
	defer p.current.Store(nil)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		c.wait()
	}()
	p.untilLive(ctx, c, gone)
	select {
	case <-gone:
	case <-ctx.Done():
		p.stop(ctx, c, gone)
	}
}

// liveInterval is how often an Envoy that is starting is asked whether it is
// live. Traffic waits for the answer, and it costs little.
const liveInterval = 20 * time.Millisecond

// untilLive waits until c is live or gone, or ctx ends.
func (p *Process) untilLive(ctx context.Context, c *child, gone <-chan struct{}) {
	if c.live.Load() {
		return
	}
	begun := time.Now()
	tick := time.NewTicker(liveInterval)
	defer tick.Stop()
	for {
		select {
		case <-gone:
			return
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		a, err := c.client()
		if err != nil {
			continue
		}
		err = a.Ready(ctx)
		c.answered = c.answered || err == nil || errors.As(err, new(*NotReadyError))
		if err == nil {
			c.live.Store(true)
			p.cfg.Log.Info("envoy live", "pid", c.pid, "admin", a.Addr(), "took", time.Since(begun))
			return
		}
	}
}

// wait pauses for d, or less if ctx ends.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
