package proxywasm

import "github.com/chandler-proxy/chandler/internal/abi"

func metricFunctions() []*hostFunc {
	return []*hostFunc{
		proxy("proxy_define_metric", defineMetric, param{"type", number}, param{"name", text}, param{"metric", ret32}),
		proxy("proxy_increment_metric", incrementMetric, param{"metric", number}, param{"delta", long}),
		proxy("proxy_record_metric", recordMetric, param{"metric", number}, param{"value", long}),
		proxy("proxy_get_metric", getMetric, param{"metric", number}, param{"value", ret64}),
	}
}

// metricID has the type of a metric in its two lowest bits, as in Envoy.
func metricType(id uint32) abi.Metric { return abi.Metric(id & 3) }

func (in *Instance) metric(id uint32) Metric {
	if t := metricType(id); t.Valid() {
		return in.metrics[t][id]
	}
	return nil
}

// defineMetric is proxy_define_metric. Each definition has an id of its own; those of
// the same name and type share the metric.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_define_metric
func defineMetric(in *Instance, stack []uint64) abi.Status {
	t := abi.Metric(u32(stack, 0))
	name, ok := in.read(stack, 1)
	if !ok {
		return abi.InvalidMemoryAccess
	}
	if !t.Valid() {
		return abi.BadArgument
	}
	if in.metrics[t] == nil {
		in.metrics[t] = map[uint32]Metric{}
	}
	in.nextMetric[t] += 4
	id := in.nextMetric[t]
	in.metrics[t][id] = in.vm.cfg.Metrics.Metric(t, string(name))
	return in.put32(u32(stack, 3), id)
}

// incrementMetric is proxy_increment_metric. A counter goes up only, by one at least;
// a histogram cannot be incremented.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_increment_metric
func incrementMetric(in *Instance, stack []uint64) abi.Status {
	id, delta := u32(stack, 0), int64(stack[1])
	t := metricType(id)
	if t != abi.Counter && t != abi.Gauge {
		return abi.BadArgument
	}
	m := in.metric(id)
	switch {
	case m == nil:
		return abi.NotFound
	case t == abi.Counter && delta <= 0:
		return abi.BadArgument
	}
	m.Add(delta)
	return abi.OK
}

// recordMetric is proxy_record_metric. The specification has it set any metric; in
// Envoy it adds to a counter.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_record_metric
func recordMetric(in *Instance, stack []uint64) abi.Status {
	id, value := u32(stack, 0), stack[1]
	m := in.metric(id)
	switch {
	case m == nil:
		return abi.NotFound
	case metricType(id) == abi.Counter:
		m.Add(int64(value))
	default:
		m.Record(value)
	}
	return abi.OK
}

// getMetric is proxy_get_metric. A histogram has no value.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_get_metric
func getMetric(in *Instance, stack []uint64) abi.Status {
	id := u32(stack, 0)
	if t := metricType(id); t != abi.Counter && t != abi.Gauge {
		return abi.BadArgument
	}
	m := in.metric(id)
	if m == nil {
		return abi.NotFound
	}
	return in.put64(u32(stack, 1), m.Value())
}
