;; takes and fills all memory there is in proxy_on_configure, then traps
(module
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (local $at i32)
    (loop $again
      (local.set $at (memory.grow (i32.const 256)))
      (if (i32.eq (local.get $at) (i32.const -1)) (then unreachable))
      (memory.fill (i32.shl (local.get $at) (i32.const 16)) (i32.const 1) (i32.const 16777216))
      (br $again))
    (i32.const 1)))
