;; refuse-config starts, then refuses every plugin configuration and says so in
;; one log line at level error.
(module
  (import "env" "proxy_log" (func $log (param $level i32) (param $text i32) (param $size i32) (result i32)))

  (memory (export "memory") 1)
  (data (i32.const 64) "configuration refused: this module refuses all")
  (func (export "proxy_abi_version_0_2_1"))
  ;; Only what a host hands over unasked is ever put here.
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_context_create") (param $context i32) (param $parent i32))
  (func (export "proxy_on_vm_start") (param $context i32) (param $size i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param $context i32) (param $size i32) (result i32)
    (drop (call $log (i32.const 4) (i32.const 64) (i32.const 46)))
    (i32.const 0))
  (func (export "proxy_on_done") (param $context i32) (result i32) (i32.const 1))
  (func (export "proxy_on_log") (param $context i32))
  (func (export "proxy_on_delete") (param $context i32)))
