package resource

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// BenchmarkFirstDecode is what a start costs: a new decoder and the first
// resources it meets. retained-MB is the heap that it keeps.
func BenchmarkFirstDecode(b *testing.B) {
	for _, tt := range []struct {
		name  string
		paths []string
	}{
		{"WasmPlugin", []string{"testdata/basicauth.yaml"}},
		{"bookinfo", []string{"testdata/basicauth.yaml", "testdata/bookinfo.yaml"}},
		{"all", inputs(b)},
	} {
		b.Run(tt.name, func(b *testing.B) {
			files := map[string][]byte{}
			for _, path := range tt.paths {
				data, err := os.ReadFile(path)
				if err != nil {
					b.Fatal(err)
				}
				files[filepath.Base(path)] = data
			}
			before := heap()
			var d *Decoder
			for b.Loop() {
				d = NewDecoder()
				for name, data := range files {
					d.Decode(name, data)
				}
			}
			b.ReportMetric((heap()-before)/1e6, "retained-MB")
			runtime.KeepAlive(d)
		})
	}
}

func heap() float64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return float64(stats.HeapAlloc)
}

// BenchmarkDecode is what a changed file costs.
func BenchmarkDecode(b *testing.B) {
	for _, name := range []string{"basicauth.yaml", "envoyfilter.yaml", "bookinfo.yaml"} {
		b.Run(name, func(b *testing.B) {
			data, err := os.ReadFile("testdata/" + name)
			if err != nil {
				b.Fatal(err)
			}
			d := NewDecoder()
			for b.Loop() {
				if _, problems := d.Decode(name, data); len(problems) > 0 {
					b.Fatal(problems)
				}
			}
		})
	}
}
