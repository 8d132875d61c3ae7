package kube

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const kubeconfig = `apiVersion: v1
kind: Config
current-context: a
contexts:
- name: a
  context: {cluster: a, user: a}
clusters:
- name: a
  cluster: {server: "https://SERVER:6443"}
users:
- name: a
  user: {token: secret}
`

func TestConnect(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	given := file("given", strings.ReplaceAll(kubeconfig, "SERVER", "given"))
	environment := file("environment", strings.ReplaceAll(kubeconfig, "SERVER", "environment"))
	for _, tt := range []struct {
		name, path, environment string
		host, err               string
		sentinel                error
	}{
		{name: "given", path: given, environment: environment, host: "https://given:6443"},
		{name: "environment", environment: environment, host: "https://environment:6443"},
		{name: "none", environment: filepath.Join(dir, "none"), sentinel: ErrNoCluster, err: "no cluster"},
		{name: "no such file", path: filepath.Join(dir, "none"), environment: environment, err: "read kubeconfig"},
		{name: "not a kubeconfig", path: file("bad", "{"), err: "read kubeconfig"},
		{name: "empty", path: file("empty", ""), err: "empty: it names no cluster as current"},
		{name: "unknown context", path: file("context", "apiVersion: v1\nkind: Config\ncurrent-context: b\n"), err: "context: b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", tt.environment)
			t.Setenv("KUBERNETES_SERVICE_HOST", "")
			config, err := Connect(tt.path, "chandler/test")
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || tt.sentinel != nil && !errors.Is(err, tt.sentinel) {
					t.Errorf("error = %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if config.Host != tt.host || config.UserAgent != "chandler/test" || config.QPS >= 0 {
				t.Errorf("Connect = %v of %q at %v a second, want %s without a limit", config.Host, config.UserAgent, config.QPS, tt.host)
			}
		})
	}
}
