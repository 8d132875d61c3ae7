// Command basicauth is a Proxy-Wasm plugin that asks for HTTP basic
// authentication (RFC 7617), after the basic_auth extension of Istio's community:
//
//	realm: istio                   # default
//	basic_auth_rules:
//	- prefix: /productpage         # or exact, or suffix
//	  request_methods: [GET, POST]
//	  credentials: ["ok:test", "YWRtaW4zOmFkbWluMw=="]
//	  hosts: ["*.example.com"]     # default: all
//	  realm: books                 # default: the one above
//
// A request must satisfy every rule that it meets; one that meets none passes.
// A configuration in doubt is refused as a whole, since a rule that is read
// wrongly leaves a door open. It knows nothing of users beyond that list, and
// takes the path as the proxy hands it over: normalizing is the proxy's work.
//
// The rules are in policy.go and know nothing of Wasm; this file joins them to
// the host. Build it with -buildmode=c-shared for wasip1. Start at [parse].
package main

import (
	"errors"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"
	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm/types"
)

// From RFC 9110. Importing net/http for two numbers makes 2.5 MB 4.9 MB.
const (
	statusUnauthorized        = 401
	statusInternalServerError = 500
)

func main() {}

// A module built as c-shared has no running main: what it serves must be said
// before _initialize returns, which leaves only init.
func init() {
	proxywasm.SetPluginContext(func(uint32) types.PluginContext { return &plugin{} })
}

// A plugin is one configuration.
type plugin struct {
	types.DefaultPluginContext
	policy policy
}

func (p *plugin) OnPluginStart(int) types.OnPluginStartStatus {
	text, err := proxywasm.GetPluginConfiguration()
	if err != nil && !errors.Is(err, types.ErrorStatusNotFound) {
		proxywasm.LogError("basicauth: read configuration: " + err.Error())
		return types.OnPluginStartStatusFailed
	}
	if p.policy, err = parse(text); err != nil {
		proxywasm.LogError("basicauth: refuse configuration: " + err.Error())
		return types.OnPluginStartStatusFailed
	}
	return types.OnPluginStartStatusOK
}

func (p *plugin) NewHttpContext(uint32) types.HttpContext { return &stream{policy: p.policy} }

// A stream is one request.
type stream struct {
	types.DefaultHttpContext
	policy policy
}

func (s *stream) OnHttpRequestHeaders(int, bool) types.Action {
	r, err := readRequest()
	if err != nil {
		proxywasm.LogError("basicauth: read request: " + err.Error())
		return answer(statusInternalServerError, nil, "")
	}
	if d := s.policy.decide(r); d != nil {
		return answer(statusUnauthorized, [][2]string{{"www-authenticate", d.challenge}}, d.body)
	}
	return types.ActionContinue
}

// readRequest takes what the policy looks at. A header that is not there is empty.
func readRequest() (r request, err error) {
	for _, h := range []struct {
		name string
		to   *string
	}{
		{":method", &r.method},
		{":path", &r.path},
		{":authority", &r.host},
		{"authorization", &r.authorization},
	} {
		value, err := proxywasm.GetHttpRequestHeader(h.name)
		if err != nil && !errors.Is(err, types.ErrorStatusNotFound) {
			return r, err
		}
		*h.to = value
	}
	return r, nil
}

// answer ends the request here. If even that is refused the stream stays
// paused: it must not go on.
func answer(status uint32, headers [][2]string, body string) types.Action {
	if err := proxywasm.SendHttpResponse(status, headers, []byte(body), -1); err != nil {
		proxywasm.LogError("basicauth: answer request: " + err.Error())
	}
	return types.ActionPause
}
