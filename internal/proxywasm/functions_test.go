package proxywasm

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// A hostCall is one row of a table: a host function, its arguments, and what it
// returns, as traces show it.
type hostCall struct {
	name string
	args []any
	want string
}

func call1(name, want string, args ...any) hostCall { return hostCall{name, args, want} }

// doAll makes the calls in order.
func (h *harness) doAll(calls ...hostCall) {
	h.Helper()
	for _, c := range calls {
		if got := h.do(c.name, c.args...); got != c.want {
			h.Errorf("%s%v = %s, want %s", c.name, c.args, got, c.want)
		}
	}
}

var bad = span{nowhere, 4}

func TestLogging(t *testing.T) {
	h := newHarness(t, abi.V021)
	h.level = abi.Info
	h.inTick(func() {
		h.doAll(
			call1("proxy_log", "(OK)", 2, "hello"),
			call1("proxy_log", "(OK)", 5, ""),
			call1("proxy_log", "(OK)", 1, "not at this level"),
			call1("proxy_log", "(BAD_ARGUMENT)", 6, "x"),
			call1("proxy_log", "(INVALID_MEMORY_ACCESS)", 2, bad),
			call1("proxy_log", "(INVALID_MEMORY_ACCESS)", 2, span{0, 1 << 31}),
			call1("proxy_get_log_level", "(level=2,OK)"),
			call1("proxy_get_log_level", "(INVALID_MEMORY_ACCESS)", bad),
		)
	})
	stream := h.plugin.NewHTTP(&fakeHTTP{})
	h.within("proxy_on_request_headers", func() uint32 { h.do("proxy_log", 3, "of a stream"); return 0 }, func() {
		stream.OnRequestHeaders(request(), true)
	})
	if diff := cmp.Diff([]string{"info root vm: hello", "critical root vm: ", "warning plug root vm: of a stream"}, h.logs); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

func TestFdWrite(t *testing.T) {
	h := newHarness(t, abi.V021)
	vectors := func(parts ...string) (iovs, count int) {
		addr := uint32(40000)
		at := uint32(50000)
		for i, part := range parts {
			h.in.mem.WriteString(at, part)
			h.in.mem.WriteUint32Le(addr+uint32(i)*8, at)
			h.in.mem.WriteUint32Le(addr+uint32(i)*8+4, uint32(len(part)))
			at += uint32(len(part))
		}
		return int(addr), len(parts)
	}
	write := func(fd int, want string, parts ...string) {
		t.Helper()
		iovs, count := vectors(parts...)
		h.doAll(call1("fd_write", want, fd, iovs, count, 60000))
	}
	h.inTick(func() {
		write(1, "(errno=0)", "one line\n")
		if n, _ := h.in.mem.ReadUint32Le(60000); n != 9 {
			t.Errorf("written = %d, want 9", n)
		}
		write(2, "(errno=0)", "in ", "parts", "\n")
		write(2, "(errno=0)", "cut ")
		write(1, "(errno=0)", "two\nlines\n")
		write(2, "(errno=0)", "in two\n")
		write(1, "(errno=0)", "\n")
		write(1, "(errno=0)", "unfinished")
		write(1, "(errno=0)")
		write(0, "(errno=8)", "x\n")
		write(3, "(errno=8)", "x\n")
		h.doAll(
			call1("fd_write", "(errno=21)", 1, nowhere, 1, 60000),
			call1("fd_write", "(errno=21)", 1, 0, -1, 60000),
			call1("fd_write", "(errno=21)", 1, 40000, 1, nowhere),
		)
	})
	want := []string{
		"info root vm: one line", "error root vm: in parts", "info root vm: two\nlines", "error root vm: cut in two", "info root vm: ",
		"info root vm: unfinishedx", // the last of the calls that fail has written before it does, as in Envoy
	}
	if diff := cmp.Diff(want, h.logs); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

func TestTime(t *testing.T) {
	h := newHarness(t, abi.V021)
	h.inTick(func() {
		h.doAll(
			call1("proxy_get_current_time_nanoseconds", "(time=1700000000000000042,OK)"),
			call1("proxy_get_current_time_nanoseconds", "(INVALID_MEMORY_ACCESS)", bad),
			call1("clock_time_get", "(time=1700000000000000042,errno=0)", 0, 1),
			call1("clock_time_get", "(time=1000000000,errno=0)", 1, 1),
			call1("clock_time_get", "(errno=58)", 2, 1),
			call1("clock_time_get", "(errno=21)", 0, 1, bad),
			call1("clock_res_get", "(resolution=1,errno=0)", 1),
			call1("clock_res_get", "(errno=58)", 3),
		)
	})
}

func TestWASI(t *testing.T) {
	h := newHarness(t, abi.V021)
	h.inTick(func() {
		h.doAll(
			call1("environ_sizes_get", "(count=2,size=10,errno=0)"),
			call1("environ_sizes_get", "(errno=21)", bad),
			call1("environ_get", "(errno=21)", nowhere, 3000),
			call1("environ_get", "(errno=21)", 2000, nowhere),
			call1("environ_get", "(errno=0)", 2000, 3000),
			call1("args_sizes_get", "(count=0,size=0,errno=0)"),
			call1("args_sizes_get", "(errno=21)", bad),
			call1("args_get", "(errno=0)", 0, 0),
			call1("random_get", "(errno=0)", 4000, 32),
			call1("random_get", "(errno=28)", 4000, 64<<10+1),
			call1("random_get", "(errno=21)", nowhere, 1),
			call1("sched_yield", "(errno=0)"),
			call1("poll_oneoff", "(errno=0)", 0, 0, 1, 5000),
			call1("poll_oneoff", "(errno=21)", 0, 0, 1, nowhere),
			call1("fd_read", "(errno=52)", 0, 0, 0, 0),
			call1("fd_seek", "(errno=0)", 1, 0, 0, 0),
			call1("fd_close", "(errno=0)", 3),
			call1("fd_tell", "(errno=0)", 1, 5000),
			call1("fd_tell", "(errno=8)", 3, 5000),
			call1("fd_fdstat_get", "(errno=0)", 1, 6000),
			call1("fd_fdstat_get", "(errno=8)", 0, 6000),
			call1("fd_fdstat_get", "(errno=21)", 2, nowhere),
			call1("fd_fdstat_set_flags", "(errno=52)", 1, 0),
			call1("fd_prestat_get", "(errno=8)", 3, 0),
			call1("fd_prestat_dir_name", "(errno=52)", 3, 0, 0),
			call1("fd_filestat_get", "(errno=8)", 1, 0),
			call1("fd_sync", "(errno=0)", 1),
			call1("fd_sync", "(errno=8)", 4),
			call1("fd_renumber", "(errno=58)", 1, 2),
			call1("fd_renumber", "(errno=8)", 1, 3),
			call1("fd_readdir", "(errno=54)", 1, 0, 0, 0, 5000),
			call1("path_open", "(errno=44)", 3, 0, 0, 0, 0, 0, 0, 0, 0),
			call1("path_filestat_get", "(errno=58)", 3, 0, 0, 0, 0),
			call1("sock_accept", "(errno=58)", 3, 0, 5000),
			call1("sock_shutdown", "(errno=58)", 3, 0),
			call1("proc_exit", "()", 7),
		)
		if env, _ := h.in.mem.Read(3000, 10); string(env) != "A=1\x00BC=23\x00" {
			t.Errorf("environment = %q", env)
		}
		if second, _ := h.in.mem.ReadUint32Le(2004); second != 3004 {
			t.Errorf("second variable at %d, want 3004", second)
		}
		if stat, _ := h.in.mem.ReadUint64Le(6008); stat != 64 {
			t.Errorf("rights = %d, want 64", stat)
		}
		if random, _ := h.in.mem.Read(4000, 32); string(random) == strings.Repeat("\x00", 32) {
			t.Error("random_get wrote zeros")
		}
	})
}

func TestProperties(t *testing.T) {
	h := newHarness(t, abi.V021)
	h.props["node\x00id"] = "n1"
	stream := &fakeHTTP{props: map[string]string{"request\x00path": "/x", "empty": ""}}
	inStream := func(f func()) {
		t.Helper()
		s := h.plugin.NewHTTP(stream)
		defer s.Close()
		h.within("proxy_on_request_headers", func() uint32 { f(); return 0 }, func() { s.OnRequestHeaders(request(), true) })
	}
	common := []hostCall{
		call1("proxy_get_property", `(value="plug",OK)`, "plugin_name"),
		call1("proxy_get_property", `(value="root",OK)`, "plugin_root_id"),
		call1("proxy_get_property", `(value="vm",OK)`, "plugin_vm_id"),
		call1("proxy_get_property", `(value="vm",OK)`, "plugin_vm_id\x00"),
		call1("proxy_get_property", "(NOT_FOUND)", "plugin_name\x00x"),
		call1("proxy_get_property", "(NOT_FOUND)", "no such"),
		call1("proxy_get_property", "(SERIALIZATION_FAILURE)", ""),
		call1("proxy_get_property", "(INVALID_MEMORY_ACCESS)", bad),
		call1("proxy_get_property", "(INVALID_MEMORY_ACCESS)", "plugin_name", bad),
		call1("proxy_set_property", "(INVALID_MEMORY_ACCESS)", bad, "x"),
		call1("proxy_set_property", "(INVALID_MEMORY_ACCESS)", "x", bad),
	}
	h.inTick(func() {
		h.doAll(common...)
		h.doAll(
			call1("proxy_get_property", `(value="n1",OK)`, "node\x00id"),
			call1("proxy_get_property", "(NOT_FOUND)", "request\x00path"),
			call1("proxy_set_property", "(NOT_FOUND)", "mine", "1"),
		)
	})
	inStream(func() {
		h.doAll(common...)
		h.doAll(
			call1("proxy_get_property", `(value="/x",OK)`, "request\x00path"),
			call1("proxy_get_property", `(value="",OK)`, "empty"),
			call1("proxy_set_property", "(OK)", "mine", "1"),
			call1("proxy_get_property", `(value="1",OK)`, "mine"),
		)
	})
}

func TestHeaders(t *testing.T) {
	h := newHarness(t, abi.V021)
	host := &fakeHTTP{}
	s := h.plugin.NewHTTP(host)
	f := NewRequestFields(abi.Pair{Key: ":path", Value: "/"}, abi.Pair{Key: "x-a", Value: "1"}, abi.Pair{Key: "x-a", Value: "2"}, abi.Pair{Key: "accept", Value: "*"})
	h.within("proxy_on_request_headers", func() uint32 {
		h.doAll(
			call1("proxy_get_header_map_value", `(value="1",OK)`, 0, "X-A"),
			call1("proxy_get_header_map_value", `(value="/",OK)`, 0, ":path"),
			call1("proxy_get_header_map_value", "(NOT_FOUND)", 0, "x-b"),
			call1("proxy_get_header_map_value", "(BAD_ARGUMENT)", 8, "x-a"),
			call1("proxy_get_header_map_value", "(BAD_ARGUMENT)", 1, "x-a"),
			call1("proxy_get_header_map_value", "(BAD_ARGUMENT)", 2, "x-a"),
			call1("proxy_get_header_map_value", "(BAD_ARGUMENT)", 4, "x-a"),
			call1("proxy_get_header_map_value", "(BAD_ARGUMENT)", 6, "x-a"),
			call1("proxy_get_header_map_value", "(INVALID_MEMORY_ACCESS)", 0, bad),
			call1("proxy_get_header_map_value", "(INVALID_MEMORY_ACCESS)", 0, "x-a", bad),
			call1("proxy_get_header_map_size", "(size=21,OK)", 0),
			call1("proxy_get_header_map_size", "(BAD_ARGUMENT)", 9),
			call1("proxy_get_header_map_size", "(BAD_ARGUMENT)", 6),
			call1("proxy_get_header_map_size", "(INVALID_MEMORY_ACCESS)", 0, bad),
			call1("proxy_add_header_map_value", "(OK)", 0, "X-B", "3"),
			call1("proxy_add_header_map_value", "(OK)", 0, "accept", "b"),
			call1("proxy_add_header_map_value", "(OK)", 0, ":pseudo", "p"),
			call1("proxy_add_header_map_value", "(BAD_ARGUMENT)", 8, "x", "y"),
			call1("proxy_add_header_map_value", "(BAD_ARGUMENT)", 2, "x", "y"),
			call1("proxy_add_header_map_value", "(BAD_ARGUMENT)", 6, "x", "y"),
			call1("proxy_add_header_map_value", "(INVALID_MEMORY_ACCESS)", 0, bad, "y"),
			call1("proxy_add_header_map_value", "(INVALID_MEMORY_ACCESS)", 0, "x", bad),
		)
		if got, want := pairsOf(f), ":path=/ :pseudo=p x-a=1 x-a=2 accept=*,b x-b=3"; got != want {
			t.Errorf("headers = %s, want %s", got, want)
		}
		h.doAll(
			call1("proxy_replace_header_map_value", "(OK)", 0, "X-a", "4"),
			call1("proxy_replace_header_map_value", "(OK)", 0, "x-new", ""),
			call1("proxy_replace_header_map_value", "(BAD_ARGUMENT)", 99, "x", "y"),
			call1("proxy_replace_header_map_value", "(INVALID_MEMORY_ACCESS)", 0, "x", bad),
			call1("proxy_remove_header_map_value", "(OK)", 0, "X-B"),
			call1("proxy_remove_header_map_value", "(OK)", 0, "never there"),
			call1("proxy_remove_header_map_value", "(BAD_ARGUMENT)", 3, "x"),
			call1("proxy_remove_header_map_value", "(INVALID_MEMORY_ACCESS)", 0, bad),
			call1("proxy_get_header_map_pairs", `(pairs=`+quoted(serialized(":path", "/", ":pseudo", "p", "accept", "*,b", "x-a", "4", "x-new", ""))+`,OK)`, 0),
			call1("proxy_get_header_map_pairs", `(pairs="",OK)`, 2),
			call1("proxy_get_header_map_pairs", `(pairs="",OK)`, 6),
			call1("proxy_get_header_map_pairs", "(BAD_ARGUMENT)", 8),
			call1("proxy_get_header_map_pairs", "(INVALID_MEMORY_ACCESS)", 0, bad),
			call1("proxy_set_header_map_pairs", "(OK)", 0, serialized("X-Only", "1", ":path", "/2")),
			call1("proxy_set_header_map_pairs", "(BAD_ARGUMENT)", 8, serialized("x", "1")),
			call1("proxy_set_header_map_pairs", "(BAD_ARGUMENT)", 2, serialized("x", "1")),
			call1("proxy_set_header_map_pairs", "(INVALID_MEMORY_ACCESS)", 0, bad),
		)
		if got, want := pairsOf(f), ":path=/2 x-only=1"; got != want {
			t.Errorf("headers = %s, want %s", got, want)
		}
		h.doAll(call1("proxy_set_header_map_pairs", "(OK)", 0, "\x01malformed"))
		if got := pairsOf(f); got != "" {
			t.Errorf("headers = %s, want none", got)
		}
		return 0
	}, func() { s.OnRequestHeaders(f, true) })
	cleared := []string{}
	for range 9 {
		cleared = append(cleared, "clear route cache")
	}
	host.expect(t, cleared...)
}

func quoted(s string) string { return fmt.Sprintf("%q", s) }

// The request's maps cannot be reached any more once they go on, nor outside of streams.
func TestHeadersOutOfReach(t *testing.T) {
	h := newHarness(t, abi.V021)
	s := h.plugin.NewHTTP(&fakeHTTP{})
	gone := []hostCall{
		call1("proxy_get_header_map_value", "(BAD_ARGUMENT)", 0, ":path"),
		call1("proxy_add_header_map_value", "(BAD_ARGUMENT)", 0, "x", "y"),
		call1("proxy_get_header_map_pairs", `(pairs="",OK)`, 0),
	}
	h.inTick(func() { h.doAll(gone...) })
	s.OnRequestHeaders(request(), false)
	h.within("proxy_on_request_body", func() uint32 { h.doAll(gone...); return 0 }, func() { s.OnRequestBody([]byte("x"), true) })
	h.within("proxy_on_response_headers", func() uint32 {
		h.doAll(gone...)
		h.doAll(call1("proxy_get_header_map_value", `(value="200",OK)`, 2, ":status"))
		return 0
	}, func() { s.OnResponseHeaders(NewFields(abi.Pair{Key: ":status", Value: "200"}), true) })
	h.within("proxy_on_log", func() uint32 {
		h.doAll(
			call1("proxy_get_header_map_value", `(value="/productpage",OK)`, 0, ":path"),
			call1("proxy_get_header_map_value", "(NOT_FOUND)", 1, "x"),
			call1("proxy_get_header_map_value", "(NOT_FOUND)", 2, "x"),
			call1("proxy_get_header_map_value", `(value="t",OK)`, 3, "x"),
			call1("proxy_add_header_map_value", "(BAD_ARGUMENT)", 0, "x", "y"),
		)
		return 0
	}, func() { s.OnLog(request(), nil, NewFields(abi.Pair{Key: "x", Value: "t"})) })
}

func TestHeadersOfABI010(t *testing.T) {
	h := newHarness(t, abi.V010)
	s := h.plugin.NewHTTP(&fakeHTTP{})
	h.within("proxy_on_request_headers", func() uint32 {
		h.doAll(call1("proxy_get_header_map_value", `(value="",OK)`, 0, "x-missing"))
		return 0
	}, func() { s.OnRequestHeaders(request(), true) })
	h.within("proxy_on_log", func() uint32 {
		h.doAll(call1("proxy_get_header_map_value", `(value="",OK)`, 2, "x-missing"))
		return 0
	}, func() { s.OnLog(nil, nil, nil) })
}

func TestTrailersAtTheEndOfTheBody(t *testing.T) {
	h := newHarness(t, abi.V021)
	host := &fakeHTTP{}
	s := h.plugin.NewHTTP(host)
	s.OnRequestHeaders(request(), false)
	h.within("proxy_on_request_body", func() uint32 {
		h.doAll(call1("proxy_add_header_map_value", "(BAD_ARGUMENT)", 1, "x", "y"))
		return 0
	}, func() { s.OnRequestBody([]byte("a"), false) })
	h.within("proxy_on_request_body", func() uint32 {
		h.doAll(
			call1("proxy_get_header_map_value", "(BAD_ARGUMENT)", 1, "x"),
			call1("proxy_add_header_map_value", "(OK)", 1, "x", "y"),
			call1("proxy_get_header_map_value", `(value="y",OK)`, 1, "x"),
		)
		return 0
	}, func() { s.OnRequestBody([]byte("b"), true) })
	host.expect(t, "add trailers request")
	if got := pairsOf(host.trailers[abi.Request]); got != "x=y" {
		t.Errorf("trailers = %s", got)
	}
	host.refuse = true
	s.OnResponseHeaders(NewFields(), false)
	h.within("proxy_on_response_body", func() uint32 {
		h.doAll(call1("proxy_add_header_map_value", "(BAD_ARGUMENT)", 3, "x", "y"))
		return 0
	}, func() { s.OnResponseBody(nil, true) })
	host.expect(t, "add trailers response")
}

func TestBuffers(t *testing.T) {
	h := newHarness(t, abi.V021)
	s := h.plugin.NewHTTP(&fakeHTTP{})
	h.inTick(func() {
		h.doAll(
			call1("proxy_get_buffer_bytes", `(value="",OK)`, 0, 0, 10),
			call1("proxy_get_buffer_bytes", `(value="",OK)`, 2, 0, 10),
			call1("proxy_get_buffer_bytes", `(value="",OK)`, 5, 0, 10),
			call1("proxy_get_buffer_bytes", "(NOT_FOUND)", 4, 0, 10),
			call1("proxy_get_buffer_bytes", "(NOT_FOUND)", 7, 0, 10),
			call1("proxy_get_buffer_bytes", `(value="vm configuration",OK)`, 6, 0, 100),
			call1("proxy_get_buffer_bytes", `(value="con",OK)`, 6, 3, 3),
			call1("proxy_get_buffer_bytes", `(value="on",OK)`, 6, 14, -1),
			call1("proxy_get_buffer_bytes", `(value="",OK)`, 6, 99, 1),
			call1("proxy_get_buffer_bytes", `(value="",OK)`, 8, 0, 1),
			call1("proxy_get_buffer_bytes", "(BAD_ARGUMENT)", 9, 0, 1),
			call1("proxy_get_buffer_bytes", "(INVALID_MEMORY_ACCESS)", 6, 0, 1, bad),
			call1("proxy_get_buffer_status", "(size=16,flags=0,OK)", 6),
			call1("proxy_get_buffer_status", "(NOT_FOUND)", 4),
			call1("proxy_get_buffer_status", "(BAD_ARGUMENT)", 9),
			call1("proxy_get_buffer_status", "(INVALID_MEMORY_ACCESS)", 6, bad),
			call1("proxy_set_buffer_bytes", "(BAD_ARGUMENT)", 6, 0, 1, "x"),
			call1("proxy_set_buffer_bytes", "(BAD_ARGUMENT)", 0, 0, 1, "x"),
			call1("proxy_set_buffer_bytes", "(BAD_ARGUMENT)", 9, 0, 1, "x"),
			call1("proxy_set_buffer_bytes", "(NOT_FOUND)", 4, 0, 1, "x"),
			call1("proxy_set_buffer_bytes", "(INVALID_MEMORY_ACCESS)", 0, 0, 1, bad),
		)
		h.in.mem.WriteUint32Le(20, 1)
		h.doAll(call1("proxy_get_buffer_bytes", "(INVALID_MEMORY_ACCESS)", 6, 0, 100))
		h.in.mem.WriteUint32Le(20, 0)
	})
	s.OnRequestHeaders(request(), false)
	h.within("proxy_on_request_body", func() uint32 {
		h.doAll(
			call1("proxy_get_buffer_status", "(size=5,flags=0,OK)", 0),
			call1("proxy_get_buffer_bytes", `(value="hello",OK)`, 0, 0, 100),
			call1("proxy_set_buffer_bytes", "(BAD_ARGUMENT)", 0, 2, 1, "x"),
			call1("proxy_set_buffer_bytes", "(OK)", 0, 0, 0, ">"),
			call1("proxy_set_buffer_bytes", "(OK)", 0, -1, 0, "<"),
			call1("proxy_set_buffer_bytes", "(OK)", 0, 0, 2, "H"),
			call1("proxy_get_buffer_bytes", `(value="Hello<",OK)`, 0, 0, 100),
			call1("proxy_get_buffer_bytes", `(value="",OK)`, 1, 0, 100),
			call1("proxy_set_buffer_bytes", "(BAD_ARGUMENT)", 1, 0, 0, "x"),
		)
		return 0
	}, func() {
		chunk := []byte("hello")
		out, act := s.OnRequestBody(chunk, true)
		if act != Continue || string(out) != "Hello<" || string(chunk) != "hello" {
			t.Errorf("body = %q, %v; chunk = %q", out, act, chunk)
		}
	})
}

func TestConfigurationOfABI010(t *testing.T) {
	var got []string
	h := newHarness(t, abi.V010, func(h *harness, _ *PluginConfig) {
		for _, cb := range []string{"proxy_on_vm_start", "proxy_on_configure"} {
			h.on[cb] = func() uint32 {
				got = append(got, h.do("proxy_get_configuration"))
				return 1
			}
		}
	})
	h.inTick(func() { got = append(got, h.do("proxy_get_configuration")) })
	want := []string{`(value="vm configuration",OK)`, `(value="plugin configuration",OK)`, `(value="vm configuration",OK)`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("configurations (-want +got):\n%s", diff)
	}
}

func TestLocalResponse(t *testing.T) {
	h := newHarness(t, abi.V021)
	h.inTick(func() {
		h.doAll(
			call1("proxy_send_local_response", "(OK)", 200, "", "", "", 0),
			call1("proxy_send_local_response", "(INVALID_MEMORY_ACCESS)", 200, bad, "", "", 0),
			call1("proxy_send_local_response", "(INVALID_MEMORY_ACCESS)", 200, "", bad, "", 0),
			call1("proxy_send_local_response", "(INVALID_MEMORY_ACCESS)", 200, "", "", bad, 0),
		)
	})
	for _, tt := range []struct {
		name string
		call hostCall
		want string
	}{
		{"whole", call1("proxy_send_local_response", "(OK)", 401, "not\tat all", "no", serialized("WWW-Authenticate", "Basic"), 16),
			`respond 401 "not_at_all" "no" [{www-authenticate Basic}] grpc=16`},
		{"no gRPC status", call1("proxy_send_local_response", "(OK)", 0, "", "", "", -1), `respond 0 "" "" [] grpc=-1`},
		{"unknown gRPC status", call1("proxy_send_local_response", "(OK)", 200, "", "", "\x07", 17), `respond 200 "" "" [] grpc=-1`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := &fakeHTTP{}
			s := h.plugin.NewHTTP(host)
			defer s.Close()
			h.within("proxy_on_request_headers", func() uint32 {
				h.doAll(tt.call)
				if len(host.events) > 0 {
					t.Error("answered before the callback returned")
				}
				return 0
			}, func() {
				if act := s.OnRequestHeaders(request(), true); act != Stop {
					t.Errorf("action = %v, want stop", act)
				}
			})
			host.expect(t, tt.want)
		})
	}
}

func TestStatus(t *testing.T) {
	h := newHarness(t, abi.V021)
	h.inTick(func() {
		h.doAll(
			call1("proxy_get_status", `(code=0,message="",OK)`),
			call1("proxy_get_status", "(INVALID_MEMORY_ACCESS)", bad),
			call1("proxy_get_status", "(INVALID_MEMORY_ACCESS)", span{2000, 0}, bad),
		)
	})
}

func TestSharedData(t *testing.T) {
	h := newHarness(t, abi.V021)
	h.inTick(func() {
		h.doAll(
			call1("proxy_get_shared_data", "(NOT_FOUND)", "k"),
			call1("proxy_set_shared_data", "(OK)", "k", "v1", 0),
			call1("proxy_get_shared_data", `(value="v1",cas=1,OK)`, "k"),
			call1("proxy_set_shared_data", "(CAS_MISMATCH)", "k", "v2", 99),
			call1("proxy_set_shared_data", "(OK)", "k", "v2", 1),
			call1("proxy_set_shared_data", "(CAS_MISMATCH)", "k", "v3", 1),
			call1("proxy_set_shared_data", "(OK)", "k", "", 0),
			call1("proxy_get_shared_data", `(value="",cas=3,OK)`, "k"),
			call1("proxy_set_shared_data", "(OK)", "new", "whatever cas says", 99),
			call1("proxy_get_shared_data", "(INVALID_MEMORY_ACCESS)", bad),
			call1("proxy_get_shared_data", "(INVALID_MEMORY_ACCESS)", "new", bad),
			call1("proxy_get_shared_data", "(INVALID_MEMORY_ACCESS)", "k", span{2000, 2004}, bad),
			call1("proxy_set_shared_data", "(INVALID_MEMORY_ACCESS)", bad, "v", 0),
			call1("proxy_set_shared_data", "(INVALID_MEMORY_ACCESS)", "k", bad, 0),
		)
	})
}

func TestSharedQueue(t *testing.T) {
	h := newHarness(t, abi.V021)
	var ready []string
	h.on["proxy_on_queue_ready"] = func() uint32 {
		ready = append(ready, h.do("proxy_dequeue_shared_queue", 1))
		return 0
	}
	h.inTick(func() {
		h.doAll(
			call1("proxy_resolve_shared_queue", "(NOT_FOUND)", "vm", "q"),
			call1("proxy_register_shared_queue", "(queue=1,OK)", "q"),
			call1("proxy_register_shared_queue", "(queue=2,OK)", "other"),
			call1("proxy_register_shared_queue", "(queue=1,OK)", "q"),
			call1("proxy_register_shared_queue", "(INVALID_MEMORY_ACCESS)", bad),
			call1("proxy_register_shared_queue", "(INVALID_MEMORY_ACCESS)", "q", bad),
			call1("proxy_resolve_shared_queue", "(queue=1,OK)", "vm", "q"),
			call1("proxy_resolve_shared_queue", "(queue=1,OK)", "", "q"),
			call1("proxy_resolve_shared_queue", "(NOT_FOUND)", "other vm", "q"),
			call1("proxy_resolve_shared_queue", "(INVALID_MEMORY_ACCESS)", bad, "q"),
			call1("proxy_resolve_shared_queue", "(INVALID_MEMORY_ACCESS)", "", "q", bad),
			call1("proxy_dequeue_shared_queue", "(EMPTY)", 1),
			call1("proxy_dequeue_shared_queue", "(NOT_FOUND)", 9),
			call1("proxy_enqueue_shared_queue", "(NOT_FOUND)", 9, "x"),
			call1("proxy_enqueue_shared_queue", "(INVALID_MEMORY_ACCESS)", 1, bad),
			call1("proxy_enqueue_shared_queue", "(OK)", 1, "a"),
			call1("proxy_enqueue_shared_queue", "(OK)", 1, ""),
			call1("proxy_enqueue_shared_queue", "(OK)", 2, "for other"),
			call1("proxy_dequeue_shared_queue", "(INVALID_MEMORY_ACCESS)", 2, bad),
		)
	})
	h.trace = nil
	h.run()
	if diff := cmp.Diff([]string{`(value="a",OK)`, `(value="",OK)`, "(EMPTY)"}, ready); diff != "" {
		t.Errorf("dequeued (-want +got):\n%s", diff)
	}
	if h.trace[0] != "--> proxy_on_queue_ready(context=1,queue=1)" {
		t.Errorf("trace begins with %s", h.trace[0])
	}
}

func TestMetrics(t *testing.T) {
	h := newHarness(t, abi.V021)
	h.inTick(func() {
		h.doAll(
			call1("proxy_define_metric", "(metric=4,OK)", 0, "c"),
			call1("proxy_define_metric", "(metric=5,OK)", 1, "g"),
			call1("proxy_define_metric", "(metric=6,OK)", 2, "h"),
			call1("proxy_define_metric", "(metric=8,OK)", 0, "c"),
			call1("proxy_define_metric", "(BAD_ARGUMENT)", 3, "x"),
			call1("proxy_define_metric", "(INVALID_MEMORY_ACCESS)", 0, bad),
			call1("proxy_define_metric", "(INVALID_MEMORY_ACCESS)", 0, "bad", bad),
			call1("proxy_increment_metric", "(OK)", 4, 2),
			call1("proxy_increment_metric", "(OK)", 8, 3),
			call1("proxy_increment_metric", "(BAD_ARGUMENT)", 4, 0),
			call1("proxy_increment_metric", "(BAD_ARGUMENT)", 4, -1),
			call1("proxy_increment_metric", "(NOT_FOUND)", 40, 1),
			call1("proxy_increment_metric", "(OK)", 5, 10),
			call1("proxy_increment_metric", "(OK)", 5, -4),
			call1("proxy_increment_metric", "(NOT_FOUND)", 41, 1),
			call1("proxy_increment_metric", "(BAD_ARGUMENT)", 6, 1),
			call1("proxy_increment_metric", "(BAD_ARGUMENT)", 7, 1),
			call1("proxy_record_metric", "(OK)", 4, 10),
			call1("proxy_get_metric", "(value=15,OK)", 4),
			call1("proxy_get_metric", "(value=6,OK)", 5),
			call1("proxy_record_metric", "(OK)", 5, 1),
			call1("proxy_get_metric", "(value=1,OK)", 5),
			call1("proxy_record_metric", "(OK)", 6, 7),
			call1("proxy_record_metric", "(NOT_FOUND)", 42, 7),
			call1("proxy_record_metric", "(NOT_FOUND)", 7, 7),
			call1("proxy_get_metric", "(BAD_ARGUMENT)", 6),
			call1("proxy_get_metric", "(NOT_FOUND)", 40),
			call1("proxy_get_metric", "(INVALID_MEMORY_ACCESS)", 4, bad),
		)
	})
	all := h.stats.All()
	var names []string
	for _, m := range all {
		names = append(names, m.Type.String()+" "+m.Name)
	}
	if diff := cmp.Diff([]string{"counter bad", "counter c", "gauge g", "histogram h"}, names); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
	if n, sum, buckets := all[3].Histogram(); n != 1 || sum != 7 || buckets[5] != 0 || buckets[10] != 1 {
		t.Errorf("histogram = %d, %d, %v", n, sum, buckets)
	}
}

func TestTick(t *testing.T) {
	h := newHarness(t, abi.V021)
	if len(h.timers) > 0 {
		t.Fatal("a timer although none was set")
	}
	h.inTick(func() { h.doAll(call1("proxy_set_tick_period_milliseconds", "(OK)", 100)) })
	h.inTick(func() { h.doAll(call1("proxy_set_tick_period_milliseconds", "(OK)", 250)) })
	ticks := 0
	h.on["proxy_on_tick"] = func() uint32 { ticks++; return 0 }
	h.fire()
	if ticks != 1 || len(h.timers) != 1 || h.timers[0].d.Milliseconds() != 250 {
		t.Errorf("%d ticks, timers %v, want one tick and one timer of 250 ms", ticks, h.timers)
	}
	h.fire()
	h.on["proxy_on_tick"] = func() uint32 { ticks++; h.do("proxy_set_tick_period_milliseconds", 0); return 0 }
	h.fire()
	h.fire()
	if ticks != 3 || h.in.TickPeriod(h.plugin) != 0 {
		t.Errorf("%d ticks, period %v, want 3 and none", ticks, h.in.TickPeriod(h.plugin))
	}
}

func TestForeign(t *testing.T) {
	h := newHarness(t, abi.V021)
	host := &fakeHTTP{}
	h.inTick(func() {
		h.doAll(
			call1("proxy_call_foreign_function", `(results="abc",OK)`, "echo", "abc"),
			call1("proxy_call_foreign_function", `(results="",OK)`, "echo", ""),
			call1("proxy_call_foreign_function", "(NOT_FOUND)", "none", "x"),
			call1("proxy_call_foreign_function", "(INVALID_MEMORY_ACCESS)", bad, "x"),
			call1("proxy_call_foreign_function", "(INVALID_MEMORY_ACCESS)", "echo", bad),
			call1("proxy_call_foreign_function", "(INVALID_MEMORY_ACCESS)", "echo", "x", bad),
			call1("proxy_call_foreign_function", `(results="",OK)`, "clear_route_cache", ""),
		)
		// Results that no one wants are not allocated.
		h.in.mem.WriteUint32Le(20, 2)
		if got := h.do("proxy_call_foreign_function", "echo", "abc", span{0, 0}); !strings.HasSuffix(got, "OK)") {
			t.Errorf("without results: %s", got)
		}
		h.in.mem.WriteUint32Le(20, 0)
	})
	s := h.plugin.NewHTTP(host)
	h.within("proxy_on_request_headers", func() uint32 {
		h.do("proxy_call_foreign_function", "clear_route_cache", "")
		return 0
	}, func() { s.OnRequestHeaders(request(), true) })
	host.expect(t, "clear route cache")
	h.within("proxy_on_foreign_function", func() uint32 {
		h.doAll(call1("proxy_get_buffer_bytes", `(value="args",OK)`, 8, 0, 100))
		return 0
	}, func() { h.in.OnForeignFunction(h.plugin, 7, []byte("args")) })
}

func TestEnvoyForeign(t *testing.T) {
	functions := EnvoyForeign()
	want := strings.Repeat("hello ", 1000)
	packed, status := functions["compress"](nil, []byte(want))
	if status != abi.OK || len(packed) > 100 {
		t.Fatalf("compress = %d bytes, %v", len(packed), status)
	}
	if got, status := functions["uncompress"](nil, packed); status != abi.OK || string(got) != want {
		t.Errorf("uncompress = %d bytes, %v", len(got), status)
	}
	for _, bad := range [][]byte{nil, []byte("x"), packed[:10]} {
		if _, status := functions["uncompress"](nil, bad); status != abi.SerializationFailure {
			t.Errorf("uncompress(%q) = %v", bad, status)
		}
	}
}

func TestEffectiveContext(t *testing.T) {
	h := newHarness(t, abi.V021)
	host := &fakeHTTP{}
	s := h.plugin.NewHTTP(host)
	h.within("proxy_on_request_headers", func() uint32 { return 1 }, func() {
		if act := s.OnRequestHeaders(request(), true); act != Pause {
			t.Errorf("action = %v, want pause", act)
		}
	})
	h.inTick(func() {
		h.doAll(
			call1("proxy_set_effective_context", "(BAD_ARGUMENT)", 99),
			call1("proxy_get_header_map_value", "(BAD_ARGUMENT)", 0, ":path"),
			call1("proxy_set_effective_context", "(OK)", int(s.ID())),
			call1("proxy_get_header_map_value", `(value="/productpage",OK)`, 0, ":path"),
			call1("proxy_add_header_map_value", "(OK)", 0, "x", "y"),
			call1("proxy_continue_stream", "(OK)", 0),
			call1("proxy_get_header_map_value", "(BAD_ARGUMENT)", 0, ":path"),
			call1("proxy_set_effective_context", "(OK)", 1),
			call1("proxy_set_effective_context", "(OK)", 0),
		)
	})
	host.expect(t, "clear route cache", "continue request")
	// It lasts no longer than the callback.
	h.inTick(func() { h.doAll(call1("proxy_set_property", "(NOT_FOUND)", "a", "b")) })
	s.Close()
	h.inTick(func() { h.doAll(call1("proxy_set_effective_context", "(BAD_ARGUMENT)", int(s.ID()))) })
}

func TestContinueAndClose(t *testing.T) {
	for _, tt := range []struct {
		name    string
		version abi.Version
		calls   []hostCall
		want    []string
	}{
		{"request", abi.V021, []hostCall{call1("proxy_continue_stream", "(OK)", 0)}, []string{"continue request"}},
		{"once is enough", abi.V021, []hostCall{call1("proxy_continue_stream", "(OK)", 0), call1("proxy_continue_stream", "(OK)", 0)}, []string{"continue request"}},
		{"not paused", abi.V021, []hostCall{call1("proxy_continue_stream", "(OK)", 1)}, nil},
		{"of a connection", abi.V020, []hostCall{call1("proxy_continue_stream", "(OK)", 2)}, nil},
		{"upstream", abi.V020, []hostCall{call1("proxy_continue_stream", "(UNIMPLEMENTED)", 3)}, nil},
		{"unknown", abi.V020, []hostCall{call1("proxy_continue_stream", "(BAD_ARGUMENT)", 4), call1("proxy_close_stream", "(BAD_ARGUMENT)", 4)}, nil},
		{"close", abi.V021, []hostCall{call1("proxy_close_stream", "(OK)", 0), call1("proxy_close_stream", "(OK)", 1)}, []string{"close request", "close response"}},
		{"close a connection", abi.V021, []hostCall{call1("proxy_close_stream", "(OK)", 2), call1("proxy_close_stream", "(OK)", 3)}, nil},
		{"0.1.0", abi.V010, []hostCall{call1("proxy_continue_request", "(OK)"), call1("proxy_continue_response", "(OK)"), call1("proxy_clear_route_cache", "(OK)")}, []string{"clear route cache", "continue request"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t, tt.version)
			host := &fakeHTTP{}
			s := h.plugin.NewHTTP(host)
			h.within("proxy_on_request_headers", func() uint32 { return 1 }, func() { s.OnRequestHeaders(request(), true) })
			h.inTick(func() {
				h.do("proxy_set_effective_context", int(s.ID()))
				h.doAll(tt.calls...)
			})
			host.expect(t, tt.want...)
		})
	}
}
