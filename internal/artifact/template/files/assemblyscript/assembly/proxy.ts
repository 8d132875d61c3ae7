// The part of the Proxy-Wasm ABI 0.2.1 that this plugin needs, by hand. For more see
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1

@external("env", "proxy_log")
declare function proxy_log(level: u32, message: usize, size: u32): u32;
@external("env", "proxy_get_buffer_bytes")
declare function proxy_get_buffer_bytes(buffer: u32, start: u32, max: u32, data: usize, size: usize): u32;
@external("env", "proxy_replace_header_map_value")
declare function proxy_replace_header_map_value(map: u32, name: usize, nameSize: u32, value: usize, valueSize: u32): u32;

export namespace Level {
  export const info: u32 = 2;
  export const warn: u32 = 3;
  export const error: u32 = 4;
}

export namespace Buffer {
  export const pluginConfiguration: u32 = 7;
}

export namespace Headers {
  export const request: u32 = 0;
  export const response: u32 = 2;
}

export function log(level: u32, message: string): void {
  const text = String.UTF8.encode(message);
  proxy_log(level, changetype<usize>(text), text.byteLength);
}

// Reads size bytes of a buffer, as text; null if the host refuses.
export function read(buffer: u32, size: u32): string | null {
  if (size == 0) return "";
  const out = memory.data(8); // where the host puts address and size
  if (proxy_get_buffer_bytes(buffer, 0, size, out, out + 4) != 0) return null;
  const data = load<usize>(out);
  const text = String.UTF8.decodeUnsafe(data, load<u32>(out, 4));
  heap.free(data); // the host has allocated it, and it is ours to free
  return text;
}

// Sets a header; false if the host refuses it.
export function setHeader(map: u32, name: string, value: string): bool {
  const n = String.UTF8.encode(name);
  const v = String.UTF8.encode(value);
  return proxy_replace_header_map_value(map, changetype<usize>(n), n.byteLength, changetype<usize>(v), v.byteLength) == 0;
}

// Takes the place of the runtime's own abort, which wants a function that proxies
// do not have.
export function abort(message: string | null, file: string | null, line: u32, column: u32): void {
  log(Level.error, "abort: " + (message ? message : "") + " at " + (file ? file : "") + ":" + line.toString() + ":" + column.toString());
  unreachable();
}
