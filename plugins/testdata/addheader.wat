;; addheader adds one response header, x-wasm. Its value is the last quoted
;; string of the plugin configuration ({"name":"v1"} gives x-wasm: v1), the whole
;; configuration where nothing is quoted, and "wasm" where there is none.
;;
;; Plugins that share a VM keep their own value: each root context has an entry
;; in a table, each stream finds its root through $parent, by its id modulo 65536.
;;
;; Memory: 0 scratch, 64 strings, 256 roots (64 of 12 bytes: id, address, size),
;; 1024 parents (65536 of 4 bytes), 263168 heap.
(module
  (import "env" "proxy_get_buffer_bytes"
    (func $get_buffer (param $type i32) (param $start i32) (param $max i32) (param $data i32) (param $size i32) (result i32)))
  (import "env" "proxy_add_header_map_value"
    (func $add_header (param $map i32) (param $key i32) (param $key_size i32) (param $value i32) (param $value_size i32) (result i32)))

  (memory (export "memory") 5)
  (data (i32.const 64) "x-wasm")
  (data (i32.const 80) "wasm")
  (global $free (mut i32) (i32.const 263168))

  (func (export "proxy_abi_version_0_2_1"))

  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (global.get $free))
    (global.set $free (i32.and (i32.add (i32.add (local.get $at) (local.get $size)) (i32.const 7)) (i32.const -8)))
    (block $fits
      (br_if $fits (i32.le_u (global.get $free) (i32.mul (memory.size) (i32.const 65536))))
      (br_if $fits (i32.ne (i32.const -1)
        (memory.grow (i32.add (i32.shr_u (local.get $size) (i32.const 16)) (i32.const 1)))))
      unreachable)
    (local.get $at))

  ;; find gives the address of the entry of root context $id, 0 if it has none.
  ;; Id 0 belongs to no context: it finds an entry that is free.
  (func $find (param $id i32) (result i32)
    (local $entry i32)
    (local.set $entry (i32.const 256))
    (loop $next
      (if (i32.eq (i32.load (local.get $entry)) (local.get $id)) (then (return (local.get $entry))))
      (local.set $entry (i32.add (local.get $entry) (i32.const 12)))
      (br_if $next (i32.lt_u (local.get $entry) (i32.const 1024))))
    (i32.const 0))

  ;; parent gives where the parent of stream context $id is kept.
  (func $parent (param $id i32) (result i32)
    (i32.add (i32.const 1024) (i32.shl (i32.and (local.get $id) (i32.const 0xffff)) (i32.const 2))))

  (func (export "proxy_on_context_create") (param $context i32) (param $parent i32)
    (local $entry i32)
    (if (local.get $parent)
      (then (i32.store (call $parent (local.get $context)) (local.get $parent)))
      (else
        (local.set $entry (call $find (i32.const 0)))
        (if (i32.eqz (local.get $entry)) (then unreachable)) ;; more than 64 plugins
        (i32.store (local.get $entry) (local.get $context)))))

  (func (export "proxy_on_vm_start") (param $context i32) (param $size i32) (result i32) (i32.const 1))

  (func (export "proxy_on_configure") (param $context i32) (param $size i32) (result i32)
    (local $entry i32) (local $from i32) (local $to i32)
    (local.set $entry (call $find (local.get $context)))
    (i32.store offset=4 (local.get $entry) (i32.const 80))
    (i32.store offset=8 (local.get $entry) (i32.const 4))
    (if (i32.eqz (local.get $size)) (then (return (i32.const 1))))
    ;; buffer 7 is the plugin configuration
    (if (call $get_buffer (i32.const 7) (i32.const 0) (local.get $size) (i32.const 0) (i32.const 4))
      (then (return (i32.const 0))))
    (i32.store offset=4 (local.get $entry) (i32.load (i32.const 0)))
    (i32.store offset=8 (local.get $entry) (i32.load (i32.const 4)))

    ;; $to: the last quote; $from: the one before it, both past the start
    (local.set $to (i32.add (i32.load (i32.const 0)) (i32.load (i32.const 4))))
    (block $unquoted
      (loop $back
        (local.set $to (i32.sub (local.get $to) (i32.const 1)))
        (br_if $unquoted (i32.lt_u (local.get $to) (i32.load (i32.const 0))))
        (br_if $back (i32.ne (i32.load8_u (local.get $to)) (i32.const 34))))
      (local.set $from (local.get $to))
      (loop $back
        (local.set $from (i32.sub (local.get $from) (i32.const 1)))
        (br_if $unquoted (i32.lt_u (local.get $from) (i32.load (i32.const 0))))
        (br_if $back (i32.ne (i32.load8_u (local.get $from)) (i32.const 34))))
      (local.set $from (i32.add (local.get $from) (i32.const 1)))
      (i32.store offset=4 (local.get $entry) (local.get $from))
      (i32.store offset=8 (local.get $entry) (i32.sub (local.get $to) (local.get $from))))
    (i32.const 1))

  (func (export "proxy_on_request_headers") (param $context i32) (param $headers i32) (param $end i32) (result i32)
    (i32.const 0))

  (func (export "proxy_on_response_headers") (param $context i32) (param $headers i32) (param $end i32) (result i32)
    (local $entry i32)
    (local.set $entry (call $find (i32.load (call $parent (local.get $context)))))
    ;; map 2 is the response headers
    (drop (call $add_header (i32.const 2) (i32.const 64) (i32.const 6)
      (i32.load offset=4 (local.get $entry)) (i32.load offset=8 (local.get $entry))))
    (i32.const 0))

  (func (export "proxy_on_done") (param $context i32) (result i32) (i32.const 1))
  (func (export "proxy_on_log") (param $context i32))

  ;; A root context that goes gives its entry free.
  (func (export "proxy_on_delete") (param $context i32)
    (local $entry i32)
    (local.set $entry (call $find (local.get $context)))
    (if (local.get $entry) (then (i32.store (local.get $entry) (i32.const 0))))))
