package cli

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// podLabels reads a file of labels as the downward API writes it: KEY="VALUE" a
// line, the value escaped as in Go.
func podLabels(path string) (map[string]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	labels := make(map[string]string)
	for n, line := range strings.Split(string(text), "\n") {
		if line == "" {
			continue
		}
		key, quoted, ok := strings.Cut(line, "=")
		value, err := strconv.Unquote(quoted)
		if !ok || err != nil {
			return nil, fmt.Errorf("%s:%d: %q is not KEY=\"VALUE\", as a downwardAPI volume has it", path, n+1, line)
		}
		labels[key] = value
	}
	return labels, nil
}
