// The configuration, which knows nothing of the proxy.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

using Headers = std::vector<std::pair<std::string, std::string>>;

// Reads an object of strings in JSON, as in {"x-name": "value"}; empty text is no
// headers. It returns false for anything else. \u escapes are not understood.
class Config {
 public:
  static bool parse(std::string_view text, Headers &out) {
    Config c{text};
    out.clear();
    return text.empty() || (c.object(out) && c.at_end());
  }

 private:
  explicit Config(std::string_view text) : rest_(text) {}

  bool object(Headers &out) {
    if (!take('{')) return false;
    if (take('}')) return true;
    do {
      std::string name, value;
      if (!string(name) || !take(':') || !string(value) || !is_name(name)) return false;
      out.emplace_back(std::move(name), std::move(value));
    } while (take(','));
    return take('}');
  }

  bool string(std::string &out) {
    if (!take('"')) return false;
    while (!rest_.empty()) {
      char c = next();
      if (c == '"') return true;
      if (static_cast<unsigned char>(c) < ' ') return false;
      if (c == '\\' && !escape(c)) return false;
      out += c;
    }
    return false;
  }

  // Replaces the backslash in c by what the escape after it stands for.
  bool escape(char &c) {
    if (rest_.empty()) return false;
    switch (c = next()) {
      case '"': case '\\': case '/': return true;
      case 't': c = '\t'; return true;
      default: return false;  // \n and the like have no place in a header
    }
  }

  static bool is_name(const std::string &s) { return !s.empty() && s.find_first_of(" :\t") == std::string::npos; }

  bool at_end() { return skip(), rest_.empty(); }
  bool take(char c) {
    skip();
    if (rest_.empty() || rest_.front() != c) return false;
    next();
    return true;
  }
  void skip() {
    while (!rest_.empty() && std::string_view(" \t\r\n").find(rest_.front()) != std::string_view::npos) next();
  }
  char next() {
    char c = rest_.front();
    rest_.remove_prefix(1);
    return c;
  }

  std::string_view rest_;
};
