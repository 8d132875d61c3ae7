//go:build e2e

package dev

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chandler-proxy/chandler/internal/artifact/template"
	"github.com/chandler-proxy/chandler/internal/artifact/toolchain"
)

// TestEdit works on a plugin that was just begun, while clients use it: another source,
// one that does not compile, one that does again, another configuration.
func TestEdit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "hello")
	if err := template.Write(dir, toolchain.Go, "hello"); err != nil {
		t.Fatal(err)
	}
	source, config := filepath.Join(dir, "main.go"), filepath.Join(dir, "wasmplugin.yaml")
	edit := func(path, old, new string) {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(text), old) {
			t.Fatalf("%s has no %q: %v", path, old, err)
		}
		write(t, path, []byte(strings.Replace(string(text), old, new, 1)))
	}
	out, addr := start(t, Config{
		Dir: dir, Language: toolchain.Go, Module: filepath.Join(dir, "build", "plugin.wasm"), ConfigFile: config, Trace: true,
	})
	url := "http://" + addr + "/headers"
	answers := func(want string) {
		t.Helper()
		if resp, _ := get(t, url); resp.StatusCode != http.StatusOK || resp.Header.Get("x-hello") != want {
			t.Errorf("answer %s with x-hello %q, want %q", resp.Status, resp.Header.Get("x-hello"), want)
		}
	}
	const serving = `^dev: serving sha256:[0-9a-f]{12}… \(\S+ MB, ABI 0\.2\.0\), built in \S+$`
	out.wait(t, `^dev: building$`)
	out.wait(t, `^    proxy_on_configure\(context=1,size=19\) = 1
      proxy_get_buffer_bytes\(buffer=7,start=0,size=\d+\) = value="\{\\"x-hello\\":\\"hello\\"\}",OK$`)
	out.wait(t, serving)
	answers("hello")
	out.wait(t, `^GET /headers 200 \S+
    proxy_on_request_headers\(context=2,headers=\d+,end=1\) = 0
    proxy_on_response_headers\(context=2,headers=\d+,end=0\) = 0
      proxy_replace_header_map_value\(map=2,key="x-hello",value="hello"\) = OK
    proxy_on_response_body\(`)

	load := under(url)
	edit(source, `name, s.plugin.headers[name]`, `name, "edited"`)
	out.wait(t, `^dev: changed: main.go$`)
	out.wait(t, serving)
	answers("edited")

	edit(source, `"edited"`, `edited`)
	out.wait(t, `^\./main\.go:\d+:\d+: undefined: edited$`)
	out.wait(t, `^dev: build plugin: go build: exit status 1$`)
	out.wait(t, `^dev: sha256:\S+ .* goes on serving$`)
	answers("edited")

	edit(source, `name, edited`, `name, s.plugin.headers[name]+"!"`)
	out.wait(t, serving)
	answers("hello!")

	edit(config, "x-hello: hello", "x-hello: 7")
	out.wait(t, `^dev: changed: wasmplugin.yaml$`)
	out.wait(t, `^plugin error: refuse configuration: `)
	out.wait(t, `^dev: refused: .*refused the plugin configuration$`)
	answers("hello!")
	edit(config, "x-hello: 7", "x-hello: [")
	out.wait(t, `^dev: .*wasmplugin.yaml: `)
	out.wait(t, `^dev: sha256:\S+ .* goes on serving$`)
	edit(config, "x-hello: [", "x-hello: bye")
	out.wait(t, serving)
	answers("bye!")
	load.end(t)
}
