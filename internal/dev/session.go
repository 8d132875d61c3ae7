package dev

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"

	"github.com/chandler-proxy/chandler/internal/xds"
)

// proxyClass is the class of the one proxy.
const proxyClass = "dev"

// poll is how often the control plane is asked what its proxy has answered.
const poll = 5 * time.Millisecond

// A session is what is known of the plugin. One goroutine has it.
type session struct {
	cfg      Config
	route    route
	dir      string // for modules
	screen   *screen
	xds      *xds.Server
	appeared chan struct{} // the engine is connected

	snapshot *xds.Snapshot

	files    map[string][sha256.Size]byte // as they were when they were last looked at; nil at first
	built    *build
	settings settings
	wrong    struct{ build, settings, refused error } // why what serves is not what the files say
	offered  string                                   // version of the extension that the engine was given last
	serving  *build                                   // what the engine took last
}

func newSession(cfg Config, r route, dir string) *session {
	appeared := make(chan struct{}, 1)
	return &session{
		cfg: cfg, route: r, dir: dir, screen: &screen{w: cfg.Out, color: cfg.Color}, appeared: appeared,
		xds: xds.New(xds.Config{
			Class: func(context.Context, *corev3.Node) (string, error) { return proxyClass, nil },
			Appeared: func() {
				select {
				case appeared <- struct{}{}:
				default:
				}
			},
		}),
	}
}

// run serves the plugin as its files are, now and after each change, until ctx ends.
func (s *session) run(ctx context.Context, ready <-chan struct{}, files *watch) error {
	select {
	case <-s.appeared:
	case <-ctx.Done():
		return nil
	}
	if _, err := s.publish(s.route.standIn()); err != nil {
		return err
	}
	select {
	case <-ready:
	case <-ctx.Done():
		return nil
	}
	s.screen.say(good, "listening on %s, in front of %s", s.route.url(), s.cfg.Upstream)
	for ctx.Err() == nil {
		if err := s.update(ctx, files); err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-files.events:
			settled(ctx, files.events)
		case <-s.appeared: // it was gone for a moment
			s.xds.Publish(proxyClass, s.snapshot)
		case <-ctx.Done():
		}
	}
	return nil
}

// update looks at the files and does what their changes ask for. Its error is one of
// this program; those of the plugin are printed.
func (s *session) update(ctx context.Context, files *watch) error {
	now, err := files.look(s.cfg.inputs())
	if err != nil {
		s.screen.say(bad, "%v", err)
		return nil
	}
	changed, first := differ(s.files, now), s.files == nil
	s.files = now
	switch {
	case first:
	case len(changed) == 0:
		return nil
	default:
		s.screen.say(plain, "changed: %s", strings.Join(list(s.cfg.Dir, changed), ", "))
	}
	s.settings, s.wrong.settings = s.cfg.settings()
	if first || slices.ContainsFunc(changed, func(path string) bool { return path != s.cfg.ConfigFile }) {
		s.built, s.wrong.build = s.build(ctx)
	}
	if ctx.Err() != nil {
		return nil
	}
	if err := errors.Join(s.wrong.build, s.wrong.settings); err != nil {
		s.keep(err)
		return nil
	}
	return s.offer(ctx)
}

// keep tells what is wrong, and what goes on in spite of it.
func (s *session) keep(err error) {
	s.screen.say(bad, "%v", err)
	if s.serving != nil {
		s.screen.say(warning, "%s goes on serving", s.serving)
		return
	}
	s.screen.say(warning, "nothing serves yet: %s", s.route.meanwhile())
}

// offer gives the engine the plugin, and tells what it made of it.
func (s *session) offer(ctx context.Context) error {
	path, err := s.store(s.built)
	if err != nil {
		return err
	}
	extension := s.settings.extension(path, s.cfg.Network)
	before := s.offered
	if s.offered, err = s.publish(extension); err != nil {
		return err
	}
	if s.offered != before {
		if s.wrong.refused, err = s.answer(ctx, s.offered); err != nil {
			return err
		}
	}
	switch {
	case s.wrong.refused != nil:
		s.keep(s.wrong.refused)
		return nil
	case s.offered == before:
		s.screen.say(plain, "%s serves already", s.built)
		return nil
	case s.serving == nil:
		if err := s.open(ctx, extension); err != nil {
			return err
		}
	}
	s.serving = s.built
	took := ""
	if s.cfg.Language != "" {
		took = ", built in " + s.built.took.Round(time.Millisecond).String()
	}
	s.screen.say(good, "serving %s%s", s.built, took)
	return s.forget(path)
}

// open lets requests pass on to the upstream, now that there is a plugin before it.
func (s *session) open(ctx context.Context, extension *corev3.TypedExtensionConfig) error {
	s.route.open = true
	if _, err := s.publish(extension); err != nil {
		return err
	}
	want := s.snapshot.Version(xds.RouteType)
	return s.await(ctx, func(p xds.Proxy) bool { return s.route.network || p.Types[xds.RouteType].Acked == want })
}

// publish makes the extension, with all that goes with it, what the engine should have,
// and returns its version.
func (s *session) publish(extension *corev3.TypedExtensionConfig) (string, error) {
	version, encoder := "", xds.NewEncoder()
	var resources []*xds.Resource
	for _, m := range append(s.route.resources(), proto.Message(extension)) {
		r, err := encoder.Encode(m)
		if err != nil {
			return "", err
		}
		if r.Type == xds.ExtensionType {
			version = r.Version
		}
		resources = append(resources, r)
	}
	next, err := xds.NewSnapshot(s.snapshot, resources)
	if err != nil {
		return "", err
	}
	s.snapshot = next
	s.xds.Publish(proxyClass, next)
	return version, nil
}

// answer waits for what the engine says to that version of the extension: why it refuses
// it, or nil.
func (s *session) answer(ctx context.Context, version string) (refused, err error) {
	var held xds.Held
	err = s.await(ctx, func(p xds.Proxy) bool {
		held = p.Held(extensionName)
		return held.Version == version && held.State != xds.Pending
	})
	if err == nil && held.State == xds.Nacked {
		refused = errors.New("refused: " + strings.TrimPrefix(strings.TrimSpace(held.Reason), extensionName+": "))
	}
	return refused, err
}

// await waits until something is so of the engine, or ctx ends.
func (s *session) await(ctx context.Context, so func(xds.Proxy) bool) error {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		if all := s.xds.Proxies(); len(all) == 1 && so(all[0]) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// store writes a module where it stays as it is; the next build goes elsewhere.
func (s *session) store(b *build) (string, error) {
	path := filepath.Join(s.dir, fmt.Sprintf("%x.wasm", b.sum))
	return path, os.WriteFile(path, b.wasm, 0o600)
}

// forget removes the modules but one.
func (s *session) forget(but string) error {
	all, err := filepath.Glob(filepath.Join(s.dir, "*.wasm"))
	for _, path := range all {
		if path != but {
			err = errors.Join(err, os.Remove(path))
		}
	}
	return err
}
