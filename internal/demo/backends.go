package demo

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// maxBody is how much of a request's body httpbin takes, in bytes.
const maxBody = 1 << 20

// productpage has the title of Bookinfo's, so that checks for it carry over.
const productpage = `<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Simple Bookstore App</title></head>
<body>
<h1>The Comedy of Errors</h1>
<p>This page comes from the demo backend of chandler run.</p>
</body>
</html>
`

// NewProductpage stands for Bookinfo's front page: /productpage is the page,
// /health says that it is up.
func NewProductpage(ln net.Listener) *Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /productpage", body("text/html; charset=utf-8", []byte(productpage)))
	mux.HandleFunc("POST /productpage", body("text/html; charset=utf-8", []byte(productpage)))
	mux.HandleFunc("GET /health", body("text/plain; charset=utf-8", []byte("Product page is healthy\n")))
	return &Server{Name: "productpage", ln: ln, handler: mux}
}

// NewHTTPBin tells clients what they sent, in the form of httpbin.org:
//
//	/headers     the request's headers
//	/get         those, the query, the client's address and the URL
//	/anything    those of any method, and the body
//	/status/NNN  nothing, with that status (200 to 599)
func NewHTTPBin(ln net.Listener) *Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /headers", func(w http.ResponseWriter, r *http.Request) {
		printJSON(w, map[string]any{"headers": headersOf(r)})
	})
	mux.HandleFunc("GET /get", func(w http.ResponseWriter, r *http.Request) { printJSON(w, echo(r)) })
	mux.HandleFunc("/anything", anything)
	mux.HandleFunc("/anything/", anything)
	mux.HandleFunc("/status/{code}", status)
	return &Server{Name: "httpbin", ln: ln, handler: shared(mux)}
}

// shared adds the headers that httpbin gives every answer.
func shared(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.Header().Set("Access-Control-Allow-Credentials", "true")
		h.ServeHTTP(w, r)
	})
}

func status(w http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(r.PathValue("code"))
	if err != nil || code < 200 || code > 599 {
		http.Error(w, "Invalid status code", http.StatusBadRequest)
		return
	}
	w.WriteHeader(code)
}

func anything(w http.ResponseWriter, r *http.Request) {
	content, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		code := http.StatusBadRequest
		if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
			code = http.StatusRequestEntityTooLarge
		}
		http.Error(w, err.Error(), code)
		return
	}
	out := echo(r)
	out["method"] = r.Method
	out["data"], out["form"], out["files"], out["json"] = "", map[string]any{}, map[string]any{}, nil
	form, err := url.ParseQuery(string(content))
	if err == nil && strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		out["form"] = flat(form)
	} else {
		out["data"] = string(content)
		var v any
		if json.Unmarshal(content, &v) == nil {
			out["json"] = v
		}
	}
	printJSON(w, out)
}

// echo is what httpbin tells of every request.
func echo(r *http.Request) map[string]any {
	origin, _, _ := net.SplitHostPort(r.RemoteAddr)
	if forwarded := r.Header.Get("X-Forwarded-For"); forwarded != "" {
		origin = forwarded
	}
	return map[string]any{
		"args":    flat(r.URL.Query()),
		"headers": headersOf(r),
		"origin":  origin,
		"url":     "http://" + r.Host + r.URL.RequestURI(),
	}
}

// headersOf is r's headers, each as one string.
func headersOf(r *http.Request) map[string]string {
	headers := map[string]string{"Host": r.Host}
	for name, values := range r.Header {
		headers[name] = strings.Join(values, ",")
	}
	return headers
}

// flat gives what has one value as a string, and what has more as a list.
func flat(values url.Values) map[string]any {
	out := make(map[string]any, len(values))
	for name, list := range values {
		if len(list) == 1 {
			out[name] = list[0]
		} else {
			out[name] = list
		}
	}
	return out
}

func printJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	e.Encode(v) // fails only when the client is gone
}
