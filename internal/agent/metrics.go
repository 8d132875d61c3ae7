package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/common/expfmt"
)

const (
	maxStats     = 256 << 20        // bytes of Envoy's metrics passed on in one answer
	maxStatsLine = 256 << 10        // bytes of one line; labels are what makes lines long
	statsTimeout = 10 * time.Second // for all of them; Prometheus gives up by itself about then
)

// serveMetrics answers with the agent's own metrics and then Envoy's, in
// Prometheus' text format, whatever was asked for: Envoy knows no other. The
// query goes to Envoy, as in Istio. That Envoy cannot be read is counted and
// logged; the agent's own are there all the same.
func (s *status) serveMetrics(w http.ResponseWriter, r *http.Request) {
	s.scrapes.Inc()
	w.Header().Set("Content-Type", string(expfmt.NewFormat(expfmt.TypeTextPlain)))
	seen := map[string]bool{}
	if err := s.writeOwn(w, seen); err != nil {
		s.failed(r.Context(), "agent", err)
	}
	if err := s.writeEnvoys(r.Context(), w, r.URL.RawQuery, seen); err != nil {
		s.failed(r.Context(), "envoy", err)
	}
}

// failed counts and logs, unless it was who asked that gave up.
func (s *status) failed(ctx context.Context, what string, err error) {
	if ctx.Err() != nil {
		return
	}
	s.failures.WithLabelValues(what).Inc()
	s.log.Warn("metrics not read", "of", what, "err", err)
}

// writeOwn writes the agent's metrics and adds their names to seen.
func (s *status) writeOwn(w io.Writer, seen map[string]bool) error {
	families, gatherErr := s.metrics.Gather() // what could be gathered is there also with an error
	enc := expfmt.NewEncoder(w, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, f := range families {
		seen[f.GetName()] = true
		if err := enc.Encode(f); err != nil {
			return err
		}
	}
	return gatherErr
}

// writeEnvoys writes Envoy's metrics, all but families that are in seen.
func (s *status) writeEnvoys(ctx context.Context, w io.Writer, query string, seen map[string]bool) error {
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	admin, err := s.proxy.Admin()
	if err != nil {
		return err
	}
	stats, err := admin.Prometheus(ctx, query)
	if err != nil {
		return err
	}
	defer stats.Close()
	return copyFamilies(w, stats, seen, maxStats)
}

// copyFamilies copies metrics in text format line by line, at most limit bytes
// of them, and leaves out every family whose name is in seen or comes a second
// time: a parser may refuse all for one repeated name, and a plugin can give its
// metrics any name. Only whole lines are written.
func copyFamilies(w io.Writer, r io.Reader, seen map[string]bool, limit int) error {
	lines := bufio.NewReaderSize(r, maxStatsLine)
	out := bufio.NewWriter(w)
	family, typed, skip := "", false, false
	for {
		line, err := lines.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return out.Flush()
		case errors.Is(err, bufio.ErrBufferFull):
			return errors.Join(fmt.Errorf("a line is longer than %d bytes", maxStatsLine), out.Flush())
		case err != nil: // also an EOF in the midst of a line
			return errors.Join(fmt.Errorf("cut short: %w", err), out.Flush())
		}
		if limit -= len(line); limit < 0 {
			return errors.Join(errors.New("too many: the rest is left out"), out.Flush())
		}
		if name := familyOf(string(line), family); name != family {
			family, typed, skip = name, false, seen[name]
			seen[name] = true
		}
		if bytes.HasPrefix(line, []byte("# TYPE ")) {
			skip = skip || typed // the next one has the same name, by chance
			typed = true
		}
		if skip {
			continue
		}
		if _, err := out.Write(line); err != nil {
			return err
		}
	}
}

// familyOf names the family that a line belongs to, given the one before it: a
// histogram's samples have suffixes. A comment and an empty line belong to
// whatever is around them.
func familyOf(line, before string) string {
	if comment, ok := strings.CutPrefix(line, "#"); ok {
		words := strings.Fields(comment)
		if len(words) >= 2 && (words[0] == "TYPE" || words[0] == "HELP") {
			return words[1]
		}
		return before
	}
	name := line
	if i := strings.IndexAny(line, "{ \t\r\n"); i >= 0 {
		name = line[:i]
	}
	switch suffix, ok := strings.CutPrefix(name, before); {
	case name == "":
		return before
	case ok && (suffix == "" || suffix == "_bucket" || suffix == "_sum" || suffix == "_count"):
		return before
	}
	return name
}
