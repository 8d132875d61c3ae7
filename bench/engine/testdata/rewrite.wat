;; rewrite holds back the body of each request and each response until all of it is
;; there, makes its small letters large, and lets it go. The length stays as it was.
;;
;; What a host hands over is put at 65536, one thing at a time: the body.
(module
  (import "env" "proxy_get_buffer_bytes"
    (func $get (param $type i32) (param $start i32) (param $max i32) (param $data i32) (param $size i32) (result i32)))
  (import "env" "proxy_set_buffer_bytes"
    (func $set (param $type i32) (param $start i32) (param $size i32) (param $data i32) (param $data_size i32) (result i32)))

  (memory (export "memory") 2)

  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32)
    (local $missing i32)
    (local.set $missing (i32.sub (i32.add (local.get $size) (i32.const 65536)) (i32.mul (memory.size) (i32.const 65536))))
    (if (i32.gt_s (local.get $missing) (i32.const 0))
      (then (if (i32.eq (i32.const -1) (memory.grow (i32.add (i32.const 1) (i32.shr_u (local.get $missing) (i32.const 16)))))
        (then unreachable))))
    (i32.const 65536))
  (func (export "proxy_on_context_create") (param $context i32) (param $parent i32))
  (func (export "proxy_on_vm_start") (param $context i32) (param $size i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param $context i32) (param $size i32) (result i32) (i32.const 1))

  ;; rewrite changes the body in buffer $type when its $end has come: 1 holds it back, 0 lets it go.
  (func $rewrite (param $type i32) (param $size i32) (param $end i32) (result i32)
    (local $at i32) (local $to i32) (local $byte i32)
    (if (i32.eqz (local.get $end)) (then (return (i32.const 1))))
    (if (i32.eqz (local.get $size)) (then (return (i32.const 0))))
    (if (call $get (local.get $type) (i32.const 0) (local.get $size) (i32.const 0) (i32.const 4)) (then unreachable))
    (local.set $at (i32.load (i32.const 0)))
    (local.set $to (i32.add (local.get $at) (i32.load (i32.const 4))))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $at) (local.get $to)))
        (local.set $byte (i32.load8_u (local.get $at)))
        (if (i32.lt_u (i32.sub (local.get $byte) (i32.const 97)) (i32.const 26))
          (then (i32.store8 (local.get $at) (i32.sub (local.get $byte) (i32.const 32)))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $next)))
    (if (call $set (local.get $type) (i32.const 0) (local.get $size) (i32.load (i32.const 0)) (i32.load (i32.const 4)))
      (then unreachable))
    (i32.const 0))

  (func (export "proxy_on_request_body") (param $context i32) (param $size i32) (param $end i32) (result i32)
    (call $rewrite (i32.const 0) (local.get $size) (local.get $end)))
  (func (export "proxy_on_response_body") (param $context i32) (param $size i32) (param $end i32) (result i32)
    (call $rewrite (i32.const 1) (local.get $size) (local.get $end)))

  (func (export "proxy_on_done") (param $context i32) (result i32) (i32.const 1))
  (func (export "proxy_on_log") (param $context i32))
  (func (export "proxy_on_delete") (param $context i32)))
