package config

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Outliers says which endpoints are ejected for how they answer. A share that is
// enforced is 0 or 100.
//
// https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/config/cluster/v3/outlier_detection.proto
type Outliers struct {
	Consecutive5xx     int64 // 0 for never
	ConsecutiveGateway int64 // likewise
	Interval           time.Duration
	Base, Most         time.Duration // of an ejection
	MaxPercent         float64       // of the endpoints, that may be ejected
	AlwaysOne          bool          // one may be, whatever the percentage

	SuccessRate   bool // eject those that succeed much less than the others
	MinimumHosts  int  // with RequestVolume requests in an interval, to compare
	RequestVolume int64
	Factor        float64 // how many standard deviations below the mean are too few
}

// Envoy's defaults.
const (
	defaultConsecutive   = 5
	defaultInterval      = 10 * time.Second
	defaultEjection      = 30 * time.Second
	defaultMostEjection  = 300 * time.Second
	defaultMaxPercent    = 10
	defaultMinimumHosts  = 5
	defaultRequestVolume = 100
	defaultFactor        = 1900 // thousandths
)

func (d *decoder) outliers(path string, m *clusterv3.OutlierDetection) *Outliers {
	if m == nil {
		return nil
	}
	number := func(v *wrapperspb.UInt32Value, otherwise uint32) int64 {
		if v == nil {
			return int64(otherwise)
		}
		return int64(v.GetValue())
	}
	enforced := func(field string, v *wrapperspb.UInt32Value, otherwise uint32) bool {
		switch n := number(v, otherwise); n {
		case 0, 100:
			return n == 100
		default:
			d.fail(in(path, field), "%d: the engine enforces always (100) or never (0)", n)
			return false
		}
	}
	o := &Outliers{
		Interval: duration(m.GetInterval(), defaultInterval), Base: duration(m.GetBaseEjectionTime(), defaultEjection),
		MaxPercent: float64(min(100, number(m.GetMaxEjectionPercent(), defaultMaxPercent))), AlwaysOne: m.GetAlwaysEjectOneHost().GetValue(),
		SuccessRate:   enforced("enforcing_success_rate", m.GetEnforcingSuccessRate(), 100),
		MinimumHosts:  int(number(m.GetSuccessRateMinimumHosts(), defaultMinimumHosts)),
		RequestVolume: number(m.GetSuccessRateRequestVolume(), defaultRequestVolume),
		Factor:        float64(number(m.GetSuccessRateStdevFactor(), defaultFactor)) / 1000,
	}
	o.Most = duration(m.GetMaxEjectionTime(), max(o.Base, defaultMostEjection))
	if enforced("enforcing_consecutive_5xx", m.GetEnforcingConsecutive_5Xx(), 100) {
		o.Consecutive5xx = number(m.GetConsecutive_5Xx(), defaultConsecutive)
	}
	if enforced("enforcing_consecutive_gateway_failure", m.GetEnforcingConsecutiveGatewayFailure(), 0) {
		o.ConsecutiveGateway = number(m.GetConsecutiveGatewayFailure(), defaultConsecutive)
	}
	if o.Interval <= 0 {
		d.fail(in(path, "interval"), "must be more than 0")
	}
	return o
}
