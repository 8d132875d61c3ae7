//go:build e2e

package engine

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
)

// last is a request that ends the connection: what comes of it shows whether a proxy has
// seen the end of what was before it where it is.
const last = "GET /p/last HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n"

// hostileRequests are heads and bodies on whose meaning two parsers may not agree. Each is
// followed by last.
func hostileRequests() map[string]string {
	const post = "POST /p/x HTTP/1.1\r\nHost: h\r\n"
	all := map[string]string{
		"fold":                       "GET /p/x HTTP/1.1\r\nHost: h\r\nA: 1\r\n 2\r\n\r\n",
		"fold of the first field":    "GET /p/x HTTP/1.1\r\n Host: h\r\n\r\n",
		"length then chunks":         post + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
		"chunks then length":         post + "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nG",
		"lengths that agree":         post + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
		"lengths that differ":        post + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
		"two codings":                post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"chunked twice":              post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"underscore":                 post + "Transfer_Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
		"chunked get":                "GET /p/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"length of a get":            "GET /p/x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
		"length of a head":           "HEAD /p/x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
		"length is a hop's":          post + "Connection: content-length\r\nContent-Length: 3\r\n\r\nabc",
		"coding is a hop's":          post + "Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"host is a hop's":            post + "Connection: host\r\nContent-Length: 3\r\n\r\nabc",
		"bare line feeds":            "GET /p/x HTTP/1.1\nHost: h\nA: 1\n\n",
		"mixed line ends":            "GET /p/x HTTP/1.1\r\nHost: h\nA: 1\r\n\n",
		"bare return in a value":     "GET /p/x HTTP/1.1\r\nHost: h\r\nA: 1\rB: 2\r\n\r\n",
		"return at the end":          "GET /p/x HTTP/1.1\r\nHost: h\r\nA: 1\r\r\n\r\n",
		"return in the first line":   "GET /p/x\r HTTP/1.1\r\nHost: h\r\n\r\n",
		"zero in a value":            "GET /p/x HTTP/1.1\r\nHost: h\r\nA: 1\x00\r\n\r\n",
		"control in a value":         "GET /p/x HTTP/1.1\r\nHost: h\r\nA: 1\x01\r\n\r\n",
		"delete in a value":          "GET /p/x HTTP/1.1\r\nHost: h\r\nA: 1\x7f\r\n\r\n",
		"high bytes in a value":      "GET /p/x HTTP/1.1\r\nHost: h\r\nA: \x80\xff\r\n\r\n",
		"tab in a value":             "GET /p/x HTTP/1.1\r\nHost: h\r\nA: 1\t2\r\n\r\n",
		"no name":                    "GET /p/x HTTP/1.1\r\nHost: h\r\n: 1\r\n\r\n",
		"no colon":                   "GET /p/x HTTP/1.1\r\nHost: h\r\nAbc\r\n\r\n",
		"space before the colon":     post + "Content-Length : 3\r\n\r\nabc",
		"space in a name":            "GET /p/x HTTP/1.1\r\nHost: h\r\nA B: 1\r\n\r\n",
		"parenthesis in a name":      "GET /p/x HTTP/1.1\r\nHost: h\r\nA(: 1\r\n\r\n",
		"high byte in a name":        "GET /p/x HTTP/1.1\r\nHost: h\r\nA\x80: 1\r\n\r\n",
		"empty value":                "GET /p/x HTTP/1.1\r\nHost: h\r\nA:\r\n\r\n",
		"pseudo-header":              "GET /p/x HTTP/1.1\r\nHost: h\r\n:path: /q\r\n\r\n",
		"empty lines before":         "\r\n\r\nGET /p/x HTTP/1.1\r\nHost: h\r\n\r\n",
		"many empty lines before":    strings.Repeat("\r\n", 40) + "GET /p/x HTTP/1.1\r\nHost: h\r\n\r\n",
		"line feed before":           "\nGET /p/x HTTP/1.1\r\nHost: h\r\n\r\n",
		"space before":               " GET /p/x HTTP/1.1\r\nHost: h\r\n\r\n",
		"many fields":                "GET /p/x HTTP/1.1\r\nHost: h\r\n" + strings.Repeat("A: 1\r\n", 120) + "\r\n",
		"large field":                "GET /p/x HTTP/1.1\r\nHost: h\r\nA: " + strings.Repeat("a", 70<<10) + "\r\n\r\n",
		"large name":                 "GET /p/x HTTP/1.1\r\nHost: h\r\n" + strings.Repeat("a", 70<<10) + ": 1\r\n\r\n",
		"large target":               "GET /p/" + strings.Repeat("a", 70<<10) + " HTTP/1.1\r\nHost: h\r\n\r\n",
		"version 0.9":                "GET /p/x\r\n\r\n",
		"version 1.0":                "GET /p/x HTTP/1.0\r\nHost: h\r\n\r\n",
		"version 1.0 in chunks":      "POST /p/x HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"version 1.0 without a host": "GET /p/x HTTP/1.0\r\n\r\n",
		"version 1.2":                "GET /p/x HTTP/1.2\r\nHost: h\r\n\r\n",
		"version 2.0":                "GET /p/x HTTP/2.0\r\nHost: h\r\n\r\n",
		"version 3":                  "GET /p/x HTTP/3\r\nHost: h\r\n\r\n",
		"version 11":                 "GET /p/x HTTP/1.11\r\nHost: h\r\n\r\n",
		"version in lower case":      "GET /p/x http/1.1\r\nHost: h\r\n\r\n",
		"space after the version":    "GET /p/x HTTP/1.1 \r\nHost: h\r\n\r\n",
		"two spaces":                 "GET  /p/x  HTTP/1.1\r\nHost: h\r\n\r\n",
		"tabs":                       "GET\t/p/x\tHTTP/1.1\r\nHost: h\r\n\r\n",
		"four words":                 "GET /p/x y HTTP/1.1\r\nHost: h\r\n\r\n",
		"method in lower case":       "get /p/x HTTP/1.1\r\nHost: h\r\n\r\n",
		"method with more":           "GETS /p/x HTTP/1.1\r\nHost: h\r\n\r\n",
		"unknown method":             "BREW /p/x HTTP/1.1\r\nHost: h\r\n\r\n",
		"high bytes in the target":   "GET /p/\x80\xff HTTP/1.1\r\nHost: h\r\n\r\n",
		"control in the target":      "GET /p/\x01 HTTP/1.1\r\nHost: h\r\n\r\n",
		"fragment":                   "GET /p/x#y HTTP/1.1\r\nHost: h\r\n\r\n",
		"upgrade with a body":        post + "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc",
		"upgrade to h2c":             "GET /p/x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
		"upgrade without connection": "GET /p/x HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n",
		"upgrade to two":             "GET /p/x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: foo, websocket\r\n\r\n",
		"relative target":            "GET p/x HTTP/1.1\r\nHost: h\r\n\r\n",
		"asterisk":                   "GET * HTTP/1.1\r\nHost: h\r\n\r\n",
		"options asterisk":           "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
		"connect":                    "CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n",
		"two slashes":                "GET //other/p/x HTTP/1.1\r\nHost: h\r\n\r\n",
		"expect something":           post + "Expect: something\r\nContent-Length: 3\r\n\r\nabc",
		"no host":                    "GET /p/x HTTP/1.1\r\n\r\n",
		"two hosts":                  "GET /p/x HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n",
		"two equal hosts":            "GET /p/x HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
		"request in a body":          post + "Content-Length: 58\r\n\r\nGET /p/hidden HTTP/1.1\r\nHost: h\r\nX: 1\r\nY: 2\r\nZ: 3\r\n\r\nabc",
	}
	for _, host := range []string{"", "a b", "a,b", "u@h", "h/p", "h:80", "h:x", "h:", "[::1]", "[::1]:80", "[::1", "h_i", "h\x80", `h\i`, "h?q", "h#f", "a\tb", "h%41", "h:99999"} {
		all[fmt.Sprintf("host %q", host)] = "GET /p/x HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
	}
	for _, target := range []string{
		"http://other/p/x", "http://other", "http://other?p=q", "HTTP://other/p/x", "https://other/p/x", "http://", "http:///p/x", "http://u@other/p/x",
		"http://other:99999/p/x", "http://other:x/p/x", "ftp://other/p/x", "other:80", "http:/p/x", "http://[::1]:1/p/x", "http://other,b/p/x", `http://a\b/p/x`,
		"http://other#f", "/p/x%00", "/p/x\\y", "/p/x y",
	} {
		all[fmt.Sprintf("target %q", target)] = "GET " + target + " HTTP/1.1\r\nHost: h\r\n\r\n"
	}
	for _, length := range []string{"", "+3", "-3", "0x3", " 3", "3 ", "\t3\t", "3,3", "3, 3", "3,4", "3a", "3.0", "03", "18446744073709551616", "9223372036854775808", "99999999999999999999999"} {
		all[fmt.Sprintf("length %q", length)] = post + "Content-Length: " + length + "\r\n\r\nabc"
	}
	for _, coding := range []string{"", "Chunked", "CHUNKED", " chunked", "chunked ", "\tchunked", "\x0bchunked", "chunked\x0b", "chunked, chunked", "gzip, chunked", "chunked, gzip", "gzip", "identity", "identity, chunked", "chunked;q=1", `"chunked"`, "xchunked", "chunked,", ",chunked"} {
		all[fmt.Sprintf("coding %q", coding)] = post + "Transfer-Encoding: " + coding + "\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
	}
	for _, chunks := range []string{
		"3\r\nabc\r\n0\r\n\r\n", "03\r\nabc\r\n00\r\n\r\n", "3 \r\nabc\r\n0\r\n\r\n", " 3\r\nabc\r\n0\r\n\r\n", "3\t\r\nabc\r\n0\r\n\r\n", "+3\r\nabc\r\n0\r\n\r\n", "-3\r\nabc\r\n0\r\n\r\n",
		"0x3\r\nabc\r\n0\r\n\r\n", "3_\r\nabc\r\n0\r\n\r\n", "z\r\nabc\r\n0\r\n\r\n", "\r\nabc\r\n0\r\n\r\n", "3\nabc\r\n0\r\n\r\n", "3\r\nabc\n0\r\n\r\n", "3\r\nabc0\r\n\r\n", "3\r\nabcd\r\n0\r\n\r\n",
		"3\r\nab\r\n0\r\n\r\n", "3\r\nabc\r\n0\r\n\n", "3\r\nabc\r\n0\n\r\n", "3\r\nabc\r\n0\r\n\r", "3;a=b\r\nabc\r\n0\r\n\r\n", "3;\r\nabc\r\n0\r\n\r\n", "3 ;a\r\nabc\r\n0\r\n\r\n", "3;a=\"b\"\r\nabc\r\n0\r\n\r\n",
		"3;a\nabc\r\n0\r\n\r\n", "3;a\rb\r\nabc\r\n0\r\n\r\n", "3;a\x00\r\nabc\r\n0\r\n\r\n", "3;a\x01\r\nabc\r\n0\r\n\r\n", "3 a\r\nabc\r\n0\r\n\r\n", "3\r\nabc\r\n0;a\r\n\r\n",
		"ffffffffffffffff\r\nabc\r\n0\r\n\r\n", "8000000000000000\r\nabc\r\n0\r\n\r\n", "10000000000000003\r\nabc\r\n0\r\n\r\n", strings.Repeat("0", 30) + "3\r\nabc\r\n0\r\n\r\n", "3\r\nabc\r\n0\r\nT: 1\r\n\r\n",
		"3\r\nabc\r\n0\r\nT : 1\r\n\r\n", "3\r\nabc\r\n0\r\nT\r\n\r\n", "3\r\nabc\r\n0\r\n: 1\r\n\r\n", "3\r\nabc\r\n0\r\nT: 1\r\n 2\r\n\r\n", "3\r\nabc\r\n0\r\nContent-Length: 3\r\n\r\n",
		"3\r\nabc\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n", "3\r\nabc\r\n0\r\nHost: i\r\n\r\n", "3\r\nabc\r\n0\r\nT: 1\nU: 2\r\n\r\n", "3\r\nabc\r\n0\r\nT: \x00\r\n\r\n", "3\r\nabc\r\n0\r\nT: \x01\r\n\r\n",
	} {
		all[fmt.Sprintf("chunks %q", chunks)] = post + "Transfer-Encoding: chunked\r\n\r\n" + chunks
	}
	for _, named := range []string{"cookie", "x-forwarded-for", "X-Forwarded-Host", "x-forwarded-proto", ":path", ":authority", "te", "x-a", "close", "a,b,c,d,e,f,g,h,i,j,k", "a,b,c,d,e,f,g,h,i,j", ",", "cookie, x-a"} {
		all["connection "+named] = "GET /p/x HTTP/1.1\r\nHost: h\r\nCookie: c=1\r\nX-A: 1\r\nX-Forwarded-For: 1.2.3.4\r\nTE: trailers, gzip\r\nConnection: " + named + "\r\n\r\n"
	}
	const chunked = post + "Transfer-Encoding: chunked\r\n\r\n"
	all["long chunk extension"] = chunked + "3;" + strings.Repeat("a", 70<<10) + "\r\nabc\r\n0\r\n\r\n"
	all["many chunk extensions"] = chunked + strings.Repeat("1;"+strings.Repeat("a", 4000)+"\r\na\r\n", 40) + "0\r\n\r\n"
	all["large trailer"] = chunked + "0\r\nT: " + strings.Repeat("a", 70<<10) + "\r\n\r\n"
	all["many trailers"] = chunked + "0\r\n" + strings.Repeat("T: 1\r\n", 120) + "\r\n"
	return all
}

// stricter reports whether the engine refuses a request that Envoy does not: where what is
// written is not what it must be it is not worth a doubt about where it ends.
func stricter(name string) bool {
	return slices.Contains([]string{
		"fold", "many empty lines before", "return in the first line", "return at the end", "bare return in a value", "two spaces", "tabs", "space after the version",
		"two hosts", "two equal hosts", `host "a,b"`, `host "u@h"`, "connect", `length "9223372036854775808"`, "long chunk extension", "many chunk extensions", "many trailers",
		`chunks "3\r\nabc\n0\r\n\r\n"`, `chunks "3\r\nabcd\r\n0\r\n\r\n"`, `chunks "3\r\nab\r\n0\r\n\r\n"`, `chunks "3\r\nabc\r\n0\r\nT: 1\r\n 2\r\n\r\n"`,
		`chunks "3 a\r\nabc\r\n0\r\n\r\n"`, `chunks "0000000000000000000000000000003\r\nabc\r\n0\r\n\r\n"`,
		`chunks "3;a\x00\r\nabc\r\n0\r\n\r\n"`, `chunks "3;a\x01\r\nabc\r\n0\r\n\r\n"`,
	}, name)
}

var (
	success  = regexp.MustCompile(`(?m)^HTTP/1\.1 2`)
	sentFrom = regexp.MustCompile(`(backend 1) \S+ `)
	// Which of them it is, and how much of a body was read, is a matter of the parser.
	details = regexp.MustCompile(`http1\.(codec_error|invalid_url|invalid_characters) - "-" \d+`)
)

// hostile sends bytes and returns all that comes until the connection ends.
func hostile(t *testing.T, port int, text string) string {
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(400 * time.Millisecond))
	_, _ = io.WriteString(c, text) // who refuses it need not read it all
	raw, _ := io.ReadAll(c)        // until the proxy has enough; Envoy closes a second later
	out := dateLine.ReplaceAllString(string(raw), "date: now\r")
	out = anyID.ReplaceAllString(out, "id")
	out = timeLine.ReplaceAllString(out, "x-envoy-upstream-service-time: n\r")
	return strings.ReplaceAll(out, "\r", "")
}

// TestHostileRequestsLikeEnvoy sends what is no request, or no clear one: the engine answers
// and logs as Envoy does, or refuses more.
func TestHostileRequestsLikeEnvoy(t *testing.T) {
	back := rawBackend(t)
	dir := t.TempDir()
	file := func(port int) string { return filepath.Join(dir, fmt.Sprint(port)) }
	p := startPair(t, func(port int) []proto.Message {
		return []proto.Message{
			staticCluster(t, "backend", back), routeConfig(t, toBackend),
			httpListener(t, "main", port, "", "stream_idle_timeout: 0s\nupgrade_configs: [{upgrade_type: websocket}]\naccess_log: ["+fileLog(file(port), "")+"]"),
		}
	})
	all := hostileRequests()
	each := func(f func(name, text string)) {
		var running sync.WaitGroup
		room := make(chan struct{}, 16)
		for name, text := range all {
			running.Go(func() {
				room <- struct{}{}
				defer func() { <-room }()
				f(name, text+last)
			})
		}
		running.Wait()
	}
	each(func(name, text string) {
		if stricter(name) {
			return
		}
		if diff := cmp.Diff(hostile(t, p.envoyPort, text), hostile(t, p.enginePort, text)); diff != "" {
			t.Errorf("%s (-envoy +engine):\n%s", name, diff)
		}
	})
	want, got := hostileLines(t, file(p.envoyPort), p), hostileLines(t, file(p.enginePort), p)
	if diff := lineDiff(want, got); diff != "" {
		t.Errorf("log (-envoy +engine):\n%s", diff)
	}
	each(func(name, text string) {
		if got := hostile(t, p.enginePort, text); stricter(name) && (success.MatchString(got) || !strings.HasPrefix(got, "HTTP/1.1 4")) {
			t.Errorf("%s is answered with %q", name, got)
		}
	})
}

// hostileLines are the lines of a log but for those of connections that were lost: which they
// are is a matter of time.
func hostileLines(t *testing.T, file string, p *pair) []string {
	if _, err := http.Post("http://"+p.envoyAdmin+"/reopen_logs", "", nil); err != nil {
		t.Fatal(err)
	}
	lines := slices.DeleteFunc(connectionLines(t, file, len(hostileRequests())), func(l string) bool {
		return strings.Contains(l, "C downstream_remote_disconnect") || strings.Contains(l, " UC ")
	})
	for i, l := range lines {
		lines[i] = details.ReplaceAllString(sentFrom.ReplaceAllString(l, "$1 (local) "), "(malformed)")
	}
	slices.Sort(lines)
	return lines
}
