package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// Curl is what the binary does when it is called by the name curl: it asks for
// one URL, with the commonest of curl's flags. An image that has nothing but this
// binary has it as /usr/bin/curl, so that what one types into a proxy's container
// to see its statistics works there too. It returns curl's exit codes for what it
// can tell apart: 2 for misuse, 7 if nobody answers, 22 for an HTTP error with -f.
func Curl(ctx context.Context, args []string, env Env) int {
	c := curl{env: env}
	cmd := c.command()
	cmd.SetArgs(args)
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(env.Stderr, "curl: (2) %v\n", err)
		return 2
	}
	return c.code
}

type curl struct {
	env  Env
	code int

	silent, showError, fail, head, include, verbose bool
	method, data, output, format                    string
	headers                                         []string
	timeout                                         float64 // seconds
}

func (c *curl) command() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "curl [-sSfiIv] [-X METHOD] [-H HEADER]... [-d DATA] [-o FILE] [-w FORMAT] [-m SECONDS] URL",
		Short:         "Ask for a URL: a small part of curl, in chandler's image",
		Args:          cobra.ExactArgs(1),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(cmd *cobra.Command, args []string) error { return c.run(cmd.Context(), args[0]) },
	}
	cmd.SetOut(c.env.Stdout)
	flags := cmd.Flags()
	flags.BoolVarP(&c.silent, "silent", "s", false, "no error messages")
	flags.BoolVarP(&c.showError, "show-error", "S", false, "error messages even with -s")
	flags.BoolVarP(&c.fail, "fail", "f", false, "exit with 22 on an HTTP error, without its body")
	flags.BoolVarP(&c.head, "head", "I", false, "headers only")
	flags.BoolVarP(&c.include, "include", "i", false, "headers too")
	flags.BoolVarP(&c.verbose, "verbose", "v", false, "headers of both sides, on standard error")
	flags.StringVarP(&c.method, "request", "X", "", "`METHOD`")
	flags.StringVarP(&c.data, "data", "d", "", "body of a POST")
	flags.StringVarP(&c.output, "output", "o", "", "`FILE` for the body")
	flags.StringVarP(&c.format, "write-out", "w", "", "`FORMAT` to print at the end; knows %{http_code}")
	flags.StringArrayVarP(&c.headers, "header", "H", nil, "`HEADER` as Name: value; may be repeated")
	flags.Float64VarP(&c.timeout, "max-time", "m", 0, "`SECONDS` for all of it")
	return cmd
}

// run asks for url. What curl has an exit code for is told here.
func (c *curl) run(ctx context.Context, url string) error {
	if c.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(c.timeout*float64(time.Second)))
		defer cancel()
	}
	req, err := c.request(ctx, url)
	if err != nil {
		return err
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		c.end(7, err)
		return nil
	}
	defer resp.Body.Close()
	if c.fail && resp.StatusCode >= 400 {
		c.end(22, fmt.Errorf("the requested URL returned error: %d", resp.StatusCode))
		return nil
	}
	if err := c.print(req, resp); err != nil {
		c.end(23, err)
	}
	return nil
}

func (c *curl) request(ctx context.Context, url string) (*http.Request, error) {
	if !strings.Contains(url, "://") {
		url = "http://" + url
	}
	method := http.MethodGet
	var body io.Reader
	switch {
	case c.head:
		method = http.MethodHead
	case c.data != "":
		method, body = http.MethodPost, strings.NewReader(c.data)
	}
	req, err := http.NewRequestWithContext(ctx, cmp.Or(c.method, method), url, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "curl (chandler)")
	if c.data != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for _, h := range c.headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			return nil, fmt.Errorf("-H: %q is not NAME: VALUE", h)
		}
		if req.Header.Add(name, strings.TrimSpace(value)); strings.EqualFold(name, "host") {
			req.Host = strings.TrimSpace(value)
		}
	}
	return req, nil
}

// print writes what was asked for of resp.
func (c *curl) print(req *http.Request, resp *http.Response) error {
	out := c.env.Stdout
	if c.output != "" {
		f, err := os.Create(c.output)
		if err != nil {
			return err
		}
		defer f.Close()
		out = f
	}
	if c.verbose {
		fmt.Fprintf(c.env.Stderr, "> %s %s %s\n", req.Method, req.URL.RequestURI(), req.Proto)
		printHeader(c.env.Stderr, "> ", req.Header)
		fmt.Fprintf(c.env.Stderr, "< %s %s\n", resp.Proto, resp.Status)
		printHeader(c.env.Stderr, "< ", resp.Header)
	}
	if c.include || c.head {
		fmt.Fprintf(out, "%s %s\r\n", resp.Proto, resp.Status)
		printHeader(out, "", resp.Header)
	}
	if _, err := io.Copy(out, resp.Body); err != nil {
		return err
	}
	format := strings.NewReplacer("%{http_code}", fmt.Sprint(resp.StatusCode), "%{response_code}", fmt.Sprint(resp.StatusCode), `\n`, "\n")
	_, err := format.WriteString(c.env.Stdout, c.format)
	return err
}

func printHeader(w io.Writer, prefix string, h http.Header) {
	var lines strings.Builder
	_ = h.Write(&lines) // a Builder takes everything
	for line := range strings.Lines(lines.String()) {
		fmt.Fprintf(w, "%s%s", prefix, line)
	}
	fmt.Fprintf(w, "%s\r\n", prefix)
}

func (c *curl) end(code int, err error) {
	c.code = code
	if !c.silent || c.showError {
		fmt.Fprintf(c.env.Stderr, "curl: (%d) %v\n", code, err)
	}
}
