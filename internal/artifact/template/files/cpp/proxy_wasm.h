// The part of the Proxy-Wasm ABI 0.2.1 that this plugin needs, by hand. For more see
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#define HOST(name) extern "C" __attribute__((import_module("env"), import_name(#name))) uint32_t name
#define EXPORT(name) extern "C" __attribute__((export_name(#name)))

HOST(proxy_log)(uint32_t level, const char *message, size_t size);
HOST(proxy_get_buffer_bytes)(uint32_t buffer, size_t start, size_t max, char **data, size_t *size);
HOST(proxy_replace_header_map_value)(uint32_t map, const char *name, size_t name_size, const char *value, size_t value_size);

namespace proxy {

enum Level : uint32_t { Trace, Debug, Info, Warn, Error, Critical };
enum Buffer : uint32_t { RequestBody, ResponseBody, VmConfiguration = 6, PluginConfiguration = 7 };
enum Map : uint32_t { RequestHeaders = 0, RequestTrailers = 1, ResponseHeaders = 2, ResponseTrailers = 3 };
enum Action : uint32_t { Continue, Pause };

inline void log(Level level, std::string_view message) { proxy_log(level, message.data(), message.size()); }

// Copies size bytes of a buffer. What the host returns it has allocated with malloc,
// and it is ours to free.
inline bool read(Buffer buffer, size_t size, std::string &out) {
  char *data = nullptr;
  size_t got = 0;
  if (size != 0 && proxy_get_buffer_bytes(buffer, 0, size, &data, &got) != 0) return false;
  out.assign(data ? data : "", got);
  free(data);
  return true;
}

// Sets a header; false if the host refuses it.
inline bool set_header(Map map, std::string_view name, std::string_view value) {
  return proxy_replace_header_map_value(map, name.data(), name.size(), value.data(), value.size()) == 0;
}

}  // namespace proxy
