;; A plugin that counts requests twice, under a plain name and under one with
;; Istio's tags.
(module
  (import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_increment_metric" (func $increment (param i32 i64) (result i32)))
  (memory (export "memory") 2)
  (global $heap (mut i32) (i32.const 65536))
  (data (i32.const 1024) "hello_header_counter")
  (data (i32.const 1056) "wasm_filter.opa.cache.hit.requests")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param $size i32) (result i32)
    global.get $heap
    global.get $heap
    local.get $size
    i32.add
    global.set $heap)
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) i32.const 1)
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (drop (call $define (i32.const 0) (i32.const 1024) (i32.const 20) (i32.const 512)))
    (drop (call $define (i32.const 0) (i32.const 1056) (i32.const 34) (i32.const 516)))
    i32.const 1)
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (drop (call $increment (i32.load (i32.const 512)) (i64.const 1)))
    (drop (call $increment (i32.load (i32.const 516)) (i64.const 1)))
    i32.const 0))
