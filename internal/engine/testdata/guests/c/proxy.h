// The whole of Proxy-Wasm ABI 0.2.1, for a guest without any library.
#pragma once

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef const void *at;

#define HOST(name) __attribute__((import_module("env"), import_name("proxy_" #name))) u32 host_##name
#define CALLBACK(name) __attribute__((export_name("proxy_" #name)))

HOST(log)(u32 level, at text, u32 size);
HOST(get_log_level)(u32 *level);
HOST(get_current_time_nanoseconds)(u64 *time);
HOST(get_property)(at path, u32 size, u8 **value, u32 *value_size);
HOST(set_property)(at path, u32 size, at value, u32 value_size);
HOST(get_header_map_pairs)(u32 map, u8 **pairs, u32 *size);
HOST(set_header_map_pairs)(u32 map, at pairs, u32 size);
HOST(get_header_map_size)(u32 map, u32 *size);
HOST(get_header_map_value)(u32 map, at key, u32 size, u8 **value, u32 *value_size);
HOST(add_header_map_value)(u32 map, at key, u32 size, at value, u32 value_size);
HOST(replace_header_map_value)(u32 map, at key, u32 size, at value, u32 value_size);
HOST(remove_header_map_value)(u32 map, at key, u32 size);
HOST(get_buffer_bytes)(u32 buffer, u32 start, u32 max, u8 **data, u32 *size);
HOST(get_buffer_status)(u32 buffer, u32 *size, u32 *flags);
HOST(set_buffer_bytes)(u32 buffer, u32 start, u32 size, at data, u32 data_size);
HOST(send_local_response)(u32 status, at details, u32 details_size, at body, u32 body_size, at headers, u32 headers_size, u32 grpc);
HOST(continue_stream)(u32 stream);
HOST(close_stream)(u32 stream);
HOST(get_status)(u32 *status, u8 **message, u32 *size);
HOST(get_shared_data)(at key, u32 size, u8 **value, u32 *value_size, u32 *cas);
HOST(set_shared_data)(at key, u32 size, at value, u32 value_size, u32 cas);
HOST(register_shared_queue)(at name, u32 size, u32 *queue);
HOST(resolve_shared_queue)(at vm, u32 vm_size, at name, u32 size, u32 *queue);
HOST(enqueue_shared_queue)(u32 queue, at data, u32 size);
HOST(dequeue_shared_queue)(u32 queue, u8 **data, u32 *size);
HOST(http_call)(at upstream, u32 upstream_size, at headers, u32 headers_size, at body, u32 body_size, at trailers, u32 trailers_size, u32 timeout, u32 *call);
HOST(grpc_call)(at service, u32 service_size, at name, u32 name_size, at method, u32 method_size, at metadata, u32 metadata_size, at message, u32 message_size, u32 timeout, u32 *call);
HOST(grpc_stream)(at service, u32 service_size, at name, u32 name_size, at method, u32 method_size, at metadata, u32 metadata_size, u32 *call);
HOST(grpc_send)(u32 call, at message, u32 size, u32 end);
HOST(grpc_cancel)(u32 call);
HOST(grpc_close)(u32 call);
HOST(define_metric)(u32 type, at name, u32 size, u32 *metric);
HOST(increment_metric)(u32 metric, long long offset);
HOST(record_metric)(u32 metric, u64 value);
HOST(get_metric)(u32 metric, u64 *value);
HOST(set_tick_period_milliseconds)(u32 period);
HOST(set_effective_context)(u32 context);
HOST(done)(void);
HOST(call_foreign_function)(at name, u32 size, at arguments, u32 arguments_size, u8 **results, u32 *results_size);

enum { REQUEST_HEADERS, REQUEST_TRAILERS, RESPONSE_HEADERS, RESPONSE_TRAILERS, GRPC_INITIAL, GRPC_TRAILING, CALL_HEADERS, CALL_TRAILERS };
enum { REQUEST_BODY, RESPONSE_BODY, DOWNSTREAM_DATA, UPSTREAM_DATA, CALL_BODY, GRPC_MESSAGE, VM_CONFIGURATION, PLUGIN_CONFIGURATION, CALL_DATA };
enum { CONTINUE, PAUSE };

// Memory that is never given back, but begun again when it is full: what the host is
// given it has copied.
static u8 heap[1 << 20];
static u32 used;

__attribute__((export_name("malloc"))) void *take(u32 n) {
  if (used + n > sizeof heap) used = 0;
  void *p = heap + used;
  used += (n + 7) & ~7u;
  return p;
}

void *memcpy(void *to, const void *from, unsigned long n) {
  for (u8 *t = to, *f = (u8 *)from; n--;) *t++ = *f++;
  return to;
}

void *memset(void *to, int c, unsigned long n) {
  for (u8 *t = to; n--;) *t++ = c;
  return to;
}

static u32 length(const char *s) {
  u32 n = 0;
  while (s[n]) n++;
  return n;
}

static int same(const char *a, const char *b) {
  while (*a && *a == *b) a++, b++;
  return *a == *b;
}

// S is a string as the host wants it: address and size.
#define S(s) (s), length(s)

// A line of the log that is being written.
static char line[8192];
static u32 filled;

static void text_n(const u8 *s, u32 n) {
  for (u32 i = 0; i < n && filled < sizeof line; i++) {
    static const char hex[] = "0123456789abcdef";
    if (s[i] >= ' ' && s[i] < 0x7f && s[i] != '\\') {
      line[filled++] = s[i];
    } else if (filled + 3 < sizeof line) {
      line[filled++] = '\\';
      line[filled++] = hex[s[i] >> 4];
      line[filled++] = hex[s[i] & 15];
    }
  }
}

static void text(const char *s) { text_n((const u8 *)s, length(s)); }

static void number(u64 n) {
  char digits[20];
  u32 i = 20;
  do digits[--i] = '0' + n % 10; while (n /= 10);
  text_n((u8 *)digits + i, 20 - i);
}

static void end_line(void) {
  host_log(3, line, filled);
  filled = 0;
}

// said is a line of a name and the status that the host returned.
static void said(const char *what, u32 status) {
  text(what), text(" = "), number(status), end_line();
}

// said_data is said with what the host gave.
static void said_data(const char *what, u32 status, const u8 *data, u32 size) {
  text(what), text(" = "), number(status);
  if (status == 0) text(" "), text_n(data, size);
  end_line();
}

static void said_number(const char *what, u32 status, u64 n) {
  text(what), text(" = "), number(status), text(" "), number(n), end_line();
}

// A map as the host wants it. Pairs are strings that end with a zero pointer.
static u32 pairs(u8 *to, const char **list) {
  u32 count = 0, at_byte, sizes[64];
  while (list[count]) sizes[count] = length(list[count]), count++;
  u32 *head = (u32 *)to;
  head[0] = count / 2;
  at_byte = 4 + 4 * count;
  for (u32 i = 0; i < count; i++) {
    head[1 + i] = sizes[i];
    memcpy(to + at_byte, list[i], sizes[i] + 1);
    at_byte += sizes[i] + 1;
  }
  return at_byte;
}

// said_pairs writes a map, a line for each pair but those that differ each time.
static void said_pairs(const char *what, u32 map) {
  u8 *p = 0;
  u32 size = 0, status = host_get_header_map_pairs(map, &p, &size);
  u32 count = status == 0 && size ? *(u32 *)p : 0;
  said_number(what, status, count);
  u8 *data = p + 4 + 8 * count;
  for (u32 i = 0; i < count; i++) {
    u32 n = ((u32 *)p)[1 + 2 * i], m = ((u32 *)p)[2 + 2 * i];
    int varies = same((char *)data, "date") || same((char *)data, "x-request-id") || same((char *)data, "x-envoy-upstream-service-time");
    text("  "), text_n(data, n), text(": "), varies ? text("...") : text_n(data + n + 1, m), end_line();
    data += n + m + 2;
  }
}
