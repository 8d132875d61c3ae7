//go:build e2e

package engine

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A result is what a program that sent requests says of their answers.
type result struct {
	requests int
	took     time.Duration
	p50, p99 time.Duration
}

// A driver sends requests of a workload to an address for some time. One that fails,
// or is answered otherwise than by 200, ends the benchmark.
type driver func(b *testing.B, w workload, address string, length time.Duration) result

// The drivers. Both keep 16 requests under way.
var drivers = []struct {
	name  string
	drive driver
}{
	{"http1", wrk},
	{"http2", h2load},
}

// wrk sends HTTP/1.1 on 16 connections.
func wrk(b *testing.B, w workload, address string, length time.Duration) result {
	b.Helper()
	args := []string{"-t1", "-c16", fmt.Sprintf("-d%ds", int(length.Seconds())), "-s", "testdata/wrk.lua"}
	for _, h := range w.headers {
		args = append(args, "-H", h)
	}
	args = append(args, "http://"+address+w.path, "--", w.method())
	if w.body != "" {
		args = append(args, w.bodyFile(b))
	}
	out := run(b, "wrk", args...)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var said struct{ Requests, Took, P50, P99, Failed int64 }
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &said); err != nil {
		b.Fatalf("read result of wrk: %v\n%s", err, out)
	}
	if said.Failed > 0 || said.Requests == 0 {
		b.Fatalf("%d of %d requests to %s failed:\n%s", said.Failed, said.Requests, address, out)
	}
	micros := func(n int64) time.Duration { return time.Duration(n) * time.Microsecond }
	return result{requests: int(said.Requests), took: micros(said.Took), p50: micros(said.P50), p99: micros(said.P99)}
}

// ended is the line of h2load's output that tells how long it took, and failures the
// one that tells how many requests were not answered.
var (
	ended    = regexp.MustCompile(`(?m)^finished in (\S+),`)
	failures = regexp.MustCompile(`(?m)^requests: .* (\d+) failed, (\d+) errored, (\d+) timeout$`)
)

// h2load sends HTTP/2 in plain text, 4 streams on each of 4 connections.
func h2load(b *testing.B, w workload, address string, length time.Duration) result {
	b.Helper()
	log := filepath.Join(b.TempDir(), "requests")
	args := []string{"-t1", "-c4", "-m4", fmt.Sprintf("-D%d", int(length.Seconds())), "--log-file=" + log}
	for _, h := range w.headers {
		args = append(args, "-H", h)
	}
	if w.body != "" {
		args = append(args, "-d", w.bodyFile(b))
	}
	out := run(b, "h2load", append(args, "http://"+address+w.path)...)
	took, failed := ended.FindStringSubmatch(out), failures.FindStringSubmatch(out)
	if took == nil || failed == nil {
		b.Fatalf("read result of h2load: no such lines\n%s", out)
	}
	if !slices.Equal(failed[1:], []string{"0", "0", "0"}) {
		b.Fatalf("requests to %s failed:\n%s", address, out)
	}
	length, err := time.ParseDuration(took[1])
	if err != nil {
		b.Fatal(err)
	}
	all := latencies(b, log)
	return result{requests: len(all), took: length, p50: quantile(all, 0.5), p99: quantile(all, 0.99)}
}

// latencies reads h2load's log: a line a request, with its start, status and
// microseconds.
func latencies(b *testing.B, log string) (all []time.Duration) {
	b.Helper()
	f, err := os.Open(log)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), "\t")
		if len(fields) != 3 || fields[1] != "200" {
			b.Fatalf("request was not answered with 200: %q", lines.Text())
		}
		n, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, time.Duration(n)*time.Microsecond)
	}
	if err := lines.Err(); err != nil || len(all) == 0 {
		b.Fatalf("%d requests logged, %v", len(all), err)
	}
	slices.Sort(all)
	return all
}

// quantile is the value that a share q of the sorted values does not exceed.
func quantile[T any](sorted []T, q float64) T {
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
