package proxywasm

import "time"

// A FailPolicy says what a stream sees of a plugin whose guest failed before it. One that
// the guest had, when it failed, is answered with 503, or closed, with each of them but
// FailIgnore.
type FailPolicy uint8

const (
	FailClosed FailPolicy = iota // every request is answered with 503, every connection closed
	FailOpen                     // the plugin is left out
	FailReload                   // a new guest, at most one in a while; until then as FailClosed
	FailIgnore                   // as FailOpen, and the streams that it had pass, too: Envoy's old field fail_open
)

// DefaultBackoff is how long FailReload waits between two guests; Envoy's, which waits
// up to half as long again, by chance.
const DefaultBackoff = time.Second

// A Verdict is what becomes of a new stream.
type Verdict uint8

const (
	Run    Verdict = iota // the guest sees it
	Skip                  // it passes as if there were no plugin
	Deny                  // it is answered with 503, or closed
	Reload                // a new guest sees it, or if that fails too, Deny
)

// Decide says what becomes of a new stream, given whether the guest it was to go to
// has failed, and how long ago that guest was made. A reload that is not due yet is a
// Deny. It is Envoy's PluginConfig::maybeReloadHandleIfNeeded as a function.
func Decide(policy FailPolicy, failed bool, age, backoff time.Duration) Verdict {
	switch {
	case !failed:
		return Run
	case policy == FailOpen, policy == FailIgnore:
		return Skip
	case policy == FailReload && age >= backoff:
		return Reload
	}
	return Deny
}
