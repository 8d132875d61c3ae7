package plugins

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestModulesOpen(t *testing.T) {
	text, err := fs.ReadFile(Modules(), "README.md")
	if err != nil || len(text) == 0 {
		t.Errorf("ReadFile of what is there = %d bytes, %v", len(text), err)
	}
	if _, err := fs.ReadDir(Modules(), "."); err != nil {
		t.Errorf("ReadDir = %v", err)
	}

	_, err = Modules().Open("no-such.wasm")
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "run make build") {
		t.Errorf("Open of what is not built: error = %v, want one that says to run make build", err)
	}
	if _, err := Modules().Open("../embed.go"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("Open outside: error = %v, want %v", err, fs.ErrInvalid)
	}
}

// TestTestdata keeps each test module together with its source.
func TestTestdata(t *testing.T) {
	texts, err := filepath.Glob("testdata/*.wat")
	if err != nil || len(texts) == 0 {
		t.Fatalf("Glob = %v, %v", texts, err)
	}
	for _, text := range texts {
		module, err := os.ReadFile(strings.TrimSuffix(text, ".wat") + ".wasm")
		if err != nil {
			t.Error(err)
			continue
		}
		if !strings.HasPrefix(string(module), "\x00asm\x01\x00\x00\x00") {
			t.Errorf("%s is assembled into what is no Wasm module", text)
		}
	}
}
