// Package engine measures the embedded engine beside the real Envoy: both as an
// agent's proxy, with the same configuration from one control plane, the same
// module, and one backend behind, in the same run.
//
//   - engine_test.go: what is asked of them, and what is reported
//   - drive_test.go: the load, by wrk (HTTP/1.1) and h2load (HTTP/2)
//   - stand_test.go: the processes, and what they take of the machine
//
// They take turns under load, a few seconds each, so that whatever else the machine
// does meets both; ratios are of neighbouring turns. A request that fails, and an
// answer that the plugin did not have its part in, fail a benchmark; no time does.
// It needs what bench needs (build tag e2e), and wrk, h2load and wat2wasm. How to
// run it, and what the columns are: README.md in bench. Start at [BenchmarkEngine].
package engine
