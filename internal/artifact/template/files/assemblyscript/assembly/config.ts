// The configuration, which knows nothing of the proxy.

export class Header {
  constructor(public name: string, public value: string) {}
}

// Reads an object of strings in JSON, as in {"x-name": "value"}; empty text is no
// headers. It returns null for anything else. \u escapes are not understood.
export function parse(text: string): Header[] | null {
  if (text.length == 0) return [];
  return new Parser(text).object();
}

class Parser {
  private at: i32 = 0;
  private ok: bool = true;

  constructor(private text: string) {}

  object(): Header[] | null {
    const headers: Header[] = [];
    this.want("{");
    if (!this.take("}")) {
      do {
        const name = this.string();
        this.want(":");
        const value = this.string();
        if (!isName(name)) return null;
        headers.push(new Header(name, value));
      } while (this.ok && this.take(","));
      this.want("}");
    }
    this.skip();
    return this.ok && this.at == this.text.length ? headers : null;
  }

  private string(): string {
    let out = "";
    this.want('"');
    while (this.ok && this.at < this.text.length) {
      let c = this.text.charAt(this.at++);
      if (c == '"') return out;
      if (c.charCodeAt(0) < 0x20) break;
      if (c == "\\") {
        c = this.text.charAt(this.at++);
        if (c == "t") c = "\t";
        else if (c != '"' && c != "\\" && c != "/") break; // \n and the like have no place in a header
      }
      out += c;
    }
    this.ok = false;
    return out;
  }

  private want(c: string): void {
    if (!this.take(c)) this.ok = false;
  }

  private take(c: string): bool {
    this.skip();
    if (this.text.charAt(this.at) != c) return false;
    this.at++;
    return true;
  }

  private skip(): void {
    while (this.at < this.text.length && " \t\r\n".includes(this.text.charAt(this.at))) this.at++;
  }
}

function isName(s: string): bool {
  return s.length > 0 && !s.includes(" ") && !s.includes(":") && !s.includes("\t");
}
