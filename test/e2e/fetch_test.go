//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// A site is a web server of files; it shows where it was told to redirect to.
type site struct {
	mu    sync.Mutex
	files map[string][]byte // by path
	moved map[string]string // paths that redirect
}

func newSite() *site { return &site{files: make(map[string][]byte), moved: make(map[string]string)} }

func (s *site) put(path string, content []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[path] = content
}

func (s *site) move(path, to string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moved[path] = to
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	content, to := s.files[r.URL.Path], s.moved[r.URL.Path]
	s.mu.Unlock()
	switch {
	case to != "":
		http.Redirect(w, r, to, http.StatusFound)
	case content != nil:
		_, _ = w.Write(content) // a client that has gone is no fault
	default:
		http.NotFound(w, r)
	}
}

// Modules of web servers, in every wrapping, with and without a checksum.
func TestHTTP(t *testing.T) {
	files := newSite()
	plain, secure := startFront(t, files), httptest.NewTLSServer(files)
	defer secure.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pemOf(secure.Certificate()), 0o600); err != nil {
		t.Fatal(err)
	}
	m := start(t, agentEnv("SSL_CERT_FILE="+ca, "WASM_HTTP_REQUEST_TIMEOUT=1s", "WASM_HTTP_REQUEST_MAX_RETRIES=1"))
	m.answers(200, "")
	asIs := func(_ testing.TB, module []byte) []byte { return module }
	inTar := func(t testing.TB, module []byte) []byte {
		return tarGz(t, file{name: "a/first.wasm", content: module}, file{name: "README", content: []byte("second")})
	}
	checksum := func(module []byte) []string { return []string{fmt.Sprintf("sha256: %q", hexDigest(module))} }
	none := func([]byte) []string { return nil }

	serves := ""
	for _, tt := range []struct {
		name string
		base string // of the server, with credentials if any
		pack func(t testing.TB, module []byte) []byte
		sums func(module []byte) []string
		path string // asked for, if it is not where the module is
	}{
		{name: "plain", base: "http://" + plain.Addr, pack: asIs, sums: none},
		{name: "checksum", base: "http://" + plain.Addr, pack: asIs, sums: checksum},
		{name: "gzip", base: "http://" + plain.Addr, pack: gz, sums: checksum},
		{name: "tar-gz", base: "http://" + plain.Addr, pack: inTar, sums: checksum},
		{name: "https", base: secure.URL, pack: asIs, sums: none},
		{name: "redirect", base: "http://" + plain.Addr, pack: asIs, sums: checksum, path: "/moved/redirect"},
		{name: "redirect-to-https", base: "http://" + plain.Addr, pack: gz, sums: none, path: "/moved/redirect-to-https"},
		{name: "credentials", base: "http://" + user + ":" + password + "@" + plain.Addr, pack: asIs, sums: none, path: "/credentials?signature=" + later},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := m.in(t)
			content := module(t, tt.name)
			path := "/" + tt.name
			files.put(path, tt.pack(t, content))
			files.move("/moved/redirect", "/redirect")
			files.move("/moved/redirect-to-https", secure.URL+"/redirect-to-https")
			if tt.path != "" {
				path = tt.path
			}
			l := m.load()
			m.write("plugin.yaml", plugin("web", tt.base+path, tt.name, tt.sums(content)...))
			m.answers(200, tt.name)
			m.loads(content)
			m.accepted("web")
			l.more(50)
			l.only(ok(serves), ok(tt.name))
			serves = tt.name
			if tt.name == "credentials" {
				m.hides(password, later, basic(password))
			}
		})
	}

	files.put("/base", module(t, "base"))
	bed := &testbed{mesh: m, front: plain, before: "http://" + plain.Addr + "/base"}
	for _, f := range []failure{
		{name: "404", how: answerWith(404, "gone"), reason: "404 Not Found", result: "download_failure"},
		{name: "500", how: answerWith(500, "broken"), reason: "500 Internal Server Error", result: "download_failure"},
		{name: "slow", how: hang, reason: "no answer within 1s", result: "download_failure"},
		{name: "cut", how: cut, reason: "unexpected EOF", result: "download_failure"},
		{name: "page", how: answerWith(200, "<html>please log in</html>"), reason: "not a Wasm module", result: "download_failure"},
		{name: "blocked", how: redirect("http://169.254.169.254/latest/meta-data/"), reason: "address 169.254.169.254 is blocked for module downloads", result: "download_failure"},
		{name: "other", how: garbleEnd, more: checksum(module(t, "other")), reason: "want sha256:" + hexDigest(module(t, "other")), result: "checksum_mismatched"},
	} {
		f.part = "/update/" + f.name
		f.url = "http://" + plain.Addr + f.part
		files.put(f.part, module(t, f.name))
		t.Run(f.name+" for a while", func(t *testing.T) { bed.updates(t, f) })
	}

	t.Run("wrong checksum, mended", func(t *testing.T) {
		m := m.in(t)
		files.put("/checked", module(t, "checked"))
		url := "http://" + plain.Addr + "/checked"
		m.write("plugin.yaml", plugin("web", bed.before, "before"))
		m.answers(200, "before")
		before := m.counts("checksum_mismatched")
		l := m.load()
		m.write("plugin.yaml", plugin("web", url, "after", checksum(module(t, "another"))...))
		m.refused("web", hexDigest(module(t, "checked")), "want sha256:"+hexDigest(module(t, "another")))
		m.moved("checksum_mismatched", before)
		l.more(100)
		l.only(ok("before"))
		l = m.load()
		m.write("plugin.yaml", plugin("web", url, "after", checksum(module(t, "checked"))...))
		m.answers(200, "after")
		m.accepted("web")
		l.only(ok("before"), ok("after"))
	})
	t.Run("refused with credentials", func(t *testing.T) {
		m := m.in(t)
		url := "http://" + user + ":" + password + "@" + plain.Addr + "/absent?signature=" + later
		m.write("plugin.yaml", plugin("web", url, "absent"))
		m.refused("web", "fetch http://"+plain.Addr+"/absent?", "404 Not Found")
		m.hides(password, later, basic(password))
	})
	t.Run("https to http", func(t *testing.T) {
		m := m.in(t)
		files.move("/downgrade", "http://"+plain.Addr+"/base")
		l := m.load()
		m.write("plugin.yaml", plugin("web", secure.URL+"/downgrade", "downgrade"))
		m.refused("web", "redirect from https to http refused")
		l.more(100)
		l.only(ok("after"))
	})
	m.hides(password, later, basic(password))
}

// garbleEnd sends a module with another last byte, which is one of its custom section.
func garbleEnd(w http.ResponseWriter, r *http.Request, next http.Handler) {
	body := record(w, r, next)
	body[len(body)-1] ^= 1
	_, _ = w.Write(body)
}

// A failure is one way in which a module cannot be had for a while.
type failure struct {
	name   string
	part   string // of the paths that fail
	how    fault
	down   bool // instead: the server is
	url    string
	more   []string // lines of the plugin's spec
	reason string
	result string // of the fetch
}

// begin makes f happen, and returns what ends it; the end of t does at the latest.
func (f failure) begin(t testing.TB, at *front) (end func()) {
	t.Helper()
	if f.down {
		at.down()
		end = sync.OnceFunc(at.up)
	} else {
		at.fail(f.part, f.how)
		end = at.mend
	}
	t.Cleanup(end)
	return end
}

// A testbed is a mesh with a server that fails.
type testbed struct {
	*mesh
	front  *front
	before string // url of a plugin that is there always
}

// updates tries an update of a plugin that serves while f lasts: no answer
// changes, the refusal is to be seen everywhere, and when f is over the update
// takes effect by itself.
func (b *testbed) updates(t *testing.T, f failure) {
	m := b.in(t)
	m.write("plugin.yaml", plugin("web", b.before, "before"))
	m.answers(200, "before")
	m.accepted("web")

	counted := m.counts(f.result)
	end := f.begin(t, b.front)
	l := m.load()
	m.write("plugin.yaml", plugin("web", f.url, "after", f.more...))
	m.refused("web", f.reason, "extensions.istio.io/wasmplugin/istio-system.web")
	m.moved(f.result, counted)
	l.more(100)
	l.only(ok("before"))

	l = m.load()
	end()
	m.answers(200, "after")
	m.accepted("web")
	l.more(50)
	l.only(ok("before"), ok("after"))
}

// appears adds a plugin to a proxy that serves while f lasts: no answer
// changes, but another change to the same listener takes effect.
func (b *testbed) appears(t *testing.T, f failure) {
	m := b.in(t)
	name := "new-" + strings.ToLower(strings.ReplaceAll(f.name, " ", "-"))
	m.answers(200, "")

	counted := m.counts(f.result)
	end := f.begin(t, b.front)
	l := m.load()
	m.write("new.yaml", plugin(name, f.url, "new", "priority: 10"))
	m.refused(name, f.reason)
	m.moved(f.result, counted)
	l.more(100)
	l.only(ok(""))

	// Other filters of the listener change as they would without it.
	l = m.load()
	m.write("good.yaml", plugin("good-"+name, b.before, "good"))
	m.answers(200, "good")
	l.more(50)
	l.only(ok(""), ok("good"))

	l = m.load()
	end()
	m.answers(200, "good,new") // the plugin nearer to the backend is first
	m.accepted(name)
	l.more(50)
	l.only(ok("good"), ok("good,new"))

	l = m.load()
	m.remove("new.yaml")
	m.answers(200, "good")
	m.remove("good.yaml")
	m.answers(200, "")
	l.only(ok("good,new"), ok("good"), ok(""))
}

// limits are those of the agents here.
func limits(more ...string) func(*mesh) {
	return agentEnv(append([]string{
		"WASM_HTTP_REQUEST_TIMEOUT=1s",
		"WASM_HTTP_REQUEST_MAX_RETRIES=1",
		"ISTIO_WASM_MAX_BINARY_SIZE_BYTES=" + strconv.Itoa(maxModule),
	}, more...)...)
}

const maxModule = 256 << 10

// registryFailures are all that can happen between an agent and a registry.
// nowhere is an address that the agent must not ask.
func registryFailures(t testing.TB, r *registry, f *front, nowhere string) []failure {
	t.Helper()
	header := []byte("\x00asm\x01\x00\x00\x00")
	for tag, wrong := range map[string]v1.Image{
		"text":      filesImage(t, file{name: "plugin.wasm", content: []byte("#!/bin/sh\necho not a module\n")}),
		"component": filesImage(t, file{name: "plugin.wasm", content: []byte("\x00asm\x0d\x00\x01\x00 a component, not a module")}),
		"big-layer": image(t, soloConfig, layerOf(make([]byte, maxModule+1), soloLayer)),
		"big-file":  filesImage(t, file{name: "plugin.wasm", content: header, zeros: maxModule}),
		"gzip-bomb": filesImage(t, file{name: "padding", zeros: 256 << 20}, file{name: "plugin.wasm", content: module(t, "bomb")}),
		"tar-bomb":  image(t, types.OCIConfigJSON, layerOf(lyingTarGz(t, "plugin.wasm", 1<<40), types.OCILayer)),
	} {
		r.pushArtifact(t, "faulty:"+tag, wrong)
	}
	const manifests, blobs = "/faulty/manifests/", "/faulty/blobs/"
	limit := fmt.Sprintf("larger than the limit of %d bytes", maxModule)
	all := []failure{
		{name: "down", down: true, reason: "connection refused", result: "manifest_failure"},
		{name: "slow manifest", part: manifests, how: hang, reason: "no answer within 1s", result: "manifest_failure"},
		{name: "slow layer", part: blobs, how: stall, reason: "no answer within 1s", result: "download_failure"},
		{name: "401", part: manifests, how: answerWith(401, ""), reason: "the imagePullSecret is right: server answers 401", result: "manifest_failure"},
		{name: "403", part: manifests, how: answerWith(403, ""), reason: "the imagePullSecret is right: server answers 403", result: "manifest_failure"},
		{name: "404", part: manifests, how: answerWith(404, ""), reason: "no such image: server answers 404", result: "manifest_failure"},
		{name: "404 layer", part: blobs, how: answerWith(404, ""), reason: "server answers 404", result: "download_failure"},
		{name: "429", part: manifests, how: answerWith(429, ""), reason: "server answers 429 Too Many Requests", result: "manifest_failure"},
		{name: "500", part: manifests, how: answerWith(500, ""), reason: "server answers 500", result: "manifest_failure"},
		{name: "500 at all", part: "/", how: answerWith(500, ""), reason: "server answers 500", result: "manifest_failure"},
		{name: "503 layer", part: blobs, how: answerWith(503, ""), reason: "server answers 503", result: "download_failure"},
		{name: "garbage manifest", part: manifests, how: answerWith(200, "<html>please log in</html>"), reason: "not an image's", result: "manifest_failure"},
		{name: "garbage layer", part: blobs, how: garble, reason: "digest is sha256:", result: "checksum_mismatched"},
		{name: "truncated manifest", part: manifests, how: cut, reason: "unexpected EOF", result: "manifest_failure"},
		{name: "truncated layer", part: blobs, how: cut, reason: "unexpected EOF", result: "download_failure"},
		{name: "not Wasm", part: manifests, how: instead("text"), reason: "not a Wasm module", result: "download_failure"},
		{name: "component", part: manifests, how: instead("component"), reason: "component", result: "download_failure"},
		{name: "too big layer", part: manifests, how: instead("big-layer"), reason: limit, result: "download_failure"},
		{name: "too big file", part: manifests, how: instead("big-file"), reason: "module is " + limit, result: "download_failure"},
		{name: "gzip bomb", part: manifests, how: instead("gzip-bomb"), reason: "unpacks to is larger than the limit of", result: "download_failure"},
		{name: "tar bomb", part: manifests, how: instead("tar-bomb"), reason: "module is " + limit, result: "download_failure"},
		{name: "blocked manifest", part: manifests, how: redirect("http://169.254.169.254/latest"), reason: "address 169.254.169.254 is blocked", result: "manifest_failure"},
		{name: "blocked layer", part: blobs, how: redirect("http://[fe80::1]/latest"), reason: "address fe80::1 is blocked", result: "download_failure"},
		{name: "blocked realm", part: "/", how: realm("http://192.0.2.1/token"), reason: "address 192.0.2.1 is blocked", result: "manifest_failure"},
		{name: "metadata realm", part: "/", how: realm("http://169.254.169.254/token"), reason: `realm host "169.254.169.254" is a private or link-local address`, result: "manifest_failure"},
		{name: "blocked CIDR", part: blobs, how: redirect("http://" + nowhere + "/layer"), reason: "address 127.0.0.2 is blocked", result: "download_failure"},
		{name: "loopback realm", part: "/", how: realm("http://" + nowhere + "/token"), reason: `realm host "127.0.0.2" is a private or link-local address`, result: "manifest_failure"},
	}
	for i := range all {
		mark := "update " + all[i].name
		tag := strings.ReplaceAll(all[i].name, " ", "-")
		r.pushArtifact(t, "faulty:update-"+tag, pluginImage(t, module(t, mark)))
		all[i].url = "oci://" + f.Addr + "/faulty:update-" + tag
	}
	return all
}

// An update that cannot be had changes no answer, whatever the reason, and is
// had as soon as it can be.
func TestFailingUpdate(t *testing.T) {
	r := startRegistry(t)
	f := before(t, r)
	forbidden := startForbidden(t, "127.0.0.2")
	r.pushArtifact(t, "good:1", pluginImage(t, module(t, "good")))
	m := start(t, limits("BLOCKED_CIDRS_IN_WASM_FETCH=192.0.2.0/24,127.0.0.2/32"))
	bed := &testbed{mesh: m, front: f, before: "oci://" + f.Addr + "/good:1"}
	for _, failure := range registryFailures(t, r, f, forbidden.Addr) {
		t.Run(failure.name, func(t *testing.T) { bed.updates(t, failure) })
	}
	t.Run("blocked registry", func(t *testing.T) {
		m := m.in(t)
		m.write("plugin.yaml", plugin("web", "oci://"+forbidden.Addr+"/x:1", "after"))
		m.refused("web", "address 127.0.0.2 is blocked for module downloads")
	})
	if n := forbidden.dials.Load(); n > 0 {
		t.Errorf("the agent dialled a blocked address %d times", n)
	}
	peak := peakMemory(t, m.Agent.Cmd.Process.Pid)
	t.Logf("the agent took up to %d MiB", peak>>20)
	if peak > 128<<20 {
		t.Errorf("the agent took up to %d bytes of memory, want a bound whatever it is sent", peak)
	}
}

// peakMemory is the most memory that a process was ever resident with, bytes.
func peakMemory(t testing.TB, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	t.Fatalf("no VmHWM in %s", text)
	return 0
}

// pick chooses failures by name.
func pick(t testing.TB, all []failure, names ...string) []failure {
	t.Helper()
	var picked []failure
	for _, name := range names {
		for _, f := range all {
			if f.name == name {
				picked = append(picked, f)
			}
		}
	}
	if len(picked) != len(names) {
		t.Fatalf("%d of %q are failures", len(picked), names)
	}
	return picked
}

// A plugin that is new to a proxy and cannot be had does not disturb the
// traffic, nor other changes.
func TestFailingNewPlugin(t *testing.T) {
	r := startRegistry(t)
	f := before(t, r)
	r.pushArtifact(t, "good:1", pluginImage(t, module(t, "good")))
	m := start(t, limits())
	// Its module is at hand when the registry is not.
	m.write("good.yaml", plugin("good", "oci://"+f.Addr+"/good:1", "good"))
	m.answers(200, "good")
	m.remove("good.yaml")
	bed := &testbed{mesh: m, front: f, before: "oci://" + f.Addr + "/good:1"}
	all := registryFailures(t, r, f, "127.0.0.2:1")
	for _, failure := range pick(t, all, "down", "slow manifest", "slow layer", "404", "truncated layer", "not Wasm") {
		t.Run(failure.name, func(t *testing.T) { bed.appears(t, failure) })
	}
}

// A proxy that starts while a module cannot be had gets ready all the same, and
// denies or allows everything by the plugin's failStrategy until it can.
func TestFailingStart(t *testing.T) {
	r := startRegistry(t)
	f := before(t, r)
	all := registryFailures(t, r, f, "127.0.0.2:1")
	for _, tt := range []struct {
		failure  string
		strategy string
		status   int
	}{
		{"down", "FAIL_CLOSE", 403},
		{"slow manifest", "FAIL_OPEN", 200},
		{"401", "", 403},
		{"garbage layer", "FAIL_OPEN", 200},
	} {
		t.Run(tt.failure+" "+tt.strategy, func(t *testing.T) {
			failure := pick(t, all, tt.failure)[0]
			var more []string
			if tt.strategy != "" {
				more = []string{"failStrategy: " + tt.strategy}
			}
			end := failure.begin(t, f)
			m := start(t, limits(), resources("plugin.yaml", plugin("first", failure.url, "first", more...)))
			l := m.load()
			m.refused("first", failure.reason)
			m.moved(failure.result, counts{})
			m.ready()
			l.more(100)
			l.only(answer{status: tt.status})

			l = m.load()
			end()
			m.answers(200, "first")
			m.accepted("first")
			l.more(50)
			l.only(answer{status: tt.status}, ok("first"))
		})
	}
}

// Of three plugins one cannot be had, or is slow: the others serve and change
// as if it were not there.
func TestPluginsDoNotWaitForEachOther(t *testing.T) {
	r := startRegistry(t)
	f := before(t, r)
	url := func(repo, tag string) string {
		r.pushArtifact(t, repo+":"+tag, pluginImage(t, module(t, repo+tag)))
		return "oci://" + f.Addr + "/" + repo + ":" + tag
	}
	m := start(t)
	m.answers(200, "")
	f.fail("/bad/", answerWith(404, ""))
	l := m.load()
	m.write("plugins.yaml", strings.Join([]string{
		plugin("one", url("one", "1"), "one", "priority: 10"),
		plugin("bad", url("bad", "1"), "bad", "priority: 20"),
		plugin("two", url("two", "1"), "two", "priority: 30"),
	}, "---"))
	m.answers(200, "one,two")
	m.refused("bad", "no such image")
	m.accepted("one")
	m.accepted("two")
	l.more(50)
	// They were fetched each by itself, so one may have been there first.
	l.only(ok(""), ok("one"), ok("two"), ok("one,two"))

	l = m.load()
	m.write("plugins.yaml", strings.Join([]string{
		plugin("one", url("one", "2"), "ONE", "priority: 10"),
		plugin("bad", url("bad", "1"), "bad", "priority: 20"),
		plugin("two", url("two", "1"), "two", "priority: 30"),
	}, "---"))
	m.answers(200, "ONE,two")
	m.accepted("one")
	m.refused("bad", "no such image")
	l.more(50)
	l.only(ok("one,two"), ok("ONE,two"))

	// Two's update hangs: it goes on as it was, one changes, and a newer version
	// of two ends the wait.
	given := make(chan struct{})
	f.fail("/two/manifests/slow", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		hang(w, r, next)
		close(given)
	})
	l = m.load()
	m.write("plugins.yaml", strings.Join([]string{
		plugin("one", url("one", "2"), "ONE", "priority: 10"),
		plugin("bad", url("bad", "1"), "bad", "priority: 20"),
		plugin("two", url("two", "slow"), "slow", "priority: 30"),
	}, "---"))
	pending := func() error {
		if e := m.extension("/istio-system.two"); e["pending"] != 1.0 {
			return fmt.Errorf("status %v", e)
		}
		return nil
	}
	eventually(t, "two is pending", pending)
	m.write("plugins.yaml", strings.Join([]string{
		plugin("one", url("one", "3"), "one", "priority: 10"),
		plugin("bad", url("bad", "1"), "bad", "priority: 20"),
		plugin("two", url("two", "slow"), "slow", "priority: 30"),
	}, "---"))
	m.answers(200, "one,two")
	m.accepted("one")
	if err := pending(); err != nil {
		t.Errorf("two is not pending any more: %v", err)
	}
	l.only(ok("ONE,two"), ok("one,two"))

	l = m.load()
	m.write("plugins.yaml", strings.Join([]string{
		plugin("one", url("one", "3"), "one", "priority: 10"),
		plugin("bad", url("bad", "1"), "bad", "priority: 20"),
		plugin("two", url("two", "2"), "TWO", "priority: 30"),
	}, "---"))
	m.answers(200, "one,TWO")
	m.accepted("two")
	select {
	case <-given:
	case <-time.After(patience):
		t.Error("the slow fetch goes on")
	}
	f.mend() // bad heals in its place
	m.answers(200, "one,bad,TWO")
	m.accepted("bad")
	l.only(ok("one,two"), ok("one,TWO"), ok("one,bad,TWO"))
}

// A module that is one, but that Envoy refuses to run.
func TestModuleThatEnvoyRefuses(t *testing.T) {
	for _, preflight := range []bool{true, false} {
		t.Run(fmt.Sprintf("preflight %v", preflight), func(t *testing.T) { testModuleThatEnvoyRefuses(t, preflight) })
	}
}

func testModuleThatEnvoyRefuses(t *testing.T, preflight bool) {
	tried := func(m *mesh) { m.AgentArgs = append(m.AgentArgs, fmt.Sprintf("--preflight=%v", preflight)) }
	r := startRegistry(t)
	push := func(name string, content []byte) string {
		r.pushArtifact(t, name+":1", pluginImage(t, content))
		return "oci://" + r.Addr + "/" + name + ":1"
	}
	good, better := push("good", module(t, "good")), push("better", module(t, "better"))
	bad := []struct{ name, url, reason string }{
		{"refuse-config", push("refuse-config", testModule(t, "refuse-config")), "refused its configuration"},
		{"missing-import", push("missing-import", testModule(t, "missing-import")), "missing import"},
	}
	if !preflight {
		for i := range bad {
			bad[i].reason = "the proxy refused it"
		}
	}
	m := start(t, tried)
	for _, tt := range bad {
		t.Run("update to "+tt.name, func(t *testing.T) {
			m := m.in(t)
			m.write("plugin.yaml", plugin("header", good, "good"))
			m.answers(200, "good")
			m.accepted("header")
			rejected := m.metric(m.Monitoring, rejects)
			l := m.load()
			m.write("plugin.yaml", plugin("header", tt.url, "bad"))
			m.refused("header", tt.reason, "istio-system.header")
			if now := m.metric(m.Monitoring, rejects); now <= rejected {
				t.Errorf("%s went from %v to %v", rejects, rejected, now)
			}
			l.more(100)
			l.only(ok("good"))
			l = m.load()
			m.write("plugin.yaml", plugin("header", better, "better"))
			m.answers(200, "better")
			m.accepted("header")
			l.only(ok("good"), ok("better"))
		})
	}
	for _, tt := range bad {
		t.Run("new "+tt.name, func(t *testing.T) {
			m := m.in(t)
			name := "new-" + tt.name
			m.write("plugin.yaml", plugin("header", good, "good"))
			m.answers(200, "good")
			l := m.load()
			m.write("new.yaml", plugin(name, tt.url, "new", "priority: 10"))
			m.refused(name, tt.reason, "istio-system."+name)
			l.more(100)
			l.only(ok("good"))
			l = m.load()
			m.write("new.yaml", plugin(name, better, "new", "priority: 10"))
			m.answers(200, "good,new")
			m.accepted(name)
			m.remove("new.yaml")
			m.answers(200, "good")
			l.only(ok("good"), ok("good,new"))
		})
	}
	for _, tt := range []struct {
		name, url, reason, strategy string
		status                      int
	}{
		{"FAIL_CLOSE", bad[0].url, bad[0].reason, "failStrategy: FAIL_CLOSE", 403},
		{"FAIL_OPEN", bad[1].url, bad[1].reason, "failStrategy: FAIL_OPEN", 200},
	} {
		t.Run("start with "+tt.name, func(t *testing.T) {
			m := start(t, tried, resources("plugin.yaml", plugin("first", tt.url, "first", tt.strategy)))
			l := m.load()
			m.refused("first", tt.reason)
			l.more(100)
			l.only(answer{status: tt.status})
			l = m.load()
			m.write("plugin.yaml", plugin("first", good, "first", tt.strategy))
			m.answers(200, "first")
			l.only(answer{status: tt.status}, ok("first"))
		})
	}
}
