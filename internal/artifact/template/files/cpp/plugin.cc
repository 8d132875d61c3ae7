// A Proxy-Wasm plugin: it adds headers to responses. Its configuration is their names
// and values, as in {"x-__NAME__": "hello"}.
#include <map>

#include "config.h"
#include "proxy_wasm.h"

namespace {

std::map<uint32_t, Headers> plugins;    // by root context: each is one configuration
std::map<uint32_t, uint32_t> streams;  // the root context of each stream

}  // namespace

EXPORT(proxy_abi_version_0_2_1) void proxy_abi_version() {}

// The host copies what it returns into memory from here.
EXPORT(proxy_on_memory_allocate) void *proxy_on_memory_allocate(size_t size) { return malloc(size); }

EXPORT(proxy_on_context_create) void proxy_on_context_create(uint32_t id, uint32_t root) {
  if (root != 0) streams[id] = root;
}

EXPORT(proxy_on_vm_start) uint32_t proxy_on_vm_start(uint32_t, size_t) { return true; }

// Reads the configuration. If it is refused, the proxy does not take it.
EXPORT(proxy_on_configure) uint32_t proxy_on_configure(uint32_t root, size_t size) {
  std::string text;
  if (!proxy::read(proxy::PluginConfiguration, size, text) || !Config::parse(text, plugins[root])) {
    proxy::log(proxy::Error, "refuse configuration: want an object of strings");
    return false;
  }
  return true;
}

EXPORT(proxy_on_response_headers) uint32_t proxy_on_response_headers(uint32_t id, uint32_t, uint32_t) {
  for (const auto &[name, value] : plugins[streams[id]]) {
    if (!proxy::set_header(proxy::ResponseHeaders, name, value)) proxy::log(proxy::Error, "set response header " + name);
  }
  return proxy::Continue;
}

EXPORT(proxy_on_done) uint32_t proxy_on_done(uint32_t) { return true; }

EXPORT(proxy_on_delete) void proxy_on_delete(uint32_t id) {
  streams.erase(id);
  plugins.erase(id);
}
