package identity

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestParseID(t *testing.T) {
	long := strings.Repeat("a", 64)
	for _, tt := range []struct {
		uri  string
		want ID // zero means refused
	}{
		{"spiffe://cluster.local/ns/default/sa/httpbin", ID{"cluster.local", "default", "httpbin"}},
		{"spiffe://a_b-c.1/ns/x-1/sa/a.b.c", ID{"a_b-c.1", "x-1", "a.b.c"}},
		{"", ID{}},
		{"spiffe://", ID{}},
		{"http://cluster.local/ns/default/sa/httpbin", ID{}},
		{"SPIFFE://cluster.local/ns/default/sa/httpbin", ID{}},
		{"spiffe:///ns/default/sa/httpbin", ID{}},
		{"spiffe://Cluster.local/ns/default/sa/httpbin", ID{}},
		{"spiffe://cluster.local:80/ns/default/sa/httpbin", ID{}},
		{"spiffe://me@cluster.local/ns/default/sa/httpbin", ID{}},
		{"spiffe://cluster.local/ns/default/sa/httpbin/", ID{}},
		{"spiffe://cluster.local/ns/default/sa/httpbin/x", ID{}},
		{"spiffe://cluster.local//ns/default/sa/httpbin", ID{}},
		{"spiffe://cluster.local/ns/default/sa", ID{}},
		{"spiffe://cluster.local/ns//sa/httpbin", ID{}},
		{"spiffe://cluster.local/ns/default/sa/", ID{}},
		{"spiffe://cluster.local/sa/httpbin/ns/default", ID{}},
		{"spiffe://cluster.local/ns/default/sa/httpbin?x=1", ID{}},
		{"spiffe://cluster.local/ns/default/sa/httpbin#x", ID{}},
		{"spiffe://cluster.local/ns/def%61ult/sa/httpbin", ID{}},
		{"spiffe://cluster.local/ns/../sa/httpbin", ID{}},
		{"spiffe://cluster.local/ns/a.b/sa/httpbin", ID{}},
		{"spiffe://cluster.local/ns/-a/sa/httpbin", ID{}},
		{"spiffe://cluster.local/ns/" + long + "/sa/httpbin", ID{}},
		{"spiffe://cluster.local/ns/default/sa/a..b", ID{}},
		{"spiffe://cluster.local/ns/default/sa/" + strings.Repeat(long, 4), ID{}},
		{"spiffe://" + strings.Repeat(long, 4) + "/ns/default/sa/x", ID{}},
	} {
		got, err := ParseID(tt.uri)
		if got != tt.want || (err == nil) != (tt.want != ID{}) {
			t.Errorf("ParseID(%q) = %+v, %v; want %+v", tt.uri, got, err, tt.want)
		}
		if err == nil && got.String() != tt.uri {
			t.Errorf("ParseID(%q).String() = %q", tt.uri, got)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/default/sa/httpbin")
	f.Add("spiffe://a/ns/b/sa/c%2f..")
	f.Fuzz(func(t *testing.T, uri string) {
		id, err := ParseID(uri)
		if err != nil {
			return
		}
		if id.String() != uri {
			t.Errorf("%q is also %q: one identity, two forms", uri, id)
		}
	})
}

func TestPermit(t *testing.T) {
	var (
		pod    = Peer{Namespace: "default", ServiceAccount: "httpbin", Pod: "httpbin-1"}
		nobody = Peer{Namespace: "default", ServiceAccount: "vm"}
	)
	for _, tt := range []struct {
		name           string
		peer           Peer
		namespace, pod string
		want           codes.Code
		says           string
	}{
		{"its own", pod, "default", "httpbin-1", codes.OK, ""},
		{"not bound to a pod", nobody, "default", "anything", codes.OK, ""},
		{"other namespace", pod, "prod", "httpbin-1", codes.PermissionDenied, `"prod", but its credential is for default/httpbin of pod httpbin-1`},
		{"other namespace, not bound", nobody, "prod", "", codes.PermissionDenied, `"prod"`},
		{"other pod", pod, "default", "httpbin-2", codes.PermissionDenied, `"httpbin-2"`},
		{"no pod", pod, "default", "", codes.PermissionDenied, "must name that pod"},
		{"nobody", Peer{}, "default", "", codes.Unauthenticated, "no credential"},
		{"nobody, nowhere", Peer{}, "", "", codes.Unauthenticated, "no credential"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := Permit(tt.peer, tt.namespace, tt.pod)
			if status.Code(err) != tt.want {
				t.Fatalf("Permit = %v, want %v", err, tt.want)
			}
			if err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Permit = %v, want it to say %q", err, tt.says)
			}
		})
	}
	if _, ok := FromContext(t.Context()); ok {
		t.Error("an empty context has a peer")
	}
	if got, ok := FromContext(NewContext(t.Context(), pod)); !ok || got != pod {
		t.Errorf("FromContext = %v, %v", got, ok)
	}
}
