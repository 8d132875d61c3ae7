package artifact

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// ReadFile reads a module file that is to be shipped, of at most max bytes.
func ReadFile(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read module: %w", err)
	}
	defer f.Close()
	if err := notFolder(path, f); err != nil {
		return nil, fmt.Errorf("read module: %w", err)
	}
	wasm, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, fmt.Errorf("read module: %w", err)
	}
	if int64(len(wasm)) > max {
		return nil, fmt.Errorf("read module: %s is larger than the limit of %d bytes", path, max)
	}
	return wasm, nil
}

// notFolder refuses a folder, which is what a user names who means the plugin in it.
func notFolder(path string, f *os.File) error {
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = fmt.Errorf("%s is a folder, want the module in it, such as %s", path, filepath.Join(path, "build", "plugin.wasm"))
	}
	return err
}

// WriteFile makes a file of what r yields, or replaces it: at path there is at all
// times all of the old or all of the new. The folder is made if need be.
func WriteFile(path string, r io.Reader) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return fmt.Errorf("write module: %s is a folder, want a file", path)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write module: %w", err)
	}
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("write module: %w", err)
	}
	defer os.Remove(tmp.Name()) // fails harmlessly once renamed
	_, err = io.Copy(tmp, r)
	// Others may read it, as a proxy that runs as another user must.
	if err := errors.Join(err, tmp.Sync(), tmp.Chmod(0o644), tmp.Close()); err != nil {
		return fmt.Errorf("write module: %w", err)
	}
	return os.Rename(tmp.Name(), path)
}
