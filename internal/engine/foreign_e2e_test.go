//go:build e2e

package engine

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	netwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

// scriptGuest builds testdata/guests/script.
func scriptGuest(t *testing.T) string {
	t.Helper()
	return compile(t, "clang", "--target=wasm32", "-O2", "-nostdlib", "-fno-builtin", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unused-function",
		"-Werror", "-Wl,--no-entry", "-Wl,--strip-debug", "testdata/guests/script/script.c", "-o")
}

// A script is what a guest is told to do, by when.
type script struct{ request, response, log []string }

func (s script) headers() (list []string) {
	for name, commands := range map[string][]string{"X-Request": s.request, "X-Response": s.response, "X-Log": s.log} {
		list = append(list, name+": "+strings.Join(commands, ";"))
	}
	return list
}

// A scripted has requests with scripts sent to a pair, and what the guests log compared.
type scripted struct {
	*pair
	sent        int  // requests, until both guests have forgotten their streams
	http2       bool // what they are sent over
	connections bool // the guests see those, too
}

// newScripted has the configuration run as a script.
func newScripted(t *testing.T, configuration ...string) *scripted {
	return &scripted{pair: guestPair(t, scriptGuest(t), strings.Join(configuration, ";"))}
}

// run sends a request on a connection of its own. mask makes equal what is not.
func (p *scripted) run(t *testing.T, s script, mask func([]string) []string) {
	t.Helper()
	p.exchange(t, [][]script{{s}}, mask)
}

// client has connections of its own.
func (p *scripted) client() *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!p.http2)
	protocols.SetUnencryptedHTTP2(p.http2)
	return &http.Client{Transport: &http.Transport{Protocols: protocols}}
}

// exchange sends the scripts of each connection over one, in both proxies.
func (p *scripted) exchange(t *testing.T, all [][]script, mask func([]string) []string) {
	t.Helper()
	fromEnvoy, fromEngine := len(p.saidByEnvoy()), len(p.saidByEngine())
	for _, scripts := range all {
		clients := map[int]*http.Client{p.envoyPort: p.client(), p.enginePort: p.client()}
		for _, s := range scripts {
			p.sent++
			for port, client := range clients {
				if code := sendScript(t, client, port, s); code != 200 {
					t.Fatalf("status %d", code)
				}
			}
			p.forgotten(t)
		}
		for _, client := range clients {
			client.CloseIdleConnections()
		}
		if p.connections {
			p.sent++
			p.forgotten(t)
		}
	}
	wanted, have := masked(p.saidByEnvoy()[fromEnvoy:]), masked(p.saidByEngine()[fromEngine:])
	if mask != nil {
		wanted, have = mask(wanted), mask(have)
	}
	if diff := lineDiff(wanted, have); diff != "" {
		t.Errorf("log (-envoy +engine):\n%s", diff)
	}
	if n := len(wanted); n < 4 {
		t.Errorf("the guest said %d lines", n)
	}
}

// forgotten waits until both guests have forgotten what they were sent.
func (p *scripted) forgotten(t *testing.T) {
	t.Helper()
	until(t, "envoy", p.saidByEnvoy, ": deleted", p.sent)
	until(t, "the engine", p.saidByEngine, ": deleted", p.sent)
}

func sendScript(t *testing.T, client *http.Client, port int, s script) int {
	t.Helper()
	r, err := http.NewRequest("GET", fmt.Sprintf("http://127.0.0.1:%d/p/x?q=1", port), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "example.com"
	for _, h := range append(s.headers(), "X-Mixed: Aa", "X-Twice: 1", "X-Twice: 2", "User-Agent: me") {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Add(name, value)
	}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

// call is the command that calls a foreign function with a message of fields: strings and
// bytes, or numbers.
func call(function string, fields map[protowire.Number]any) string {
	var b []byte
	for n := protowire.Number(1); n < 32; n++ {
		switch v := fields[n].(type) {
		case string:
			b = protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), v)
		case []byte:
			b = protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
		case int:
			b = protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), uint64(v))
		}
	}
	return "call " + function + " " + hex.EncodeToString(b)
}

type fields = map[protowire.Number]any

func declare(name string, readonly, kind int, schema string, span int) string {
	return call("declare_property", fields{1: name, 2: readonly, 3: kind, 4: schema, 5: span})
}

func filterState(key, value string, span int) string {
	return call("set_envoy_filter_state", fields{1: key, 2: value, 3: span})
}

// TestForeignPropertiesLikeEnvoy declares properties of all types and life spans, and
// sets and gets them in several requests of a connection.
func TestForeignPropertiesLikeEnvoy(t *testing.T) {
	const structURL = "type.googleapis.com/google.protobuf.Struct"
	const nodeURL = "type.googleapis.com/envoy.config.core.v3.Node"
	p := newScripted(t,
		declare("b", 0, 0, "", 0), declare("s", 0, 1, "", 0), declare("once", 1, 1, "", 0), declare("p", 0, 3, structURL, 0),
		declare("unknown", 0, 3, "type.googleapis.com/no.such", 0), declare("node", 0, 3, nodeURL, 0), declare("noslash", 0, 3, "google.protobuf.Int64Value", 0),
		declare("c", 0, 1, "", 2), declare("conce", 1, 1, "", 2), declare("cp", 0, 3, structURL, 2), declare("r", 0, 1, "", 1), declare("odd", 0, 9, "", 9),
		declare("", 0, 1, "", 0), declare("any", 0, 3, "type.googleapis.com/google.protobuf.Any", 0),
		declare("b", 0, 0, "", 0), "call declare_property", "call declare_property 61", "call declare_property 0a01ff", "call declare_property 0a0178a301a401",
		"get b", "set b x", filterState("envoy.string", "x", 0), "call nothing")
	structure := "0a090a016b12041a027676" // {"k": "vv"}
	node := hex.EncodeToString(must(proto.Marshal(newNode())))
	gets := []string{"get b", "get s", "get once", "get c", "get conce", "get cp|k", "get r", "get odd", "get mine", "get filter_state|envoy.string"}
	for name, all := range map[string][][]script{
		"types": {{{request: []string{
			"get b", "set b 1", "get b", "get b|x", "set b 2", "get b", "eval b", "eval b == b\"2\"", "eval b.x",
			"get s", "set s hi", "get s", "eval s", "eval s + \"x\"", "eval s.x", "get nothing", "eval nothing",
			"set once 1", "set once 2", "get once", "set once 1", "set mine x", "get mine", "eval mine", "eval mine + b\"y\"",
			"set  x", "get ", "get |x", "set a|b 5", "get a|b", "get a", "set x| 7", "get x", "get x|", "set dot.ted x", "get dot.ted", "eval dot.ted",
			"set request x", "get request|path", "get request|headers|Host", "get request|headers|X-Twice", "set plugin_name x", "get plugin_name", "set metadata x", "get metadata",
		}, response: gets, log: append([]string{"set b z", "set once 9"}, gets...)}}},
		"messages": {{{request: []string{
			"put p " + structure, "get p", "get p|k", "get p|fields", "get p|x", "eval p", "eval p.k", "eval p.x", "eval has(p.k)", "eval has(p.x)", "eval size(p)",
			"get filter_state|wasm.p", "get filter_state|wasm.p|k", "put p ff", "get p", "get p|k", "eval p", "put p ", "get p", "eval p",
			"put unknown 78", "get unknown", "get unknown|x", "eval unknown", "put noslash 0805", "get noslash", "get noslash|value", "eval noslash",
			"put node " + node, "get node", "get node|id", "get node|metadata|k", "get node|nothing", "get node|locality", "get node|locality|zone", "get node|client_features",
			"get node|client_features|0", "get node|client_features|9", "get node|client_features|x", "get node|user_agent_build_version|version|major_number",
			"get node|dynamic_parameters", "get node|user_agent_version", "get node|metadata", "eval node", "eval node.id", "eval node.metadata.k", "eval node.locality.zone",
			"eval has(node.locality)", "eval has(node.cluster)", "eval node.nothing", "eval node.client_features[1]", "eval node == node", "eval node[\"id\"]", "eval has(node.nothing)",
			"get filter_state|wasm.node", "get filter_state|wasm.node|id",
			"put any " + hex.EncodeToString(must(proto.Marshal(mustAny(newNode())))), "get any", "get any|id", "eval any.id",
		}}}},
		"life spans": {
			{
				{request: []string{"set c 1", "set conce 1", "put cp " + structure, "set r 1", "set s 1", "set odd 1", "set mine 1"}, response: gets, log: gets},
				{request: append(append([]string{}, gets...), "set c 2", "set conce 2", "get c", "get cp|k"), response: gets, log: []string{"set c 3"}},
				{request: gets},
			},
			{{request: gets}},
		},
		"filter state": {
			{
				{request: []string{
					filterState("envoy.string", "vv", 0), "get envoy.string", "get filter_state|envoy.string", "get filter_state|envoy.string|x", "eval filter_state[\"envoy.string\"]",
					"get filter_state", "eval filter_state", "eval filter_state[\"nothing\"]", "get filter_state|nothing", "set b x", "get filter_state|wasm.b",
					"eval filter_state[\"wasm.b\"]", "eval \"wasm.b\" in filter_state", "eval size(filter_state)",
					filterState("envoy.hashable_string", "h", 0), "get filter_state|envoy.hashable_string",
					filterState("envoy.network.ip", "1.2.3.4", 0), "get filter_state|envoy.network.ip", filterState("envoy.network.ip", "::1", 0), "get filter_state|envoy.network.ip",
					filterState("envoy.network.ip", "x", 0), filterState("envoy.network.ip", "", 0), filterState("envoy.network.ip", "1.2.3.4:5", 0),
					filterState("envoy.ratelimit.hits_addend", "5", 0), "get filter_state|envoy.ratelimit.hits_addend", filterState("envoy.ratelimit.hits_addend", "x", 0),
					filterState("envoy.ratelimit.hits_addend", "99999999999", 0), filterState("envoy.ratelimit.hits_addend", "-1", 0), filterState("envoy.ratelimit.hits_addend", "", 0),
					filterState("envoy.upstream.dynamic_port", "80", 0), "get filter_state|envoy.upstream.dynamic_port", filterState("envoy.upstream.dynamic_port", " +70000 ", 0), "get filter_state|envoy.upstream.dynamic_port",
					filterState("envoy.upstream.dynamic_host", "h", 0), "get filter_state|envoy.upstream.dynamic_host",
					filterState("no.such", "x", 0), filterState("", "", 0), "call set_envoy_filter_state", "call set_envoy_filter_state 61", "call set_envoy_filter_state 0a01ff",
					filterState("envoy.string", "second", 0), "get filter_state|envoy.string",
				}, log: gets},
				{request: append([]string{filterState("envoy.string", "c", 2)}, gets...)},
				{request: gets},
			},
		},
	} {
		t.Run(name, func(t *testing.T) { p.exchange(t, all, nil) })
	}
}

func newNode() *corev3.Node {
	return &corev3.Node{Id: "the id", Metadata: must(structpb.NewStruct(map[string]any{"k": "vv"})), Locality: &corev3.Locality{Zone: "z"}, ClientFeatures: []string{"a", "b"}}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var signature = regexp.MustCompile(`(call sign = 0 \\08\\01\\12).*`)

// TestSignaturesLikeEnvoy has both sign, and check signatures, with keys of every kind.
func TestSignaturesLikeEnvoy(t *testing.T) {
	p := newScripted(t)
	key := must(rsa.GenerateKey(rand.Reader, 2048))
	private, public := must(x509.MarshalPKCS8PrivateKey(key)), must(x509.MarshalPKIXPublicKey(key.Public()))
	block := func(name string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: name, Bytes: der}))
	}
	text := []byte("some text")
	sums := map[string]crypto.Hash{"sha1": crypto.SHA1, "sha224": crypto.SHA224, "SHA256": crypto.SHA256, "sha384": crypto.SHA384, "Sha512": crypto.SHA512}
	signed := func(hash crypto.Hash) []byte {
		h := hash.New()
		h.Write(text)
		return must(rsa.SignPKCS1v15(nil, key, hash, h.Sum(nil)))
	}
	good := signed(crypto.SHA256)
	sign := func(hash string, der []byte, pem string) string {
		return call("sign", fields{1: hash, 2: der, 3: text, 4: pem})
	}
	verify := func(hash string, der []byte, pem string, signature []byte) string {
		return call("verify_signature", fields{1: hash, 2: der, 3: signature, 4: text, 5: pem})
	}
	t.Run("rsa", func(t *testing.T) {
		for hash, h := range sums {
			p.run(t, script{
				request:  []string{sign(hash, private, ""), verify(hash, public, "", signed(h)), verify(hash, public, "", good)},
				response: []string{sign(hash, nil, block("PRIVATE KEY", private)), verify(hash, nil, block("PUBLIC KEY", public), signed(h))},
			}, nil)
		}
	})
	pkcs1, public1 := x509.MarshalPKCS1PrivateKey(key), x509.MarshalPKCS1PublicKey(&key.PublicKey)
	for name, commands := range map[string][]string{
		"forms of private keys": {
			sign("sha256", nil, block("RSA PRIVATE KEY", pkcs1)), sign("sha256", pkcs1, ""), sign("sha256", append(private[:len(private):len(private)], "xx"...), ""),
			sign("sha256", nil, "junk\n"+block("PUBLIC KEY", public)+block("PRIVATE KEY", private)+"more"), sign("sha256", nil, "junk"), sign("sha256", []byte("junk"), ""),
			sign("sha256", public, ""), sign("sha256", nil, block("PUBLIC KEY", public)), sign("sha256", nil, block("PRIVATE KEY", []byte("x"))),
			sign("sha256", nil, block("ENCRYPTED PRIVATE KEY", private)), sign("sha256", private, block("PRIVATE KEY", private)), sign("sha256", nil, ""),
		},
		"forms of public keys": {
			verify("sha256", public1, "", good), verify("sha256", nil, block("RSA PUBLIC KEY", public1), good), verify("sha256", append(public[:len(public):len(public)], 'x'), "", good),
			verify("sha256", nil, "junk\n"+block("PRIVATE KEY", private)+block("PUBLIC KEY", public)+"x", good), verify("sha256", nil, block("PRIVATE KEY", private), good),
			verify("sha256", private, "", good), verify("sha256", []byte("x"), "", good), verify("sha256", nil, "x", good), verify("sha256", nil, "", good),
			verify("sha256", []byte("x"), "x", good), verify("sha256", nil, block("PUBLIC KEY", []byte("xx")), good), verify("sha256", public, "", nil),
			verify("sha256", public, "", good[1:]), verify("sha256", public, "", append(good[:len(good):len(good)], 0)),
		},
		"hashes": {
			sign("", private, ""), sign("md5", private, ""), sign("sha-256", private, ""), sign("sha512-256", private, ""), sign("nothing", []byte("x"), ""), sign(strings.Repeat("x", 200), private, ""),
			verify("", public, "", good), verify("md5", public, "", good), verify("md5", []byte("x"), "", good), verify("sha512", public, "", good), verify("SHA1", public, "", good),
		},
		"messages": {
			"call sign", "call sign 61", "call verify_signature", "call verify_signature 61", "call sign 0a01ff", call("sign", fields{1: "sha256", 2: private}),
			call("sign", fields{1: 1, 2: private}), call("sign", fields{1: "sha256", 2: private, 3: text, 15: 1, 16: "x"}), call("sign", fields{1: "sha256", 2: private, 3: text}) + "a301a401",
			call("sign", fields{1: "sha256", 2: private, 3: text}) + "a301", call("sign", fields{1: "md5"}) + strings.TrimPrefix(sign("sha256", private, ""), "call sign "),
			sign("sha256", private, "") + "22020000", call("verify_signature", fields{1: "sha256", 2: public, 3: good}), call("sign", fields{1: "sha256", 2: private, 4: "\xff"}),
		},
	} {
		t.Run(name, func(t *testing.T) { p.run(t, script{request: commands}, nil) })
	}
	t.Run("ecdsa", func(t *testing.T) {
		for _, curve := range []elliptic.Curve{elliptic.P224(), elliptic.P256(), elliptic.P384(), elliptic.P521()} {
			key := must(ecdsa.GenerateKey(curve, rand.Reader))
			private, public := must(x509.MarshalPKCS8PrivateKey(key)), must(x509.MarshalPKIXPublicKey(key.Public()))
			var commands []string
			for hash, h := range sums {
				sum := h.New()
				sum.Write(text)
				signature := must(ecdsa.SignASN1(rand.Reader, key, sum.Sum(nil)))
				commands = append(commands, sign(hash, private, ""), sign(hash, nil, block("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(key)))),
					verify(hash, public, "", signature), verify(hash, nil, block("PUBLIC KEY", public), append(signature, 0)))
			}
			p.run(t, script{request: commands}, func(lines []string) []string {
				for i, l := range lines {
					lines[i] = signature.ReplaceAllString(l, "$1(signature)")
				}
				return lines
			})
		}
	})
	t.Run("other keys", func(t *testing.T) {
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		ed, edPublic := must(x509.MarshalPKCS8PrivateKey(private)), must(x509.MarshalPKIXPublicKey(public))
		p.run(t, script{request: []string{
			sign("sha256", ed, ""), sign("sha256", nil, block("PRIVATE KEY", ed)), verify("sha256", edPublic, "", good), verify("sha512", nil, block("PUBLIC KEY", edPublic), ed25519.Sign(private, text)),
		}}, nil)
	})
}

// expressions are evaluated by both; a line is a script. No value is a map of more than one
// key: Envoy has them in an order by chance.
const expressions = `
1 ¦ 1u ¦ -1 ¦ 1.5 ¦ true ¦ "a" ¦ b"a\xff" ¦ null ¦ [1,2] ¦ {"a":1} ¦ [] ¦ {} ¦ ["a","b"] ¦ {1:2} ¦ {true:"x"}
1+1 ¦ 1+1u ¦ 1==1u ¦ 1==1.0 ¦ 1 == "a" ¦ 1/0 ¦ 9223372036854775807+1 ¦ 1 % 0 ¦ -(-9223372036854775807-1) ¦ 1.0/0.0 ¦ 0.0/0.0 == 0.0/0.0
"a"+"b" ¦ "abc".contains("b") ¦ "abc".matches("a.c") ¦ matches("abc","^b") ¦ "abc".matches("(") ¦ size("äö") ¦ "abc".size() ¦ "x" in ["x"] ¦ 1 in {1:2} ¦ "a".startsWith("a") ¦ "a".endsWith("b")
has(request.path) ¦ has(request.nothing) ¦ has(nothing.x) ¦ request.nothing ¦ request["path"] ¦ "path" in request ¦ size(request) ¦ request.headers["X-Mixed"] ¦ request.headers["x-mixed"] ¦ request.headers.host ¦ "x-mixed" in request.headers ¦ size(request.headers) > 3 ¦ request.headers["x twice"] ¦ request.headers["x-twice"] ¦ request.headers.nothing ¦ request.headers[":path"] ¦ has(request.headers.nothing)
request.time > timestamp("2020-01-01T00:00:00Z") ¦ request.time.getFullYear() > 2000 ¦ duration("1s") ¦ duration("1h") + duration("1s") ¦ timestamp("2020-01-01T00:00:00Z") ¦ timestamp(0) ¦ string(timestamp("2020-01-01T00:00:00.5Z")) ¦ string(duration("90s")) ¦ int("5") ¦ int(5.7) ¦ uint("5") ¦ double("1e3") ¦ string(1) ¦ string(1.5) ¦ string(true) ¦ bytes("a") ¦ string(b"a") ¦ bool("true") ¦ int(timestamp("2020-01-01T00:00:00Z")) ¦ dyn(1) ¦ type(1) ¦ type(1) == int ¦ type(type(1)) == type ¦ duration("x") ¦ timestamp("x") ¦ timestamp("2020-01-01T00:00:00Z").getHours("America/New_York") ¦ timestamp("2020-01-01T00:00:00Z").getDayOfWeek() ¦ duration("90s").getMinutes() ¦ duration("1.5s").getMilliseconds()
[1,2,3].all(x, x > 0) ¦ [1,2,3].exists(x, x == 2) ¦ [1,2].exists_one(x, x == 2) ¦ [1,2,3].map(x, x*2) ¦ [1,2,3].filter(x, x > 1) ¦ [1,2,3].map(x, x > 1, x*2) ¦ {"a":1}.all(k, k == "a") ¦ request.headers.exists(k, k == "x-mixed") ¦ [1,2][0] ¦ [1,2][5] ¦ {"a":1}.a ¦ {"a":1}["b"] ¦ [1]+[2] ¦ [[1],[2]] ¦ [{"a":1}]
true ? 1 : 2 ¦ 1 ? 2 : 3 ¦ nothing || true ¦ true || nothing ¦ nothing && false ¦ false || nothing ¦ !true ¦ !1 ¦ -"a"
nosuch(1) ¦ "a".nosuch() ¦ size() ¦ size(1,2) ¦ contains("a","b") ¦ "a".size("b") ¦ int() ¦ request.path.foo() ¦ math.greatest(1,2) ¦ optional.of(1) ¦ "a".lowerAscii() ¦ "a".charAt(0) ¦ ["a"].join() ¦ "a".split("b") ¦ cel.bind(x,1,x) ¦ "%s".format(["a"]) ¦ strings.quote("a") ¦ base64.encode(b"a") ¦ sets.contains([1],[1]) ¦ isNaN(1.0) ¦ now() ¦ re.extract("a","b","c") ¦ request.url_path.lowerAscii()
1 + ¦ ( ¦ "a ¦ x y ¦ 0x1F ¦ 18446744073709551615u ¦ 9223372036854775808 ¦ "\q" ¦ r"\q" ¦ for ¦ if ¦ a.if ¦ .request.path ¦ [?a] ¦ {?"a":1} ¦ a.?b ¦ /* x */ 1 ¦ 1 // c
google.protobuf.Int64Value{value: 5} ¦ google.protobuf.Struct{fields: {"a": google.protobuf.Value{string_value: "x"}}} ¦ google.protobuf.Nothing{} ¦ envoy.config.core.v3.Node{id: "x"} ¦ envoy.config.core.v3.Node{id: "x"}.id ¦ envoy.config.core.v3.Node{idd: "x"} ¦ envoy.config.core.v3.Locality{region: "r"} == envoy.config.core.v3.Locality{region: "r"} ¦ google.protobuf.NullValue.NULL_VALUE ¦ google.protobuf.NULL_VALUE ¦ envoy.config.core.v3.TrafficDirection.INBOUND ¦ google.protobuf.Timestamp{seconds: 5} ¦ google.protobuf.Duration{seconds: 5} ¦ google.protobuf.Any{} ¦ google.protobuf.BoolValue{value: true} ¦ google.protobuf.StringValue{} ¦ google.protobuf.ListValue{}
xds.node.id ¦ xds.node.metadata.NAME ¦ xds.node.metadata.b ¦ xds.node.metadata.l ¦ xds.node.metadata.s.k ¦ xds.node.metadata.z ¦ xds.node.metadata.nothing ¦ has(xds.node.metadata.NAME) ¦ xds.node.locality ¦ xds.node.locality.region ¦ xds.node.nothing ¦ has(xds.node.nothing) ¦ has(xds.node.locality) ¦ xds.route_metadata.filter_metadata.a.b ¦ xds.route_metadata.filter_metadata["a"] ¦ xds.route_metadata.filter_metadata ¦ xds.route_metadata ¦ size(xds.route_metadata.filter_metadata) ¦ xds.route_metadata.filter_metadata["q"] ¦ metadata ¦ metadata.filter_metadata ¦ metadata.filter_metadata["x"] ¦ xds.node.client_features ¦ xds.node["id"] ¦ xds.node == xds.node
int ¦ string ¦ type ¦ map ¦ request.time == request.time ¦ request.path < "/q" ¦ true < false ¦ b"a" < b"b" ¦ [1] == [1.0] ¦ {"a":1} == {"a":1u} ¦ null == null ¦ 1 == null ¦ request == request ¦ "a" * 2 ¦ [1,2] == [1] ¦ type(request) ¦ type(request.time) == google.protobuf.Timestamp ¦ type(request.time) ¦ response.code ¦ source.port > 0 ¦ filter_state.x ¦ plugin_name + "x" ¦ node.id ¦ listener_direction ¦ cluster_name
[0,1,2,3,4,5,6,7,8,9].all(a,[0,1,2,3,4,5,6,7,8,9].all(b,[0,1,2,3,4,5,6,7,8,9].all(c,[0,1,2,3,4,5,6,7,8,9].all(d,true)))) ¦ [0,1,2,3,4,5,6,7,8,9].all(a,[0,1,2,3,4,5,6,7,8,9].all(b,[0,1,2,3,4,5,6,7,8,9].all(c,[0,1,2,3,4,5,6,7,8].all(d,true)))) ¦ [0,1,2,3,4,5,6,7,8,9].all(a,[0,1,2,3,4,5,6,7,8,9].all(b,[0,1,2,3,4,5,6,7,8,9].all(c,true)))
{"a":1,"a":2} ¦ {1.5:2} ¦ {[1]:2} ¦ size({1:1,1u:2}) ¦ {"z":1,"a":2} == {"a":2,"z":1} ¦ {"b":request,"a":1} ¦ [request] ¦ [null] ¦ {"a":null}
startsWith("ab","a") ¦ endsWith("ab","b") ¦ string(1e20) ¦ string(0.1+0.2) ¦ string(100000000.0) ¦ string(1e-7) ¦ string(1.0) ¦ string(-0.0) ¦ string(1.0/0.0) ¦ string(0.0/0.0) ¦ string(duration("1.5s")) ¦ string(duration("1h1ms")) ¦ string(duration("-0.5s")) ¦ string(timestamp("2020-01-01T00:00:00.000001Z")) ¦ string(timestamp("2020-01-01T00:00:00.123456789Z")) ¦ string(timestamp("2020-01-01T01:00:00+01:00")) ¦ string(null) ¦ string(b"\xff") ¦ string([1]) ¦ string("a") ¦ string(1u) ¦ string(int)
request.all(k, true) ¦ request.map(k, k) ¦ request == connection ¦ request == {} ¦ {} == request ¦ request.headers == request.headers ¦ request in [request] ¦ request.headers.map(k, request.headers[k]).size() ¦ size(response.headers) ¦ response.headers ¦ response.headers.x ¦ "x" in response.headers ¦ xds.node.all(k, true) ¦ "id" in xds.node ¦ size(xds.node) ¦ xds.node.client_features.all(k,true) ¦ size("a" + request.path) ¦ request[1] ¦ 1 in request ¦ request.headers[1] ¦ request.time - request.time ¦ request.time + duration("1s") > request.time ¦ xds.node.metadata.n + "x" ¦ xds.node.metadata.b == true ¦ xds.node.metadata.z == null ¦ xds.node.metadata.l[0] ¦ xds.node.metadata.l[5] ¦ size(xds.node.metadata) ¦ xds.node.metadata["NAME"] ¦ "NAME" in xds.node.metadata ¦ xds.node.metadata.map(k, k).size()
duration("1x") ¦ duration("") ¦ duration("1h30m") ¦ duration("1.5") ¦ duration("100us") ¦ duration("-1s") ¦ duration("10000000000000s") ¦ timestamp("0001-01-01T00:00:00Z") ¦ timestamp("9999-12-31T23:59:59Z") ¦ timestamp("2020-01-01") ¦ timestamp("2020-01-01T00:00:00.5+01:00") ¦ timestamp(1577836800) ¦ int(1e20) ¦ int(-1.9) ¦ uint(-1) ¦ uint(1.9) ¦ int(18446744073709551615u) ¦ uint(-1.0) ¦ int("0x10") ¦ int("1.5") ¦ double("x") ¦ bool("yes") ¦ bool("TRUE") ¦ bool("t") ¦ bool("1") ¦ bytes(1) ¦ int(true) ¦ double(1u) ¦ double("inf") ¦ int("") ¦ uint("-1")
'a'+'b' ¦ """x""" ¦ '\n' ¦ '\u00e4' ¦ '\x41' ¦ '\101' ¦ b'\u00e4' ¦ "ä" < "b" ¦ "\U0001F600".size() ¦ b"abc".size() ¦ size(b"ä") ¦ 1 < 1u ¦ 1 < 1.5 ¦ 1u < 1.5 ¦ "a" < 1 ¦ [1] < [2] ¦ true == 1 ¦ 1.0 == 1 ¦ 1 in [1.0] ¦ 1.0 in {1:1} ¦ {1:"a"}[1.0] ¦ {1:"a"}[1u] ¦ [1,2][1.0] ¦ [1,2][1u] ¦ [1,2][-1] ¦ [1,2][1.5] ¦ "abc"[0] ¦ 1[0] ¦ nothing[0]
[1,2].exists(x, x/0 == 1) ¦ [1,0].exists(x, 1/x == 1) ¦ [0,1].exists(x, 1/x == 1) ¦ [0,1].all(x, 1/x == 1) ¦ [0,2].all(x, 1/x == 1) ¦ [1,1].exists_one(x, x == 1) ¦ [1].all(1, true) ¦ [1].all(x.y, true) ¦ [1].map(x, y) ¦ 1.all(x, true) ¦ "ab".all(x, true) ¦ {"a":1}.map(k, k) ¦ {"a":1}.exists(k, k == "b") ¦ has(request) ¦ has({"a":1}.a) ¦ has({"a":1}.b) ¦ has("a".b) ¦ [1].all(__result__, true) ¦ [1].all(x, __result__) ¦ request.headers.filter(k, k.startsWith("x-")).size() ¦ [1].exists(x, [2].exists(x, x == 1))
")[0])
`

// TestExpressionsLikeEnvoy evaluates expressions in both.
func TestExpressionsLikeEnvoy(t *testing.T) {
	p := newScripted(t, "eval 1", "eval request.path", "eval xds.node.id", "eval plugin_name", "eval connection_id", "eval metadata",
		"call expr_create", "call expr_create ff", "call expr_create 61", "call expr_evaluate", "call expr_evaluate 00000000", "call expr_evaluate 09000000",
		"call expr_evaluate 0000000000", "call expr_delete", "call expr_delete 09000000", "call expr_delete 00000000", "call expr_delete 00000000", "call expr_evaluate 00000000")
	for i, line := range strings.Split(strings.Trim(expressions, "\n"), "\n") {
		var commands []string
		for e := range strings.SplitSeq(line, " ¦ ") {
			commands = append(commands, "eval "+e)
		}
		t.Run(fmt.Sprint(i+1), func(t *testing.T) {
			p.run(t, script{request: commands, log: []string{"eval response.code"}}, nil)
		})
	}
	t.Run("loops", func(t *testing.T) {
		list := func(n int) string { return "[" + strings.TrimSuffix(strings.Repeat("0,", n), ",") + "]" }
		p.run(t, script{request: []string{
			"eval " + list(100) + ".all(a," + list(98) + ".all(b,true))", "eval " + list(100) + ".all(a," + list(99) + ".all(b,true))", "eval " + list(100) + ".exists(a," + list(99) + ".exists(b,false))",
		}}, nil)
	})
	t.Run("attributes", func(t *testing.T) {
		var commands []string
		for _, a := range attributes {
			if !varies.MatchString(": "+a+" = 0 x") && !strings.HasPrefix(a, "request.headers.") && !strings.HasPrefix(a, "response.headers.") && a != "response.headers" {
				commands = append(commands, "eval "+a, "eval type("+a+") == string", "eval type("+a+") == int", "eval type("+a+") == uint", "eval type("+a+") == map", "eval has("+a+")")
			} else {
				commands = append(commands, "eval type("+a+") == type(1)", "eval type("+a+") == type(1u)", "eval type("+a+") == type(request.time)", "eval type("+a+") == type(duration(\"1s\"))",
					"eval type("+a+") == map", "eval type("+a+") == string", "eval type("+a+") == bool")
			}
		}
		for len(commands) > 0 {
			n := min(60, len(commands))
			p.run(t, script{request: commands[:n], response: commands[:n], log: commands[:n]}, nil)
			commands = commands[n:]
		}
	})
}

// TestFailPoliciesLikeEnvoy has a guest trap, and compares what becomes of the requests
// after it, and what is counted.
func TestFailPoliciesLikeEnvoy(t *testing.T) {
	module := scriptGuest(t)
	for name, policy := range map[string]string{
		"none": "", "closed": "failure_policy: FAIL_CLOSED", "open": "failure_policy: FAIL_OPEN", "ignored": "fail_open: true",
		"reload at once": "failure_policy: FAIL_RELOAD\nreload_config: {backoff: {base_interval: 0.01s}}",
		"reload later":   "failure_policy: FAIL_RELOAD\nreload_config: {backoff: {base_interval: 3600s}}",
	} {
		t.Run(name, func(t *testing.T) {
			back := rawBackend(t)
			p := startPair(t, func(port int) []proto.Message {
				return []proto.Message{
					staticCluster(t, "backend", back), routeConfig(t, manyRoutes), policyExtension(t, module, policy),
					httpListener(t, "main", port, discovered, "stream_idle_timeout: 0s"),
				}
			})
			for i, headers := range []string{"", "X-Request: trap", "", "X-Request: trap", "X-Response: trap", "", "X-Log: trap", "", ""} {
				r := request("GET", "/p/x", "", headers)
				if headers == "" {
					r = request("GET", "/p/x", "")
				}
				<-time.After(30 * time.Millisecond) // Envoy's backoff is by chance up to half as long again; and it logs after it has answered
				want, got := raw(t, p.envoyPort, r), raw(t, p.enginePort, r)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("request %d (%q) (-envoy +engine):\n%s", i, headers, diff)
				}
			}
			if diff := cmp.Diff(reloads(t, p.envoyAdmin), reloads(t, p.engAdmin)); diff != "" {
				t.Errorf("statistics (-envoy +engine):\n%s", diff)
			}
		})
	}
}

// TestUpdateAfterTrapLikeEnvoy gives a plugin whose guest trapped another configuration:
// that has a guest that works.
func TestUpdateAfterTrapLikeEnvoy(t *testing.T) {
	module := scriptGuest(t)
	for _, policy := range []string{"FAIL_CLOSED", "FAIL_OPEN"} {
		t.Run(policy, func(t *testing.T) {
			configured := func(text string) *corev3.TypedExtensionConfig {
				return policyExtension(t, module, fmt.Sprintf("failure_policy: %s\n"+
					`configuration: {"@type": type.googleapis.com/google.protobuf.StringValue, value: %q}`, policy, text))
			}
			back := rawBackend(t)
			p := startPair(t, func(port int) []proto.Message {
				return []proto.Message{
					staticCluster(t, "backend", back), routeConfig(t, manyRoutes), configured("get plugin_name"),
					httpListener(t, "main", port, discovered, "stream_idle_timeout: 0s"),
				}
			})
			for _, headers := range [][]string{nil, {"X-Request: trap"}, nil} {
				p.same(t, map[string]string{"GET " + strings.Join(headers, ""): request("GET", "/p/x", "", headers...)})
			}
			for _, proxy := range []struct {
				name  string
				above *controlPlane
				port  int
				said  func() []string
			}{{"envoy", p.envoy, p.envoyPort, p.saidByEnvoy}, {"the engine", p.engine, p.enginePort, p.saidByEngine}} {
				proxy.above.set(configured("get plugin_root_id"))
				until(t, proxy.name, proxy.said, "get plugin_root_id = 0 root", 1)
				answer, served := "", false
				for range 100 { // the threads of Envoy learn of it one after the other
					before := strings.Count(strings.Join(proxy.said(), "\n"), ": request")
					answer = raw(t, proxy.port, request("GET", "/p/x", ""))
					<-time.After(20 * time.Millisecond)
					served = strings.Count(strings.Join(proxy.said(), "\n"), ": request") > before
					if served && strings.HasPrefix(answer, "HTTP/1.1 200 ") {
						break
					}
				}
				if !served || !strings.HasPrefix(answer, "HTTP/1.1 200 ") {
					t.Errorf("%s: guest has seen it: %v; %s", proxy.name, served, answer)
				}
			}
		})
	}
}

func policyExtension(t *testing.T, module, policy string) *corev3.TypedExtensionConfig {
	return parse(t, fmt.Sprintf(`
name: plugin
typed_config:
  "@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
  config:
    name: guest
    root_id: root
    vm_config: {runtime: envoy.wasm.runtime.v8, vm_id: vm, code: {local: {filename: %q}}}
%s`, module, indent(policy, 4)), new(corev3.TypedExtensionConfig))
}

// reloads are the statistics of reloads, of both formats.
func reloads(t *testing.T, admin string) (list []string) {
	for _, path := range []string{"/stats?filter=vm_reload", "/stats/prometheus?filter=vm_reload"} {
		resp, err := http.Get("http://" + admin + path)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, strings.Split(strings.TrimSpace(string(text)), "\n")...)
	}
	if len(list) < 12 {
		t.Errorf("%s has %q", admin, list)
	}
	return list
}

// TestSharedStateLikeEnvoy has a network filter and an HTTP filter of one connection set
// and get what lives as long as it, and as long as a request, in several requests.
func TestSharedStateLikeEnvoy(t *testing.T) {
	module := scriptGuest(t)
	ofConnection := strings.Join([]string{
		declare("c", 0, 1, "", 2), declare("once", 1, 1, "", 2), declare("f", 0, 1, "", 0),
		"set c 1", "set once 1", "set f 1", "set plain 1", "get c", "get plain", "get filter_state|wasm.f", filterState("envoy.string", "x", 2),
	}, ";")
	gets := []string{"get c", "get once", "get f", "get plain", "get h", "get r", "get filter_state|wasm.c", "get filter_state|envoy.string", "eval c", "eval f + \"x\""}
	changes := []string{"set c 2", "set once 2", "set f 2", "set plain 2", "set h 2", "set r 2", filterState("envoy.string", "y", 2)}
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			back := rawBackend(t)
			p := &scripted{http2: http2, connections: true}
			p.pair = startPair(t, func(port int) []proto.Message {
				first := guestExtension(t, "network", module, ofConnection)
				first.Name, first.TypedConfig = "connection", inVM(t, "another", first.TypedConfig)
				l := httpListener(t, "main", port, discovered, "stream_idle_timeout: 0s")
				chain := l.FilterChains[0]
				chain.Filters = append([]*listenerv3.Filter{parse(t, `
name: connection
config_discovery:
  config_source: `+adsSource+`
  type_urls: [type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm]`, new(listenerv3.Filter))}, chain.Filters...)
				return []proto.Message{
					staticCluster(t, "backend", back), routeConfig(t, manyRoutes), l, first,
					guestExtension(t, "http", module, declare("h", 0, 1, "", 2)+";"+declare("r", 0, 1, "", 1)),
				}
			})
			p.exchange(t, [][]script{
				{{request: append(append(gets[:len(gets):len(gets)], changes...), gets...), response: gets, log: gets}, {request: gets, log: []string{"set c 3"}}, {request: gets}},
				{{request: gets}},
			}, nil)
		})
	}
}

// inVM is a network filter in a VM of that id.
func inVM(t *testing.T, id string, filter *anypb.Any) *anypb.Any {
	m := new(netwasmv3.Wasm)
	if err := filter.UnmarshalTo(m); err != nil {
		t.Fatal(err)
	}
	m.Config.GetVmConfig().VmId = id
	return mustAny(m)
}

// TestForeignTCP calls the functions where there is no request.
func TestForeignTCP(t *testing.T) {
	p := tcpPair(t, scriptGuest(t), strings.Join([]string{
		declare("s", 0, 1, "", 0), declare("once", 1, 1, "", 2), declare("p", 0, 3, "type.googleapis.com/google.protobuf.Struct", 1),
		"get s", "set s x", "get s", "eval s", "set once 1", "set once 2", "get once", "put p 0a090a016b12041a027676", "get p", "get p|k", "eval p.k",
		"eval request", "eval request.path", "eval connection.id > 0u", "eval source.port > 0", "eval xds.node.id", "eval xds.listener_direction", "eval metadata",
		filterState("envoy.string", "x", 0), "get filter_state|envoy.string", "eval filter_state[\"wasm.s\"]",
	}, ";"))
	for i := range 2 {
		p.talkToBoth(t, i+1, "hello", "hello")
	}
}
