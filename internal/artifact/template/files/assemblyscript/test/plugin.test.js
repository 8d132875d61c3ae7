// Runs the plugin in Node, with a host of three functions.
import assert from "node:assert";
import { readFileSync } from "node:fs";
import test from "node:test";

const wasm = new WebAssembly.Module(readFileSync(new URL("../build/plugin.wasm", import.meta.url)));

// start configures the plugin and returns the headers it adds to a response, or null
// if it refuses.
function start(config) {
  const headers = {};
  const bytes = new TextEncoder().encode(config);
  const text = (at, size) => new TextDecoder().decode(new Uint8Array(plugin.memory.buffer, at, size));
  const env = {
    proxy_log: () => 0,
    proxy_get_buffer_bytes: (_buffer, _start, _max, data, size) => {
      const at = plugin.proxy_on_memory_allocate(bytes.length);
      new Uint8Array(plugin.memory.buffer).set(bytes, at);
      new DataView(plugin.memory.buffer).setUint32(data, at, true);
      new DataView(plugin.memory.buffer).setUint32(size, bytes.length, true);
      return 0;
    },
    proxy_replace_header_map_value: (_map, name, nameSize, value, valueSize) => {
      headers[text(name, nameSize)] = text(value, valueSize);
      return 0;
    },
  };
  const plugin = new WebAssembly.Instance(wasm, { env }).exports;
  plugin._initialize();
  plugin.proxy_on_context_create(1, 0);
  plugin.proxy_on_vm_start(1, 0);
  if (!plugin.proxy_on_configure(1, bytes.length)) return null;
  plugin.proxy_on_context_create(2, 1);
  assert.equal(plugin.proxy_on_response_headers(2, 0, 0), 0);
  plugin.proxy_on_done(2);
  plugin.proxy_on_delete(2);
  return headers;
}

test("adds headers", () => {
  assert.deepEqual(start('{"x-__NAME__": "hello", "b": "\\"c\\\\"}'), { "x-__NAME__": "hello", b: '"c\\' });
  assert.deepEqual(start(""), {});
  assert.deepEqual(start(" {} "), {});
});

test("refuses configurations", () => {
  for (const config of ["[]", '{"x": 1}', '{"x y": "z"}', '{"x": "y"', '{"x": "y"} z', '{"x": "\\']) {
    assert.equal(start(config), null, config);
  }
});
