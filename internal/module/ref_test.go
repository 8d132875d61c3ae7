package module

import (
	"strings"
	"testing"
)

const (
	hexA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	hexB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

func TestParseRef(t *testing.T) {
	for _, tt := range []struct {
		name, url, sha    string
		scheme, target    string
		shown, pin        string
		deflt, whenAlways PullPolicy
	}{
		{name: "no scheme", url: "ghcr.io/a/b:1", scheme: OCI, target: "ghcr.io/a/b:1", shown: "oci://ghcr.io/a/b:1",
			deflt: PullIfNotPresent, whenAlways: PullAlways},
		{name: "docker hub", url: "oci://b", scheme: OCI, target: "index.docker.io/library/b:latest", shown: "oci://b",
			deflt: PullAlways, whenAlways: PullAlways},
		{name: "latest", url: "OCI://r:5000/b:latest", scheme: OCI, target: "r:5000/b:latest", shown: "oci://r:5000/b:latest",
			deflt: PullAlways, whenAlways: PullAlways},
		{name: "digest", url: "r.io/b@sha256:" + hexA, scheme: OCI, target: "r.io/b@sha256:" + hexA,
			shown: "oci://r.io/b@sha256:" + hexA, pin: hexA, deflt: PullIfNotPresent, whenAlways: PullIfNotPresent},
		{name: "tag and digest", url: "r.io/b:1@sha256:" + hexA, sha: hexA, scheme: OCI, target: "r.io/b@sha256:" + hexA,
			shown: "oci://r.io/b:1@sha256:" + hexA, pin: hexA, deflt: PullIfNotPresent, whenAlways: PullIfNotPresent},
		{name: "tag and sha256", url: "r.io/b:latest", sha: "sha256:" + strings.ToUpper(hexA), scheme: OCI, target: "r.io/b:latest",
			shown: "oci://r.io/b:latest", pin: hexA, deflt: PullIfNotPresent, whenAlways: PullIfNotPresent},
		{name: "http", url: "http://H.io:8080/p.wasm#x", scheme: HTTP, target: "http://h.io:8080/p.wasm", shown: "http://h.io:8080/p.wasm",
			deflt: PullIfNotPresent, whenAlways: PullAlways},
		{name: "credentials and signature", url: "https://u:s3cret@h.io/p.wasm?sig=s3cret", sha: hexB, scheme: HTTPS,
			target: "https://u:s3cret@h.io/p.wasm?sig=s3cret", shown: "https://h.io/p.wasm?…", pin: hexB,
			deflt: PullIfNotPresent, whenAlways: PullIfNotPresent},
		{name: "file", url: "file:///etc/p.wasm", scheme: File, target: "/etc/p.wasm", shown: "file:///etc/p.wasm",
			deflt: PullIfNotPresent, whenAlways: PullAlways},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := ParseRef(tt.url, tt.sha)
			if err != nil {
				t.Fatal(err)
			}
			pin := ""
			if !r.Digest().IsZero() {
				pin = r.Digest().Hex()
			}
			for what, pair := range map[string][2]string{
				"scheme": {r.Scheme(), tt.scheme}, "target": {r.Target(), tt.target}, "string": {r.String(), tt.shown}, "digest": {pin, tt.pin},
			} {
				if pair[0] != pair[1] {
					t.Errorf("%s = %q, want %q", what, pair[0], pair[1])
				}
			}
			if got := r.Policy(PullDefault); got != tt.deflt {
				t.Errorf("default policy = %v, want %v", got, tt.deflt)
			}
			if got := (Want{Ref: r, Policy: PullAlways}).PullPolicy(); got != tt.whenAlways {
				t.Errorf("policy when Always = %v, want %v", got, tt.whenAlways)
			}
		})
	}
}

func TestParseRefRefuses(t *testing.T) {
	for _, tt := range []struct{ name, url, sha, want string }{
		{"empty", "  ", "", "url is empty"},
		{"scheme", "ftp://h/x", "", `scheme "ftp" is not supported, use oci, http, https or file`},
		{"contradiction", "r.io/b@sha256:" + hexA, hexB, "contradicts the digest"},
		{"short sha", "r.io/b:1", "abc", "want 64 hexadecimal digits, got 3"},
		{"sha512", "r.io/b@sha512:" + hexA + hexA, "", "sha512 is not supported"},
		{"bad digits", "r.io/b:1", strings.Repeat("z", 64), "invalid byte"},
		{"zeros", "r.io/b:1", strings.Repeat("0", 64), "nothing has that digest"},
		{"credentials", "oci://u:s3cret@r.io/b:1", "", "imagePullSecret"},
		{"credentials with slash", "oci://u:s3/cret@r.io/b:1", "", "imagePullSecret"},
		{"upper case", "r.io/B:1", "", "not an image reference"},
		{"query", "r.io/b:1?x", "", "no query"},
		{"no host", "http:///x", "", "needs a host"},
		{"bad url", "http://u:s3cret@h:port/x", "", "not a valid"},
		{"relative file", "file://etc/x", "", "absolute path"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseRef(tt.url, tt.sha)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error = %v, want one with %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "s3") {
				t.Errorf("error %q shows the password", err)
			}
		})
	}
}

func TestKey(t *testing.T) {
	key := func(url, sha string) string {
		t.Helper()
		r, err := ParseRef(url, sha)
		if err != nil {
			t.Fatal(err)
		}
		return r.Key()
	}
	base := key("docker.io/library/b:latest", "")
	if base != key("b", "") {
		t.Error("two spellings of an image have different keys")
	}
	for name, other := range map[string]string{
		"tag": key("b:1", ""), "pin": key("b", hexA), "repository": key("c", ""), "http": key("http://b", ""),
	} {
		if other == base {
			t.Errorf("another %s has the same key", name)
		}
	}
	if key("http://u:1@h/x", "") == key("http://u:2@h/x", "") {
		t.Error("other credentials have the same key")
	}
}

func FuzzParseRef(f *testing.F) {
	f.Add("oci://u:p@r.io/b:1", "")
	f.Add("r.io/b@sha256:"+hexA, hexA)
	f.Add("https://u:p@h/x?y=z#f", "sha256:"+hexB)
	f.Add("file:///x", "")
	f.Fuzz(func(t *testing.T, url, sha string) {
		r, err := ParseRef(url, sha)
		if err != nil {
			return
		}
		if len(r.Key()) != 64 || r.Target() == "" || r.Policy(PullDefault) == PullDefault {
			t.Fatalf("incomplete %+v", r)
		}
		if r.Scheme() == HTTP || r.Scheme() == HTTPS {
			// What is kept must parse again, to the same.
			pin := ""
			if !r.Digest().IsZero() {
				pin = r.Digest().Hex()
			}
			if again, err := ParseRef(r.Target(), pin); err != nil || again != r {
				t.Fatalf("%+v parsed again is %+v, %v", r, again, err)
			}
		}
	})
}
