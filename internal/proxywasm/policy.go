package proxywasm

import "time"

// A FailPolicy says what a stream sees of a plugin whose guest failed.
type FailPolicy uint8

const (
	FailClosed FailPolicy = iota // every request is answered with 503, every connection closed
	FailOpen                     // the plugin is left out
	FailReload                   // a new guest, at most one in a while; until then as FailClosed
)

// DefaultBackoff is how long FailReload waits between two guests; Envoy's.
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
	case policy == FailOpen:
		return Skip
	case policy == FailReload && age >= backoff:
		return Reload
	}
	return Deny
}
