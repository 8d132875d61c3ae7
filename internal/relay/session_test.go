package relay

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/chandler-proxy/chandler/internal/ecds"
	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/module"
	"github.com/chandler-proxy/chandler/internal/store"
)

// remoteExtension is an extension config that wants the module of that tag.
func remoteExtension(t testing.TB, name, tag string, policy wasmv3.FailurePolicy) *anypb.Any {
	t.Helper()
	return extensionConfig(t, name, &httpwasmv3.Wasm{Config: &wasmv3.PluginConfig{
		FailurePolicy: policy,
		Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{
			Runtime: "envoy.wasm.runtime.v8",
			Code: &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Remote{
				Remote: &corev3.RemoteDataSource{HttpUri: &corev3.HttpUri{Uri: "oci://registry.test/" + name + ":" + tag}},
			}},
			EnvironmentVariables: &wasmv3.EnvironmentVariables{KeyValues: map[string]string{
				ecds.PullSecretEnv: "hush",
			}},
		}},
	}})
}

func extensionConfig(t testing.TB, name string, m proto.Message) *anypb.Any {
	t.Helper()
	typed, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	res, err := anypb.New(&corev3.TypedExtensionConfig{Name: name, TypedConfig: typed})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// describe says in a word or two what an extension config makes Envoy run.
func describe(t testing.TB, res *anypb.Any) string {
	t.Helper()
	if strings.Contains(res.String(), "hush") || strings.Contains(res.String(), "ISTIO_META_") {
		t.Errorf("a secret or variable of the agent's reached the proxy: %v", res)
	}
	ec := new(corev3.TypedExtensionConfig)
	if err := res.UnmarshalTo(ec); err != nil {
		t.Fatal(err)
	}
	rbac, wasm := new(httprbacv3.RBAC), new(httpwasmv3.Wasm)
	switch {
	case ec.GetTypedConfig().MessageIs(rbac):
		if err := ec.GetTypedConfig().UnmarshalTo(rbac); err != nil {
			t.Fatal(err)
		}
		if rbac.GetRules() == nil {
			return "rbac"
		}
		return "rbac with rules"
	case ec.GetTypedConfig().MessageIs(wasm):
		if err := ec.GetTypedConfig().UnmarshalTo(wasm); err != nil {
			t.Fatal(err)
		}
		local := wasm.GetConfig().GetVmConfig().GetCode().GetLocal()
		if local.GetFilename() != "" {
			return "file " + local.GetFilename()
		}
		return fmt.Sprintf("%d bytes of wasm", len(local.GetInlineBytes()))
	}
	return ec.GetTypedConfig().GetTypeUrl()
}

// A harness drives a session by hand, in the incremental variant, and keeps a
// trace of what it does.
type harness struct {
	t       *testing.T
	s       *session
	serving bool
	trace   []string
	flights map[string]uint64
	nonces  map[string]string // of the last delivery, by extension
}

func newHarness(t *testing.T) *harness {
	h := &harness{t: t, flights: make(map[string]uint64), nonces: make(map[string]string)}
	r := New(Config{Serving: func() bool { return h.serving }})
	r.random = func() float64 { return 0 }
	h.connect(r)
	return h
}

func (h *harness) connect(r *Relay) {
	h.s = newSession(h.t.Context(), r, new(delta))
	h.s.start = func(ctx context.Context, name string, gen uint64, delay time.Duration, w *wanted) {
		want, err := w.ext.Want()
		if err != nil {
			h.t.Error(err)
		}
		if got := string(want.Secret); got != "hush" {
			h.t.Errorf("secret for the fetch = %q", got)
		}
		h.flights[name] = gen
		h.trace = append(h.trace, fmt.Sprintf("fetch %v in %v", want.Ref, delay))
		context.AfterFunc(ctx, func() {})
	}
}

func (h *harness) check(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, f := range h.s.down {
		m := new(discoveryv3.DeltaDiscoveryResponse)
		if err := proto.Unmarshal(f, m); err != nil {
			h.t.Fatal(err)
		}
		for _, res := range m.GetResources() {
			h.nonces[res.GetName()] = m.GetNonce()
			h.trace = append(h.trace, fmt.Sprintf("down %s %s: %s", res.GetName(), res.GetVersion(), describe(h.t, res.GetResource())))
		}
	}
	for _, f := range h.s.up {
		m := new(discoveryv3.DeltaDiscoveryRequest)
		if err := proto.Unmarshal(f, m); err != nil {
			h.t.Fatal(err)
		}
		switch {
		case m.GetErrorDetail() != nil:
			h.trace = append(h.trace, "up nack "+m.GetResponseNonce()+": "+m.GetErrorDetail().GetMessage())
		case m.GetResponseNonce() != "":
			h.trace = append(h.trace, "up ack "+m.GetResponseNonce())
		case m.GetNode() != nil && m.GetNode().GetId() == "":
			h.trace = append(h.trace, fmt.Sprintf("up runs %v", ecds.Reported(m.GetNode())))
		default:
			h.trace = append(h.trace, fmt.Sprintf("up +%v -%v has %v", m.GetResourceNamesSubscribe(), m.GetResourceNamesUnsubscribe(), m.GetInitialResourceVersions()))
		}
	}
	h.s.down, h.s.up = nil, nil
}

func (h *harness) envoy(m *discoveryv3.DeltaDiscoveryRequest) {
	h.t.Helper()
	f, err := proto.Marshal(m)
	if err != nil {
		h.t.Fatal(err)
	}
	h.check(h.s.fromEnvoy(f))
}

func (h *harness) subscribe(names ...string) {
	h.t.Helper()
	h.envoy(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: names})
}

func (h *harness) above(nonce, version string, bodies ...*anypb.Any) {
	h.t.Helper()
	m := &discoveryv3.DeltaDiscoveryResponse{Nonce: nonce, TypeUrl: ecds.TypeURL}
	for _, b := range bodies {
		m.Resources = append(m.Resources, &discoveryv3.Resource{Name: ecds.Name(b), Version: version, Resource: b})
	}
	f, err := proto.Marshal(m)
	if err != nil {
		h.t.Fatal(err)
	}
	_, _, err = h.s.fromAbove(f)
	h.check(err)
}

func (h *harness) fetched(name, content string) {
	h.t.Helper()
	lease := &store.Lease{Path: "/modules/" + content, Digest: sha256.Sum256([]byte(content))}
	h.check(h.s.fetched(name, h.flights[name], lease, nil))
}

func (h *harness) fetchFails(name, reason string) {
	h.t.Helper()
	h.check(h.s.fetched(name, h.flights[name], nil, errors.New(reason)))
}

func (h *harness) ack(name string) {
	h.t.Helper()
	h.envoy(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: h.nonces[name]})
}

func (h *harness) nack(name, reason string) {
	h.t.Helper()
	h.envoy(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: h.nonces[name], ErrorDetail: reject(codes.Internal, reason)})
}

func (h *harness) expect(want ...string) {
	h.t.Helper()
	if diff := cmp.Diff(want, h.trace); diff != "" {
		h.t.Errorf("trace (-want +got):\n%s", diff)
	}
	h.trace = nil
}

func version(v, content string) string {
	d := module.Digest(sha256.Sum256([]byte(content)))
	return v + "~" + d.Hex()[:12]
}

// running brings a harness to where the proxy serves and runs version v1 of a.
func running(t *testing.T) *harness {
	h := newHarness(t)
	h.subscribe("a")
	h.above("1", "v1", remoteExtension(t, "a", "1", 0))
	h.fetched("a", "one")
	h.ack("a")
	h.serving = true
	h.trace = nil
	return h
}

const unavailable = "registry.test: connection refused"

func TestStartingProxy(t *testing.T) {
	h := newHarness(t)
	h.subscribe("a")
	h.above("1", "v1", remoteExtension(t, "a", "1", 0))
	h.expect("up +[a] -[] has map[]", "fetch oci://registry.test/a:1 in 0s")
	h.fetched("a", "one")
	h.expect("down a " + version("v1", "one") + ": file /modules/one")
	h.ack("a")
	h.expect("up ack 1")
}

func TestStartingProxyWithoutModule(t *testing.T) {
	for _, tt := range []struct {
		policy  wasmv3.FailurePolicy
		version string
		types   []string
		runs    string
	}{
		{wasmv3.FailurePolicy_FAIL_CLOSED, "v1~deny", []string{"x", "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"}, "rbac with rules"},
		{wasmv3.FailurePolicy_FAIL_OPEN, "v1~allow", []string{"type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"}, "rbac"},
		{wasmv3.FailurePolicy_FAIL_RELOAD, "v1~deny", []string{"type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"}, "318 bytes of wasm"},
		{wasmv3.FailurePolicy_UNSPECIFIED, "v1~deny", nil, "318 bytes of wasm"},
	} {
		t.Run(tt.policy.String(), func(t *testing.T) {
			h := newHarness(t)
			h.s.relay.listeners["l"] = map[string][]string{"a": tt.types}
			h.subscribe("a")
			h.above("1", "v1", remoteExtension(t, "a", "1", tt.policy))
			h.trace = nil
			h.fetchFails("a", unavailable)
			h.expect("fetch oci://registry.test/a:1 in 1s",
				"down a "+tt.version+": "+tt.runs,
				"up nack 1: extension a: "+unavailable)
			h.ack("a")
			h.fetchFails("a", unavailable)
			h.expect("fetch oci://registry.test/a:1 in 2s")
			h.fetched("a", "one")
			h.ack("a")
			h.expect("down a "+version("v1", "one")+": file /modules/one", "up ack 1")
		})
	}
}

func TestNewExtensionOnServingProxy(t *testing.T) {
	h := newHarness(t)
	h.serving = true
	h.subscribe("a")
	h.above("1", "v1", remoteExtension(t, "a", "1", 0))
	h.expect("up +[a] -[] has map[]", "fetch oci://registry.test/a:1 in 0s", "down a v1~allow: 105 bytes of wasm")
	h.fetched("a", "one")
	h.expect() // one after the other
	h.ack("a")
	h.expect("down a " + version("v1", "one") + ": file /modules/one")
	h.nack("a", "bad configuration")
	h.expect("down a v1~allow: 105 bytes of wasm", // or it would refuse listeners with the filter from now on
		"up nack 1: extension a: the proxy refused it: bad configuration")
	h.ack("a")
	h.expect()
}

func TestProxyRefusesAnUpdate(t *testing.T) {
	h := running(t)
	v1 := "down a " + version("v1", "one") + ": file /modules/one"
	h.above("2", "v2", remoteExtension(t, "a", "2", 0))
	h.fetched("a", "two")
	h.trace = nil
	h.nack("a", "cannot load")
	h.expect(v1, "up nack 2: extension a: the proxy refused it: cannot load")
	h.above("3", "v3", remoteExtension(t, "a", "3", 0))
	h.fetched("a", "three")
	h.expect("fetch oci://registry.test/a:3 in 0s")
	h.ack("a") // v1, again
	h.expect("down a " + version("v3", "three") + ": file /modules/three")
	h.nack("a", "cannot load that either")
	h.nack("a", "nor what it has") // which is not sent for ever
	h.expect(v1, "up nack 3: extension a: the proxy refused it: cannot load that either")
	if got, _ := h.s.relay.holds("a"); got.version != version("v1", "one") {
		t.Errorf("held version = %q", got.version)
	}

	// The same on another stream.
	h.connect(h.s.relay)
	h.envoy(&discoveryv3.DeltaDiscoveryRequest{
		ResourceNamesSubscribe:  []string{"a"},
		InitialResourceVersions: map[string]string{"a": version("v1", "one")},
	})
	h.above("1", "v4", remoteExtension(t, "a", "4", 0))
	h.fetched("a", "four")
	h.trace = nil
	h.nack("a", "cannot load")
	h.expect(v1, "up nack 1: extension a: the proxy refused it: cannot load")
}

func TestUpdateThatFailsChangesNothing(t *testing.T) {
	h := running(t)
	h.above("2", "v2", remoteExtension(t, "a", "2", 0))
	h.fetchFails("a", unavailable)
	h.expect("fetch oci://registry.test/a:2 in 0s",
		"fetch oci://registry.test/a:2 in 1s",
		"up nack 2: extension a: "+unavailable)
	h.fetchFails("a", unavailable)
	h.fetchFails("a", "another reason")
	h.expect("fetch oci://registry.test/a:2 in 2s",
		"fetch oci://registry.test/a:2 in 4s",
		"up nack 2: extension a: another reason")
	h.fetched("a", "two")
	h.ack("a")
	h.expect("down a "+version("v2", "two")+": file /modules/two", "up ack 2")
}

func TestRefusalIsNotTriedAgain(t *testing.T) {
	h := running(t)
	h.above("2", "v2", remoteExtension(t, "a", "2", 0))
	h.check(h.s.fetched("a", h.flights["a"], nil, Refusal{errors.New("refused its configuration")}))
	h.expect("fetch oci://registry.test/a:2 in 0s", "up nack 2: extension a: refused its configuration")
	h.above("3", "v3", remoteExtension(t, "a", "3", 0))
	h.fetched("a", "three")
	h.ack("a")
	h.expect("fetch oci://registry.test/a:3 in 0s", "down a "+version("v3", "three")+": file /modules/three", "up ack 3")
}

func TestRollbackToWhatRuns(t *testing.T) {
	h := running(t)
	h.above("2", "v2", remoteExtension(t, "a", "2", 0))
	h.fetchFails("a", unavailable)
	h.trace = nil
	h.above("3", "v1", remoteExtension(t, "a", "1", 0))
	h.fetched("a", "one")
	h.expect("fetch oci://registry.test/a:1 in 0s", "up ack 3") // nothing for the proxy: it has that
}

func TestNewestWins(t *testing.T) {
	h := running(t)
	h.above("2", "v2", remoteExtension(t, "a", "2", 0))
	old := h.flights["a"]
	h.above("3", "v3", remoteExtension(t, "a", "3", 0))
	h.expect("fetch oci://registry.test/a:2 in 0s", "fetch oci://registry.test/a:3 in 0s")
	h.check(h.s.fetched("a", old, &store.Lease{Path: "/modules/two"}, nil))
	h.check(h.s.fetched("a", old, nil, errors.New(unavailable)))
	h.expect()
	h.fetched("a", "three")
	h.above("4", "v4", remoteExtension(t, "a", "4", 0))
	h.fetched("a", "four")
	h.expect("down a "+version("v3", "three")+": file /modules/three", "fetch oci://registry.test/a:4 in 0s")
	h.ack("a") // of v3, which is not wanted any more: v4 follows
	h.expect("down a " + version("v4", "four") + ": file /modules/four")
	h.ack("a")
	h.expect("up ack 4")
}

func TestExtensionsDoNotWaitForEachOther(t *testing.T) {
	h := newHarness(t)
	h.subscribe("a", "b", "c")
	h.above("1", "v1", remoteExtension(t, "a", "1", 0), remoteExtension(t, "b", "1", 0),
		extensionConfig(t, "c", new(httprbacv3.RBAC)), extensionConfig(t, "not-subscribed", new(httprbacv3.RBAC)))
	h.trace = nil
	h.fetched("b", "b")
	h.ack("b")
	h.ack("c")
	h.expect("down b " + version("v1", "b") + ": file /modules/b")
	h.fetchFails("a", unavailable)
	h.expect("fetch oci://registry.test/a:1 in 1s", "down a v1~deny: 318 bytes of wasm", "up nack 1: extension a: "+unavailable)
}

func TestRemovalIsKeptFromEnvoy(t *testing.T) {
	h := running(t)
	f, err := proto.Marshal(&discoveryv3.DeltaDiscoveryResponse{Nonce: "2", TypeUrl: ecds.TypeURL, RemovedResources: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = h.s.fromAbove(f)
	h.check(err)
	h.expect("up ack 2")
	h.envoy(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{"a"}})
	h.expect("up +[] -[a] has map[]")
	if _, ok := h.s.relay.holds("a"); ok {
		t.Error("the module is held although the proxy has let go of it")
	}
}

func TestReconnect(t *testing.T) {
	h := running(t)
	h.connect(h.s.relay)
	v1 := version("v1", "one")
	h.envoy(&discoveryv3.DeltaDiscoveryRequest{
		ResourceNamesSubscribe:  []string{"a", "b"},
		InitialResourceVersions: map[string]string{"a": v1, "b": "v1~allow"},
	})
	h.expect("up +[a b] -[] has map[a:v1]") // b is to be sent again: it is only a stand-in
	h.above("1", "v1", remoteExtension(t, "b", "1", 0))
	h.fetchFails("b", unavailable)
	h.expect("fetch oci://registry.test/b:1 in 0s", "fetch oci://registry.test/b:1 in 1s",
		"up nack 1: extension b: "+unavailable) // and the stand-in stays

	// Another agent knows nothing, asks for everything, and does not disturb what runs.
	h.connect(New(Config{}))
	h.envoy(&discoveryv3.DeltaDiscoveryRequest{
		ResourceNamesSubscribe:  []string{"a"},
		InitialResourceVersions: map[string]string{"a": v1},
	})
	h.expect("up +[a] -[] has map[]")
	h.above("1", "v1", remoteExtension(t, "a", "1", 0))
	h.fetched("a", "one")
	h.expect("fetch oci://registry.test/a:1 in 0s", "up ack 1")
	if got, _ := h.s.relay.holds("a"); got.version != v1 {
		t.Errorf("held version = %q, want %q", got.version, v1)
	}
}

// TestReport: Chandler's own control plane is told which modules run, when they
// begin to and when a stream begins.
func TestReport(t *testing.T) {
	h := newHarness(t)
	h.s.relay.own.Store(true)
	h.subscribe("a")
	h.above("1", "v1", remoteExtension(t, "a", "1", 0))
	h.fetched("a", "one")
	h.trace = nil
	h.ack("a")
	runs := fmt.Sprintf("up runs map[a:%v]", module.Digest(sha256.Sum256([]byte("one"))))
	h.expect("up ack 1", runs)
	h.connect(h.s.relay)
	h.envoy(&discoveryv3.DeltaDiscoveryRequest{
		ResourceNamesSubscribe:  []string{"a", "b"},
		InitialResourceVersions: map[string]string{"a": version("v1", "one")},
	})
	h.expect("up +[a b] -[] has map[a:v1]", runs)

	h.above("2", "v2", extensionConfig(t, "a", new(httprbacv3.RBAC))) // without a module
	h.trace = nil
	h.ack("a")
	h.expect("up ack 2", fmt.Sprintf("up runs map[a:%v]", module.Digest{}))
}

// TestCodes: a refusal says whether the module was fetched.
func TestCodes(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want codes.Code
	}{
		{&fetch.Error{Kind: fetch.NotFound, Err: errors.New("404")}, codes.NotFound},
		{Refusal{errors.New("bad configuration")}, ecds.Fetched},
		{errors.New("no space left on device"), codes.InvalidArgument},
	} {
		if got := failed(tt.err).code; got != tt.want {
			t.Errorf("%v: %v, want %v", tt.err, got, tt.want)
		}
	}
	if _, ok := fetch.KindOf(ecds.Fetched); ok {
		t.Error("the code of what was fetched is that of a failure to fetch")
	}
	h := running(t)
	h.above("2", "v2", remoteExtension(t, "a", "2", 0))
	h.fetched("a", "two")
	h.nack("a", "cannot load")
	if f := h.s.batches["2"].failed["a"]; f.code != ecds.Fetched {
		t.Errorf("refused by the proxy: %+v", f)
	}
}

func TestStandInRefused(t *testing.T) {
	h := newHarness(t)
	h.s.relay.listeners["l"] = map[string][]string{"a": []string{"type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"}}
	h.subscribe("a")
	h.above("1", "v1", remoteExtension(t, "a", "1", 0))
	h.fetchFails("a", unavailable)
	h.trace = nil
	h.nack("a", "no such filter")
	h.expect("down a v1~deny: 318 bytes of wasm")
	h.nack("a", "no such filter")
	h.expect()
}

func TestProxyRefusesTheOnlyVersion(t *testing.T) {
	h := newHarness(t)
	h.subscribe("a")
	h.above("1", "v1", remoteExtension(t, "a", "1", 0))
	h.fetched("a", "one")
	h.trace = nil
	h.serving = true // as Envoy does once it has refused what it waited for
	h.nack("a", "cannot load")
	h.expect("down a v1~deny: 318 bytes of wasm", "up nack 1: extension a: the proxy refused it: cannot load")
}

// A control plane in state of the world sends again what has not changed, while
// the proxy has not answered it yet.
func TestProxyRefusesWhatComesTwice(t *testing.T) {
	h := running(t)
	h.above("2", "v2", remoteExtension(t, "a", "2", 0))
	h.fetched("a", "two")
	h.above("3", "v3", remoteExtension(t, "a", "2", 0))
	h.fetched("a", "two")
	h.trace = nil
	h.nack("a", "cannot load")
	h.expect("down a "+version("v1", "one")+": file /modules/one", "up nack 3: extension a: the proxy refused it: cannot load")
	h.ack("a")
	h.expect()
}

func TestListenersWaitForAnswers(t *testing.T) {
	h := running(t)
	passed := func(want ...string) {
		t.Helper()
		var got []string
		for _, f := range h.s.down {
			if strings.HasPrefix(string(f), "listener") {
				got = append(got, string(f))
			}
		}
		h.s.down = nil
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("listeners passed (-want +got):\n%s", diff)
		}
	}
	envoy := func(m *discoveryv3.DeltaDiscoveryRequest) {
		t.Helper()
		f, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.s.fromEnvoy(f); err != nil {
			t.Fatal(err)
		}
	}
	h.above("2", "v2", remoteExtension(t, "a", "2", 0))
	h.s.passListeners(frame("listener 1"))
	passed("listener 1") // a fetch holds up nothing
	h.fetched("a", "two")
	h.s.passListeners(frame("listener 2"))
	h.s.passListeners(frame("listener 3"))
	passed()
	envoy(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: fmt.Sprint(h.s.nonces), ErrorDetail: reject(codes.Internal, "cannot load")})
	passed() // a is being restored
	envoy(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: fmt.Sprint(h.s.nonces)})
	passed("listener 2", "listener 3")

	h.above("3", "v3", remoteExtension(t, "a", "3", 0))
	h.fetched("a", "three")
	h.s.passListeners(frame("listener 4"))
	passed()
	envoy(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{"a"}})
	passed("listener 4")
}

func TestMalformed(t *testing.T) {
	h := newHarness(t)
	h.subscribe("a", "b")
	broken, err := anypb.New(&corev3.TypedExtensionConfig{Name: "a", TypedConfig: &anypb.Any{
		TypeUrl: "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm", Value: []byte{0xff},
	}})
	if err != nil {
		t.Fatal(err)
	}
	h.above("1", "v1", broken)
	want := "up nack 1: extension a: decode extension config a: proto:"
	if got := h.trace[len(h.trace)-1]; !strings.HasPrefix(got, want) {
		t.Errorf("answer = %q, want %q…", got, want)
	}
	if got, want := h.trace[1], "down a v1~deny: 318 bytes of wasm"; got != want {
		t.Errorf("stand-in = %q, want %q", got, want)
	}
	h.trace = nil
	h.above("2", "v1", extensionConfig(t, "b", &httpwasmv3.Wasm{Config: &wasmv3.PluginConfig{
		Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{
			Code: &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Remote{Remote: &corev3.RemoteDataSource{}}},
		}},
	}}))
	h.expect("down b v1~deny: 318 bytes of wasm", "up nack 2: extension b: the remote module has no http_uri")
}

func TestLateAck(t *testing.T) {
	h := newHarness(t)
	h.subscribe("a")
	h.above("1", "v1", remoteExtension(t, "a", "1", 0))
	h.trace = nil
	h.check(h.s.lateAck("1"))
	h.expect("up ack 1")
	h.fetched("a", "one")
	h.ack("a")
	h.check(h.s.lateAck("1"))
	h.expect("down a " + version("v1", "one") + ": file /modules/one")
}

func TestBackoff(t *testing.T) {
	for n, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 6: 32 * time.Second, 7: time.Minute, 900: time.Minute} {
		if got := backoff(n, 0); got != want {
			t.Errorf("backoff(%d, 0) = %v, want %v", n, got, want)
		}
		if got := backoff(n, 1); got != want*4/5 {
			t.Errorf("backoff(%d, 1) = %v, want %v", n, got, want*4/5)
		}
	}
}

// listener is a listener that discovers those extensions.
func listener(t *testing.T, extensions ...string) *anypb.Any {
	t.Helper()
	hcm := new(hcmv3.HttpConnectionManager)
	for _, name := range extensions {
		hcm.HttpFilters = append(hcm.HttpFilters, &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{
			ConfigDiscovery: &corev3.ExtensionConfigSource{TypeUrls: []string{"type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"}},
		}})
	}
	typed, err := anypb.New(hcm)
	if err != nil {
		t.Fatal(err)
	}
	res, err := anypb.New(&listenerv3.Listener{Name: "l", FilterChains: []*listenerv3.FilterChain{{
		Filters: []*listenerv3.Filter{{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: typed}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// listen passes listener l with those extensions to the harness, in the
// incremental variant or as the state of the world.
func (h *harness) listen(whole bool, extensions ...string) {
	h.t.Helper()
	l := listeners{changed: map[string]*anypb.Any{"l": listener(h.t, extensions...)}, whole: whole}
	h.check(h.s.renamed(h.s.relay.discovered(l)))
}

func TestExtensionThatNoListenerHas(t *testing.T) {
	for _, whole := range []bool{false, true} {
		h := running(t)
		h.listen(whole, "a", "b")
		h.expect()
		h.listen(whole, "b")
		h.expect("down a none~allow: 105 bytes of wasm")
		h.ack("a")
		if _, ok := h.s.relay.holds("a"); ok {
			t.Error("the module is held although the proxy does not run it")
		}

		// A new one of its name, whose module is missing, does not begin as the old one.
		h.above("2", "v2", remoteExtension(t, "a", "2", 0))
		h.listen(whole, "a", "b")
		h.fetchFails("a", unavailable)
		h.expect("fetch oci://registry.test/a:2 in 0s",
			"fetch oci://registry.test/a:2 in 1s", "up nack 2: extension a: "+unavailable)
	}
}

func TestExtensionThatAListenerHasAgain(t *testing.T) {
	h := running(t)
	h.listen(false, "a")
	h.listen(false)
	h.ack("a")
	h.trace = nil
	h.listen(false, "a") // and the control plane sees no reason to send it again
	h.fetched("a", "one")
	h.ack("a")
	h.expect("fetch oci://registry.test/a:1 in 0s", "down a "+version("v1", "one")+": file /modules/one")

	// While its module is fetched.
	h.above("2", "v2", remoteExtension(t, "a", "2", 0))
	h.listen(false)
	h.ack("a")
	h.fetched("a", "two") // came too late
	h.trace = nil
	h.listen(false, "a")
	h.fetched("a", "two")
	h.ack("a")
	h.expect("fetch oci://registry.test/a:2 in 0s", "down a "+version("v2", "two")+": file /modules/two", "up ack 2")
}

// Any refusal would open a listener that waits for an extension which is new to a
// serving proxy: until the proxy has something for that, it gets nothing to refuse.
func TestNothingToRefuseWhileAListenerWaits(t *testing.T) {
	awaiting := func(t *testing.T) (h *harness, wait uint64) {
		h = running(t)
		h.above("2", "v2", remoteExtension(t, "a", "2", 0))
		wait, begun := h.s.await([]string{"a", "b", "c"})
		if !begun {
			t.Fatal("nothing is awaited")
		}
		h.fetched("a", "two")
		h.expect("fetch oci://registry.test/a:2 in 0s")
		h.subscribe("b", "c")
		h.above("3", "v1", remoteExtension(t, "b", "1", 0), extensionConfig(t, "c", new(httprbacv3.RBAC)))
		h.fetched("b", "b")
		h.expect("up +[b c] -[] has map[]", "fetch oci://registry.test/b:1 in 0s", "down b v1~allow: 105 bytes of wasm",
			"down c v1: rbac")
		return h, wait
	}
	two, b := "down a "+version("v2", "two")+": file /modules/two", "down b "+version("v1", "b")+": file /modules/b"
	t.Run("until it has them", func(t *testing.T) {
		h, wait := awaiting(t)
		h.ack("b")
		h.expect() // it waits for c
		h.ack("c")
		h.expect(two, b)
		h.nack("a", "cannot load")
		h.ack("b")
		h.expect("down a "+version("v1", "one")+": file /modules/one", "up nack 2: extension a: the proxy refused it: cannot load", "up ack 3")
		h.check(h.s.awaitedEnough(wait))
		h.expect()
	})
	t.Run("until it does not want them", func(t *testing.T) {
		h, _ := awaiting(t)
		h.ack("b")
		h.envoy(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{"c"}})
		h.expect(two, b, "up +[] -[c] has map[]")
	})
	t.Run("until no listener does", func(t *testing.T) {
		h, _ := awaiting(t)
		h.listen(false, "a", "b", "c")
		h.ack("b")
		h.listen(false, "a", "b")
		h.expect(two, b)
	})
	t.Run("for so long", func(t *testing.T) {
		h, wait := awaiting(t)
		if _, begun := h.s.await([]string{"d"}); !begun {
			t.Fatal("nothing is awaited")
		}
		h.ack("b")
		h.check(h.s.awaitedEnough(wait))
		h.expect() // the other wait goes on
		h.check(h.s.awaitedEnough(wait + 1))
		h.expect(two, b)
	})
	t.Run("not while it starts", func(t *testing.T) {
		h := newHarness(t)
		if _, begun := h.s.await([]string{"a"}); begun {
			t.Error("is awaited")
		}
	})
	t.Run("not for what it has from an earlier stream", func(t *testing.T) {
		h := running(t)
		h.connect(h.s.relay)
		if _, begun := h.s.await([]string{"a"}); !begun {
			t.Error("is not awaited although it may be new")
		}
		h.envoy(&discoveryv3.DeltaDiscoveryRequest{
			ResourceNamesSubscribe:  []string{"a"},
			InitialResourceVersions: map[string]string{"a": version("v1", "one")},
		})
		if h.s.exposed("other") {
			t.Error("is awaited although the proxy has it")
		}
	})
}

// An agent that has just begun does not know the listeners that an Envoy has from
// the one before: what one of them loses another may have.
func TestExtensionsOfListenersNotSeen(t *testing.T) {
	h := running(t)
	h.s.relay.begin(true)
	h.listen(false, "a")
	h.listen(false)
	h.expect()
	h.s.relay.begin(true) // another stream, the same agent
	h.listen(false, "a")
	h.listen(false)
	h.expect()
	h.s.relay.begin(false) // another Envoy
	h.listen(false, "a")
	h.listen(false)
	h.expect("down a none~allow: 105 bytes of wasm")

	for _, tt := range []struct {
		m    *discoveryv3.DeltaDiscoveryRequest
		want bool
	}{
		{&discoveryv3.DeltaDiscoveryRequest{InitialResourceVersions: map[string]string{"l": "1"}}, true},
		{new(discoveryv3.DeltaDiscoveryRequest), false},
	} {
		f, err := proto.Marshal(tt.m)
		if err != nil {
			t.Fatal(err)
		}
		if got := new(delta).hasListeners(f); got != tt.want {
			t.Errorf("hasListeners(%v) = %v", tt.m, got)
		}
	}
}

func TestListenersInBothVariants(t *testing.T) {
	body := listener(t, "a")
	response := func(m proto.Message) frame {
		f, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	for _, tt := range []struct {
		name string
		d    dialect
		f    frame
		want listeners
	}{
		{"incremental", new(delta), response(&discoveryv3.DeltaDiscoveryResponse{
			Resources: []*discoveryv3.Resource{{Name: "l", Resource: body}}, RemovedResources: []string{"m"},
		}), listeners{changed: map[string]*anypb.Any{"l": body}, removed: []string{"m"}}},
		{"state of the world", new(sotw), response(&discoveryv3.DiscoveryResponse{Resources: []*anypb.Any{body}}),
			listeners{changed: map[string]*anypb.Any{"l": body}, whole: true}},
		{"malformed", new(delta), frame{0xff}, listeners{}},
		{"malformed, state of the world", new(sotw), frame{0xff}, listeners{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.d.listeners(tt.f), cmp.AllowUnexported(listeners{}), protocmp.Transform()); diff != "" {
				t.Errorf("listeners (-want +got):\n%s", diff)
			}
		})
	}
}
