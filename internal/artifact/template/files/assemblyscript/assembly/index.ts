// A Proxy-Wasm plugin: it adds headers to responses. Its configuration is their names
// and values, as in {"x-__NAME__": "hello"}.

import { Header, parse } from "./config";
import { Buffer, Headers, Level, log, read, setHeader } from "./proxy";

const plugins = new Map<u32, Header[]>(); // by root context: each is one configuration
const streams = new Map<u32, u32>(); // the root context of each stream

export function proxy_abi_version_0_2_1(): void {}

// The host copies what it returns into memory from here.
export function proxy_on_memory_allocate(size: u32): usize {
  return heap.alloc(size);
}

export function proxy_on_context_create(id: u32, root: u32): void {
  if (root != 0) streams.set(id, root);
}

export function proxy_on_vm_start(_root: u32, _size: u32): u32 {
  return 1;
}

// Reads the configuration. If it is refused, the proxy does not take it.
export function proxy_on_configure(root: u32, size: u32): u32 {
  const text = read(Buffer.pluginConfiguration, size);
  const headers: Header[] | null = text === null ? null : parse(text);
  if (headers === null) {
    log(Level.error, "refuse configuration: want an object of strings");
    return 0;
  }
  plugins.set(root, headers);
  return 1;
}

export function proxy_on_response_headers(id: u32, _count: u32, _end: u32): u32 {
  const root = streams.get(id);
  if (!plugins.has(root)) return 0;
  const headers = plugins.get(root);
  for (let i = 0; i < headers.length; i++) {
    if (!setHeader(Headers.response, headers[i].name, headers[i].value)) {
      log(Level.error, "set response header " + headers[i].name);
    }
  }
  return 0; // continue
}

export function proxy_on_done(_id: u32): u32 {
  return 1;
}

export function proxy_on_delete(id: u32): void {
  streams.delete(id);
  plugins.delete(id);
}
