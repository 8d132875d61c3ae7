// Command coredns is CoreDNS with what a cluster's DNS needs and no more: names
// of services and pods are answered, all others do not exist.
//
// Its own package coremain would bring plugins for a dozen clouds. Plugins
// register themselves when imported; the order of [dnsserver.Directives] is
// that in which they see a query: template, last, is for what no other knows.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
	_ "github.com/coredns/coredns/plugin/template"
)

func main() {
	dnsserver.Directives = []string{"reload", "ready", "health", "errors", "cache", "hosts", "kubernetes", "template"}
	coremain.Run()
}
