package config

import (
	"slices"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
)

// logFilter is which requests a log has a line for. A threshold that could be changed at
// runtime is its default: the engine has no runtime.
//
// https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/config/accesslog/v3/accesslog.proto
func (d *decoder) logFilter(path string, m *accesslogv3.AccessLogFilter) func(*Entry) bool {
	switch f := m.GetFilterSpecifier().(type) {
	case *accesslogv3.AccessLogFilter_StatusCodeFilter:
		compare := d.comparison(in(path, "status_code_filter.comparison"), f.StatusCodeFilter.GetComparison())
		return func(e *Entry) bool { return compare(int64(e.Code)) }
	case *accesslogv3.AccessLogFilter_DurationFilter:
		compare := d.comparison(in(path, "duration_filter.comparison"), f.DurationFilter.GetComparison())
		return func(e *Entry) bool { return compare(e.Duration.Milliseconds()) }
	case *accesslogv3.AccessLogFilter_NotHealthCheckFilter: // which only Envoy's health check filter tells from others
		return func(*Entry) bool { return true }
	case *accesslogv3.AccessLogFilter_AndFilter:
		all := d.logFilters(in(path, "and_filter.filters"), f.AndFilter.GetFilters())
		return func(e *Entry) bool {
			return !slices.ContainsFunc(all, func(wants func(*Entry) bool) bool { return !wants(e) })
		}
	case *accesslogv3.AccessLogFilter_OrFilter:
		all := d.logFilters(in(path, "or_filter.filters"), f.OrFilter.GetFilters())
		return func(e *Entry) bool {
			return slices.ContainsFunc(all, func(wants func(*Entry) bool) bool { return wants(e) })
		}
	case *accesslogv3.AccessLogFilter_HeaderFilter:
		match := d.headerMatch(in(path, "header_filter.header"), f.HeaderFilter.GetHeader())
		return func(e *Entry) bool { return match.match(e.Request) }
	case *accesslogv3.AccessLogFilter_ResponseFlagFilter:
		return flagged(f.ResponseFlagFilter.GetFlags())
	}
	d.fail(path, "only status_code_filter, duration_filter, not_health_check_filter, and_filter, or_filter, header_filter and response_flag_filter are supported")
	return nil
}

func (d *decoder) logFilters(path string, list []*accesslogv3.AccessLogFilter) []func(*Entry) bool {
	var out []func(*Entry) bool
	for i, f := range list {
		out = append(out, d.logFilter(at(path, i), f))
	}
	return out
}

// flagged wants requests with one of the flags, or, if there are none, with any.
func flagged(flags []string) func(*Entry) bool {
	return func(e *Entry) bool {
		if len(flags) == 0 {
			return e.Flags != "-"
		}
		for one := range strings.SplitSeq(e.Flags, ",") {
			if slices.Contains(flags, one) {
				return true
			}
		}
		return false
	}
}

func (d *decoder) comparison(path string, m *accesslogv3.ComparisonFilter) func(int64) bool {
	than := int64(m.GetValue().GetDefaultValue())
	switch m.GetOp() {
	case accesslogv3.ComparisonFilter_EQ:
		return func(n int64) bool { return n == than }
	case accesslogv3.ComparisonFilter_GE:
		return func(n int64) bool { return n >= than }
	case accesslogv3.ComparisonFilter_LE:
		return func(n int64) bool { return n <= than }
	case accesslogv3.ComparisonFilter_NE:
		return func(n int64) bool { return n != than }
	}
	d.fail(in(path, "op"), "%s is not known", m.GetOp())
	return nil
}
