;; A Proxy-Wasm module that answers every request with 403 and closes every connection.
(module
  (import "env" "proxy_send_local_response"
    (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_close_stream" (func $close (param i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "extension unavailable: access denied")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 0))
  ;; (context, headers, end of stream) -> StopIteration
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    ;; status, details, body, headers, gRPC status
    (drop (call $reply (i32.const 403) (i32.const 0) (i32.const 0)
      (i32.const 16) (i32.const 36) (i32.const 0) (i32.const 0) (i32.const -1)))
    (i32.const 1))
  ;; (context) -> StopIteration; stream 2 is the downstream connection
  (func (export "proxy_on_new_connection") (param i32) (result i32)
    (drop (call $close (i32.const 2)))
    (i32.const 1)))
