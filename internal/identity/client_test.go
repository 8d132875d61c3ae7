package identity

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// files are those of a client, in one folder.
type files struct{ dir string }

func (f files) path(name string) string { return filepath.Join(f.dir, name) }

// write replaces a file as the kubelet does, by a link to another.
func (f files) write(t *testing.T, name string, data []byte) {
	t.Helper()
	target, err := os.CreateTemp(f.dir, "data-*")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := target.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := target.Close(); err != nil {
		t.Fatal(err)
	}
	link := target.Name() + ".link"
	if err := os.Symlink(target.Name(), link); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link, f.path(name)); err != nil {
		t.Fatal(err)
	}
}

func TestClientCheck(t *testing.T) {
	a := open(t, new(memory), nil)
	certificate, key, err := a.IssueClient("default", "httpbin", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	_, otherKey, err := a.IssueClient("default", "httpbin", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	past, pastKey, err := a.held().signer().issue(time.Now().Add(-time.Hour), time.Minute, &x509.Certificate{})
	if err != nil {
		t.Fatal(err)
	}
	pastPEM, err := keyPEM(pastKey)
	if err != nil {
		t.Fatal(err)
	}
	bundle := a.Bundle()
	f := files{t.TempDir()}
	for name, data := range map[string][]byte{
		"ca": bundle, "two": append(append([]byte("# roots\n"), bundle...), bundle...), "token": []byte("a.b.c\n"), "cert": certificate, "key": key, "other-key": otherKey,
		"past": certificatePEM(past), "past-key": pastPEM,
		"empty": nil, "blank": []byte(" \n"), "text": []byte("hello"), "ca-and-key": append(append([]byte{}, bundle...), key...),
		"ca-cut": bundle[:len(bundle)-40], "ca-tail": append(append([]byte{}, bundle...), "oops"...), "ca-garbage": certificatePEM([]byte("hush")),
		"words": []byte("hush hush"), "control": []byte("hush\nhush"), "large": []byte(strings.Repeat("hush", maxFile)),
	} {
		f.write(t, name, data)
	}
	for _, tt := range []struct {
		name   string
		client Client
		says   []string // nothing means good
	}{
		{"roots only", Client{CAFile: "ca"}, nil},
		{"two roots and a comment", Client{CAFile: "two"}, nil},
		{"token", Client{CAFile: "ca", TokenFile: "token"}, nil},
		{"certificate", Client{CAFile: "ca", CertFile: "cert", KeyFile: "key"}, nil},
		{"nothing", Client{}, []string{"root certificates"}},
		{"roots missing", Client{CAFile: "no"}, []string{"/no", "no such file", "chandler-ca-root-cert"}},
		{"roots empty", Client{CAFile: "empty"}, []string{"/empty", "is empty", "chandler-ca-root-cert"}},
		{"roots are text", Client{CAFile: "text"}, []string{"/text", "not PEM"}},
		{"roots cut short", Client{CAFile: "ca-cut"}, []string{"/ca-cut", "not PEM"}},
		{"roots and more", Client{CAFile: "ca-tail"}, []string{"/ca-tail", "not PEM after 1"}},
		{"roots malformed", Client{CAFile: "ca-garbage"}, []string{"/ca-garbage", "certificate 1"}},
		{"roots with a key", Client{CAFile: "ca-and-key"}, []string{"/ca-and-key", `"PRIVATE KEY"`}},
		{"roots large", Client{CAFile: "large"}, []string{"/large", "more than"}},
		{"token missing", Client{CAFile: "ca", TokenFile: "no"}, []string{"/no", "no such file", Audience}},
		{"token empty", Client{CAFile: "ca", TokenFile: "blank"}, []string{"/blank", "is empty", Audience}},
		{"token of words", Client{CAFile: "ca", TokenFile: "words"}, []string{"/words", "more than one word"}},
		{"token of lines", Client{CAFile: "ca", TokenFile: "control"}, []string{"/control", "more than one word"}},
		{"token large", Client{CAFile: "ca", TokenFile: "large"}, []string{"/large", "more than"}},
		{"certificate without key", Client{CAFile: "ca", CertFile: "cert"}, []string{"both"}},
		{"key without certificate", Client{CAFile: "ca", KeyFile: "key"}, []string{"both"}},
		{"certificate missing", Client{CAFile: "ca", CertFile: "no", KeyFile: "key"}, []string{"/no", "client certificate"}},
		{"key missing", Client{CAFile: "ca", CertFile: "cert", KeyFile: "no"}, []string{"/no", "client key"}},
		{"another's key", Client{CAFile: "ca", CertFile: "cert", KeyFile: "other-key"}, []string{"/cert", "/other-key", "match"}},
		{"certificate expired", Client{CAFile: "ca", CertFile: "past", KeyFile: "past-key"}, []string{"/past", "has expired"}},
		{"key malformed", Client{CAFile: "ca", CertFile: "cert", KeyFile: "words"}, []string{"/words"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := tt.client
			for _, name := range []*string{&c.CAFile, &c.TokenFile, &c.CertFile, &c.KeyFile} {
				if *name != "" {
					*name = f.path(*name)
				}
			}
			err := c.Check()
			if (err == nil) != (tt.says == nil) {
				t.Fatalf("error = %v", err)
			}
			for _, says := range tt.says {
				if !strings.Contains(err.Error(), says) {
					t.Errorf("error = %v, want it to say %q", err, says)
				}
			}
			if err != nil && strings.Contains(err.Error(), "hush") {
				t.Errorf("error = %v, which tells of what is in the file", err)
			}
		})
	}
}
