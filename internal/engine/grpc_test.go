package engine

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

func TestReadMessage(t *testing.T) {
	for _, tt := range []struct {
		in, want string
		err      error
	}{
		{"\x00\x00\x00\x00\x02hi", "hi", nil},
		{"\x00\x00\x00\x00\x00", "", nil},
		{"\x01\x00\x00\x00\x00", "", nil}, // nothing is compressed
		{"\x01\x00\x00\x00\x02hi", "", errMessage},
		{"\x00\xff\xff\xff\xff", "", errMessage},
		{"\x00\x00\x00\x00\x03hi", "hi", io.ErrUnexpectedEOF},
		{"\x00\x00", "", io.ErrUnexpectedEOF},
		{"", "", io.EOF},
	} {
		if got, err := readMessage(strings.NewReader(tt.in)); got != tt.want || !errors.Is(err, tt.err) || tt.err == nil && err != nil {
			t.Errorf("readMessage(%q) = %q, %v, want %q, %v", tt.in, got, err, tt.want, tt.err)
		}
	}
}

func TestGRPCTimeout(t *testing.T) {
	for in, want := range map[time.Duration]string{
		time.Millisecond: "1m", 5 * time.Second: "5000m", 100_000 * time.Second: "100000S", 2_000_000 * time.Hour: "2000000H",
	} {
		if got := grpcTimeout(in); got != want {
			t.Errorf("grpcTimeout(%v) = %s, want %s", in, got, want)
		}
	}
}

func TestUnderstoodService(t *testing.T) {
	for text, ok := range map[string]bool{
		`envoy_grpc: {cluster_name: a, authority: b}`:                                          true,
		`{envoy_grpc: {cluster_name: a}, initial_metadata: [{key: a, value: b}]}`:              true,
		`{envoy_grpc: {cluster_name: a}, initial_metadata: [{key: a, value: "%START_TIME%"}]}`: false,
		`{envoy_grpc: {cluster_name: a, retry_policy: {}}}`:                                    false,
		`{google_grpc: {target_uri: a, stat_prefix: b}}`:                                       false,
		`{}`: false,
	} {
		if err := understoodService(parse(t, text, new(corev3.GrpcService))); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// A wildcard address is for one family only: both may have a listener.
func TestBindOneFamily(t *testing.T) {
	four, err := bind(netip.MustParseAddrPort("0.0.0.0:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer four.Close()
	port := netip.MustParseAddrPort(four.Addr().String()).Port()
	six, err := bind(netip.AddrPortFrom(netip.IPv6Unspecified(), port))
	if err != nil {
		t.Skipf("no IPv6, or the port is taken there: %v", err)
	}
	six.Close()
}

// Lines of many writers stay whole, and a file is opened when it is first written.
func TestLogFiles(t *testing.T) {
	var files logFiles
	path := filepath.Join(t.TempDir(), "log")
	var writing sync.WaitGroup
	for i := range 8 {
		writing.Go(func() {
			if _, err := fmt.Fprintf(files.writer(path), "line %d\n", i); err != nil {
				t.Error(err)
			}
		})
	}
	writing.Wait()
	if err := files.close(); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(read(t, path), "line "); got != 8 {
		t.Errorf("%d lines", got)
	}
	if _, err := files.writer(filepath.Join(path, "x")).Write([]byte("x")); err == nil {
		t.Error("a file in a file")
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
