// Package examples carries the example resources inside the chandler binary:
// `chandler run` without resources of its own shows bookinfo.
//
// Each folder is one example: resources as a user would write them, and a
// README.md whose commands a test runs. The addresses in them are those of
// package demo. It holds files and nothing else. Start at [FS].
package examples

import "embed"

// FS is the examples, a folder each: bookinfo, envoyfilter, httpbin.
//
//go:embed */*.yaml */*/*.yaml */README.md
var FS embed.FS
