package main

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// seed is the configuration of Istio's basic authentication task.
const seed = `{"basic_auth_rules": [{"prefix": "/productpage", "request_methods": ["GET", "POST"],
	"credentials": ["ok:test", "YWRtaW4zOmFkbWluMw=="]}]}`

func basic(credential string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(credential))
}

func TestDecide(t *testing.T) {
	const (
		istio = `Basic realm="istio"`
		ask   = "This page asks for a user name and a password.\n"
		wrong = "The user name or the password is wrong.\n"
	)
	rule := func(match, rest string) string {
		return `{"basic_auth_rules":[{` + match + `,"request_methods":["GET"],"credentials":["u:p"]` + rest + `}]}`
	}
	two := `{"realm":"all","basic_auth_rules":[
		{"prefix":"/","request_methods":["GET"],"credentials":["u:p","root:r"]},
		{"prefix":"/admin","request_methods":["GET"],"credentials":["root:r"],"realm":"a \"b\" \\"}]}`

	for _, tt := range []struct {
		name   string
		config string
		r      request
		want   *denial
	}{
		{"no credentials", seed, request{method: "GET", path: "/productpage"}, &denial{istio, ask}},
		{"given in base64", seed, request{method: "GET", path: "/productpage", authorization: basic("admin3:admin3")}, nil},
		{"given plain", seed, request{method: "POST", path: "/productpage", authorization: basic("ok:test")}, nil},
		{"wrong password", seed, request{method: "GET", path: "/productpage", authorization: basic("ok:tesT")}, &denial{istio, wrong}},
		{"beginning of a password", seed, request{method: "GET", path: "/productpage", authorization: basic("ok:tes")}, &denial{istio, wrong}},
		{"nothing between", seed, request{method: "GET", path: "/productpage", authorization: basic(":")}, &denial{istio, wrong}},
		{"another scheme", seed, request{method: "GET", path: "/productpage", authorization: "Bearer abc"}, &denial{istio, ask}},
		{"scheme only", seed, request{method: "GET", path: "/productpage", authorization: "Basic"}, &denial{istio, ask}},
		{"not base64", seed, request{method: "GET", path: "/productpage", authorization: "Basic ok:test"}, &denial{istio, ask}},
		{"two headers in one", seed, request{method: "GET", path: "/productpage", authorization: basic("ok:test") + "," + basic("ok:test")}, &denial{istio, ask}},
		{"scheme in another case", seed, request{method: "GET", path: "/productpage", authorization: "bAsIc  b2s6dGVzdA=="}, nil},
		{"padding left out", seed, request{method: "GET", path: "/productpage", authorization: "Basic b2s6dGVzdA"}, nil},
		{"another path", seed, request{method: "GET", path: "/"}, nil},
		{"another method", seed, request{method: "DELETE", path: "/productpage"}, nil},
		{"below the prefix", seed, request{method: "GET", path: "/productpage/x?u=normal"}, &denial{istio, ask}},

		{"exact", rule(`"exact":"/a"`, ""), request{method: "GET", path: "/a"}, &denial{istio, ask}},
		{"exact, with a query", rule(`"exact":"/a"`, ""), request{method: "GET", path: "/a?b"}, &denial{istio, ask}},
		{"exact, with a fragment", rule(`"exact":"/a"`, ""), request{method: "GET", path: "/a#b"}, &denial{istio, ask}},
		{"exact, more", rule(`"exact":"/a"`, ""), request{method: "GET", path: "/ab"}, nil},
		{"suffix", rule(`"suffix":".php"`, ""), request{method: "GET", path: "/a.php"}, &denial{istio, ask}},
		{"suffix, with a query", rule(`"suffix":".php"`, ""), request{method: "GET", path: "/a.php?b"}, &denial{istio, ask}},
		{"suffix in the query only", rule(`"suffix":".php"`, ""), request{method: "GET", path: "/a?b.php"}, nil},

		{"host", rule(`"prefix":"/"`, `,"hosts":["a.example"]`), request{method: "GET", path: "/", host: "a.example"}, &denial{istio, ask}},
		{"host, otherwise written", rule(`"prefix":"/"`, `,"hosts":["A.example."]`), request{method: "GET", path: "/", host: "a.EXAMPLE.:8080"}, &denial{istio, ask}},
		{"host, IPv6", rule(`"prefix":"/"`, `,"hosts":["[::1]"]`), request{method: "GET", path: "/", host: "[::1]:80"}, &denial{istio, ask}},
		{"another host", rule(`"prefix":"/"`, `,"hosts":["a.example","c.example"]`), request{method: "GET", path: "/", host: "b.example"}, nil},
		{"host, start open", rule(`"prefix":"/"`, `,"hosts":["*.example"]`), request{method: "GET", path: "/", host: "b.example"}, &denial{istio, ask}},
		{"host, end open", rule(`"prefix":"/"`, `,"hosts":["b.*"]`), request{method: "GET", path: "/", host: "b.example"}, &denial{istio, ask}},
		{"host, end open, another", rule(`"prefix":"/"`, `,"hosts":["b.*"]`), request{method: "GET", path: "/", host: "c.example"}, nil},
		{"host, all", rule(`"prefix":"/"`, `,"hosts":["*"]`), request{method: "GET", path: "/"}, &denial{istio, ask}},

		{"two rules met, both satisfied", two, request{method: "GET", path: "/admin", authorization: basic("root:r")}, nil},
		{"two rules met, the second not", two, request{method: "GET", path: "/admin", authorization: basic("u:p")}, &denial{`Basic realm="a \"b\" \\"`, wrong}},
		{"two rules met, the first not", two, request{method: "GET", path: "/admin"}, &denial{`Basic realm="all"`, ask}},
		{"one rule of two met", two, request{method: "GET", path: "/", authorization: basic("u:p")}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := parse([]byte(tt.config))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, p.decide(tt.r), cmp.AllowUnexported(denial{})); diff != "" {
				t.Errorf("decide (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	rule := func(fields string) string { return `{"basic_auth_rules":[{` + fields + `}]}` }
	with := func(field string) string {
		return rule(`"prefix":"/","request_methods":["GET"],"credentials":["u:secret"],` + field)
	}
	for _, tt := range []struct{ name, config, want string }{
		{"nothing", ``, "configuration: not JSON at byte 0: a value is missing"},
		{"no rules", `{}`, "configuration: basic_auth_rules is missing"},
		{"a list", `[]`, "configuration: want an object, have a list"},
		{"rules of another type", `{"basic_auth_rules":{}}`, "basic_auth_rules: want a list, have an object"},
		{"an empty list of rules", `{"basic_auth_rules":[]}`, "basic_auth_rules: want at least one"},
		{"a rule of another type", `{"basic_auth_rules":["/"]}`, "basic_auth_rules[0]: want an object, have a string"},
		{"an unknown field", `{"rules":[]}`, "rules: not known here; known are basic_auth_rules, realm"},
		{"a misspelt field", rule(`"prefix":"/","host":"a"`), "basic_auth_rules[0].host: not known here; " +
			"known are prefix, exact, suffix, hosts, request_methods, credentials, realm"},
		{"no path", rule(`"request_methods":["GET"],"credentials":["u:p"]`), "basic_auth_rules[0]: one of prefix, exact and suffix is missing"},
		{"two paths", rule(`"prefix":"/","suffix":"/"`), "basic_auth_rules[0]: want one of prefix, exact and suffix, have more"},
		{"an empty path", rule(`"prefix":""`), "basic_auth_rules[0].prefix: is empty"},
		{"a path of another type", rule(`"exact":7`), "basic_auth_rules[0].exact: want a string, have a number"},
		{"a relative path", rule(`"prefix":"productpage"`), "basic_auth_rules[0].prefix: want a path that begins with /"},
		{"a query in a path", rule(`"suffix":"?a"`), "basic_auth_rules[0].suffix: want a path without query: it is compared without"},
		{"no methods", rule(`"prefix":"/","credentials":["u:p"]`), "basic_auth_rules[0]: request_methods is missing"},
		{"an empty list of methods", rule(`"prefix":"/","request_methods":[]`), "basic_auth_rules[0].request_methods: want at least one"},
		{"a method in small letters", rule(`"prefix":"/","request_methods":["GET","get"]`), "basic_auth_rules[0].request_methods[1]: want a method in capital letters"},
		{"a method of another type", rule(`"prefix":"/","request_methods":[null]`), "basic_auth_rules[0].request_methods[0]: want a string, have null"},
		{"no credentials", rule(`"prefix":"/","request_methods":["GET"]`), "basic_auth_rules[0]: credentials is missing"},
		{"an empty list of credentials", rule(`"prefix":"/","request_methods":["GET"],"credentials":[]`), "basic_auth_rules[0].credentials: want at least one"},
		{"a credential in no form", rule(`"prefix":"/","request_methods":["GET"],"credentials":["u:p","secret!"]`), "basic_auth_rules[0].credentials[1]: want user:password, or base64 of it"},
		{"base64 of no credential", rule(`"prefix":"/","request_methods":["GET"],"credentials":["c2VjcmV0"]`), "basic_auth_rules[0].credentials[0]: want user:password, or base64 of it"},
		{"an empty credential", rule(`"prefix":"/","request_methods":["GET"],"credentials":[""]`), "basic_auth_rules[0].credentials[0]: want user:password, or base64 of it"},
		{"an empty list of hosts", with(`"hosts":[]`), "basic_auth_rules[0].hosts: want at least one"},
		{"an empty host", with(`"hosts":[""]`), "basic_auth_rules[0].hosts[0]: is empty"},
		{"a star in the middle", with(`"hosts":["a.*.b"]`), "basic_auth_rules[0].hosts[0]: want * only once, at the start or the end"},
		{"two stars", with(`"hosts":["*a*"]`), "basic_auth_rules[0].hosts[0]: want * only once, at the start or the end"},
		{"a host with its port", with(`"hosts":["a:80"]`), "basic_auth_rules[0].hosts[0]: want a host without port: it is compared without"},
		{"a rule's realm of another type", with(`"realm":1`), "basic_auth_rules[0].realm: want a string, have a number"},
		{"a line break in the realm", `{"realm":"a\nb"}`, "realm: want printable ASCII"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parse([]byte(tt.config))
			if err == nil || err.Error() != tt.want {
				t.Fatalf("parse error = %v, want %s", err, tt.want)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Error("the error quotes a credential")
			}
		})
	}
}

// FuzzDecide looks for a request that crashes the plugin, and for one that a
// rule for everything lets pass without the password.
func FuzzDecide(f *testing.F) {
	p, err := parse([]byte(`{"basic_auth_rules":[{"prefix":"/","request_methods":["GET"],"credentials":["u:p"]}]}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Add("/", "a.example:80", "Basic dTpw")
	f.Add("/?", "[::1]", "basic")
	f.Fuzz(func(t *testing.T, path, host, authorization string) {
		d := p.decide(request{"GET", "/" + path, host, authorization})
		given, _ := credential(authorization)
		if (d == nil) != (given == "u:p") {
			t.Errorf("decide = %v for credential %q", d, given)
		}
	})
}
