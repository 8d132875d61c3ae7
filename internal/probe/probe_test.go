package probe

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// as Istio's agent gets it
const istios = `{
"/app-health/httpbin/livez":{"httpGet":{"path":"/live","port":80,"scheme":"HTTPS","httpHeaders":[{"name":"Accept","value":"x"}]},"timeoutSeconds":3},
"/app-health/httpbin/readyz":{"tcpSocket":{"port":81}},
"/app-health/httpbin/startupz":{"grpc":{"port":82,"service":"s"},"timeoutSeconds":1},
"/app-lifecycle/httpbin/prestopz":{"httpGet":{"port":80}}
}`

func TestParseSet(t *testing.T) {
	got, err := ParseSet(istios)
	if err != nil {
		t.Fatal(err)
	}
	s := "s"
	want := Set{
		Path("httpbin", Liveness): {
			HTTPGet: &corev1.HTTPGetAction{Path: "/live", Port: intstr.FromInt32(80), Scheme: "HTTPS",
				HTTPHeaders: []corev1.HTTPHeader{{Name: "Accept", Value: "x"}}},
			TimeoutSeconds: 3,
		},
		Path("httpbin", Readiness): {TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(81)}},
		Path("httpbin", Startup):   {GRPC: &corev1.GRPCAction{Port: 82, Service: &s}, TimeoutSeconds: 1},
		Path("httpbin", PreStop):   {HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(80)}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got, err := ParseSet(""); len(got) != 0 || err != nil {
		t.Errorf("no text reads as %v, %v", got, err)
	}
}

func TestParseSetRefuses(t *testing.T) {
	for text, want := range map[string]string{
		`{`:                                     "read probes: unexpected end of JSON input",
		`{"/metrics":{"tcpSocket":{"port":1}}}`: `read probes: "/metrics" is not /app-health/CONTAINER/livez`,
		`{"/app-health/a/b/livez":{"tcpSocket":{"port":1}}}`:                  `read probes: "/app-health/a/b/livez" is not`,
		`{"/app-health/a/livez":null}`:                                        "read probes: /app-health/a/livez: no probe",
		`{"/app-health/a/livez":{}}`:                                          "read probes: /app-health/a/livez: has 0 of httpGet, tcpSocket and grpc, not one",
		`{"/app-health/a/livez":{"tcpSocket":{"port":1},"grpc":{"port":1}}}`:  "has 2 of httpGet, tcpSocket and grpc, not one",
		`{"/app-health/a/livez":{"tcpSocket":{"port":"http"}}}`:               "port http is not a number from 1 to 65535",
		`{"/app-health/a/livez":{"grpc":{"port":70000}}}`:                     "port 70000 is not a number from 1 to 65535",
		`{"/app-health/a/livez":{"httpGet":{"port":80},"timeoutSeconds":-1}}`: "timeoutSeconds -1 is below 0",
	} {
		if got, err := ParseSet(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s reads as %v, %v, want %s", text, got, err, want)
		}
	}
}

// FuzzParseSet: what is accepted can be written and read again.
func FuzzParseSet(f *testing.F) {
	f.Add(istios)
	f.Add(`{"/app-health/a/livez":{"exec":{"command":["true"]}}}`)
	f.Fuzz(func(t *testing.T, text string) {
		set, err := ParseSet(text)
		if err != nil {
			return
		}
		written, err := json.Marshal(set)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseSet(string(written))
		if err != nil {
			t.Fatalf("%s: %v", written, err)
		}
		if rewritten, _ := json.Marshal(again); string(rewritten) != string(written) {
			t.Fatalf("written as %s, then as %s", written, rewritten)
		}
	})
}
