//go:build e2e

package engine

import (
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A workload is a plugin, and requests that give it something to do.
type workload struct {
	name    string
	module  string // file; empty for no plugin
	config  string // pluginConfig, as YAML flow
	path    string
	headers []string // NAME: VALUE
	body    string   // sent with POST

	plain, answer string // bodies of the answer without and with the plugin
	wasm          string // a header that the plugin adds, NAME: VALUE
	refused       bool   // requests without the headers are answered with 401
}

const (
	addHeader   = "../../plugins/testdata/addheader.wasm"
	basicAuth   = "../../plugins/dist/basic-auth.wasm"
	countHeader = "../../plugins/dist/header-counter.wasm"
	rewrite     = "testdata/rewrite.wat"
)

var none = workload{name: "none", path: "/", plain: "backend", answer: "backend"}

var withHeader = workload{
	name: "add-header", module: addHeader, config: "{name: bench}",
	path: "/", plain: "backend", answer: "backend", wasm: "x-wasm: bench",
}

var workloads = []workload{
	none,
	withHeader,
	{
		name: "basic-auth", module: basicAuth,
		config: `{basic_auth_rules: [{prefix: "/productpage", request_methods: ["GET", "POST"], credentials: ["ok:test", "YWRtaW4zOmFkbWluMw=="]}]}`,
		path:   "/productpage", headers: []string{"authorization: Basic YWRtaW4zOmFkbWluMw=="},
		plain: "backend", answer: "backend", refused: true,
	},
	{
		name: "header-counter", module: countHeader, config: "{header_1: some_value_1, header_2: another_value}",
		path: "/", headers: []string{"hello: something"},
		plain: "backend", answer: "backend", wasm: "header_2: another_value",
	},
	{
		name: "rewrite-response", module: rewrite,
		path: "/text", plain: text, answer: strings.ToUpper(text),
	},
	{
		name: "rewrite-request", module: rewrite,
		path: "/", body: text, plain: checksum(text), answer: checksum(strings.ToUpper(text)),
	},
}

// checksum is the backend's answer to a body.
func checksum(body string) string {
	return summary(int64(len(body)), crc32.ChecksumIEEE([]byte(body)))
}

func (w workload) method() string {
	if w.body != "" {
		return http.MethodPost
	}
	return http.MethodGet
}

// bodyFile is a file with the body.
func (w workload) bodyFile(b *testing.B) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "body")
	if err := os.WriteFile(path, []byte(w.body), 0o600); err != nil {
		b.Fatal(err)
	}
	return path
}

// ask sends one request.
func (w workload) ask(address string, headers []string) (*http.Response, string, error) {
	req, err := http.NewRequest(w.method(), "http://"+address+w.path, strings.NewReader(w.body))
	if err != nil {
		return nil, "", err
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	res, err := c.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res, string(body), err
}

// unchanged asks where the plugin is not.
func (w workload) unchanged(address string) error {
	res, body, err := w.ask(address, w.headers)
	if err == nil && (res.StatusCode != http.StatusOK || body != w.plain) {
		err = fmt.Errorf("answer %s %.60q", res.Status, body)
	}
	return err
}

// check asks where the plugin is, and finds out whether it has done its part.
func (w workload) check(address string) error {
	res, body, err := w.ask(address, w.headers)
	if err != nil {
		return err
	}
	name, value, _ := strings.Cut(w.wasm, ": ")
	if res.StatusCode != http.StatusOK || body != w.answer || res.Header.Get(name) != value {
		return fmt.Errorf("answer %s %.60q with %s: %q", res.Status, body, name, res.Header.Get(name))
	}
	if !w.refused {
		return nil
	}
	if res, _, err = w.ask(address, nil); err == nil && res.StatusCode != http.StatusUnauthorized {
		err = fmt.Errorf("answer %s without credentials", res.Status)
	}
	return err
}

// A lane is a port of a gateway under load.
type lane struct {
	*gateway
	address string
	turns   []turn
}

// A turn is what came of one run of a driver.
type turn struct {
	rate     float64 // requests a second
	p50, p99 float64 // ms
	cpu      float64 // seconds of the gateway's processes for 100,000 requests
}

// turns is how many turns each lane has, and how long one is.
func turns() (n int, length time.Duration) {
	if testing.Short() {
		return 1, time.Second
	}
	return 3, 2 * time.Second
}

// measure gives each lane its turns, after one second to get warm. The order changes
// from round to round.
func measure(b *testing.B, w workload, drive driver, lanes ...*lane) {
	b.Helper()
	rounds, length := turns()
	for _, l := range lanes {
		drive(b, w, l.address, time.Second)
	}
	for range rounds {
		for _, l := range lanes {
			before := l.usage(b)
			r := drive(b, w, l.address, length)
			cpu := l.usage(b).cpu - before.cpu
			l.turns = append(l.turns, turn{
				rate: float64(r.requests) / r.took.Seconds(),
				p50:  ms(r.p50), p99: ms(r.p99),
				cpu: cpu.Seconds() * 1e5 / float64(r.requests),
			})
		}
		slices.Reverse(lanes)
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func rate(t turn) float64 { return t.rate }
func p50(t turn) float64  { return t.p50 }
func p99(t turn) float64  { return t.p99 }
func cpu(t turn) float64  { return t.cpu }

// middle is the median of what the turns say.
func (l *lane) middle(of func(turn) float64) float64 {
	var all []float64
	for _, t := range l.turns {
		all = append(all, of(t))
	}
	return median(all)
}

// ratio is the median of the ratios of the turns to those of the same rounds of another.
func (l *lane) ratio(to *lane, of func(turn) float64) float64 {
	var all []float64
	for i, t := range l.turns {
		all = append(all, of(t)/of(to.turns[i]))
	}
	return median(all)
}

func median(all []float64) float64 {
	slices.Sort(all)
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

// BenchmarkEngine is the engine beside Envoy. What begins with x- is the engine's as
// a multiple of Envoy's: of requests a second more is better, of latency, CPU time
// and memory less. Memory is that of agent and proxy after the load.
func BenchmarkEngine(b *testing.B) {
	for _, w := range workloads {
		b.Run(w.name, func(b *testing.B) {
			s := startStand(b, w)
			for _, d := range drivers {
				b.Run(d.name, func(b *testing.B) { s.compare(b, w, d.drive) })
			}
		})
	}
}

func (s *stand) compare(b *testing.B, w workload, drive driver) {
	engine, envoy := &lane{gateway: s.engine, address: s.engine.filtered}, &lane{gateway: s.envoy, address: s.envoy.filtered}
	for b.Loop() {
		measure(b, w, drive, engine, envoy)
	}
	for _, l := range []*lane{engine, envoy} {
		if err := w.check(l.address); err != nil {
			b.Fatalf("%s after the load: %v", l.name, err)
		}
		b.ReportMetric(l.middle(rate), "rps-"+l.name)
		b.ReportMetric(l.middle(p99), "ms-p99-"+l.name)
		b.ReportMetric(l.middle(cpu), "s-cpu-"+l.name)
		b.ReportMetric(float64(l.usage(b).rss)/(1<<20), "MB-rss-"+l.name)
	}
	b.ReportMetric(engine.ratio(envoy, rate), "x-rps")
	b.ReportMetric(engine.ratio(envoy, p50), "x-p50")
	b.ReportMetric(engine.ratio(envoy, p99), "x-p99")
	b.ReportMetric(engine.ratio(envoy, cpu), "x-cpu")
	mine, its := engine.usage(b), envoy.usage(b)
	b.ReportMetric(float64(mine.rss)/float64(its.rss), "x-rss")
	b.ReportMetric(float64(mine.pss)/float64(its.pss), "x-pss")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkPrice is what a filter costs: the same proxy at a port with the plugin
// that adds a header and at one without. %-rps is how many requests a second less
// there are with it, %-cpu how much more CPU time a request takes.
func BenchmarkPrice(b *testing.B) {
	s := startStand(b, withHeader)
	for _, d := range drivers {
		b.Run(d.name, func(b *testing.B) {
			var lanes []*lane
			for _, g := range []*gateway{s.engine, s.envoy} {
				lanes = append(lanes, &lane{gateway: g, address: g.plain}, &lane{gateway: g, address: g.filtered})
			}
			for b.Loop() {
				measure(b, withHeader, d.drive, slices.Clone(lanes)...)
			}
			for i := 0; i < len(lanes); i += 2 {
				plain, filtered := lanes[i], lanes[i+1]
				b.ReportMetric(100*(1-filtered.ratio(plain, rate)), "%-rps-"+plain.name)
				b.ReportMetric(100*(filtered.ratio(plain, cpu)-1), "%-cpu-"+plain.name)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
