// A guest that does what the header x-do of a request says, and logs what the host
// answers. Each deed is one function; together they call all that Proxy-Wasm has.
#include "proxy.h"

static u32 root;       // the root context
static u32 paused;     // the stream that waits
static char deed[64];  // what the stream of now does
static u8 buffer[4096];
static char configuration[4096];

static void read_deed(void) {
  u8 *p = 0;
  u32 n = 0;
  deed[0] = 0;
  if (host_get_header_map_value(REQUEST_HEADERS, S("x-do"), &p, &n) == 0 && n < sizeof deed) memcpy(deed, p, n), deed[n] = 0;
}

// Headers.

static void headers(u32 map) {
  u8 *p = 0;
  u32 n = 0, status;
  said_pairs("pairs", map);
  status = host_get_header_map_value(map, S("X-MIXED"), &p, &n), said_data("get mixed", status, p, n);
  status = host_get_header_map_value(map, S("x-twice"), &p, &n), said_data("get twice", status, p, n);
  status = host_get_header_map_value(map, S("x-nothing"), &p, &n), said_data("get nothing", status, p, n);
  status = host_get_header_map_value(map, S("x-empty"), &p, &n), said_data("get empty", status, p, n);
  status = host_get_header_map_value(map, S(""), &p, &n), said_data("get no name", status, p, n);
  said("add", host_add_header_map_value(map, S("X-Added"), S("one")));
  said("add again", host_add_header_map_value(map, S("x-added"), S("two")));
  said("add twice", host_add_header_map_value(map, S("x-twice"), S("three")));
  said("replace", host_replace_header_map_value(map, S("x-mixed"), S("replaced")));
  said("replace twice", host_replace_header_map_value(map, S("x-twice"), S("once")));
  said("replace nothing", host_replace_header_map_value(map, S("x-new"), S("new")));
  said("replace empty", host_replace_header_map_value(map, S("x-new-empty"), "", 0));
  said("remove", host_remove_header_map_value(map, S("X-Gone")));
  said("remove nothing", host_remove_header_map_value(map, S("x-nothing")));
  said("get size", host_get_header_map_size(map, &n)), said_number("size", 0, n);
  said_pairs("pairs", map);
}

static void set_all(u32 map) {
  const char *list[] = {"x-one", "1", "X-Two", "2", "x-one", "3", "x-empty", "", map == REQUEST_HEADERS ? ":method" : ":status", map == REQUEST_HEADERS ? "GET" : "201",
                        map == REQUEST_HEADERS ? ":path" : "x-three", "/p/set", map == REQUEST_HEADERS ? ":authority" : "x-four", "set.example", map == REQUEST_HEADERS ? ":scheme" : "x-five", "http", 0};
  u8 *p = 0;
  u32 n = 0, status = host_get_property("response\0code_details", 21, &p, &n);
  said_data("details", status, p, n);
  said("set", host_set_header_map_pairs(map, buffer, pairs(buffer, list)));
  said_pairs("pairs", map);
}

// Everything that a host can refuse.
static void wrong(void) {
  u8 *p = 0;
  u32 n = 0;
  u64 t = 0;
  at outside = (at)0xfffffff0;
  u8 **away = (u8 **)0xfffffff0;
  said("log level 9", host_log(9, S("x")));
  said("log outside", host_log(2, outside, 100));
  said("get map 9", host_get_header_map_value(9, S("a"), &p, &n));
  said("get map of no call", host_get_header_map_value(CALL_HEADERS, S("a"), &p, &n));
  said("pairs 9", host_get_header_map_pairs(9, &p, &n));
  said("size of map 9", host_get_header_map_size(9, &n));
  said("size of trailers", host_get_header_map_size(REQUEST_TRAILERS, &n));
  said("add to map 9", host_add_header_map_value(9, S("a"), S("b")));
  said("add to response", host_add_header_map_value(RESPONSE_HEADERS, S("a"), S("b")));
  said("remove from map 9", host_remove_header_map_value(9, S("a")));
  said("set map 9", host_set_header_map_pairs(9, buffer, 4));
  said("get outside", host_get_header_map_value(REQUEST_HEADERS, outside, 100, &p, &n));
  said("get to outside", host_get_header_map_value(REQUEST_HEADERS, S(":path"), away, &n));
  said("buffer 99", host_get_buffer_bytes(99, 0, 1, &p, &n));
  said("no body", host_get_buffer_bytes(REQUEST_BODY, 0, 1, &p, &n));
  said("set buffer 99", host_set_buffer_bytes(99, 0, 1, S("x")));
  said("set configuration", host_set_buffer_bytes(PLUGIN_CONFIGURATION, 0, 1, S("x")));
  said("configuration past its end", host_get_buffer_bytes(PLUGIN_CONFIGURATION, 100000, 1, &p, &n));
  said("property nothing", host_get_property(S("nothing"), &p, &n));
  said("property outside", host_get_property(outside, 100, &p, &n));
  said("property empty", host_get_property("", 0, &p, &n));
  said("shared nothing", host_get_shared_data(S("nothing"), &p, &n, &n));
  said("dequeue 99", host_dequeue_shared_queue(99, &p, &n));
  said("enqueue 99", host_enqueue_shared_queue(99, S("x")));
  said("resolve nothing", host_resolve_shared_queue(S("nothing"), S("nothing"), &n));
  said("metric type 9", host_define_metric(9, S("x"), &n));
  said("increment 999999", host_increment_metric(999999, 1));
  said("record 999999", host_record_metric(999999, 1));
  said("get metric 999999", host_get_metric(999999, &t));
  said("call nobody", host_http_call(S("nobody"), buffer, 4, 0, 0, 0, 0, 100, &n));
  said("effective 999", host_set_effective_context(999));
  said("continue 9", host_continue_stream(9));
  said("close 9", host_close_stream(9));
  said("foreign nothing", host_call_foreign_function(S("nothing"), S("x"), &p, &n));
  said("grpc cancel 99", host_grpc_cancel(99));
  said("grpc close 99", host_grpc_close(99));
  said("grpc send 99", host_grpc_send(99, S("x"), 0));
  said("grpc to nobody", host_grpc_call(S("nobody"), S("a.B"), S("C"), 0, 0, S("x"), 100, &n));
  said("grpc stream to nobody", host_grpc_stream(S("nobody"), S("a.B"), S("C"), 0, 0, &n));
}

// Bodies.

static void body(u32 which, u32 size) {
  u8 *p = 0;
  u32 n = 0, flags = 0, status;
  said_number("body", 0, size);
  status = host_get_buffer_status(which, &n, &flags), said_number("status", status, n);
  status = host_get_buffer_bytes(which, 0, 1 << 20, &p, &n), said_data("all", status, p, n);
  status = host_get_buffer_bytes(which, 2, 2, &p, &n), said_data("middle", status, p, n);
  status = host_get_buffer_bytes(which, size, 2, &p, &n), said_data("end", status, p, n);
  status = host_get_buffer_bytes(which, size + 1, 2, &p, &n), said_data("past the end", status, p, n);
  if (same(deed, "append")) said("append", host_set_buffer_bytes(which, size, 0, S("[more]")));
  if (same(deed, "prepend")) said("prepend", host_set_buffer_bytes(which, 0, 0, S("[more]")));
  if (same(deed, "replace")) said("replace", host_set_buffer_bytes(which, 0, size, S("[all]")));
  if (same(deed, "middle")) said("middle", host_set_buffer_bytes(which, 1, 1, S("[two]")));
  if (same(deed, "drop")) said("drop", host_set_buffer_bytes(which, 0, size, "", 0));
  if (same(deed, "past")) said("past", host_set_buffer_bytes(which, size + 10, 1, S("[past]")));
}

static int changes_body(void) {
  return same(deed, "append") || same(deed, "prepend") || same(deed, "replace") || same(deed, "middle") || same(deed, "drop") || same(deed, "past") || same(deed, "read");
}

// Shared data and queues.

static void shared(void) {
  u8 *p = 0;
  u32 n = 0, cas = 0, queue = 0, status;
  said("set", host_set_shared_data(S("key"), S("value"), 0));
  status = host_get_shared_data(S("key"), &p, &n, &cas), said_data("get", status, p, n);
  said("set with cas", host_set_shared_data(S("key"), S("other"), cas));
  said("set with old cas", host_set_shared_data(S("key"), S("third"), cas));
  status = host_get_shared_data(S("key"), &p, &n, &cas), said_data("get", status, p, n);
  said("set empty", host_set_shared_data(S("empty"), "", 0, 0));
  status = host_get_shared_data(S("empty"), &p, &n, &cas), said_data("get empty", status, p, n);
  status = host_register_shared_queue(S("queue"), &queue), said("register", status);
  status = host_register_shared_queue(S("queue"), &n), said_number("register again", status, n == queue);
  status = host_resolve_shared_queue(S("vm"), S("queue"), &n), said_number("resolve", status, n == queue);
  status = host_dequeue_shared_queue(queue, &p, &n), said_data("dequeue", status, p, n);
  said("enqueue", host_enqueue_shared_queue(queue, S("first")));
  said("enqueue", host_enqueue_shared_queue(queue, "", 0));
  status = host_dequeue_shared_queue(queue, &p, &n), said_data("dequeue", status, p, n);
  status = host_dequeue_shared_queue(queue, &p, &n), said_data("dequeue", status, p, n);
  status = host_dequeue_shared_queue(queue, &p, &n), said_data("dequeue", status, p, n);
  said("enqueue", host_enqueue_shared_queue(queue, S("ready")));
}

CALLBACK(on_queue_ready) void on_queue_ready(u32 context, u32 queue) {
  u8 *p = 0;
  u32 n = 0, status = host_dequeue_shared_queue(queue, &p, &n);
  said_data("queue is ready", status, p, n);
}

// Metrics.

static void metrics(void) {
  u32 counter = 0, gauge = 0, histogram = 0, again = 0, status;
  u64 v = 0;
  said("counter", host_define_metric(0, S("guest.counter"), &counter));
  said("gauge", host_define_metric(1, S("guest.gauge"), &gauge));
  said("histogram", host_define_metric(2, S("guest_histogram"), &histogram));
  status = host_define_metric(0, S("guest.counter"), &again), said("counter again", status);
  said("increment", host_increment_metric(counter, 3));
  said("increment", host_increment_metric(counter, 0));
  said("decrement", host_increment_metric(counter, -1));
  said("record counter", host_record_metric(counter, 10));
  said("increment gauge", host_increment_metric(gauge, 5));
  said("decrement gauge", host_increment_metric(gauge, -2));
  status = host_get_metric(counter, &v), said_number("counter", status, v);
  status = host_get_metric(gauge, &v), said_number("gauge", status, v);
  said("record gauge", host_record_metric(gauge, 42));
  status = host_get_metric(gauge, &v), said_number("gauge", status, v);
  said("record histogram", host_record_metric(histogram, 7));
  said("increment histogram", host_increment_metric(histogram, 7));
  v = 0, status = host_get_metric(histogram, &v), said_number("histogram", status, v);
}

// Properties: those that the configuration lists, a path a line, with dots.

static void properties(const char *when) {
  text("properties "), text(when), end_line();
  for (char *c = configuration; *c;) {
    char path[128];
    u32 n = 0, size = 0;
    u8 *p = 0;
    char *from = c;
    for (; *c && *c != '\n'; c++) path[n++] = *c == '.' ? 0 : *c;
    u32 status = host_get_property(path, n, &p, &size);
    text_n((u8 *)from, c - from), text(" = "), number(status);
    if (status == 0) text(" "), text_n(p, size);
    end_line();
    if (*c) c++;
  }
}

static void set_properties(void) {
  u8 *p = 0;
  u32 n = 0, status;
  said("set", host_set_property(S("mine"), S("value")));
  status = host_get_property(S("mine"), &p, &n), said_data("mine", status, p, n);
  status = host_get_property("wasm.mine", 9, &p, &n), said_data("wasm.mine", status, p, n);
  said("set path", host_set_property("a\0b", 3, S("deep")));
  status = host_get_property("a\0b", 3, &p, &n), said_data("a.b", status, p, n);
  status = host_get_property(S("a"), &p, &n), said_data("a", status, p, n);
  said("set again", host_set_property(S("mine"), S("second")));
  status = host_get_property(S("mine"), &p, &n), said_data("mine", status, p, n);
  said("set known", host_set_property("request\0path", 12, S("/other")));
  status = host_get_property("request\0path", 12, &p, &n), said_data("request.path", status, p, n);
}

// Foreign functions.

static void foreign(void) {
  u8 *p = 0, *q = 0;
  u32 n = 0, m = 0, status;
  status = host_call_foreign_function(S("compress"), S("hello hello hello hello"), &p, &n), said("compress", status);
  status = host_call_foreign_function(S("uncompress"), p, n, &q, &m), said_data("uncompress", status, q, m);
  status = host_call_foreign_function(S("uncompress"), S("nonsense"), &q, &m), said("uncompress nonsense", status);
  status = host_call_foreign_function(S("clear_route_cache"), 0, 0, &p, &n), said_number("clear_route_cache", status, n);
}

// Calls.

static u8 message[4096];

static u32 call(const char *to, const char *path, const char *content, u32 timeout) {
  const char *list[] = {":method", content ? "POST" : "GET", ":path", path, ":authority", "call.example", "X-Upper", "1", "x-twice", "a", "x-twice", "b", 0};
  u32 id = 0;
  u32 size = pairs(message, list);
  u32 status = host_http_call(S(to), message, size, content, content ? length(content) : 0, 0, 0, timeout, &id);
  said_number("call", status, id != 0);
  return status;
}

// calls makes the call that the deed says, and reports whether the stream waits for it.
static int calls(u32 context) {
  u32 id = 0;
  paused = context;
  if (same(deed, "call")) return call("backend", "/p/called", 0, 5000) == 0;
  if (same(deed, "call post")) return call("backend", "/p/called", "the body", 5000) == 0;
  if (same(deed, "call chunked")) return call("backend", "/p/chunked", 0, 5000) == 0;
  if (same(deed, "call trailers")) return call("backend", "/p/trailers", 0, 5000) == 0;
  if (same(deed, "call empty")) return call("backend", "/p/204", 0, 5000) == 0;
  if (same(deed, "call closes")) return call("backend", "/p/close", 0, 5000) == 0;
  if (same(deed, "call down")) return call("down", "/p/called", 0, 5000) == 0;
  if (same(deed, "call none")) return call("none", "/p/called", 0, 5000) == 0;
  if (same(deed, "call silent")) return call("silent", "/p/called", 0, 50) == 0;
  if (same(deed, "call twice")) return call("backend", "/p/first", 0, 5000) == 0;
  if (same(deed, "call local")) return call("backend", "/p/called", 0, 5000) == 0;
  if (same(deed, "call wrong")) {
    const char *list[] = {":method", "GET", ":authority", "x", 0};
    said("no path", host_http_call(S("backend"), message, pairs(message, list), 0, 0, 0, 0, 100, &id));
    return 0;
  }
  return 0;
}

CALLBACK(on_http_call_response) void on_http_call_response(u32 context, u32 id, u32 count, u32 size, u32 trailers) {
  u8 *p = 0;
  u32 n = 0, status;
  said_number("answer", count, size), said_number("trailers", 0, trailers);
  said_pairs("headers", CALL_HEADERS);
  said_pairs("trailers", CALL_TRAILERS);
  status = host_get_buffer_bytes(CALL_BODY, 0, size, &p, &n);
  text("body = "), number(status), text(" ");
  // The request id of the call is another each time.
  for (u32 i = 0; i < n && status == 0;) {
    u32 end = i;
    while (end < n && p[end] != '\n') end++;
    if (!(end - i > 12 && p[i] == 'x' && p[i + 2] == 'r' && p[i + 9] == '-')) text_n(p + i, end - i), text("|");
    i = end + 1;
  }
  end_line();
  status = host_get_status(&n, &p, &n), said("status", status);
  said("effective", host_set_effective_context(paused));
  if (same(deed, "call twice")) {
    deed[0] = 0;
    call("backend", "/p/second", 0, 5000);
    return;
  }
  if (same(deed, "call local")) {
    said("local", host_send_local_response(418, S(""), S("from the call"), 0, 0, -1));
    return;
  }
  said("add", host_add_header_map_value(REQUEST_HEADERS, S("x-called"), S("yes")));
  said("continue", host_continue_stream(0));
}

// gRPC. The service that is called is told by the first word of the deed's rest.

static u32 stream;

static int grpc(u32 context) {
  const char *metadata[] = {"x-meta", "1", "X-Upper", "2", "x-meta", "3", 0};
  const char *method = 0, *to = "grpc";
  u32 n, id = 0, status;
  paused = context;
  if (same(deed, "grpc unary")) method = "Unary";
  if (same(deed, "grpc fails")) method = "Fails";
  if (same(deed, "grpc encoded")) method = "Encoded";
  if (same(deed, "grpc no status")) method = "NoStatus";
  if (same(deed, "grpc bad frame")) method = "BadFrame";
  if (same(deed, "grpc only trailers")) method = "OnlyTrailers";
  if (same(deed, "grpc 404")) method = "NotFound";
  if (same(deed, "grpc 500")) method = "Broken";
  if (same(deed, "grpc resets")) method = "Resets";
  if (same(deed, "grpc silent")) method = "Silent";
  if (same(deed, "grpc nothing")) method = "Nothing";
  if (same(deed, "grpc two")) method = "Two";
  if (same(deed, "grpc down")) method = "Unary", to = "grpcdown";
  if (same(deed, "grpc none")) method = "Unary", to = "none";
  n = pairs(message, metadata);
  if (method) {
    status = host_grpc_call(S(to), S("test.Service"), S(method), message, n, S("ping"), same(method, "Silent") ? 100 : 5000, &id);
    said_number("grpc call", status, id != 0);
    return status == 0;
  }
  if (same(deed, "grpc service")) { // a GrpcService{envoy_grpc{cluster_name: "grpc", authority: "b"}}
    status = host_grpc_call("\x0a\x09\x0a\x04grpc\x12\x01" "b", 11, S("test.Service"), S("Unary"), message, n, S("ping"), 5000, &id);
    said_number("grpc call", status, id != 0);
    return status == 0;
  }
  if (same(deed, "grpc unknown service")) {
    status = host_grpc_call("\x0a\x06\x0a\x04none", 8, S("test.Service"), S("Unary"), message, n, S("ping"), 5000, &id);
    said_number("grpc call", status, id != 0);
    status = host_grpc_call("\x0a\x06\x0a\x04none", 8, S("test.Service"), S("Unary"), message, n, S("ping"), 5000, &id);
    return status == 0;
  }
  if (same(deed, "grpc cancel")) {
    status = host_grpc_call(S(to), S("test.Service"), S("Silent"), message, n, S("ping"), 5000, &id);
    said("grpc call", status);
    said("cancel", host_grpc_cancel(id));
    said("cancel again", host_grpc_cancel(id));
    return 0;
  }
  method = 0;
  if (same(deed, "stream")) method = "Chat";
  if (same(deed, "stream fails")) method = "Fails";
  if (same(deed, "stream no status")) method = "NoStatus";
  if (same(deed, "stream bad frame")) method = "BadFrame";
  if (same(deed, "stream only trailers")) method = "OnlyTrailers";
  if (same(deed, "stream 404")) method = "NotFound";
  if (same(deed, "stream resets")) method = "Resets";
  if (same(deed, "stream two")) method = "Two";
  if (same(deed, "stream down")) method = "Chat", to = "grpcdown";
  if (same(deed, "stream none")) method = "Chat", to = "none";
  if (same(deed, "stream cancel")) method = "Chat";
  if (!method) return 0;
  status = host_grpc_stream(S(to), S("test.Service"), S(method), message, n, &stream);
  said("grpc stream", status);
  if (status) return 0;
  said("send", host_grpc_send(stream, S("one"), 0));
  if (same(deed, "stream cancel")) return 1;
  if (!same(deed, "stream")) said("send", host_grpc_send(stream, S("two"), 1));
  return 1;
}

static void grpc_over(void) {
  said("effective", host_set_effective_context(paused));
  said("continue", host_continue_stream(0));
}

CALLBACK(on_grpc_receive_initial_metadata) void on_grpc_receive_initial_metadata(u32 context, u32 call, u32 count) {
  said_number("initial metadata", 0, count);
  said_pairs("metadata", GRPC_INITIAL);
}

CALLBACK(on_grpc_receive) void on_grpc_receive(u32 context, u32 call, u32 size) {
  u8 *p = 0;
  u32 n = 0, status = host_get_buffer_bytes(GRPC_MESSAGE, 0, size, &p, &n);
  said_data("message", status, p, n);
  if ((call & 3) == 1) {
    grpc_over();
  } else if (same(deed, "stream")) {
    deed[0] = 0;
    said("send", host_grpc_send(call, S("more"), 0));
    said("close", host_grpc_close(call));
  } else if (same(deed, "stream cancel")) {
    said("cancel", host_grpc_cancel(call));
    said("send", host_grpc_send(call, S("late"), 0));
    said("close", host_grpc_close(call));
    grpc_over();
  }
}

CALLBACK(on_grpc_receive_trailing_metadata) void on_grpc_receive_trailing_metadata(u32 context, u32 call, u32 count) {
  said_number("trailing metadata", 0, count);
  said_pairs("metadata", GRPC_TRAILING);
}

CALLBACK(on_grpc_close) void on_grpc_close(u32 context, u32 call, u32 code) {
  u8 *p = 0;
  u32 n = 0, of = 0, status = host_get_status(&of, &p, &n);
  said_number("closed", status, code), said_number("status", 0, of), said_data("message", status, p, n);
  grpc_over();
}

// Local responses.

static int local(void) {
  const char *list[] = {"x-local", "1", "content-type", "text/html", "x-local", "2", 0};
  u32 n = pairs(message, list);
  if (same(deed, "local")) return said("local", host_send_local_response(403, S("details here"), S("no\n"), message, n, -1)), 1;
  if (same(deed, "local empty")) return said("local", host_send_local_response(200, S(""), S(""), 0, 0, -1)), 1;
  if (same(deed, "local 204")) return said("local", host_send_local_response(204, S(""), S(""), message, n, -1)), 1;
  if (same(deed, "local grpc")) return said("local", host_send_local_response(403, S("why"), S("a \"message\" 100%"), 0, 0, 7)), 1;
  if (same(deed, "local twice")) {
    said("local", host_send_local_response(403, S(""), S("first"), 0, 0, -1));
    said("local", host_send_local_response(404, S(""), S("second"), 0, 0, -1));
    return 1;
  }
  if (same(deed, "local continue")) return said("local", host_send_local_response(403, S(""), S("continued"), 0, 0, -1)), 2;
  if (same(deed, "close")) return said("close", host_close_stream(0)), 1;
  return 0;
}

// Life.

CALLBACK(abi_version_0_2_1) void abi_version(void) {}

CALLBACK(on_context_create) void on_context_create(u32 context, u32 parent) {
  if (!parent) root = context;
}

CALLBACK(on_vm_start) u32 on_vm_start(u32 context, u32 size) {
  u8 *p = 0;
  u32 n = 0, status = host_get_buffer_bytes(VM_CONFIGURATION, 0, size, &p, &n);
  said_data("vm configuration", status, p, n);
  return 1;
}

CALLBACK(on_configure) u32 on_configure(u32 context, u32 size) {
  u8 *p = 0;
  u32 n = 0, level = 0, status;
  if (host_get_buffer_bytes(PLUGIN_CONFIGURATION, 0, size, &p, &n) == 0 && n < sizeof configuration) memcpy(configuration, p, n);
  status = host_get_log_level(&level), said_number("log level", status, level);
  said("tick", host_set_tick_period_milliseconds(20));
  return 1;
}

CALLBACK(on_tick) void on_tick(u32 context) {
  said("tick", host_set_tick_period_milliseconds(0));
}

CALLBACK(on_request_headers) u32 on_request_headers(u32 context, u32 count, u32 end) {
  int answered;
  read_deed();
  text("request headers "), text(deed), text(" "), number(end), end_line();
  if (same(deed, "headers")) headers(REQUEST_HEADERS);
  if (same(deed, "set")) set_all(REQUEST_HEADERS);
  if (same(deed, "wrong")) wrong();
  if (same(deed, "shared")) shared();
  if (same(deed, "metrics")) metrics();
  if (same(deed, "properties")) properties("request headers");
  if (same(deed, "set properties")) set_properties();
  if (same(deed, "foreign")) foreign();
  if (same(deed, "trap")) __builtin_trap();
  if (changes_body()) host_remove_header_map_value(REQUEST_HEADERS, S("content-length"));
  if ((answered = local())) return answered == 1 ? PAUSE : CONTINUE;
  return calls(context) || grpc(context) ? PAUSE : CONTINUE;
}

CALLBACK(on_request_body) u32 on_request_body(u32 context, u32 size, u32 end) {
  if (same(deed, "stream through")) return CONTINUE;
  if (!end) return PAUSE;
  if (changes_body()) body(REQUEST_BODY, size);
  if (same(deed, "properties")) properties("request body");
  if (same(deed, "local body")) return said("local", host_send_local_response(413, S(""), S("too much"), 0, 0, -1)), PAUSE;
  if (same(deed, "trap body")) __builtin_trap();
  return CONTINUE;
}

CALLBACK(on_request_trailers) u32 on_request_trailers(u32 context, u32 count) {
  said_number("request trailers", 0, count);
  if (changes_body()) body(REQUEST_BODY, 0);
  headers(REQUEST_TRAILERS);
  return CONTINUE;
}

CALLBACK(on_response_headers) u32 on_response_headers(u32 context, u32 count, u32 end) {
  text("response headers "), number(end), end_line();
  if (same(deed, "headers")) headers(RESPONSE_HEADERS);
  if (same(deed, "set")) set_all(RESPONSE_HEADERS);
  if (same(deed, "properties")) properties("response headers");
  if (same(deed, "request later")) headers(REQUEST_HEADERS);
  if (same(deed, "trap later")) __builtin_trap();
  if (same(deed, "close later")) return said("close", host_close_stream(1)), PAUSE;
  if (same(deed, "local later")) return said("local", host_send_local_response(502, S(""), S("instead"), 0, 0, -1)), PAUSE;
  if (changes_body()) host_remove_header_map_value(RESPONSE_HEADERS, S("content-length"));
  return CONTINUE;
}

CALLBACK(on_response_body) u32 on_response_body(u32 context, u32 size, u32 end) {
  if (same(deed, "stream through")) return CONTINUE;
  if (!end) return PAUSE;
  if (changes_body()) body(RESPONSE_BODY, size);
  if (same(deed, "properties")) properties("response body");
  return CONTINUE;
}

CALLBACK(on_response_trailers) u32 on_response_trailers(u32 context, u32 count) {
  said_number("response trailers", 0, count);
  if (changes_body()) body(RESPONSE_BODY, 0);
  headers(RESPONSE_TRAILERS);
  return CONTINUE;
}

CALLBACK(on_log) void on_log(u32 context) {
  text("log"), end_line();
  if (same(deed, "properties")) properties("log");
  if (same(deed, "log")) said_pairs("request", REQUEST_HEADERS), said_pairs("response", RESPONSE_HEADERS);
}

CALLBACK(on_done) u32 on_done(u32 context) {
  if (context != root) text("done"), end_line();
  return 1;
}

CALLBACK(on_delete) void on_delete(u32 context) {
  if (context != root) text("deleted"), end_line();
}

// TCP.

CALLBACK(on_new_connection) u32 on_new_connection(u32 context) {
  text("new connection"), end_line();
  if (configuration[0]) properties("connection");
  return CONTINUE;
}

// tcp_data replaces the first byte and appends to it.
static u32 tcp_data(const char *what, u32 which, u32 size, u32 end) {
  u8 *p = 0;
  u32 n = 0, status = host_get_buffer_bytes(which, 0, size, &p, &n);
  said_data(what, status, p, n), said_number("end", 0, end);
  if (n >= 4 && p[0] == 'w' && p[n - 1] != '.' && which == DOWNSTREAM_DATA) return PAUSE;
  if (n >= 4 && p[0] == 'q') said("close", host_close_stream(which));
  if (size) said("append", host_set_buffer_bytes(which, size, 0, which == DOWNSTREAM_DATA ? "<" : ">", 1));
  return CONTINUE;
}

CALLBACK(on_downstream_data) u32 on_downstream_data(u32 context, u32 size, u32 end) { return tcp_data("downstream", DOWNSTREAM_DATA, size, end); }

CALLBACK(on_upstream_data) u32 on_upstream_data(u32 context, u32 size, u32 end) { return tcp_data("upstream", UPSTREAM_DATA, size, end); }

CALLBACK(on_downstream_connection_close) void on_downstream_connection_close(u32 context, u32 peer) { said_number("downstream closed", 0, peer); }

CALLBACK(on_upstream_connection_close) void on_upstream_connection_close(u32 context, u32 peer) { said_number("upstream closed", 0, peer); }
