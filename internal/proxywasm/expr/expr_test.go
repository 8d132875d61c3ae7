package expr

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// fake is a source with properties, by path with dots, and states.
type fake struct {
	properties map[string]string
	states     map[string]proxywasm.Value
}

func (f fake) AppendProperty(dst []byte, path string) ([]byte, abi.Status) {
	v, ok := f.properties[strings.ReplaceAll(path, "\x00", ".")]
	switch {
	case !ok:
		return dst, abi.NotFound
	case v == "opaque":
		return dst, abi.SerializationFailure
	}
	return append(dst, v...), abi.OK
}

func (f fake) State(key string) (proxywasm.Value, bool) {
	v, ok := f.states[key]
	return v, ok
}

func (f fake) IsStream() bool { return f.states != nil }

func newFake(t testing.TB) fake {
	node := &corev3.Node{Id: "the id", Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"k": structpb.NewStringValue("vv"), "n": structpb.NewNumberValue(2)}}}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(node)
	if err != nil {
		t.Fatal(err)
	}
	headers := abi.AppendMap(nil, []abi.Pair{{Key: ":authority", Value: "host"}, {Key: "x-a", Value: "1,2"}})
	return fake{
		properties: map[string]string{
			"request.path": "/p", "request.size": string(abi.AppendInt(nil, -5)), "request.headers": string(headers), "connection.id": string(abi.AppendUint(nil, 7)),
			"connection.mtls": "\x01", "request.time": string(abi.AppendTime(nil, time.Unix(5, 6))), "request.duration": string(abi.AppendDuration(nil, time.Second)),
			"xds.node": string(raw), "response.code": "bad", "plugin_name": "me", "xds.upstream_host_metadata": "opaque", "custom": "\xff",
		},
		states: map[string]proxywasm.Value{
			"wasm.s": {Type: proxywasm.String, Data: "text"}, "wasm.b": {Data: "\xfe"}, "envoy.string": {Type: proxywasm.String, Data: "e"},
			"wasm.node": {Type: proxywasm.Protobuf, Schema: "type.googleapis.com/envoy.config.core.v3.Node", Data: string(raw)},
			"wasm.no":   {Type: proxywasm.Protobuf, Schema: "type.googleapis.com/no.such", Data: "x"},
		},
	}
}

// eval is the status and the value in hexadecimal, or why there is no expression.
func eval(env *environment, f fake, text string) string {
	p, err := env.compile(text)
	if err != nil {
		return "refused"
	}
	v, status := value(p, &activation{c: f, began: time.Now(), limit: time.Minute})
	return fmt.Sprintf("%s %s", status, hex.EncodeToString(v))
}

// What Envoy 1.40 answers to far more is compared in package engine.
func TestExpressions(t *testing.T) {
	env, f := newEnvironment(), newFake(t)
	word := func(v string) string { return "OK " + hex.EncodeToString([]byte(v)) }
	num := func(n int64) string { return "OK " + hex.EncodeToString(abi.AppendInt(nil, n)) }
	const yes, no, failed, null = "OK 01", "OK 00", "INTERNAL_FAILURE ", "SERIALIZATION_FAILURE "
	for text, want := range map[string]string{
		`request.path`: word("/p"), `request.path + "x"`: word("/px"), `request.size`: num(-5), `connection.id`: num(7), `connection.id + 1`: failed, `connection.id + 1u`: num(8),
		`connection.mtls`: yes, `request.time`: num(5e9 + 6), `request.duration < duration("2s")`: yes, `request.nothing`: failed, `has(request.nothing)`: no, `has(request.path)`: yes,
		`request`: null, `size(request)`: num(0), `"path" in request`: yes, `1 in request`: no, `request == connection`: yes, `response.code`: failed, `nothing`: failed, `a.b.c`: failed,
		`request.headers["X-A"]`: word("1,2"), `request.headers.host`: word("host"), `request.headers.map(k, k)`: "OK 020000000a000000000000000300000000000000" + hex.EncodeToString([]byte(":authority\x00\x00x-a\x00\x00")),
		`"X-a" in request.headers`: yes, `request.headers.size()`: num(2), `request.headers.nothing`: failed,
		`xds.node.id`: word("the id"), `xds.node.metadata.k`: word("vv"), `xds.node.metadata`: "OK 0200000001000000020000000100000008000000" + hex.EncodeToString([]byte("k\x00vv\x00n\x00\x00\x00\x00\x00\x00\x00\x00\x40\x00")),
		`xds.node["id"]`: failed, `has(xds.node.id)`: yes, `has(xds.node.nothing)`: failed, `xds.node.nothing`: failed, `xds.node == xds.node`: yes, `xds.upstream_host_metadata`: null, `xds.upstream_host_metadata == null`: yes,
		`s`: word("text"), `b`: "OK fe", `node.metadata.n`: "OK 0000000000000040", `no`: failed, `custom`: "OK ff", `plugin_name`: word("me"),
		`filter_state["envoy.string"]`: word("e"), `filter_state["wasm.s"]`: word("text"), `filter_state.nothing`: failed, `filter_state`: null,
		`1 +`: "refused", `nosuch(1)`: "refused", `size(1, 2)`: "refused", `"a".nosuch()`: "refused", `google.protobuf.No{}`: "refused", `envoy.config.core.v3.Node{no: 1}`: "refused", `{?"a": 1}`: "refused",
		`envoy.config.core.v3.Node{id: "x"}`: "OK 0a0178", `envoy.config.core.v3.Node{id: "x"}.id`: word("x"), `google.protobuf.Int64Value{value: 5}`: num(5), `envoy.config.core.v3.Node{id: 1}`: failed,
		`{"z": 1, "a": 2}`: "OK 0200000001000000080000000100000008000000" + "7a0001000000000000000061000200000000000000" + "00", `{"a": 1, "a": 2}`: failed, `{1.5: 1}`: failed, `{[1]: 1}`: failed, `{"a": null}`: null,
		`[1, "a"]`: "OK 020000000800000000000000010000000000000001000000000000000000610000", `null`: null, `type(1)`: null, `type(1) == int`: yes, `google.protobuf.Timestamp`: failed,
		`string(timestamp("2020-01-01T00:00:00.5Z"))`: word("2020-01-01T00:00:00.500Z"), `string(duration("-1.000001s"))`: word("-1.000001s"), `string(duration("90s"))`: word("90s"), `string(1e8)`: word("1e+08"),
		`string(1.0/0.0)`: word("inf"), `string(-1.0/0.0)`: word("-inf"), `string(null)`: failed, `string(1)`: word("1"), `int(true)`: num(1), `int(null)`: failed, `int("5")`: num(5),
		`duration("1.5s").getMilliseconds()`: num(500), `timestamp("2020-01-01T00:00:00.25Z").getMilliseconds()`: num(250), `"a".getMilliseconds()`: failed, `contains("ab", "b")`: yes, `startsWith("ab", 1)`: failed,
		`timestamp("0001-01-01T00:00:00Z")`: num(-1 << 63), `timestamp("9999-12-31T23:59:59Z")`: num(1<<63 - 1),
	} {
		if got := eval(env, f, text); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

// Outside of a stream there is nothing of one.
func TestOutsideOfStreams(t *testing.T) {
	env, f := newEnvironment(), newFake(t)
	f.states = nil
	for text, want := range map[string]string{
		`request`: "INTERNAL_FAILURE ", `filter_state`: "INTERNAL_FAILURE ", `xds.node.id`: "OK 746865206964", `plugin_name`: "OK 6d65",
	} {
		if got := eval(env, f, text); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

// An expression loops no more than Envoy lets it, and stops when its time is up.
func TestBounds(t *testing.T) {
	env, f := newEnvironment(), newFake(t)
	list := func(n int) string { return "[" + strings.TrimSuffix(strings.Repeat("0,", n), ",") + "]" }
	for inner, want := range map[int]string{98: "OK 01", 99: "INTERNAL_FAILURE "} {
		if got := eval(env, f, list(100)+".all(a, "+list(inner)+".all(b, true))"); got != want {
			t.Errorf("100 times %d: %s, want %s", inner, got, want)
		}
	}
	p, err := env.compile(`[1].map(x, x + 1)[0]`)
	if err != nil {
		t.Fatal(err)
	}
	if _, status := value(p, &activation{c: f, began: time.Now().Add(-time.Second), limit: time.Millisecond}); status != abi.InternalFailure {
		t.Errorf("late: %v", status)
	}
	if v, status := value(p, &activation{c: f, began: time.Now().Add(-time.Hour), limit: -1}); status != abi.OK || len(v) != 8 {
		t.Errorf("without a limit: %v", status)
	}
}

func TestLookup(t *testing.T) {
	f := newFake(t)
	node := f.states["wasm.node"]
	for path, want := range map[string]string{
		"": "OK " + hex.EncodeToString([]byte(node.Data)), "id": "OK 746865206964", "metadata.k": "OK 7676", "metadata.nothing": "NOT_FOUND ", "nothing": "NOT_FOUND ", "id.x": "NOT_FOUND ",
		"locality": "OK ", "locality.zone": "OK ", "client_features": "OK 00000000", "client_features.0": "NOT_FOUND ", "client_features.x": "NOT_FOUND ",
		"user_agent_build_version.version.major_number": "OK 0000000000000000",
	} {
		v, status := lookup(nil, node.Schema, node.Data, strings.ReplaceAll(path, ".", "\x00"))
		if got := fmt.Sprintf("%s %s", status, hex.EncodeToString(v)); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	for _, url := range []string{"type.googleapis.com/no.such", "envoy.config.core.v3.Node", ""} {
		if _, status := lookup(nil, url, node.Data, "id"); status != abi.NotFound {
			t.Errorf("of type %q: %v", url, status)
		}
	}
	if _, status := lookup(nil, node.Schema, "\xff", "id"); status != abi.NotFound {
		t.Errorf("malformed: %v", status)
	}
}

// No expression panics, or runs away.
func FuzzExpression(f *testing.F) {
	for _, text := range []string{
		`request.headers["a"] == "b" && size([1,2].map(x, x+1)) > 1`, `{"a": [1, {}]}.a[1]`, `xds.node.metadata.k.matches("^v+$")`, `google.protobuf.Struct{fields: {"a": google.protobuf.Value{}}}`,
		`timestamp("2020-01-01T00:00:00Z") + duration("1h")`, `string(1.5) + string(b"a")`, `[[1,2],[3]].exists(x, x.all(y, y > 0))`, `envoy.config.core.v3.Node{id: "x"}.id`,
	} {
		f.Add(text)
	}
	env, source := newEnvironment(), newFake(f)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := env.compile(text)
		if err != nil {
			return
		}
		value(p, &activation{c: source, began: time.Now(), limit: 100 * time.Millisecond})
	})
}
