// A guest that does what scripts say, and logs what the host answers: one that is its
// configuration, when it is configured and for each connection; and those that a
// request has in x-request, x-response and x-log, at its headers, those of the
// response, and its end. Commands end with a semicolon:
//
//   get PATH          a property, with bars between the segments
//   set PATH TEXT     likewise
//   put PATH HEX      likewise
//   call NAME HEX     a foreign function
//   eval EXPRESSION   creates, evaluates and deletes an expression
//   trap
#include "../c/proxy.h"

static u32 root;
static char script[65536];
static u8 arguments[16384];

static char *word(char **c) {
  char *from = *c;
  while (**c && **c != ' ') (*c)++;
  if (**c) *(*c)++ = 0;
  return from;
}

static u32 path(char *p) {
  u32 n = length(p);
  for (u32 i = 0; i < n; i++) p[i] = p[i] == '|' ? 0 : p[i];
  return n;
}

static u32 digit(char c) { return c <= '9' ? c - '0' : (c | 32) - 'a' + 10; }

static u32 hex(const char *from) {
  u32 n = 0;
  for (; from[0] && from[1] && n < sizeof arguments; from += 2) arguments[n++] = digit(from[0]) << 4 | digit(from[1]);
  return n;
}

static void eval(char *expression) {
  u8 *p = 0, *q = 0;
  u32 n = 0, m = 0, token, status;
  text("eval "), text(expression);
  status = host_call_foreign_function(S("expr_create"), S(expression), &p, &n);
  if (status) {
    text(" = create "), number(status), end_line();
    return;
  }
  token = *(u32 *)p;
  status = host_call_foreign_function(S("expr_evaluate"), &token, 4, &q, &m);
  text(" = "), number(status);
  if (status == 0) text(" "), text_n(q, m);
  status = host_call_foreign_function(S("expr_delete"), &token, 4, &p, &n);
  if (status) text(" delete "), number(status);
  end_line();
}

static void command(char *c) {
  u8 *p = 0;
  u32 n = 0, size, status;
  while (*c == ' ') c++;
  char *name = word(&c);
  if (same(name, "get")) {
    text("get "), text(c);
    status = host_get_property(c, path(c), &p, &n), said_data("", status, p, n);
  } else if (same(name, "set")) {
    char *at = word(&c);
    text("set "), text(at);
    size = path(at), said("", host_set_property(at, size, S(c)));
  } else if (same(name, "put")) {
    char *at = word(&c);
    text("put "), text(at);
    size = path(at), said("", host_set_property(at, size, arguments, hex(c)));
  } else if (same(name, "call")) {
    char *f = word(&c);
    size = hex(c);
    text("call "), text(f);
    status = host_call_foreign_function(S(f), arguments, size, &p, &n), said_data("", status, p, n);
  } else if (same(name, "eval")) {
    eval(c);
  } else if (same(name, "trap")) {
    __builtin_trap();
  } else if (*name) {
    text("unknown command "), text(name), end_line();
  }
}

static void run(const char *when, const u8 *from, u32 size) {
  text(when), end_line();
  if (size >= sizeof script) size = sizeof script - 1;
  memcpy(script, from, size);
  script[size] = 0;
  for (char *c = script; *c;) {
    char *end = c;
    while (*end && *end != ';') end++;
    char *next = *end ? end + 1 : end;
    *end = 0;
    command(c);
    c = next;
  }
}

static void run_header(const char *when, const char *name) {
  u8 *p = 0;
  u32 n = 0;
  if (host_get_header_map_value(REQUEST_HEADERS, S(name), &p, &n)) n = 0;
  run(when, p, n);
}

static u8 configuration[65536], later[65536];
static u32 configured, kept;

CALLBACK(abi_version_0_2_1) void abi_version(void) {}

CALLBACK(on_context_create) void on_context_create(u32 context, u32 parent) {
  if (!parent) root = context;
}

CALLBACK(on_vm_start) u32 on_vm_start(u32 context, u32 size) { return 1; }

CALLBACK(on_configure) u32 on_configure(u32 context, u32 size) {
  u8 *p = 0;
  u32 n = 0;
  if (host_get_buffer_bytes(PLUGIN_CONFIGURATION, 0, size, &p, &n) == 0 && n < sizeof configuration) memcpy(configuration, p, n), configured = n;
  run("configure", configuration, configured);
  return 1;
}

CALLBACK(on_request_headers) u32 on_request_headers(u32 context, u32 count, u32 end) {
  u8 *p = 0;
  kept = 0;
  if (host_get_header_map_value(REQUEST_HEADERS, S("x-response"), &p, &kept) == 0) memcpy(later, p, kept);
  run_header("request", "x-request");
  return CONTINUE;
}

CALLBACK(on_response_headers) u32 on_response_headers(u32 context, u32 count, u32 end) {
  run("response", later, kept);
  return CONTINUE;
}

CALLBACK(on_log) void on_log(u32 context) {
  if (context != root) run_header("log", "x-log");
}

CALLBACK(on_done) u32 on_done(u32 context) { return 1; }

CALLBACK(on_delete) void on_delete(u32 context) {
  if (context != root) text("deleted"), end_line();
}

CALLBACK(on_new_connection) u32 on_new_connection(u32 context) {
  run("connection", configuration, configured);
  return CONTINUE;
}
