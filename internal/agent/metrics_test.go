package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

const histogram = `# HELP h is one
# TYPE h histogram
h_bucket{le="1"} 1
h_bucket{le="+Inf"} 1
h_sum{} 1
h_count{} 1
`

func TestCopyFamilies(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"nothing", "", ""},
		{"all", "# TYPE a counter\na{} 1\na{x=\"y z\"} 2\n\n" + histogram, "# TYPE a counter\na{} 1\na{x=\"y z\"} 2\n\n" + histogram},
		{"the agent's name", "# TYPE own counter\nown{} 1\n# TYPE a gauge\na 2\n", "# TYPE a gauge\na 2\n"},
		{"twice", "# TYPE a counter\na{} 1\n# TYPE b gauge\nb{} 1\n# TYPE a gauge\na{} 7\n", "# TYPE a counter\na{} 1\n# TYPE b gauge\nb{} 1\n"},
		{"twice in a row", "# TYPE a counter\na{} 1\n# TYPE a gauge\na{} 7\n", "# TYPE a counter\na{} 1\n"},
		{"a histogram twice", histogram + "# TYPE b gauge\nb 1\n" + histogram, histogram + "# TYPE b gauge\nb 1\n"},
		{"without type", "a 1\nown 2\nb 3\n", "a 1\nb 3\n"},
		{"a comment", "# TYPE own counter\n# nothing\nown 1\n# bye\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			if err := copyFamilies(&out, strings.NewReader(tt.in), map[string]bool{"own": true}, 1<<20); err != nil {
				t.Fatal(err)
			}
			if out.String() != tt.want {
				t.Errorf("got %q, want %q", out.String(), tt.want)
			}
		})
	}
}

// What is broken off ends with a whole line, and says so.
func TestCopyFamiliesCutShort(t *testing.T) {
	const in = "# TYPE a counter\na{} 1\na{x=\"1\"} 2\n"
	const whole = "# TYPE a counter\na{} 1\n"
	broken := errors.New("broken")
	for _, tt := range []struct {
		name  string
		r     io.Reader
		limit int
	}{
		{"limit", strings.NewReader(in), len(whole) + 3},
		{"no end of line", strings.NewReader(in[:len(whole)+5]), 1 << 20},
		{"error", io.MultiReader(strings.NewReader(in[:len(whole)+5]), iotest.ErrReader(broken)), 1 << 20},
		{"long line", strings.NewReader(whole + strings.Repeat("x", maxStatsLine+1)), 1 << 30},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			err := copyFamilies(&out, tt.r, map[string]bool{}, tt.limit)
			if err == nil || out.String() != whole {
				t.Errorf("got %q, %v; want %q and an error", out.String(), err, whole)
			}
		})
	}
}

// Whatever Envoy prints, no family is there twice.
func FuzzCopyFamilies(f *testing.F) {
	f.Add([]byte(histogram + "# TYPE a counter\na{} 1\n" + histogram))
	f.Add([]byte("# TYPE own_count counter\nown_count 1\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var out bytes.Buffer
		if err := copyFamilies(&out, bytes.NewReader(in), map[string]bool{"own": true}, 1<<16); err != nil {
			return
		}
		types := map[string]bool{}
		for line := range bytes.Lines(out.Bytes()) {
			words := strings.Fields(string(line))
			if !bytes.HasPrefix(line, []byte("# TYPE ")) || len(words) < 3 {
				continue
			}
			if words[2] == "own" || types[words[2]] {
				t.Errorf("family %s again in %q", words[2], out.String())
			}
			types[words[2]] = true
		}
	})
}

func BenchmarkCopyFamilies(b *testing.B) {
	var in bytes.Buffer
	for i := range 5000 {
		fmt.Fprintf(&in, "# TYPE m%d counter\nm%d{cluster=\"outbound|80||x\"} 1\nm%d{cluster=\"outbound|81||x\"} 1\n", i, i, i)
	}
	b.SetBytes(int64(in.Len()))
	b.ReportAllocs()
	for b.Loop() {
		if err := copyFamilies(io.Discard, bytes.NewReader(in.Bytes()), map[string]bool{}, 1<<30); err != nil {
			b.Fatal(err)
		}
	}
}

// parses fails the test if text is not what Prometheus reads.
func parses(t *testing.T, text string) {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	if _, err := parser.TextToMetricFamilies(strings.NewReader(text)); err != nil {
		t.Errorf("metrics do not parse: %v", err)
	}
}
