// A guest that does what the header x-do of a request says, in AssemblyScript.

@external("env", "proxy_log")
declare function proxy_log(level: u32, message: usize, size: u32): u32;
@external("env", "proxy_get_buffer_bytes")
declare function proxy_get_buffer_bytes(buffer: u32, start: u32, max: u32, data: usize, size: usize): u32;
@external("env", "proxy_set_buffer_bytes")
declare function proxy_set_buffer_bytes(buffer: u32, start: u32, size: u32, data: usize, dataSize: u32): u32;
@external("env", "proxy_get_header_map_value")
declare function proxy_get_header_map_value(map: u32, name: usize, nameSize: u32, value: usize, valueSize: usize): u32;
@external("env", "proxy_replace_header_map_value")
declare function proxy_replace_header_map_value(map: u32, name: usize, nameSize: u32, value: usize, valueSize: u32): u32;
@external("env", "proxy_remove_header_map_value")
declare function proxy_remove_header_map_value(map: u32, name: usize, nameSize: u32): u32;
@external("env", "proxy_send_local_response")
declare function proxy_send_local_response(status: u32, details: usize, detailsSize: u32, body: usize, bodySize: u32, headers: usize, headersSize: u32, grpc: i32): u32;
@external("env", "proxy_define_metric")
declare function proxy_define_metric(type: u32, name: usize, nameSize: u32, metric: usize): u32;
@external("env", "proxy_increment_metric")
declare function proxy_increment_metric(metric: u32, offset: i64): u32;
@external("env", "proxy_get_property")
declare function proxy_get_property(path: usize, size: u32, value: usize, valueSize: usize): u32;

let deed = "";
const out = memory.data(8); // where the host puts address and size

function log(message: string): void {
  const text = String.UTF8.encode(message);
  proxy_log(3, changetype<usize>(text), text.byteLength);
}

// What the host has put at out, as text.
function given(status: u32): string {
  if (status != 0) return "status " + status.toString();
  const data = load<usize>(out);
  const text = String.UTF8.decodeUnsafe(data, load<u32>(out, 4));
  if (data != 0) heap.free(data);
  return text;
}

function header(map: u32, name: string): string {
  const n = String.UTF8.encode(name);
  return given(proxy_get_header_map_value(map, changetype<usize>(n), n.byteLength, out, out + 4));
}

function setHeader(map: u32, name: string, value: string): void {
  const n = String.UTF8.encode(name);
  const v = String.UTF8.encode(value);
  proxy_replace_header_map_value(map, changetype<usize>(n), n.byteLength, changetype<usize>(v), v.byteLength);
}

function removeHeader(map: u32, name: string): void {
  const n = String.UTF8.encode(name);
  proxy_remove_header_map_value(map, changetype<usize>(n), n.byteLength);
}

export function abort(message: string | null, file: string | null, line: u32, column: u32): void {
  log("abort: " + (message ? message : ""));
  unreachable();
}

export function malloc(size: usize): usize {
  return heap.alloc(size);
}

export function proxy_abi_version_0_2_1(): void {}
export function proxy_on_context_create(context: u32, parent: u32): void {}

export function proxy_on_request_headers(context: u32, count: u32, end: u32): u32 {
  deed = header(0, "x-do");
  log("request headers " + deed + " " + count.toString() + " " + end.toString());
  if (deed == "headers") {
    log(header(0, "x-mixed") + ", " + header(0, "x-nothing"));
    setHeader(0, "x-mixed", "replaced");
    removeHeader(0, "x-gone");
    const path = String.UTF8.encode("request\0path");
    log(given(proxy_get_property(changetype<usize>(path), path.byteLength, out, out + 4)));
  }
  if (deed == "append") removeHeader(0, "content-length");
  if (deed == "metrics") {
    const name = String.UTF8.encode("guest.counter");
    proxy_define_metric(0, changetype<usize>(name), name.byteLength, out);
    log("increment " + proxy_increment_metric(load<u32>(out), 3).toString());
  }
  if (deed == "local") {
    const body = String.UTF8.encode("no\n");
    proxy_send_local_response(403, 0, 0, changetype<usize>(body), body.byteLength, 0, 0, -1);
    return 1;
  }
  if (deed == "panic") throw new Error("as it was told");
  return 0;
}

function body(buffer: u32, size: u32, end: u32): u32 {
  if (!end) return 1;
  if (buffer == 0) log("body " + given(proxy_get_buffer_bytes(buffer, 0, size, out, out + 4)));
  if (deed == "append") {
    const more = String.UTF8.encode("[more]");
    proxy_set_buffer_bytes(buffer, size, 0, changetype<usize>(more), more.byteLength);
  }
  return 0;
}

export function proxy_on_request_body(context: u32, size: u32, end: u32): u32 {
  return body(0, size, end);
}

export function proxy_on_response_headers(context: u32, count: u32, end: u32): u32 {
  log("response headers " + count.toString() + " " + end.toString());
  if (deed == "headers") setHeader(2, "x-back", "replaced");
  if (deed == "append") removeHeader(2, "content-length");
  return 0;
}

export function proxy_on_response_body(context: u32, size: u32, end: u32): u32 {
  return body(1, size, end);
}

export function proxy_on_log(context: u32): void {
  log("log");
}

export function proxy_on_done(context: u32): u32 {
  return 1;
}

export function proxy_on_delete(context: u32): void {
  log("deleted");
}
