// Runs natively: make test
#include "config.h"

#include <cstdio>

int main() {
  int failures = 0;
  auto check = [&](bool ok, const char *what) {
    if (ok) return;
    std::fprintf(stderr, "FAIL %s\n", what);
    failures++;
  };
  Headers h;
  check(Config::parse(R"({"x-__NAME__": "hello", "b" : "\"c\\"})", h), "an object is read");
  check(h == Headers{{"x-__NAME__", "hello"}, {"b", "\"c\\"}}, "its fields are the headers");
  check(Config::parse("", h) && h.empty(), "no configuration is no headers");
  check(Config::parse(" {} ", h) && h.empty(), "an empty object is no headers");
  for (const char *bad : {"[]", R"({"x": 1})", R"({"x y": "z"})", R"({"x": "y")", R"({"x": "y"} z)", R"({"x": "\)"}) {
    check(!Config::parse(bad, h), bad);
  }
  return failures;
}
