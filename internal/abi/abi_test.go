package abi

import (
	"bytes"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestVersionOf(t *testing.T) {
	for _, tt := range []struct {
		export string
		want   Version
		text   string
		ok     bool
	}{
		{"proxy_abi_version_0_1_0", V010, "0.1.0", true},
		{"proxy_abi_version_0_2_0", V020, "0.2.0", true},
		{"proxy_abi_version_0_2_1", V021, "0.2.1", true},
		{"proxy_abi_version_0_3_0", 0, "Version(0)", false},
		{"proxy_abi_version_", 0, "Version(0)", false},
		{"", 0, "Version(0)", false},
	} {
		got, ok := VersionOf(tt.export)
		if got != tt.want || ok != tt.ok || got.String() != tt.text {
			t.Errorf("VersionOf(%q) = %v (%s), %v, want %v (%s), %v", tt.export, got, got, ok, tt.want, tt.text, tt.ok)
		}
	}
}

// The numbers are a contract with modules compiled long ago.
func TestNumbers(t *testing.T) {
	for _, tt := range []struct {
		name      string
		got, want uint32
	}{
		{"OK", uint32(OK), 0}, {"NotFound", uint32(NotFound), 1}, {"BadArgument", uint32(BadArgument), 2},
		{"SerializationFailure", uint32(SerializationFailure), 3}, {"ParseFailure", uint32(ParseFailure), 4},
		{"InvalidMemoryAccess", uint32(InvalidMemoryAccess), 6}, {"Empty", uint32(Empty), 7},
		{"CASMismatch", uint32(CASMismatch), 8}, {"InternalFailure", uint32(InternalFailure), 10},
		{"Unimplemented", uint32(Unimplemented), 12},
		{"Critical", uint32(Critical), 5},
		{"DownstreamData", uint32(DownstreamData), 2}, {"GRPCCallMessage", uint32(GRPCCallMessage), 5},
		{"VMConfiguration", uint32(VMConfiguration), 6}, {"PluginConfiguration", uint32(PluginConfiguration), 7},
		{"ForeignFunctionArguments", uint32(ForeignFunctionArguments), 8},
		{"HTTPResponseTrailers", uint32(HTTPResponseTrailers), 3}, {"HTTPCallResponseTrailers", uint32(HTTPCallResponseTrailers), 7},
		{"Upstream", uint32(Upstream), 3}, {"Histogram", uint32(Histogram), 2}, {"PeerRemote", uint32(PeerRemote), 2},
	} {
		if tt.got != tt.want {
			t.Errorf("%s = %d, want %d", tt.name, tt.got, tt.want)
		}
	}
}

func TestValid(t *testing.T) {
	for _, tt := range []struct {
		name      string
		last, one bool
	}{
		{"LogLevel", LogLevel(5).Valid(), LogLevel(6).Valid()},
		{"Buffer", Buffer(8).Valid(), Buffer(9).Valid()},
		{"Map", Map(7).Valid(), Map(8).Valid()},
		{"Stream", Stream(3).Valid(), Stream(4).Valid()},
		{"Metric", Metric(2).Valid(), Metric(3).Valid()},
	} {
		if !tt.last || tt.one {
			t.Errorf("%s: last valid = %v, one more = %v, want true, false", tt.name, tt.last, tt.one)
		}
	}
}

func TestPairs(t *testing.T) {
	for _, tt := range []struct {
		name  string
		pairs []Pair
		want  string
	}{
		{"none", nil, ""},
		{"one", []Pair{{"a", "1"}}, "\x01\x00\x00\x00" + "\x01\x00\x00\x00\x01\x00\x00\x00" + "a\x001\x00"},
		{"the specification's", []Pair{{"a", "1"}, {"b", "22"}}, "\x02\x00\x00\x00" +
			"\x01\x00\x00\x00\x01\x00\x00\x00" + "\x01\x00\x00\x00\x02\x00\x00\x00" + "a\x001\x00b\x0022\x00"},
		{"empty strings", []Pair{{"", ""}}, "\x01\x00\x00\x00" + "\x00\x00\x00\x00\x00\x00\x00\x00" + "\x00\x00"},
		{"zero bytes inside", []Pair{{"a\x00b", "\x00"}}, "\x01\x00\x00\x00" + "\x03\x00\x00\x00\x01\x00\x00\x00" + "a\x00b\x00\x00\x00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := AppendPairs([]byte("x"), tt.pairs)
			if diff := cmp.Diff("x"+tt.want, string(got)); diff != "" {
				t.Errorf("AppendPairs (-want +got):\n%s", diff)
			}
			if n := PairsSize(tt.pairs); n != len(tt.want) {
				t.Errorf("PairsSize = %d, want %d", n, len(tt.want))
			}
			back, ok := DecodePairs(got[1:])
			if diff := cmp.Diff(tt.pairs, back); !ok || diff != "" {
				t.Errorf("DecodePairs = %v (-want +got):\n%s", ok, diff)
			}
		})
	}
}

func TestDecodePairs(t *testing.T) {
	many := make([]Pair, MaxPairs+1)
	for _, tt := range []struct {
		name, in string
		want     []Pair
		ok       bool
	}{
		{"a single zero byte is empty", "\x00", nil, true},
		{"a count of zero is empty", "\x00\x00\x00\x00", nil, true},
		{"a count of zero, then something", "\x00\x00\x00\x00x", nil, false},
		{"short count", "\x01\x00", nil, false},
		{"no lengths", "\x01\x00\x00\x00", nil, false},
		{"huge count", "\xff\xff\xff\xff", nil, false},
		{"huge length", "\x01\x00\x00\x00" + "\xff\xff\xff\xff\x00\x00\x00\x00" + "\x00\x00", nil, false},
		{"key not terminated", "\x01\x00\x00\x00" + "\x01\x00\x00\x00\x01\x00\x00\x00" + "a11\x00", nil, false},
		{"value not terminated", "\x01\x00\x00\x00" + "\x01\x00\x00\x00\x01\x00\x00\x00" + "a\x001", nil, false},
		{"something after", "\x01\x00\x00\x00" + "\x01\x00\x00\x00\x01\x00\x00\x00" + "a\x001\x00x", nil, false},
		{"too many", string(AppendPairs(nil, many)), nil, false},
		{"as many as may be", string(AppendPairs(nil, many[1:])), many[1:], true},
		{"too long", string(AppendPairs(nil, []Pair{{"a", string(make([]byte, MaxPairsBytes))}})), nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := DecodePairs([]byte(tt.in))
			if diff := cmp.Diff(tt.want, got); ok != tt.ok || diff != "" {
				t.Errorf("DecodePairs = %v, want %v (-want +got):\n%s", ok, tt.ok, diff)
			}
		})
	}
}

func TestAppendLower(t *testing.T) {
	if got := string(AppendLower([]byte("X"), []byte("X-Héllo-@[`{:Z"))); got != "Xx-héllo-@[`{:z" {
		t.Errorf("AppendLower = %q", got)
	}
}

func TestProperties(t *testing.T) {
	for _, tt := range []struct {
		name string
		got  []byte
		want string
	}{
		{"int", AppendInt(nil, 8080), "\x90\x1f\x00\x00\x00\x00\x00\x00"},
		{"negative int", AppendInt(nil, -1), "\xff\xff\xff\xff\xff\xff\xff\xff"},
		{"uint", AppendUint(nil, math.MaxUint64), "\xff\xff\xff\xff\xff\xff\xff\xff"},
		{"double", AppendDouble(nil, 1), "\x00\x00\x00\x00\x00\x00\xf0\x3f"},
		{"true", AppendBool(nil, true), "\x01"},
		{"false", AppendBool(nil, false), "\x00"},
		{"duration", AppendDuration(nil, time.Microsecond), "\xe8\x03\x00\x00\x00\x00\x00\x00"},
		{"timestamp", AppendTime(nil, time.Unix(0, 1)), "\x01\x00\x00\x00\x00\x00\x00\x00"},
		{"empty map", AppendMap(nil, nil), "\x00\x00\x00\x00"},
		{"map", AppendMap(nil, []Pair{{"a", "1"}}), string(AppendPairs(nil, []Pair{{"a", "1"}}))},
		{"list", AppendList(nil, []string{"a", "b"}), string(AppendPairs(nil, []Pair{{"a", ""}, {"b", ""}}))},
	} {
		if string(tt.got) != tt.want {
			t.Errorf("%s = %q, want %q", tt.name, tt.got, tt.want)
		}
	}
}

func TestCutPath(t *testing.T) {
	for _, tt := range []struct{ path, segment, rest string }{
		{"", "", ""},
		{"request", "request", ""},
		{"request\x00", "request", ""},
		{"request\x00headers\x00x.y", "request", "headers\x00x.y"},
		{"\x00a", "", "a"},
	} {
		if segment, rest := CutPath(tt.path); segment != tt.segment || rest != tt.rest {
			t.Errorf("CutPath(%q) = %q, %q, want %q, %q", tt.path, segment, rest, tt.segment, tt.rest)
		}
	}
	if got := JoinPath("a", "b"); got != "a\x00b" {
		t.Errorf("JoinPath = %q", got)
	}
}

func FuzzDecodePairs(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0})
	f.Add(AppendPairs(nil, []Pair{{":path", "/"}, {"", ""}}))
	f.Add([]byte("\x01\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		pairs, ok := DecodePairs(data)
		if !ok {
			if pairs != nil {
				t.Fatalf("malformed, yet %d pairs", len(pairs))
			}
			return
		}
		again := AppendPairs(nil, pairs)
		if len(pairs) > 0 && !bytes.Equal(data, again) {
			t.Fatalf("%q decodes to what encodes to %q", data, again)
		}
	})
}

func BenchmarkAppendPairs(b *testing.B) {
	pairs := []Pair{{":authority", "example.com"}, {":path", "/productpage"}, {":method", "GET"}, {"user-agent", "curl/8"}, {"accept", "*/*"}}
	buf := make([]byte, 0, PairsSize(pairs))
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendPairs(buf[:0], pairs)
	}
}
