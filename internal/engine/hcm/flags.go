package hcm

import (
	"math/bits"
	"strings"
	"sync"
)

// A flag is a bit of what went wrong with a request: Envoy's response flags.
//
// https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/observability/access_log/usage#response-flags
type flag uint64

// The flags that the engine sets, with Envoy's numbers.
const (
	noHealthyUpstream     flag = 1 << 1
	upstreamTimeout       flag = 1 << 2
	upstreamReset         flag = 1 << 4
	connectionFailure     flag = 1 << 5
	connectionTermination flag = 1 << 6
	upstreamOverflow      flag = 1 << 7
	noRoute               flag = 1 << 8
	delayInjected         flag = 1 << 9
	faultInjected         flag = 1 << 10
	clientGone            flag = 1 << 14
	retriesExceeded       flag = 1 << 15
	streamIdle            flag = 1 << 16
	protocolError         flag = 1 << 18
	noFilterConfig        flag = 1 << 21
	upstreamProtocol      flag = 1 << 23
	noCluster             flag = 1 << 24
)

// name is the flag in short, as access logs have it.
func (f flag) name() string {
	names := [...]string{
		1: "UH", 2: "UT", 4: "UR", 5: "UF", 6: "UC", 7: "UO", 8: "NR", 9: "DI", 10: "FI", 14: "DC", 15: "URX", 16: "SI", 18: "DPE",
		21: "NFCF", 23: "UPE", 24: "NC",
	}
	return names[bits.TrailingZeros64(uint64(f))]
}

// flags are those of a stream.
type flags struct {
	mu   sync.Mutex
	all  flag
	list []flag // in the order in which they were set
}

// flag notes that something went wrong.
func (s *stream) flag(f flag) {
	s.flags.mu.Lock()
	defer s.flags.mu.Unlock()
	if f != 0 && s.flags.all&f == 0 {
		s.flags.all |= f
		s.flags.list = append(s.flags.list, f)
	}
}

// number is all flags in one.
func (f *flags) number() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return uint64(f.all)
}

// String is the flags in short; a dash if there are none.
func (f *flags) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all == 0 {
		return "-"
	}
	names := make([]string, len(f.list))
	for i, one := range f.list {
		names[i] = one.name()
	}
	return strings.Join(names, ",")
}
