package proxywasm

import (
	"testing"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// What Envoy 1.40 does, seen with a plugin that does the same.
func TestFields(t *testing.T) {
	pairs := func() []abi.Pair {
		return []abi.Pair{{Key: ":authority", Value: "a"}, {Key: ":path", Value: "/"}, {Key: ":method", Value: "GET"},
			{Key: "accept", Value: "*/*"}, {Key: "x-multi", Value: "1"}, {Key: "x-multi", Value: "2"}, {Key: "etag", Value: "e"}}
	}
	const rest = "accept=*/* x-multi=1 x-multi=2 etag=e"
	for _, tt := range []struct {
		name string
		f    *Fields
		do   func(f *Fields)
		want string
	}{
		{"add", NewRequestFields(pairs()...), func(f *Fields) { f.Add("x-new", "n") }, ":authority=a :path=/ :method=GET " + rest + " x-new=n"},
		{"add a pseudo-header", NewRequestFields(pairs()...), func(f *Fields) { f.Add(":scheme", "http") }, ":authority=a :path=/ :method=GET :scheme=http " + rest},
		{"add one more", NewRequestFields(pairs()...), func(f *Fields) { f.Add("x-multi", "3") }, ":authority=a :path=/ :method=GET " + rest + " x-multi=3"},
		{"add to a slot", NewRequestFields(pairs()...), func(f *Fields) { f.Add("accept", "b") }, ":authority=a :path=/ :method=GET accept=*/*,b x-multi=1 x-multi=2 etag=e"},
		{"add nothing to a slot", NewRequestFields(pairs()...), func(f *Fields) { f.Add("accept", "") }, ":authority=a :path=/ :method=GET " + rest},
		{"add to a slot of responses", NewRequestFields(pairs()...), func(f *Fields) { f.Add("etag", "f") }, ":authority=a :path=/ :method=GET " + rest + " etag=f"},
		{"add to a slot of a response", NewResponseFields(pairs()...), func(f *Fields) { f.Add("etag", "f"); f.Add("accept", "b") }, ":authority=a :path=/ :method=GET accept=*/* x-multi=1 x-multi=2 etag=e,f accept=b"},
		{"add to trailers", NewFields(pairs()...), func(f *Fields) { f.Add("etag", "f"); f.Add("accept", "b") }, ":authority=a :path=/ :method=GET " + rest + " etag=f accept=b"},
		{"set", NewRequestFields(pairs()...), func(f *Fields) { f.Set("x-multi", "3") }, ":authority=a :path=/ :method=GET accept=*/* etag=e x-multi=3"},
		{"set a pseudo-header", NewRequestFields(pairs()...), func(f *Fields) { f.Set(":path", "/2") }, ":authority=a :method=GET :path=/2 " + rest},
		{"set host", NewRequestFields(pairs()...), func(f *Fields) { f.Set("host", "b") }, ":path=/ :method=GET :authority=b " + rest},
		{"add host", NewRequestFields(pairs()...), func(f *Fields) { f.Add("host", "b") }, ":authority=a,b :path=/ :method=GET " + rest},
		{"remove host", NewRequestFields(pairs()...), func(f *Fields) { f.Remove("host") }, ":path=/ :method=GET " + rest},
		{"remove", NewRequestFields(pairs()...), func(f *Fields) { f.Remove("x-multi"); f.Remove("none") }, ":authority=a :path=/ :method=GET accept=*/* etag=e"},
		{"only pseudo-headers", NewResponseFields(), func(f *Fields) { f.Add(":status", "200"); f.Add(":x", "y") }, ":status=200 :x=y"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.do(tt.f)
			if got := pairsOf(tt.f); got != tt.want {
				t.Errorf("fields = %s, want %s", got, tt.want)
			}
		})
	}
	f := NewRequestFields(pairs()...)
	if v, ok := f.Get("host"); v != "a" || !ok {
		t.Errorf("host = %q, %v", v, ok)
	}
	if v, ok := f.Get("x-multi"); v != "1" || !ok {
		t.Errorf("x-multi = %q, %v", v, ok)
	}
	if _, ok := f.Get("none"); ok || f.Len() != 7 || len(f.Pairs()) != 7 {
		t.Errorf("none = %v of %d", ok, f.Len())
	}
	n := 0
	f.Each(func(string, string) bool { n++; return n < 3 })
	if n != 3 {
		t.Errorf("Each went on: %d", n)
	}
}

func TestRecordPrefix(t *testing.T) {
	for _, tt := range []struct {
		r    Record
		want string
	}{
		{Record{}, ""},
		{Record{RootID: "root", VMID: "vm"}, " root vm"},
		{Record{Plugin: "plug", VMID: "vm"}, " plug vm"},
	} {
		if got := tt.r.Prefix(); got != tt.want {
			t.Errorf("Prefix = %q, want %q", got, tt.want)
		}
	}
}
