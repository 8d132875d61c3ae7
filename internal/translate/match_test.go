package translate

import (
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/chandler-proxy/chandler/internal/resource"
)

func TestValidFormat(t *testing.T) {
	for s, want := range map[string]bool{
		"":                            true,
		"plain":                       true,
		"100%%":                       true,
		"%REQ(:path)%":                true,
		"a %START_TIME(%Y)%":          true,
		"%REQ(x):10%%PROTOCOL%":       true,
		"%DOWNSTREAM_REMOTE_ADDRESS%": true,
		"50%":                         false,
		"50% off":                     false,
		"%req%":                       false,
		"%REQ(x%":                     false,
		"%REQ(x):%":                   false,
		"%%%":                         false,
		"%":                           false,
		"%REQ":                        false,
	} {
		if got := validFormat(s); got != want {
			t.Errorf("validFormat(%q) = %v, want %v", s, got, want)
		}
	}
}

func FuzzValidFormat(f *testing.F) {
	for _, s := range []string{"", "%%", "%A(b):1%", "%A", "%("} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if validFormat(s) != validFormat("%%"+s+"%PROTOCOL%") {
			t.Errorf("%q: what surrounds it decides", s)
		}
	})
}

func TestCheckSubstitution(t *testing.T) {
	for _, tt := range []struct {
		pattern, substitution string
		ok                    bool
	}{
		{"a", "b", true},
		{"(a)", `\1`, true},
		{"(a)", `\0\\`, true},
		{"(a)", `\2`, false},
		{"a", `\`, false},
		{"a", `\n`, false},
	} {
		if err := checkSubstitution(tt.pattern, tt.substitution); (err == nil) != tt.ok {
			t.Errorf("checkSubstitution(%q, %q) = %v, want ok %v", tt.pattern, tt.substitution, err, tt.ok)
		}
	}
}

func TestRetryOn(t *testing.T) {
	for _, tt := range []struct {
		in, conditions string
		codes          []uint32
	}{
		{"5xx", "5xx", nil},
		{"5xx, reset", "5xx,reset", nil},
		{"503,gateway-error", "gateway-error,retriable-status-codes", []uint32{503}},
		{"retriable-status-codes,429,503", "retriable-status-codes", []uint32{429, 503}},
	} {
		conditions, codes := retryOn(tt.in)
		if conditions != tt.conditions || !slices.Equal(codes, tt.codes) {
			t.Errorf("retryOn(%q) = %q, %v, want %q, %v", tt.in, conditions, codes, tt.conditions, tt.codes)
		}
	}
}

// Each candidate comes before the next.
// https://gateway-api.sigs.k8s.io/reference/spec/#httproutematch
func TestPrecedenceOfHTTPRoutes(t *testing.T) {
	path := func(kind gatewayv1.PathMatchType, value string) *gatewayv1.HTTPPathMatch {
		return &gatewayv1.HTTPPathMatch{Type: &kind, Value: &value}
	}
	const exact, prefix, regex = gatewayv1.PathMatchExact, gatewayv1.PathMatchPathPrefix, gatewayv1.PathMatchRegularExpression
	get := gatewayv1.HTTPMethodGet
	route := func(name string, age time.Duration) *gatewayv1.HTTPRoute {
		return &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1e9, 0).Add(-age))}}
	}
	old, young, younger := route("z", time.Hour), route("b", 0), route("c", 0)
	header, query := make([]gatewayv1.HTTPHeaderMatch, 1), make([]gatewayv1.HTTPQueryParamMatch, 1)
	ordered := []candidate{
		{host: "www.a.example", source: young, match: gatewayv1.HTTPRouteMatch{Path: path(prefix, "/")}},
		{host: "a.example", source: young, match: gatewayv1.HTTPRouteMatch{Path: path(exact, "/longer")}},
		{host: "a.example", source: young, match: gatewayv1.HTTPRouteMatch{Path: path(exact, "/")}},
		{host: "a.example", source: young, match: gatewayv1.HTTPRouteMatch{Path: path(regex, ".*")}},
		{host: "a.example", source: young, match: gatewayv1.HTTPRouteMatch{Path: path(prefix, "/ab/")}},
		{host: "a.example", source: young, match: gatewayv1.HTTPRouteMatch{Path: path(prefix, "/a/"), Method: &get}},
		{host: "a.example", source: young, match: gatewayv1.HTTPRouteMatch{Path: path(prefix, "/a"), Headers: header, QueryParams: query}},
		{host: "a.example", source: young, match: gatewayv1.HTTPRouteMatch{Path: path(prefix, "/a/"), Headers: header}},
		{host: "a.example", source: young, match: gatewayv1.HTTPRouteMatch{Path: path(prefix, "/a"), QueryParams: query}},
		{host: "a.example", source: old, match: gatewayv1.HTTPRouteMatch{Path: path(prefix, "/a")}},
		{host: "a.example", source: young, match: gatewayv1.HTTPRouteMatch{Path: path(prefix, "/a")}, order: 1},
		{host: "a.example", source: young, match: gatewayv1.HTTPRouteMatch{Path: path(prefix, "/a")}, order: 2},
		{host: "a.example", source: younger, match: gatewayv1.HTTPRouteMatch{Path: path(prefix, "/a")}},
		{host: "a.example", source: old, match: gatewayv1.HTTPRouteMatch{}},
		{host: "*.a.example", source: old, match: gatewayv1.HTTPRouteMatch{Path: path(exact, "/longest")}},
		{host: "*.example", source: old, match: gatewayv1.HTTPRouteMatch{Path: path(exact, "/longest")}},
		{host: "*", source: old, match: gatewayv1.HTTPRouteMatch{Path: path(exact, "/longest")}},
	}
	for i, a := range ordered {
		for j, b := range ordered {
			if got := before(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("before(%d, %d) = %d", i, j, got)
			}
		}
	}
}

// What a newer CRD lets through, and we do not know, answers 500.
func TestNewerHTTPRoute(t *testing.T) {
	path := "/a?b"
	rewrite := func(p gatewayv1.HTTPPathModifier) []gatewayv1.HTTPRouteFilter {
		return []gatewayv1.HTTPRouteFilter{{Type: gatewayv1.HTTPRouteFilterURLRewrite, URLRewrite: &gatewayv1.HTTPURLRewriteFilter{Path: &p}}}
	}
	for _, tt := range []struct {
		name string
		rule gatewayv1.HTTPRouteRule
		want int // routes that answer 500
	}{
		{"filter", gatewayv1.HTTPRouteRule{Filters: []gatewayv1.HTTPRouteFilter{{Type: "Newer"}}}, 1},
		{"filter without its settings", gatewayv1.HTTPRouteRule{Filters: []gatewayv1.HTTPRouteFilter{{Type: gatewayv1.HTTPRouteFilterRequestRedirect}}}, 1},
		{"path modifier", gatewayv1.HTTPRouteRule{Filters: rewrite(gatewayv1.HTTPPathModifier{Type: "Newer"})}, 1},
		{"path modifier without its value", gatewayv1.HTTPRouteRule{Filters: rewrite(gatewayv1.HTTPPathModifier{Type: gatewayv1.FullPathHTTPPathModifier})}, 1},
		{"path", gatewayv1.HTTPRouteRule{Matches: []gatewayv1.HTTPRouteMatch{{Path: &gatewayv1.HTTPPathMatch{Value: &path}}}}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			source := &gatewayv1.HTTPRoute{Spec: gatewayv1.HTTPRouteSpec{Rules: []gatewayv1.HTTPRouteRule{tt.rule}}}
			b := &builder{told: map[resource.Problem]bool{}}
			k := kubernetesRoutes{builder: b, source: source}
			got := 0
			for _, c := range k.routes() {
				if c.route.GetDirectResponse().GetStatus() != 500 {
					t.Errorf("route does %v", c.route)
				}
				got++
			}
			if got != tt.want || len(b.problems) != 1 {
				t.Errorf("%d routes answer 500, want %d; problems: %v", got, tt.want, b.problems)
			}
		})
	}
}
