;; Logs that it is in its start function, _initialize and main, in this order.
(module
  (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "start function_initializemain_start")
  (func $begin (drop (call $log (i32.const 2) (i32.const 0) (i32.const 14))))
  (start $begin)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func (export "_initialize") (drop (call $log (i32.const 2) (i32.const 14) (i32.const 11))))
  (func (export "main") (param i32 i32) (result i32) (drop (call $log (i32.const 2) (i32.const 25) (i32.const 4))) (i32.const 0))
  (func (export "_start") (drop (call $log (i32.const 2) (i32.const 29) (i32.const 6))))
)
