;; Does harm in proxy_on_request_headers: which, says the number of headers.
(module
  (import "env" "proxy_get_current_time_nanoseconds" (func $time (param i32) (result i32)))
  (memory (export "memory") 1)
  (table $t 1 funcref)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func $recurse (param i32) (result i32) (i32.add (i32.const 1) (call $recurse (local.get 0))))
  (func $double (param i32)
    (if (local.get 0) (then
      (call $double (i32.sub (local.get 0) (i32.const 1)))
      (call $double (i32.sub (local.get 0) (i32.const 1))))))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (block $out
     (block $nothing (block $host (block $tables (block $fill (block $grow (block $double (block $recurse (block $loop (block $trap
      (br_table $trap $loop $recurse $double $grow $fill $tables $host $nothing (local.get 1)))
      (unreachable))
      (loop $again (br $again)))
      (drop (call $recurse (i32.const 0))) (br $out))
      (call $double (i32.const 60)) (br $out))
      (loop $again (drop (memory.grow (i32.const 1))) (br $again)))
      (drop (memory.grow (i32.const 1000)))
      (loop $again (memory.fill (i32.const 0) (i32.const 1) (i32.const 65000000)) (br $again)))
      (loop $again (drop (table.grow $t (ref.null func) (i32.const 1000000))) (br $again)))
      (loop $again (drop (call $time (i32.const 0))) (br $again))))
    (i32.const 0))
)
