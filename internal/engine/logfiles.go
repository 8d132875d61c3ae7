package engine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// logFiles are the files of access logs, each opened once, to append to. They stay
// open as long as the engine runs.
type logFiles struct {
	mu   sync.Mutex
	open map[string]*logFile
}

// A logFile is written a line at a time, by anyone.
type logFile struct {
	mu   sync.Mutex
	path string
	file *os.File // nil until it is written
}

func (l *logFiles) writer(path string) io.Writer {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		l.open = map[string]*logFile{}
	}
	f := l.open[path]
	if f == nil {
		f = &logFile{path: path}
		switch path {
		case "/dev/stdout":
			f.file = os.Stdout
		case "/dev/stderr":
			f.file = os.Stderr
		}
		l.open[path] = f
	}
	return f
}

// Write opens the file if need be. One that cannot be opened is tried again next time.
func (f *logFile) Write(line []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		file, err := os.OpenFile(f.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			return 0, fmt.Errorf("open access log: %w", err)
		}
		f.file = file
	}
	return f.file.Write(line)
}

// close closes the files; the process's own stay open.
func (l *logFiles) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, f := range l.open {
		if f.file != nil && f.file != os.Stdout && f.file != os.Stderr {
			errs = append(errs, f.file.Close())
		}
	}
	return errors.Join(errs...)
}
